//! The state in memory. [`Memory::crash`] loses what was not synced, so that a test can tell a place that needs
//! a sync from one that does not.
//!
//! The logs are the bytes that a folder would hold: a crash can leave any part of a record that was not synced.

use super::{
    Log, Record, Replayed, Snapshots, StoreError, StoredSnapshot,
    journal_format::{self, Layout, Position},
    traits::{Content, Visit},
};
use bytes::Bytes;
use fl_protocol::HistoryRecord;
use std::{
    collections::BTreeMap,
    io::{self, Cursor},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What a test can leave out, to see that it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemorySync {
    /// [`Log::sync`] says that it worked and does nothing.
    Log,
    /// [`Log::replay`] reads what is not durable.
    Replay,
    /// [`Snapshots::write`] does not make durable what it has written.
    Snapshot,
}

/// What outlives the processes that use it.
#[derive(Debug, Clone)]
pub struct Memory(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// Crashes so far. What an earlier process holds is dead.
    crashes: u64,
    random: Random,
    left_out: Option<MemorySync>,
    is_full: bool,
    interrupts_syncs: bool,
    logs: BTreeMap<u64, Versions<LogFile>>,
    snapshots: BTreeMap<u64, Versions<Bytes>>,
    history: Vec<HistoryRecord>,
    durable_history: Vec<HistoryRecord>,
    archives: Vec<Archive>,
}

/// A file as it is seen, and as a crash may leave it.
#[derive(Debug)]
struct Versions<T> {
    seen: Option<T>,
    durable: Option<T>,
}

#[derive(Debug, Clone, PartialEq)]
struct LogFile {
    bytes: Vec<u8>,
    position: Position,
}

/// What a rollback has left.
#[derive(Debug, Default)]
struct Archive {
    logs: Vec<u64>,
    snapshots: Vec<u64>,
}

/// SplitMix64: small, seeded, good enough to choose what survives.
#[derive(Debug, Default)]
pub(crate) struct Random(pub(crate) u64);

/// The logs in a [`Memory`].
#[derive(Debug)]
pub struct MemoryLog {
    memory: Memory,
    crashes: u64,
    fingerprint: [u8; 32],
    /// The round that was appended to since the last sync.
    dirty: Option<u64>,
}

/// The snapshots in a [`Memory`].
#[derive(Debug)]
pub struct MemorySnapshots {
    memory: Memory,
    crashes: u64,
}

impl Memory {
    /// Empty; `seed` decides what survives crashes.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner { random: Random(seed), ..Inner::default() })))
    }

    /// What a process works with, until the next crash.
    pub fn parts(&self, fingerprint: [u8; 32]) -> (MemoryLog, MemorySnapshots) {
        let crashes = self.lock().crashes;
        let log = MemoryLog { memory: self.clone(), crashes, fingerprint, dirty: None };
        (log, MemorySnapshots { memory: self.clone(), crashes })
    }

    /// Leaves a sync out from now on.
    pub fn leave_out(&self, sync: Option<MemorySync>) {
        self.lock().left_out = sync;
    }

    /// Refuses every write from now on, or takes them again.
    pub fn set_full(&self, is_full: bool) {
        self.lock().is_full = is_full;
    }

    /// Makes every sync of a log fail as interrupted, for a process that ends at that moment.
    pub fn interrupt_syncs(&self, interrupts: bool) {
        self.lock().interrupts_syncs = interrupts;
    }

    /// Ends the processes that use it, and nothing else.
    pub fn kill(&self) {
        self.lock().crashes += 1;
    }

    /// Ends the processes that use it. Of what was not durable, some survives: any part of what was appended
    /// to a log, a removal or not, the end of the history or not.
    pub fn crash(&self) {
        let inner = &mut *self.lock();
        inner.crashes += 1;
        let random = &mut inner.random;
        for log in inner.logs.values_mut() {
            log.crash(random, |seen, durable, random| {
                let kept = durable.map_or(0, |durable| durable.bytes.len()).min(seen.bytes.len());
                let survives = kept + random.below(seen.bytes.len() - kept + 1);
                seen.bytes.truncate(survives);
                // A block that was not written reads as zeros.
                if survives > kept && random.below(4) == 0 {
                    let hole = kept + random.below(survives - kept);
                    seen.bytes[hole..].iter_mut().take(512).for_each(|byte| *byte = 0);
                }
            });
        }
        for snapshot in inner.snapshots.values_mut() {
            snapshot.crash(random, |seen, _, random| seen.truncate(random.below(seen.len() + 1)));
        }
        let survives = random.below(inner.history.len() + 1);
        inner.history.truncate(survives);
        if inner.history.len() < inner.durable_history.len() {
            inner.history.clone_from(&inner.durable_history);
        }
    }

    /// Rounds of the logs and of the snapshots in the archives, in the order in which they were moved.
    pub fn archived(&self) -> (Vec<u64>, Vec<u64>) {
        let inner = self.lock();
        let of =
            |rounds: fn(&Archive) -> &Vec<u64>| inner.archives.iter().flat_map(rounds).copied().collect();
        (of(|archive| &archive.logs), of(|archive| &archive.snapshots))
    }

    /// Changes the bytes of a round's snapshot, as a failing disk would.
    pub fn damage_snapshot(&self, round: u64) {
        if let Some(bytes) = self.lock().snapshots.get_mut(&round) {
            let mut bad = bytes.durable.as_deref().unwrap_or_default().to_vec();
            let middle = bad.len() / 2;
            if let Some(byte) = bad.get_mut(middle) {
                *byte ^= 1;
            }
            *bytes = Versions::durable(bad.into());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a process that began after so many crashes.
    fn lock_for(&self, crashes: u64, path: &Path) -> Result<MutexGuard<'_, Inner>, StoreError> {
        let inner = self.lock();
        match inner.crashes == crashes {
            true => Ok(inner),
            false => Err(StoreError::io("use", path)(io::Error::other("the process has crashed"))),
        }
    }

    fn writable(&self, crashes: u64, path: &Path) -> Result<MutexGuard<'_, Inner>, StoreError> {
        let inner = self.lock_for(crashes, path)?;
        match inner.is_full {
            false => Ok(inner),
            true => Err(StoreError::io("write", path)(io::ErrorKind::StorageFull.into())),
        }
    }
}

