//! Updates for the benchmarks: containers of a model's size, prepared before the measurement starts.

use anyhow::Context;
use fl_protocol::{ModelLayout, UpdateMeta, update, update::Encoded};
use fl_quant::{Encoder, Spec, encode_update};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::Path,
};

/// The round of a fresh container. It has ten digits, like every round that is patched in.
const ROUND: u64 = 1_000_000_000;
const WORKER: &str = "bench-000000";
const SEED: u64 = 42;
/// Bytes that are read from a file at a time; each connection has a buffer of that size.
const READ_BYTES: usize = 32 << 10;

/// A container whose worker and round can be changed in place.
#[derive(Debug)]
pub struct Template {
    /// All of it, or the header alone if the rest is in a file.
    bytes: Vec<u8>,
    rest: Option<File>,
    /// Size of the whole container.
    len: usize,
    worker_at: usize,
    round_at: usize,
    /// Length of the part that differs between clients: length field and JSON header.
    pub head_len: usize,
}

impl Template {
    /// The whole container, unless it was moved to a file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Size of the whole container.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Moves what all clients share to a file, so that the load takes no memory to speak of.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn move_to(mut self, path: &Path) -> io::Result<Self> {
        let mut file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.write_all(&self.bytes[self.head_len..])?;
        self.bytes.truncate(self.head_len);
        self.bytes.shrink_to_fit();
        self.rest = Some(file);
        Ok(self)
    }

    /// The part after the header from byte `at` on: what is in memory, or the next bytes of the file, read into
    /// `buffer`. Empty at the end.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn rest<'a>(&'a self, at: usize, buffer: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        let Some(file) = &self.rest else { return Ok(&self.bytes[self.head_len + at..]) };
        buffer.resize(READ_BYTES.min(self.len - self.head_len - at), 0);
        file.read_exact_at(buffer, at as u64)?;
        Ok(buffer)
    }

    /// Writes a client's number and a round into a copy of the header, [`Self::head_len`] bytes long.
    pub fn patch(&self, head: &mut Vec<u8>, client: usize, round: u64) {
        head.clear();
        head.extend_from_slice(&self.bytes[..self.head_len]);
        let digits = format!("{client:06}{round:010}");
        let (client, round) = digits.as_bytes().split_at(6);
        head[self.worker_at..self.worker_at + 6].copy_from_slice(client);
        head[self.round_at..self.round_at + 10].copy_from_slice(round);
    }
}

/// `count` different updates, encoded as a worker would, one after the other.
///
/// # Errors
/// If the quantizer does not support the number of bits.
pub fn templates<'a>(
    layout: &'a ModelLayout,
    spec: &'a Spec,
    count: usize,
) -> impl Iterator<Item = anyhow::Result<Template>> + 'a {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let shapes = layout.shapes();
    (0..count).map(move |index| {
        let x: Vec<f32> = (0..layout.parameters()).map(|_| heavy_tailed(&mut rng)).collect();
        let mut streams = Vec::new();
        let spec = Spec { seed: index as u64, ..*spec };
        encode_update(&mut Encoder::default(), &x, &shapes, &spec, &mut streams)?;
        drop(x);
        template(layout, &streams)
    })
}

/// Heavy-tailed like real deltas: the cube of a sum of four uniform numbers.
fn heavy_tailed(rng: &mut ChaCha8Rng) -> f32 {
    let sum: f32 = (0..4).map(|_| rng.random_range(-0.5f32..0.5)).sum();
    0.01 * sum.powi(3)
}

fn template(layout: &ModelLayout, streams: &[Vec<u8>]) -> anyhow::Result<Template> {
    let meta = UpdateMeta {
        worker_id: WORKER.parse().map_err(anyhow::Error::msg)?,
        round: ROUND,
        num_samples: 600,
        loss: Some(0.5),
        accuracy: None,
        compute_factor: None,
        local_steps: Some(5),
        local_norm: None,
        reuse: None,
        metrics: Default::default(),
    };
    let encoded: Vec<_> = streams.iter().map(|bytes| Encoded::Stream(bytes)).collect();
    let bytes = update::write(&meta, layout, &encoded)?;
    let declared = bytes.first_chunk::<8>().context("a container has a header")?;
    let head_len = 8 + u64::from_le_bytes(*declared) as usize;
    let find = |text: &str| {
        let position = bytes[..head_len].windows(text.len()).position(|window| window == text.as_bytes());
        position.with_context(|| format!("the container's header does not hold {text}"))
    };
    let worker_at = find(WORKER)? + WORKER.len() - 6;
    let round_at = find(&ROUND.to_string())?;
    Ok(Template { worker_at, round_at, head_len, len: bytes.len(), bytes, rest: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fl_model::ModelSpec;
    use fl_protocol::Update;
    use fl_quant::Scheme;

    #[test]
    fn a_patched_container_is_an_update_of_that_client_and_round() {
        let layout = ModelSpec::classifier("mlp", &[1, 8, 8], 10, 5000).unwrap().layout();
        let spec = Spec::new(Scheme::MsqV2, 4);
        let mut made: Vec<Template> = templates(&layout, &spec, 2).collect::<anyhow::Result<_>>().unwrap();
        assert_ne!(made[0].bytes(), made[1].bytes());
        let (dir, template) = (tempfile::tempdir().unwrap(), made.remove(1));
        for in_file in [false, true] {
            let template = match in_file {
                true => templates(&layout, &spec, 2)
                    .nth(1)
                    .unwrap()
                    .unwrap()
                    .move_to(&dir.path().join("x"))
                    .unwrap(),
                false => templates(&layout, &spec, 2).nth(1).unwrap().unwrap(),
            };
            let (mut body, mut buffer) = (Vec::new(), Vec::new());
            template.patch(&mut body, 17, 3);
            assert_eq!(body.len(), template.head_len);
            while body.len() < template.len() {
                body.extend_from_slice(template.rest(body.len() - template.head_len, &mut buffer).unwrap());
            }
            let update = Update::parse(&body, &layout).unwrap();
            assert_eq!((update.meta.worker_id.as_str(), update.meta.round), ("bench-000017", 3));
        }
        assert_eq!(template.bytes().len(), template.len());
    }
}
