//! The calls that the folder makes to the file system, so that a test can put one that loses what was not
//! synced in its place.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::Path,
};

/// Every place that makes something durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SyncPoint {
    /// The entry of a new state folder in its parent.
    StateDir,
    /// Records of a journal.
    JournalRecords,
    /// The entry of a new journal.
    JournalEntry,
    /// Records that a replay has read.
    ReplayedRecords,
    /// The entry of a journal that a replay has read.
    ReplayedEntry,
    /// Content of a checkpoint, before it takes its name.
    CheckpointContent,
    /// The new name of a checkpoint.
    CheckpointEntry,
    /// Content of a rewritten history, before it takes its name.
    HistoryContent,
    /// The new name of a rewritten history.
    HistoryEntry,
    /// The history's copy in an archive.
    ArchivedHistoryContent,
    /// The entry of that copy.
    ArchivedHistoryEntry,
    /// Files moved to an archive.
    ArchivedFiles,
}

#[cfg(test)]
impl SyncPoint {
    pub(super) const ALL: [Self; 12] = [
        Self::StateDir,
        Self::JournalRecords,
        Self::JournalEntry,
        Self::ReplayedRecords,
        Self::ReplayedEntry,
        Self::CheckpointContent,
        Self::CheckpointEntry,
        Self::HistoryContent,
        Self::HistoryEntry,
        Self::ArchivedHistoryContent,
        Self::ArchivedHistoryEntry,
        Self::ArchivedFiles,
    ];
}

/// A file system.
pub(crate) trait Disk: Send + Sync + fmt::Debug {
    /// Whether a folder exists.
    fn is_dir(&self, dir: &Path) -> bool;

    /// Makes a folder for its owner alone; its parent exists.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;

    /// Names in a folder that are UTF-8.
    fn names(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens a file for writing, creating it for its owner alone; what is in it stays.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Gives a file another name, at once.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes creations, renames and removals in a folder durable.
    fn sync_dir(&self, dir: &Path, point: SyncPoint) -> io::Result<()>;
}

/// An open file.
pub(crate) trait DiskFile: Read + Write + Seek + Send + fmt::Debug {
    /// Cuts it off, or fills it up with zeros.
    fn set_len(&mut self, len: u64) -> io::Result<()>;

    /// Makes its content durable.
    fn sync(&mut self, point: SyncPoint) -> io::Result<()>;
}

/// The system's.
#[derive(Debug)]
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn is_dir(&self, dir: &Path) -> bool {
        dir.is_dir()
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(dir)
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        fs::read_dir(dir)?
            .filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose())
            .collect()
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(File::open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(create_private(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path, _: SyncPoint) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

impl DiskFile for File {
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync(&mut self, point: SyncPoint) -> io::Result<()> {
        match point {
            // Length and content are all that a reader needs.
            SyncPoint::JournalRecords | SyncPoint::ReplayedRecords => self.sync_data(),
            _ => self.sync_all(),
        }
    }
}

/// Opens for writing, creating the file for its owner alone; what is in it stays.
pub(super) fn create_private(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}
