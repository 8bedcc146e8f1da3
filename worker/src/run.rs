//! The loop: ask for work, pull the model, train, push the update.

use crate::{
    backoff::Backoff,
    ballast::Ballast,
    client::{CallError, MasterClient},
    config::{Config, cores},
    error::WorkerError,
    local::{LocalClient, LocalUpdate, Sent, StartingPoint},
    metrics::{self, Metrics},
    prefetch::Prefetch,
};
use bytes::Bytes;
use fl_datasets::{Dataset, Part, Purpose, seeded_rng};
use fl_model::GlobalModel;
use fl_protocol::{TaskAction, TaskBody, UpdateAck};
use std::{
    future::Future,
    ops::ControlFlow,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tracing::{info, warn};

/// One training a core: with more workers in a process, more at a time would only evict one another's
/// data from the caches.
static TRAININGS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(cores()));

/// Least time between two requests for work that are answered with "wait".
const ASK_EVERY: Duration = Duration::from_millis(500);

/// One round as the worker saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundReport {
    /// The round.
    pub round: u64,
    /// Mean training loss.
    pub loss: f64,
    /// Local samples.
    pub num_samples: u64,
    /// SGD steps.
    pub steps: u32,
    /// Time of the training, in milliseconds.
    pub train_ms: f64,
    /// Time of the encoding, in milliseconds.
    pub encode_ms: f64,
    /// Time of the upload, until the update was acknowledged, in milliseconds.
    pub upload_ms: f64,
    /// Size of what was sent, in bytes.
    pub bytes: u64,
    /// Whether that was a notice, so that the last update counts again (lazy upload).
    pub reused: bool,
    /// Bits of the update per parameter of the model.
    pub bits_per_param: f64,
}

/// What a worker did until it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Summary {
    /// Updates that were accepted.
    pub rounds: u64,
    /// Updates that came for the wrong round.
    pub refused: u64,
    /// Bytes of accepted updates.
    pub bytes_up: u64,
}

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
    let (stop, stopped) = watch::channel(false);
    let drain = Duration::from_secs_f64(config.drain_s);
    let metrics = Arc::new(Metrics::new());
    if let Some(addr) = config.metrics_addr {
        metrics::serve(addr, metrics.clone(), stopped.clone())
            .await
            .map_err(|error| WorkerError::Metrics { addr, error })?;
    }
    tokio::pin!(shutdown);
    let mut session = tokio::select! {
        session = Session::start(config, data, stopped, metrics, events) => session?,
        () = &mut shutdown => {
            let _ = stop.send(true);
            info!("stopping before the start was done");
            return Ok(Summary::default());
        }
    };
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
    let _ = stop.send(true);
    info!("stopping: an upload in flight may finish");
    match timeout(drain, work).await {
        Ok(result) => result?,
        Err(_) => warn!(drain_s = drain.as_secs_f64(), "the upload did not finish in time and is abandoned"),
    }
    Ok(*lock(&summary))
}

fn lock(summary: &std::sync::Mutex<Summary>) -> std::sync::MutexGuard<'_, Summary> {
    summary.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Session {
    config: Config,
    data: Arc<Dataset>,
    client: MasterClient,
    prefetch: Prefetch,
    local: Option<LocalClient>,
    ballast: Option<Ballast>,
    backoff: Backoff,
    /// Since when the master has not answered.
    silent_since: Option<Instant>,
    stopped: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
    events: Option<mpsc::UnboundedSender<RoundReport>>,
    summary: Arc<std::sync::Mutex<Summary>>,
}

/// The worker is to end.
struct Stopped;

/// What a training came to.
enum Trained {
    /// An update of a round.
    Update(u64, LocalUpdate),
    /// Model and control variate are of different rounds: ask again.
    OtherRounds,
    /// The worker is to end.
    Stopped,
}

/// What the master says to an update.
enum Answer {
    /// It counts.
    Accepted(UpdateAck),
    /// It came for the wrong round and is dropped.
    WrongRound,
    /// It is a notice, and the update that it names is not there.
    NoLastUpdate,
}

impl Session {
    async fn start(
        config: Config,
        data: Option<Arc<Dataset>>,
        stopped: watch::Receiver<bool>,
        metrics: Arc<Metrics>,
        events: Option<mpsc::UnboundedSender<RoundReport>>,
    ) -> Result<Self, WorkerError> {
        let client = MasterClient::new(&config)?;
        let (mem_mb, stride) = (config.mem_mb, config.touch_stride_bytes);
        let ballast = spawn_blocking(move || Ballast::new(mem_mb, stride)).await??;
        let data = match data {
            Some(data) => data,
            None => {
                let (spec, dir) = (config.dataset.clone(), config.data_dir.clone());
                Arc::new(
                    spawn_blocking(move || fl_datasets::load(&spec, dir.as_deref(), Part::Train)).await??,
                )
            }
        };
        info!(
            worker = %config.worker_id, master = config.master_addr, dataset = data.name, samples = data.train.len(),
            ballast_mb = config.mem_mb, "worker started"
        );
        let backoff = Backoff::new(seeded_rng(config.seed, config.worker_id.as_str(), 0, Purpose::Jitter));
        Ok(Self {
            config,
            data,
            prefetch: Prefetch::default(),
            client,
            local: None,
            ballast: Some(ballast),
            backoff,
            silent_since: None,
            stopped,
            metrics,
            events,
            summary: Arc::default(),
        })
    }