impl<T: Clone + PartialEq> Versions<T> {
    fn durable(value: T) -> Self {
        Self { seen: Some(value.clone()), durable: Some(value) }
    }

    /// Either version survives, or what `tear` leaves of the one that was seen.
    fn crash(&mut self, random: &mut Random, tear: impl FnOnce(&mut T, Option<&T>, &mut Random)) {
        if self.seen == self.durable {
            return;
        }
        match (&mut self.seen, random.below(4)) {
            (_, 0) => self.seen.clone_from(&self.durable),
            (Some(seen), 1 | 2) => tear(seen, self.durable.as_ref(), random),
            _ => {}
        }
        self.durable.clone_from(&self.seen);
    }
}

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

impl Log for MemoryLog {
    fn rounds(&self) -> Result<Vec<u64>, StoreError> {
        let inner = self.memory.lock_for(self.crashes, "memory".as_ref())?;
        Ok(inner.logs.iter().filter(|(_, log)| log.seen.is_some()).map(|(round, _)| *round).collect())
    }

    fn replay(&mut self, round: u64, visit: &mut Visit<'_>) -> Result<Option<Replayed>, StoreError> {
        let name = self.name(round);
        let bytes = {
            let inner = self.memory.lock_for(self.crashes, &name)?;
            let Some(log) = inner.logs.get(&round).and_then(|log| log.seen.as_ref()) else { return Ok(None) };
            log.bytes.clone()
        };
        let (replayed, position) =
            journal_format::read(&mut Cursor::new(bytes), &name, round, &self.fingerprint, visit)?;
        let mut inner = self.memory.lock_for(self.crashes, &name)?;
        let left_out = inner.left_out == Some(MemorySync::Replay);
        if let Some(log) = inner.logs.get_mut(&round) {
            if let Some(seen) = &mut log.seen {
                seen.position = position.unwrap_or(Position { len: 0, layout: seen.position.layout });
            }
            if !left_out {
                log.durable.clone_from(&log.seen);
            }
        }
        Ok(Some(replayed))
    }

    fn append(&mut self, round: u64, record: &Record) -> Result<(), StoreError> {
        let name = self.name(round);
        let fingerprint = self.fingerprint;
        let is_first = self.dirty.replace(round) != Some(round);
        let mut inner = self.memory.writable(self.crashes, &name).inspect_err(|_| self.dirty = None)?;
        let nonce = inner.random.next().to_le_bytes();
        let versions = inner.logs.entry(round).or_insert(Versions { seen: None, durable: None });
        let log = versions.seen.get_or_insert(LogFile {
            bytes: Vec::new(),
            position: Position { len: 0, layout: Layout::V2(nonce) },
        });
        let Position { len, layout } = log.position;
        if is_first {
            log.bytes.truncate(len as usize);
        }
        if log.bytes.is_empty() {
            log.bytes = layout.header(round, &fingerprint);
        }
        let (head, body) = layout.encode(record, len).map_err(StoreError::io("write", &name))?;
        log.bytes.extend(head);
        log.bytes.extend(body);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        let Some(round) = self.dirty.take() else { return Ok(()) };
        let mut inner = self.memory.writable(self.crashes, &self.name(round))?;
        if inner.interrupts_syncs {
            return Err(StoreError::io("sync", &self.name(round))(io::ErrorKind::Interrupted.into()));
        }
        let left_out = inner.left_out == Some(MemorySync::Log);
        if let Some(log) = inner.logs.get_mut(&round) {
            if let Some(seen) = &mut log.seen {
                seen.position.len = seen.bytes.len() as u64;
            }
            if !left_out {
                log.durable.clone_from(&log.seen);
            }
        }
        Ok(())
    }

