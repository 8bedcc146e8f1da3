//! What was synced is read back; what was not may be lost; damage is named.

use super::{FolderLog, FolderSnapshots, open};
use crate::store::{Closed, Log, Record, RecordMeta, Replayed, Snapshots, StoreError, journal_format};
use bytes::Bytes;
use fl_protocol::HistoryRecord;
use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
};

const FINGERPRINT: [u8; 32] = [9; 32];

fn update(body: impl Into<Bytes>) -> Record {
    let body = body.into();
    let meta = RecordMeta {
        ip: "127.0.0.1".into(),
        received_ts: 1.5,
        wire_bytes: body.len() as u64,
        clip_bits: Some(7),
        ..RecordMeta::default()
    };
    Record::Update { meta, body }
}

fn closed(updates: u64) -> Record {
    Record::Closed(Closed { updates, opened_ts: 0.1, closed_ts: 1.0 / 3.0, bytes_down: 5 })
}

fn parts(dir: &Path) -> (FolderLog, FolderSnapshots) {
    open(dir, FINGERPRINT).unwrap()
}

/// Each record is synced alone.
fn append_all(dir: &Path, records: impl IntoIterator<Item = Record>) {
    let (mut log, _snapshots) = parts(dir);
    for record in records {
        log.append(3, &record).unwrap();
        log.sync().unwrap();
    }
}

fn read(dir: &Path) -> Result<(Vec<Record>, Replayed), StoreError> {
    let mut records = Vec::new();
    let (mut log, _snapshots) = parts(dir);
    let replayed = log.replay(3, &mut |record| {
        records.push(record);
        Ok(())
    })?;
    Ok((records, replayed.unwrap()))
}

fn path(dir: &Path) -> PathBuf {
    dir.join("journal-0000000003.fl")
}

fn samples() -> Vec<Record> {
    let settings = Record::Opened(Bytes::from_static(b"{\"strategy\":\"fedavg\"}"));
    vec![settings, update(&b"one"[..]), update(&b"two"[..]), closed(2)]
}

#[test]
fn reads_back_and_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    for record in samples() {
        append_all(dir.path(), [record]);
    }
    let (records, replayed) = read(dir.path()).unwrap();
    assert_eq!(records, samples());
    let Record::Closed(how) = closed(2) else { unreachable!() };
    assert_eq!((replayed.updates, replayed.closed), (2, Some(how)));
    assert_eq!(&replayed.settings.unwrap()[..], b"{\"strategy\":\"fedavg\"}");
}

#[test]
fn every_truncation_gives_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    append_all(dir.path(), samples());
    let whole = fs::read(path(dir.path())).unwrap();
    let mut last = 0;
    for len in 0..=whole.len() {
        fs::write(path(dir.path()), &whole[..len]).unwrap();
        let records = read(dir.path()).unwrap().0;
        assert!(records.len() == last || records.len() == last + 1);
        assert_eq!(records, samples()[..records.len()]);
        last = records.len();
    }
    assert_eq!(last, 4);
}

#[test]
fn damage_below_the_tail_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    append_all(dir.path(), samples());
    let whole = fs::read(path(dir.path())).unwrap();
    let last_record = (0..whole.len()).rev().find(|at| whole[*at..].starts_with(b"FLJR")).unwrap();
    for i in 0..whole.len() {
        let mut bad = whole.clone();
        bad[i] ^= 0x10;
        fs::write(path(dir.path()), &bad).unwrap();
        match read(dir.path()) {
            Ok((records, _)) => {
                assert!(i >= last_record, "damage in byte {i} went unnoticed");
                assert_eq!(records.len(), 3);
            }
            Err(error) => {
                assert!(i < last_record, "byte {i} belongs to the tail: {error}");
                assert!(error.to_string().contains("journal-0000000003.fl"), "{error}");
            }
        }
    }
}

/// A body comes from outside. One that contains a record of another file, which claims that everything before
/// it was on disk, must not turn a torn tail into damage.
#[test]
fn a_forged_record_in_a_torn_body_is_not_damage() {
    let other = tempfile::tempdir().unwrap();
    append_all(other.path(), samples());
    let mut forged = fs::read(path(other.path())).unwrap();
    forged.extend(include_bytes!("../../../tests/fixtures/state-v1/journal-0000000001.fl"));
    let dir = tempfile::tempdir().unwrap();
    append_all(dir.path(), [update(&b"kept"[..]), update(forged)]);
    let whole = fs::read(path(dir.path())).unwrap();
    for cut in 1..20 {
        fs::write(path(dir.path()), &whole[..whole.len() - cut]).unwrap();
        assert_eq!(read(dir.path()).unwrap().0, [update(&b"kept"[..])]);
    }
}

#[test]
fn a_close_that_counts_other_updates_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    append_all(dir.path(), [update(&b"one"[..]), closed(2)]);
    let error = read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("closed with 2 updates and has 1"), "{error}");
}

