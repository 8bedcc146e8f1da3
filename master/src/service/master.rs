//! A running master: its parts are put together here, and taken apart.

use crate::{
    config::Config, federation::model::Blueprint, http::server::accept, http::server::body::Budget,
    http::server::limiter::Limiter, http::server::tls, metrics::Metrics, service::actor,
    service::actor::Actor, service::clock::Clock, service::evaluate::Evaluator, service::events::MasterEvent,
    service::pool::Pool, service::recover, service::recover::Recovered, service::state::Durable,
    service::state::Published, service::state::Shared, store::Store,
};
use anyhow::Context;
use bytes::Bytes;
use fl_model::Evaluation;
use fl_protocol::{HistoryRecord, LastEvaluation};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock, Weak, atomic::AtomicU64},
};
use tokio::{
    net::TcpListener,
    sync::{broadcast, oneshot, watch},
    task::{JoinHandle, spawn_blocking},
};
use tracing::{info, warn};

/// Records and events that a slow listener may lag behind before it misses some.
const BROADCAST: usize = 1024;

/// A running master.
#[derive(Debug)]
pub struct Master {
    shared: Arc<Shared>,
    local_addr: SocketAddr,
    server: JoinHandle<()>,
    actor: JoinHandle<()>,
    stop_actor: oneshot::Sender<()>,
}

