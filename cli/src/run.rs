//! `fl run`: a real master and N real workers on loopback, in one process.

use crate::{
    exit::BadSetting,
    output::{self, human_bytes},
    report::{self, Run, Summary},
};
use anyhow::{Context, anyhow, bail};
use clap::{Args, Parser};
use fl_datasets::{Dataset, DatasetSpec, Part, Partition};
use fl_protocol::HistoryRecord;
use fl_quant::Scheme;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rand::{SeedableRng, rngs::ChaCha8Rng, seq::SliceRandom};
use serde::Serialize;
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};
use tokio::{sync::watch, task::JoinSet};

/// Arguments of `fl run`.
#[derive(Debug, Args, Serialize)]
pub struct RunArgs {
    /// Number of workers; each holds a disjoint part of the training data, and a round waits for all.
    #[arg(long, default_value_t = 4, value_name = "N")]
    workers: usize,

    /// Rounds to train.
    #[arg(long, default_value_t = 60, value_name = "N")]
    rounds: u64,

    /// Data set: digits (bundled), fashion-mnist, mnist, cifar10, idx:DIR, csv:FILE, safetensors:FILE.
    #[arg(long, default_value = "digits")]
    #[serde(serialize_with = "as_text")]
    dataset: DatasetSpec,

    /// Folder with the data set's files, if they are not where the system's package puts them.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Network: softmax, mlp, cnn, mcmahan_cnn, or a JSON file with a layer list.
    #[arg(long, default_value = "mlp", value_name = "NAME|FILE")]
    model: String,

    /// Parameter budget of `mlp`: its hidden layer is the widest that fits.
    #[arg(long, default_value_t = 100_000, value_name = "PARAMETERS")]
    model_dim: usize,

    /// How the training data is spread: iid, dirichlet:ALPHA (label skew), shards:K (K label runs each).
    #[arg(long, default_value = "dirichlet:0.5")]
    #[serde(serialize_with = "as_text")]
    partition: Partition,

    /// Quantizer of the updates: StocQ, MSQ_v2, SDQ, BetaQ, bin, laq8, f16, none.
    #[arg(long, default_value = "MSQ_v2")]
    quantizer: Scheme,

    /// Bits per code, 1 to 8.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=8))]
    bits: u8,

    /// SGD steps of one worker in one round.
    #[arg(long, default_value_t = 10, conflicts_with = "local_epochs", value_name = "N")]
    local_steps: u32,

    /// Passes over its data of one worker in one round, instead of --local-steps.
    #[arg(long, value_name = "N")]
    local_epochs: Option<u32>,

    /// Samples per SGD step.
    #[arg(long, default_value_t = 64, value_name = "N")]
    batch_size: u32,

    /// Learning rate of the workers' SGD.
    #[arg(long, default_value_t = 0.05)]
    lr: f32,

    /// Seed of everything random: initial weights, partition, batches, stochastic rounding.
    #[arg(long, default_value_t = 42)]
    seed: u64,

    /// How the master combines updates, such as fedavg; `fl-master --help` lists all.
    #[arg(long, default_value = "fedavg")]
    strategy: String,

    /// Backend of the training: flex, or ndarray and wgpu if compiled in.
    #[arg(long, default_value = "flex")]
    backend: String,

    /// Folder for global.safetensors, history.csv, history.json and report.html.
    #[arg(long, default_value = "fl-out", value_name = "DIR")]
    out: PathBuf,

    /// Start the workers in an order drawn from this seed; the result must not depend on it.
    #[arg(long, value_name = "SEED")]
    shuffle_start: Option<u64>,
}

fn as_text<T: ToString, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

impl RunArgs {
    fn check(&self) -> Result<(), BadSetting> {
        if self.workers == 0 || self.workers > 1000 {
            return Err(BadSetting::new("--workers", format!("{} is not 1 to 1000", self.workers)));
        }
        if self.rounds == 0 {
            return Err(BadSetting::new("--rounds", "give at least 1 round"));
        }
        Ok(())
    }

    fn master(&self, state_dir: &Path) -> anyhow::Result<fl_master::Config> {
        let mut args = vec![
            "fl-master".to_owned(),
            "--bind=127.0.0.1:0".to_owned(),
            format!("--model={}", self.model),
            format!("--model-dim={}", self.model_dim),
            format!("--agg-min-clients={}", self.workers),
            format!("--seed={}", self.seed),
            format!("--state-dir={}", state_dir.display()),
            format!("--strategy={}", self.strategy),
            format!("--rounds={}", self.rounds),
            format!("--dataset={}", self.dataset),
        ];
        args.extend(self.data_dir.iter().map(|dir| format!("--data-dir={}", dir.display())));
        Ok(fl_master::Args::try_parse_from(args)?.check()?)
    }

    fn worker(&self, index: usize, master: SocketAddr) -> anyhow::Result<fl_worker::Config> {
        let mut args = vec![
            "fl-worker".to_owned(),
            format!("--master-addr=http://{master}"),
            format!("--worker-id=worker-{index}"),
            format!("--seed={}", self.seed),
            format!("--dataset={}", self.dataset),
            format!("--partition={}", self.partition),
            format!("--partition-id={index}"),
            format!("--num-partitions={}", self.workers),
            format!("--quantizer={}", self.quantizer),
            format!("--bits={}", self.bits),
            format!("--batch-size={}", self.batch_size),
            format!("--lr={}", self.lr),
            format!("--backend={}", self.backend),
            "--dataset-size=1000000000".to_owned(),
            "--mem-mb=0".to_owned(),
            "--threads=1".to_owned(),
        ];
        args.push(match self.local_epochs {
            Some(epochs) => format!("--local-epochs={epochs}"),
            None => format!("--local-steps={}", self.local_steps),
        });
        Ok(fl_worker::Args::try_parse_from(args)?.check()?)
    }

