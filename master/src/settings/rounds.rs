//! When a round opens and closes, and which workers take part in it.

use crate::federation::Strategy;
use clap::Args;
use fl_app::{
    SettingError,
    setting::{number, whole},
};

/// The flags of this group, as typed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Rounds")]
pub struct RoundArgs {
    /// Updates that close a round, 1 to 1000000 [default: fedbuff's K, CLIENTS_PER_ROUND, or 2]
    #[arg(long, env)]
    pub agg_min_clients: Option<usize>,
    /// Rounds until the training is over, 0 = no end
    #[arg(long, env, default_value_t = 0)]
    pub rounds: u64,
    /// Least seconds between a round's close and the opening of the next one to workers, 0 to 1e6
    #[arg(long, env, default_value_t = 0.0)]
    pub round_pause_s: f64,
    /// Seconds from a round's first sign of life to its close with fewer updates, 0.01 to 1e7, 0 = none
    #[arg(long, env, default_value_t = 0.0)]
    pub round_deadline_s: f64,
    /// Updates that the close at the deadline needs, 1 to AGG_MIN_CLIENTS
    #[arg(long, env, default_value_t = 1)]
    pub round_min_at_deadline: usize,
    /// Workers that are asked to train in a round, 0 = everyone
    #[arg(long, env, default_value_t = 0)]
    pub clients_per_round: usize,
    /// Ask that many times more workers than CLIENTS_PER_ROUND, 1 to 100
    #[arg(long, env, default_value_t = 1.0)]
    pub overselect: f64,
    /// Seconds after which the place of a sampled worker that stays silent goes to another, 1 to 1e7
    #[arg(long, env, default_value_t = 120.0)]
    pub task_timeout_s: f64,
}

impl RoundArgs {
    pub(super) fn resolve(self, strategy: Strategy) -> RoundConfig {
        let clients_per_round = (self.clients_per_round > 0).then_some(self.clients_per_round);
        let buffer = match strategy {
            Strategy::FedBuff { buffer } => Some(buffer),
            _ => None,
        };
        RoundConfig {
            min_clients: self.agg_min_clients.or(buffer).or(clients_per_round).unwrap_or(2),
            rounds: self.rounds,
            pause_s: self.round_pause_s,
            deadline_s: (self.round_deadline_s != 0.0).then_some(self.round_deadline_s),
            min_at_deadline: self.round_min_at_deadline,
            clients_per_round,
            overselect: self.overselect,
            task_timeout_s: self.task_timeout_s,
        }
    }
}

/// When a round opens and closes, and which workers take part in it.
#[derive(Debug, Clone)]
pub struct RoundConfig {
    /// `AGG_MIN_CLIENTS`: updates that close a round.
    pub min_clients: usize,
    /// `ROUNDS`: rounds until the training is over; 0 = no end.
    pub rounds: u64,
    /// `ROUND_PAUSE_S`: least seconds between a round's close and the opening of the next one to workers.
    pub pause_s: f64,
    /// `ROUND_DEADLINE_S`: seconds from a round's first sign of life to its close with fewer updates.
    pub deadline_s: Option<f64>,
    /// `ROUND_MIN_AT_DEADLINE`: updates that the close at the deadline needs.
    pub min_at_deadline: usize,
    /// `CLIENTS_PER_ROUND`: workers that `GET /task` asks to train; `None` = everyone.
    pub clients_per_round: Option<usize>,
    /// `OVERSELECT`: that many times more workers are asked, so that some may fail.
    pub overselect: f64,
    /// `TASK_TIMEOUT_S`: seconds after which a silent worker's place goes to another.
    pub task_timeout_s: f64,
}

impl RoundConfig {
    /// Workers that are asked to train in one round, if they are sampled at all.
    pub fn sample(&self) -> Option<usize> {
        self.clients_per_round.map(|clients| (clients as f64 * self.overselect).ceil() as usize)
    }

    /// Updates that a round closes with at least.
    pub fn fewest(&self) -> usize {
        if self.deadline_s.is_some() { self.min_at_deadline } else { self.min_clients }
    }

    pub(super) fn check(&self) -> Result<(), SettingError> {
        whole("AGG_MIN_CLIENTS", self.min_clients as u64, 1, 1_000_000)?;
        number("ROUND_PAUSE_S", self.pause_s, 0.0, 1e6)?;
        whole("ROUND_MIN_AT_DEADLINE", self.min_at_deadline as u64, 1, 1_000_000)?;
        if let Some(deadline) = self.deadline_s {
            number("ROUND_DEADLINE_S", deadline, 0.01, 1e7)?;
            if self.min_at_deadline > self.min_clients {
                let reason = format!("it cannot be above AGG_MIN_CLIENTS ({})", self.min_clients);
                return Err(SettingError::new("ROUND_MIN_AT_DEADLINE", self.min_at_deadline, reason));
            }
        }
        number("OVERSELECT", self.overselect, 1.0, 100.0)?;
        number("TASK_TIMEOUT_S", self.task_timeout_s, 1.0, 1e7)?;
        if let Some(clients) = self.clients_per_round {
            whole("CLIENTS_PER_ROUND", clients as u64, 1, 1_000_000)?;
        }
        match self.sample() {
            Some(sample) if sample < self.min_clients => {
                let reason = format!(
                    "CLIENTS_PER_ROUND times OVERSELECT asks only {sample} workers: no round could close"
                );
                Err(SettingError::new("AGG_MIN_CLIENTS", self.min_clients, reason))
            }
            _ => Ok(()),
        }
    }
}
