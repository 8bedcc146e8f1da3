//! A file system that loses what was not synced when it crashes, and that refuses calls now and then.

use super::disk::{Disk, DiskFile, SyncPoint};
use crate::store::memory::Random;
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

/// A disk that outlives the processes that use it.
#[derive(Debug, Clone)]
pub(super) struct LosingDisk {
    state: Arc<Mutex<State>>,
    /// Crashes before this process began: after the next one its calls fail.
    crashes: u64,
}

#[derive(Debug)]
struct State {
    crashes: u64,
    random: Random,
    left_out: Option<SyncPoint>,
    /// Every so many calls one is refused; 0 = none.
    refuse_one_in: usize,
    /// Calls until the process crashes.
    calls_left: usize,
    files: Vec<Content>,
    seen: Tree,
    durable: Tree,
    /// Changes of folders that are not durable, in their order.
    pending: Vec<Change>,
}

#[derive(Debug, Default, Clone)]
struct Tree {
    dirs: BTreeSet<PathBuf>,
    files: BTreeMap<PathBuf, usize>,
}

#[derive(Debug, Default)]
struct Content {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// What a failed sync has dropped: it is read back, but no later sync writes it.
    dropped: Range<usize>,
}

#[derive(Debug, Clone)]
enum Change {
    Dir(PathBuf),
    Link(PathBuf, usize),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, usize),
}

impl Change {
    /// Whether a sync of `dir` makes it durable. With the old name gone the new one is there: file systems
    /// with a journal rename in one step.
    fn is_in(&self, dir: &Path) -> bool {
        match self {
            Self::Dir(path) | Self::Link(path, _) | Self::Unlink(path) | Self::Rename(path, ..) => {
                path.parent() == Some(dir)
            }
        }
    }
}

impl Tree {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Dir(path) => {
                self.dirs.insert(path);
            }
            Change::Link(path, file) => {
                self.files.insert(path, file);
            }
            Change::Unlink(path) => {
                self.files.remove(&path);
            }
            Change::Rename(from, to, file) => {
                self.files.remove(&from);
                self.dirs.extend(to.parent().map(Path::to_owned));
                self.files.insert(to, file);
            }
        }
    }
}

impl LosingDisk {
    pub(super) fn new(seed: u64, left_out: Option<SyncPoint>) -> Self {
        let root = Tree { dirs: BTreeSet::from([PathBuf::from("/")]), files: BTreeMap::new() };
        let state = State {
            crashes: 0,
            random: Random(seed),
            left_out,
            refuse_one_in: 0,
            calls_left: usize::MAX,
            files: Vec::new(),
            seen: root.clone(),
            durable: root,
            pending: Vec::new(),
        };
        Self { state: Arc::new(Mutex::new(state)), crashes: 0 }
    }

    /// Ends the processes that use it, and gives what the next one finds.
    pub(super) fn crash(&self) -> Self {
        let state = &mut *self.state.lock().unwrap();
        state.crashes += 1;
        state.calls_left = usize::MAX;
        let outcome = state.random.below(3);
        for change in std::mem::take(&mut state.pending) {
            if outcome == 1 || outcome == 2 && state.random.below(2) == 0 {
                state.durable.apply(change);
            }
        }
        state.seen = state.durable.clone();
        let dirs = &state.seen.dirs;
        let is_there = |path: &Path| path.ancestors().skip(1).all(|dir| dirs.contains(dir));
        state.seen.files.retain(|path, _| is_there(path));
        for file in &mut state.files {
            file.crash(&mut state.random);
        }
        Self { state: self.state.clone(), crashes: state.crashes }
    }

    /// Refuses one call in so many; 0 = none.
    pub(super) fn refuse_one_in(&self, calls: usize) {
        self.state.lock().unwrap().refuse_one_in = calls;
    }

    /// Ends the processes that use it. What a failed sync has dropped is not read any more: a process that
    /// begins cannot tell it from what will reach the disk.
    pub(super) fn kill(&self) -> Self {
        let mut state = self.state.lock().unwrap();
        state.crashes += 1;
        state.files.iter_mut().for_each(Content::forget);
        Self { state: self.state.clone(), crashes: state.crashes }
    }

    /// Lets so many calls happen, and none after them.
    pub(super) fn stop_after(&self, calls: usize) {
        self.state.lock().unwrap().calls_left = calls;
    }

    /// All files.
    pub(super) fn paths(&self) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.seen.files.keys().map(|path| path.to_str().unwrap().to_owned()).collect()
    }

    fn lock(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state.lock().unwrap();
        match state.crashes == self.crashes {
            true => Ok(state),
            false => Err(io::Error::other("the process has crashed")),
        }
    }

    /// For a call that may be refused.
    fn call(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.lock()?;
        match state.refuses() {
            false => Ok(state),
            true => Err(io::ErrorKind::StorageFull.into()),
        }
    }

    fn open_file(&self, path: &Path, creates: bool) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.call()?;
        let file = match state.seen.files.get(path) {
            Some(file) => *file,
            None if !creates || !state.seen.dirs.contains(path.parent().unwrap()) => {
                return Err(io::ErrorKind::NotFound.into());
            }
            None => {
                state.files.push(Content::default());
                let file = state.files.len() - 1;
                state.change(Change::Link(path.to_owned(), file));
                file
            }
        };
        Ok(Box::new(LosingFile { disk: self.clone(), file, at: 0 }))
    }
}