    fn start_order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.workers).collect();
        if let Some(seed) = self.shuffle_start {
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        }
        order
    }
}

/// Runs `fl run`.
pub fn run(args: RunArgs, json: bool) -> anyhow::Result<()> {
    args.check()?;
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    // Loaded once and shared: workers of one process hold indices, not copies.
    let data = Arc::new(fl_datasets::load(&args.dataset, args.data_dir.as_deref(), Part::Train)?);
    let state = StateDir::fresh(&args.out)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let finished = runtime.block_on(federate(&args, data, &state.0, json))?;
    runtime.shutdown_background();

    let global = args.out.join("global.safetensors");
    fs::write(&global, &finished.model).with_context(|| format!("cannot write {}", global.display()))?;
    let summary =
        Summary::new(&finished.history, finished.params, finished.wall_s, global.display().to_string());
    let run = Run {
        name: format!("{} {} {}", args.dataset, args.model, args.quantizer),
        summary,
        settings: serde_json::to_value(&args)?,
        history: finished.history,
    };
    report::write_all(&args.out, &run)?;
    if json {
        return output::json_line(&run.summary);
    }
    print_summary(&run.summary, &args.out);
    Ok(())
}

/// The master's state of this run. `fl run` always starts anew, so it goes when the run is over.
struct StateDir(PathBuf);

impl StateDir {
    fn fresh(out: &Path) -> anyhow::Result<Self> {
        let dir = out.join("state");
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
        }
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Finished {
    history: Vec<HistoryRecord>,
    model: Vec<u8>,
    params: u64,
    wall_s: f64,
}

async fn federate(args: &RunArgs, data: Arc<Dataset>, state: &Path, json: bool) -> anyhow::Result<Finished> {
    let started = Instant::now();
    let master = fl_master::Master::start(args.master(state)?, None).await?;
    let mut rounds = master.rounds();
    let (stop, stopped) = watch::channel(false);
    let mut workers = JoinSet::new();
    for index in args.start_order() {
        let config = args.worker(index, master.local_addr())?;
        let mut stopped = stopped.clone();
        let shutdown = async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        workers.spawn(fl_worker::run(config, Some(data.clone()), shutdown, None));
    }

    let progress = Progress::new(args, json);
    let mut history: Vec<HistoryRecord> = Vec::new();
    while (history.len() as u64) < args.rounds {
        tokio::select! {
            record = rounds.recv() => {
                let record = record.context("the master stopped before the last round")?;
                progress.round(&record, master.num_parameters())?;
                history.push(record);
            }
            Some(worker) = workers.join_next() => {
                // A worker ends by itself only when the training is over: before that it has failed.
                if let Err(error) = worker.map_err(|panic| anyhow!(panic)).and_then(|result| result.map_err(Into::into)) {
                    return Err(error.context("a worker failed"));
                }
                if workers.is_empty() && (history.len() as u64) < args.rounds && !master.is_finished() {
                    bail!("all workers stopped before the last round");
                }
            }
        }
    }
    let wall_s = started.elapsed().as_secs_f64();
    progress.finish();
    let model = master.global().to_vec();
    let params = master.num_parameters();
    let _ = stop.send(true);
    while workers.join_next().await.is_some() {}
    master.shutdown().await?;
    Ok(Finished { history, model, params, wall_s })
}

/// A progress bar with a line per round above it, or JSON lines.
struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    fn new(args: &RunArgs, json: bool) -> Self {
        if json {
            return Self { bar: None };
        }
        let bar = ProgressBar::with_draw_target(Some(args.rounds), ProgressDrawTarget::stderr());
        let style =
            ProgressStyle::with_template("{bar:40.cyan} round {pos}/{len}  {elapsed} elapsed, {eta} left");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        println!(
            "{} workers train {} on {} ({}), updates as {} at {} bits",
            args.workers, args.model, args.dataset, args.partition, args.quantizer, args.bits
        );
        println!(
            "{:>6} {:>9} {:>9} {:>10} {:>11} {:>10} {:>9}",
            "round", "accuracy", "loss", "train loss", "up", "bits/param", "ms"
        );
        Self { bar: Some(bar) }
    }

    fn round(&self, record: &HistoryRecord, _params: u64) -> anyhow::Result<()> {
        let Some(bar) = &self.bar else {
            return output::json_line(&RoundLine { event: "round", record });
        };
        bar.suspend(|| {
            println!(
                "{:>6} {:>8.2}% {:>9.4} {:>10.4} {:>11} {:>10.2} {:>9.1}",
                record.round,
                100.0 * record.test_accuracy.unwrap_or(f64::NAN),
                record.test_loss.unwrap_or(f64::NAN),
                record.train_loss.unwrap_or(f64::NAN),
                human_bytes(record.bytes_up as f64),
                record.bits_per_param,
                1e3 * record.duration_s
            );
        });
        bar.inc(1);
        Ok(())
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[derive(Serialize)]
struct RoundLine<'a> {
    event: &'static str,
    #[serde(flatten)]
    record: &'a HistoryRecord,
}

fn print_summary(summary: &Summary, out: &Path) {
    println!(
        "\naccuracy {:.2} %   loss {:.4}   {} rounds in {:.1} s (median {:.1} ms)",
        100.0 * summary.accuracy,
        summary.loss,
        summary.rounds,
        summary.wall_s,
        summary.round_ms_median
    );
    println!(
        "one update: {} of {} as f32 ({:.2} bits per parameter)",
        human_bytes(summary.bytes_up_per_update),
        human_bytes(4.0 * summary.params as f64),
        summary.bits_per_param
    );
    println!("model:   {}\nreport:  {}", summary.global, out.join("report.html").display());
}
