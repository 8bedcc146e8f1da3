//! What the master proposes to workers; their own settings win.

use clap::Args;
use fl_app::{
    SettingError,
    setting::{filled, number, parse, whole},
};
use fl_protocol::{LrSchedule, limits::MAX_CLIENT_CONFIG_BYTES};
use fl_quant::{Bits, Scheme};
use serde_json::{Map, Value};

/// The flags of this group, as typed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Proposals to workers (their own settings win)")]
pub struct TaskArgs {
    /// Proposed SGD steps of a round, 1 to 1000000
    #[arg(long, env)]
    pub local_steps: Option<u32>,
    /// Proposed passes over the local data in a round, 1 to 10000
    #[arg(long, env)]
    pub local_epochs: Option<u32>,
    /// Proposed samples of a step, 1 to 1000000
    #[arg(long, env)]
    pub batch_size: Option<u32>,
    /// Proposed learning rate, 1e-9 to 1000
    #[arg(long, env)]
    pub lr: Option<f32>,
    /// How the proposed LR changes from round to round: constant, exp:F, step:N:F, cosine:N, warmup:N
    #[arg(long, env, default_value = "constant")]
    pub lr_schedule: String,
    /// Proposed weight of FedProx's proximal term, 0 to 1000
    #[arg(long, env)]
    pub mu: Option<f32>,
    /// Proposed quantizer: StocQ, MSQ_v2, SDQ, BetaQ, bin, laq8, f16, none
    #[arg(long, env)]
    pub quantizer: Option<String>,
    /// Proposed bits per code, 1 to 8, or auto = as few as reach TARGET_NMSE
    #[arg(long, env)]
    pub bits: Option<String>,
    /// With BITS=auto: proposed |sent - delta|^2 / |delta|^2 at most, 1e-9 to 0.9
    #[arg(long, env, default_value_t = 0.0095)]
    pub target_nmse: f64,
    /// Instead of BITS: what all updates of a round may take together, in Mbit, 0.001 to 1e6, 0 = no limit;
    /// each worker makes the best of its share
    #[arg(long, env, default_value_t = 0.0)]
    pub uplink_mbit: f64,
    /// JSON object for clients of your own, at most 16384 bytes: it is the field `config` of every task to train or to
    /// evaluate
    #[arg(long, env, value_name = "JSON")]
    pub client_config: Option<String>,
}

impl TaskArgs {
    pub(super) fn resolve(self) -> Result<TaskHints, SettingError> {
        Ok(TaskHints {
            local_steps: self.local_steps,
            local_epochs: self.local_epochs,
            batch_size: self.batch_size,
            lr: self.lr,
            lr_schedule: parse("LR_SCHEDULE", &self.lr_schedule)?,
            mu: self.mu,
            quantizer: filled(self.quantizer),
            bits: filled(self.bits).map(|bits| parse("BITS", &bits)).transpose()?,
            target_nmse: self.target_nmse,
            uplink_mbit: (self.uplink_mbit != 0.0).then_some(self.uplink_mbit),
            client_config: filled(self.client_config).map(|json| client_config(&json)).transpose()?,
        })
    }
}

/// What `GET /task` proposes to the workers; `None` leaves the choice to them.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskHints {
    /// `LOCAL_STEPS`: SGD steps of a round.
    pub local_steps: Option<u32>,
    /// `LOCAL_EPOCHS`: passes over the local data in a round.
    pub local_epochs: Option<u32>,
    /// `BATCH_SIZE`: samples of a step.
    pub batch_size: Option<u32>,
    /// `LR`: learning rate.
    pub lr: Option<f32>,
    /// `LR_SCHEDULE`: how `LR` changes from round to round.
    pub lr_schedule: LrSchedule,
    /// `MU`: weight of FedProx's proximal term.
    pub mu: Option<f32>,
    /// `QUANTIZER`.
    pub quantizer: Option<String>,
    /// `BITS`: bits per code, or as few as reach `target_nmse`.
    pub bits: Option<Bits>,
    /// `TARGET_NMSE`: the error that `BITS=auto` aims at.
    pub target_nmse: f64,
    /// `UPLINK_MBIT`: what all updates of a round may take together, in megabits; `None` = no limit.
    pub uplink_mbit: Option<f64>,
    /// `CLIENT_CONFIG`: handed to every client.
    pub client_config: Option<Map<String, Value>>,
}

fn client_config(json: &str) -> Result<Map<String, Value>, SettingError> {
    // The value may be long: the sentence has its beginning.
    let shown =
        || format!("{}{}", &json[..json.floor_char_boundary(40)], if json.len() > 40 { "..." } else { "" });
    let refused = |reason: String| SettingError::new("CLIENT_CONFIG", shown(), reason);
    if json.len() > MAX_CLIENT_CONFIG_BYTES {
        return Err(refused(format!(
            "it has {} bytes, at most {MAX_CLIENT_CONFIG_BYTES} are sent",
            json.len()
        )));
    }
    serde_json::from_str(json).map_err(|error| refused(format!("it is not a JSON object: {error}")))
}

impl TaskHints {
    /// Bytes of one of `updates` updates that share the uplink.
    pub fn update_bytes(&self, updates: usize) -> Option<u64> {
        self.uplink_mbit.map(|mbit| (mbit * 1e6 / 8.0 / updates.max(1) as f64) as u64)
    }

    pub(super) fn check(&self) -> Result<(), SettingError> {
        for (name, value, max) in [
            ("LOCAL_STEPS", self.local_steps, 1_000_000),
            ("LOCAL_EPOCHS", self.local_epochs, 10_000),
            ("BATCH_SIZE", self.batch_size, 1_000_000),
        ] {
            if let Some(value) = value {
                whole(name, value.into(), 1, max)?;
            }
        }
        if let Some(Bits::Width(bits)) = self.bits {
            whole("BITS", bits.into(), 1, 8)?;
        }
        number("TARGET_NMSE", self.target_nmse, 1e-9, 0.9)?;
        if let Some(mbit) = self.uplink_mbit {
            number("UPLINK_MBIT", mbit, 0.001, 1e6)?;
            if let Some(bits @ Bits::Width(_)) = self.bits {
                return Err(SettingError::new("BITS", bits, "UPLINK_MBIT chooses the bits: leave BITS out"));
            }
        }
        if let Some(lr) = self.lr {
            number("LR", lr.into(), 1e-9, 1000.0)?;
        }
        if let Some(mu) = self.mu {
            number("MU", mu.into(), 0.0, 1000.0)?;
        }
        if let Some(name) = &self.quantizer {
            parse::<Scheme>("QUANTIZER", name)?;
        }
        Ok(())
    }
}
