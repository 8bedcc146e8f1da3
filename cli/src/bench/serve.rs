//! `fl bench serve`: how many updates per second does a master accept?
//!
//! A real master and the clients that load it share this process and its cores.

use super::{
    load::{Connection, Load},
    process,
    updates::{self, Template},
};
use crate::output;
use anyhow::Context;
use clap::Args;
use fl_app::{
    SettingError,
    setting::{number, whole},
};
use fl_master::{Config, Master};
use fl_model::ModelSpec;
use fl_protocol::ModelLayout;
use fl_quant::{Scheme, Spec};
use serde::Serialize;
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::watch, time::sleep};

/// Different updates that the clients share.
const VARIANTS: usize = 8;
/// Bytes from which on an update is sent from a file.
const LARGE_UPDATE: usize = 1 << 20;
/// Network threads, as many as `fl-master` has.
const ASYNC_THREADS: usize = 2;
/// Updates after which the resident size is measured for the first time.
const EARLY: u64 = 100;
/// Interval at which progress and memory are checked.
const LOOK: Duration = Duration::from_millis(2);
/// How long the disk alone is measured.
const DISK_TIME: Duration = Duration::from_millis(1000);

/// Arguments of `fl bench serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Clients; each sends one update in every round, 1 to 1000000.
    #[arg(long, default_value_t = 200)]
    clients: usize,

    /// Parameters of the model: an mlp on the digits whose size is the largest that fits.
    #[arg(long, default_value_t = 100_000)]
    params: usize,

    /// Quantizer of the updates: StocQ, MSQ_v2, SDQ, BetaQ, bin, laq8, f16, none.
    #[arg(long, default_value = "MSQ_v2")]
    quantizer: Scheme,

    /// Bits per code, 1 to 8.
    #[arg(long, default_value_t = 4)]
    bits: u8,

    /// Seconds of load, 0.1 to 3600; the round that is open then is finished.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,

    /// Rounds instead of seconds: `--clients 10000 --rounds 1` shows that memory does not grow with the clients.
    #[arg(long)]
    rounds: Option<u64>,

    /// Keep-alive connections that the clients share, 1 to 10000.
    #[arg(long, default_value_t = 200)]
    connections: usize,

    /// Threads of the master that check, decode and add, 0 = one per core.
    #[arg(long, default_value_t = 0)]
    decode_threads: usize,

    /// Measure with the master's setting DURABLE=false: no journal, no checkpoint, no fsync.
    #[arg(long)]
    no_durability: bool,

    /// Folder on the disk to measure; a fresh folder is made in it and removed in the end [default: the
    /// system's folder for temporary files].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Measured {
    clients: usize,
    connections: usize,
    params: u64,
    quantizer: &'static str,
    bits: u8,
    durable: bool,
    update_bytes: usize,
    rounds: u64,
    updates: u64,
    seconds: f64,
    updates_per_s: f64,
    /// From an update's first byte to its acknowledgement.
    p50_ms: f64,
    p99_ms: f64,
    /// Group commits of the journal; 0 without durability.
    fsync_per_s: f64,
    updates_per_fsync: f64,
    /// The disk alone: appends of one update's size, each synced.
    disk_fsync_per_s: Option<f64>,
    /// Answers 429 and 503; the clients retried.
    turned_away: u64,
    /// Processor time of everything in this process, generator included.
    cpu_ms_per_update: Option<f64>,
    /// Resident size of this process after the first updates, at the end, and its peak.
    rss_early_mb: Option<f64>,
    rss_mb: Option<f64>,
    peak_rss_mb: Option<f64>,
}

/// Runs `fl bench serve`.
pub fn run(args: &ServeArgs, json: bool) -> anyhow::Result<()> {
    check(args)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(ASYNC_THREADS).enable_all().build()?;
    let measured = runtime.block_on(measure(args))?;
    if json { output::json_line(&measured) } else { print(&measured) }
}

