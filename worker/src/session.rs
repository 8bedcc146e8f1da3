//! The loop: ask for work, pull the model, train, push the update.

mod evaluate;
mod training;

use crate::{
    backoff::Backoff,
    ballast::Ballast,
    calls::{Calls, Interrupt, Verdict},
    client::MasterClient,
    engine::MakeLearner,
    error::WorkerError,
    local_client::LocalClient,
    metrics::{self, DropReason, Metrics},
    pauses::{Pauses, Stop},
    plan::{Plan, StartingPoint, check_optimizer},
    prefetch::Prefetch,
    report::{RoundLog, RoundReport, Summary, WaitLog},
    settings::{Config, cores},
    state_file::StateFile,
    update::{LocalUpdate, Sent},
};
use bytes::Bytes;
use fl_datasets::{Dataset, Purpose, seeded_rng};
use fl_model::{GlobalModel, Learner, ModelError, ModelView};
use fl_protocol::{TaskAction, TaskBody, UpdateAck};
use std::{
    future::Future,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::spawn_blocking,
    time::timeout,
};
use tracing::{info, warn};
use training::{Trained, Trainee, choose_parts, restore, train_round};

/// One training a core: with more workers in a process, more at a time would only evict one another's
/// data from the caches.
static TRAININGS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(cores()));

/// Least time between two requests for work that are answered with "wait".
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Works until the master says that the training is over, or until `shutdown`.
///
/// `data` is shared by the workers of one process; without it the worker loads its own. A shutdown
/// abandons the step that is being trained and lets an upload finish, for at most `DRAIN_S`.
///
/// # Errors
/// See [`WorkerError`].
pub async fn run(
    config: Config,
    data: Option<Arc<Dataset>>,
    shutdown: impl Future<Output = ()> + Send + 'static,
    events: Option<mpsc::UnboundedSender<RoundReport>>,
) -> Result<Summary, WorkerError> {
    drive(config, data, None, shutdown, events).await
}

/// As [`run`], with a learner of the user's: `make` gets the first model, and again each one of another network.
///
/// The master can serve a model that only its workers understand (`MODEL=safetensors:FILE`).
///
/// ```no_run
/// use clap::Parser;
/// use fl_model::{Learner, ModelError};
///
/// // `make` gives a `fl_model::burn::BurnLearner` with a module of yours.
/// async fn work(make: fn() -> Result<Box<dyn Learner>, ModelError>) -> Result<(), fl_worker::WorkerError> {
/// let config = fl_worker::Args::parse().check()?;
/// let summary = fl_worker::run_with(config, None, move |_| make(), std::future::pending(), None).await?;
/// # Ok(())
/// }
/// ```
///
/// # Errors
/// See [`WorkerError`].
pub async fn run_with(
    config: Config,
    data: Option<Arc<Dataset>>,
    make: impl Fn(&GlobalModel) -> Result<Box<dyn Learner>, ModelError> + Send + Sync + 'static,
    shutdown: impl Future<Output = ()> + Send + 'static,
    events: Option<mpsc::UnboundedSender<RoundReport>>,
) -> Result<Summary, WorkerError> {
    drive(config, data, Some(Arc::new(make)), shutdown, events).await
}

async fn drive(
    config: Config,
    data: Option<Arc<Dataset>>,
    make: Option<MakeLearner>,
    shutdown: impl Future<Output = ()> + Send + 'static,
    events: Option<mpsc::UnboundedSender<RoundReport>>,
) -> Result<Summary, WorkerError> {
    let (stop_sender, stop) = Stop::channel();
    let drain = Duration::from_secs_f64(config.master.drain_s);
    let metrics = Arc::new(Metrics::new());
    if let Some(addr) = config.observe.metrics_addr {
        metrics::serve(addr, metrics.clone(), stop.clone())
            .await
            .map_err(|error| WorkerError::Metrics { addr, error })?;
    }
    tokio::pin!(shutdown);
    let mut session = tokio::select! {
        session = Session::start(config, data, stop, Pauses::Sleep, metrics, events) => session?,
        () = &mut shutdown => {
            let _ = stop_sender.send(true);
            info!("stopping before the start was done");
            return Ok(Summary::default());
        }
    };
    session.make = make;
    let summary = session.summary.clone();
    let work = session.work();
    tokio::pin!(work);
    let ended = tokio::select! {
        result = &mut work => Some(result),
        () = &mut shutdown => None,
    };
    if let Some(result) = ended {
        return result.map(|()| *lock(&summary));
    }
    let _ = stop_sender.send(true);
    info!("stopping: an upload in flight may finish");
    match timeout(drain, work).await {
        Ok(result) => result?,
        Err(_) => warn!(drain_s = drain.as_secs_f64(), "the upload did not finish in time and is abandoned"),
    }
    Ok(*lock(&summary))
}

