//! The bytes of a round's journal.
//!
//! ```text
//! file    magic 8 "FLJRNL" 2 10 | round 8 | fingerprint 32 | nonce 8 | crc32 of these 4 | records
//! record  magic 4 "FLJR" | crc32 of the rest 4 | nonce 8 | durable_len 8 | kind 4 | meta_len 4 | body_len 4
//!         | meta (JSON) | body
//! ```
//! All numbers little-endian. Kinds: 1 an update (meta: [`RecordMeta`], body: the container), 2 the round was
//! closed (meta: [`Closed`], no body), 3 the round was opened (meta `{}`, body: settings as JSON).
//!
//! `durable_len` is the length of the file that was known to be on disk when the record was written. It tells a
//! torn tail from damage: a record that cannot be read is damage if a later one knows it to have been on disk.
//!
//! `nonce` is random and the same in the header and in every record of a file. Bodies come from outside: without
//! it an update whose body contains a forged record would turn a torn tail into damage. The file is readable by
//! its owner alone, so nobody outside knows the nonce.
//!
//! Version 1 has no nonce in header and records, and no records of kind 3. Such files are read, and a round that
//! was begun in one is finished in it.

use super::{Closed, Record, RecordMeta, Replayed, StoreError};
use bytes::Bytes;
use std::{
    io::{self, BufReader, Read, Seek, SeekFrom},
    ops::Range,
    path::Path,
};
use tracing::warn;

const RECORD_MAGIC: &[u8; 4] = b"FLJR";
const NONCE: usize = 8;

const UPDATE: u32 = 1;
const CLOSED: u32 = 2;
const OPENED: u32 = 3;

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Without a nonce.
    V1,
    /// With this nonce in the header and in every record.
    V2([u8; NONCE]),
}

/// Where a journal goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// Length of the valid part: what comes after it was never acknowledged. At 0 the file begins anew.
    pub(super) len: u64,
    pub(super) layout: Layout,
}

impl Layout {
    fn version(self) -> u8 {
        match self {
            Self::V1 => 1,
            Self::V2(_) => 2,
        }
    }

    fn magic(self) -> [u8; 8] {
        [b'F', b'L', b'J', b'R', b'N', b'L', self.version(), b'\n']
    }

    fn nonce(&self) -> &[u8] {
        match self {
            Self::V1 => &[],
            Self::V2(nonce) => nonce,
        }
    }

    pub(super) fn header(self, round: u64, fingerprint: &[u8; 32]) -> Vec<u8> {
        let mut header = self.magic().to_vec();
        header.extend(round.to_le_bytes());
        header.extend(fingerprint);
        header.extend(self.nonce());
        header.extend(crc32fast::hash(&header).to_le_bytes());
        header
    }

    /// Bytes of a record before its meta.
    fn record_head(self) -> usize {
        4 + 4 + self.nonce().len() + 8 + 4 + 4 + 4
    }

    /// Everything of a record but its body, which follows.
    ///
    /// # Errors
    /// If it is longer than 4 GiB.
    pub(super) fn encode(self, record: &Record, durable_len: u64) -> io::Result<(Vec<u8>, &[u8])> {
        let (kind, meta, body): (_, _, &[u8]) = match record {
            Record::Update { meta, body } => (UPDATE, serde_json::to_vec(meta), body),
            Record::Closed(closed) => (CLOSED, serde_json::to_vec(closed), &[]),
            Record::Opened(settings) => (OPENED, Ok(b"{}".to_vec()), settings),
        };
        let meta = meta.map_err(io::Error::other)?;
        let mut head = Vec::with_capacity(self.record_head() + meta.len());
        head.extend(RECORD_MAGIC);
        head.extend([0; 4]);
        head.extend(self.nonce());
        head.extend(durable_len.to_le_bytes());
        head.extend(kind.to_le_bytes());
        head.extend(length(meta.len())?);
        head.extend(length(body.len())?);
        head.extend(meta);
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head[8..]);
        crc.update(body);
        head[4..8].copy_from_slice(&crc.finalize().to_le_bytes());
        Ok((head, body))
    }

    fn parse_head(self, head: &[u8]) -> Option<Head> {
        let nonce_end = 8 + self.nonce().len();
        if head[..4] != *RECORD_MAGIC || head[8..nonce_end] != *self.nonce() {
            return None;
        }
        let number = |range: Range<usize>| {
            head[nonce_end..][range].iter().rev().fold(0, |n, byte| (n << 8) | u64::from(*byte))
        };
        Some(Head {
            durable_len: number(0..8),
            kind: number(8..12) as u32,
            meta_len: number(12..16) as usize,
            content_len: number(12..16) + number(16..20),
        })
    }
}

