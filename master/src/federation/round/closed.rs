//! A round that is over.

use super::{Contribution, RoundState};
use crate::federation::{
    evaluation::{Reported, spreads},
    step::UpdateWeight,
};
use fl_protocol::{HistoryRecord, Spread, WorkerId};
use std::collections::BTreeMap;

/// The input of a round's close besides the sums. The same updates give the same value in whatever order
/// they came, so that a replay after a crash closes the round as it was closed before.
#[derive(Debug, Clone, PartialEq)]
pub struct ClosedRound {
    /// Its number.
    pub round: u64,
    /// Asynchronous operation: the model that each worker's newest update was trained from.
    pub newest: BTreeMap<WorkerId, u64>,
    /// When it opened, in seconds since 1970.
    pub opened_ts: f64,
    /// When it closed, in seconds since 1970.
    pub closed_ts: f64,
    /// Bytes of models that were sent while it was open.
    pub bytes_down: u64,
    /// The accepted updates in the order of the workers' names.
    updates: Vec<(WorkerId, Contribution)>,
}

impl ClosedRound {
    /// The round that `state` says is over at time `now`.
    pub fn of(state: &RoundState, now: f64, bytes_down: u64) -> Self {
        let updates = state.contributions().map(|(worker, update)| (worker.clone(), update.clone()));
        let closed = Self::new(state.round(), updates.collect(), (state.opened(), now), bytes_down);
        closed.with_newest(state.newest().clone())
    }

    /// A round with these updates, in any order. `times` are those of its opening and its close.
    pub fn new(
        round: u64,
        mut updates: Vec<(WorkerId, Contribution)>,
        (opened_ts, closed_ts): (f64, f64),
        bytes_down: u64,
    ) -> Self {
        updates.sort_by(|a, b| a.0.cmp(&b.0));
        Self { round, newest: BTreeMap::new(), opened_ts, closed_ts, bytes_down, updates }
    }

    /// Asynchronous operation: with the model that each worker's newest update was trained from.
    #[must_use]
    pub fn with_newest(self, newest: BTreeMap<WorkerId, u64>) -> Self {
        Self { newest, ..self }
    }

    /// Number of accepted updates.
    pub fn num_updates(&self) -> usize {
        self.updates.len()
    }

    /// The workers whose updates were accepted, sorted.
    pub fn participants(&self) -> Vec<WorkerId> {
        self.updates.iter().map(|(worker, _)| worker.clone()).collect()
    }

    /// What the server's step needs to know of the updates, in the order of the workers' names.
    pub fn weights(&self) -> Vec<UpdateWeight> {
        self.updates.iter().map(|(_, update)| update.weight()).collect()
    }

    /// The metrics of the updates, over the workers that sent them.
    fn update_metrics(&self) -> BTreeMap<String, Spread> {
        let reported = |(worker, update): &(WorkerId, Contribution)| {
            let values = update.metrics.iter().map(|(name, value)| (name.into(), value)).collect();
            let reported = Reported { num_samples: update.num_samples, values };
            (!update.metrics.is_empty()).then(|| (worker.clone(), reported))
        };
        let reports: Vec<_> = self.updates.iter().filter_map(reported).collect();
        spreads(reports.iter().map(|(worker, report)| (worker, report)))
    }

    /// The record of the round for a model of `parameters` parameters, not evaluated yet.
    pub fn record(&self, parameters: usize) -> HistoryRecord {
        let updates = || self.updates.iter().map(|(_, update)| update);
        let num_samples = updates().map(|update| update.num_samples).sum();
        let bytes_up: u64 = updates().map(|update| update.bytes).sum();
        let losses = || updates().filter_map(|update| Some((update.loss?, update.num_samples as f64)));
        let weight: f64 = losses().map(|(_, samples)| samples).sum();
        let loss: f64 = losses().map(|(loss, samples)| loss * samples).sum();
        let values = self.updates.len() as f64 * parameters as f64;
        HistoryRecord {
            round: self.round + 1,
            started_ts: self.opened_ts,
            finished_ts: self.closed_ts,
            duration_s: self.closed_ts - self.opened_ts,
            participants: self.updates.len() as u64,
            num_samples,
            train_loss: (weight > 0.0).then(|| loss / weight),
            test_accuracy: None,
            test_loss: None,
            test_absolute_error: None,
            evaluation: None,
            update_metrics: self.update_metrics(),
            bytes_up,
            reused: updates().filter(|update| update.reused_bytes.is_some()).count() as u64,
            bytes_saved: updates()
                .filter_map(|update| Some(update.reused_bytes?.saturating_sub(update.bytes)))
                .sum(),
            bytes_down: self.bytes_down,
            bits_per_param: if values > 0.0 { 8.0 * bytes_up as f64 / values } else { 0.0 },
        }
    }
}
