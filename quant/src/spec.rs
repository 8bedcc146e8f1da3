//! The request of a caller: scheme, width, target. (The stream's header says what was written.)

use crate::limits::MAX_BITS;
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
    /// Uniform levels; each block's step follows the standard deviation.
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
    /// Eight-bit uniform grid of LAQ (Sun et al. 2019).
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

/// How to encode. The default is what workers use: MSQ_v2 at the quality of 4 bits, entropy-coded.
///
/// ```
/// use fl_quant::{Scheme, Spec, Target};
///
/// // At most 1 % of squared error, in as few bytes as it takes.
/// let by_error = Spec { target: Target::Nmse(0.01), ..Spec::default() };
/// // 8 bits a value, stochastic rounding.
/// let by_width = Spec { seed: 7, ..Spec::new(Scheme::StocQ, 8) };
/// # let _ = (by_error, by_width);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spec {
    /// The scheme.
    pub scheme: Scheme,
    /// Bits per code, 1 to 8. Ignored by `none`, `f16`, `bin` and `laq8`.
    pub bits: u8,
    /// Seed of stochastic rounding. The same seed and input give the same stream, byte for byte.
    pub seed: u64,
    /// Whether codes are entropy-coded. MSQ_v2 then uses a uniform quantizer with an unlimited number of
    /// levels, and `bits` selects its error: see [`Target::Width`].
    pub entropy: bool,
    /// Rate-distortion optimised indices under an eight-state trellis: fewer bytes at the same error, more
    /// time. For MSQ_v2 with the entropy stage; other schemes ignore it.
    pub rdo: bool,
    /// What to reach: a width, an error or a size.
    pub target: Target,
}

/// The setting `BITS`: a width, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bits {
    /// Bits per code, 1 to 8.
    Width(u8),
    /// As few as reach a target ([`Target::Nmse`] or [`Target::Bytes`]).
    Auto,
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Width(bits) => bits.fmt(f),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl Serialize for Bits {
    /// A number, or `"auto"`.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Width(bits) => serializer.serialize_u8(*bits),
            Self::Auto => serializer.serialize_str("auto"),
        }
    }
}

impl FromStr for Bits {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s.eq_ignore_ascii_case("auto") {
            return Ok(Self::Auto);
        }
        match s.parse() {
            Ok(bits @ 1..=MAX_BITS) => Ok(Self::Width(bits)),
            _ => Err(format!("`{s}` is no width: give 1 to 8, or auto")),
        }
    }
}

/// What an encoding must reach.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Target {
    /// [`Spec::bits`] bits per code. For MSQ_v2 with the entropy stage: the error of the best quantizer of
    /// that width on a Gaussian (Max 1960), in the fewest bytes.
    #[default]
    Width,
    /// The fewest bytes whose normalised squared error `|decode(x) - x|^2 / |x|^2` is at most this.
    Nmse(f64),
    /// The least error in at most this many bytes, summed over all streams.
    Bytes(usize),
}

/// Error of the best `b`-bit quantizer of a unit Gaussian: Max (1960), table I, for 1 to 5 bits; 6 to 8
/// bits from the same iteration.
const GAUSSIAN_NMSE: [f64; 8] =
    [0.363_4, 0.117_5, 0.034_54, 0.009_497, 0.002_499, 0.000_642, 0.000_163, 0.000_041_1];

impl Default for Spec {
    fn default() -> Self {
        Self { entropy: true, ..Self::new(Scheme::MsqV2, 4) }
    }
}

impl Spec {
    /// `scheme` at `bits` bits, packed, with the seed 0.
    pub const fn new(scheme: Scheme, bits: u8) -> Self {
        Self { scheme, bits, seed: 0, entropy: false, rdo: false, target: Target::Width }
    }

    /// The error that [`Target::Width`] selects under the entropy coder.
    pub fn width_nmse(&self) -> f64 {
        GAUSSIAN_NMSE[usize::from(self.bits.clamp(1, MAX_BITS)) - 1]
    }

    /// Whether error feedback should be on by default.
    ///
    /// Packed codes carry the residual at no cost. Under the entropy coder it costs some 30 % more bytes,
    /// because every small value that was rounded to zero is sent eventually; an error of 1 % is not worth
    /// that, one of 3 % is. StocQ needs none: its errors have mean zero and average out. And at few bits
    /// its error is larger than the update, so that the residual would have to be cut.
    pub fn feedback_pays(&self) -> bool {
        let fine = match self.target {
            Target::Width => self.code_bits() >= 4,
            Target::Nmse(nmse) => nmse <= 0.01,
            Target::Bytes(_) => false,
        };
        self.scheme != Scheme::StocQ && !(self.entropy && fine)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feedback_is_for_coarse_or_packed_codes_of_biased_schemes() {
        let entropy = |bits| Spec { entropy: true, ..Spec::new(Scheme::MsqV2, bits) };
        assert!(!Spec::default().feedback_pays() && !entropy(8).feedback_pays());
        assert!(entropy(3).feedback_pays() && Spec::new(Scheme::MsqV2, 8).feedback_pays());
        assert!(Spec { target: Target::Nmse(0.03), ..entropy(8) }.feedback_pays());
        for bits in 1..=8 {
            assert!(!Spec::new(Scheme::StocQ, bits).feedback_pays());
            assert!(!Spec { entropy: true, ..Spec::new(Scheme::StocQ, bits) }.feedback_pays());
        }
    }
}