fn check(args: &ServeArgs) -> Result<(), SettingError> {
    for (setting, value, max) in
        [("--clients", args.clients, 999_999), ("--connections", args.connections, 10_000)]
    {
        whole(setting, value as u64, 1, max)?;
    }
    if args.rounds == Some(0) {
        return Err(SettingError::new("--rounds", 0, "use at least 1"));
    }
    number("--seconds", args.seconds, 0.1, 3600.0)
}

async fn measure(args: &ServeArgs) -> anyhow::Result<Measured> {
    let scratch = Scratch::make(args.dir.clone().unwrap_or_else(std::env::temp_dir))?;
    let layout = ModelSpec::classifier("mlp", &[1, 8, 8], 10, args.params)?.layout();
    let templates = templates(args, &layout, &scratch.0)?;
    let update_bytes = templates[0].len();
    let disk_fsync_per_s = match args.no_durability {
        true => None,
        false => Some(disk_rate(&scratch.0.join("probe"), update_bytes)?),
    };
    let connections = args.connections.min(args.clients);
    let master = Master::start(config(args, connections, &scratch.0), None).await?;
    let load = Arc::new(Load {
        address: master.local_addr(),
        templates,
        clients: args.clients,
        connections,
        round: watch::channel(0).0,
        accepted: AtomicU64::new(0),
        turned_away: AtomicU64::new(0),
    });
    let mut probe = Connection::open(load.address).await?;
    let (cpu_before, started) = (process::cpu_s(), Instant::now());
    let running: Vec<_> = (0..connections).map(|index| tokio::spawn(load.clone().run(index))).collect();
    let rss_early_mb = watch_over(args, &load, started).await?;
    let mut times = Vec::new();
    for connection in running {
        times.extend(connection.await.context("a client failed")??);
    }
    let last = times.iter().map(|(at, _)| *at).max().unwrap_or(started);
    let seconds = (last - started).as_secs_f64();
    let cpu_s = cpu_before.zip(process::cpu_s()).map(|(before, after)| after - before);
    let (rss_mb, peak_rss_mb) = (process::memory_mb("VmRSS"), process::memory_mb("VmHWM"));
    let commits = metric(&mut probe, "fl_journal_commit_seconds_count").await?;
    let rounds = metric(&mut probe, "fl_global_round").await? as u64;
    drop(probe);
    let params = master.num_parameters();
    master.shutdown().await?;
    let updates = load.accepted.load(Ordering::Relaxed);
    let mut latencies: Vec<f64> = times.into_iter().map(|(_, took)| took.as_secs_f64() * 1e3).collect();
    latencies.sort_by(f64::total_cmp);
    let quantile = |q: f64| latencies[((latencies.len() - 1) as f64 * q).round() as usize];
    Ok(Measured {
        clients: args.clients,
        connections,
        params,
        quantizer: args.quantizer.name(),
        bits: args.bits,
        durable: !args.no_durability,
        update_bytes,
        rounds,
        updates,
        seconds,
        updates_per_s: updates as f64 / seconds,
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
        fsync_per_s: commits / seconds,
        updates_per_fsync: if commits > 0.0 { updates as f64 / commits } else { 0.0 },
        disk_fsync_per_s,
        turned_away: load.turned_away.load(Ordering::Relaxed),
        cpu_ms_per_update: cpu_s.map(|cpu_s| cpu_s * 1e3 / updates as f64),
        rss_early_mb,
        rss_mb,
        peak_rss_mb,
    })
}

/// The updates that the clients send; large ones in files, because their memory would count as the master's.
fn templates(args: &ServeArgs, layout: &ModelLayout, dir: &Path) -> anyhow::Result<Vec<Template>> {
    let spec = Spec::new(args.quantizer, args.bits);
    let made = updates::templates(layout, &spec, VARIANTS).enumerate().map(|(index, template)| {
        let template = template?;
        if template.len() < LARGE_UPDATE {
            return Ok(template);
        }
        let path = dir.join(format!("update-{index}"));
        template.move_to(&path).with_context(|| format!("cannot write {}", path.display()))
    });
    made.collect()
}