fn length(len: usize) -> io::Result<[u8; 4]> {
    u32::try_from(len).map(u32::to_le_bytes).map_err(io::Error::other)
}

/// What the fixed part of a record says.
struct Head {
    durable_len: u64,
    kind: u32,
    meta_len: usize,
    /// Of meta and body.
    content_len: u64,
}

/// Reads a journal of `total` bytes, record by record.
///
/// # Errors
/// If it is damaged other than by a torn tail, belongs to another model, or `visit` fails.
pub(super) fn read(
    input: &mut (impl Read + Seek),
    name: &Path,
    round: u64,
    fingerprint: &[u8; 32],
    visit: &mut dyn FnMut(Record) -> Result<(), StoreError>,
) -> Result<(Replayed, Option<Position>), StoreError> {
    let io_error = |error| StoreError::io("read", name)(error);
    let total = input.seek(SeekFrom::End(0)).map_err(io_error)?;
    input.rewind().map_err(io_error)?;
    let mut input = BufReader::with_capacity(1 << 16, input);
    let Some(layout) = read_header(&mut input, name, round, fingerprint)? else {
        check_tail(&mut input, name, 0, total, None)?;
        return Ok((Replayed::default(), None));
    };
    let mut replayed = Replayed { version: layout.version(), ..Replayed::default() };
    let mut valid_len = layout.header(round, fingerprint).len() as u64;
    while let Some((head, content)) = read_record(&mut input, layout, total - valid_len).map_err(io_error)? {
        let record = record_of(&head, &content, layout, &replayed)
            .and_then(|record| replayed.note(&record).map(|()| record))
            .map_err(|reason| StoreError::damaged(name, format!("at byte {valid_len} {reason}")))?;
        valid_len += (layout.record_head() + content.len()) as u64;
        visit(record)?;
    }
    if valid_len < total {
        check_tail(&mut input, name, valid_len, total, Some(layout))?;
    }
    Ok((replayed, Some(Position { len: valid_len, layout })))
}

/// How the file is written; `None` if its header cannot be read.
fn read_header(
    input: &mut impl Read,
    name: &Path,
    round: u64,
    fingerprint: &[u8; 32],
) -> Result<Option<Layout>, StoreError> {
    let io_error = |error| StoreError::io("read", name)(error);
    // Magic, round and fingerprint are the same in both versions.
    let mut header = vec![0; 48];
    match input.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(io_error(error)),
    }
    let is_v2 = header[..8] == Layout::V2([0; NONCE]).magic();
    if !is_v2 && header[..8] != Layout::V1.magic() {
        return Ok(None);
    }
    let mut rest = Vec::new();
    let rest_len = if is_v2 { NONCE + 4 } else { 4 };
    input.take(rest_len as u64).read_to_end(&mut rest).map_err(io_error)?;
    if rest.len() < rest_len {
        return Ok(None);
    }
    let layout = match rest.first_chunk::<NONCE>() {
        Some(nonce) if is_v2 => Layout::V2(*nonce),
        _ => Layout::V1,
    };
    header.extend(rest);
    if header == layout.header(round, fingerprint) {
        return Ok(Some(layout));
    }
    let (hashed, crc) = header.split_at(header.len() - 4);
    if *crc == crc32fast::hash(hashed).to_le_bytes() {
        return Err(StoreError::OtherModel(name.to_owned()));
    }
    Ok(None)
}

