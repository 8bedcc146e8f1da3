//! The folder on a disk that loses what was not synced: what the traits promise holds after every crash, and
//! no sync can be left out.
//!
//! `FL_LOSING_CRASHES` makes it longer, `FL_SEED` repeats a run.

use super::{
    Folder, FolderLog, FolderSnapshots, create_dir, disk::SyncPoint, history, losing::LosingDisk, parts,
};
use crate::store::{
    Checkpoint, Closed, Log, Record, Snapshots, Store, StoreError,
    memory::Random,
    record::{sample_history, sample_update},
};
use bytes::Bytes;
use fl_protocol::HistoryRecord;
use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, RandomState},
    path::Path,
    sync::Arc,
};

const DIR: &str = "/var/state";
const FINGERPRINT: [u8; 32] = [9; 32];
/// Crashes of one disk.
const CRASHES: u64 = 5;

/// What has to be there after a crash, and what may be.
#[derive(Default)]
struct Expected {
    logs: BTreeMap<u64, ExpectedLog>,
    /// The contents that a snapshot may have: more than one after a failed write.
    snapshots: BTreeMap<u64, Vec<Vec<u8>>>,
    /// What the history may begin with.
    histories: Vec<Vec<HistoryRecord>>,
    /// Rounds of removed files, which may come back.
    removed_logs: BTreeSet<u64>,
    removed_snapshots: BTreeSet<u64>,
    /// Paths of what was archived, and the content of the history's copies.
    archived: BTreeSet<String>,
    copies: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug, Default, Clone)]
struct ExpectedLog {
    synced: Vec<Record>,
    /// What was appended since, one list for each try.
    tries: Vec<Vec<Record>>,
}

struct Run {
    random: Random,
    disk: LosingDisk,
    log: FolderLog,
    snapshots: FolderSnapshots,
    expected: Expected,
    round: u64,
    /// Appended to the round's log since the last sync.
    unsynced: Vec<Record>,
    number: u64,
}

impl Run {
    /// A new disk with an opened folder.
    fn new(seed: u64, left_out: Option<SyncPoint>) -> Self {
        let mut random = Random(seed);
        let disk = LosingDisk::new(random.next(), left_out);
        create_dir(&disk, Path::new(DIR)).unwrap();
        let (log, snapshots) = opened(&disk);
        let expected = Expected { histories: vec![Vec::new()], ..Expected::default() };
        Self { random, disk, log, snapshots, expected, round: 0, unsynced: Vec::new(), number: 0 }
    }

    fn number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn step(&mut self) {
        match self.random.below(10) {
            0..4 => self.append(),
            4 => {
                self.sync();
                self.round += 1;
            }
            5 | 6 => self.snapshot(),
            7 => self.remove(),
            8 => self.history(),
            _ if self.random.below(3) == 0 => self.archive(),
            _ => {}
        }
    }

    fn append(&mut self) {
        for _ in 0..=self.random.below(2) {
            let record = sample_update(self.number());
            let appended = self.log.append(self.round, &record);
            self.expected.removed_logs.remove(&self.round);
            self.unsynced.push(record);
            if appended.is_err() {
                return self.give_up();
            }
        }
        if self.random.below(4) > 0 {
            self.sync();
        }
    }

    fn sync(&mut self) {
        if self.unsynced.is_empty() {
            return;
        }
        if self.log.sync().is_err() {
            return self.give_up();
        }
        let log = self.expected.logs.entry(self.round).or_default();
        log.synced.append(&mut self.unsynced);
        log.tries.clear();
    }

    /// What was not synced is dropped, but a crash may still show it.
    fn give_up(&mut self) {
        let tried = std::mem::take(&mut self.unsynced);
        self.expected.logs.entry(self.round).or_default().tries.push(tried);
    }

