//! What a caller asks for (what was written is in the stream's header).

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A quantization scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scheme {
    /// Unbiased stochastic rounding on a uniform grid.
    StocQ,
    /// Least-squares codebook (Lloyd-Max).
    #[serde(rename = "MSQ_v2")]
    MsqV2,
    /// Uniform levels scaled by the standard deviation.
    #[serde(rename = "SDQ")]
    Sdq,
    /// Levels of a fitted Beta distribution.
    BetaQ,
    /// f32 as it is.
    #[serde(rename = "none")]
    None,
    /// IEEE half precision.
    #[serde(rename = "f16")]
    F16,
    /// One bit: sign times mean magnitude.
    #[serde(rename = "bin")]
    Bin,
    /// Eight-bit uniform grid of LAQ.
    #[serde(rename = "laq8")]
    Laq8,
}

impl Scheme {
    /// Every scheme, in the order in which tables list them.
    pub const ALL: [Scheme; 8] =
        [Self::StocQ, Self::MsqV2, Self::Sdq, Self::BetaQ, Self::Bin, Self::Laq8, Self::F16, Self::None];

    /// The name used in settings, on the wire and in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::StocQ => "StocQ",
            Self::MsqV2 => "MSQ_v2",
            Self::Sdq => "SDQ",
            Self::BetaQ => "BetaQ",
            Self::None => "none",
            Self::F16 => "f16",
            Self::Bin => "bin",
            Self::Laq8 => "laq8",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Scheme {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|scheme| scheme.name().eq_ignore_ascii_case(s)).ok_or_else(|| {
            format!("unknown quantizer `{s}`: use one of {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

/// How to encode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spec {
    /// The scheme.
    pub scheme: Scheme,
    /// Bits per code, 1 to 8. Ignored by `none`, `f16`, `bin` and `laq8`.
    pub bits: u8,
    /// Seed of stochastic rounding. One seed and one input give one stream, byte for byte.
    pub seed: u64,
}

impl Spec {
    /// The defaults of `scheme` at `bits` bits.
    pub const fn new(scheme: Scheme, bits: u8) -> Self {
        Self { scheme, bits, seed: 0 }
    }

    /// The width of the codes that the scheme writes.
    pub const fn code_bits(&self) -> u8 {
        match self.scheme {
            Scheme::Bin => 1,
            Scheme::Laq8 => 8,
            _ => self.bits,
        }
    }
}
