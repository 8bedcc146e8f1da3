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

use super::StoreError;
pub use crate::federation::Snapshot as Checkpoint;
use crate::federation::{
    intake::lazy::CachedUpdate,
    model::hex,
    step::{OptimizerState, ServerState},
};
use bytes::Bytes;
use fl_protocol::WorkerId;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    io::{self, Write},
    path::Path,
};

const MAGIC: &[u8; 8] = b"FLCKPT\x01\n";
const PREFIX: usize = 8 + 4 + 8;
const DIGEST: usize = 32;

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

    /// Verifies and reads the bytes of the checkpoint that is called `path`. Without `content` only the header
    /// is kept.
    ///
    /// # Errors
    /// If it is damaged or belongs to another model.
    pub fn decode(
        path: &Path,
        file: &Bytes,
        fingerprint: &[u8; 32],
        content: bool,
    ) -> Result<Self, StoreError> {
        let damaged = |reason: &str| StoreError::damaged(path, reason);
        if file.len() < PREFIX + DIGEST || !file.starts_with(MAGIC) {
            return Err(damaged("it is cut short, or no checkpoint"));
        }
        let (hashed, digest) = file.split_at(file.len() - DIGEST);
        if Sha256::digest(hashed)[..] != *digest {
            return Err(damaged("its checksum does not fit"));
        }
        // Lengths are trusted from here on: the checksum covers them.
        let header_len = le(&hashed[8..12]) as usize;
        let model_len = le(&hashed[12..20]) as usize;
        let lengths_fit = PREFIX.checked_add(header_len).and_then(|n| n.checked_add(model_len));
        let model_end = lengths_fit
            .filter(|end| *end <= hashed.len())
            .ok_or_else(|| damaged("its lengths do not fit"))?;
        let header: Header = serde_json::from_slice(&hashed[PREFIX..PREFIX + header_len])
            .map_err(|error| damaged(&format!("its header cannot be read: {error}")))?;
        if header.fingerprint != hex(fingerprint) {
            return Err(StoreError::OtherModel(path.to_owned()));
        }
        let mut checkpoint = Self {
            round: header.round,
            participants: header.participants,
            newest: header.newest,
            model: Bytes::new(),
            server: ServerState::default(),
            last_updates: BTreeMap::new(),
        };
        if content {
            checkpoint.model = file.slice(PREFIX + header_len..model_end);
            let names_fit = || damaged("its vectors do not fit");
            let (unnamed, rest) =
                read_vectors(&hashed[model_end..], header.vectors.iter().copied()).ok_or_else(names_fit)?;
            let lengths = header.server.iter().map(|(_, len)| *len);
            let (vectors, rest) = read_vectors(rest, lengths).ok_or_else(names_fit)?;
            let names = header.server.into_iter().map(|(name, _)| name);
            checkpoint.server =
                ServerState::from_vectors(names.zip(vectors)).map_err(|error| damaged(&error.to_string()))?;
            if !unnamed.is_empty() {
                checkpoint.server.optimizer = OptimizerState::Unnamed { vectors: unnamed };
            }
            if !header.steps.is_empty() {
                checkpoint.server.squared_steps = header.steps;
            }
            checkpoint.last_updates = read_updates(rest, header.last_updates)
                .ok_or_else(|| damaged("its workers' last updates do not fit"))?;
        }
        Ok(checkpoint)
    }
}

/// The vectors, and what comes after them.
fn read_vectors(mut bytes: &[u8], lengths: impl Iterator<Item = usize>) -> Option<(Vec<Vec<f32>>, &[u8])> {
    let mut vectors = Vec::new();
    for len in lengths {
        let (vector, rest) = bytes.split_at_checked(len.checked_mul(4)?)?;
        let (values, _) = vector.as_chunks::<4>();
        vectors.push(values.iter().map(|b| f32::from_le_bytes(*b)).collect());
        bytes = rest;
    }
    Some((vectors, bytes))
}

fn read_updates(
    mut bytes: &[u8],
    list: Vec<(WorkerId, u64, usize)>,
) -> Option<BTreeMap<WorkerId, CachedUpdate>> {
    let mut updates = BTreeMap::new();
    for (worker, round, len) in list {
        let (body, rest) = bytes.split_at_checked(len)?;
        updates.insert(worker, CachedUpdate { round, body: Bytes::copy_from_slice(body) });
        bytes = rest;
    }
    bytes.is_empty().then_some(updates)
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
            server: ServerState {
                optimizer: OptimizerState::Adaptive {
                    rule: AdaptiveRule::Adam,
                    first_moment: vec![1.0, 2.0],
                    second_moment: vec![3.0; 5000],
                },
                squared_steps: vec![0.1, 1e-7],
            },
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

    fn decoded(bytes: &Bytes, content: bool) -> Result<Checkpoint, StoreError> {
        Checkpoint::decode("c.fl".as_ref(), bytes, &[7; 32], content)
    }

    #[test]
    fn reads_back_what_was_written() {
        let bytes = encoded(&sample());
        let read = decoded(&bytes, true).unwrap();
        assert_eq!((read.round, &read.model[..], &read.server), (12, &b"a model"[..], &sample().server));
        assert_eq!((read.participants, read.newest), (sample().participants, sample().newest));
        assert_eq!(read.last_updates, sample().last_updates);
        assert!(decoded(&bytes, false).unwrap().model.is_empty());
    }

    #[test]
    fn another_models_checkpoint_is_refused() {
        let result = Checkpoint::decode("c.fl".as_ref(), &encoded(&sample()), &[8; 32], true);
        assert!(matches!(result, Err(StoreError::OtherModel(_))));
    }

    #[test]
    fn any_flipped_bit_and_any_truncation_is_noticed() {
        let good = encoded(&Checkpoint { server: ServerState::default(), ..sample() });
        for i in 0..good.len() {
            let mut bad = good.to_vec();
            bad[i] ^= 1 << (i % 8);
            assert!(decoded(&bad.into(), true).is_err(), "flip in byte {i}");
            assert!(decoded(&good.slice(..i), true).is_err(), "cut at byte {i}");
        }
    }
}