    fn snapshot(&mut self) {
        let round = self.round - self.random.below(2).min(self.round as usize) as u64;
        let content = format!("snapshot {}", self.number()).repeat(20).into_bytes();
        let written = self.snapshots.write(round, &mut |out| out.write_all(&content));
        let contents = self.expected.snapshots.entry(round).or_default();
        if written.is_ok() {
            self.expected.removed_snapshots.remove(&round);
            contents.clear();
        } else if contents.is_empty() {
            // It need not be there.
            self.expected.removed_snapshots.insert(round);
        }
        contents.push(content);
    }

    fn remove(&mut self) {
        let old = self.round.saturating_sub(2);
        for round in self.expected.logs.keys().copied().filter(|round| *round < old).collect::<Vec<_>>() {
            let _ = self.log.remove(round);
            self.expected.removed_logs.insert(round);
        }
        for round in self.expected.snapshots.keys().copied().filter(|round| *round < old).collect::<Vec<_>>()
        {
            let _ = self.snapshots.remove(round);
            self.expected.removed_snapshots.insert(round);
        }
        let _ = self.snapshots.tidy();
    }

    fn history(&mut self) {
        for _ in 0..self.random.below(4) {
            let record = sample_history(self.number());
            let _ = self.snapshots.append_history(&record);
        }
        if self.random.below(2) == 0 {
            let Ok(records) = self.snapshots.history() else { return };
            if self.snapshots.rewrite_history(&records).is_ok() {
                self.expected.histories.clear();
            }
            self.expected.histories.push(records);
        }
    }

    /// Archives what is of this round and later, as a rollback does.
    fn archive(&mut self) {
        self.sync();
        let from = self.round.saturating_sub(1);
        let text = self.read(&history::path(&self.folder()));
        let Ok(archive) = self.snapshots.new_archive() else { return };
        let logs: Vec<u64> = self.log.rounds().unwrap().into_iter().filter(|round| *round >= from).collect();
        let snapshots: Vec<u64> =
            self.snapshots.rounds().unwrap().into_iter().filter(|round| *round >= from).collect();
        let path = |kind: super::Kind, round: u64| format!("{DIR}/{archive}/{}", kind.name(round));
        // Until both are done, each file is in one of the two places.
        let log_result = self.log.archive(&logs, &archive);
        let snapshot_result = self.snapshots.archive(&snapshots, &archive);
        if log_result.is_ok() && snapshot_result.is_ok() {
            for round in logs {
                let log = self.expected.logs.remove(&round);
                let was_removed = self.expected.removed_logs.remove(&round);
                if !was_removed && log.is_some_and(|log| !log.synced.is_empty()) {
                    self.expected.archived.insert(path(super::Kind::Journal, round));
                }
            }
            for round in snapshots {
                self.expected.snapshots.remove(&round);
                if !self.expected.removed_snapshots.remove(&round) {
                    self.expected.archived.insert(path(super::Kind::Checkpoint, round));
                }
            }
            self.expected
                .copies
                .extend(text.map(|text| (format!("{DIR}/{archive}/{}", history::NAME), text)));
        } else {
            // Some may have been moved: a process that repeats it would go on.
            for round in logs {
                self.expected.removed_logs.insert(round);
            }
            for round in snapshots {
                self.expected.removed_snapshots.insert(round);
            }
            self.round += 1;
        }
    }

    fn folder(&self) -> Folder {
        Folder { dir: DIR.into(), disk: Arc::new(self.disk.clone()), _lock: None }
    }