fn config(args: &ServeArgs, connections: usize, dir: &Path) -> Config {
    let mut config = Config { bind: ([127, 0, 0, 1], 0).into(), ..Config::default() };
    config.model.model_dim = args.params;
    config.model.eval_every = 0;
    config.round.min_clients = args.clients;
    config.limits.decode_threads = args.decode_threads;
    config.store.durable = !args.no_durability;
    config.store.state_dir = dir.join("state");
    config.limits.max_connections = config.limits.max_connections.max(connections + 1);
    config.limits.max_connections_per_ip = None;
    config
}

/// Ends the load after the wanted rounds or seconds; returns the resident size after the first updates.
async fn watch_over(args: &ServeArgs, load: &Load, started: Instant) -> anyhow::Result<Option<f64>> {
    let mut early = None;
    let rounds = load.round.subscribe();
    loop {
        sleep(LOOK).await;
        if early.is_none() && load.accepted.load(Ordering::Relaxed) >= EARLY.min(load.clients as u64) {
            early = process::memory_mb("VmRSS");
        }
        let done = match args.rounds {
            Some(wanted) => *rounds.borrow() >= wanted,
            None => started.elapsed().as_secs_f64() >= args.seconds,
        };
        if done {
            break;
        }
        // Without receivers every connection has failed; the caller reports their errors.
        if load.round.receiver_count() == 1 && started.elapsed() > Duration::from_secs(1) {
            return Ok(early);
        }
    }
    // The clients finish the open round, because each checks for the end only between two rounds.
    load.round.send_modify(|open| *open = u64::MAX);
    Ok(early)
}

/// Reads one series from the master's `/metrics`.
async fn metric(connection: &mut Connection, name: &str) -> anyhow::Result<f64> {
    let (_, page) = connection.get("/metrics").await?;
    let page = std::str::from_utf8(page)?;
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.with_context(|| format!("the master's metrics lack {name}"))
}

/// Synced appends per second to a file, like the journal's but one at a time.
fn disk_rate(path: &Path, bytes: usize) -> anyhow::Result<f64> {
    let mut file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    let record = vec![0x5a; bytes];
    let started = Instant::now();
    let mut syncs = 0;
    while started.elapsed() < DISK_TIME {
        file.write_all(&record)?;
        file.sync_data()?;
        syncs += 1;
    }
    Ok(f64::from(syncs) / started.elapsed().as_secs_f64())
}

/// A folder that is removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn make(parent: PathBuf) -> anyhow::Result<Self> {
        let dir = parent.join(format!("fl-bench-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("--dir: cannot make {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn print(measured: &Measured) -> anyhow::Result<()> {
    println!(
        "{} clients on {} connections, {} parameters, {} at {} bits, {} bytes an update, {}",
        measured.clients,
        measured.connections,
        measured.params,
        measured.quantizer,
        measured.bits,
        measured.update_bytes,
        if measured.durable { "durable" } else { "not durable" }
    );
    println!(
        "{:.0} updates/s over {:.1} s, {} rounds   p50 {:.1} ms, p99 {:.1} ms",
        measured.updates_per_s, measured.seconds, measured.rounds, measured.p50_ms, measured.p99_ms
    );
    if let Some(disk) = measured.disk_fsync_per_s {
        println!(
            "{:.0} fsync/s, {:.1} updates each; the disk alone {disk:.0} fsync/s",
            measured.fsync_per_s, measured.updates_per_fsync
        );
    }
    if let Some(cpu) = measured.cpu_ms_per_update {
        println!("{cpu:.3} ms of processor time an update, generator included");
    }
    if let (Some(early), Some(end), Some(peak)) =
        (measured.rss_early_mb, measured.rss_mb, measured.peak_rss_mb)
    {
        println!("resident {early:.1} MB after the first updates, {end:.1} MB at the end, peak {peak:.1} MB");
    }
    Ok(())
}
