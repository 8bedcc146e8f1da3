//! The rules of a round, as a function of (state, event, time): no I/O, no clock, no threads.
//!
//! A round is *open* while updates come in, *closing* while the next model is computed, and the
//! training is *finished* after the last one. Offers that cannot be decided yet wait in the state
//! and are answered by a later step; every offer is answered exactly once.

mod closed;
#[cfg(test)]
mod random_tests;
mod rules;
mod sampling;
mod state;
#[cfg(test)]
mod tests;

use super::step::UpdateWeight;
pub use closed::ClosedRound;
use fl_protocol::{Metrics, WorkerId};
pub use rules::Rules;
pub use sampling::draw;
pub use state::RoundState;

/// What an accepted update brought.
#[derive(Debug, Clone, PartialEq)]
pub struct Contribution {
    /// Its weight.
    pub num_samples: u64,
    /// What its local steps are worth, in plain SGD steps.
    pub local_norm: f64,
    /// Its Euclidean norm, where the strategy needs it.
    pub norm: f64,
    /// The round of the model that it was trained from.
    pub base: u64,
    /// Its mean training loss.
    pub loss: Option<f64>,
    /// Its size on the wire.
    pub bytes: u64,
    /// Size of the worker's last update, if that counts again in place of a new one.
    pub reused_bytes: Option<u64>,
    /// What the worker found of its training.
    pub metrics: Metrics,
}

impl Contribution {
    /// What the server's step needs to know of it.
    pub fn weight(&self) -> UpdateWeight {
        UpdateWeight { num_samples: self.num_samples, local_norm: self.local_norm, norm: self.norm }
    }
}

/// Names an offer until it is answered.
pub type OfferId = u64;

/// An input of the round rules.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A worker has an update for a round.
    Offer {
        /// Names it in the answer.
        id: OfferId,
        /// Who.
        worker: WorkerId,
        /// For which round.
        round: u64,
    },
    /// An admitted update has been checked, made durable and added.
    Commit {
        /// Whose.
        worker: WorkerId,
        /// What it brought.
        contribution: Contribution,
    },
    /// An admitted update turned out bad, or could not be made durable.
    Abort {
        /// Whose.
        worker: WorkerId,
    },
    /// Time has passed.
    Tick,
    /// The next model is there.
    ModelReady,
}

/// Why an offer is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The same (worker, round) was accepted before.
    Duplicate,
    /// The round is over.
    Stale,
    /// The round has not begun.
    Future,
}

/// An action that the owner of the state must carry out.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Go on with this offer; a commit or an abort must follow.
    Admit(OfferId),
    /// Answer this offer.
    Refuse(OfferId, Refusal),
    /// Compute the next model from what was committed; [`Event::ModelReady`] must follow.
    Close,
    /// Workers that wait for work may ask again: a place became free, or the pause is over.
    Invite,
}

/// The answer to a worker that asks for work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    /// Train from the current model; that many seconds are left, if there is a deadline.
    Train {
        /// Seconds until the round may close without this worker.
        deadline_s: Option<f64>,
    },
    /// Ask again later.
    Wait,
    /// The training is over.
    Stop,
}