fn lock(summary: &Mutex<Summary>) -> MutexGuard<'_, Summary> {
    summary.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Session {
    config: Config,
    data: Arc<Dataset>,
    /// Makes a user's learner; none: the model's own network.
    make: Option<MakeLearner>,
    calls: Calls,
    prefetch: Prefetch,
    trainee: Trainee,
    state_file: Option<StateFile>,
    /// Whether the file holds anything that must not be restored any more.
    state_is_saved: bool,
    /// The model that was evaluated last, and its round: most often the one that is trained next.
    evaluated: Option<(u64, Bytes)>,
    /// Pauses after updates that were dropped.
    drop_backoff: Backoff,
    dropped_in_a_row: u32,
    /// The round of the last accepted update.
    last_round: Option<u64>,
    stop: Stop,
    pauses: Pauses,
    metrics: Arc<Metrics>,
    events: Option<mpsc::UnboundedSender<RoundReport>>,
    round_log: RoundLog,
    wait_log: WaitLog,
    summary: Arc<Mutex<Summary>>,
}

impl Session {
    async fn start(
        config: Config,
        data: Option<Arc<Dataset>>,
        stop: Stop,
        pauses: Pauses,
        metrics: Arc<Metrics>,
        events: Option<mpsc::UnboundedSender<RoundReport>>,
    ) -> Result<Self, WorkerError> {
        let client = MasterClient::new(&config.master, config.updates.download)?;
        let state_file = match config.state.dir.clone() {
            Some(dir) => Some(
                StateFile::open(&dir, &config.worker_id)
                    .map_err(|error| WorkerError::StateDir { dir, error })?,
            ),
            None => None,
        };
        let (mem_mb, stride) = (config.ballast.mem_mb, config.ballast.touch_stride_bytes);
        let ballast = spawn_blocking(move || Ballast::new(mem_mb, stride)).await??;
        let data = match data {
            Some(data) => data,
            None => {
                let settings = config.data.clone();
                let load =
                    move || fl_datasets::load(&settings.dataset, settings.data_dir.as_deref(), settings.part);
                Arc::new(spawn_blocking(load).await??)
            }
        };
        info!(
            worker = %config.worker_id, master = config.master.addr, dataset = data.name,
            samples = data.train.len(), ballast_mb = mem_mb, "worker started"
        );
        let jitter = |stream| seeded_rng(config.seed, config.worker_id.as_str(), stream, Purpose::Jitter);
        let calls =
            Calls::new(client, &config.master, jitter(0), stop.clone(), pauses.clone(), metrics.clone());
        Ok(Self {
            drop_backoff: Backoff::for_training(jitter(1)),
            config,
            data,
            make: None,
            calls,
            prefetch: Prefetch::default(),
            trainee: Trainee { local: None, ballast },
            state_file,
            state_is_saved: false,
            evaluated: None,
            dropped_in_a_row: 0,
            last_round: None,
            stop,
            pauses,
            metrics,
            events,
            round_log: RoundLog::default(),
            wait_log: WaitLog::default(),
            summary: Arc::default(),
        })
    }

    async fn work(&mut self) -> Result<(), WorkerError> {
        match self.rounds().await {
            Ok(()) | Err(Interrupt::Stopped) => Ok(()),
            Err(Interrupt::Failed(error)) => Err(error),
        }
    }

    async fn rounds(&mut self) -> Result<(), Interrupt> {
        let worker = self.config.worker_id.clone();
        while !self.stop.is_set() {
            let asked = Instant::now();
            let task = self.calls.task(&worker).await?;
            match task.action {
                TaskAction::Stop => {
                    info!(round = task.round, "the training is over");
                    return Ok(());
                }
                TaskAction::Wait => {
                    self.log_waiting(task.round, asked);
                    // A master holds the request; one that answers at once must not be asked in a loop.
                    self.pauses.wait(ASK_EVERY.saturating_sub(asked.elapsed()), &self.stop).await;
                }
                TaskAction::Train => {
                    self.wait_log.reset();
                    self.round(&task).await?;
                }
                TaskAction::Evaluate => self.evaluate(&task).await?,
            }
        }
        Ok(())
    }

