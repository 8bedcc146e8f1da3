//! The thread that evaluates models on the test set, so that no round waits for it.

use crate::{federation::Global, settings::ModelConfig};
use fl_datasets::{Dataset, Samples};
use fl_model::{Batch, Evaluation, Learner, ModelError, ModelSpec, ModelView};
use fl_protocol::HistoryRecord;
use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};
use tracing::{error, warn};

/// Models that may wait: beyond that the oldest round goes without an evaluation.
const MAX_WAITING: usize = 4;
/// Bytes that they may take, if more than one waits.
const MAX_WAITING_BYTES: usize = 16 << 20;

struct Pending {
    record: HistoryRecord,
    /// `None`: the record goes through unevaluated, in its place in the order.
    global: Option<Arc<Global>>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Pending>,
    stopped: bool,
}

/// The result of an evaluation, and its duration.
#[derive(Debug, Clone, Copy)]
pub struct Evaluated {
    /// Loss and metrics.
    pub evaluation: Evaluation,
    /// Time of the evaluation.
    pub took: Duration,
}

/// Takes finished rounds in order and gives their records back in order, evaluated.
pub struct Evaluator {
    shared: Arc<(Mutex<Queue>, Condvar)>,
    every: u64,
}

impl std::fmt::Debug for Evaluator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Evaluator").field("every", &self.every).finish_non_exhaustive()
    }
}

impl Evaluator {
    /// Starts the thread. It calls `done` for every record.
    ///
    /// # Errors
    /// If the network cannot be built, or the thread cannot be started.
    pub fn start(
        config: &ModelConfig,
        spec: Option<&ModelSpec>,
        dataset: Dataset,
        mut done: impl FnMut(HistoryRecord, Option<Evaluated>) + Send + 'static,
    ) -> anyhow::Result<Self> {
        let every = if dataset.test.is_empty() { 0 } else { config.eval_every };
        // Tensors without a network cannot be evaluated here.
        let mut learner = match spec {
            Some(spec) if every > 0 => Some(spec.learner(config.backend, 1)?),
            _ => None,
        };
        let shared = Arc::new((Mutex::new(Queue::default()), Condvar::new()));
        let queue = shared.clone();
        thread::Builder::new().name("evaluate".to_owned()).spawn(move || {
            while let Some(Pending { mut record, global }) = next_job(&queue) {
                let evaluation = match (&mut learner, global) {
                    (Some(learner), Some(global)) => evaluate(&mut **learner, &dataset, global)
                        .inspect_err(|error| error!(%error, "the model cannot be evaluated"))
                        .ok(),
                    _ => None,
                };
                if let Some(Evaluated { evaluation, .. }) = &evaluation {
                    record.test_accuracy = evaluation.accuracy;
                    record.test_loss = Some(evaluation.loss);
                    record.test_absolute_error = evaluation.absolute_error;
                }
                done(record, evaluation);
            }
        })?;
        Ok(Self { shared, every })
    }

    /// Hands a finished round over. The last one is always evaluated, if any is.
    pub fn submit(&self, record: HistoryRecord, global: &Arc<Global>, is_last: bool) {
        let due = self.every > 0 && (is_last || record.round.is_multiple_of(self.every));
        let (queue, changed) = &*self.shared;
        let mut queue = lock(queue);
        queue.jobs.push_back(Pending { record, global: due.then(|| global.clone()) });
        let waiting = queue.jobs.iter().filter(|job| job.global.is_some()).count();
        let most = (MAX_WAITING_BYTES / global.bytes.len().max(1)).clamp(1, MAX_WAITING);
        if waiting > most
            && let Some(oldest) = queue.jobs.iter_mut().find(|job| job.global.is_some())
        {
            warn!(
                round = oldest.record.round,
                "rounds are faster than evaluations: this one is not evaluated"
            );
            oldest.global = None;
        }
        changed.notify_one();
    }
}

impl Drop for Evaluator {
    fn drop(&mut self) {
        lock(&self.shared.0).stopped = true;
        self.shared.1.notify_all();
    }
}

fn lock(queue: &Mutex<Queue>) -> MutexGuard<'_, Queue> {
    queue.lock().unwrap_or_else(PoisonError::into_inner)
}

fn next_job(shared: &(Mutex<Queue>, Condvar)) -> Option<Pending> {
    let mut queue = lock(&shared.0);
    loop {
        if queue.stopped {
            return None;
        }
        if let Some(job) = queue.jobs.pop_front() {
            return Some(job);
        }
        queue = shared.1.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

fn evaluate(
    learner: &mut dyn Learner,
    dataset: &Dataset,
    global: Arc<Global>,
) -> Result<Evaluated, ModelError> {
    let started = Instant::now();
    let view = ModelView::read(&global.bytes)?;
    learner.load(&view.values()?);
    let normalization = view.model.normalization;
    // The learner has a copy; a newer round may have replaced the model.
    drop(global);
    let mut samples = Samples::new();
    let evaluation = fl_model::evaluate(dataset.test.len(), |indices| {
        dataset.test.gather(indices, &normalization, &mut samples);
        learner.evaluate(Batch::new(samples.inputs(), samples.targets()))
    })?;
    Ok(Evaluated { evaluation, took: started.elapsed() })
}
