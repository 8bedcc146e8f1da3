//! What a start finds on disk becomes the state to go on with.
//!
//! A checkpoint may lag behind: the model of a round is a function of the one before and of its
//! journal, so the rounds since are made again from their journals, to the bit.

use crate::{
    config::Config, federation::aggregate::Collector, federation::intake::Intake,
    federation::intake::lazy::LastUpdates, federation::model, federation::model::Blueprint,
    federation::model::Global, federation::round::Contribution, federation::round::Event,
    federation::round::RoundState, federation::step::ServerState, service::closing, service::closing::Batch,
    service::events::Board, service::ingest::account, store::Checkpoint, store::Found, store::Record,
    store::RecordKind, store::Store, store::StoreError, store::journal::Replayed,
};
use fl_protocol::{HistoryRecord, WorkerId, WorkerStatus};
use std::collections::BTreeMap;
use tracing::info;

/// Everything that a master goes on with.
pub(crate) struct Recovered {
    pub(crate) global: Global,
    pub(crate) server: ServerState,
    pub(crate) collector: Collector,
    pub(crate) lasts: LastUpdates,
    pub(crate) state: RoundState,
    pub(crate) board: Board,
    /// The open round's journal and its valid length.
    pub(crate) resume: Option<(u64, u64)>,
    /// Rounds that were made again from their journals, to be written.
    pub(crate) remade: Vec<(Checkpoint, HistoryRecord)>,
}

/// One accepted update as the journal has it.
type Accepted = (WorkerId, Contribution, WorkerStatus);

/// Starts without a state on disk.
pub(crate) fn fresh(config: &Config, blueprint: &Blueprint, now: f64) -> anyhow::Result<Recovered> {
    let (aggregation, server) = (&config.aggregation, ServerState::default());
    Ok(Recovered {
        global: blueprint.initial(config.seed)?.completed(aggregation, &server)?,
        server,
        collector: Collector::new(aggregation.strategy, blueprint.layout.parameters()),
        lasts: aggregation.last_updates(BTreeMap::new()),
        state: RoundState::new(closing::rules(config), 0, Vec::new(), now),
        board: Board::new(Vec::new()),
        resume: None,
        remade: Vec::new(),
    })
}

/// Goes on with what `store` holds; an empty folder gets the first checkpoint.
///
/// # Errors
/// If the state is damaged or belongs to another model.
pub(crate) fn recover(
    config: &Config,
    blueprint: &Blueprint,
    store: &Store,
    now: f64,
) -> anyhow::Result<Recovered> {
    let Found { checkpoint, mut participants, history } = store.load()?;
    let Some(checkpoint) = checkpoint else {
        let recovered = fresh(config, blueprint, now)?;
        store.write_checkpoint(&Checkpoint {
            round: 0,
            participants: Vec::new(),
            newest: BTreeMap::new(),
            model: recovered.global.bytes.clone(),
            server: ServerState::default(),
            last_updates: BTreeMap::new(),
        })?;
        return Ok(recovered);
    };
    let mut global = blueprint.check(checkpoint.round, checkpoint.model)?;
    let (mut server, mut newest) = (checkpoint.server, checkpoint.newest);
    let strategy = config.aggregation.strategy;
    let collector = Collector::new(strategy, blueprint.layout.parameters());
    let lasts = config.aggregation.replayed_updates(checkpoint.last_updates);
    store.rewrite_history(&history)?;
    let mut board = Board::new(history);
    let mut remade = Vec::new();
    let (resume, open) = loop {
        let round = global.round;
        let Some((replayed, updates)) = replay(config, blueprint, store, round, &lasts, Some(&collector))?
        else {
            break (None, Vec::new());
        };
        for (worker, _, status) in &updates {
            board.saw(worker.clone(), status.clone());
        }
        let full = updates.len() >= config.round.min_clients;
        if !(replayed.closed || full || store.has_journal(round + 1)) {
            break (Some((round, replayed.valid_len)), updates);
        }
        if strategy.is_asynchronous() {
            newest.extend(updates.iter().map(|(worker, c, _)| (worker.clone(), c.base)));
        }
        let (mut checkpoint, record, next) =
            remake(config, blueprint, &global, &mut server, &collector, &lasts, &updates)?;
        checkpoint.newest = newest.clone();
        participants.push((round, checkpoint.participants.clone()));
        board.record(record.clone());
        remade.push((checkpoint, record));
        global = next;
    };
    info!(round = global.round, pending_updates = open.len(), remade_rounds = remade.len(), "state loaded");
    board.pending_updates = open.len() as u64;
    let lasts = config.aggregation.last_updates(lasts.snapshot());
    let global = global.completed(&config.aggregation, &server)?;
    let state = RoundState::new(closing::rules(config), global.round, participants, now);
    let mut state = state.with_newest(newest);
    for (worker, contribution, _) in open {
        state.step(Event::Offer { id: 0, worker: worker.clone(), round: contribution.base }, now);
        state.step(Event::Commit { worker, contribution }, now);
    }
    Ok(Recovered { global, server, collector, lasts, state, board, resume, remade })
}

