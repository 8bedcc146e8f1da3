//! The bytes of a checkpoint: a finished round, from which the next one goes on.
//!
//! ```text
//! magic      8   "FLCKPT" 1 10
//! header_len 4   u32 little-endian
//! model_len  8   u64 little-endian
//! header         JSON
//! model          the safetensors file that GET /global sends
//! vectors        the strategy's vectors, f32 little-endian, one after the other
//! updates        with lazy upload the workers' last updates, one after the other
//! digest    32   SHA-256 of everything before it
//! ```

use super::{StoreError, StoredSnapshot};
pub use crate::federation::Snapshot as Checkpoint;
use crate::{
    federation::{
        intake::lazy::CachedUpdate,
        model::hex,
        step::{OptimizerState, ServerState},
    },
    memory,
};
use bytes::Bytes;
use fl_protocol::WorkerId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    path::Path,
    sync::Arc,
};

const MAGIC: &[u8; 8] = b"FLCKPT\x01\n";
const PREFIX: usize = 8 + 4 + 8;
const DIGEST: usize = 32;
/// Bytes that are read at a time where they are not kept.
const CHUNK: usize = 64 << 10;

/// How much of a checkpoint is wanted. All of it is verified in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Round and participants.
    Header,
    /// The same and the model.
    Model,
    /// Everything.
    Everything,
}

#[derive(Serialize, Deserialize)]
struct Header {
    round: u64,
    fingerprint: String,
    participants: Vec<WorkerId>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    newest: BTreeMap<WorkerId, u64>,
    /// Names and lengths of the strategy's vectors. Older versions wrote lengths only, as `vectors`.
    #[serde(default)]
    server: Vec<(String, usize)>,
    #[serde(default, skip_serializing)]
    vectors: Vec<usize>,
    /// Older versions wrote the model's last steps here.
    #[serde(default, skip_serializing)]
    steps: Vec<f32>,
    /// Worker, round and length of the last updates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    last_updates: Vec<(WorkerId, u64, usize)>,
    version: String,
}

