//! `fl run`: a real master and N real workers on loopback, in one process.

use crate::{
    federation::FederationArgs,
    output,
    progress::{Progress, print_summary},
    report::{self, Run, Summary},
};
use anyhow::{Context, anyhow, bail};
use clap::Args;
use fl_app::{SettingError, setting::whole};
use fl_datasets::Dataset;
use fl_protocol::HistoryRecord;
use rand::{SeedableRng, rngs::ChaCha8Rng, seq::SliceRandom};
use serde::Serialize;
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinSet};

/// How long the workers may take to evaluate the last model.
const LAST_EVALUATION: Duration = Duration::from_secs(30);

/// Arguments of `fl run`.
#[derive(Debug, Args, Serialize)]
pub struct RunArgs {
    #[command(flatten)]
    #[serde(flatten)]
    federation: FederationArgs,

    /// Number of workers; each holds a disjoint part of the training data, and a round waits for all.
    #[arg(long, default_value_t = 4, value_name = "N")]
    workers: usize,

    /// Start the workers in an order drawn from this seed; the result must not depend on it.
    #[arg(long, value_name = "SEED")]
    shuffle_start: Option<u64>,
}

impl RunArgs {
    fn check(&self) -> Result<(), SettingError> {
        whole("--workers", self.workers as u64, 1, 1000)
    }

    fn master(&self, state_dir: &Path) -> anyhow::Result<fl_master::Config> {
        let extra = vec![format!("--state-dir={}", state_dir.display())];
        self.federation.master(self.workers, self.workers, extra)
    }

    fn worker(&self, index: usize, master: SocketAddr) -> anyhow::Result<fl_worker::Config> {
        let mut config = self.federation.worker(index, self.workers, &format!("http://{master}"))?;
        // Threads by the network and by this worker's share of the cores.
        config.workers = self.workers;
        config.training.threads = None;
        Ok(config)
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
pub fn run(mut args: RunArgs, json: bool) -> anyhow::Result<()> {
    args.check()?;
    args.federation.fill();
    let (federation, out) = (&args.federation, &args.federation.out);
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    // Loaded once: workers of one process share the samples and hold indices.
    let data = Arc::new(federation.load()?);
    let state = StateDir::fresh(out)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let finished = runtime.block_on(federate(&args, data, &state.0, json))?;
    runtime.shutdown_background();

    let global = out.join("global.safetensors");
    fs::write(&global, &finished.model).with_context(|| format!("cannot write {}", global.display()))?;
    let summary =
        Summary::new(&finished.history, finished.params, finished.wall_s, global.display().to_string());
    let run = Run {
        name: federation.name(),
        summary,
        settings: serde_json::to_value(&args)?,
        history: finished.history,
    };
    report::write_all(out, &run)?;
    if json {
        return output::json_line(&run.summary);
    }
    print_summary(&run.summary, out);
    Ok(())
}

/// The master's state folder, removed at the end of the run, because `fl run` always starts from scratch.
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

    let federation = &args.federation;
    let headline = format!(
        "{} workers train {} on {} ({}), updates as {}",
        args.workers,
        federation.model,
        federation.dataset(),
        federation.partition,
        federation.coding()
    );
    let progress = Progress::new(federation.rounds, &headline, json);
    let mut history: Vec<HistoryRecord> = Vec::new();
    while (history.len() as u64) < args.federation.rounds {
        tokio::select! {
            record = rounds.recv() => {
                let record = record.context("the master stopped before the last round")?;
                progress.round(&record)?;
                history.push(record);
            }
            Some(worker) = workers.join_next() => {
                // A worker that ends before the training is over has failed.
                if let Err(error) = worker.map_err(|panic| anyhow!(panic)).and_then(|result| result.map_err(Into::into)) {
                    return Err(error.context("a worker failed"));
                }
                if workers.is_empty() && (history.len() as u64) < args.federation.rounds && !master.is_finished() {
                    bail!("all workers stopped before the last round");
                }
            }
        }
    }
    let wall_s = started.elapsed().as_secs_f64();
    progress.finish();
    if args.federation.evaluate_every > 0 {
        // The workers evaluate the last model and are told to stop; one that hangs is not waited for.
        let ended = async { while workers.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_EVALUATION, ended).await;
        // With what the workers have reported since.
        let reported = master.history();
        for record in &mut history {
            let found = reported.iter().find(|reported| reported.round == record.round);
            record.evaluation = found.and_then(|found| found.evaluation.clone());
        }
    }
    let model = master.global().to_vec();
    let params = master.num_parameters();
    let _ = stop.send(true);
    while workers.join_next().await.is_some() {}
    master.shutdown().await?;
    Ok(Finished { history, model, params, wall_s })
}
