//! One federation of a running master: its rounds, model, state on disk, and what can be seen of it.

use super::{
    evaluate::{Evaluated, Evaluator},
    events::MasterEvent,
    handle::ActorHandle,
    host::Host,
    metrics::JobMetrics,
    reports::Reports,
    view::StatusView,
};
use crate::{
    federation::{Core, Global, Strategy},
    settings::Config,
    setup,
    store::Durable,
};
use fl_datasets::Dataset;
use fl_model::{Evaluation, ModelSpec};
use fl_protocol::{HistoryRecord, LastEvaluation, StatusBody, Waiting};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use tokio::sync::{broadcast, watch};

/// The newest model and whether there will be more.
#[derive(Debug, Clone)]
pub struct Published {
    /// The newest model.
    pub global: Arc<Global>,
    /// True once the last round is done.
    pub finished: bool,
}

/// One federation's parts. Handlers hold it in an `Arc`.
#[derive(Debug)]
pub struct Job {
    /// What it shares with other jobs of the process.
    pub host: Arc<Host>,
    /// The settings.
    pub config: Config,
    /// Name of the model.
    pub model_name: String,
    /// The model and the sums of the open round.
    pub core: Core,
    /// The task that owns the round.
    pub actor: ActorHandle,
    /// The newest model.
    pub published: watch::Receiver<Published>,
    /// Changes when workers that wait for work may ask again.
    pub invitations: watch::Sender<u64>,
    /// Its counters.
    pub metrics: Arc<JobMetrics>,
    /// The state on disk; absent with `DURABLE=false`.
    pub durable: Option<Durable>,
    /// True once the last round is done and evaluated.
    complete: watch::Sender<bool>,
    /// Complete records of finished rounds.
    records: broadcast::Sender<HistoryRecord>,
    events: broadcast::Sender<MasterEvent>,
    view: Mutex<StatusView>,
    evaluator: OnceLock<Evaluator>,
    /// What workers find of the models.
    pub(super) reports: Reports,
    /// Whether a round waits until its close can be written to disk.
    pub(super) close_is_stuck: AtomicBool,
    /// Bytes of models sent since the round opened.
    bytes_down: AtomicU64,
    /// Whether an update may hold control variates: under today's strategy, or under that with which the open round
    /// was begun.
    takes_control: bool,
}

/// The parts of a [`Job`].
pub(crate) struct Parts {
    pub(crate) host: Arc<Host>,
    pub(crate) config: Config,
    pub(crate) model_name: String,
    pub(crate) core: Core,
    pub(crate) actor: ActorHandle,
    pub(crate) published: watch::Receiver<Published>,
    pub(crate) metrics: Arc<JobMetrics>,
    pub(crate) durable: Option<Durable>,
    pub(crate) view: StatusView,
}

/// Records and events that a slow listener may lag behind before it misses some.
const BROADCAST: usize = 1024;

impl Job {
    pub(crate) fn new(parts: Parts) -> Self {
        let finished = parts.published.borrow().finished;
        let strategies = [parts.config.aggregation.strategy, parts.core.settings().strategy];
        let reports = Reports::new(setup::evaluation_rules(&parts.config));
        Self {
            takes_control: strategies.into_iter().any(Strategy::uses_control),
            host: parts.host,
            config: parts.config,
            model_name: parts.model_name,
            core: parts.core,
            actor: parts.actor,
            published: parts.published,
            invitations: watch::channel(0).0,
            metrics: parts.metrics,
            durable: parts.durable,
            complete: watch::channel(finished).0,
            records: broadcast::channel(BROADCAST).0,
            events: broadcast::channel(BROADCAST).0,
            view: Mutex::new(parts.view),
            evaluator: OnceLock::new(),
            reports,
            close_is_stuck: AtomicBool::new(false),
            bytes_down: AtomicU64::new(0),
        }
    }

    /// The number of the current round.
    pub fn round(&self) -> u64 {
        self.published.borrow().global.round
    }

    /// The newest model that workers may see.
    pub fn global(&self) -> Arc<Global> {
        self.published.borrow().global.clone()
    }

    /// Parameters that one update may hold, those of a control variate included.
    pub fn most_parameters(&self) -> usize {
        (1 + usize::from(self.takes_control)) * self.core.num_parameters()
    }

    /// Whether updates are refused because the state cannot be written now.
    pub fn storage_is_failing(&self) -> bool {
        self.close_is_stuck.load(Ordering::Acquire)
            || self.durable.as_ref().is_some_and(|durable| durable.writer.is_failing())
    }