#[test]
fn another_models_journal_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    append_all(dir.path(), samples());
    let (mut log, _snapshots) = open(dir.path(), [1; 32]).unwrap();
    assert!(matches!(log.replay(3, &mut |_| Ok(())), Err(StoreError::OtherModel(_))));
}

#[test]
fn a_failing_disk_is_an_error_and_recovers() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("state");
    let (mut log, _snapshots) = parts(&dir);
    fs::rename(&dir, parent.path().join("away")).unwrap();
    assert!(log.append(3, &update(&b"lost"[..])).is_err());
    fs::rename(parent.path().join("away"), &dir).unwrap();
    log.append(3, &update(&b"kept"[..])).unwrap();
    log.sync().unwrap();
    drop((log, _snapshots));
    assert_eq!(read(&dir).unwrap().0, [update(&b"kept"[..])]);
}

#[test]
fn files_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("state");
    append_all(&dir, samples());
    let (_log, snapshots) = parts(&dir);
    snapshots.write(3, &mut |out| out.write_all(b"content")).unwrap();
    snapshots.append_history(&record(1, None)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    for entry in fs::read_dir(&dir).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
}

fn record(round: u64, test_accuracy: Option<f64>) -> HistoryRecord {
    HistoryRecord {
        round,
        started_ts: 1.0,
        finished_ts: 2.0,
        duration_s: 1.0,
        participants: 2,
        num_samples: 3,
        train_loss: None,
        test_accuracy,
        test_loss: None,
        test_absolute_error: None,
        evaluation: None,
        update_metrics: Default::default(),
        bytes_up: 4,
        reused: 0,
        bytes_saved: 0,
        bytes_down: 5,
        bits_per_param: 6.0,
    }
}

#[test]
fn half_a_line_of_history_costs_that_line_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (log, snapshots) = parts(dir.path());
    assert_eq!(snapshots.history().unwrap(), []);
    for round in 1..4 {
        snapshots.append_history(&record(round, None)).unwrap();
    }
    drop((log, snapshots));
    let file = dir.path().join("history.jsonl");
    let mut text = fs::read(&file).unwrap();
    text.truncate(text.len() - 10);
    fs::write(&file, &text).unwrap();
    let (_log, snapshots) = parts(dir.path());
    snapshots.append_history(&record(9, Some(0.5))).unwrap();
    assert_eq!(snapshots.history().unwrap(), [record(1, None), record(2, None), record(9, Some(0.5))]);
}

/// A running master appends two lines a round; the file stays within a bound.
#[test]
fn the_history_of_100_000_rounds_stays_within_its_bound() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, snapshots) = parts(dir.path());
    let file = dir.path().join("history.jsonl");
    let mut largest = 0;
    for round in 1..=100_000 {
        for test_accuracy in [None, Some(0.5)] {
            let record = HistoryRecord { bits_per_param: 1.0 / 3.0, ..record(round, test_accuracy) };
            snapshots.append_history(&record).unwrap();
        }
        if round % 100 == 0 {
            largest = largest.max(fs::metadata(&file).unwrap().len());
        }
    }
    assert!(largest < 5_000_000, "{largest} bytes");
    let history = crate::store::newest_records(snapshots.history().unwrap(), u64::MAX);
    assert!(
        history.len() == 10_000
            && history[9_999] == HistoryRecord { bits_per_param: 1.0 / 3.0, ..record(100_000, Some(0.5)) }
    );
}

#[test]
fn a_journal_of_version_1_is_read_and_finished_in_its_version() {
    let whole = include_bytes!("../../../tests/fixtures/state-v1/journal-0000000000.fl");
    let fingerprint: [u8; 32] = whole[16..48].try_into().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal-0000000000.fl");
    let mut last = 0;
    for len in 0..=whole.len() {
        let mut records = Vec::new();
        let visit = &mut |record| {
            records.push(record);
            Ok(())
        };
        journal_format::read(&mut Cursor::new(&whole[..len]), &path, 0, &fingerprint, visit).unwrap();
        assert!(records.len() == last || records.len() == last + 1);
        last = records.len();
        let Some(Record::Closed(how)) = records.last() else { continue };
        assert_eq!((how.updates, records.len(), len), (2, 3, whole.len()));
        assert!(how.opened_ts > 1.7e9 && how.closed_ts >= how.opened_ts);
    }
    assert_eq!(last, 3);
    // Without its close, it goes on.
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let (mut log, _snapshots) = open(dir.path(), fingerprint).unwrap();
    log.append(0, &update(&b"third"[..])).unwrap();
    log.append(0, &closed(3)).unwrap();
    log.sync().unwrap();
    let replayed = log.replay(0, &mut |_| Ok(())).unwrap().unwrap();
    let Record::Closed(how) = closed(3) else { unreachable!() };
    assert_eq!((replayed.updates, replayed.version, replayed.closed), (3, 1, Some(how)));
}
