//! What a start finds on disk becomes the state to go on with.
//!
//! A checkpoint may lag behind: the model of a round is a function of the one before and of its
//! journal, so the rounds since are made again from their journals, to the bit.

use super::{ingest::worker_status, view::StatusView};
use crate::{
    config::Config,
    federation::{
        Added, Core, Snapshot,
        round::{ClosedRound, Event, RoundState},
    },
    setup,
    source::ModelSource,
    store::{Checkpoint, Found, Record, RecordKind, Store, StoreError, journal::Replayed},
};
use fl_protocol::{HistoryRecord, WorkerStatus};
use std::collections::BTreeMap;
use tracing::info;

/// Everything that a master goes on with.
pub(crate) struct Recovered {
    pub(crate) core: Core,
    pub(crate) state: RoundState,
    pub(crate) view: StatusView,
    /// The open round's journal and its valid length.
    pub(crate) resume: Option<(u64, u64)>,
    /// Rounds that were made again from their journals, to be written.
    pub(crate) remade: Vec<(Checkpoint, HistoryRecord)>,
}

/// One accepted update as the journal has it.
type Accepted = (Added, WorkerStatus);

/// Starts without a state on disk.
pub(crate) fn fresh(config: &Config, source: &ModelSource, now: f64) -> anyhow::Result<Recovered> {
    Ok(Recovered {
        core: core(config, source, Snapshot::initial(source.initial(config.seed)?))?,
        state: RoundState::new(setup::rules(config), 0, Vec::new(), now),
        view: StatusView::new(Vec::new(), now),
        resume: None,
        remade: Vec::new(),
    })
}

/// A federation that goes on from `snapshot`.
fn core(config: &Config, source: &ModelSource, snapshot: Snapshot) -> anyhow::Result<Core> {
    let settings = config.aggregation.clone();
    Ok(Core::new(source.layout.clone(), settings, config.round.min_clients, snapshot)?)
}

/// Goes on with what `store` holds; an empty folder gets the first checkpoint.
///
/// # Errors
/// If the state is damaged or belongs to another model.
pub(crate) fn recover(
    config: &Config,
    source: &ModelSource,
    store: &Store,
    now: f64,
) -> anyhow::Result<Recovered> {
    let Found { checkpoint, mut participants, history } = store.load()?;
    let Some(checkpoint) = checkpoint else {
        let recovered = fresh(config, source, now)?;
        let model = recovered.core.global().bytes.clone();
        store.write_checkpoint(&Checkpoint::from(Snapshot::initial(model)))?;
        return Ok(recovered);
    };
    source.check(&checkpoint.model)?;
    let mut newest = checkpoint.newest.clone();
    let core = core(config, source, checkpoint.into())?;
    store.rewrite_history(&history)?;
    let mut view = StatusView::new(history, now);
    let mut remade = Vec::new();
    let (resume, open) = loop {
        let round = core.global().round;
        let Some((replayed, updates)) = replay(&core, store, round)? else { break (None, Vec::new()) };
        let full = updates.len() >= config.round.min_clients;
        let is_closed = replayed.closed || full || store.has_journal(round + 1);
        for (added, status) in &updates {
            view.accepted(added.meta.worker_id.clone(), status.clone());
        }
        if !is_closed {
            break (Some((round, replayed.valid_len)), updates);
        }
        if config.aggregation.strategy.is_asynchronous() {
            let bases = updates.iter().map(|(added, _)| (added.meta.worker_id.clone(), added.meta.round));
            newest.extend(bases);
        }
        let outcome = core.close(&closed_round(round, &updates, newest.clone()))?;
        participants.push((round, outcome.snapshot.participants.clone()));
        view.round_closed(now);
        view.record(outcome.record.clone());
        remade.push((Checkpoint::from(outcome.snapshot), outcome.record));
    };
    let round = core.global().round;
    info!(round, pending_updates = open.len(), remade_rounds = remade.len(), "state loaded");
    let state = RoundState::new(setup::rules(config), round, participants, now);
    let mut state = state.with_newest(newest);
    for (Added { meta, contribution, .. }, _) in open {
        let worker = meta.worker_id;
        state.step(Event::Offer { id: 0, worker: worker.clone(), round: contribution.base }, now);
        state.step(Event::Commit { worker, contribution }, now);
    }
    Ok(Recovered { core, state, view, resume, remade })
}

/// Reads every file of the state without changing anything.
///
/// # Errors
/// As [`recover`].
pub(crate) fn verify(config: &Config, source: &ModelSource, store: &Store) -> anyhow::Result<u64> {
    let Some(checkpoint) = store.load()?.checkpoint else { return Ok(0) };
    source.check(&checkpoint.model)?;
    let core = core(config, source, checkpoint.into())?;
    let mut round = core.global().round;
    while let Some((replayed, updates)) = replay(&core, store, round)? {
        let full = updates.len() >= config.round.min_clients;
        if !(replayed.closed || full || store.has_journal(round + 1)) {
            break;
        }
        core.close(&closed_round(round, &updates, BTreeMap::new()))?;
        round += 1;
    }
    Ok(round)
}

/// A round's journal: its updates, added to the sum of the open round.
fn replay(core: &Core, store: &Store, round: u64) -> anyhow::Result<Option<(Replayed, Vec<Accepted>)>> {
    let mut updates = Vec::new();
    let mut visit = |record: Record| -> Result<(), StoreError> {
        if record.kind == RecordKind::Closed {
            return Ok(());
        }
        // It was checked before it was written and its checksum holds: only another strategy has no use for it.
        let clip = record.meta.clip_bits.map(f64::from_bits);
        let added = core
            .add_again(&record.body, record.meta.wire_bytes, clip)
            .map_err(|rejection| StoreError::OtherStrategy { round, reason: rejection.msg })?;
        let status = worker_status(&added.meta, &record.meta);
        updates.push((added, status));
        Ok(())
    };
    Ok(store.replay(round, &mut visit)?.map(|replayed| (replayed, updates)))
}

fn closed_round(
    round: u64,
    updates: &[Accepted],
    newest: BTreeMap<fl_protocol::WorkerId, u64>,
) -> ClosedRound {
    let received = updates.iter().map(|(_, status)| status.last_update_ts);
    let times = (received.clone().fold(f64::INFINITY, f64::min), received.fold(0.0, f64::max));
    let contributions =
        updates.iter().map(|(added, _)| (added.meta.worker_id.clone(), added.contribution.clone())).collect();
    ClosedRound::new(round, contributions, times, 0).with_newest(newest)
}
