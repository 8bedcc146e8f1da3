//! A checkpoint file for each round, and the history.

use super::{
    Folder, Kind,
    disk::SyncPoint,
    history::{self, History},
};
use crate::store::{
    Snapshots, StoreError,
    traits::{Content, StoredSnapshot},
};
use fl_protocol::HistoryRecord;
use std::{
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

/// The checkpoints and the history of a folder.
#[derive(Debug)]
pub struct FolderSnapshots {
    folder: Arc<Folder>,
    history: Mutex<History>,
}

impl FolderSnapshots {
    pub(super) fn new(folder: Arc<Folder>) -> Self {
        Self { folder, history: Mutex::default() }
    }

    fn read_file(&self, path: &std::path::Path) -> Result<Option<Vec<u8>>, StoreError> {
        let mut content = Vec::new();
        match self.folder.disk.open(path).and_then(|mut file| file.read_to_end(&mut content)) {
            Ok(_) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", path)(error)),
        }
    }
}

impl Snapshots for FolderSnapshots {
    fn rounds(&self) -> Result<Vec<u64>, StoreError> {
        self.folder.rounds(Kind::Checkpoint)
    }

    fn open(&self, round: u64) -> Result<Option<StoredSnapshot>, StoreError> {
        let path = self.name(round);
        let opened = self.folder.disk.open(&path).and_then(|mut file| {
            let len = file.seek(SeekFrom::End(0))?;
            file.rewind()?;
            Ok(StoredSnapshot { len, content: Box::new(file) })
        });
        match opened {
            Ok(stored) => Ok(Some(stored)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("open", &path)(error)),
        }
    }

    fn write(&self, round: u64, content: &mut Content<'_>) -> Result<(), StoreError> {
        let points = (SyncPoint::CheckpointContent, SyncPoint::CheckpointEntry);
        self.folder.replace(&self.name(round), points, content)
    }

    fn remove(&self, round: u64) -> Result<(), StoreError> {
        self.folder.remove(Kind::Checkpoint, round)
    }

    fn history(&self) -> Result<Vec<HistoryRecord>, StoreError> {
        Ok(self.read_file(&history::path(&self.folder))?.map_or_else(Vec::new, |text| history::parse(&text)))
    }

    fn append_history(&self, record: &HistoryRecord) -> Result<(), StoreError> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).append(&self.folder, record)
    }

    fn rewrite_history(&self, records: &[HistoryRecord]) -> Result<(), StoreError> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).rewrite(&self.folder, records)
    }

    fn tidy(&self) -> Result<(), StoreError> {
        for name in self.folder.names()?.iter().filter(|name| name.ends_with(".tmp")) {
            let path = self.folder.dir.join(name);
            self.folder.disk.remove(&path).map_err(StoreError::io("remove", &path))?;
        }
        Ok(())
    }

    fn new_archive(&self) -> Result<String, StoreError> {
        let numbers = self.folder.names()?;
        let last = numbers.iter().filter_map(|name| name.strip_prefix("archive-")?.parse::<u32>().ok()).max();
        let name = format!("archive-{}", last.unwrap_or(0) + 1);
        let dir = self.folder.dir.join(&name);
        self.folder.disk.create_dir(&dir).map_err(StoreError::io("create", &dir))?;
        if let Some(text) = self.read_file(&history::path(&self.folder))? {
            let points = (SyncPoint::ArchivedHistoryContent, SyncPoint::ArchivedHistoryEntry);
            self.folder.replace(&dir.join(history::NAME), points, &mut |file| file.write_all(&text))?;
        }
        Ok(name)
    }

    fn archive(&self, rounds: &[u64], archive: &str) -> Result<(), StoreError> {
        self.folder.archive(Kind::Checkpoint, rounds, archive)
    }

    fn name(&self, round: u64) -> PathBuf {
        self.folder.path(Kind::Checkpoint, round)
    }
}
