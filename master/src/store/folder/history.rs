//! The history file: a JSON line per finished round, written again once it is evaluated.

use super::{Folder, disk::SyncPoint};
use crate::store::{MAX_RECORDS, StoreError, newest_records};
use fl_protocol::HistoryRecord;
use std::{
    io::{self, Read, Seek, SeekFrom, Write},
    path::PathBuf,
};

pub(super) const NAME: &str = "history.jsonl";

/// Lines beyond which the file is written anew, with the newest [`MAX_RECORDS`] alone. A line is about 300
/// bytes, and a round has two, or some more if workers evaluate its model.
const MAX_LINES: usize = MAX_RECORDS + MAX_RECORDS / 2;

/// What is known of the file.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Its length and its lines; `None` until it has been looked at.
    seen: Option<(u64, usize)>,
    /// Lines at which it is written anew; more than [`MAX_LINES`] after that has failed.
    limit: Option<usize>,
}

pub(super) fn path(folder: &Folder) -> PathBuf {
    folder.dir.join(NAME)
}

/// The records in the file's order. A crash can leave half a line; a record is for people, so what can be read
/// is used.
pub(super) fn parse(text: &[u8]) -> Vec<HistoryRecord> {
    text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

impl History {
    /// Appends a record, and writes the file anew when it has become too long.
    pub(super) fn append(&mut self, folder: &Folder, record: &HistoryRecord) -> Result<(), StoreError> {
        self.append_line(folder, record).map_err(|error| {
            self.seen = None;
            StoreError::io("write", &path(folder))(error)
        })?;
        let lines = self.seen.map_or(0, |(_, lines)| lines);
        if lines <= self.limit.unwrap_or(MAX_LINES) {
            return Ok(());
        }
        // The file that is there stays good if this fails, on a full disk for example.
        self.limit = Some(lines + MAX_RECORDS / 10);
        let text = read(folder).map_err(StoreError::io("read", &path(folder)))?;
        self.rewrite(folder, &newest_records(parse(&text), u64::MAX))
    }

    /// Writes the file anew with these records alone.
    pub(super) fn rewrite(&mut self, folder: &Folder, records: &[HistoryRecord]) -> Result<(), StoreError> {
        let points = (SyncPoint::HistoryContent, SyncPoint::HistoryEntry);
        self.seen = None;
        folder.replace(&path(folder), points, &mut |file| {
            records.iter().try_for_each(|record| file.write_all(&line(record)?))
        })?;
        self.limit = None;
        Ok(())
    }

    fn append_line(&mut self, folder: &Folder, record: &HistoryRecord) -> io::Result<()> {
        let mut line = line(record)?;
        let (len, lines) = match self.seen {
            Some(seen) => seen,
            None => {
                let text = read(folder)?;
                // Half a line, which a crash has left, must not make this one unreadable.
                if text.last().is_some_and(|byte| *byte != b'\n') {
                    line.insert(0, b'\n');
                }
                (text.len() as u64, text.iter().filter(|byte| **byte == b'\n').count())
            }
        };
        let mut file = folder.disk.create(&path(folder))?;
        file.seek(SeekFrom::Start(len))?;
        file.write_all(&line)?;
        self.seen = Some((len + line.len() as u64, lines + 1));
        Ok(())
    }
}

fn read(folder: &Folder) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    match folder.disk.open(&path(folder)).and_then(|mut file| file.read_to_end(&mut text)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(text),
    }
}

fn line(record: &HistoryRecord) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(record).map_err(io::Error::other)?;
    line.push(b'\n');
    Ok(line)
}