    fn remove(&mut self, round: u64) -> Result<(), StoreError> {
        let mut inner = self.memory.lock_for(self.crashes, &self.name(round))?;
        if let Some(log) = inner.logs.get_mut(&round) {
            log.seen = None;
        }
        Ok(())
    }

    fn archive(&mut self, rounds: &[u64], _: &str) -> Result<(), StoreError> {
        let mut inner = self.memory.lock_for(self.crashes, "memory".as_ref())?;
        inner.logs.retain(|round, _| !rounds.contains(round));
        if let Some(archive) = inner.archives.last_mut() {
            archive.logs.extend(rounds);
        }
        Ok(())
    }

    fn name(&self, round: u64) -> PathBuf {
        format!("memory/journal-{round}").into()
    }
}

impl Snapshots for MemorySnapshots {
    fn rounds(&self) -> Result<Vec<u64>, StoreError> {
        let inner = self.memory.lock_for(self.crashes, "memory".as_ref())?;
        Ok(inner.snapshots.iter().filter(|(_, file)| file.seen.is_some()).map(|(round, _)| *round).collect())
    }

    fn open(&self, round: u64) -> Result<Option<StoredSnapshot>, StoreError> {
        let inner = self.memory.lock_for(self.crashes, &self.name(round))?;
        let content = inner.snapshots.get(&round).and_then(|file| file.seen.clone());
        Ok(content.map(|content| StoredSnapshot {
            len: content.len() as u64,
            content: Box::new(Cursor::new(content)),
        }))
    }

    fn write(&self, round: u64, content: &mut Content<'_>) -> Result<(), StoreError> {
        let name = self.name(round);
        let mut bytes = Vec::new();
        content(&mut bytes).map_err(StoreError::io("write", &name))?;
        let mut inner = self.memory.writable(self.crashes, &name)?;
        let left_out = inner.left_out == Some(MemorySync::Snapshot);
        let file = inner.snapshots.entry(round).or_insert(Versions { seen: None, durable: None });
        file.seen = Some(bytes.into());
        if !left_out {
            file.durable.clone_from(&file.seen);
        }
        Ok(())
    }

    fn remove(&self, round: u64) -> Result<(), StoreError> {
        let mut inner = self.memory.lock_for(self.crashes, &self.name(round))?;
        if let Some(file) = inner.snapshots.get_mut(&round) {
            file.seen = None;
        }
        Ok(())
    }

    fn history(&self) -> Result<Vec<HistoryRecord>, StoreError> {
        Ok(self.memory.lock_for(self.crashes, "memory/history".as_ref())?.history.clone())
    }

    fn append_history(&self, record: &HistoryRecord) -> Result<(), StoreError> {
        self.memory.writable(self.crashes, "memory/history".as_ref())?.history.push(record.clone());
        Ok(())
    }

    fn rewrite_history(&self, records: &[HistoryRecord]) -> Result<(), StoreError> {
        let mut inner = self.memory.writable(self.crashes, "memory/history".as_ref())?;
        inner.history = records.to_vec();
        inner.durable_history = records.to_vec();
        Ok(())
    }

    fn tidy(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn new_archive(&self) -> Result<String, StoreError> {
        let mut inner = self.memory.writable(self.crashes, "memory".as_ref())?;
        inner.archives.push(Archive::default());
        Ok(format!("archive-{}", inner.archives.len()))
    }

    fn archive(&self, rounds: &[u64], _: &str) -> Result<(), StoreError> {
        let mut inner = self.memory.lock_for(self.crashes, "memory".as_ref())?;
        inner.snapshots.retain(|round, _| !rounds.contains(round));
        if let Some(archive) = inner.archives.last_mut() {
            archive.snapshots.extend(rounds);
        }
        Ok(())
    }

    fn name(&self, round: u64) -> PathBuf {
        format!("memory/checkpoint-{round}").into()
    }
}