    fn log_waiting(&mut self, round: u64, asked: Instant) {
        let Some(waited) = self.wait_log.due(asked, Instant::now()) else { return };
        let waited_s = waited.as_secs();
        if self.last_round == Some(round) {
            info!(round, waited_s, "waiting for other workers: this worker's update of the round is in");
        } else {
            info!(round, waited_s, "waiting: the master has not asked this worker to train in the round");
        }
    }

    async fn round(&mut self, task: &TaskBody) -> Result<(), Interrupt> {
        let file = self.model(task.round).await?;
        let control = match task.control {
            true => Some(self.calls.control().await?),
            false => None,
        };
        match self.train(file, control, task).await? {
            Trained::Update(round, update) => self.hand_in(round, &update).await,
            Trained::Diverged(round) => {
                warn!(round, "the training diverged: nothing is sent (a lower LR or CLIP_NORM may help)");
                self.dropped(DropReason::Diverged).await;
                Ok(())
            }
            Trained::OtherRounds => Ok(()),
            Trained::Stopped => Err(Interrupt::Stopped),
        }
    }

    /// Makes a trainee ready for a task: its client, what is left of the last run, and what the task says of data and
    /// tensors.
    fn preparation(
        &self,
        task: &TaskBody,
    ) -> impl FnOnce(&mut Trainee, &GlobalModel, &[f32]) -> Result<(), WorkerError> + Send + 'static {
        let (config, data, make) = (self.config.clone(), self.data.clone(), self.make.clone());
        let state_file = self.state_file.clone();
        let (trainable, proposed) = (task.trainable.clone(), task.local_layers.clone());
        let local_test = self.config.data.local_test(task);
        move |trainee, global, parameters| {
            if !trainee.local.as_ref().is_some_and(|local| local.fits(global)) {
                let mut local = match &make {
                    Some(make) => {
                        let global = GlobalModel { parameters: parameters.to_vec(), ..global.clone() };
                        LocalClient::with_learner(&config, data, &global, make)?
                    }
                    None => LocalClient::new(&config, data, global)?,
                };
                if let Some(memory) = state_file.and_then(|file| restore(&file, global)) {
                    *local.memory_mut() = memory;
                }
                trainee.local = Some(local);
            }
            if let Some(local) = &mut trainee.local {
                local.set_local_test(&config, local_test);
                choose_parts(local, &config, trainable.as_deref(), proposed.as_deref())?;
            }
            Ok(())
        }
    }

    /// The model of `round`, as the task names it: evaluated just now, pulled ahead, or pulled now.
    async fn model(&mut self, round: u64) -> Result<Bytes, Interrupt> {
        if let Some((_, file)) = self.evaluated.take().filter(|(known, _)| *known == round) {
            return Ok(file);
        }
        let ahead = tokio::select! {
            ahead = self.prefetch.take(round) => ahead,
            () = self.stop.wait() => return Err(Interrupt::Stopped),
        };
        match ahead {
            Some(file) => Ok(file),
            None => self.calls.global().await,
        }
    }

    /// Trains on a thread of its own.
    async fn train(
        &mut self,
        file: Bytes,
        control: Option<Bytes>,
        task: &TaskBody,
    ) -> Result<Trained, WorkerError> {
        let plan = Plan::new(&self.config, task).map_err(|reason| WorkerError::BadTask { reason })?;
        check_optimizer(&self.config, task)?;
        let mut trainee = std::mem::take(&mut self.trainee);
        let (prepare, stop) = (self.preparation(task), self.stop.clone());
        let work = move || -> Result<_, WorkerError> {
            // The parameters are used where they lie in the file: a copy would be as large again.
            let view = ModelView::read(&file)?;
            let parameters = view.values()?;
            let global = &view.model;
            let control = control.map(|file| GlobalModel::from_safetensors(&file)).transpose()?;
            // Before the clock of `compute_factor` starts: the ballast is not training.
            trainee.ballast.touch();
            prepare(&mut trainee, global, &parameters)?;
            let from = StartingPoint {
                round: global.round,
                parameters: &parameters,
                control: control.as_ref().map(|control| control.parameters.as_slice()),
            };
            // A round may have closed between the two downloads.
            let fits = control.as_ref().is_none_or(|control| control.round == global.round);
            let trained = match fits {
                true => train_round(&mut trainee, &from, &plan, &stop)?,
                false => Trained::OtherRounds,
            };
            Ok((trainee, trained))
        };
        // The semaphore is never closed.
        let turn = TRAININGS.acquire().await;
        let (trainee, trained) = spawn_blocking(work).await??;
        drop(turn);
        self.trainee = trainee;
        Ok(trained)
    }

    /// Hands an update in, or the notice that stands for it.
    async fn hand_in(&mut self, round: u64, update: &LocalUpdate) -> Result<(), Interrupt> {
        // Workers of one process are next to their master: they win nothing.
        if self.config.workers == 1 {
            self.prefetch.start(self.calls.client(), round);
        }
        let started = Instant::now();
        let (mut sent, mut body) = match &update.notice {
            Some(notice) => (Sent::Notice, notice),
            None => (Sent::Update, &update.body),
        };
        let mut verdict = self.calls.update(body).await?;
        if sent == Sent::Notice && matches!(verdict, Verdict::NoLastUpdate) {
            // A master that was set back, say. The update itself is needed then.
            (sent, body) = (Sent::Update, &update.body);
            verdict = self.calls.update(body).await?;
        }
        match verdict {
            Verdict::Accepted(ack) => {
                self.accepted(round, update, sent, body.len() as u64, started.elapsed(), &ack).await?;
            }
            Verdict::WrongRound(error) => {
                info!(%error, "the update is dropped, the next round begins");
                self.metrics.refused.inc();
                lock(&self.summary).refused += 1;
            }
            Verdict::NoLastUpdate => {}
            Verdict::NormTooLarge(error) => {
                warn!(
                    %error, round,
                    "the update is dropped, and with it what was carried over from earlier ones (a lower LR, or a \
                     higher MAX_UPDATE_NORM on the master, may help)"
                );
                if let Some(local) = &mut self.trainee.local {
                    // The residual may be what makes the update too large, and no update would ever reduce it.
                    local.memory_mut().feedback = fl_quant::Feedback::default();
                }
                self.dropped(DropReason::NormTooLarge).await;
            }
        }
        Ok(())
    }

    /// Counts an update that was made in vain. The same model trained again most likely gives the same, so a
    /// second one in a row is followed by a pause.
    async fn dropped(&mut self, reason: DropReason) {
        self.metrics.dropped(reason);
        lock(&self.summary).dropped += 1;
        self.dropped_in_a_row += 1;
        if self.dropped_in_a_row > 1 {
            let pause = self.drop_backoff.next(None);
            info!(in_a_row = self.dropped_in_a_row, pause_ms = pause.as_millis() as u64, "pausing");
            self.pauses.wait(pause, &self.stop).await;
        }
    }

    async fn accepted(
        &mut self,
        round: u64,
        update: &LocalUpdate,
        sent: Sent,
        bytes: u64,
        upload: Duration,
        ack: &UpdateAck,
    ) -> Result<(), WorkerError> {
        self.dropped_in_a_row = 0;
        self.drop_backoff.reset();
        self.last_round = Some(round);
        let Some(local) = &mut self.trainee.local else { return Ok(()) };
        local.settle(sent);
        let ms = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        let report = RoundReport {
            round,
            loss: update.loss,
            num_samples: update.num_samples,
            steps: update.steps,
            train_ms: ms(update.train_time),
            encode_ms: ms(update.encode_time),
            upload_ms: ms(upload),
            bytes,
            reused: sent == Sent::Notice,
            bits_per_param: 8.0 * bytes as f64 / local.num_parameters() as f64,
            duplicate: ack.duplicate,
        };
        self.save(round).await?;
        self.round_log.log(&report, Instant::now());
        self.metrics.record(&report);
        let mut summary = lock(&self.summary);
        summary.rounds += 1;
        summary.bytes_up += bytes;
        drop(summary);
        if let Some(events) = &self.events {
            let _ = events.send(report);
        }
        Ok(())
    }

    /// Writes what is carried on to `WORKER_STATE_DIR`, if there is anything or was. A failure is no reason
    /// to end: only a restart would lose by it.
    async fn save(&mut self, round: u64) -> Result<(), WorkerError> {
        let (Some(file), Some(local)) = (self.state_file.clone(), &self.trainee.local) else { return Ok(()) };
        let is_empty = local.memory().is_empty();
        if is_empty && !self.state_is_saved && !file.path().exists() {
            return Ok(());
        }
        let mut trainee = std::mem::take(&mut self.trainee);
        let work = move || {
            let saved = match &mut trainee.local {
                Some(local) => file.save(local.layout(), round, local.memory()),
                None => Ok(()),
            };
            (trainee, saved)
        };
        let (trainee, saved) = spawn_blocking(work).await?;
        self.trainee = trainee;
        match saved {
            Ok(()) => self.state_is_saved = !is_empty,
            Err(error) => {
                self.metrics.state_failures.inc();
                warn!(%error, "WORKER_STATE_DIR cannot be written: a restart would go on with an older state");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