/// The next record, or `None` at the first that cannot be read.
fn read_record(input: &mut impl Read, layout: Layout, left: u64) -> io::Result<Option<(Head, Bytes)>> {
    let mut head = vec![0; layout.record_head()];
    let Some(left) = left.checked_sub(head.len() as u64) else { return Ok(None) };
    input.read_exact(&mut head)?;
    let Some(parsed) = layout.parse_head(&head).filter(|parsed| parsed.content_len <= left) else {
        return Ok(None);
    };
    let mut content = vec![0; parsed.content_len as usize];
    input.read_exact(&mut content)?;
    Ok(is_whole(&head, &content).then(|| (parsed, content.into())))
}

/// Whether the checksum holds.
fn is_whole(head: &[u8], content: &[u8]) -> bool {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[8..]);
    crc.update(content);
    head[4..8] == crc.finalize().to_le_bytes()
}

/// A record whose checksum holds.
fn record_of(head: &Head, content: &Bytes, layout: Layout, before: &Replayed) -> Result<Record, String> {
    let Some((meta, _)) = content.split_at_checked(head.meta_len) else {
        return Err("a record is shorter than its meta".to_owned());
    };
    let unreadable = |error| format!("a record's meta cannot be read: {error}");
    match head.kind {
        UPDATE => Ok(Record::Update {
            meta: serde_json::from_slice::<RecordMeta>(meta).map_err(unreadable)?,
            body: content.slice(head.meta_len..),
        }),
        CLOSED => match serde_json::from_slice::<Closed>(meta) {
            Ok(closed) => Ok(Record::Closed(closed)),
            Err(_) if layout == Layout::V1 => Ok(Record::Closed(before.inferred_close())),
            Err(error) => Err(unreadable(error)),
        },
        OPENED => Ok(Record::Opened(content.slice(head.meta_len..))),
        kind => Err(format!("a record is of the kind {kind}, which only a later version knows")),
    }
}

/// What cannot be read is a torn tail, unless a whole record after it knows that it was on disk.
///
/// Without a `layout` the file's nonce is unknown: every record that is consistent in itself counts then.
fn check_tail(
    input: &mut (impl Read + Seek),
    name: &Path,
    valid_len: u64,
    total: u64,
    layout: Option<Layout>,
) -> Result<(), StoreError> {
    let mut tail = Vec::new();
    input
        .seek(SeekFrom::Start(valid_len))
        .and_then(|_| input.read_to_end(&mut tail))
        .map_err(StoreError::io("read", name))?;
    for start in 0..tail.len().saturating_sub(RECORD_MAGIC.len()) {
        if tail[start..start + 4] == *RECORD_MAGIC && knows_more(&tail[start..], valid_len, layout) {
            return Err(StoreError::damaged(
                name,
                format!("the record at byte {valid_len} was on disk and cannot be read"),
            ));
        }
    }
    if valid_len < total {
        warn!(
            path = %name.display(),
            torn_bytes = total - valid_len,
            "the journal ends in a record that was never acknowledged: it is dropped"
        );
    }
    Ok(())
}

/// Whether `bytes` begin with a whole record that was written when more than `valid_len` was on disk.
fn knows_more(bytes: &[u8], valid_len: u64, layout: Option<Layout>) -> bool {
    let in_layout = |layout: Layout| {
        let Some((head, rest)) = bytes.split_at_checked(layout.record_head()) else { return false };
        layout.parse_head(head).is_some_and(|parsed| {
            parsed.durable_len > valid_len
                && usize::try_from(parsed.content_len)
                    .ok()
                    .and_then(|len| rest.get(..len))
                    .is_some_and(|content| is_whole(head, content))
        })
    };
    match layout {
        Some(layout) => in_layout(layout),
        None => {
            let nonce = bytes.get(8..).and_then(|rest| rest.first_chunk::<NONCE>());
            in_layout(Layout::V1) || nonce.is_some_and(|nonce| in_layout(Layout::V2(*nonce)))
        }
    }
}
