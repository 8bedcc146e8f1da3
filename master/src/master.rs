//! A running master: its parts are put together here, and taken apart.

#[cfg(test)]
mod place_tests;

use crate::{
    http::{
        App,
        server::{accept, tls},
    },
    metrics::Series,
    service::{
        actor::Actor,
        closing,
        handle::{self, Inbox},
        host::Host,
        job::{Job, Parts, Published},
        metrics::JobMetrics,
        recover::{self, Recovered},
    },
    settings::Config,
    source::ModelSource,
    store::{Durable, Store},
};
use anyhow::Context;
use bytes::Bytes;
use fl_protocol::HistoryRecord;
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{broadcast, oneshot, watch},
    task::{JoinHandle, spawn_blocking},
};
use tracing::{info, warn};

/// Connections that the system holds until they are accepted: beyond it, a client waits a second and more
/// before it tries again, a probe too. The system may set a lower bound.
const BACKLOG: u32 = 4096;
/// Longest time between the end of readiness and the closing of the port.
const MAX_GRACE: Duration = Duration::from_secs(2);

/// A running master.
#[derive(Debug)]
pub struct Master {
    job: Arc<Job>,
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
        let source = spawn_blocking(move || ModelSource::load(&model)).await??;
        config.check_memory(source.layout.parameters())?;
        let listener = match listener {
            Some(listener) => listener,
            None => listen(config.bind)
                .with_context(|| format!("BIND={}: the port cannot be opened", config.bind))?,
        };
        let local_addr = listener.local_addr()?;
        let series = Series::new()?;
        let (job, inbox, actor) = assemble(config, source, &series).await?;
        let (stop_actor, stopped) = oneshot::channel();
        let actor = tokio::spawn(actor.run(inbox, async {
            let _ = stopped.await;
        }));
        info!(
            address = %local_addr, round = job.round(), model = job.model_name,
            parameters = job.core.num_parameters(), tls = acceptor.is_some(), "master started"
        );
        let app = Arc::new(App::new(job.clone(), series)?);
        let server = tokio::spawn(accept::serve(listener, app, acceptor));
        Ok(Self { job, local_addr, server, actor, stop_actor })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// The complete records of the rounds that finish from now on, in order, each after its evaluation.
    pub fn rounds(&self) -> broadcast::Receiver<HistoryRecord> {
        self.job.records()
    }

    /// The records of all finished rounds that are kept, the oldest first.
    pub fn history(&self) -> Vec<HistoryRecord> {
        self.job.history()
    }

    /// Parameters of the model.
    pub fn num_parameters(&self) -> u64 {
        self.job.core.num_parameters() as u64
    }

    /// Whether the last round is done.
    pub fn is_finished(&self) -> bool {
        self.job.published.borrow().finished
    }

    /// Resolves once the last round is done and evaluated.
    pub fn finished(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut complete = self.job.complete();
        async move {
            let _ = complete.wait_for(|complete| *complete).await;
        }
    }

    /// The newest model, as the safetensors file of `GET /global`.
    pub fn global(&self) -> Bytes {
        self.job.global().bytes.clone()
    }

    /// Turns readiness off and keeps serving for a fifth of `DRAIN_S`, at most two seconds: a load balancer
    /// that checks `/readyz` can stop sending requests before a connection is refused.
    pub async fn retire(&self) {
        self.job.host.retiring.store(true, Ordering::Relaxed);
        let grace = Duration::from_secs_f64(self.job.config.limits.drain_s / 5.0).min(MAX_GRACE);
        tokio::time::sleep(grace).await;
    }

    /// Drains: turns readiness off, stops accepting, lets what is in flight finish for at most
    /// `DRAIN_S`, and puts everything on disk.
    ///
    /// # Errors
    /// If a task of the master has panicked.
    pub async fn shutdown(self) -> anyhow::Result<()> {
        self.job.host.draining.send_replace(true);
        self.server.await.context("the server failed")?;
        let _ = self.stop_actor.send(());
        self.actor.await.context("the round's owner failed")?;
        let job = self.job;
        spawn_blocking(move || {
            job.write_evaluations();
            if let Some(durable) = &job.durable {
                durable.stop();
            }
        })
        .await
        .context("the state's writer failed")?;
        info!("master stopped");
        Ok(())
    }
}

