//! What was acknowledged is read back; what was not may be lost; damage is named.

use super::*;
use std::fs;

const FINGERPRINT: [u8; 32] = [9; 32];

fn record(body: &'static [u8]) -> Record {
    let meta = RecordMeta {
        ip: "127.0.0.1".into(),
        received_ts: 1.5,
        wire_bytes: body.len() as u64,
        clip_bits: Some(7),
    };
    Record { kind: RecordKind::Update, meta, body: Bytes::from_static(body) }
}

fn start(dir: &Path, resume: Option<(u64, u64)>) -> Journal {
    let metrics = Arc::new(Metrics::new(crate::Config::default().metrics).unwrap());
    Journal::start(dir.to_owned(), FINGERPRINT, resume, metrics).unwrap()
}

fn append_all(dir: &Path, resume: Option<(u64, u64)>, bodies: &[&'static [u8]]) {
    let journal = start(dir, resume);
    for body in bodies {
        journal.append(3, record(body)).blocking_recv().unwrap().unwrap();
    }
    journal.stop();
}

fn read(path: &Path) -> Result<(Vec<Vec<u8>>, Option<Replayed>), StoreError> {
    let mut bodies = Vec::new();
    let replayed = replay(path, 3, &FINGERPRINT, &mut |record| {
        bodies.push(record.body.to_vec());
        Ok(())
    })?;
    Ok((bodies, replayed))
}

fn path(dir: &Path) -> PathBuf {
    files::path(dir, "journal", 3)
}

#[test]
fn reads_back_and_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    append_all(dir.path(), None, &[b"one", b"two"]);
    let (bodies, replayed) = read(&path(dir.path())).unwrap();
    assert_eq!(bodies, [b"one", b"two"]);
    append_all(dir.path(), Some((3, replayed.unwrap().valid_len)), &[b"three"]);
    let (bodies, replayed) = read(&path(dir.path())).unwrap();
    assert_eq!(bodies, [&b"one"[..], b"two", b"three"]);
    assert!(!replayed.unwrap().closed);
}

#[test]
fn every_truncation_gives_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    append_all(dir.path(), None, &[b"one", b"two", b"three"]);
    let path = path(dir.path());
    let whole = fs::read(&path).unwrap();
    let mut last = 0;
    for len in 0..=whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        let (bodies, replayed) = read(&path).unwrap();
        assert!(bodies.len() == last || bodies.len() == last + 1);
        last = bodies.len();
        assert!(replayed.unwrap().valid_len <= len as u64);
    }
    assert_eq!(last, 3);
}

#[test]
fn damage_below_the_tail_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    append_all(dir.path(), None, &[b"one", b"two", b"three"]);
    let path = path(dir.path());
    let whole = fs::read(&path).unwrap();
    let last_record = {
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        read(&path).unwrap().1.unwrap().valid_len as usize
    };
    for i in 0..whole.len() {
        let mut bad = whole.clone();
        bad[i] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        match read(&path) {
            Ok((bodies, _)) => {
                assert!(i >= last_record, "damage in byte {i} went unnoticed");
                assert_eq!(bodies.len(), 2);
            }
            Err(error) => {
                assert!(i < last_record, "byte {i} belongs to the tail: {error}");
                assert!(error.to_string().contains("journal-0000000003.fl"), "{error}");
            }
        }
    }
}

#[test]
fn another_models_journal_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    append_all(dir.path(), None, &[b"one"]);
    let result = replay(&path(dir.path()), 3, &[1; 32], &mut |_| Ok(()));
    assert!(matches!(result, Err(StoreError::OtherModel(_))));
}

#[test]
fn concurrent_appends_share_their_fsyncs() {
    let dir = tempfile::tempdir().unwrap();
    let journal = start(dir.path(), None);
    let waiting: Vec<_> = (0..100).map(|_| journal.append(3, record(b"body"))).collect();
    for done in waiting {
        done.blocking_recv().unwrap().unwrap();
    }
    journal.stop();
    assert_eq!(read(&path(dir.path())).unwrap().0.len(), 100);
}

#[test]
fn a_failing_disk_is_an_error_and_recovers() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("state");
    let journal = start(&dir, None);
    assert!(journal.append(3, record(b"lost")).blocking_recv().unwrap().is_err());
    fs::create_dir(&dir).unwrap();
    journal.append(3, record(b"kept")).blocking_recv().unwrap().unwrap();
    journal.stop();
    assert_eq!(read(&path(&dir)).unwrap().0, [b"kept"]);
}
