//! The state that survives a crash: a checkpoint after every round, a journal of the updates since.
//!
//! A start reads the newest checkpoint that can be read and follows the journals of closed rounds from there to
//! the open one: the model of a round is a function of the one before and of the journal, to the bit, so nothing
//! else has to be on disk before a round is announced. If a file names a round beyond what can be reached so, the
//! start is refused ([`StoreError::Incomplete`]), and [`Store::rollback_to`] is the way to go on without it.
//!
//! Where all this is stored is behind two traits ([`Log`], [`Snapshots`]); what is stored is the same everywhere.

mod chain;
#[cfg(test)]
mod chain_tests;
pub mod checkpoint;
mod error;
pub mod folder;
mod journal;
mod journal_format;
pub mod memory;
mod record;
mod traits;
mod writer;

pub use checkpoint::Checkpoint;
pub use error::StoreError;
pub use journal::Journal;
#[cfg(test)]
pub(crate) use journal::RoundLog;
#[cfg(test)]
pub(crate) use record::sample_history;
pub use record::{Closed, Record, RecordMeta, Replayed};
pub use traits::{Content, Log, Snapshots, StoredSnapshot, Visit};
pub(crate) use writer::Keeper;
pub use writer::StoreWriter;

use bytes::Bytes;
use checkpoint::Keep;
use fl_protocol::{HistoryRecord, WorkerId};
use std::{collections::BTreeMap, io, path::Path, sync::Arc, time::Duration};
use tracing::{error, warn};

/// Records of the history that are kept.
pub(crate) const MAX_RECORDS: usize = 10_000;

/// What a start finds.
#[derive(Debug, Default)]
pub struct Found {
    /// The newest checkpoint that can be read.
    pub checkpoint: Option<Checkpoint>,
    /// Number of the open round: from the checkpoint's round up to it, the rounds have journals and are closed.
    pub open_round: u64,
    /// The settings at the head of the journals from the checkpoint's round up to `open_round`, by round.
    pub settings: BTreeMap<u64, Bytes>,
    /// Participants of the last finished rounds, the oldest first.
    pub participants: Vec<(u64, Vec<WorkerId>)>,
    /// Records of the finished rounds, the oldest first.
    pub history: Vec<HistoryRecord>,
}

/// The stored state, before a master runs on it.
#[derive(Debug)]
pub struct Store {
    log: Box<dyn Log>,
    snapshots: Arc<dyn Snapshots>,
    fingerprint: [u8; 32],
}

/// The stored state under a running master.
#[derive(Debug)]
pub struct Durable {
    /// Appends updates.
    pub journal: Journal,
    /// Writes checkpoints.
    pub writer: StoreWriter,
    snapshots: Arc<dyn Snapshots>,
    fingerprint: [u8; 32],
}

impl Store {
    /// Opens a folder, creating it if need be, and locks it.
    ///
    /// # Errors
    /// If it cannot be used, or another master uses it.
    pub fn open(dir: &Path, fingerprint: [u8; 32]) -> Result<Self, StoreError> {
        let (log, snapshots) = folder::open(dir, fingerprint)?;
        Ok(Self::new(Box::new(log), Arc::new(snapshots), fingerprint))
    }

    /// A store of these parts, for a model of that fingerprint.
    pub fn new(log: Box<dyn Log>, snapshots: Arc<dyn Snapshots>, fingerprint: [u8; 32]) -> Self {
        Self { log, snapshots, fingerprint }
    }

    /// Reads what is there and checks that it is complete. Changes nothing.
    ///
    /// # Errors
    /// If the newest rounds cannot be restored, or the state belongs to another model.
    pub fn load(&mut self) -> Result<Found, StoreError> {
        chain::load(self)
    }

    /// Reads the log of a round back; `None` if there is none.
    ///
    /// # Errors
    /// If it is damaged other than by a torn tail, belongs to another model, or `visit` fails.
    pub fn replay(&mut self, round: u64, visit: &mut Visit<'_>) -> Result<Option<Replayed>, StoreError> {
        let replayed = self.log.replay(round, visit)?;
        let latest = self.latest_round()?;
        Ok(replayed.map(|replayed| chain::completed(replayed, round, latest)))
    }

    /// Puts in order what a crash has left behind, once the state has been found to be good. Nothing of it is
    /// needed, so a full disk is no reason not to start.
    pub fn tidy(&self, history: &[HistoryRecord]) {
        if let Err(error) = self.snapshots.tidy() {
            warn!("{error}");
        }
        let rewritten = self.snapshots.history().and_then(|stored| {
            if stored == history { Ok(()) } else { self.snapshots.rewrite_history(history) }
        });
        if let Err(error) = rewritten {
            error!("{error}; the history goes on behind the lines that are there");
        }
    }

