//! Recovery: restores the state of a federation from the store.
//!
//! A checkpoint may lag behind: the model of a round is a function of the one before and of its
//! journal, so the rounds since are made again from their journals, to the bit.

use super::{ingest::worker_status, view::StatusView};
use crate::{
    federation::{
        Added, AggregationSettings, ClosedOutcome, Core, Snapshot,
        round::{ClosedRound, RoundState},
    },
    settings::Config,
    setup,
    source::ModelSource,
    store::{Closed, Found, Record, Replayed, Store, StoreError},
};
use anyhow::Context;
use bytes::Bytes;
use fl_model::ModelError;
use fl_protocol::{HistoryRecord, WorkerId, WorkerStatus};
use std::collections::BTreeMap;
use tracing::info;

/// Everything that a master goes on with.
pub(crate) struct Recovered {
    pub(crate) core: Core,
    pub(crate) state: RoundState,
    pub(crate) view: StatusView,
}

/// One accepted update as the journal has it.
type Accepted = (Added, WorkerStatus);

/// Starts without a state on disk.
pub(crate) fn fresh(config: &Config, source: &ModelSource, now: f64) -> anyhow::Result<Recovered> {
    Ok(Recovered {
        core: core(source, config.aggregation.clone(), Snapshot::initial(source.initial(config.seed)?))?,
        state: RoundState::new(setup::rules(config), 0, Vec::new(), now),
        view: StatusView::new(Vec::new(), now),
    })
}

/// A federation that goes on from `snapshot`.
fn core(source: &ModelSource, settings: AggregationSettings, snapshot: Snapshot) -> Result<Core, ModelError> {
    Core::new(source.layout.clone(), settings, snapshot)
}

/// The aggregation settings that each round was begun with.
struct BegunWith<'a> {
    stored: BTreeMap<u64, Bytes>,
    today: &'a AggregationSettings,
}

impl BegunWith<'_> {
    /// Today's settings if the round has no updates yet, or if its journal is of a version that did not keep them.
    fn of(&self, round: u64) -> anyhow::Result<AggregationSettings> {
        let Some(settings) = self.stored.get(&round) else { return Ok(self.today.clone()) };
        serde_json::from_slice(settings)
            .with_context(|| format!("the settings that round {round} was begun with cannot be read"))
    }
}

/// Tells if the open round is finished under other settings than today's. It must be possible to finish it.
fn say_what_changes(core: &Core, config: &Config, open: &[Accepted]) -> Result<(), StoreError> {
    let settings = core.settings();
    if settings == config.aggregation {
        return Ok(());
    }
    let (round, begun_with) = (core.global().round, settings.strategy);
    let fewest = match config.round.deadline_s {
        Some(_) => config.round.min_at_deadline,
        None => config.round.min_clients,
    };
    if fewest < begun_with.least_updates() {
        let reason = format!(
            "{begun_with} needs {} updates, AGG_MIN_CLIENTS promises {fewest}",
            begun_with.least_updates()
        );
        return Err(StoreError::OtherStrategy { round, reason });
    }
    info!(
        round,
        pending_updates = open.len(),
        "STRATEGY={begun_with} and what belongs to it stay as this round was begun; today's settings hold from the \
         next round on"
    );
    Ok(())
}

/// Goes on with what `store` holds; an empty folder gets the first checkpoint. `keep` takes each round that was made
/// again from its journal, in order.
///
/// # Errors
/// If the state is damaged or belongs to another model.
pub(crate) fn recover(
    config: &Config,
    source: &ModelSource,
    store: &mut Store,
    now: f64,
    mut keep: impl FnMut(&Store, Snapshot, HistoryRecord),
) -> anyhow::Result<Recovered> {
    let Found { checkpoint, mut participants, history, settings, .. } = store.load()?;
    let Some(checkpoint) = checkpoint else {
        let recovered = fresh(config, source, now)?;
        let model = recovered.core.global().bytes.clone();
        store.write_checkpoint(&Snapshot::initial(model))?;
        return Ok(recovered);
    };
    source.check(&checkpoint.model)?;
    let begun_with = BegunWith { stored: settings, today: &config.aggregation };
    let mut newest = checkpoint.newest.clone();
    let core = core(source, begun_with.of(checkpoint.round)?, checkpoint)?;
    store.tidy(&history);
    let mut view = StatusView::new(history, now);
    let mut remade_rounds = 0;
    let open = remake_rounds(&core, store, config, &begun_with, &mut newest, |store, updates, outcome| {
        for (added, status) in updates {
            view.accepted(added.meta.worker_id.clone(), status.clone());
        }
        if let Some(ClosedOutcome { snapshot, record, .. }) = outcome {
            participants.push((snapshot.round - 1, snapshot.participants.clone()));
            view.round_closed(now);
            view.record(record.clone());
            remade_rounds += 1;
            keep(store, snapshot, record);
        }
    })?;
    let round = core.global().round;
    info!(round, pending_updates = open.len(), remade_rounds, "state loaded");
    let state = RoundState::new(setup::rules(config), round, participants, now);
    let accepted = open.into_iter().map(|(added, _)| (added.meta.worker_id, added.contribution));
    let state = state.with_newest(newest).with_accepted(accepted, now);
    Ok(Recovered { core, state, view })
}

