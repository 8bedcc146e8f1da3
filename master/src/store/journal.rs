//! Accepted updates on disk, before they are acknowledged.
//!
//! ```text
//! file    magic 8 "FLJRNL" 1 10 | round 8 | fingerprint 32 | crc32 of these 4 | records
//! record  magic 4 "FLJR" | crc32 of the rest 4 | durable_len 8 | kind 4 | meta_len 4 | body_len 4
//!         | meta (JSON) | body
//! ```
//! All numbers little-endian. `durable_len` is the length of the file that was known to be on disk
//! when the record was written. It tells a torn tail from damage: a record that cannot be read is
//! damage if a later one knows it to have been on disk.

use super::{StoreError, files};
use crate::{federation::intake::Clip, metrics::Metrics};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::{self, JoinHandle},
    time::Instant,
};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

const FILE_MAGIC: &[u8; 8] = b"FLJRNL\x01\n";
const FILE_HEADER: usize = 8 + 8 + 32 + 4;
const RECORD_MAGIC: &[u8; 4] = b"FLJR";
const RECORD_HEADER: usize = 4 + 4 + 8 + 4 + 4 + 4;
/// Bytes after which a group commit stops collecting.
const MAX_BATCH_BYTES: usize = 32 << 20;

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// An accepted update; its body is the container.
    Update = 1,
    /// The round was closed with the updates before this record.
    Closed = 2,
}

/// What is kept of a request beside its body.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RecordMeta {
    /// Address of the sender.
    pub ip: String,
    /// When it came, in seconds since 1970.
    pub received_ts: f64,
    /// Bytes of the request's body, which was JSON perhaps.
    pub wire_bytes: u64,
    /// The factor that its norm was clipped by when it was accepted, as bits (decimal numbers may be rounded
    /// when they are read). Journals of older versions lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_bits: Option<u64>,
    /// The same for the change of the control variate; left out where that was not clipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_clip_bits: Option<u64>,
}

impl RecordMeta {
    /// Adds what the update was clipped by.
    #[must_use]
    pub fn with_clip(self, clip: Clip) -> Self {
        let control = (clip.control != 1.0).then_some(clip.control.to_bits());
        Self { clip_bits: Some(clip.update.to_bits()), control_clip_bits: control, ..self }
    }

    /// What the update was clipped by, if that is known.
    pub fn clip(&self) -> Option<Clip> {
        let control = self.control_clip_bits.map_or(1.0, f64::from_bits);
        self.clip_bits.map(|bits| Clip { update: f64::from_bits(bits), control })
    }
}

/// One record.
#[derive(Debug, Clone)]
pub struct Record {
    /// What it says.
    pub kind: RecordKind,
    /// Beside the body.
    pub meta: RecordMeta,
    /// The update container.
    pub body: Bytes,
}

/// What a replay found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Length of the valid part: what comes after it was never acknowledged.
    pub valid_len: u64,
    /// Whether the round was closed.
    pub closed: bool,
}

struct Append {
    round: u64,
    record: Record,
    done: oneshot::Sender<Result<(), String>>,
}

