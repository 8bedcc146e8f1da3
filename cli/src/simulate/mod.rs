//! `fl simulate`: thousands of virtual clients in one process, without HTTP.
//!
//! Model, quantizers, checks, sums and round rules are those of master and worker; only the transport is
//! left out. A simulated run and the same run over HTTP give the same model to the byte.

mod attack;
mod clients;
mod network;
mod server;
mod store;
mod train;
mod world;

use crate::{
    bench::process,
    federation::{FederationArgs, as_text},
    output,
    progress::{Progress, print_summary},
    report::{self, Run, Summary},
};
use anyhow::Context;
use attack::Attack;
use clap::Args;
use clients::Clients;
use fl_app::{
    SettingError,
    setting::{number, whole},
};
use fl_worker::Engine;
use network::NetworkArgs;
use serde::Serialize;
use server::Server;
use std::{fmt, fs, str::FromStr, sync::Arc, time::Instant};
use world::World;

/// Arguments of `fl simulate`.
#[derive(Debug, Clone, Args, Serialize)]
pub struct SimulateArgs {
    #[command(flatten)]
    #[serde(flatten)]
    pub federation: FederationArgs,

    /// Number of virtual clients; each holds a disjoint part of the training data.
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub clients: usize,

    /// Clients that train in a round, drawn at random; with fedbuff, clients that train at any time
    /// [default: 10, or all if there are fewer].
    #[arg(long, value_name = "N")]
    pub per_round: Option<usize>,

    /// Ask this many times --per-round clients; the first --per-round updates count.
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    pub overselect: f64,

    /// Virtual seconds after which a round closes with fewer updates, 0 = never.
    #[arg(long, default_value_t = 0.0, value_name = "SECONDS")]
    pub deadline_s: f64,

    /// Updates that a close at the deadline needs.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub min_at_deadline: usize,

    /// Uneven local work: each client makes LOW to HIGH times the local steps, drawn for each round.
    #[arg(long, value_name = "LOW:HIGH")]
    #[serde(serialize_with = "as_optional_text")]
    pub uneven: Option<Uneven>,

    /// Hostile clients, the first ones: sign_flip:COUNT or scale:COUNT:FACTOR; may be repeated.
    #[arg(long, value_name = "ATTACK")]
    #[serde(serialize_with = "as_texts")]
    pub attack: Vec<Attack>,

    /// Largest norm of an update; a longer one is scaled down to it. 0 = no limit.
    #[arg(long, default_value_t = 0.0, value_name = "NORM")]
    pub max_update_norm: f64,

    /// Memory for the updates of a round in MB, for strategies that keep them.
    #[arg(long, default_value_t = 512, value_name = "MB")]
    pub max_buffer_mb: usize,

    /// Rounds between two evaluations on the test set; the last one is always evaluated.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub eval_every: u64,

    /// Threads, 0 = one per core.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub threads: usize,

    #[command(flatten)]
    #[serde(flatten)]
    pub network: NetworkArgs,
}

/// Least and largest multiple of the local work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uneven {
    /// The least.
    pub least: u32,
    /// The largest.
    pub most: u32,
}

impl fmt::Display for Uneven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.least, self.most)
    }
}

impl FromStr for Uneven {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts =
            text.split_once(':').and_then(|(low, high)| Some((low.parse().ok()?, high.parse().ok()?)));
        match parts {
            Some((least @ 1.., most @ ..=1000)) if least <= most => Ok(Self { least, most }),
            _ => Err(format!("`{text}` is not LOW:HIGH with 1 <= LOW <= HIGH <= 1000, as in 1:5")),
        }
    }
}

fn as_optional_text<S: serde::Serializer>(value: &Option<Uneven>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(uneven) => as_text(uneven, serializer),
        None => serializer.serialize_none(),
    }
}

fn as_texts<S: serde::Serializer>(values: &[Attack], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(ToString::to_string))
}