impl Master {
    /// Loads data and state, opens the port (unless `listener` is one) and answers from then on.
    ///
    /// # Errors
    /// If data are missing, the state cannot be used, or the port cannot be opened.
    pub async fn start(config: Config, listener: Option<TcpListener>) -> anyhow::Result<Self> {
        let acceptor = config.tls.as_ref().map(tls::acceptor).transpose()?;
        let model = config.model.clone();
        let blueprint = spawn_blocking(move || Blueprint::new(&model)).await??;
        config.check_memory(blueprint.layout.parameters())?;
        let listener = match listener {
            Some(listener) => listener,
            None => TcpListener::bind(config.bind)
                .await
                .with_context(|| format!("BIND={}: the port cannot be opened", config.bind))?,
        };
        let local_addr = listener.local_addr()?;
        let (shared, inbox, actor) = assemble(config, blueprint).await?;
        let (stop_actor, stopped) = oneshot::channel();
        let actor = tokio::spawn(actor.run(inbox, async {
            let _ = stopped.await;
        }));
        info!(
            address = %local_addr, round = shared.round(), model = shared.model_name,
            parameters = shared.layout.parameters(), tls = acceptor.is_some(), "master started"
        );
        let server = tokio::spawn(accept::serve(listener, shared.clone(), acceptor));
        Ok(Self { shared, local_addr, server, actor, stop_actor })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The complete records of the rounds that finish from now on, in order, each after its evaluation.
    pub fn rounds(&self) -> broadcast::Receiver<HistoryRecord> {
        self.shared.records.subscribe()
    }

    /// Parameters of the model.
    pub fn num_parameters(&self) -> u64 {
        self.shared.layout.parameters() as u64
    }

    /// Whether the last round is done.
    pub fn is_finished(&self) -> bool {
        self.shared.published.borrow().finished
    }

    /// Resolves once the last round is done and evaluated.
    pub fn finished(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut complete = self.shared.complete.subscribe();
        async move {
            let _ = complete.wait_for(|complete| *complete).await;
        }
    }

    /// The newest model, as the safetensors file of `GET /global`.
    pub fn global(&self) -> Bytes {
        self.shared.global().bytes.clone()
    }

    /// Drains: turns readiness off, stops accepting, lets what is in flight finish for at most
    /// `DRAIN_S`, and puts everything on disk.
    ///
    /// # Errors
    /// If a task of the master has panicked.
    pub async fn shutdown(self) -> anyhow::Result<()> {
        self.shared.draining.send_replace(true);
        self.server.await.context("the server failed")?;
        let _ = self.stop_actor.send(());
        self.actor.await.context("the round's owner failed")?;
        let shared = self.shared;
        spawn_blocking(move || {
            if let Some(durable) = &shared.durable {
                durable.journal.stop();
                durable.writer.stop();
            }
        })
        .await
        .context("the state's writer failed")?;
        info!("master stopped");
        Ok(())
    }
}

/// Checks data, certificates and state without serving, and gives the round of the newest checkpoint.
///
/// # Errors
/// What [`Master::start`] would fail with.
pub fn check(config: &Config) -> anyhow::Result<u64> {
    config.tls.as_ref().map(tls::acceptor).transpose()?;
    let blueprint = Blueprint::new(&config.model)?;
    config.check_memory(blueprint.layout.parameters())?;
    if !config.store.durable {
        return Ok(0);
    }
    let store = Store::open(&config.store.state_dir, blueprint.layout.fingerprint())?;
    recover::verify(config, &blueprint, &store)
}

async fn assemble(
    config: Config,
    blueprint: Blueprint,
) -> anyhow::Result<(Arc<Shared>, actor::Inbox, Actor)> {
    let clock = Clock::start();
    let metrics = Arc::new(Metrics::new(config.metrics.clone())?);
    let pool = Pool::new(config.decode_threads(), config.limits.max_queue)?;
    let (recovered, durable) = load(&config, &blueprint, clock.now(), metrics.clone()).await?;
    let Recovered { global, server, collector, lasts, state, board, .. } = recovered;
    let finished = state.finishes_with(global.round);
    metrics.global_round.set(global.round as i64);
    metrics.pending_updates.set(board.pending_updates as i64);
    let (publisher, published) = watch::channel(Published { global: Arc::new(global), finished });
    let (handle, inbox) = actor::channel();
    let shared = Arc::new(Shared {
        model_name: blueprint.spec.name.clone(),
        layout: blueprint.layout.clone(),
        collector,
        lasts,
        server: Mutex::new(server),
        actor: handle,
        published,
        draining: watch::channel(false).0,
        complete: watch::channel(finished).0,
        events: broadcast::channel(BROADCAST).0,
        records: broadcast::channel(BROADCAST).0,
        board: Mutex::new(board),
        metrics,
        pool,
        evaluator: OnceLock::new(),
        durable,
        budget: Budget::new(&config.limits, blueprint.layout.parameters()),
        limiter: Limiter::new(config.limits.refused_per_s),
        clock,
        bytes_down: AtomicU64::new(0),
        config,
    });
    let watcher = Arc::downgrade(&shared);
    let Blueprint { spec, dataset, .. } = blueprint;
    let evaluator = Evaluator::start(&shared.config.model, &spec, dataset, move |record, evaluation| {
        evaluated(&watcher, record, evaluation);
    })?;
    // Set once, here.
    let _ = shared.evaluator.set(evaluator);
    let actor = Actor::new(state, shared.clone(), publisher);
    Ok((shared, inbox, actor))
}

async fn load(
    config: &Config,
    blueprint: &Blueprint,
    now: f64,
    metrics: Arc<Metrics>,
) -> anyhow::Result<(Recovered, Option<Durable>)> {
    if !config.store.durable {
        warn!("DURABLE=false: a crash loses everything");
        return Ok((recover::fresh(config, blueprint, now)?, None));
    }
    let store = Store::open(&config.store.state_dir, blueprint.layout.fingerprint())?;
    let mut recovered = recover::recover(config, blueprint, &store, now)?;
    let writer = store.start_writer(config.store.keep_rounds)?;
    for (checkpoint, record) in recovered.remade.drain(..) {
        writer.checkpoint(checkpoint, record).await;
    }
    let journal = store.start_journal(recovered.resume, metrics)?;
    Ok((recovered, Some(Durable { store, journal, writer })))
}

/// A round's record is complete: it is shown, kept, and told.
fn evaluated(shared: &Weak<Shared>, record: HistoryRecord, evaluation: Option<Evaluation>) {
    let Some(shared) = shared.upgrade() else { return };
    {
        let mut board = shared.board();
        board.record(record.clone());
        if let Some(Evaluation { accuracy, loss, samples }) = evaluation {
            board.last_evaluation = Some(LastEvaluation { round: record.round, accuracy, loss, samples });
            shared.metrics.test_accuracy.set(accuracy);
            shared.metrics.test_loss.set(loss);
        }
    }
    if let Some(durable) = &shared.durable {
        durable.writer.evaluated(record.clone());
    }
    let rounds = shared.config.round.rounds;
    let is_last = rounds > 0 && record.round >= rounds;
    shared.tell(MasterEvent::RoundRecorded { record: record.clone() });
    let _ = shared.records.send(record);
    if is_last {
        shared.complete.send_replace(true);
    }
}
