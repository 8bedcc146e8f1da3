//! The task to evaluate a model on data that this worker holds out of its training.

use super::{Session, TRAININGS};
use crate::{calls::Interrupt, error::WorkerError, evaluation::metrics_of};
use fl_model::ModelView;
use fl_protocol::{EvaluationJson, TaskBody};
use tokio::task::spawn_blocking;
use tracing::{debug, info};

impl Session {
    /// Evaluates the model of the task on the samples that this worker holds out, and reports what it found.
    pub(super) async fn evaluate(&mut self, task: &TaskBody) -> Result<(), Interrupt> {
        let file = self.model(task.round).await?;
        self.evaluated = Some((task.round, file.clone()));
        let mut trainee = std::mem::take(&mut self.trainee);
        let prepare = self.preparation(task);
        let work = move || -> Result<_, WorkerError> {
            let view = ModelView::read(&file)?;
            let parameters = view.values()?;
            prepare(&mut trainee, &view.model, &parameters)?;
            let found = match &mut trainee.local {
                Some(local) => local.evaluate(&parameters)?,
                None => None,
            };
            Ok((trainee, view.model.round, found))
        };
        // The semaphore is never closed.
        let turn = TRAININGS.acquire().await;
        let (trainee, round, found) = spawn_blocking(work).await.map_err(WorkerError::from)??;
        drop(turn);
        self.trainee = trainee;
        if round != task.round {
            // A newer model is out: whether it is to be evaluated the master will say.
            self.evaluated = None;
            return Ok(());
        }
        // Without samples that are held out there is nothing to report.
        let Some(evaluation) = found else { return Ok(()) };
        let report = EvaluationJson {
            worker_id: self.config.worker_id.clone(),
            round,
            num_samples: evaluation.samples,
            metrics: metrics_of(&evaluation),
        };
        if report.metrics.is_empty() {
            return Ok(());
        }
        match self.calls.evaluation(&report).await? {
            None => debug!(round, samples = evaluation.samples, "evaluated"),
            Some(error) => info!(%error, round, "the evaluation is dropped"),
        }
        Ok(())
    }
}
