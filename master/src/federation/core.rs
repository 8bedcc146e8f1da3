//! The server side of a federation without a server: what an update adds, and what the next model is.
//!
//! The service calls it from its threads, the simulator in virtual time, and the recovery after a crash with
//! what a journal holds. None of them closes a round in another way.

use super::{
    AggregationSettings,
    aggregate::Collector,
    intake::{Clip, Rejection, Term, UpdateCache, UpdateChecks, lazy::CachedUpdate},
    model::{self, Global},
    round::{ClosedRound, Contribution},
    step::ServerState,
};
use bytes::Bytes;
use fl_model::ModelError;
use fl_protocol::{Header, HistoryRecord, ModelLayout, UpdateMeta, WorkerId};
use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};
use thiserror::Error;

/// Why a round cannot be closed.
#[derive(Debug, Error)]
pub enum CloseError {
    /// The round is not the open one: it was closed before, or is yet to come.
    #[error("round {asked} cannot be closed: round {open} is open")]
    NotOpen {
        /// The round to be closed.
        asked: u64,
        /// The open one.
        open: u64,
    },
    /// The strategy cannot make a model of so few updates.
    #[error("{strategy} needs {needed} updates, the round has {found}")]
    TooFewUpdates {
        /// The strategy.
        strategy: String,
        /// Fewest updates.
        needed: usize,
        /// Updates of the round.
        found: usize,
    },
    /// The model's file cannot be read or written.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An earlier try was interrupted by a panic: what the round has collected is no longer whole. A restart makes
    /// it again from the journal.
    #[error("an earlier try to close this round was interrupted: restart the master")]
    Interrupted,
}

/// Everything that must survive a crash between two rounds.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Round of the model: finished aggregations so far.
    pub round: u64,
    /// Participants of the round that made this model, sorted.
    pub participants: Vec<WorkerId>,
    /// Asynchronous operation: the model that each worker's newest update was trained from.
    pub newest: BTreeMap<WorkerId, u64>,
    /// The model as a safetensors file.
    pub model: Bytes,
    /// The strategy's state between rounds, shared with the open round: whoever closes that while the snapshot is
    /// kept copies it.
    pub server: Arc<ServerState>,
    /// Lazy upload: the last update of every worker.
    pub last_updates: BTreeMap<WorkerId, CachedUpdate>,
}

impl Snapshot {
    /// The state before the first round.
    pub fn initial(model: Bytes) -> Self {
        Self {
            round: 0,
            participants: Vec::new(),
            newest: BTreeMap::new(),
            model,
            server: Arc::default(),
            last_updates: BTreeMap::new(),
        }
    }
}

/// The result of closing a round.
#[derive(Debug, Clone)]
pub struct ClosedOutcome {
    /// The next model.
    pub global: Arc<Global>,
    /// The checkpoint to store.
    pub snapshot: Snapshot,
    /// The record for the history.
    pub record: HistoryRecord,
}

/// An update that is in the sum of the open round.
#[derive(Debug, Clone)]
pub struct Added {
    /// What the worker says of it.
    pub meta: UpdateMeta,
    /// What it counts for.
    pub contribution: Contribution,
    /// The factor that its norm was clipped by. A replay needs it to add the same term again.
    pub clip: Clip,
}

/// A federation's model and the sums of the open round.
#[derive(Debug)]
pub struct Core {
    layout: ModelLayout,
    open: RwLock<OpenRound>,
}

#[derive(Debug)]
struct OpenRound {
    /// The settings that this round was begun with: a journal may hold others than those of today.
    settings: AggregationSettings,
    /// The same with the limits of today, which new updates are checked against.
    limited: AggregationSettings,
    /// The settings of the rounds that open from now on.
    next_settings: AggregationSettings,
    global: Arc<Global>,
    server: Arc<ServerState>,
    collector: Collector,
    cache: UpdateCache,
    /// Set while a close changes the fields above in place.
    is_closing: bool,
}

impl Core {
    /// Goes on from `snapshot` under `settings`.
    ///
    /// # Errors
    /// If the snapshot's model cannot be read.
    pub fn new(
        layout: ModelLayout,
        settings: AggregationSettings,
        snapshot: Snapshot,
    ) -> Result<Self, ModelError> {
        let server = Arc::new(Arc::unwrap_or_clone(snapshot.server).named_for(settings.strategy));
        let global = Global::new(snapshot.round, snapshot.model).completed(&settings, &server)?;
        let open = OpenRound {
            global: Arc::new(global),
            server,
            collector: Collector::new(settings.strategy, layout.parameters()),
            cache: UpdateCache::open(&settings, snapshot.last_updates),
            is_closing: false,
            next_settings: settings.clone(),
            limited: settings.clone(),
            settings,
        };
        Ok(Self { layout, open: RwLock::new(open) })
    }

    /// Sets the settings of the rounds that open from now on. The open round keeps those it was begun with, but
    /// its further updates are checked against the new limits.
    pub fn configure(&self, settings: AggregationSettings) {
        let mut open = self.open_mut();
        open.limited = open.settings.with_limits_of(&settings);
        open.next_settings = settings;
    }

    /// The model's tensors.
    pub fn layout(&self) -> &ModelLayout {
        &self.layout
    }

    /// Parameters of the model.
    pub fn num_parameters(&self) -> usize {
        self.layout.parameters()
    }

    /// The newest model.
    pub fn global(&self) -> Arc<Global> {
        self.open().global.clone()
    }

    /// The settings of the open round.
    pub fn settings(&self) -> AggregationSettings {
        self.open().settings.clone()
    }

