//! A journal file for each round.

use super::{
    Folder, Kind,
    disk::{DiskFile, SyncPoint},
};
use crate::store::{
    Log, Record, Replayed, StoreError,
    journal_format::{self, Layout, Position},
    traits::Visit,
};
use std::{
    io::{self, Seek, SeekFrom, Write},
    path::PathBuf,
    sync::Arc,
};

/// The journals of a folder.
#[derive(Debug)]
pub struct FolderLog {
    folder: Arc<Folder>,
    fingerprint: [u8; 32],
    /// Where the round that was replayed last goes on.
    replayed: Option<(u64, Position)>,
    current: Option<Journal>,
}

/// The journal that is being written.
#[derive(Debug)]
struct Journal {
    round: u64,
    /// What is known to be on disk.
    durable: Position,
    /// `None` after a failure: nothing since the last sync can be trusted to reach the disk then, whatever the
    /// next sync says. The next try opens the file again and writes from the durable part on.
    file: Option<Box<dyn DiskFile>>,
    /// Length with what was appended since.
    len: u64,
}

impl FolderLog {
    pub(super) fn new(folder: Arc<Folder>, fingerprint: [u8; 32]) -> Self {
        Self { folder, fingerprint, replayed: None, current: None }
    }

    /// The round's journal, to be written to.
    fn journal(&mut self, round: u64) -> Result<&mut Journal, StoreError> {
        if self.current.as_ref().is_none_or(|journal| journal.round != round) {
            if self.replayed.is_none_or(|(replayed, _)| replayed != round) {
                self.replay(round, &mut |_| Ok(()))?;
            }
            let durable = match self.replayed {
                Some((replayed, position)) if replayed == round => position,
                _ => Position { len: 0, layout: Layout::V2(nonce()?) },
            };
            self.current = Some(Journal { round, durable, file: None, len: durable.len });
        }
        // Just set.
        self.current.as_mut().ok_or_else(|| unreachable!("a journal"))
    }
}

/// Eight bytes that nobody outside can guess.
fn nonce() -> Result<[u8; 8], StoreError> {
    let mut nonce = [0; 8];
    rustls::crypto::ring::default_provider()
        .secure_random
        .fill(&mut nonce)
        .map_err(|_| io::Error::other("no random numbers"))
        .map_err(StoreError::io("read", "the system's random numbers".as_ref()))?;
    Ok(nonce)
}

impl Journal {
    fn append(&mut self, folder: &Folder, fingerprint: &[u8; 32], record: &Record) -> io::Result<()> {
        let layout = self.durable.layout;
        if self.file.is_none() {
            let mut file = folder.disk.create(&folder.path(Kind::Journal, self.round))?;
            file.set_len(self.durable.len)?;
            file.seek(SeekFrom::Start(self.durable.len))?;
            self.len = self.durable.len;
            if self.len == 0 {
                let header = layout.header(self.round, fingerprint);
                file.write_all(&header)?;
                self.len = header.len() as u64;
            }
            self.file = Some(file);
        }
        let Some(file) = &mut self.file else { unreachable!("just opened") };
        let (head, body) = layout.encode(record, self.durable.len)?;
        file.write_all(&head)?;
        file.write_all(body)?;
        self.len += (head.len() + body.len()) as u64;
        Ok(())
    }

    fn sync(&mut self, folder: &Folder) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        if self.len == self.durable.len {
            return Ok(());
        }
        file.sync(SyncPoint::JournalRecords)?;
        if self.durable.len == 0 {
            folder.disk.sync_dir(&folder.dir, SyncPoint::JournalEntry)?;
        }
        self.durable.len = self.len;
        Ok(())
    }
}

impl Log for FolderLog {
    fn rounds(&self) -> Result<Vec<u64>, StoreError> {
        self.folder.rounds(Kind::Journal)
    }

    fn replay(&mut self, round: u64, visit: &mut Visit<'_>) -> Result<Option<Replayed>, StoreError> {
        let path = self.name(round);
        let mut file = match self.folder.disk.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("open", &path)(error)),
        };
        file.sync(SyncPoint::ReplayedRecords)
            .and_then(|()| self.folder.disk.sync_dir(&self.folder.dir, SyncPoint::ReplayedEntry))
            .map_err(StoreError::io("sync", &path))?;
        let (replayed, position) = journal_format::read(&mut file, &path, round, &self.fingerprint, visit)?;
        if let Some(position) = position {
            self.replayed = Some((round, position));
        }
        Ok(Some(replayed))
    }

    fn append(&mut self, round: u64, record: &Record) -> Result<(), StoreError> {
        let (folder, fingerprint) = (self.folder.clone(), self.fingerprint);
        let journal = self.journal(round)?;
        journal.append(&folder, &fingerprint, record).map_err(|error| {
            journal.file = None;
            StoreError::io("write", &folder.path(Kind::Journal, round))(error)
        })
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        let folder = &self.folder;
        let Some(journal) = &mut self.current else { return Ok(()) };
        journal.sync(folder).map_err(|error| {
            journal.file = None;
            StoreError::io("sync", &folder.path(Kind::Journal, journal.round))(error)
        })
    }

    fn remove(&mut self, round: u64) -> Result<(), StoreError> {
        self.forget(&[round]);
        self.folder.remove(Kind::Journal, round)
    }

    fn archive(&mut self, rounds: &[u64], archive: &str) -> Result<(), StoreError> {
        self.forget(rounds);
        self.folder.archive(Kind::Journal, rounds, archive)
    }

    fn name(&self, round: u64) -> PathBuf {
        self.folder.path(Kind::Journal, round)
    }
}

impl FolderLog {
    /// The files of these rounds are about to go.
    fn forget(&mut self, rounds: &[u64]) {
        self.current.take_if(|journal| rounds.contains(&journal.round));
        self.replayed.take_if(|(round, _)| rounds.contains(round));
    }
}
