//! The public state of a federation: workers, history, refusals, what the open round waits for.

use fl_protocol::{
    ClientEvaluation, ErrorCode, HistoryRecord, LastClientEvaluation, LastEvaluation, MissingWorker, Waiting,
    WorkerId, WorkerStatus,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Workers that `GET /status` knows; beyond that the one unheard for longest is forgotten. It bounds what
/// clients cost in memory, and the search for that one.
const MAX_WORKERS: usize = 2000;

/// Seconds after which an open round counts as waiting.
const WAITS_AFTER_S: f64 = 10.0;
/// Seconds since its last sign of life for which a worker counts as present: a few of the longest polls.
const PRESENT_S: f64 = 120.0;
/// Seconds for which a worker that was heard of is missed.
const REMEMBERED_S: f64 = 3600.0;
/// Most missing workers that are listed.
const MAX_MISSING: usize = 20;
/// Missing workers whose names are in the sentence.
const NAMED: usize = 3;

/// The data of `GET /status`, `GET /history` and the dashboard.
#[derive(Debug, Default)]
pub struct StatusView {
    workers: BTreeMap<WorkerId, WorkerStatus>,
    history: VecDeque<HistoryRecord>,
    /// When each worker was last heard of, by a request for work or an update.
    heard: BTreeMap<WorkerId, f64>,
    /// When the open round opened, in seconds since 1970.
    opened_ts: f64,
    /// Whose updates were accepted for the open round.
    handed_in: BTreeSet<WorkerId>,
    /// The last evaluation.
    pub last_evaluation: Option<LastEvaluation>,
    /// Refused updates by error code.
    rejected: BTreeMap<&'static str, u64>,
}

impl StatusView {
    /// A view of earlier rounds.
    pub fn new(history: Vec<HistoryRecord>, opened_ts: f64) -> Self {
        let last_evaluation = history.iter().rev().find_map(|record| {
            Some(LastEvaluation {
                round: record.round,
                accuracy: record.test_accuracy,
                loss: record.test_loss?,
                absolute_error: record.test_absolute_error,
                samples: 0,
            })
        });
        Self { history: history.into(), last_evaluation, opened_ts, ..Self::default() }
    }

    /// Notes a worker's accepted update for the open round.
    pub fn accepted(&mut self, worker: WorkerId, status: WorkerStatus) {
        self.heard_of(&worker, status.last_update_ts);
        self.handed_in.insert(worker.clone());
        self.workers.insert(worker, status);
        if self.workers.len() > MAX_WORKERS {
            let oldest = self.workers.iter().min_by(|a, b| a.1.last_update_ts.total_cmp(&b.1.last_update_ts));
            if let Some(oldest) = oldest.map(|(worker, _)| worker.clone()) {
                self.workers.remove(&oldest);
            }
        }
    }

    /// Notes a sign of life of a worker at time `now`.
    pub fn heard_of(&mut self, worker: &WorkerId, now: f64) {
        match self.heard.get_mut(worker) {
            Some(last) => *last = now,
            None => {
                self.heard.insert(worker.clone(), now);
            }
        }
        if self.heard.len() > MAX_WORKERS {
            // Half at a time, so that a flood of names costs a search only now and then.
            let mut times: Vec<f64> = self.heard.values().copied().collect();
            let (_, median, _) = times.select_nth_unstable_by(MAX_WORKERS / 2, f64::total_cmp);
            let median = *median;
            self.heard.retain(|known, last| *last > median || known == worker);
        }
    }

    /// The open round was closed, and the next one opened at `opened_ts`.
    pub fn round_closed(&mut self, opened_ts: f64) {
        self.handed_in.clear();
        self.opened_ts = opened_ts;
    }

    /// Updates accepted for the open round.
    pub fn pending_updates(&self) -> u64 {
        self.handed_in.len() as u64
    }

    /// What a round of `needed` updates waits for at time `now`, once it has waited for [`WAITS_AFTER_S`].
    pub fn waiting(&self, now: f64, needed: u64, storage_is_failing: bool) -> Option<Waiting> {
        let accepted = self.pending_updates();
        if accepted >= needed && !storage_is_failing || now - self.opened_ts < WAITS_AFTER_S {
            return None;
        }
        let missing: Vec<_> = self
            .missing(now)
            .into_iter()
            .map(|(worker, last_seen_ts)| MissingWorker { worker: worker.to_string(), last_seen_ts })
            .collect();
        let reason = self.reason(now, needed, &missing, storage_is_failing);
        Some(Waiting { needed, accepted, since_ts: self.opened_ts, reason, missing })
    }

    fn reason(&self, now: f64, needed: u64, missing: &[MissingWorker], storage_is_failing: bool) -> String {
        if storage_is_failing {
            return "the state cannot be written: updates are refused until there is room on the disk"
                .to_owned();
        }
        let accepted = self.pending_updates();
        let more = needed.saturating_sub(accepted);
        let updates = if more == 1 { "update" } else { "updates" };
        let head = format!("waiting for {more} more {updates} of {needed}");
        let present = self.heard.values().filter(|last| now - **last <= PRESENT_S).count() as u64;
        if self.heard.is_empty() {
            return format!("{head}: no worker has asked for work yet");
        }
        if present < needed {
            let workers = if present == 1 { "worker was" } else { "workers were" };
            return format!(
                "{head}: only {present} {workers} heard of in the last {} minutes, and a round takes {needed} \
                 (AGG_MIN_CLIENTS)",
                PRESENT_S as u64 / 60
            );
        }
        let names: Vec<_> = missing.iter().take(NAMED).map(|missing| missing.worker.as_str()).collect();
        match missing.len().saturating_sub(NAMED) {
            _ if names.is_empty() => head,
            0 => format!("{head}: not there yet: {}", names.join(", ")),
            1 => format!("{head}: not there yet: {} and 1 other", names.join(", ")),
            others => format!("{head}: not there yet: {} and {others} others", names.join(", ")),
        }
    }

    /// Workers heard of lately whose update the open round lacks, and when they were heard of, the latest first.
    fn missing(&self, now: f64) -> Vec<(WorkerId, f64)> {
        let mut missing: Vec<_> = self
            .heard
            .iter()
            .filter(|(worker, last)| now - **last <= REMEMBERED_S && !self.handed_in.contains(*worker))
            .map(|(worker, last)| (worker.clone(), *last))
            .collect();
        missing.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        missing.truncate(MAX_MISSING);
        missing
    }

    /// Notes a refused update.
    pub fn refused(&mut self, code: ErrorCode) {
        *self.rejected.entry(code.as_str()).or_default() += 1;
    }

    /// Adds a finished round, or completes the one with the same number: what workers found of its model stays.
    pub fn record(&mut self, mut record: HistoryRecord) {
        let known = self.history.iter_mut().rev().find(|known| known.round == record.round);
        match known {
            Some(known) => {
                record.evaluation = record.evaluation.or(known.evaluation.take());
                *known = record;
            }
            None => self.history.push_back(record),
        }
        while self.history.len() > crate::store::MAX_RECORDS {
            self.history.pop_front();
        }
    }

    /// The record of a round.
    pub fn record_of(&self, round: u64) -> Option<&HistoryRecord> {
        self.history.iter().rev().find(|record| record.round == round)
    }

    /// Notes what workers found of a round's model, and gives the round's record. Nothing is noted where more workers
    /// had been heard before a restart, whose single results are forgotten.
    pub fn evaluated_by_workers(&mut self, round: u64, found: &ClientEvaluation) -> Option<HistoryRecord> {
        let record = self.history.iter_mut().rev().find(|record| record.round == round)?;
        if record.evaluation.as_ref().is_some_and(|earlier| earlier.clients > found.clients) {
            return None;
        }
        record.evaluation = Some(found.clone());
        Some(record.clone())
    }

    /// The newest evaluation by workers.
    pub fn client_evaluation(&self) -> Option<LastClientEvaluation> {
        self.history.iter().rev().find_map(|record| {
            Some(LastClientEvaluation { round: record.round, found: record.evaluation.clone()? })
        })
    }

    /// Refused updates by error code.
    pub fn rejected(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.rejected.iter().map(|(code, count)| (*code, *count))
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

    fn id(name: impl ToString) -> WorkerId {
        name.to_string().parse().unwrap()
    }

    fn update_at(last_update_ts: f64) -> WorkerStatus {
        WorkerStatus {
            ip: "::1".into(),
            round: 1,
            num_samples: 1,
            loss: None,
            compute_factor: None,
            last_update_ts,
            bytes: 1,
        }
    }

    fn reason(view: &StatusView, now: f64, needed: u64) -> Option<String> {
        view.waiting(now, needed, false).map(|waiting| waiting.reason)
    }

    #[test]
    fn a_round_that_waits_says_for_whom_once_it_has_waited_ten_seconds() {
        let mut view = StatusView::new(vec![], 100.0);
        assert_eq!(reason(&view, 109.9, 2), None);
        let text = reason(&view, 110.0, 2).unwrap();
        assert_eq!(text, "waiting for 2 more updates of 2: no worker has asked for work yet");
        view.heard_of(&id("a"), 111.0);
        let text = reason(&view, 112.0, 2).unwrap();
        assert!(text.contains("only 1 worker was heard of in the last 2 minutes"), "{text}");
        assert!(text.contains("AGG_MIN_CLIENTS"), "{text}");
        for (i, name) in ["b", "c", "d", "e"].into_iter().enumerate() {
            view.heard_of(&id(name), 113.0 + i as f64);
        }
        view.accepted(id("e"), update_at(118.0));
        let waiting = view.waiting(119.0, 2, false).unwrap();
        assert_eq!(waiting.reason, "waiting for 1 more update of 2: not there yet: d, c, b and 1 other");
        let missing: Vec<_> = waiting.missing.iter().map(|m| (m.worker.as_str(), m.last_seen_ts)).collect();
        assert_eq!(missing, [("d", 115.0), ("c", 114.0), ("b", 113.0), ("a", 111.0)]);
        assert_eq!((waiting.needed, waiting.accepted, waiting.since_ts), (2, 1, 100.0));
        // Who is silent for two minutes is not there, and after an hour not missed either.
        let text = reason(&view, 300.0, 2).unwrap();
        assert!(text.contains("only 0 workers were heard of"), "{text}");
        assert!(view.waiting(118.0 + REMEMBERED_S, 2, false).unwrap().missing.is_empty());
        let text = view.waiting(119.0, 2, true).unwrap().reason;
        assert!(text.contains("the state cannot be written"), "{text}");
        view.accepted(id("d"), update_at(120.0));
        assert_eq!(reason(&view, 121.0, 2), None, "it closes");
        assert!(view.waiting(121.0, 2, true).is_some(), "it cannot");
        view.round_closed(122.0);
        assert_eq!((reason(&view, 131.9, 2), view.pending_updates()), (None, 0));
        assert!(reason(&view, 132.0, 2).is_some());
    }

    #[test]
    fn what_workers_found_stays_when_the_master_has_evaluated_and_when_fewer_report_after_a_restart() {
        let record = crate::store::sample_history(3);
        let mut view = StatusView::new(vec![record.clone()], 0.0);
        let found = |clients| ClientEvaluation { clients, ..ClientEvaluation::default() };
        assert_eq!(view.evaluated_by_workers(4, &found(1)), None, "there is no such round");
        assert_eq!(view.evaluated_by_workers(3, &found(2)).unwrap().evaluation, Some(found(2)));
        view.record(HistoryRecord { test_loss: Some(0.5), ..record });
        assert_eq!(view.record_of(3).unwrap().evaluation, Some(found(2)));
        assert_eq!(view.evaluated_by_workers(3, &found(1)), None);
        let record = view.evaluated_by_workers(3, &found(3)).unwrap();
        assert_eq!((record.test_loss, view.client_evaluation().unwrap().round), (Some(0.5), 3));
    }

    #[test]
    fn names_cost_bounded_memory() {
        let mut view = StatusView::default();
        for i in 0..3 * MAX_WORKERS {
            view.accepted(id(format!("w{i}")), update_at(i as f64));
            view.round_closed(i as f64);
        }
        assert_eq!(view.workers().len(), MAX_WORKERS);
        let newest = id(format!("w{}", 3 * MAX_WORKERS - 1));
        assert!(view.workers().contains_key(&newest) && view.heard.contains_key(&newest));
        for i in 0..10 * MAX_WORKERS {
            view.heard_of(&id(format!("v{i}")), 1e6 + i as f64 * 1e-3);
            assert!(view.heard.len() <= MAX_WORKERS);
        }
        // All at one time.
        for i in 0..10 * MAX_WORKERS {
            view.heard_of(&id(format!("u{i}")), 2e6);
            assert!(view.heard.len() <= MAX_WORKERS);
        }
    }

    #[test]
    fn the_latest_workers_are_those_heard_from_last() {
        let mut view = StatusView::default();
        for i in 0..1000u32 {
            // Neither in the order of the names nor against it.
            let status = update_at(f64::from(i * 7 % 1000));
            view.accepted(format!("w{i:04}").parse().unwrap(), status);
        }
        let latest = view.latest_workers(200);
        assert_eq!(latest.len(), 200);
        assert!(latest.values().all(|worker| worker.last_update_ts >= 800.0));
        assert_eq!(view.latest_workers(1000).len(), 1000);
        assert_eq!(view.latest_workers(usize::MAX).len(), 1000);
        assert!(view.latest_workers(0).is_empty());
    }
}