    fn read(&self, path: &Path) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        // It may refuse a call now and then.
        let read = (0..100).find_map(|_| super::disk::Disk::open(&self.disk, path).ok());
        read?.read_to_end(&mut content).unwrap();
        Some(content)
    }

    fn reopen(&mut self) {
        (self.log, self.snapshots) = opened(&self.disk);
    }

    /// Crashes, and compares what is found with what has to be there.
    fn crash(&mut self) -> Result<(), String> {
        self.give_up();
        // One process in three is killed while the machine runs on: what is read then must be durable.
        let is_kill = self.random.below(3) == 0;
        self.disk = if is_kill { self.disk.kill() } else { self.disk.crash() };
        self.disk.refuse_one_in(0);
        self.reopen();
        let names = |error: crate::store::StoreError| error.to_string();
        let logs: BTreeSet<u64> = self.log.rounds().map_err(names)?.into_iter().collect();
        let snapshots: BTreeSet<u64> = self.snapshots.rounds().map_err(names)?.into_iter().collect();
        self.check_logs(&logs)?;
        self.check_snapshots(&snapshots, is_kill)?;
        let history = self.snapshots.history().map_err(names)?;
        if !self.expected.histories.iter().any(|kept| history.starts_with(kept)) {
            return Err(format!("the history has {} records, others than it must", history.len()));
        }
        for path in &self.expected.archived {
            self.read(path.as_ref()).ok_or_else(|| format!("{path} is lost"))?;
        }
        for (path, text) in &self.expected.copies {
            if self.read(path.as_ref()).as_ref() != Some(text) {
                return Err(format!("{path} is lost"));
            }
        }
        if !is_kill {
            self.expected.histories = vec![history];
        }
        Ok(())
    }

    fn check_logs(&mut self, found: &BTreeSet<u64>) -> Result<(), String> {
        if let Some(round) = found.iter().find(|round| !self.expected.logs.contains_key(round)) {
            return Err(format!("the log of round {round} has come back"));
        }
        for (round, expected) in std::mem::take(&mut self.expected.logs) {
            let mut records = Vec::new();
            let replayed = self.log.replay(round, &mut |record| {
                records.push(record);
                Ok(())
            });
            let is_needed = !self.expected.removed_logs.contains(&round);
            match replayed {
                Err(error) if is_needed => return Err(error.to_string()),
                Ok(None) if is_needed && !expected.synced.is_empty() => {
                    return Err(format!("the log of round {round} is lost"));
                }
                Ok(None) | Err(_) => {
                    // A removal that is not durable may come undone in a later crash.
                    self.expected.logs.insert(round, expected);
                    continue;
                }
                Ok(Some(_)) => {}
            }
            let unsynced = records.strip_prefix(&expected.synced[..]);
            let is_good = unsynced.is_some_and(|unsynced| {
                unsynced.is_empty() || expected.tries.iter().any(|tried| tried.starts_with(unsynced))
            });
            if !is_good && is_needed {
                return Err(format!("the log of round {round} has {records:?}, expected {expected:?}"));
            }
            self.expected.logs.insert(round, ExpectedLog { synced: records, tries: Vec::new() });
        }
        Ok(())
    }

    fn check_snapshots(&mut self, found: &BTreeSet<u64>, is_kill: bool) -> Result<(), String> {
        if let Some(round) = found.iter().find(|round| !self.expected.snapshots.contains_key(round)) {
            return Err(format!("the snapshot of round {round} has come back"));
        }
        for (round, contents) in std::mem::take(&mut self.expected.snapshots) {
            let stored = self.snapshots.open(round).map_err(|error| error.to_string())?;
            let content = stored.map(|mut stored| {
                let mut content = Vec::new();
                stored.content.read_to_end(&mut content).unwrap();
                content
            });
            match content {
                Some(content) if contents.contains(&content) => {
                    // A failed write may be seen after a kill, and not be durable.
                    let kept = if is_kill { contents } else { vec![content.to_vec()] };
                    self.expected.snapshots.insert(round, kept);
                }
                Some(_) => return Err(format!("the snapshot of round {round} has another content")),
                None if self.expected.removed_snapshots.contains(&round) => {
                    if is_kill {
                        self.expected.snapshots.insert(round, contents);
                    }
                }
                None => return Err(format!("the snapshot of round {round} is lost")),
            }
        }
        Ok(())
    }
}

fn opened(disk: &LosingDisk) -> (FolderLog, FolderSnapshots) {
    parts(Folder { dir: DIR.into(), disk: Arc::new(disk.clone()), _lock: None }, FINGERPRINT)
}

