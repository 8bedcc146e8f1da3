//! The rules of rounds, constant while the settings are.

/// When a round closes, who takes part, and when the training is over.
#[derive(Debug, Clone, PartialEq)]
pub struct Rules {
    /// Updates that close a round.
    pub target: usize,
    /// Seconds from the first sign of life to the early close.
    pub deadline_s: Option<f64>,
    /// Updates that the early close needs.
    pub min_at_deadline: usize,
    /// Workers that are asked to train; `None` = everyone.
    pub sample: Option<usize>,
    /// Seconds after a round opens in which no worker is asked to train.
    pub pause_s: f64,
    /// Seconds until a silent worker's place goes to another.
    pub task_timeout_s: f64,
    /// Rounds until the training is over; 0 = no end.
    pub rounds: u64,
    /// Seed of the sampling.
    pub seed: u64,
    /// Finished rounds whose participants are remembered, to tell a retry from a late update.
    pub remember: usize,
    /// Asynchronous operation: updates at most this many rounds late count in the open round.
    pub max_staleness: Option<u64>,
}