    /// Writes a checkpoint now, in the calling thread.
    ///
    /// # Errors
    /// If the storage refuses.
    pub fn write_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        write(&*self.snapshots, &self.fingerprint, checkpoint)
    }

    /// Writes the checkpoint of a round that was made again from its journal, and its record.
    ///
    /// # Errors
    /// If the checkpoint cannot be written.
    pub fn write_remade(&self, checkpoint: &Checkpoint, record: &HistoryRecord) -> Result<(), StoreError> {
        // As the writer does: the line first.
        if let Err(error) = self.snapshots.append_history(record) {
            warn!("{error}");
        }
        self.write_checkpoint(checkpoint)
    }

    /// A round's checkpoint; `None` if there is none.
    fn checkpoint(&self, round: u64, keep: Keep) -> Result<Option<Checkpoint>, StoreError> {
        read(&*self.snapshots, &self.fingerprint, round, keep)
    }

    /// Goes back to `round`: moves every newer checkpoint, the journals from that round on and a copy of the
    /// history into an archive beside the state, and returns the archive's name. After a crash in the middle
    /// the state is as before, or refused, or gone back; the same call completes it.
    ///
    /// # Errors
    /// If that round cannot be restored, or the storage refuses.
    pub fn rollback_to(&mut self, round: u64) -> Result<String, StoreError> {
        chain::rollback_to(self, round)
    }

    /// Starts the threads that append to the log and that write checkpoints and history. `remade` are the rounds
    /// that were made again from their journals. `committed` is told how long each group of records took.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn start(
        self,
        keep_rounds: usize,
        remade: Vec<(Checkpoint, HistoryRecord)>,
        committed: impl Fn(Duration, usize) + Send + 'static,
    ) -> io::Result<Durable> {
        let Self { log, snapshots, fingerprint } = self;
        let journal = Journal::start(log, committed)?;
        let keeper = Keeper::new(snapshots.clone(), fingerprint, keep_rounds);
        let writer = StoreWriter::start(keeper, journal.clone(), remade)?;
        Ok(Durable { journal, writer, snapshots, fingerprint })
    }

    /// The newest round that a file names.
    fn latest_round(&self) -> Result<Option<u64>, StoreError> {
        Ok(self.log.rounds()?.pop().max(self.snapshots.rounds()?.pop()))
    }
}

impl Durable {
    /// The model of a round whose checkpoint is still kept.
    ///
    /// # Errors
    /// If the file cannot be read or is damaged.
    pub fn model_of(&self, round: u64) -> Result<Option<Bytes>, StoreError> {
        let checkpoint = read(&*self.snapshots, &self.fingerprint, round, Keep::Model)?;
        Ok(checkpoint.map(|checkpoint| checkpoint.model))
    }

    /// Waits until everything queued is on disk, or until it cannot be: the journal holds what a checkpoint
    /// lacks. Blocks: call it off the async threads.
    pub fn stop(&self) {
        self.writer.stop();
        self.journal.stop();
    }
}

/// Reads and verifies a round's checkpoint; `None` if there is none.
fn read(
    snapshots: &dyn Snapshots,
    fingerprint: &[u8; 32],
    round: u64,
    keep: Keep,
) -> Result<Option<Checkpoint>, StoreError> {
    let Some(stored) = snapshots.open(round)? else { return Ok(None) };
    let name = snapshots.name(round);
    let checkpoint = Checkpoint::decode(&name, stored, fingerprint, keep)?;
    if checkpoint.round != round {
        return Err(StoreError::damaged(&name, format!("it is of round {}", checkpoint.round)));
    }
    Ok(Some(checkpoint))
}

fn write(
    snapshots: &dyn Snapshots,
    fingerprint: &[u8; 32],
    checkpoint: &Checkpoint,
) -> Result<(), StoreError> {
    snapshots.write(checkpoint.round, &mut |out| checkpoint.encode(fingerprint, out))
}

/// The last record about each round up to `last`, the oldest first, at most [`MAX_RECORDS`].
fn newest_records(records: Vec<HistoryRecord>, last: u64) -> Vec<HistoryRecord> {
    let by_round: BTreeMap<u64, HistoryRecord> = records
        .into_iter()
        .filter(|record| record.round <= last)
        .map(|record| (record.round, record))
        .collect();
    let superfluous = by_round.len().saturating_sub(MAX_RECORDS);
    by_round.into_values().skip(superfluous).collect()
}
