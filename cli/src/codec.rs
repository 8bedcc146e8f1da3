//! `fl codec`: bytes, error and speed of the quantizers on real deltas.

use crate::output;
use anyhow::Context;
use clap::Args;
use fl_app::{SettingError, exit::BadInput, setting};
use fl_protocol::{ModelLayout, UpdateMeta, WorkerId, update, update::Encoded};
use fl_quant::{Bits, Encoder, Scheme, Spec, Stream, Target, Threads, decode_update, encode_update};
use rand::{SeedableRng, rngs::ChaCha8Rng};
use rand_distr::{Distribution, StandardNormal};
use safetensors::{Dtype, SafeTensors};
use serde::Serialize;
use std::{
    fs,
    hint::black_box,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Arguments of `fl codec`.
#[derive(Debug, Args)]
pub struct CodecArgs {
    /// Deltas: safetensors files with F32 tensors; or normal:N, N generated standard normal numbers, as in
    /// normal:10000000.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Quantizers, separated by commas, or `all`: StocQ, MSQ_v2, SDQ, BetaQ, bin, laq8, f16, none.
    #[arg(long, default_value = "all")]
    quantizer: String,

    /// Bits per code, 1 to 8, separated by commas; or auto, with --target-nmse or --target-bytes.
    #[arg(long, default_value = "4", value_delimiter = ',')]
    bits: Vec<Bits>,

    /// Entropy-code the codes. For MSQ_v2 the bits then mean a quality: the error of the best quantizer with
    /// that many bits on a Gaussian (0.0095 for 4), in as few bytes as possible.
    #[arg(long)]
    entropy: bool,

    /// Choose codes by error and size under an eight-state trellis (MSQ_v2 with --entropy).
    #[arg(long)]
    rdo: bool,

    /// The fewest bytes whose normalised squared error is at most this; in place of --bits. MSQ_v2 then
    /// always uses the entropy stage.
    #[arg(long, value_name = "NMSE", conflicts_with = "target_bytes")]
    target_nmse: Option<f64>,

    /// The least error in streams of at most this many bytes; in place of --bits.
    #[arg(long, value_name = "BYTES")]
    target_bytes: Option<usize>,

    /// Seed of stochastic rounding.
    #[arg(long, default_value_t = 42)]
    seed: u64,

    /// Threads that encode and decode, 1 to 256. The bytes do not depend on it; adding is measured with one.
    #[arg(long, default_value_t = 1)]
    threads: usize,

    /// Duration of each measurement of speed, in milliseconds.
    #[arg(long, default_value_t = 100, value_name = "MS")]
    measure_ms: u64,
}

/// One file, quantizer and width.
#[derive(Debug, Serialize)]
struct Measured {
    file: String,
    quantizer: Scheme,
    bits: Bits,
    entropy: bool,
    rdo: bool,
    threads: usize,
    params: usize,
    /// The whole update container: header, metadata, side information, codes.
    bytes: usize,
    bits_per_param: f64,
    /// `|decode(x) - x|^2 / |x|^2`.
    nmse: f64,
    /// Mean of `decode(x) - x`, in units of the root mean square of x.
    bias: f64,
    encode_mparam_s: f64,
    decode_mparam_s: f64,
    /// Decoding and adding to a vector of f32.
    add_mparam_s: f64,
    /// Copying the same f32 values: the limit of what memory allows.
    memcpy_mparam_s: f64,
}

struct Delta {
    name: String,
    layout: ModelLayout,
    values: Vec<f32>,
}

/// Runs `fl codec`.
pub fn run(args: CodecArgs, json: bool) -> anyhow::Result<()> {
    let schemes = schemes(&args.quantizer)?;
    if !(1..=MAX_THREADS).contains(&args.threads) {
        let reason = format!("use 1 to {MAX_THREADS}");
        return Err(SettingError::new("--threads", args.threads, reason).into());
    }
    if !json {
        println!(
            "{:<28} {:<8} {:>4} {:>10} {:>10} {:>11} {:>9} {:>9} {:>9} {:>9}",
            "file",
            "scheme",
            "bits",
            "bytes",
            "bits/param",
            "NMSE",
            "enc M/s",
            "dec M/s",
            "add M/s",
            "memcpy"
        );
    }
    for path in &args.files {
        let delta = read(path)?;
        for &scheme in &schemes {
            for bits in widths(scheme, &args) {
                let measured = measure(&delta, &args.spec(scheme, bits)?, bits, &args)?;
                if json {
                    output::json_line(&measured)?;
                } else {
                    print_row(&measured);
                }
            }
        }
    }
    Ok(())
}

fn schemes(text: &str) -> anyhow::Result<Vec<Scheme>> {
    if text == "all" {
        return Ok(Scheme::ALL.to_vec());
    }
    text.split(',').map(|name| Ok(setting::parse("--quantizer", name)?)).collect()
}

/// The bits to measure for a scheme: the requested ones, or its own if it has a fixed width.
fn widths(scheme: Scheme, args: &CodecArgs) -> Vec<Bits> {
    match scheme {
        Scheme::Bin => vec![Bits::Width(1)],
        Scheme::Laq8 => vec![Bits::Width(8)],
        Scheme::F16 => vec![Bits::Width(16)],
        Scheme::None => vec![Bits::Width(32)],
        _ if args.target_nmse.is_some() || args.target_bytes.is_some() => vec![Bits::Auto],
        _ => args.bits.clone(),
    }
}

impl CodecArgs {
    fn spec(&self, scheme: Scheme, bits: Bits) -> Result<Spec, SettingError> {
        let target = match (bits, self.target_bytes, self.target_nmse) {
            (Bits::Width(_), ..) => Target::Width,
            (Bits::Auto, Some(bytes), _) => Target::Bytes(bytes),
            (Bits::Auto, None, nmse) => Target::Nmse(nmse.unwrap_or(0.0095)),
        };
        if let Target::Nmse(nmse) = target
            && !(1e-12..1.0).contains(&nmse)
        {
            return Err(SettingError::new("--target-nmse", nmse, "use a number from 1e-12 to below 1"));
        }
        let width = match bits {
            Bits::Width(bits) => bits.min(8),
            Bits::Auto => 8,
        };
        let (seed, entropy, rdo) = (self.seed, self.entropy, self.rdo);
        Ok(Spec { seed, entropy, rdo, target, ..Spec::new(scheme, width) })
    }
}

fn read(path: &Path) -> anyhow::Result<Delta> {
    let name = path.display();
    if let Some(count) = path.to_str().and_then(|path| path.strip_prefix("normal:")) {
        return normal(count);
    }
    let bytes = fs::read(path).map_err(|error| {
        BadInput(format!("cannot read {name}: {error}; give the path of a safetensors file"))
    })?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| BadInput(format!("{name} is not a safetensors file: {error}")))?;
    let mut tensors = file.tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let mut values = Vec::new();
    for (tensor, view) in &tensors {
        if view.dtype() != Dtype::F32 {
            return Err(BadInput(format!(
                "{name}: tensor `{tensor}` is {:?}, give deltas as F32",
                view.dtype()
            ))
            .into());
        }
        values.extend(view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
    }
    if values.is_empty() || values.iter().any(|v| !v.is_finite()) {
        return Err(BadInput(format!("{name} holds no values, or some that are not finite")).into());
    }
    let layout = ModelLayout::new(tensors.into_iter().map(|(name, view)| (name, view.shape().to_vec())));
    let name = path.file_name().map_or_else(|| name.to_string(), |n| n.to_string_lossy().into_owned());
    Ok(Delta { name, layout, values })
}

/// Most threads.
const MAX_THREADS: usize = 256;

/// Largest N of `normal:N`.
const MAX_NORMAL: usize = 100_000_000;

/// Standard normal numbers from a fixed seed.
fn normal(count: &str) -> anyhow::Result<Delta> {
    let Some(count) = count.parse().ok().filter(|count| (1..=MAX_NORMAL).contains(count)) else {
        let reason = format!("use normal:N with N from 1 to {MAX_NORMAL}");
        return Err(SettingError::new("FILE", format!("normal:{count}"), reason).into());
    };
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let values = (0..count).map(|_| StandardNormal.sample(&mut rng)).collect();
    let layout = ModelLayout::new([("x".to_owned(), vec![count])]);
    Ok(Delta { name: format!("normal:{count}"), layout, values })
}

fn measure(delta: &Delta, spec: &Spec, bits: Bits, args: &CodecArgs) -> anyhow::Result<Measured> {
    let time = Duration::from_millis(args.measure_ms);
    let shapes = delta.layout.shapes();
    let params = delta.values.len();
    let threads = || Threads::new(args.threads).context("the threads cannot be started");
    let (mut encoder, decoding) = (Encoder::new(threads()?), threads()?);
    let mut streams = Vec::new();
    encode_update(&mut encoder, &delta.values, &shapes, spec, &mut streams)?;
    let bytes = container_bytes(delta, &streams)?;
    let mut decoded = vec![0.0f32; params];
    decode(delta, &streams, &decoding, &mut decoded)?;
    let (mut error, mut energy, mut drift) = (0.0f64, 0.0f64, 0.0f64);
    for (x, y) in delta.values.iter().zip(&decoded) {
        let (x, difference) = (f64::from(*x), f64::from(*y) - f64::from(*x));
        error += difference * difference;
        energy += x * x;
        drift += difference;
    }
    let rms = (energy / params as f64).sqrt();
    let encode_mparam_s = rate(params, time, || {
        // Infallible: the same input was encoded above.
        let _ = encode_update(&mut encoder, &delta.values, &shapes, spec, &mut streams);
        black_box(&streams);
    });
    let decode_mparam_s = rate(params, time, || {
        let _ = decode(delta, &streams, &decoding, &mut decoded);
        black_box(&decoded);
    });
    let add_mparam_s = rate(params, time, || {
        let _ = decode_and_add(delta, &streams, &mut decoded);
        black_box(&decoded);
    });
    let memcpy_mparam_s = rate(params, time, || {
        decoded.copy_from_slice(black_box(&delta.values));
        black_box(&decoded);
    });
    Ok(Measured {
        file: delta.name.clone(),
        quantizer: spec.scheme,
        bits,
        entropy: spec.entropy || (spec.scheme == Scheme::MsqV2 && spec.target != Target::Width),
        rdo: spec.rdo,
        threads: args.threads,
        params,
        bytes,
        bits_per_param: 8.0 * bytes as f64 / params as f64,
        nmse: if energy > 0.0 { error / energy } else { 0.0 },
        bias: if rms > 0.0 { drift / params as f64 / rms } else { 0.0 },
        encode_mparam_s,
        decode_mparam_s,
        add_mparam_s,
        memcpy_mparam_s,
    })
}

/// Size of the update on the wire, in bytes.
fn container_bytes(delta: &Delta, streams: &[Vec<u8>]) -> anyhow::Result<usize> {
    let worker_id: WorkerId = "worker-0".parse().map_err(anyhow::Error::msg)?;
    let meta = UpdateMeta {
        worker_id,
        round: 1,
        num_samples: 1000,
        loss: Some(0.5),
        accuracy: None,
        compute_factor: Some(0.01),
        local_steps: Some(5),
        local_norm: None,
        reuse: None,
        metrics: Default::default(),
    };
    let tensors: Vec<_> = streams.iter().map(|stream| Encoded::Stream(stream)).collect();
    Ok(update::write(&meta, &delta.layout, &tensors)?.len())
}

/// Decodes all tensors.
fn decode(delta: &Delta, streams: &[Vec<u8>], threads: &Threads, out: &mut [f32]) -> anyhow::Result<()> {
    let tensors = delta.layout.tensors().iter().zip(streams);
    let parsed: Vec<_> =
        tensors.map(|(tensor, bytes)| Stream::parse(bytes, tensor.len)).collect::<Result<_, _>>()?;
    decode_update(threads, &parsed, out);
    Ok(())
}

/// Decodes all tensors and adds them to `out`.
fn decode_and_add(delta: &Delta, streams: &[Vec<u8>], out: &mut [f32]) -> anyhow::Result<()> {
    for (tensor, bytes) in delta.layout.tensors().iter().zip(streams) {
        let stream = Stream::parse(bytes, tensor.len)?;
        stream.for_each_chunk(|offset, values| {
            let start = tensor.offset + offset;
            out[start..start + values.len()].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        });
    }
    Ok(())
}

/// Millions of parameters per second: the best of the runs that fit into `time`, at least three.
fn rate(params: usize, time: Duration, mut work: impl FnMut()) -> f64 {
    let started = Instant::now();
    let (mut best, mut runs) = (Duration::MAX, 0);
    while runs < 3 || started.elapsed() < time {
        let run = Instant::now();
        work();
        best = best.min(run.elapsed());
        runs += 1;
    }
    params as f64 / best.as_secs_f64().max(1e-9) / 1e6
}

fn print_row(m: &Measured) {
    println!(
        "{:<28} {:<8} {:>4} {:>10} {:>10.3} {:>11.6} {:>9.0} {:>9.0} {:>9.0} {:>9.0}",
        m.file,
        m.quantizer.name(),
        m.bits.to_string(),
        m.bytes,
        m.bits_per_param,
        m.nmse,
        m.encode_mparam_s,
        m.decode_mparam_s,
        m.add_mparam_s,
        m.memcpy_mparam_s
    );
}
