//! The state on disk: a checkpoint after every round, a journal of the updates since.
//!
//! ```text
//! STATE_DIR/lock                       held while a master uses the folder
//!           checkpoint-0000000012.fl   model of round 12 and what belongs to it
//!           journal-0000000012.fl      accepted updates for round 12
//!           history.jsonl              a line per finished round
//! ```
//! A start loads the newest valid checkpoint and replays the journals from its round on. The model
//! of a round is a function of the one before and of the journal, to the bit, so nothing else has
//! to be on disk before a round is announced.

pub mod checkpoint;
mod files;
mod history;
pub mod journal;
mod writer;

pub use checkpoint::Checkpoint;
pub use journal::{Journal, Record, RecordKind};
pub use writer::StoreWriter;

pub(crate) use history::MAX_RECORDS;

use crate::metrics::Metrics;
use fl_protocol::HistoryRecord;
use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};
use thiserror::Error;
use tracing::error;

/// What is wrong with the state on disk.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system refused a read or a write.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file that is not what was written.
    #[error("{path} is damaged ({reason}): restore it from a backup, or move it away to go on without it")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How it shows.
        reason: String,
    },
    /// State of another model.
    #[error(
        "{0} belongs to a model with other layers: use another STATE_DIR, or the MODEL and DATASET it was made with"
    )]
    OtherModel(PathBuf),
    /// The open round cannot be finished with these settings.
    #[error(
        "round {round} is open, and an update in it does not fit STRATEGY any more ({reason}): finish the round with the \
         STRATEGY it was begun with"
    )]
    OtherStrategy {
        /// The round.
        round: u64,
        /// What does not fit.
        reason: String,
    },
    /// Another process has the folder.
    #[error("{0} is in use by another master: stop it, or use another STATE_DIR")]
    Locked(PathBuf),
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.into() }
    }
}

/// What a start finds.
#[derive(Debug, Default)]
pub struct Found {
    /// The newest valid checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// Participants of the last finished rounds, the oldest first.
    pub participants: Vec<(u64, Vec<fl_protocol::WorkerId>)>,
    /// Records of the finished rounds, the oldest first.
    pub history: Vec<HistoryRecord>,
}

/// An opened state folder.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    fingerprint: [u8; 32],
    _lock: File,
}

impl Store {
    /// Opens the folder, creating it if need be, and locks it.
    ///
    /// # Errors
    /// If it cannot be used, or another master uses it.
    pub fn open(dir: &Path, fingerprint: [u8; 32]) -> Result<Self, StoreError> {
        files::create_dir(dir)?;
        let lock_path = dir.join("lock");
        let lock = files::open_private(&lock_path).map_err(StoreError::io("create", &lock_path))?;
        lock.try_lock().map_err(|error| match error {
            std::fs::TryLockError::WouldBlock => StoreError::Locked(dir.to_owned()),
            std::fs::TryLockError::Error(source) => {
                StoreError::Io { action: "lock", path: lock_path.clone(), source }
            }
        })?;
        Ok(Self { dir: dir.to_owned(), fingerprint, _lock: lock })
    }

    /// Loads what is there. A damaged checkpoint is named in the log and an older one is used.
    ///
    /// # Errors
    /// If there are checkpoints but none can be used, or they belong to another model.
    pub fn load(&self) -> Result<Found, StoreError> {
        let rounds = files::list(&self.dir, "checkpoint")?;
        let mut found = Found::default();
        let mut newest_error = None;
        for &round in rounds.iter().rev() {
            let path = files::path(&self.dir, "checkpoint", round);
            match Checkpoint::read(&path, &self.fingerprint, found.checkpoint.is_none()) {
                Ok(checkpoint) => {
                    if round > 0 {
                        found.participants.push((round - 1, checkpoint.participants.clone()));
                    }
                    found.checkpoint.get_or_insert(checkpoint);
                }
                Err(other @ StoreError::OtherModel(_)) => return Err(other),
                Err(damaged) => {
                    error!("{damaged}");
                    newest_error.get_or_insert(damaged);
                }
            }
        }
        found.participants.reverse();
        match (&found.checkpoint, newest_error) {
            (None, Some(damaged)) => return Err(damaged),
            (None, None) if !files::list(&self.dir, "journal")?.is_empty() => {
                return Err(StoreError::damaged(&self.dir, "it has a journal but no checkpoint"));
            }
            _ => {}
        }
        let last = found.checkpoint.as_ref().map_or(0, |c| c.round);
        found.history = history::load(&self.dir, last)?;
        Ok(found)
    }

    /// The journal of a round, read back: `None` if there is none.
    ///
    /// # Errors
    /// If it is damaged other than by a torn tail, or belongs to another model.
    pub fn replay(
        &self,
        round: u64,
        visit: &mut dyn FnMut(Record) -> Result<(), StoreError>,
    ) -> Result<Option<journal::Replayed>, StoreError> {
        journal::replay(&self.journal_path(round), round, &self.fingerprint, visit)
    }

    /// Writes the history anew with these records alone: a start does it, a check does not.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn rewrite_history(&self, records: &[HistoryRecord]) -> Result<(), StoreError> {
        history::rewrite(&self.dir, records)
    }

    /// Whether a round has a journal.
    pub fn has_journal(&self, round: u64) -> bool {
        self.journal_path(round).exists()
    }

    fn journal_path(&self, round: u64) -> PathBuf {
        files::path(&self.dir, "journal", round)
    }

    /// Writes a checkpoint now, in the calling thread.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn write_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        checkpoint.write(&files::path(&self.dir, "checkpoint", checkpoint.round), &self.fingerprint)
    }

    /// The model of a round whose checkpoint is still kept.
    ///
    /// # Errors
    /// If the file cannot be read or is damaged.
    pub fn model_of(&self, round: u64) -> Result<Option<bytes::Bytes>, StoreError> {
        let path = files::path(&self.dir, "checkpoint", round);
        if !path.exists() {
            return Ok(None);
        }
        Checkpoint::read(&path, &self.fingerprint, true).map(|checkpoint| Some(checkpoint.model))
    }

    /// Starts the thread that appends to the journal. `resume` is the open round's journal and its
    /// valid length.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn start_journal(&self, resume: Option<(u64, u64)>, metrics: Arc<Metrics>) -> io::Result<Journal> {
        Journal::start(self.dir.clone(), self.fingerprint, resume, metrics)
    }

    /// Starts the thread that writes checkpoints and history.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn start_writer(&self, keep_rounds: usize) -> io::Result<StoreWriter> {
        StoreWriter::start(self.dir.clone(), self.fingerprint, keep_rounds)
    }
}
