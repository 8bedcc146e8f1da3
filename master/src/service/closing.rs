//! From a round's sum to the next model, off the async threads.

use crate::{
    config::Config, federation::intake::lazy::LastUpdates, federation::model, federation::model::Global,
    federation::round::Contribution, federation::round::RoundState, federation::round::Rules,
    federation::step::ServerState, federation::step::Totals, service::state::Shared, store::Checkpoint,
    store::Record, store::RecordKind, store::journal::RecordMeta,
};
use bytes::Bytes;
use fl_protocol::{HistoryRecord, WorkerId};
use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};
use tracing::error;

/// Between two tries of what must succeed for the training to go on.
const RETRY: Duration = Duration::from_secs(1);

/// The rules that the settings make.
pub(crate) fn rules(config: &Config) -> Rules {
    let Config { round, aggregation, .. } = config;
    Rules {
        target: round.min_clients,
        deadline_s: round.deadline_s,
        min_at_deadline: round.min_at_deadline,
        sample: round.sample(),
        task_timeout_s: round.task_timeout_s,
        rounds: round.rounds,
        seed: config.seed,
        remember: config.store.keep_rounds,
        max_staleness: aggregation.strategy.is_asynchronous().then_some(aggregation.max_staleness),
    }
}

/// What a closed round consists of.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) round: u64,
    pub(crate) participants: Vec<WorkerId>,
    pub(crate) totals: Totals,
    /// Asynchronous operation: what each worker's newest update was trained from.
    pub(crate) newest: BTreeMap<WorkerId, u64>,
    num_samples: u64,
    opened: f64,
    closed: f64,
    bytes_up: u64,
    reused: u64,
    bytes_saved: u64,
    train_loss: Option<f64>,
    /// Closed by its deadline, which no replay can tell from the updates alone.
    early: bool,
}

impl Batch {
    pub(crate) fn of(state: &RoundState, now: f64) -> Self {
        let batch = Self::new(
            state.round(),
            state.contributions().map(|(worker, c)| (worker.clone(), c.clone())).collect(),
            (state.opened(), now),
            state.accepted() < state.target(),
        );
        Self { newest: state.newest().clone(), ..batch }
    }

    pub(crate) fn new(
        round: u64,
        mut updates: Vec<(WorkerId, Contribution)>,
        (opened, closed): (f64, f64),
        early: bool,
    ) -> Self {
        // A replay has them in the journal's order; participants are looked up in a sorted list.
        updates.sort_by(|a, b| a.0.cmp(&b.0));
        let mut loss = (0.0, 0.0);
        let mut totals = Totals { updates: updates.len(), ..Totals::default() };
        for (_, update) in &updates {
            totals.samples += update.num_samples as f64;
            totals.sample_steps += update.num_samples as f64 * update.local_norm;
            if let Some(value) = update.loss {
                loss.0 += value * update.num_samples as f64;
                loss.1 += update.num_samples as f64;
            }
        }
        Self {
            round,
            totals,
            newest: BTreeMap::new(),
            num_samples: updates.iter().map(|(_, update)| update.num_samples).sum(),
            bytes_up: updates.iter().map(|(_, update)| update.bytes).sum(),
            reused: updates.iter().filter(|(_, update)| update.reused_bytes.is_some()).count() as u64,
            bytes_saved: updates
                .iter()
                .filter_map(|(_, update)| Some(update.reused_bytes?.saturating_sub(update.bytes)))
                .sum(),
            train_loss: (loss.1 > 0.0).then(|| loss.0 / loss.1),
            participants: updates.into_iter().map(|(worker, _)| worker).collect(),
            opened,
            closed,
            early,
        }
    }

    /// The checkpoint of the model that this round made. What the workers' last updates must not be any
    /// more goes first.
    pub(crate) fn checkpoint(&self, next: &Global, server: &ServerState, lasts: &LastUpdates) -> Checkpoint {
        lasts.prune(next.round);
        Checkpoint {
            round: next.round,
            participants: self.participants.clone(),
            newest: self.newest.clone(),
            model: next.bytes.clone(),
            server: server.clone(),
            last_updates: lasts.snapshot(),
        }
    }

    pub(crate) fn record(&self, parameters: usize, bytes_down: u64) -> HistoryRecord {
        let values = self.participants.len() as f64 * parameters as f64;
        HistoryRecord {
            round: self.round + 1,
            started_ts: self.opened,
            finished_ts: self.closed,
            duration_s: self.closed - self.opened,
            participants: self.participants.len() as u64,
            num_samples: self.num_samples,
            train_loss: self.train_loss,
            test_accuracy: None,
            test_loss: None,
            bytes_up: self.bytes_up,
            reused: self.reused,
            bytes_saved: self.bytes_saved,
            bytes_down,
            bits_per_param: if values > 0.0 { 8.0 * self.bytes_up as f64 / values } else { 0.0 },
        }
    }
}

/// Makes the next model and reports it to the actor. Does not give up: without it no round goes on.
pub(crate) async fn close(shared: Arc<Shared>, batch: Batch) {
    let marked = mark_closed(&shared, batch.round);
    let early = batch.early;
    let (global, checkpoint, record) = loop {
        let (job_shared, job_batch) = (shared.clone(), batch.clone());
        let made = shared.pool.run_always(move || make(&job_shared, &job_batch)).await;
        match made {
            Ok(Ok(made)) => break made,
            Ok(Err(error)) => error!(%error, "the next model cannot be made"),
            Err(_) => error!("making the next model panicked"),
        }
        tokio::time::sleep(RETRY).await;
    };
    if early {
        // Until the close is on disk a crash would reopen the round: nobody may see its model.
        ensure_marked(&shared, batch.round, marked).await;
    }
    if let Some(durable) = &shared.durable {
        durable.writer.checkpoint(checkpoint, record.clone()).await;
    }
    shared.actor.closed(Arc::new(global), record).await;
}

type Marked = Option<tokio::sync::oneshot::Receiver<Result<(), String>>>;

fn mark_closed(shared: &Shared, round: u64) -> Marked {
    let record = Record { kind: RecordKind::Closed, meta: RecordMeta::default(), body: Bytes::new() };
    shared.durable.as_ref().map(|durable| durable.journal.append(round, record))
}

async fn ensure_marked(shared: &Shared, round: u64, mut marked: Marked) {
    while let Some(done) = marked {
        match done.await {
            Ok(Ok(())) | Err(_) => return,
            Ok(Err(_)) => tokio::time::sleep(RETRY).await,
        }
        marked = mark_closed(shared, round);
    }
}

fn make(shared: &Shared, batch: &Batch) -> anyhow::Result<(Global, Checkpoint, HistoryRecord)> {
    let started = Instant::now();
    let mut server = shared.server.lock().unwrap_or_else(PoisonError::into_inner);
    let global = model::next(
        &shared.global(),
        &shared.config.aggregation,
        &mut server,
        &shared.collector,
        &batch.totals,
    )?;
    shared.collector.reset();
    let checkpoint = batch.checkpoint(&global, &server, &shared.lasts);
    let bytes_down = shared.bytes_down.swap(0, Ordering::Relaxed);
    shared.metrics.aggregate_seconds.observe(started.elapsed().as_secs_f64());
    Ok((global, checkpoint, batch.record(shared.layout.parameters(), bytes_down)))
}
