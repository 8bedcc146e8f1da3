//! The workers' evaluations of a running federation: asked for by `GET /task`, taken by `POST /evaluation`, shown in
//! status, history and metrics, and written to the history's file. No round waits for any of this.

use super::{events::MasterEvent, job::Job, reports::lock};
use crate::federation::{Global, evaluation::Untaken, intake::Rejection};
use fl_protocol::{ErrorCode, EvaluationAck, EvaluationJson, LastClientEvaluation, WorkerId, update};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::task::spawn_blocking;

/// New results are shown and written at most that often: a crash loses those since.
const WRITE_EVERY: Duration = Duration::from_secs(1);

impl Job {
    /// The newest model if `worker` is to evaluate it now: at most once.
    pub fn asks_to_evaluate(&self, worker: &WorkerId) -> Option<Arc<Global>> {
        let global = self.global();
        let asked = lock(&self.reports.evaluations).ask(worker, global.round);
        if asked {
            self.view().heard_of(worker, self.host.clock.now());
        }
        asked.then_some(global)
    }

    /// Takes a worker's evaluation in.
    ///
    /// # Errors
    /// Why it is refused; nothing has changed then.
    pub fn take_evaluation(self: &Arc<Self>, report: &EvaluationJson) -> Result<EvaluationAck, Rejection> {
        if self.host.is_draining() {
            return Err(Rejection::new(ErrorCode::Draining, "the master is shutting down: try again later"));
        }
        update::check_num_samples(report.num_samples)?;
        if report.metrics.is_empty() {
            return Err(Rejection::new(ErrorCode::Malformed, "an evaluation needs at least one metric"));
        }
        let (round, newest) = (report.round, self.round());
        let mut evaluations = lock(&self.reports.evaluations);
        let taken = evaluations.add(&report.worker_id, round, newest, report.num_samples, &report.metrics);
        drop(evaluations);
        let is_new = taken.map_err(|untaken| match untaken {
            Untaken::Future => Rejection::new(
                ErrorCode::FutureRound,
                format!("round {round} has not been made: the model of round {newest} is the newest"),
            ),
            Untaken::Closed => Rejection::new(
                ErrorCode::StaleRound,
                format!(
                    "the model of round {round} is not evaluated by workers (EVALUATE_EVERY), or no longer"
                ),
            ),
            Untaken::Full => Rejection::new(
                ErrorCode::StaleRound,
                format!("as many evaluations of round {round} are there as are kept"),
            ),
        })?;
        if is_new {
            self.metrics.client_evaluations.inc();
            if !self.reports.is_due.swap(true, Ordering::AcqRel) {
                // It must not keep the state open once the master is shut down, which writes them itself.
                let job = Arc::downgrade(self);
                tokio::spawn(async move {
                    tokio::time::sleep(WRITE_EVERY).await;
                    let Some(job) = job.upgrade() else { return };
                    job.reports.is_due.store(false, Ordering::Release);
                    // Fails only if the runtime ends: the shutdown writes them then.
                    let _ = spawn_blocking(move || job.write_evaluations()).await;
                });
            }
        }
        Ok(EvaluationAck { status: "ok".to_owned(), global_round: newest, duplicate: !is_new })
    }

    /// Brings new results into status, history and metrics.
    pub fn show_evaluations(&self) {
        let mut evaluations = lock(&self.reports.evaluations);
        let changed = evaluations.take_changed();
        let found: Vec<_> =
            changed.iter().filter_map(|round| Some((*round, evaluations.found(*round)?))).collect();
        drop(evaluations);
        for (round, found) in found {
            let Some(record) = self.view().evaluated_by_workers(round, &found) else { continue };
            self.metrics.evaluated_by_workers(&found);
            lock(&self.reports.unwritten).insert(round);
            self.publish(MasterEvent::RoundRecorded { record });
        }
    }

    /// Writes the records that have new results. Blocks: call it off the async threads.
    pub(crate) fn write_evaluations(&self) {
        self.show_evaluations();
        for round in std::mem::take(&mut *lock(&self.reports.unwritten)) {
            self.write_record(round);
        }
    }

    /// Queues the record of a round for the history's file. Blocks: call it off the async threads.
    pub(super) fn write_record(&self, round: u64) {
        let Some(durable) = &self.durable else { return };
        let writing = lock(&self.reports.writing);
        let record = self.view().record_of(round).cloned();
        if let Some(record) = record {
            durable.writer.evaluated(record);
        }
        drop(writing);
    }

    /// The newest evaluation by workers.
    pub(super) fn client_evaluation(&self) -> Option<LastClientEvaluation> {
        self.view().client_evaluation()
    }
}