/// Hands records to the thread that appends them: one fsync for all that came meanwhile.
#[derive(Debug)]
pub struct Journal {
    /// `None` once it is stopped.
    appends: Mutex<Option<mpsc::Sender<Append>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Journal {
    pub(super) fn start(
        dir: PathBuf,
        fingerprint: [u8; 32],
        resume: Option<(u64, u64)>,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        // Unbounded, but every sender holds a place of the bounded decoding queue or of the round.
        let (sender, receiver) = mpsc::channel();
        let mut appender =
            Appender { dir, fingerprint, metrics, round: None, valid_len: 0, file: None, failing: false };
        if let Some((round, valid_len)) = resume {
            (appender.round, appender.valid_len) = (Some(round), valid_len);
        }
        let thread =
            thread::Builder::new().name("journal".to_owned()).spawn(move || appender.run(&receiver))?;
        Ok(Self { appends: Mutex::new(Some(sender)), thread: Mutex::new(Some(thread)) })
    }

    /// Queues a record for a round's journal; the receiver resolves once it is on disk. Records of
    /// one round must not follow those of a later one.
    pub fn append(&self, round: u64, record: Record) -> oneshot::Receiver<Result<(), String>> {
        let (done, receiver) = oneshot::channel();
        if let Some(sender) = &*self.appends.lock().unwrap_or_else(PoisonError::into_inner) {
            // A thread that is gone shows as a closed receiver.
            let _ = sender.send(Append { round, record, done });
        }
        receiver
    }

    /// Waits until everything queued is on disk. Blocks: call it off the async threads.
    pub fn stop(&self) {
        self.appends.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

struct Appender {
    dir: PathBuf,
    fingerprint: [u8; 32],
    metrics: Arc<Metrics>,
    round: Option<u64>,
    /// Bytes of the file that are known to be on disk.
    valid_len: u64,
    /// `None` after a failure: the next try starts from the valid part again.
    file: Option<File>,
    failing: bool,
}

impl Appender {
    fn run(mut self, appends: &mpsc::Receiver<Append>) {
        let mut carried: Option<Append> = None;
        while let Some(first) = carried.take().or_else(|| appends.recv().ok()) {
            let (round, mut bytes) = (first.round, first.record.body.len());
            let mut batch = vec![first];
            while bytes < MAX_BATCH_BYTES {
                match appends.try_recv() {
                    Ok(next) if next.round == round => {
                        bytes += next.record.body.len();
                        batch.push(next);
                    }
                    Ok(next) => {
                        carried = Some(next);
                        break;
                    }
                    Err(_) => break,
                }
            }
            let started = Instant::now();
            let result = self.commit(round, &batch);
            self.metrics.journal_commit(started.elapsed(), batch.len());
            self.report(&result);
            let result = result.map_err(|error| error.to_string());
            for append in batch {
                let _ = append.done.send(result.clone());
            }
        }
    }

    fn report(&mut self, result: &io::Result<()>) {
        match result {
            Err(error) if !self.failing => {
                self.failing = true;
                error!(%error, "the journal cannot be written: updates are refused until it can");
            }
            Ok(()) if self.failing => {
                self.failing = false;
                info!("the journal can be written again");
            }
            _ => {}
        }
    }

    fn commit(&mut self, round: u64, batch: &[Append]) -> io::Result<()> {
        if self.round != Some(round) {
            (self.round, self.valid_len, self.file) = (Some(round), 0, None);
        }
        let result = self.write(round, batch);
        if result.is_err() {
            self.file = None;
        }
        result
    }

    fn write(&mut self, round: u64, batch: &[Append]) -> io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => {
                let mut file = files::open_private(&files::path(&self.dir, "journal", round))?;
                file.set_len(self.valid_len)?;
                file.seek(SeekFrom::Start(self.valid_len))?;
                file
            }
        };
        let new = self.valid_len == 0;
        let mut len = self.valid_len;
        if new {
            file.write_all(&file_header(round, &self.fingerprint))?;
            len = FILE_HEADER as u64;
        }
        for append in batch {
            let head = record_head(&append.record, self.valid_len)?;
            file.write_all(&head)?;
            file.write_all(&append.record.body)?;
            len += (head.len() + append.record.body.len()) as u64;
        }
        file.sync_data()?;
        if new {
            files::sync_dir(&self.dir)?;
        }
        self.valid_len = len;
        self.file = Some(file);
        Ok(())
    }
}

fn file_header(round: u64, fingerprint: &[u8; 32]) -> Vec<u8> {
    let mut header = FILE_MAGIC.to_vec();
    header.extend(round.to_le_bytes());
    header.extend(fingerprint);
    header.extend(crc32fast::hash(&header).to_le_bytes());
    header
}

fn record_head(record: &Record, durable_len: u64) -> io::Result<Vec<u8>> {
    let meta = serde_json::to_vec(&record.meta).map_err(io::Error::other)?;
    let mut head = Vec::with_capacity(RECORD_HEADER + meta.len());
    head.extend(RECORD_MAGIC);
    head.extend([0; 4]);
    head.extend(durable_len.to_le_bytes());
    head.extend((record.kind as u32).to_le_bytes());
    head.extend(length(meta.len())?);
    head.extend(length(record.body.len())?);
    head.extend(meta);
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[8..]);
    crc.update(&record.body);
    head[4..8].copy_from_slice(&crc.finalize().to_le_bytes());
    Ok(head)
}

fn length(len: usize) -> io::Result<[u8; 4]> {
    u32::try_from(len).map(u32::to_le_bytes).map_err(io::Error::other)
}

