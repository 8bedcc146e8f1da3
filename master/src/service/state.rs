//! What the parts of a running master share.

use crate::{
    config::Config, federation::aggregate::Collector, federation::intake::Intake,
    federation::intake::lazy::LastUpdates, federation::model::Global, federation::step::ServerState,
    http::server::body::Budget, http::server::limiter::Limiter, metrics::Metrics,
    service::actor::ActorHandle, service::clock::Clock, service::evaluate::Evaluator, service::events::Board,
    service::events::MasterEvent, service::pool::Pool, store::Journal, store::Store, store::StoreWriter,
};
use fl_protocol::{HistoryRecord, ModelLayout, StatusBody};
use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
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

/// The state on disk and the threads that write it; absent with `DURABLE=false`.
#[derive(Debug)]
pub struct Durable {
    /// The folder.
    pub store: Store,
    /// Appends updates.
    pub journal: Journal,
    /// Writes checkpoints.
    pub writer: StoreWriter,
}

/// One master's parts. Handlers hold it in an `Arc`.
#[derive(Debug)]
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// Name of the model.
    pub model_name: String,
    /// The model's tensors.
    pub layout: ModelLayout,
    /// The open round's updates.
    pub collector: Collector,
    /// The workers' last updates, for lazy upload.
    pub lasts: LastUpdates,
    /// What the strategy carries from round to round.
    pub server: Mutex<ServerState>,
    /// The task that owns the round.
    pub actor: ActorHandle,
    /// The newest model.
    pub published: watch::Receiver<Published>,
    /// True once a shutdown has begun.
    pub draining: watch::Sender<bool>,
    /// True once the last round is done and evaluated.
    pub complete: watch::Sender<bool>,
    /// Everything that happens.
    pub events: broadcast::Sender<MasterEvent>,
    /// Complete records of finished rounds.
    pub records: broadcast::Sender<HistoryRecord>,
    /// What can be seen.
    pub board: Mutex<Board>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Threads for CPU work.
    pub pool: Pool,
    /// The thread that evaluates.
    pub evaluator: std::sync::OnceLock<Evaluator>,
    /// The state on disk.
    pub durable: Option<Durable>,
    /// Memory of bodies being received.
    pub budget: Budget,
    /// Refusals per worker.
    pub limiter: Limiter,
    /// Time.
    pub clock: Clock,
    /// Bytes of models sent since the round opened.
    pub bytes_down: AtomicU64,
}

impl Shared {
    /// The number of the current round.
    pub fn round(&self) -> u64 {
        self.published.borrow().global.round
    }

    /// The newest model.
    pub fn global(&self) -> Arc<Global> {
        self.published.borrow().global.clone()
    }

    /// What updates are checked against.
    pub fn intake(&self) -> Intake<'_> {
        let Config { aggregation, round, .. } = &self.config;
        Intake {
            layout: &self.layout,
            config: aggregation,
            terms: round.min_clients,
            lasts: &self.lasts,
            accepted: None,
        }
    }

    /// Whether a shutdown has begun.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// What can be seen, for a short look.
    pub fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream of everything that happens from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<MasterEvent> {
        self.events.subscribe()
    }

    /// Tells those who watch; nobody has to.
    pub fn tell(&self, event: MasterEvent) {
        let _ = self.events.send(event);
    }

    /// Notes that a model was sent.
    pub fn sent_model(&self, bytes: usize) {
        self.bytes_down.fetch_add(bytes as u64, Ordering::Relaxed);
        self.metrics.bytes_down.inc_by(bytes as u64);
    }

    /// The body of `GET /status`.
    pub fn status(&self) -> StatusBody {
        self.status_with(usize::MAX)
    }

    /// The same with at most `max_workers` workers, those heard from last.
    pub fn status_with(&self, max_workers: usize) -> StatusBody {
        let published = self.published.borrow().clone();
        let board = self.board();
        let saved = |f: fn(&HistoryRecord) -> u64| board.history().iter().map(f).sum();
        StatusBody {
            global_round: published.global.round,
            num_pending_rounds: u64::from(board.pending_updates > 0),
            pending_updates: board.pending_updates,
            min_clients: self.config.round.min_clients as u64,
            workers: board.latest_workers(max_workers),
            model: self.model_name.clone(),
            num_parameters: self.layout.parameters() as u64,
            dataset: self.config.model.dataset.to_string(),
            strategy: self.config.aggregation.strategy.to_string(),
            last_evaluation: board.last_evaluation,
            rejected_updates: board.rejected.iter().map(|(code, n)| ((*code).to_owned(), *n)).collect(),
            reused_updates: saved(|record| record.reused),
            bytes_saved: saved(|record| record.bytes_saved),
            uptime_s: self.clock.uptime_s(),
            finished: published.finished,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// The body of `GET /history`.
    pub fn history(&self) -> Vec<HistoryRecord> {
        self.board().history().iter().cloned().collect()
    }
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// Its address.
    pub ip: IpAddr,
    /// Whether it has shown a client certificate of an accepted authority.
    pub has_certificate: bool,
}
