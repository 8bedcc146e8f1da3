//! Virtual hardware: how fast each client computes, and how fast its link is.

use clap::Args;
use fl_app::{SettingError, setting::number};
use fl_datasets::{Purpose, seeded_rng};
use rand::{RngExt, rngs::ChaCha8Rng};
use serde::Serialize;
use std::{fmt, str::FromStr};

/// Flags of the virtual hardware. They determine how long a round takes and, with a deadline or fedbuff,
/// whose updates count; nothing else.
#[derive(Debug, Clone, Args, Serialize)]
pub struct NetworkArgs {
    /// Samples that the median client trains on in a virtual second.
    #[arg(long, default_value_t = 1000.0, value_name = "SAMPLES", help_heading = "Virtual network")]
    pub speed: f64,

    /// Spread of the clients' speeds: the standard deviation of their logarithm.
    #[arg(long, default_value_t = 0.0, value_name = "SIGMA", help_heading = "Virtual network")]
    pub speed_spread: f64,

    /// COUNT clients are slower by FACTOR, as in 1:20.
    #[arg(long, value_name = "COUNT:FACTOR", help_heading = "Virtual network")]
    #[serde(serialize_with = "as_optional_text")]
    pub slow: Option<Slow>,

    /// The median client's uplink in Mbit/s.
    #[arg(long, default_value_t = 10.0, value_name = "MBIT", help_heading = "Virtual network")]
    pub up_mbit: f64,

    /// The median client's downlink in Mbit/s.
    #[arg(long, default_value_t = 50.0, value_name = "MBIT", help_heading = "Virtual network")]
    pub down_mbit: f64,

    /// Spread of the clients' links: the standard deviation of their logarithm.
    #[arg(long, default_value_t = 0.0, value_name = "SIGMA", help_heading = "Virtual network")]
    pub bandwidth_spread: f64,

    /// Delay of a message in either direction, in milliseconds.
    #[arg(long, default_value_t = 50.0, value_name = "MS", help_heading = "Virtual network")]
    pub latency_ms: f64,

    /// Probability that a client drops out of a round in which it was asked to train, 0 to below 0.99.
    #[arg(long, default_value_t = 0.0, value_name = "P", help_heading = "Virtual network")]
    pub dropout: f64,

    /// Virtual seconds after which a client that dropped out is replaced.
    #[arg(long, default_value_t = 120.0, value_name = "SECONDS", help_heading = "Virtual network")]
    pub task_timeout_s: f64,
}

fn as_optional_text<S: serde::Serializer>(value: &Option<Slow>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(slow) => serializer.serialize_some(&slow.to_string()),
        None => serializer.serialize_none(),
    }
}

/// The first clients are slower.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slow {
    /// How many.
    pub count: usize,
    /// By what factor.
    pub factor: f64,
}

impl fmt::Display for Slow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.count, self.factor)
    }
}

impl FromStr for Slow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (count, factor) = text.split_once(':')?;
            Some(Self { count: count.parse().ok()?, factor: factor.parse().ok().filter(|f| *f >= 1.0)? })
        };
        parse().ok_or_else(|| format!("`{text}` is not COUNT:FACTOR with a factor of at least 1, as in 1:20"))
    }
}

impl NetworkArgs {
    /// Checks every value's range.
    ///
    /// # Errors
    /// The first one that is refused.
    pub fn check(&self) -> Result<(), SettingError> {
        for (flag, value) in [
            ("--speed", self.speed),
            ("--up-mbit", self.up_mbit),
            ("--down-mbit", self.down_mbit),
            ("--task-timeout-s", self.task_timeout_s),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(SettingError::new(flag, value, "use a number above 0"));
            }
        }
        if !(self.latency_ms.is_finite() && self.latency_ms >= 0.0) {
            return Err(SettingError::new("--latency-ms", self.latency_ms, "use 0 or more"));
        }
        if !(0.0..0.99).contains(&self.dropout) {
            return Err(SettingError::new(
                "--dropout",
                self.dropout,
                "use a probability from 0 to below 0.99",
            ));
        }
        number("--speed-spread", self.speed_spread, 0.0, 5.0)?;
        number("--bandwidth-spread", self.bandwidth_spread, 0.0, 5.0)
    }
}

/// One client's computer and link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hardware {
    samples_per_s: f64,
    up_bits_per_s: f64,
    down_bits_per_s: f64,
    latency_s: f64,
}

impl Hardware {
    /// The hardware of client `index`: a function of the settings, the seed and its name.
    pub fn of(args: &NetworkArgs, seed: u64, index: usize, name: &str) -> Self {
        let mut rng = seeded_rng(seed, name, 0, Purpose::Hardware);
        let speed = args.speed * (args.speed_spread * gaussian(&mut rng)).exp();
        let link = (args.bandwidth_spread * gaussian(&mut rng)).exp();
        let slow = args.slow.filter(|slow| index < slow.count).map_or(1.0, |slow| slow.factor);
        Self {
            samples_per_s: speed / slow,
            up_bits_per_s: 1e6 * args.up_mbit * link,
            down_bits_per_s: 1e6 * args.down_mbit * link,
            latency_s: args.latency_ms / 1e3,
        }
    }

    /// Virtual seconds of training on `samples` samples.
    pub fn compute_s(&self, samples: u64) -> f64 {
        samples as f64 / self.samples_per_s
    }

    /// Virtual seconds from the task to the update's arrival.
    pub fn round_s(&self, bytes_down: u64, samples: u64, bytes_up: u64) -> f64 {
        2.0 * self.latency_s
            + 8.0 * bytes_down as f64 / self.down_bits_per_s
            + self.compute_s(samples)
            + 8.0 * bytes_up as f64 / self.up_bits_per_s
    }
}

/// A draw from the normal distribution (Box and Muller 1958).
fn gaussian(rng: &mut ChaCha8Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        network: NetworkArgs,
    }

    fn args(flags: &[&str]) -> NetworkArgs {
        Cli::parse_from(std::iter::once(&"test").chain(flags)).network
    }

    #[test]
    fn a_round_takes_download_training_upload_and_two_delays() {
        let args = args(&["--speed=100", "--up-mbit=8", "--down-mbit=80", "--latency-ms=250", "--slow=1:20"]);
        let slow = Hardware::of(&args, 1, 0, "a");
        let fast = Hardware::of(&args, 1, 1, "b");
        assert!((fast.round_s(1_000_000, 100, 1_000_000) - (0.5 + 0.1 + 1.0 + 1.0)).abs() < 1e-9);
        assert!((slow.compute_s(100) - 20.0).abs() < 1e-9);
    }

    #[test]
    fn a_spread_scatters_around_the_median() {
        let args = args(&["--speed-spread=0.5"]);
        let mut times: Vec<f64> =
            (0..1001).map(|i| Hardware::of(&args, 7, i, &format!("w{i}")).compute_s(1000)).collect();
        times.sort_by(f64::total_cmp);
        assert!((0.9..1.1).contains(&times[500]), "{}", times[500]);
        assert!(times[1000] / times[0] > 10.0);
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(args(&[]).check(), Ok(()));
        assert_eq!(args(&["--speed=0"]).check().unwrap_err().name, "--speed");
        assert_eq!(args(&["--dropout=1"]).check().unwrap_err().name, "--dropout");
        assert!("3".parse::<Slow>().is_err() && "1:0.5".parse::<Slow>().is_err());
    }
}