impl State {
    fn refuses(&mut self) -> bool {
        self.calls_left = self.calls_left.saturating_sub(1);
        self.calls_left == 0 || self.refuse_one_in > 0 && self.random.below(self.refuse_one_in) == 0
    }

    fn change(&mut self, change: Change) {
        self.seen.apply(change.clone());
        self.pending.push(change);
    }
}

impl Content {
    fn sync(&mut self) {
        self.durable = self.seen.clone();
        let dropped = self.dropped.start.min(self.seen.len())..self.dropped.end.min(self.seen.len());
        self.durable[dropped].fill(0);
    }

    fn forget(&mut self) {
        let dropped = self.dropped.start.min(self.seen.len())..self.dropped.end.min(self.seen.len());
        self.seen[dropped].fill(0);
        self.dropped = 0..0;
    }

    /// Any part of what was not synced survives.
    fn crash(&mut self, random: &mut Random) {
        self.forget();
        let common = self.seen.iter().zip(&self.durable).take_while(|(a, b)| a == b).count();
        let is_synced = common == self.seen.len() && common == self.durable.len();
        match random.below(3) {
            0 if !is_synced => self.seen = self.durable.clone(),
            1 if !is_synced => {
                let kept = common + random.below(self.seen.len() - common + 1);
                self.seen.truncate(kept);
                // A block that was not written reads as zeros.
                let hole = common + random.below(kept - common + 1);
                self.seen[hole..].iter_mut().take(64).for_each(|byte| *byte = 0);
            }
            _ => {}
        }
        self.durable = self.seen.clone();
    }
}

impl Disk for LosingDisk {
    fn is_dir(&self, dir: &Path) -> bool {
        self.lock().is_ok_and(|state| state.seen.dirs.contains(dir))
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.call()?.change(Change::Dir(dir.to_owned()));
        Ok(())
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.lock()?;
        if !state.seen.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let paths = state.seen.files.keys().chain(&state.seen.dirs);
        let inside = paths.filter(|path| path.parent() == Some(dir));
        Ok(inside.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open_file(path, false)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open_file(path, true)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.call()?;
        let file = *state.seen.files.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.change(Change::Rename(from.to_owned(), to.to_owned(), file));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.call()?;
        if !state.seen.files.contains_key(path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change(Change::Unlink(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path, point: SyncPoint) -> io::Result<()> {
        let state = &mut *self.call()?;
        if state.left_out == Some(point) {
            return Ok(());
        }
        let (synced, pending) = std::mem::take(&mut state.pending).into_iter().partition(|c| c.is_in(dir));
        state.pending = pending;
        for change in synced {
            state.durable.apply(change);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct LosingFile {
    disk: LosingDisk,
    file: usize,
    at: usize,
}

impl Read for LosingFile {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let state = self.disk.lock()?;
        let read = state.files[self.file].seen.get(self.at..).unwrap_or_default().read(out)?;
        self.at += read;
        Ok(read)
    }
}

impl Write for LosingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.disk.lock()?;
        let mut written = bytes.len();
        if state.refuses() {
            // A full disk takes a part.
            written = state.random.below(bytes.len());
            if written == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        let (start, end) = (self.at, self.at + written);
        let file = &mut state.files[self.file];
        let len = file.seen.len().max(end);
        file.seen.resize(len, 0);
        file.seen[start..end].copy_from_slice(&bytes[..written]);
        // What is written again is to be synced again.
        if start <= file.dropped.start {
            file.dropped.start = file.dropped.start.max(end).min(file.dropped.end);
        }
        self.at = end;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for LosingFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let len = self.disk.lock()?.files[self.file].seen.len();
        self.at = match to {
            SeekFrom::Start(at) => at as usize,
            SeekFrom::End(by) => len.checked_add_signed(by as isize).unwrap(),
            SeekFrom::Current(by) => self.at.checked_add_signed(by as isize).unwrap(),
        };
        Ok(self.at as u64)
    }
}

impl DiskFile for LosingFile {
    fn set_len(&mut self, len: u64) -> io::Result<()> {
        let file = &mut self.disk.call()?.files[self.file];
        file.seen.resize(len as usize, 0);
        file.dropped.end = file.dropped.end.min(len as usize);
        file.dropped.start = file.dropped.start.min(file.dropped.end);
        Ok(())
    }

    fn sync(&mut self, point: SyncPoint) -> io::Result<()> {
        let state = &mut *self.disk.lock()?;
        let refused = state.refuses();
        let file = &mut state.files[self.file];
        if refused {
            let common = file.seen.iter().zip(&file.durable).take_while(|(a, b)| a == b).count();
            let start = if file.dropped.is_empty() { common } else { file.dropped.start.min(common) };
            file.dropped = start..file.seen.len();
            return Err(io::Error::other("the disk does not answer"));
        }
        if state.left_out != Some(point) {
            file.sync();
        }
        Ok(())
    }
}