/// Reads a journal, record by record.
pub(super) fn replay(
    path: &Path,
    round: u64,
    fingerprint: &[u8; 32],
    visit: &mut dyn FnMut(Record) -> Result<(), StoreError>,
) -> Result<Option<Replayed>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StoreError::io("open", path)(error)),
    };
    let io_error = |error| StoreError::io("read", path)(error);
    let total = file.metadata().map_err(io_error)?.len();
    let mut input = BufReader::with_capacity(1 << 16, file);
    let mut replayed = Replayed { valid_len: 0, closed: false };
    let mut header = Vec::new();
    input.by_ref().take(FILE_HEADER as u64).read_to_end(&mut header).map_err(io_error)?;
    if header == file_header(round, fingerprint) {
        replayed.valid_len = FILE_HEADER as u64;
        while let Some((record, len)) =
            read_record(&mut input, total - replayed.valid_len).map_err(io_error)?
        {
            replayed.valid_len += len;
            replayed.closed |= record.kind == RecordKind::Closed;
            visit(record)?;
        }
    } else if header.len() == FILE_HEADER
        && header.starts_with(FILE_MAGIC)
        && header[..48] != file_header(round, fingerprint)[..48]
        && header[48..] == crc32fast::hash(&header[..48]).to_le_bytes()
    {
        return Err(StoreError::OtherModel(path.to_owned()));
    }
    if replayed.valid_len < total {
        check_tail(path, replayed.valid_len, total)?;
    }
    Ok(Some(replayed))
}

/// The next record, or `None` at the first that cannot be read.
fn read_record(input: &mut impl Read, left: u64) -> io::Result<Option<(Record, u64)>> {
    let mut head = [0; RECORD_HEADER];
    if left < RECORD_HEADER as u64 {
        return Ok(None);
    }
    input.read_exact(&mut head)?;
    let Some((_, content_len)) = parse_head(&head).filter(|(_, len)| *len <= left - RECORD_HEADER as u64)
    else {
        return Ok(None);
    };
    let mut content = vec![0; content_len as usize];
    input.read_exact(&mut content)?;
    Ok(parse_record(&head, content).map(|record| (record, RECORD_HEADER as u64 + content_len)))
}

/// `durable_len` and length of meta and body.
fn parse_head(head: &[u8; RECORD_HEADER]) -> Option<(u64, u64)> {
    let number =
        |range: std::ops::Range<usize>| head[range].iter().rev().fold(0, |n, b| (n << 8) | u64::from(*b));
    (head[..4] == *RECORD_MAGIC).then(|| (number(8..16), number(20..24) + number(24..28)))
}

fn parse_record(head: &[u8; RECORD_HEADER], content: Vec<u8>) -> Option<Record> {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[8..]);
    crc.update(&content);
    if head[4..8] != crc.finalize().to_le_bytes() {
        return None;
    }
    let kind = match head[16] {
        1 => RecordKind::Update,
        2 => RecordKind::Closed,
        _ => return None,
    };
    let meta_len = u32::from_le_bytes([head[20], head[21], head[22], head[23]]) as usize;
    let content = Bytes::from(content);
    let meta = serde_json::from_slice(content.get(..meta_len)?).ok()?;
    Some(Record { kind, meta, body: content.slice(meta_len..) })
}

/// What cannot be read is a torn tail, unless a whole record after it knows that it was on disk.
fn check_tail(path: &Path, valid_len: u64, total: u64) -> Result<(), StoreError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(valid_len))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        Ok(tail)
    };
    let tail = read().map_err(StoreError::io("read", path))?;
    for start in 0..tail.len().saturating_sub(RECORD_HEADER) {
        let Some((head, rest)) = tail[start..].split_first_chunk::<RECORD_HEADER>() else { break };
        let Some((durable_len, len)) = parse_head(head) else { continue };
        if durable_len > valid_len
            && len <= rest.len() as u64
            && parse_record(head, rest[..len as usize].to_vec()).is_some()
        {
            return Err(StoreError::damaged(
                path,
                format!("the record at byte {valid_len} was on disk and cannot be read"),
            ));
        }
    }
    warn!(
        path = %path.display(),
        torn_bytes = total - valid_len,
        "the journal ends in a record that was never acknowledged: it is dropped"
    );
    Ok(())
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
