//! The results of one model.

use super::{
    Untaken,
    spread::{Reported, spreads},
};
use fl_protocol::{ClientEvaluation, Metrics, WorkerId};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Results that are kept of a model, and workers that are asked. Anyone can ask and report under any name.
const MAX_RESULTS: usize = 10_000;
/// Values that are kept of a model: 32 bytes each.
const MAX_VALUES: usize = 100_000;

/// The results of one model.
#[derive(Debug, Clone, Default)]
pub(super) struct Board {
    asked: BTreeSet<WorkerId>,
    results: BTreeMap<WorkerId, Reported>,
    /// Each name once: workers report the same ones.
    names: BTreeSet<Arc<str>>,
    values: usize,
    changed: bool,
}

impl Board {
    /// True once for each worker, unless its result is there.
    pub(super) fn ask(&mut self, worker: &WorkerId) -> bool {
        self.asked.len() < MAX_RESULTS
            && !self.results.contains_key(worker)
            && self.asked.insert(worker.clone())
    }

    /// True if it is new.
    pub(super) fn add(
        &mut self,
        worker: &WorkerId,
        num_samples: u64,
        metrics: &Metrics,
    ) -> Result<bool, Untaken> {
        if self.results.contains_key(worker) {
            return Ok(false);
        }
        if self.results.len() == MAX_RESULTS || self.values + metrics.len() > MAX_VALUES {
            return Err(Untaken::Full);
        }
        let values = metrics.iter().map(|(name, value)| (self.shared(name), value)).collect();
        self.values += metrics.len();
        self.changed = true;
        self.results.insert(worker.clone(), Reported { num_samples, values });
        Ok(true)
    }

    /// The spread of each metric; none without a result.
    pub(super) fn found(&self) -> Option<ClientEvaluation> {
        (!self.results.is_empty()).then(|| ClientEvaluation {
            clients: self.results.len() as u64,
            num_samples: self.results.values().map(|result| result.num_samples).sum(),
            metrics: spreads(&self.results),
        })
    }

    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn shared(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        let name: Arc<str> = name.into();
        self.names.insert(name.clone());
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_workers_report_takes_bounded_memory() {
        let mut board = Board::default();
        let metrics = Metrics::new((0..32).map(|i| (format!("m{i}"), 1.0))).unwrap();
        let mut add = |i: usize| board.add(&format!("w{i}").parse().unwrap(), 1, &metrics);
        let taken = (0..2 * MAX_RESULTS).filter(|i| add(*i) == Ok(true)).count();
        assert_eq!(taken, MAX_VALUES / 32);
        assert_eq!(add(2 * MAX_RESULTS), Err(Untaken::Full));
        assert_eq!(add(0), Ok(false), "a repeated one is told so");
        let asked = (0..2 * MAX_RESULTS).filter(|i| board.ask(&format!("v{i}").parse().unwrap())).count();
        assert_eq!(asked, MAX_RESULTS);
    }
}
