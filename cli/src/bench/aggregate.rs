//! `fl bench aggregate`: how fast does one core check, decode and add updates?

use super::{
    process,
    updates::{self, Template},
};
use crate::output;
use anyhow::Context;
use clap::Args;
use fl_app::{SettingError, setting};
use fl_master::aggregate::ExactSum;
use fl_model::ModelSpec;
use fl_protocol::{ModelLayout, Update};
use fl_quant::{Piece, Scheme, Spec};
use serde::Serialize;
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// Number of different updates, so that the branch predictor does not learn a single one.
const VARIANTS: usize = 8;
/// Number of turns in which the parts are measured, so that other programs' load affects all of them.
const TURNS: usize = 15;

/// Arguments of `fl bench aggregate`.
#[derive(Debug, Args)]
pub struct AggregateArgs {
    /// Parameters of the model: an mlp on 28 x 28 pixels and 10 classes whose size is the largest that fits.
    #[arg(long, default_value_t = 100_180)]
    params: usize,

    /// Quantizer of the updates: StocQ, MSQ_v2, SDQ, BetaQ, bin, laq8, f16, none.
    #[arg(long, default_value = "MSQ_v2")]
    quantizer: Scheme,

    /// Bits per code, 1 to 8.
    #[arg(long, default_value_t = 4)]
    bits: u8,

    /// Threads that add into one sum, 1 to 256.
    #[arg(long, default_value_t = 1)]
    threads: usize,

    /// Seconds to measure, 0.01 to 3600; what counts is the processor's time within.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct Measured {
    params: usize,
    quantizer: &'static str,
    bits: u8,
    threads: usize,
    update_bytes: usize,
    /// Checking, decoding and adding: 4 bytes a parameter, per second of one core's time.
    gb_per_s: f64,
    /// Of all threads together, each with a core of its own.
    updates_per_s: f64,
    /// One part after the other, on one thread.
    check_gb_per_s: f64,
    decode_gb_per_s: f64,
    add_gb_per_s: f64,
}

/// Runs `fl bench aggregate`.
pub fn run(args: &AggregateArgs, json: bool) -> anyhow::Result<()> {
    check(args)?;
    let layout = ModelSpec::classifier("mlp", &[1, 28, 28], 10, args.params)?.layout();
    let spec = Spec::new(args.quantizer, args.bits);
    let templates: Vec<Template> =
        updates::templates(&layout, &spec, VARIANTS).collect::<anyhow::Result<_>>()?;
    let bytes = 4.0 * layout.parameters() as f64;
    let part = Duration::from_secs_f64(args.seconds / 4.0 / TURNS as f64);
    let sum = ExactSum::new(layout.parameters());
    let parsed = parse_all(&templates, &layout)?;
    let flat = parsed[0].to_flat();
    let mut rates: [Vec<f64>; 4] = Default::default();
    for _ in 0..TURNS {
        rates[0].push(whole(args.threads, part, &templates, &layout, &sum)?);
        rates[1].push(rate(part, |i| {
            black_box(Update::parse(templates[i % VARIANTS].bytes(), &layout).is_ok());
        }));
        rates[2].push(rate(part, |i| {
            parsed[i % VARIANTS].for_each_chunk(|_, values| {
                black_box(values);
            });
        }));
        rates[3].push(rate(part, |_| add(&sum, &parsed[0], |f| f(0, Piece::Values(&flat)))));
    }
    let [updates_per_s, checks, decodes, adds] = rates.map(median);
    let measured = Measured {
        params: layout.parameters(),
        quantizer: args.quantizer.name(),
        bits: args.bits,
        threads: args.threads,
        update_bytes: templates[0].bytes().len(),
        gb_per_s: updates_per_s * bytes / 1e9 / args.threads as f64,
        updates_per_s,
        check_gb_per_s: checks * bytes / 1e9,
        decode_gb_per_s: decodes * bytes / 1e9,
        add_gb_per_s: adds * bytes / 1e9,
    };
    if json { output::json_line(&measured) } else { print(&measured) }
}

fn check(args: &AggregateArgs) -> Result<(), SettingError> {
    setting::whole("--threads", args.threads as u64, 1, 256)?;
    setting::number("--seconds", args.seconds, 0.01, 3600.0)
}

fn print(measured: &Measured) -> anyhow::Result<()> {
    println!(
        "{} parameters, {} at {} bits, {} bytes an update, threads {}",
        measured.params, measured.quantizer, measured.bits, measured.update_bytes, measured.threads
    );
    println!("{:.2} GB/s of f32 per core, {:.0} updates/s in all", measured.gb_per_s, measured.updates_per_s);
    println!(
        "apart: check {:.2} GB/s, decode {:.2} GB/s, add {:.2} GB/s",
        measured.check_gb_per_s, measured.decode_gb_per_s, measured.add_gb_per_s
    );
    Ok(())
}

fn parse_all<'a>(templates: &'a [Template], layout: &'a ModelLayout) -> anyhow::Result<Vec<Update<'a>>> {
    templates.iter().map(|template| Ok(Update::parse(template.bytes(), layout)?)).collect()
}

/// What the master does with a body: check, decode, add. Updates per second of all threads together.
fn whole(
    threads: usize,
    time: Duration,
    templates: &[Template],
    layout: &ModelLayout,
    sum: &ExactSum,
) -> anyhow::Result<f64> {
    let one = |from: usize| {
        rate(time, |i| {
            if let Ok(update) = Update::parse(templates[(from + i) % VARIANTS].bytes(), layout) {
                add(sum, &update, |f| update.for_each_piece(f));
            }
        })
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|from| scope.spawn(move || one(from))).collect();
        running
            .into_iter()
            .map(|thread| thread.join().ok().context("a measuring thread failed"))
            .sum::<anyhow::Result<f64>>()
    })
}

fn add(sum: &ExactSum, update: &Update<'_>, decode: impl FnOnce(&mut dyn FnMut(usize, Piece<'_>))) {
    let weight = update.meta.num_samples as f64;
    if sum.add(weight, update.max_abs, decode).is_err() {
        // The benchmark adds more updates than one round has: the sum is emptied when it is full.
        sum.clear();
    }
}

/// Runs of `work` per second of this thread's processor time, or of wall time where the system does not
/// count the former.
fn rate(time: Duration, mut work: impl FnMut(usize)) -> f64 {
    let (start, cpu_before) = (Instant::now(), process::thread_cpu_s());
    let mut done = 0;
    while start.elapsed() < time {
        work(done);
        done += 1;
    }
    let spent = cpu_before.zip(process::thread_cpu_s()).map(|(before, after)| after - before);
    done as f64 / spent.filter(|spent| *spent > 0.0).unwrap_or_else(|| start.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
