//! Recovery: restores the state of a federation from the store.
//!
//! A checkpoint may lag behind: the model of a round is a function of the one before and of its
//! journal, so the rounds since are made again from their journals, to the bit.

use super::{ingest::worker_status, view::StatusView};
use crate::{
    federation::{
        Added, AggregationSettings, Core, Snapshot,
        round::{ClosedRound, RoundState},
    },
    settings::Config,
    setup,
    source::ModelSource,
    store::{Closed, Found, Record, Replayed, Store, StoreError},
};
use anyhow::Context;
use fl_model::ModelError;
use fl_protocol::{HistoryRecord, WorkerStatus};
use tracing::info;

/// Everything that a master goes on with.
pub(crate) struct Recovered {
    pub(crate) core: Core,
    pub(crate) state: RoundState,
    pub(crate) view: StatusView,
    /// Rounds that were made again from their journals, to be written.
    pub(crate) remade: Vec<(Snapshot, HistoryRecord)>,
}

/// One accepted update as the journal has it.
type Accepted = (Added, WorkerStatus);

/// Starts without a state on disk.
pub(crate) fn fresh(config: &Config, source: &ModelSource, now: f64) -> anyhow::Result<Recovered> {
    Ok(Recovered {
        core: core(source, config.aggregation.clone(), Snapshot::initial(source.initial(config.seed)?))?,
        state: RoundState::new(setup::rules(config), 0, Vec::new(), now),
        view: StatusView::new(Vec::new(), now),
        remade: Vec::new(),
    })
}

/// A federation that goes on from `snapshot`.
fn core(source: &ModelSource, settings: AggregationSettings, snapshot: Snapshot) -> Result<Core, ModelError> {
    Core::new(source.layout.clone(), settings, snapshot)
}

/// The aggregation settings that a round was begun with; those of today if it has no updates yet, or if its
/// journal is of a version that did not keep them.
fn settings_of(store: &mut Store, round: u64, config: &Config) -> anyhow::Result<AggregationSettings> {
    let replayed = store.replay(round, &mut |_| Ok(()))?;
    let Some(settings) = replayed.and_then(|replayed| replayed.settings) else {
        return Ok(config.aggregation.clone());
    };
    serde_json::from_slice(&settings)
        .with_context(|| format!("the settings that round {round} was begun with cannot be read"))
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

/// Goes on with what `store` holds; an empty folder gets the first checkpoint.
///
/// # Errors
/// If the state is damaged or belongs to another model.
pub(crate) fn recover(
    config: &Config,
    source: &ModelSource,
    store: &mut Store,
    now: f64,
) -> anyhow::Result<Recovered> {
    let Found { checkpoint, mut participants, history, .. } = store.load()?;
    let Some(checkpoint) = checkpoint else {
        let recovered = fresh(config, source, now)?;
        let model = recovered.core.global().bytes.clone();
        store.write_checkpoint(&Snapshot::initial(model))?;
        return Ok(recovered);
    };
    source.check(&checkpoint.model)?;
    let mut newest = checkpoint.newest.clone();
    let core = core(source, settings_of(store, checkpoint.round, config)?, checkpoint)?;
    store.tidy(&history);
    let mut view = StatusView::new(history, now);
    let mut remade = Vec::new();
    let open = loop {
        let round = core.global().round;
        let Some((replayed, updates)) = replay(&core, store, round)? else { break Vec::new() };
        for (added, status) in &updates {
            view.accepted(added.meta.worker_id.clone(), status.clone());
        }
        let Some(closed) = replayed.closed else { break updates };
        if core.settings().strategy.is_asynchronous() {
            let bases = updates.iter().map(|(added, _)| (added.meta.worker_id.clone(), added.meta.round));
            newest.extend(bases);
        }
        // The round after it goes on with the settings that it was begun with.
        core.configure(settings_of(store, round + 1, config)?);
        let outcome = core.close(&closed_round(round, &closed, &updates).with_newest(newest.clone()))?;
        participants.push((round, outcome.snapshot.participants.clone()));
        view.round_closed(now);
        view.record(outcome.record.clone());
        remade.push((outcome.snapshot, outcome.record));
    };
    core.configure(config.aggregation.clone());
    let round = core.global().round;
    say_what_changes(&core, config, &open)?;
    info!(round, pending_updates = open.len(), remade_rounds = remade.len(), "state loaded");
    let state = RoundState::new(setup::rules(config), round, participants, now);
    let accepted = open.into_iter().map(|(added, _)| (added.meta.worker_id, added.contribution));
    let state = state.with_newest(newest).with_accepted(accepted, now);
    Ok(Recovered { core, state, view, remade })
}

/// Reads every file of the state without changing anything.
///
/// # Errors
/// As [`recover`].
pub(crate) fn verify(config: &Config, source: &ModelSource, store: &mut Store) -> anyhow::Result<u64> {
    let Some(checkpoint) = store.load()?.checkpoint else { return Ok(0) };
    source.check(&checkpoint.model)?;
    let core = core(source, settings_of(store, checkpoint.round, config)?, checkpoint)?;
    let mut round = core.global().round;
    while let Some((Replayed { closed: Some(closed), .. }, updates)) = replay(&core, store, round)? {
        core.configure(settings_of(store, round + 1, config)?);
        core.close(&closed_round(round, &closed, &updates))?;
        round += 1;
    }
    core.configure(config.aggregation.clone());
    say_what_changes(&core, config, &[])?;
    Ok(round)
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
