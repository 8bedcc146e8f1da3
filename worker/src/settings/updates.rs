//! How updates and models are encoded.

use clap::{ArgAction, Args};
use fl_app::{
    SettingError,
    setting::{filled, number, parse, whole},
};
use fl_quant::{Bits, Scheme};
use std::{fmt, str::FromStr};

/// As given.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Updates")]
pub struct UpdateArgs {
    /// Quantizer: StocQ, MSQ_v2, SDQ, BetaQ, bin, laq8, f16, none [default: the master's, or MSQ_v2]
    #[arg(long, env = "QUANTIZER")]
    pub quantizer: Option<String>,
    /// Bits per code, 1 to 8, or auto = as few as reach TARGET_NMSE [default: the master's, or 4].
    /// With the entropy stage, MSQ_v2 takes b bits as a quality: the error of the best b-bit quantizer
    /// of a Gaussian, in as few bytes as it takes
    #[arg(long, env = "BITS")]
    pub bits: Option<String>,
    /// Entropy-code the updates
    #[arg(long, env = "ENTROPY", default_value_t = true, action = ArgAction::Set)]
    pub entropy: bool,
    /// Choose codes by error and size under a trellis (MSQ_v2 with ENTROPY): 1 to 5 % fewer bytes, slower
    #[arg(long, env = "RDO", default_value_t = false, action = ArgAction::Set)]
    pub rdo: bool,
    /// Add what quantization lost of an update to the next one: true, false, auto = where it is worth its
    /// bytes (coarser than 4 bits, or without the entropy stage; never StocQ, which is unbiased), else
    /// only for tensors that were rounded to zero
    #[arg(long, env = "ERROR_FEEDBACK", default_value = "auto")]
    pub error_feedback: String,
    /// With BITS=auto: |sent - delta|^2 / |delta|^2 at most, 1e-9 to 0.9
    #[arg(long, env = "TARGET_NMSE", default_value_t = 0.0095)]
    pub target_nmse: f64,
    /// With BITS=auto: bytes of an update at most instead of TARGET_NMSE, as far as 1 bit a parameter does
    /// (MSQ_v2: less), 0 = no such limit
    #[arg(long, env = "UPDATE_BYTES", default_value_t = 0)]
    pub update_bytes: usize,
    /// Bits of the downloaded model's codes, 1 to 8, 0 = the exact model; the update is the difference to what
    /// was received
    #[arg(long, env = "DOWN_BITS", default_value_t = 0)]
    pub down_bits: u8,
    /// Quantizer of the downloaded model: StocQ, MSQ_v2, SDQ, BetaQ, bin, laq8, f16 [default: SDQ]
    #[arg(long, env = "DOWN_QUANTIZER")]
    pub down_quantizer: Option<String>,
}

/// Checked. What is none comes from the master's task.
#[derive(Debug, Clone)]
pub struct UpdateSettings {
    /// `QUANTIZER`.
    pub quantizer: Option<Scheme>,
    /// `BITS`.
    pub bits: Option<Bits>,
    /// `ENTROPY`: the lossless stage.
    pub entropy: bool,
    /// `RDO`: the trellis of MSQ_v2.
    pub rdo: bool,
    /// `ERROR_FEEDBACK`.
    pub error_feedback: ErrorFeedback,
    /// `TARGET_NMSE`: the error that `BITS=auto` aims at.
    pub target_nmse: f64,
    /// `UPDATE_BYTES`: the size of an update that `BITS=auto` keeps to instead.
    pub update_bytes: Option<usize>,
    /// `DOWN_BITS` and `DOWN_QUANTIZER`; none: the exact model.
    pub download: Option<Download>,
}

/// How the model is quantized for its way down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Download {
    /// `DOWN_QUANTIZER`.
    pub scheme: Scheme,
    /// `DOWN_BITS`.
    pub bits: u8,
}

/// Whether an update's quantization error is added to the next update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorFeedback {
    /// Where it is worth its bytes (see [`fl_quant::Spec::feedback_pays`]), and always for tensors that were
    /// rounded to zero.
    Auto,
    /// Always.
    On,
    /// Never, except for updates that lazy upload holds back.
    Off,
}

impl FromStr for ErrorFeedback {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "true" => Ok(Self::On),
            "false" => Ok(Self::Off),
            _ => Err("give auto, true or false".to_owned()),
        }
    }
}

impl fmt::Display for ErrorFeedback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::On => "true",
            Self::Off => "false",
        })
    }
}

impl UpdateArgs {
    pub(super) fn check(self) -> Result<UpdateSettings, SettingError> {
        let bits = filled(self.bits).map(|bits| parse("BITS", &bits)).transpose()?;
        number("TARGET_NMSE", self.target_nmse, 1e-9, 0.9)?;
        let update_bytes = (self.update_bytes != 0).then_some(self.update_bytes);
        if let Some(bytes) = update_bytes {
            whole("UPDATE_BYTES", bytes as u64, 1, 1 << 32)?;
            if bits != Some(Bits::Auto) {
                return Err(SettingError::new("UPDATE_BYTES", bytes, "set BITS=auto too"));
            }
        }
        Ok(UpdateSettings {
            quantizer: filled(self.quantizer).map(|name| parse("QUANTIZER", &name)).transpose()?,
            bits,
            entropy: self.entropy,
            rdo: self.rdo,
            error_feedback: parse("ERROR_FEEDBACK", &self.error_feedback)?,
            target_nmse: self.target_nmse,
            update_bytes,
            download: download(self.down_bits, filled(self.down_quantizer))?,
        })
    }
}

fn download(bits: u8, quantizer: Option<String>) -> Result<Option<Download>, SettingError> {
    whole("DOWN_BITS", bits.into(), 0, 8)?;
    let scheme = quantizer.as_ref().map(|name| parse("DOWN_QUANTIZER", name)).transpose()?;
    match (bits, scheme) {
        (0, Some(scheme)) => Err(SettingError::new("DOWN_QUANTIZER", scheme, "set DOWN_BITS too")),
        (0, None) => Ok(None),
        (bits, scheme) => Ok(Some(Download { scheme: scheme.unwrap_or(Scheme::Sdq), bits })),
    }
}
