//! The state in a folder.
//!
//! ```text
//! STATE_DIR/lock                       held while a master uses the folder
//!           checkpoint-0000000012.fl   model of round 12 and what belongs to it
//!           journal-0000000012.fl      accepted updates for round 12
//!           history.jsonl              a line per finished round, written again once it is evaluated
//!           archive-1/                 what the first `--rollback-to` has left
//! ```

#[cfg(test)]
mod crash_tests;
mod disk;
mod history;
mod log;
#[cfg(test)]
mod log_tests;
#[cfg(test)]
mod losing;
mod snapshots;

pub use log::FolderLog;
pub use snapshots::FolderSnapshots;

use super::StoreError;
use disk::{Disk, RealDisk, SyncPoint};
use std::{
    fs::{File, TryLockError},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

/// The kinds of numbered files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Checkpoint,
    Journal,
}

/// An opened folder.
#[derive(Debug)]
pub(crate) struct Folder {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    /// Held as long as log or snapshots are.
    _lock: Option<File>,
}

/// Opens the folder, creating it if need be, and locks it until both parts are dropped.
///
/// # Errors
/// If it cannot be used, or another master uses it.
pub fn open(dir: &Path, fingerprint: [u8; 32]) -> Result<(FolderLog, FolderSnapshots), StoreError> {
    create_dir(&RealDisk, dir)?;
    let path = dir.join("lock");
    let lock = disk::create_private(&path).map_err(StoreError::io("create", &path))?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => StoreError::Locked(dir.to_owned()),
        TryLockError::Error(source) => StoreError::io("lock", &path)(source),
    })?;
    Ok(parts(Folder { dir: dir.to_owned(), disk: Arc::new(RealDisk), _lock: Some(lock) }, fingerprint))
}

fn parts(folder: Folder, fingerprint: [u8; 32]) -> (FolderLog, FolderSnapshots) {
    let folder = Arc::new(folder);
    (FolderLog::new(folder.clone(), fingerprint), FolderSnapshots::new(folder))
}

/// Makes a folder and those above it, durably.
fn create_dir(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    if dir.as_os_str().is_empty() {
        return Ok(());
    }
    let parent = dir.parent().unwrap_or(Path::new(""));
    let synced = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    if disk.is_dir(dir) {
        // An earlier start may have made it and got no further. A parent that cannot be opened is not ours.
        let _ = disk.sync_dir(synced, SyncPoint::StateDir);
        return Ok(());
    }
    create_dir(disk, parent)?;
    match disk.create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(StoreError::io("create", dir)(error));
        }
        _ => {}
    }
    disk.sync_dir(synced, SyncPoint::StateDir).map_err(StoreError::io("sync", synced))
}

impl Kind {
    /// `KIND-0000000012.fl`.
    fn name(self, round: u64) -> String {
        format!("{}-{round:010}.fl", self.prefix())
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Journal => "journal",
        }
    }

    fn round_of(self, name: &str) -> Option<u64> {
        name.strip_prefix(self.prefix())?.strip_prefix('-')?.strip_suffix(".fl")?.parse().ok()
    }
}

impl Folder {
    fn path(&self, kind: Kind, round: u64) -> PathBuf {
        self.dir.join(kind.name(round))
    }

    fn names(&self) -> Result<Vec<String>, StoreError> {
        self.disk.names(&self.dir).map_err(StoreError::io("list", &self.dir))
    }

    /// Rounds of the files of a kind, ascending.
    fn rounds(&self, kind: Kind) -> Result<Vec<u64>, StoreError> {
        let mut rounds: Vec<u64> = self.names()?.iter().filter_map(|name| kind.round_of(name)).collect();
        rounds.sort_unstable();
        Ok(rounds)
    }

    fn remove(&self, kind: Kind, round: u64) -> Result<(), StoreError> {
        let path = self.path(kind, round);
        match self.disk.remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Writes a file so that after a crash either the old one or the whole new one is there.
    fn replace(
        &self,
        path: &Path,
        (content_point, entry_point): (SyncPoint, SyncPoint),
        content: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let dir = path.parent().unwrap_or(&self.dir);
        let temporary = path.with_extension("tmp");
        let mut write = || -> io::Result<()> {
            let mut file = self.disk.create(&temporary)?;
            file.set_len(0)?;
            let mut out = BufWriter::new(&mut file);
            content(&mut out)?;
            out.flush()?;
            drop(out);
            file.sync(content_point)?;
            self.disk.rename(&temporary, path)?;
            self.disk.sync_dir(dir, entry_point)
        };
        write().map_err(|error| {
            // What was written takes room that a full disk needs.
            let _ = self.disk.remove(&temporary);
            StoreError::io("write", path)(error)
        })
    }

    /// Moves files into an archive; once it returns they do not come back.
    fn archive(&self, kind: Kind, rounds: &[u64], archive: &str) -> Result<(), StoreError> {
        for round in rounds {
            let path = self.path(kind, *round);
            match self.disk.rename(&path, &self.dir.join(archive).join(kind.name(*round))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(StoreError::io("move", &path)(error));
                }
                _ => {}
            }
        }
        // A move is one change of the file system: with the name that is gone, the new one is durable.
        self.disk.sync_dir(&self.dir, SyncPoint::ArchivedFiles).map_err(StoreError::io("sync", &self.dir))
    }
}
