//! The server's strategies by name, and what each needs of a round.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use thiserror::Error;

/// A server strategy. Updates are weighted by their samples where nothing else is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Strategy {
    /// `fedavg`: the average of the updates (McMahan et al. 2017, algorithm 1).
    FedAvg,
    /// `fedavgm`: server momentum on the average (Hsu et al. 2019, section 4.3).
    FedAvgM,
    /// `fedadagrad`: Adagrad on the average (Reddi et al. 2021, algorithm 2).
    FedAdagrad,
    /// `fedyogi`: Yogi on the average (Reddi et al. 2021, algorithm 2).
    FedYogi,
    /// `fedadam`: Adam on the average (Reddi et al. 2021, algorithm 2).
    FedAdam,
    /// `fednova`: updates normalised by their local steps (Wang et al. 2020, eq. 6 and 7).
    FedNova,
    /// `scaffold:N`: control variates over N workers in all, unweighted (Karimireddy et al. 2020,
    /// algorithm 1, option II).
    Scaffold {
        /// Workers in all, sampled or not.
        workers: usize,
    },
    /// `fedbuff:K`: asynchronous; every K updates make a model, each weighted by `1 / sqrt(1 + s)` for
    /// its staleness of s rounds (Nguyen et al. 2022, algorithm 1).
    FedBuff {
        /// Updates that make a model.
        buffer: usize,
    },
    /// `median`: the median of each coordinate (Yin et al. 2018, definition 1).
    Median,
    /// `trimmed_mean:F`: the mean of each coordinate without its F smallest and F largest values (Yin et
    /// al. 2018, definition 2).
    TrimmedMean {
        /// Values left out at each end.
        cut: usize,
    },
    /// `krum:F`: the update that is nearest to its neighbours, with F hostile updates tolerated (Blanchard et al.
    /// 2017, section 4).
    Krum {
        /// Number of hostile updates tolerated.
        hostile: usize,
    },
    /// `multikrum:F:M`: the mean of the M best by Krum's score (Blanchard et al. 2017, section 5).
    MultiKrum {
        /// Number of hostile updates tolerated.
        hostile: usize,
        /// Updates that are averaged.
        chosen: usize,
    },
}

/// All names, for messages.
pub const STRATEGIES: &str = "fedavg, fedavgm, fedadagrad, fedyogi, fedadam, fednova, scaffold:N, fedbuff:K, median, \
trimmed_mean:F, krum:F, multikrum:F:M";

/// A name that is no strategy's.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("unknown strategy: use one of {STRATEGIES}, with whole numbers of 1 to 1000000")]
pub struct UnknownStrategy;

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(s: &str) -> Result<Self, UnknownStrategy> {
        let parts: Vec<&str> = s.split(':').collect();
        let count = |text: &str| match text.parse::<usize>() {
            Ok(count @ 1..=1_000_000) => Ok(count),
            _ => Err(UnknownStrategy),
        };
        Ok(match parts[..] {
            ["fedavg"] => Self::FedAvg,
            ["fedavgm"] => Self::FedAvgM,
            ["fedadagrad"] => Self::FedAdagrad,
            ["fedyogi"] => Self::FedYogi,
            ["fedadam"] => Self::FedAdam,
            ["fednova"] => Self::FedNova,
            ["scaffold", n] => Self::Scaffold { workers: count(n)? },
            ["fedbuff", k] => Self::FedBuff { buffer: count(k)? },
            ["median"] => Self::Median,
            ["trimmed_mean", f] => Self::TrimmedMean { cut: count(f)? },
            ["krum", f] => Self::Krum { hostile: count(f)? },
            ["multikrum", f, m] => Self::MultiKrum { hostile: count(f)?, chosen: count(m)? },
            _ => return Err(UnknownStrategy),
        })
    }
}

impl TryFrom<String> for Strategy {
    type Error = UnknownStrategy;

    fn try_from(name: String) -> Result<Self, UnknownStrategy> {
        name.parse()
    }
}