    /// Lets workers that wait for work ask again.
    pub(super) fn invite(&self) {
        self.invitations.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Starts the thread that evaluates. `done` gets each record in order.
    pub(crate) fn start_evaluator(
        &self,
        spec: Option<&ModelSpec>,
        dataset: Dataset,
        done: impl FnMut(HistoryRecord, Option<Evaluated>) + Send + 'static,
    ) -> anyhow::Result<()> {
        let evaluator = Evaluator::start(&self.config.model, spec, dataset, done)?;
        // Set once: by the one who makes the job.
        let _ = self.evaluator.set(evaluator);
        Ok(())
    }

    /// A round's record is complete: it is shown, kept, and published.
    pub(crate) fn evaluated(&self, mut record: HistoryRecord, evaluated: Option<Evaluated>) {
        {
            let mut view = self.view();
            view.record(record.clone());
            record.evaluation = view.record_of(record.round).and_then(|record| record.evaluation.clone());
            if let Some(Evaluated { evaluation, took }) = evaluated {
                let Evaluation { accuracy, loss, absolute_error, samples } = evaluation;
                view.last_evaluation =
                    Some(LastEvaluation { round: record.round, accuracy, loss, absolute_error, samples });
                self.metrics.evaluated(&evaluation, took);
            }
        }
        self.write_record(record.round);
        let rounds = self.config.round.rounds;
        let is_last = rounds > 0 && record.round >= rounds;
        self.publish(MasterEvent::RoundRecorded { record: record.clone() });
        // An error means that there are no subscribers.
        let _ = self.records.send(record);
        if is_last {
            self.complete.send_replace(true);
        }
    }

    /// The complete records of the rounds that finish from now on, in order.
    pub(crate) fn records(&self) -> broadcast::Receiver<HistoryRecord> {
        self.records.subscribe()
    }

    /// True once the last round is done and evaluated.
    pub(crate) fn complete(&self) -> watch::Receiver<bool> {
        self.complete.subscribe()
    }

    /// Hands a finished round to the evaluation.
    pub(super) fn evaluate(&self, record: HistoryRecord, global: &Arc<Global>, is_last: bool) {
        if let Some(evaluator) = self.evaluator.get() {
            evaluator.submit(record, global, is_last);
        }
    }

    /// The public state, locked briefly.
    pub fn view(&self) -> MutexGuard<'_, StatusView> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream of everything that happens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<MasterEvent> {
        self.events.subscribe()
    }

    /// Broadcasts to event subscribers; lagging ones miss events.
    pub(super) fn publish(&self, event: MasterEvent) {
        // An error means that there are no subscribers, which is fine.
        let _ = self.events.send(event);
    }

    /// Counts a model that was sent.
    pub fn sent_model(&self, bytes: usize) {
        self.bytes_down.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes of models sent since the last call.
    pub(super) fn take_bytes_down(&self) -> u64 {
        self.bytes_down.swap(0, Ordering::Relaxed)
    }

    /// What the open round waits for, if it has waited for some time.
    pub fn waiting(&self) -> Option<Waiting> {
        if self.published.borrow().finished {
            return None;
        }
        let journal_fails = self.durable.as_ref().is_some_and(|durable| durable.journal.is_failing());
        let stuck = journal_fails || self.storage_is_failing();
        self.view().waiting(self.host.clock.now(), self.config.round.min_clients as u64, stuck)
    }

    /// The body of `GET /status`.
    pub fn status(&self) -> StatusBody {
        self.status_with(usize::MAX)
    }

    /// The same with at most `max_workers` workers, those heard from last.
    pub fn status_with(&self, max_workers: usize) -> StatusBody {
        let published = self.published.borrow().clone();
        let waiting = self.waiting();
        self.show_evaluations();
        let client_evaluation = self.client_evaluation();
        let view = self.view();
        let saved = |f: fn(&HistoryRecord) -> u64| view.history().iter().map(f).sum();
        StatusBody {
            global_round: published.global.round,
            num_pending_rounds: u64::from(view.pending_updates() > 0),
            pending_updates: view.pending_updates(),
            min_clients: self.config.round.min_clients as u64,
            waiting,
            workers: view.latest_workers(max_workers),
            model: self.model_name.clone(),
            num_parameters: self.core.num_parameters() as u64,
            dataset: self.config.model.dataset.to_string(),
            strategy: self.config.aggregation.strategy.to_string(),
            last_evaluation: view.last_evaluation,
            client_evaluation,
            rejected_updates: view.rejected().map(|(code, n)| (code.to_owned(), n)).collect(),
            reused_updates: saved(|record| record.reused),
            bytes_saved: saved(|record| record.bytes_saved),
            uptime_s: self.host.clock.uptime_s(),
            finished: published.finished,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// The body of `GET /history`.
    pub fn history(&self) -> Vec<HistoryRecord> {
        self.show_evaluations();
        self.view().history().iter().cloned().collect()
    }
}