/// Reads every file of the state without changing anything, and gives the round of its model.
///
/// # Errors
/// As [`recover`].
pub(crate) fn verify(config: &Config, source: &ModelSource, store: &mut Store) -> anyhow::Result<u64> {
    let Found { checkpoint, settings, .. } = store.load()?;
    let Some(checkpoint) = checkpoint else {
        source.initial(config.seed)?;
        return Ok(0);
    };
    source.check(&checkpoint.model)?;
    let begun_with = BegunWith { stored: settings, today: &config.aggregation };
    let mut newest = checkpoint.newest.clone();
    let core = core(source, begun_with.of(checkpoint.round)?, checkpoint)?;
    remake_rounds(&core, store, config, &begun_with, &mut newest, |_, _, _| ())?;
    Ok(core.global().round)
}

/// Makes the closed rounds since the checkpoint again and adds the open round's updates, which it gives. `each`
/// is told every round's updates, and what came of its close if it was closed.
fn remake_rounds(
    core: &Core,
    store: &mut Store,
    config: &Config,
    begun_with: &BegunWith<'_>,
    newest: &mut BTreeMap<WorkerId, u64>,
    mut each: impl FnMut(&Store, &[Accepted], Option<ClosedOutcome>),
) -> anyhow::Result<Vec<Accepted>> {
    let open = loop {
        let round = core.global().round;
        let Some((replayed, updates)) = replay(core, store, round)? else { break Vec::new() };
        let Some(closed) = replayed.closed else {
            each(store, &updates, None);
            break updates;
        };
        if core.settings().strategy.is_asynchronous() {
            let bases = updates.iter().map(|(added, _)| (added.meta.worker_id.clone(), added.meta.round));
            newest.extend(bases);
        }
        // The round after it goes on with the settings that it was begun with.
        core.configure(begun_with.of(round + 1)?);
        let outcome = core.close(&closed_round(round, &closed, &updates).with_newest(newest.clone()))?;
        each(store, &updates, Some(outcome));
    };
    core.configure(config.aggregation.clone());
    say_what_changes(core, config, &open)?;
    Ok(open)
}

/// A round's journal: its updates, added to the sum of the open round.
fn replay(core: &Core, store: &mut Store, round: u64) -> anyhow::Result<Option<(Replayed, Vec<Accepted>)>> {
    let mut updates = Vec::new();
    let mut visit = |record: Record| -> Result<(), StoreError> {
        let Record::Update { meta, body } = record else { return Ok(()) };
        // It was checked before it was written and its checksum holds: only another strategy has no use for it.
        let added = core
            .add_again(&body, meta.wire_bytes, meta.clip())
            .map_err(|rejection| StoreError::OtherStrategy { round, reason: rejection.msg })?;
        let status = worker_status(&added.meta, &meta);
        updates.push((added, status));
        Ok(())
    };
    Ok(store.replay(round, &mut visit)?.map(|replayed| (replayed, updates)))
}

fn closed_round(round: u64, closed: &Closed, updates: &[Accepted]) -> ClosedRound {
    let contributions =
        updates.iter().map(|(added, _)| (added.meta.worker_id.clone(), added.contribution.clone())).collect();
    ClosedRound::new(round, contributions, (closed.opened_ts, closed.closed_ts), closed.bytes_down)
}