impl From<Strategy> for String {
    fn from(strategy: Strategy) -> Self {
        strategy.to_string()
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FedAvg => f.write_str("fedavg"),
            Self::FedAvgM => f.write_str("fedavgm"),
            Self::FedAdagrad => f.write_str("fedadagrad"),
            Self::FedYogi => f.write_str("fedyogi"),
            Self::FedAdam => f.write_str("fedadam"),
            Self::FedNova => f.write_str("fednova"),
            Self::Scaffold { workers } => write!(f, "scaffold:{workers}"),
            Self::FedBuff { buffer } => write!(f, "fedbuff:{buffer}"),
            Self::Median => f.write_str("median"),
            Self::TrimmedMean { cut } => write!(f, "trimmed_mean:{cut}"),
            Self::Krum { hostile } => write!(f, "krum:{hostile}"),
            Self::MultiKrum { hostile, chosen } => write!(f, "multikrum:{hostile}:{chosen}"),
        }
    }
}

impl Strategy {
    /// Whether the next model needs every update by itself, not their sum alone: the master then holds
    /// 4 bytes for each parameter and update of a round.
    pub fn needs_individual_updates(self) -> bool {
        matches!(self, Self::Median | Self::TrimmedMean { .. } | Self::Krum { .. } | Self::MultiKrum { .. })
    }

    /// Memory for the individual updates of one round, in bytes.
    pub fn buffer_bytes(self, updates: usize, parameters: usize) -> u64 {
        match self.needs_individual_updates() {
            true => 4 * updates as u64 * parameters as u64,
            false => 0,
        }
    }

    /// Whether workers train with control variates.
    pub fn uses_control(self) -> bool {
        matches!(self, Self::Scaffold { .. })
    }

    /// Whether updates of earlier rounds count too.
    pub fn is_asynchronous(self) -> bool {
        matches!(self, Self::FedBuff { .. })
    }

    /// Whether it counts the plain SGD steps of an update, which Adam's are not.
    pub fn needs_sgd(self) -> bool {
        matches!(self, Self::FedNova | Self::Scaffold { .. })
    }

    /// Fewest updates from which a model can be made.
    pub fn least_updates(self) -> usize {
        match self {
            Self::TrimmedMean { cut } => 2 * cut + 1,
            Self::Krum { hostile } => 2 * hostile + 3,
            Self::MultiKrum { hostile, chosen } => (2 * hostile + 3).max(hostile + chosen),
            _ => 1,
        }
    }

    /// `SERVER_LR` where it is not set: the step of an adaptive strategy is about that long in every
    /// coordinate.
    pub fn default_server_lr(self) -> f64 {
        match self {
            Self::FedAdagrad | Self::FedYogi | Self::FedAdam => 0.01,
            _ => 1.0,
        }
    }

    /// An update's weight in the sum, from its samples, its normalised steps and its staleness in rounds.
    pub fn weight(self, samples: u64, local_norm: f64, staleness: u64) -> f64 {
        match self {
            Self::FedNova => samples as f64 / local_norm,
            Self::Scaffold { .. } => 1.0,
            Self::FedBuff { .. } => 1.0 / (1.0 + staleness as f64).sqrt(),
            _ => samples as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for name in STRATEGIES.split(", ") {
            let name = name.replace('N', "9").replace('K', "4").replace('F', "2").replace('M', "3");
            assert_eq!(name.parse::<Strategy>().unwrap().to_string(), name);
        }
        for bad in ["best", "krum", "krum:0", "krum:x", "multikrum:1", "median:1", "fedbuff:-1", "fedavg:"] {
            assert_eq!(bad.parse::<Strategy>(), Err(UnknownStrategy), "{bad}");
        }
    }

    #[test]
    fn only_robust_strategies_buffer_updates() {
        assert_eq!(Strategy::FedAdam.buffer_bytes(10, 100), 0);
        assert_eq!(Strategy::Median.buffer_bytes(10, 100), 4000);
    }
}
