//! What the master tells those who watch it: the dashboard, `GET /status`, a caller in the process.

use fl_protocol::{ErrorCode, HistoryRecord, LastEvaluation, WorkerId, WorkerStatus};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};

/// Something happened. The dashboard's stream sends these.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MasterEvent {
    /// An update was accepted for the open round.
    UpdateAccepted {
        /// The open round.
        round: u64,
        /// Whose update.
        worker: WorkerId,
        /// Updates of the round so far.
        pending_updates: u64,
    },
    /// A round was closed; its model is there.
    RoundClosed {
        /// Its record, without an evaluation yet.
        record: HistoryRecord,
    },
    /// A round's record is complete: evaluated, or known not to be.
    RoundRecorded {
        /// Its record.
        record: HistoryRecord,
    },
}

/// Workers that `GET /status` knows; beyond that the one unheard for longest is forgotten. It bounds what
/// clients cost in memory, and the search for that one.
const MAX_WORKERS: usize = 2000;

/// What can be seen of a running master, beside the open round.
#[derive(Debug, Default)]
pub struct Board {
    workers: BTreeMap<WorkerId, WorkerStatus>,
    history: VecDeque<HistoryRecord>,
    /// Updates accepted for the open round.
    pub pending_updates: u64,
    /// The last evaluation.
    pub last_evaluation: Option<LastEvaluation>,
    /// Refused updates by error code.
    pub rejected: BTreeMap<&'static str, u64>,
}

impl Board {
    /// A board that shows earlier rounds.
    pub fn new(history: Vec<HistoryRecord>) -> Self {
        let last_evaluation = history.iter().rev().find_map(|record| {
            let (accuracy, loss) = (record.test_accuracy?, record.test_loss?);
            Some(LastEvaluation { round: record.round, accuracy, loss, samples: 0 })
        });
        Self { history: history.into(), last_evaluation, ..Self::default() }
    }

    /// Notes a worker's accepted update.
    pub fn saw(&mut self, worker: WorkerId, status: WorkerStatus) {
        self.workers.insert(worker, status);
        if self.workers.len() > MAX_WORKERS {
            let oldest = self.workers.iter().min_by(|a, b| a.1.last_update_ts.total_cmp(&b.1.last_update_ts));
            if let Some(oldest) = oldest.map(|(worker, _)| worker.clone()) {
                self.workers.remove(&oldest);
            }
        }
    }

    /// Notes a refused update.
    pub fn refused(&mut self, code: ErrorCode) {
        *self.rejected.entry(code.as_str()).or_default() += 1;
    }

    /// Adds a finished round, or completes the one with the same number.
    pub fn record(&mut self, record: HistoryRecord) {
        let known = self.history.iter_mut().rev().find(|known| known.round == record.round);
        match known {
            Some(known) => *known = record,
            None => self.history.push_back(record),
        }
        while self.history.len() > crate::store::MAX_RECORDS {
            self.history.pop_front();
        }
    }

    /// The last update of every worker.
    pub fn workers(&self) -> &BTreeMap<WorkerId, WorkerStatus> {
        &self.workers
    }

    /// The last updates of at most `limit` workers: those heard from last.
    pub fn latest_workers(&self, limit: usize) -> BTreeMap<String, WorkerStatus> {
        let named = |(id, worker): (&WorkerId, &WorkerStatus)| (id.to_string(), worker.clone());
        if self.workers.len() <= limit {
            return self.workers.iter().map(named).collect();
        }
        let mut latest: Vec<_> = self.workers.iter().collect();
        latest.select_nth_unstable_by(limit, |a, b| b.1.last_update_ts.total_cmp(&a.1.last_update_ts));
        latest.truncate(limit);
        latest.into_iter().map(named).collect()
    }

    /// The finished rounds, the oldest first.
    pub fn history(&self) -> &VecDeque<HistoryRecord> {
        &self.history
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_workers_are_those_heard_from_last() {
        let mut board = Board::default();
        for i in 0..1000u32 {
            let status = WorkerStatus {
                ip: "::1".into(),
                round: 1,
                num_samples: 1,
                loss: None,
                compute_factor: None,
                // Neither in the order of the names nor against it.
                last_update_ts: f64::from(i * 7 % 1000),
                bytes: 1,
            };
            board.saw(format!("w{i:04}").parse().unwrap(), status);
        }
        let latest = board.latest_workers(200);
        assert_eq!(latest.len(), 200);
        assert!(latest.values().all(|worker| worker.last_update_ts >= 800.0));
        assert_eq!(board.latest_workers(1000).len(), 1000);
        assert_eq!(board.latest_workers(usize::MAX).len(), 1000);
        assert!(board.latest_workers(0).is_empty());
    }
}