impl Checkpoint {
    /// Writes its bytes.
    ///
    /// # Errors
    /// If `out` fails.
    pub fn encode(&self, fingerprint: &[u8; 32], out: &mut dyn Write) -> io::Result<()> {
        let vectors = self.server.to_vectors();
        let header = Header {
            round: self.round,
            fingerprint: hex(fingerprint),
            participants: self.participants.clone(),
            newest: self.newest.clone(),
            server: vectors.iter().map(|(name, vector)| ((*name).to_owned(), vector.len())).collect(),
            vectors: Vec::new(),
            steps: Vec::new(),
            last_updates: self
                .last_updates
                .iter()
                .map(|(worker, last)| (worker.clone(), last.round, last.body.len()))
                .collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let header = serde_json::to_vec(&header).map_err(io::Error::other)?;
        let mut out = Hashing { inner: out, hash: Sha256::new() };
        out.write_all(MAGIC)?;
        out.write_all(&(header.len() as u32).to_le_bytes())?;
        out.write_all(&(self.model.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        out.write_all(&self.model)?;
        for (_, vector) in &vectors {
            for chunk in vector.chunks(4096) {
                let bytes: Vec<u8> = chunk.iter().flat_map(|v| v.to_le_bytes()).collect();
                out.write_all(&bytes)?;
            }
        }
        for last in self.last_updates.values() {
            out.write_all(&last.body)?;
        }
        let Hashing { inner, hash } = out;
        inner.write_all(&hash.finalize())
    }

    /// Reads the checkpoint that is called `path` and verifies it. What is not wanted takes no memory.
    ///
    /// # Errors
    /// If it cannot be read, is damaged or belongs to another model.
    pub fn decode(
        path: &Path,
        stored: StoredSnapshot,
        fingerprint: &[u8; 32],
        keep: Keep,
    ) -> Result<Self, StoreError> {
        let damaged = |reason: &str| StoreError::damaged(path, reason);
        let StoredSnapshot { len, mut content } = stored;
        let left = len
            .checked_sub(DIGEST as u64)
            .filter(|left| *left >= PREFIX as u64)
            .ok_or_else(|| damaged("it is cut short, or no checkpoint"))?;
        let mut body = Body { path, input: &mut *content, left, hash: Sha256::new() };
        let parsed = match Self::parse(&mut body, fingerprint, keep) {
            // Nothing else can be said about what was not read.
            Err(error @ StoreError::Io { .. }) => return Err(error),
            parsed => parsed,
        };
        body.skip(body.left)?;
        let hash = body.hash.finalize();
        let mut digest = [0; DIGEST];
        content.read_exact(&mut digest).map_err(StoreError::io("read", path))?;
        // What damaged bytes seem to say does not count.
        if hash[..] == digest { parsed } else { Err(damaged("its checksum does not fit")) }
    }

    /// Reads what comes before the digest, as far as it is wanted. Nothing is known to be intact yet: every length
    /// is held against the bytes that are there.
    fn parse(body: &mut Body<'_>, fingerprint: &[u8; 32], keep: Keep) -> Result<Self, StoreError> {
        let path = body.path;
        let damaged = |reason: &str| StoreError::damaged(path, reason);
        let mut prefix = [0; PREFIX];
        body.read(&mut prefix)?;
        if !prefix.starts_with(MAGIC) {
            return Err(damaged("it is cut short, or no checkpoint"));
        }
        let (header_len, model_len) = (le(&prefix[8..12]), le(&prefix[12..20]));
        let header = body.take(header_len)?.ok_or_else(|| damaged("its lengths do not fit"))?;
        let header: Header = serde_json::from_slice(&header)
            .map_err(|error| damaged(&format!("its header cannot be read: {error}")))?;
        if header.fingerprint != hex(fingerprint) {
            return Err(StoreError::OtherModel(path.to_owned()));
        }
        let mut checkpoint = Self {
            round: header.round,
            participants: header.participants,
            newest: header.newest,
            model: Bytes::new(),
            server: Arc::default(),
            last_updates: BTreeMap::new(),
        };
        if keep == Keep::Header {
            return Ok(checkpoint);
        }
        checkpoint.model = body.take(model_len)?.ok_or_else(|| damaged("its lengths do not fit"))?.into();
        if keep == Keep::Model {
            return Ok(checkpoint);
        }
        let vectors_fit = || damaged("its vectors do not fit");
        let mut unnamed = Vec::new();
        for len in header.vectors {
            unnamed.push(body.vector(len)?.ok_or_else(vectors_fit)?);
        }
        let mut vectors = Vec::new();
        for (name, len) in header.server {
            vectors.push((name, body.vector(len)?.ok_or_else(vectors_fit)?));
        }
        let mut server = ServerState::from_vectors(vectors).map_err(|error| damaged(&error.to_string()))?;
        if !unnamed.is_empty() {
            server.optimizer = OptimizerState::Unnamed { vectors: unnamed };
        }
        if !header.steps.is_empty() {
            server.squared_steps = header.steps;
        }
        checkpoint.server = Arc::new(server);
        let updates_fit = || damaged("its workers' last updates do not fit");
        for (worker, round, len) in header.last_updates {
            let update = body.take(len as u64)?.ok_or_else(updates_fit)?;
            checkpoint.last_updates.insert(worker, CachedUpdate { round, body: update.into() });
        }
        if body.left > 0 {
            return Err(updates_fit());
        }
        Ok(checkpoint)
    }
}

/// What a checkpoint consists of before its digest, hashed as it is read.
struct Body<'a> {
    path: &'a Path,
    input: &'a mut dyn Read,
    left: u64,
    hash: Sha256,
}

impl Body<'_> {
    /// Fills `out`, for which enough is left.
    fn read(&mut self, out: &mut [u8]) -> Result<(), StoreError> {
        for chunk in out.chunks_mut(CHUNK) {
            self.input.read_exact(chunk).map_err(StoreError::io("read", self.path))?;
            self.hash.update(chunk);
        }
        self.left = self.left.saturating_sub(out.len() as u64);
        Ok(())
    }

    /// The next bytes; `None` if fewer are left.
    fn take(&mut self, len: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(len) = usize::try_from(len).ok().filter(|_| len <= self.left) else { return Ok(None) };
        let mut bytes = memory::zeros(len);
        self.read(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// The next vector of `len` values; `None` if fewer are left.
    fn vector(&mut self, len: usize) -> Result<Option<Vec<f32>>, StoreError> {
        if len.checked_mul(size_of::<f32>()).is_none_or(|bytes| bytes as u64 > self.left) {
            return Ok(None);
        }
        let mut vector = Vec::with_capacity(len);
        let mut chunk = [0; 4096];
        while vector.len() < len {
            let bytes = &mut chunk[..(size_of::<f32>() * (len - vector.len())).min(4096)];
            self.read(bytes)?;
            vector.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
        }
        Ok(Some(vector))
    }

    /// Reads bytes that are not wanted.
    fn skip(&mut self, len: u64) -> Result<(), StoreError> {
        let mut chunk = vec![0; CHUNK];
        let mut left = len;
        while left > 0 {
            let now = left.min(CHUNK as u64) as usize;
            self.read(&mut chunk[..now])?;
            left -= now as u64;
        }
        Ok(())
    }
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::federation::step::{OptimizerState, optimizer::AdaptiveRule};

    fn sample() -> Checkpoint {
        Checkpoint {
            round: 12,
            participants: vec!["a".parse().unwrap(), "b".parse().unwrap()],
            newest: BTreeMap::from([("a".parse().unwrap(), 9)]),
            model: Bytes::from_static(b"a model"),
            server: Arc::new(ServerState {
                optimizer: OptimizerState::Adaptive {
                    rule: AdaptiveRule::Adam,
                    first_moment: vec![1.0, 2.0],
                    second_moment: vec![3.0; 5000],
                },
                squared_steps: vec![0.1, 1e-7],
            }),
            last_updates: BTreeMap::from([
                ("a".parse().unwrap(), CachedUpdate { round: 11, body: Bytes::from_static(b"an update") }),
                ("b".parse().unwrap(), CachedUpdate { round: 4, body: Bytes::from_static(b"another") }),
            ]),
        }
    }

    fn encoded(checkpoint: &Checkpoint) -> Bytes {
        let mut bytes = Vec::new();
        checkpoint.encode(&[7; 32], &mut bytes).unwrap();
        bytes.into()
    }

    fn stored(bytes: &Bytes) -> StoredSnapshot {
        StoredSnapshot { len: bytes.len() as u64, content: Box::new(io::Cursor::new(bytes.clone())) }
    }

    fn decoded(bytes: &Bytes, keep: Keep) -> Result<Checkpoint, StoreError> {
        Checkpoint::decode("c.fl".as_ref(), stored(bytes), &[7; 32], keep)
    }

    #[test]
    fn reads_back_what_was_written() {
        let bytes = encoded(&sample());
        let read = decoded(&bytes, Keep::Everything).unwrap();
        assert_eq!((read.round, &read.model[..], &read.server), (12, &b"a model"[..], &sample().server));
        assert_eq!((read.participants, read.newest), (sample().participants, sample().newest));
        assert_eq!(read.last_updates, sample().last_updates);
        assert!(decoded(&bytes, Keep::Header).unwrap().model.is_empty());
        let read = decoded(&bytes, Keep::Model).unwrap();
        assert_eq!((&read.model[..], read.server), (&b"a model"[..], Arc::default()));
    }

    #[test]
    fn another_models_checkpoint_is_refused() {
        let stored = stored(&encoded(&sample()));
        let result = Checkpoint::decode("c.fl".as_ref(), stored, &[8; 32], Keep::Everything);
        assert!(matches!(result, Err(StoreError::OtherModel(_))));
    }

    #[test]
    fn any_flipped_bit_and_any_truncation_is_noticed() {
        let good = encoded(&Checkpoint { server: Arc::default(), ..sample() });
        for i in 0..good.len() {
            let mut bad = good.to_vec();
            bad[i] ^= 1 << (i % 8);
            // Whatever the flipped bit seems to say, it is damage: a start goes on from an earlier checkpoint.
            for keep in [Keep::Header, Keep::Model, Keep::Everything] {
                let result = decoded(&bad.clone().into(), keep);
                assert!(matches!(result, Err(StoreError::Damaged { .. })), "flip in byte {i}: {result:?}");
            }
            assert!(decoded(&good.slice(..i), Keep::Everything).is_err(), "cut at byte {i}");
        }
    }
}
