//! The history file: a JSON line per finished round, written again once it is evaluated.

use super::{StoreError, files};
use fl_protocol::HistoryRecord;
use std::{
    collections::BTreeMap,
    fs,
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Records that are kept: a line is about 300 bytes.
pub(crate) const MAX_RECORDS: usize = 10_000;

fn path(dir: &Path) -> PathBuf {
    dir.join("history.jsonl")
}

/// Records up to round `last`, the oldest first; the last line about a round wins.
pub(super) fn load(dir: &Path, last: u64) -> Result<Vec<HistoryRecord>, StoreError> {
    let path = path(dir);
    let text = match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io("read", &path)(error)),
    };
    // A crash can leave half a line; a record is for people, so what can be read is used.
    let records: BTreeMap<u64, HistoryRecord> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<HistoryRecord>(line).ok())
        .filter(|record| record.round <= last)
        .map(|record| (record.round, record))
        .collect();
    let records: Vec<_> = records.into_values().collect();
    Ok(records[records.len().saturating_sub(MAX_RECORDS)..].to_vec())
}

/// Writes the file anew, without what is not needed any more.
pub(super) fn rewrite(dir: &Path, records: &[HistoryRecord]) -> Result<(), StoreError> {
    files::replace(&path(dir), |file| records.iter().try_for_each(|record| write_line(file, record)))
}

/// Appends a record.
pub(super) fn append(dir: &Path, record: &HistoryRecord) -> Result<(), StoreError> {
    let path = path(dir);
    let write = || -> io::Result<()> {
        let mut file = files::open_private(&path)?;
        file.seek(SeekFrom::End(0))?;
        let mut line = Vec::new();
        write_line(&mut line, record)?;
        file.write_all(&line)
    };
    write().map_err(StoreError::io("write", &path))
}

fn write_line(out: &mut dyn Write, record: &HistoryRecord) -> io::Result<()> {
    serde_json::to_writer(&mut *out, record).map_err(io::Error::other)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

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
            bytes_up: 4,
            reused: 0,
            bytes_saved: 0,
            bytes_down: 5,
            bits_per_param: 6.0,
        }
    }

    #[test]
    fn the_last_line_wins_and_torn_and_later_lines_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        for r in [record(1, None), record(2, None), record(1, Some(0.5)), record(3, None)] {
            append(dir.path(), &r).unwrap();
        }
        let file = path(dir.path());
        let mut text = fs::read(&file).unwrap();
        text.truncate(text.len() - 10);
        fs::write(&file, &text).unwrap();
        append(dir.path(), &record(9, None)).unwrap();
        let expected = vec![record(1, Some(0.5)), record(2, None)];
        assert_eq!(load(dir.path(), 8).unwrap(), expected);
        assert_eq!(load(dir.path(), 8).unwrap(), expected);
    }

    #[test]
    fn no_file_is_no_history() {
        assert_eq!(load(tempfile::tempdir().unwrap().path(), 5).unwrap(), []);
    }
}