/// Reads every file of the state without changing anything.
///
/// # Errors
/// As [`recover`].
pub(crate) fn verify(config: &Config, blueprint: &Blueprint, store: &Store) -> anyhow::Result<u64> {
    let Some(checkpoint) = store.load()?.checkpoint else { return Ok(0) };
    let mut round = blueprint.check(checkpoint.round, checkpoint.model)?.round;
    let lasts = config.aggregation.replayed_updates(checkpoint.last_updates);
    while replay(config, blueprint, store, round, &lasts, None)?.is_some() {
        round += 1;
    }
    Ok(checkpoint.round)
}

/// A round's journal: its updates, added to `collector` if there is one.
fn replay(
    config: &Config,
    blueprint: &Blueprint,
    store: &Store,
    round: u64,
    lasts: &LastUpdates,
    collector: Option<&Collector>,
) -> anyhow::Result<Option<(Replayed, Vec<Accepted>)>> {
    let mut updates = Vec::new();
    let mut visit = |record: Record| -> Result<(), StoreError> {
        if record.kind == RecordKind::Closed {
            return Ok(());
        }
        // It was checked before it was written, its checksum holds, and limits are not looked at again: only
        // another strategy has no use for it.
        let refused = |reason: String| StoreError::OtherStrategy { round, reason };
        let (layout, terms) = (&blueprint.layout, config.round.min_clients);
        let accepted = record.meta.clip_bits.map(f64::from_bits);
        let intake = Intake { layout, config: &config.aggregation, terms, lasts, accepted };
        let accepted = intake.with_term(&record.body, round, |term| {
            collector.map_or(Ok(()), |collector| term.add_to(collector))?;
            lasts.keep(&term.meta, &record.body);
            let (contribution, status) = account(term, &record.meta);
            Ok((term.meta.worker_id.clone(), contribution, status))
        });
        updates.push(accepted.map_err(|rejection| refused(rejection.msg))?);
        Ok(())
    };
    Ok(store.replay(round, &mut visit)?.map(|replayed| (replayed, updates)))
}

fn remake(
    config: &Config,
    blueprint: &Blueprint,
    global: &Global,
    server: &mut ServerState,
    collector: &Collector,
    lasts: &LastUpdates,
    updates: &[Accepted],
) -> anyhow::Result<(Checkpoint, HistoryRecord, Global)> {
    let received = updates.iter().map(|(_, _, status)| status.last_update_ts);
    let span = (received.clone().fold(f64::INFINITY, f64::min), received.fold(0.0, f64::max));
    let contributions = updates.iter().map(|(worker, c, _)| (worker.clone(), c.clone())).collect();
    let batch = Batch::new(global.round, contributions, span, false);
    let next = model::next(global, &config.aggregation, server, collector, &batch.totals)?;
    collector.reset();
    Ok((batch.checkpoint(&next, server, lasts), batch.record(blueprint.layout.parameters(), 0), next))
}