    async fn work(&mut self) -> Result<(), WorkerError> {
        while !*self.stopped.borrow() {
            let asked = Instant::now();
            let client = self.client.clone();
            let worker = self.config.worker_id.clone();
            let Ok(task) = self.retry(|| client.task(&worker)).await? else { return Ok(()) };
            match task.action {
                TaskAction::Stop => {
                    info!(round = task.round, "the training is over");
                    return Ok(());
                }
                // A master holds the request; one that answers at once must not be asked in a loop.
                TaskAction::Wait => self.rest(ASK_EVERY.saturating_sub(asked.elapsed())).await,
                TaskAction::Train => {
                    if self.round(&task).await?.is_err() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits, but for a shutdown.
    async fn rest(&self, pause: Duration) {
        let mut stopped = self.stopped.clone();
        tokio::select! {
            () = sleep(pause) => {}
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
    }

    async fn round(&mut self, task: &TaskBody) -> Result<Result<(), Stopped>, WorkerError> {
        let client = self.client.clone();
        let Ok(file) = self.model(task.round).await? else { return Ok(Err(Stopped)) };
        let mut control = None;
        if task.control {
            let Ok(file) = self.retry(|| client.control()).await? else { return Ok(Err(Stopped)) };
            control = Some(file);
        }
        let update = match self.train(file, control, task).await? {
            Trained::Update(round, update) => (round, update),
            Trained::OtherRounds => return Ok(Ok(())),
            Trained::Stopped => return Ok(Err(Stopped)),
        };
        let (round, update) = update;
        // Workers of one process are next to their master: they win nothing.
        if self.config.workers == 1 {
            self.prefetch.start(&client, round);
        }
        let started = Instant::now();
        let mut sent = if update.notice.is_some() { Sent::Notice } else { Sent::Update };
        loop {
            let body = update.notice.as_ref().filter(|_| sent == Sent::Notice).unwrap_or(&update.body);
            match self.retry_update(&client, body).await? {
                Ok(Answer::Accepted(ack)) => self.accepted(round, &update, sent, started.elapsed(), &ack),
                Ok(Answer::WrongRound) => self.metrics.refused.inc(),
                // A master that was set back, say. The update itself is needed then.
                Ok(Answer::NoLastUpdate) if sent == Sent::Notice => {
                    sent = Sent::Update;
                    continue;
                }
                Ok(Answer::NoLastUpdate) => {}
                Err(Stopped) => return Ok(Err(Stopped)),
            }
            return Ok(Ok(()));
        }
    }

    /// The model of `round`, as the task names it: pulled ahead, or pulled now.
    async fn model(&mut self, round: u64) -> Result<Result<Bytes, Stopped>, WorkerError> {
        let mut stopped = self.stopped.clone();
        let ahead = tokio::select! {
            ahead = self.prefetch.take(round) => ahead,
            _ = stopped.wait_for(|stopped| *stopped) => return Ok(Err(Stopped)),
        };
        if let Some(file) = ahead {
            return Ok(Ok(file));
        }
        let client = self.client.clone();
        self.retry(|| client.global()).await
    }

    /// Trains on a thread of its own.
    async fn train(
        &mut self,
        file: Bytes,
        control: Option<Bytes>,
        task: &TaskBody,
    ) -> Result<Trained, WorkerError> {
        let plan = self.config.plan(task).map_err(|reason| WorkerError::Refused {
            error: CallError::BadAnswer(format!("the task cannot be done: {reason}")),
        })?;
        let (local, ballast) = (self.local.take(), self.ballast.take());
        let (config, data) = (self.config.clone(), self.data.clone());
        let stopped = self.stopped.clone();
        let work = move || -> Result<_, WorkerError> {
            let global = GlobalModel::from_safetensors(&file)?;
            drop(file);
            let control = control.map(|file| GlobalModel::from_safetensors(&file)).transpose()?;
            let mut ballast = ballast.unwrap_or_default();
            let mut local = match local.filter(|local| local.fits(&global)) {
                Some(local) => local,
                None => LocalClient::new(&config, data, &global)?,
            };
            // A round may have closed between the two downloads.
            if control.as_ref().is_some_and(|control| control.round != global.round) {
                return Ok((local, ballast, Trained::OtherRounds));
            }
            let from = StartingPoint {
                round: global.round,
                parameters: &global.parameters,
                control: control.as_ref().map(|control| control.parameters.as_slice()),
            };
            let update = local.train(&from, &plan, || {
                ballast.touch();
                if *stopped.borrow() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })?;
            Ok((
                local,
                ballast,
                update.map_or(Trained::Stopped, |update| Trained::Update(global.round, update)),
            ))
        };
        // The semaphore is never closed.
        let turn = TRAININGS.acquire().await;
        let (local, ballast, trained) = spawn_blocking(work).await??;
        drop(turn);
        self.local = Some(local);
        self.ballast = Some(ballast);
        Ok(trained)
    }

    /// Hands an update or a notice in.
    async fn retry_update(
        &mut self,
        client: &MasterClient,
        body: &Bytes,
    ) -> Result<Result<Answer, Stopped>, WorkerError> {
        // A shutdown lets an upload finish: only a failed one ends here.
        let wrong_round = AtomicBool::new(false);
        let call = || async {
            match client.update(body.clone()).await {
                Ok(ack) => Ok(Answer::Accepted(ack)),
                Err(error) if error.is_no_last_update() => Ok(Answer::NoLastUpdate),
                Err(error) if error.is_wrong_round() => {
                    wrong_round.store(true, Ordering::Relaxed);
                    info!(%error, "the update is dropped, the next round begins");
                    Ok(Answer::WrongRound)
                }
                Err(error) => Err(error),
            }
        };
        let result = self.retry_finishing(call).await?;
        if wrong_round.into_inner() {
            lock(&self.summary).refused += 1;
        }
        Ok(result)
    }

    fn accepted(&mut self, round: u64, update: &LocalUpdate, sent: Sent, upload: Duration, ack: &UpdateAck) {
        let Some(local) = &mut self.local else { return };
        local.settle(sent);
        let body = update.notice.as_ref().filter(|_| sent == Sent::Notice).unwrap_or(&update.body);
        let bytes = body.len() as u64;
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
        };
        info!(
            round = report.round, loss = %format_args!("{:.4}", report.loss), samples = report.num_samples,
            steps = report.steps, train_ms = report.train_ms, encode_ms = report.encode_ms,
            upload_ms = report.upload_ms, size_bytes = bytes,
            bits_per_param = %format_args!("{:.3}", report.bits_per_param), duplicate = ack.duplicate,
            reused = report.reused,
            "round done"
        );
        self.metrics.record(&report);
        let mut summary = lock(&self.summary);
        summary.rounds += 1;
        summary.bytes_up += bytes;
        drop(summary);
        if let Some(events) = &self.events {
            let _ = events.send(report);
        }
    }

    /// Calls until there is a result; a shutdown ends it at any time.
    async fn retry<T, F: Future<Output = Result<T, CallError>>>(
        &mut self,
        mut call: impl FnMut() -> F,
    ) -> Result<Result<T, Stopped>, WorkerError> {
        let mut stopped = self.stopped.clone();
        tokio::select! {
            result = self.retry_finishing(&mut call) => result,
            _ = stopped.wait_for(|stopped| *stopped) => Ok(Err(Stopped)),
        }
    }

    /// Calls until there is a result; a shutdown lets the call in flight finish and ends the waiting.
    async fn retry_finishing<T, F: Future<Output = Result<T, CallError>>>(
        &mut self,
        mut call: impl FnMut() -> F,
    ) -> Result<Result<T, Stopped>, WorkerError> {
        loop {
            let error = match call().await {
                Ok(value) => {
                    self.backoff.reset();
                    self.silent_since = None;
                    self.metrics.seen();
                    return Ok(Ok(value));
                }
                Err(error) => error,
            };
            if !error.is_transient() {
                return Err(WorkerError::Refused { error });
            }
            let pause = self.failed(error)?;
            self.rest(pause).await;
            if *self.stopped.borrow() {
                return Ok(Err(Stopped));
            }
        }
    }

    /// Notes a failure: how long to wait, unless it is time to give up.
    fn failed(&mut self, error: CallError) -> Result<Duration, WorkerError> {
        let silent = self.silent_since.get_or_insert_with(Instant::now).elapsed().as_secs_f64();
        let mut pause = self.backoff.next(error.retry_after());
        if let Some(limit) = self.config.give_up_s {
            if silent >= limit {
                let addr = self.config.master_addr.clone();
                return Err(WorkerError::GaveUp { addr, seconds: silent, last: error });
            }
            pause = pause.min(Duration::from_secs_f64(limit - silent));
        }
        self.metrics.retries.inc();
        warn!(%error, retry_ms = pause.as_millis() as u64, "trying again");
        Ok(pause)
    }
}