/// Opens the port.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart must not wait for the last process's connections to time out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Checks data, certificates and state without serving, and gives the round of the newest checkpoint.
///
/// # Errors
/// The error with which [`Master::start`] would fail.
pub fn check(config: &Config) -> anyhow::Result<u64> {
    config.tls.as_ref().map(tls::acceptor).transpose()?;
    let source = ModelSource::load(&config.model)?;
    config.check_memory(source.layout.parameters())?;
    if !config.store.durable {
        return Ok(0);
    }
    let mut store = Store::open(&config.store.state_dir, source.layout.fingerprint())?;
    recover::verify(config, &source, &mut store)
}

/// Goes back to the model of `round`, and gives the name of the archive that holds everything newer.
///
/// # Errors
/// If that round cannot be restored, the state is in use, or the disk refuses.
pub fn rollback_to(config: &Config, round: u64) -> anyhow::Result<String> {
    let source = ModelSource::load(&config.model)?;
    let mut store = Store::open(&config.store.state_dir, source.layout.fingerprint())?;
    Ok(store.rollback_to(round)?)
}

async fn assemble(
    config: Config,
    source: ModelSource,
    series: &Series,
) -> anyhow::Result<(Arc<Job>, Inbox, Actor)> {
    let metrics = Arc::new(JobMetrics::new(series, config.metrics.clone())?);
    if source.network.spec().is_some() {
        metrics.expect(&source.dataset.task);
    }
    let host = Arc::new(Host::start(&config)?);
    let (recovered, durable) = load(&config, &source, host.clock.now(), metrics.clone())?;
    let Recovered { core, state, view } = recovered;
    let global = core.global();
    let finished = state.finishes_with(global.round);
    metrics.global_round.set(global.round as i64);
    metrics.pending_updates.set(view.pending_updates() as i64);
    let (publisher, published) = watch::channel(Published { global, finished });
    let (actor, inbox) = handle::channel();
    let ModelSource { network, dataset, .. } = source;
    let job = Arc::new(Job::new(Parts {
        host,
        model_name: network.name().to_owned(),
        core,
        actor,
        published,
        metrics,
        durable,
        view,
        config,
    }));
    if let Some(durable) = &job.durable {
        durable.journal.open(job.round(), closing::settings_json(&job));
    }
    let watcher = Arc::downgrade(&job);
    let done = move |record, evaluation| {
        if let Some(job) = watcher.upgrade() {
            job.evaluated(record, evaluation);
        }
    };
    job.start_evaluator(network.spec(), dataset, done)?;
    let actor = Actor::new(state, job.clone(), publisher);
    Ok((job, inbox, actor))
}

fn load(
    config: &Config,
    source: &ModelSource,
    now: f64,
    metrics: Arc<JobMetrics>,
) -> anyhow::Result<(Recovered, Option<Durable>)> {
    if !config.store.durable {
        warn!("DURABLE=false: a crash loses everything");
        return Ok((recover::fresh(config, source, now)?, None));
    }
    let mut store = Store::open(&config.store.state_dir, source.layout.fingerprint())?;
    let mut remade = Vec::new();
    let recovered = recover::recover(config, source, &mut store, now, |store, snapshot, record| {
        // Kept until the writer comes to it, it would take a model's memory. None is written before an earlier one.
        if !remade.is_empty() || store.write_remade(&snapshot, &record).is_err() {
            remade.push((snapshot, record));
        }
    })?;
    let committed = move |took, records| metrics.journal_commit(took, records);
    let durable = store.start(config.store.keep_rounds, remade, committed)?;
    Ok((recovered, Some(durable)))
}