impl SimulateArgs {
    fn per_round(&self) -> usize {
        self.per_round.unwrap_or(self.clients.min(10))
    }

    /// Number of clients asked at the same time.
    fn asked(&self) -> usize {
        ((self.per_round() as f64 * self.overselect).ceil() as usize).min(self.clients)
    }

    fn check(&self) -> Result<(), SettingError> {
        whole("--clients", self.clients as u64, 1, 100_000)?;
        whole("--per-round", self.per_round() as u64, 1, self.clients as u64)?;
        number("--overselect", self.overselect, 1.0, 100.0)?;
        whole("--threads", self.threads as u64, 0, 256)?;
        self.network.check()
    }

    fn threads(&self) -> usize {
        match self.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            threads => threads,
        }
    }

    fn master(&self) -> anyhow::Result<fl_master::Config> {
        let extra = vec![
            "--durable=false".to_owned(),
            format!("--round-deadline-s={}", self.deadline_s),
            format!("--round-min-at-deadline={}", self.min_at_deadline),
            format!("--max-update-norm={}", self.max_update_norm),
            "--norm-action=clip".to_owned(),
            format!("--max-buffer-mb={}", self.max_buffer_mb),
        ];
        self.federation.master(self.clients, self.per_round(), extra)
    }
}

/// Runs `fl simulate`.
pub fn run(mut args: SimulateArgs, json: bool) -> anyhow::Result<()> {
    args.federation.fill();
    let headline = format!(
        "{} virtual clients, {} a round, train {} on {} ({}), {}, updates as {}",
        args.clients,
        args.per_round(),
        args.federation.model,
        args.federation.dataset(),
        args.federation.partition,
        args.federation.strategy,
        args.federation.coding()
    );
    let progress = Progress::new(args.federation.rounds, &headline, json);
    let run = simulate(&args, None, |record| progress.round(record))?;
    progress.finish();
    if json {
        return output::json_line(&run.summary);
    }
    print_summary(&run.summary, &args.federation.out);
    Ok(())
}

/// Simulates one federation and writes its files. `name` is its title in reports.
///
/// # Errors
/// A bad setting, missing data, a file that cannot be written.
pub fn simulate(
    args: &SimulateArgs,
    name: Option<&str>,
    show: impl FnMut(&fl_protocol::HistoryRecord) -> anyhow::Result<()>,
) -> anyhow::Result<Run> {
    args.check()?;
    let (federation, out) = (&args.federation, &args.federation.out);
    let master = args.master()?;
    let worker = federation.worker(0, args.clients, "http://simulated")?;
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let started = Instant::now();
    let data = Arc::new(federation.load()?);
    let server = Server::new(master)?;
    let model = server.model()?;
    let data = data.cut_for(&model.network.known()?.input)?;
    let clients = Clients::new(args, &data, server.core.num_parameters())?;
    let engines = (0..args.threads())
        .map(|_| Engine::new(&worker, data.clone(), &model))
        .collect::<Result<Vec<_>, _>>()
        .map_err(fl_worker::WorkerError::from)?;
    let mut world = World::new(args, server, clients, engines, worker)?;
    let history = world.run(show)?;
    if (history.len() as u64) < federation.rounds {
        eprintln!("fl: the training ended after {} rounds: it diverged at every client", history.len());
    }
    let global = out.join("global.safetensors");
    fs::write(&global, world.file()).with_context(|| format!("cannot write {}", global.display()))?;
    let params = world.num_parameters() as u64;
    let mut summary =
        Summary::new(&history, params, started.elapsed().as_secs_f64(), global.display().to_string());
    summary.virtual_s = Some(history.last().map_or(0.0, |record| record.finished_ts));
    summary.peak_rss_mb = process::memory_mb("VmHWM");
    let name = name.map_or_else(|| federation.name(), str::to_owned);
    let run = Run { name, summary, settings: serde_json::to_value(args)?, history };
    report::write_all(out, &run)?;
    Ok(run)
}
