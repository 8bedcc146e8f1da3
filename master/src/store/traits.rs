//! What the state is stored in: a log of the open round's records, and snapshots between rounds.
//!
//! The implementations are a folder ([`super::folder`]) and memory ([`super::memory`]). Whoever holds a log
//! has the state to itself: the constructor sees to that, by a lock file in a folder.

use super::{Record, Replayed, StoreError};
use fl_protocol::HistoryRecord;
use std::{
    fmt, io,
    io::{Read, Write},
    path::PathBuf,
};

/// Takes the records of a replay, in order.
pub type Visit<'a> = dyn FnMut(Record) -> Result<(), StoreError> + 'a;

/// A snapshot to be read, from the beginning.
pub struct StoredSnapshot {
    /// Bytes of the content.
    pub len: u64,
    /// The content.
    pub content: Box<dyn Read + Send>,
}

/// Writes a snapshot's content; may be called again after a failure.
pub type Content<'a> = dyn FnMut(&mut dyn Write) -> io::Result<()> + 'a;

/// The records of rounds, each round a log of its own. Written by one thread.
pub trait Log: Send + fmt::Debug {
    /// Rounds that have a log, ascending.
    ///
    /// # Errors
    /// If they cannot be listed.
    fn rounds(&self) -> Result<Vec<u64>, StoreError>;

    /// Reads a round's log back; `None` if there is none. What was synced is read, and of what was not
    /// any number of whole records. What is read is durable from then on: a process that was killed may have
    /// appended it without a sync, and whoever sends it again is told that it is there. Nothing is changed.
    ///
    /// # Errors
    /// If something that was synced cannot be read, the log belongs to another model, or `visit` fails.
    fn replay(&mut self, round: u64, visit: &mut Visit<'_>) -> Result<Option<Replayed>, StoreError>;

    /// Appends a record after what a replay reads. It survives a crash only after [`Log::sync`].
    ///
    /// # Errors
    /// If the storage refuses. All records since the last sync are dropped then.
    fn append(&mut self, round: u64, record: &Record) -> Result<(), StoreError>;

    /// Makes the appended records durable, all of one round.
    ///
    /// # Errors
    /// If the storage refuses. All records since the last sync are dropped then.
    fn sync(&mut self) -> Result<(), StoreError>;

    /// Removes a round's log. After a crash it may be there again.
    ///
    /// # Errors
    /// If the storage refuses.
    fn remove(&mut self, round: u64) -> Result<(), StoreError>;

    /// Moves the logs of `rounds` into an archive made by [`Snapshots::new_archive`]. After a crash none is
    /// lost; once this returns they do not come back.
    ///
    /// # Errors
    /// If the storage refuses; some may have been moved.
    fn archive(&mut self, rounds: &[u64], archive: &str) -> Result<(), StoreError>;

    /// Names a round's log to people.
    fn name(&self, round: u64) -> PathBuf;
}

/// Snapshots of the state between rounds, and the history. Written by one thread, read by many.
pub trait Snapshots: Send + Sync + fmt::Debug {
    /// Rounds that have a snapshot, ascending.
    ///
    /// # Errors
    /// If they cannot be listed.
    fn rounds(&self) -> Result<Vec<u64>, StoreError>;

    /// A round's snapshot; `None` if there is none.
    ///
    /// # Errors
    /// If the storage refuses.
    fn open(&self, round: u64) -> Result<Option<StoredSnapshot>, StoreError>;

    /// Writes a snapshot, all at once: whenever a crash comes, the old content or the new one is there. It
    /// is durable once this returns.
    ///
    /// # Errors
    /// If the storage refuses; what was there before is still there then.
    fn write(&self, round: u64, content: &mut Content<'_>) -> Result<(), StoreError>;

    /// Removes a snapshot. After a crash it may be there again.
    ///
    /// # Errors
    /// If the storage refuses.
    fn remove(&self, round: u64) -> Result<(), StoreError>;

    /// The records of the history as they were appended, without those that a compaction dropped.
    ///
    /// # Errors
    /// If the storage refuses.
    fn history(&self) -> Result<Vec<HistoryRecord>, StoreError>;

    /// Appends a record to the history. The last record about a round counts. A crash may lose what was
    /// appended since the last [`Snapshots::rewrite_history`].
    ///
    /// # Errors
    /// If the storage refuses.
    fn append_history(&self, record: &HistoryRecord) -> Result<(), StoreError>;

    /// Replaces the history, all at once and durably.
    ///
    /// # Errors
    /// If the storage refuses; what was there before is still there then.
    fn rewrite_history(&self, records: &[HistoryRecord]) -> Result<(), StoreError>;

    /// Removes what interrupted writes have left behind.
    ///
    /// # Errors
    /// If the storage refuses.
    fn tidy(&self) -> Result<(), StoreError>;

    /// Makes a new archive with a copy of the history, and gives its name.
    ///
    /// # Errors
    /// If the storage refuses.
    fn new_archive(&self) -> Result<String, StoreError>;

    /// Moves the snapshots of `rounds` into an archive, as [`Log::archive`] does.
    ///
    /// # Errors
    /// If the storage refuses; some may have been moved.
    fn archive(&self, rounds: &[u64], archive: &str) -> Result<(), StoreError>;

    /// Names a round's snapshot to people.
    fn name(&self, round: u64) -> PathBuf;
}