/// A disk's life; gives what was lost.
fn live(seed: u64, left_out: Option<SyncPoint>) -> Result<(), String> {
    let mut run = Run::new(seed, left_out);
    for _ in 0..CRASHES {
        // Some processes have a disk that refuses calls now and then.
        run.disk.refuse_one_in([0, 0, 15, 60][run.random.below(4)]);
        for _ in 0..run.random.below(25) {
            run.step();
        }
        run.crash()?;
    }
    Ok(())
}

/// Seeds of the disks: from `FL_SEED`, or fresh.
fn seeds() -> impl Iterator<Item = u64> {
    let fresh = || RandomState::new().hash_one(0u64);
    let seed = std::env::var("FL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(fresh);
    println!("FL_SEED={seed}");
    (0..).map(move |k| seed.wrapping_add(k))
}

#[test]
fn what_was_promised_survives_crashes() {
    let crashes = std::env::var("FL_LOSING_CRASHES").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    for seed in seeds().take((crashes / CRASHES) as usize) {
        if let Err(lost) = live(seed, None) {
            panic!("FL_SEED={seed}: {lost}");
        }
    }
}

/// The same test, with each sync left out in turn: it fails.
#[test]
fn no_sync_can_be_left_out() {
    for left_out in SyncPoint::ALL {
        let lost = seeds().take(2_000).find_map(|seed| live(seed, Some(left_out)).err());
        println!("without {left_out:?}: {}", lost.as_deref().unwrap_or("nothing is lost"));
        assert!(lost.is_some(), "nothing is lost without {left_out:?}");
    }
}

/// Rounds 0 to 5 closed, each with a checkpoint and a journal, and checkpoint 6.
fn used_disk(seed: u64) -> LosingDisk {
    let disk = LosingDisk::new(seed, None);
    create_dir(&disk, Path::new(DIR)).unwrap();
    let (mut log, snapshots) = opened(&disk);
    for round in 0..=6 {
        let checkpoint = Checkpoint { round, ..Checkpoint::initial(Bytes::from_static(b"model")) };
        snapshots.write(round, &mut |out| checkpoint.encode(&FINGERPRINT, out)).unwrap();
        snapshots.append_history(&sample_history(round)).unwrap();
        log.append(round, &sample_update(round)).unwrap();
        if round < 6 {
            log.append(round, &Record::Closed(Closed { updates: 1, ..Closed::default() })).unwrap();
        }
        log.sync().unwrap();
    }
    disk
}

fn store_on(disk: &LosingDisk) -> Store {
    let (log, snapshots) = opened(disk);
    Store::new(Box::new(log), Arc::new(snapshots), FINGERPRINT)
}

/// A crash at any call of a rollback leaves the state as it was, or gone back, or refused; no file is lost, and
/// the same rollback completes.
#[test]
fn a_rollback_can_be_repeated_after_a_crash_in_its_middle() {
    let mut refusals = 0;
    for (seed, calls) in seeds().zip((1..150).cycle()).take(1_500) {
        let disk = used_disk(seed);
        disk.stop_after(calls);
        let done = store_on(&disk).rollback_to(3).is_ok();
        let disk = disk.crash();
        match store_on(&disk).load() {
            Ok(found) if done => assert_eq!(found.open_round, 3, "FL_SEED={seed}"),
            Ok(found) => assert!([3, 6].contains(&found.open_round), "FL_SEED={seed}: {}", found.open_round),
            Err(StoreError::Incomplete { .. }) if !done => refusals += 1,
            Err(error) => panic!("FL_SEED={seed}: {error}"),
        }
        store_on(&disk).rollback_to(3).unwrap();
        let disk = disk.crash();
        assert_eq!(store_on(&disk).load().unwrap().open_round, 3, "FL_SEED={seed}");
        let everywhere: BTreeSet<String> =
            disk.paths().into_iter().filter(|path| path.ends_with(".fl")).collect();
        let names: BTreeSet<&str> = everywhere.iter().map(|path| path.rsplit('/').next().unwrap()).collect();
        assert_eq!(names.len(), 14, "FL_SEED={seed}: a file is lost: {everywhere:?}");
    }
    assert!(refusals > 0);
}