    /// Adds an update container, or the worker's last update if `body` is a notice, to the open round. Any
    /// number of threads may do so at the same time. [`Self::confirm`] or [`Self::remove`] must follow.
    ///
    /// # Errors
    /// Why it is refused; nothing has changed then.
    pub fn add(&self, body: &[u8], wire_bytes: u64) -> Result<Added, Rejection> {
        self.add_read(&Header::read(body)?, body, wire_bytes)
    }

    /// [`Self::add`] for a body whose header has been read.
    ///
    /// # Errors
    /// Why it is refused; nothing has changed then.
    pub fn add_read(&self, header: &Header, body: &[u8], wire_bytes: u64) -> Result<Added, Rejection> {
        self.add_judged(header, body, wire_bytes, None)
    }

    /// Adds an update that was accepted before a restart, with the factor that its norm was clipped by then.
    /// Limits are not looked at again: an acknowledged update counts as it was accepted.
    ///
    /// # Errors
    /// If the settings of the open round have no use for it.
    pub fn add_again(&self, body: &Bytes, wire_bytes: u64, clip: Option<Clip>) -> Result<Added, Rejection> {
        let added =
            self.add_judged(&Header::read(body)?, body, wire_bytes, Some(clip.unwrap_or(Clip::NONE)))?;
        self.confirm(&added.meta, body);
        Ok(added)
    }

    fn add_judged(
        &self,
        header: &Header,
        body: &[u8],
        wire_bytes: u64,
        accepted: Option<Clip>,
    ) -> Result<Added, Rejection> {
        let open = self.open();
        self.checks(&open, accepted).with_term(header, body, open.global.round, |term| {
            term.add_to(&open.collector)?;
            Ok(Added {
                meta: term.meta.clone(),
                contribution: contribution(term, wire_bytes),
                clip: term.clip,
            })
        })
    }

    /// An added update is durable: with lazy upload it can be referred to from now on.
    pub fn confirm(&self, meta: &UpdateMeta, body: &Bytes) {
        self.open().cache.insert(meta, body);
    }

    /// Takes an added update out again: the sum is as if it had never been there.
    pub fn remove(&self, header: &Header, body: &[u8]) {
        let open = self.open();
        // It was checked when it was added: that it is refused now cannot be.
        let _ = self.checks(&open, None).with_term(header, body, open.global.round, |term| {
            term.take_from(&open.collector);
            Ok(())
        });
    }

    /// Whether a notice can be taken: in this round it then is.
    pub fn takes_notice(&self, notice: &[u8]) -> bool {
        let open = self.open();
        let Ok(header) = Header::read(notice) else { return false };
        self.checks(&open, None).with_term(&header, notice, open.global.round, |_| Ok(())).is_ok()
    }

    fn checks<'a>(&'a self, open: &'a OpenRound, accepted: Option<Clip>) -> UpdateChecks<'a> {
        UpdateChecks {
            layout: &self.layout,
            settings: &open.limited,
            cache: &open.cache,
            effective_steps: open.server.effective_steps(),
            accepted,
        }
    }

    /// Makes the next model of the updates that were added and opens its round. The only way to close a round:
    /// a function of the model, the server's state and the updates, to the bit.
    ///
    /// # Errors
    /// Nothing has changed then, and the same call may be made again.
    pub fn close(&self, closed: &ClosedRound) -> Result<ClosedOutcome, CloseError> {
        let mut open = self.open_mut();
        if open.is_closing {
            return Err(CloseError::Interrupted);
        }
        if closed.round != open.global.round {
            return Err(CloseError::NotOpen { asked: closed.round, open: open.global.round });
        }
        let strategy = open.settings.strategy;
        if closed.num_updates() < strategy.least_updates() {
            return Err(CloseError::TooFewUpdates {
                strategy: strategy.to_string(),
                needed: strategy.least_updates(),
                found: closed.num_updates(),
            });
        }
        // The step works in place and gives the sum's memory back: after a panic it must not be tried again.
        open.is_closing = true;
        let OpenRound { settings, next_settings, global, server, collector, is_closing, .. } = &mut *open;
        let next = next_settings.clone();
        let model = model::next(global, settings, Arc::make_mut(server), collector, &closed.weights())
            .inspect_err(|_| *is_closing = false)?;
        // Nothing fails from here on, because the model was written just now.
        let global = Arc::new(model.completed(&next, server)?);
        if next.strategy == strategy {
            open.collector.reset();
        } else {
            open.collector = Collector::new(next.strategy, self.layout.parameters());
        }
        open.cache.evict(global.round);
        let last_updates = open.cache.snapshot();
        open.cache = UpdateCache::open(&next, last_updates.clone());
        open.limited = next.clone();
        open.settings = next;
        open.global = global.clone();
        open.is_closing = false;
        let snapshot = Snapshot {
            round: global.round,
            participants: closed.participants(),
            newest: closed.newest.clone(),
            model: global.bytes.clone(),
            server: open.server.clone(),
            last_updates,
        };
        Ok(ClosedOutcome { global, snapshot, record: closed.record(self.layout.parameters()) })
    }

    fn open(&self) -> RwLockReadGuard<'_, OpenRound> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A panic under this lock leaves the round as it was, or marked as one that is being closed.
    fn open_mut(&self) -> RwLockWriteGuard<'_, OpenRound> {
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an accepted update counts for.
fn contribution(term: &Term<'_>, wire_bytes: u64) -> Contribution {
    let (meta, weight) = (&term.meta, term.weight());
    Contribution {
        num_samples: meta.num_samples,
        local_norm: weight.local_norm,
        norm: weight.norm,
        base: meta.round,
        loss: meta.loss,
        bytes: wire_bytes,
        reused_bytes: term.reused_bytes,
        metrics: meta.metrics.clone(),
    }
}

#[cfg(test)]
#[path = "core_tests.rs"]
mod tests;
