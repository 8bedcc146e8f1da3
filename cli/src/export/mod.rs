//! `fl export`: the course of a training, handed to the trackers that people use.

mod mlflow;
mod series;
mod tensorboard;

use crate::{output, remote, remote::RemoteArgs};
use clap::Args;
use fl_app::{SettingError, exit::BadInput};
use fl_worker::MasterClient;
use mlflow::Mlflow;
use serde::Serialize;
use serde_json::{Map, Value};
use series::{Fresh, parameters};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tensorboard::EventFile;

/// Arguments of `fl export`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("to").required(true).multiple(true).args(["tensorboard", "mlflow"])))]
pub struct ExportArgs {
    /// Address of a master, or the folder that `fl run` wrote.
    #[arg(value_name = "URL|DIR")]
    source: String,

    /// Write an event file for TensorBoard into this folder: `tensorboard --logdir DIR` shows it.
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,

    /// Log to this MLflow server; MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and
    /// MLFLOW_TRACKING_PASSWORD, are sent along.
    #[arg(long, value_name = "URL")]
    mlflow: Option<String>,

    /// Experiment of MLflow; it is made if there is none of that name.
    #[arg(long, default_value = "fl", value_name = "NAME", requires = "mlflow")]
    experiment: String,

    /// Name of the new run of MLflow [default: strategy, data set and model].
    #[arg(long, value_name = "NAME", requires = "mlflow")]
    run_name: Option<String>,

    /// Log into this run of MLflow instead of a new one: MLflow keeps what it has once.
    #[arg(long, value_name = "ID", requires = "mlflow", conflicts_with = "run_name")]
    run_id: Option<String>,

    /// Go on until the training is over: new rounds are handed on as they end.
    #[arg(long)]
    follow: bool,

    /// Seconds between two looks at the master with --follow, 0.1 to 3600.
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS", requires = "follow")]
    every: f64,

    #[command(flatten)]
    remote: RemoteArgs,
}

/// Where the records come from.
enum Source {
    Master(MasterClient),
    Folder(PathBuf),
}

/// What is exported: the name and settings of the training, and its rounds.
struct Course {
    name: String,
    /// Settings, as names and values.
    about: Map<String, Value>,
    rounds: Vec<Map<String, Value>>,
    is_over: bool,
}

#[derive(Debug, Serialize)]
struct Exported<'a> {
    rounds: usize,
    values: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensorboard: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mlflow_run_id: Option<&'a str>,
}

/// Runs `fl export`.
pub fn run(args: &ExportArgs, json: bool) -> anyhow::Result<()> {
    fl_app::setting::number("--every", args.every, 0.1, 3600.0)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(export(args, json))
}

async fn export(args: &ExportArgs, json: bool) -> anyhow::Result<()> {
    let source = Source::new(args)?;
    let mut mlflow = args.mlflow.as_deref().map(Mlflow::new).transpose()?;
    let mut course = source.read().await?;
    let begin = series::begin(&course.rounds);
    let mut events = match &args.tensorboard {
        Some(dir) => Some(EventFile::create(dir, begin)?),
        None => None,
    };
    if let Some(mlflow) = &mut mlflow {
        let name = args.run_name.as_deref().unwrap_or(&course.name);
        match &args.run_id {
            Some(id) => mlflow.resume(id).await?,
            None => mlflow.create_run(&args.experiment, name, begin, &parameters(&course.about)).await?,
        }
    }
    let (mut fresh, mut values) = (Fresh::default(), 0);
    loop {
        let points = fresh.take(&course.rounds);
        values += points.len();
        if let Some(events) = &mut events {
            events.append(&points)?;
        }
        if let Some(mlflow) = &mut mlflow {
            mlflow.log(&points).await?;
        }
        if !args.follow || course.is_over {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs_f64(args.every)) => {}
            stopped = tokio::signal::ctrl_c() => {
                stopped?;
                break;
            }
        }
        course = source.read().await?;
    }
    if let Some(mlflow) = &mlflow
        && course.is_over
    {
        mlflow.finish(series::end(&course.rounds)).await?;
    }
    let exported = Exported {
        rounds: course.rounds.len(),
        values,
        tensorboard: events.as_ref().map(EventFile::path),
        mlflow_run_id: mlflow.as_ref().map(Mlflow::run_id),
    };
    if json {
        return output::json_line(&exported);
    }
    println!("{} values of {} rounds", exported.values, exported.rounds);
    if let Some(path) = exported.tensorboard {
        println!("TensorBoard: {}", path.display());
    }
    if let Some(id) = exported.mlflow_run_id {
        println!("MLflow: run {id}");
    }
    Ok(())
}

impl Source {
    fn new(args: &ExportArgs) -> anyhow::Result<Self> {
        if RemoteArgs::is_address(&args.source) {
            return Ok(Self::Master(args.remote.client(&args.source)?));
        }
        if args.follow {
            let reason = "a folder does not change: give the address of a master";
            return Err(SettingError::new("--follow", &args.source, reason).into());
        }
        Ok(Self::Folder(args.source.clone().into()))
    }

    async fn read(&self) -> anyhow::Result<Course> {
        match self {
            Self::Master(client) => {
                let (known, mut about) = remote::status(client).await?;
                let keep = ["model", "dataset", "strategy", "num_parameters", "min_clients", "version"];
                about.retain(|key, _| keep.contains(&key.as_str()));
                Ok(Course {
                    name: format!("{} {} {}", known.strategy, known.dataset, known.model),
                    about,
                    is_over: known.finished,
                    rounds: remote::history(client).await?,
                })
            }
            Self::Folder(dir) => read_folder(dir),
        }
    }
}

/// The `run.json` of `fl run`.
fn read_folder(dir: &Path) -> anyhow::Result<Course> {
    let path = dir.join("run.json");
    let bad = |what: &str| BadInput(format!("{}: {what}: give a folder that fl run wrote", path.display()));
    let bytes = fs::read(&path).map_err(|error| bad(&format!("it cannot be read: {error}")))?;
    let mut run: Map<String, Value> =
        serde_json::from_slice(&bytes).map_err(|error| bad(&format!("it is damaged: {error}")))?;
    let rounds = run.remove("history").and_then(|value| serde_json::from_value(value).ok());
    let settings = run.remove("settings").and_then(|value| serde_json::from_value(value).ok());
    Ok(Course {
        name: run.get("name").and_then(Value::as_str).unwrap_or("fl").to_owned(),
        about: settings.unwrap_or_default(),
        rounds: rounds.ok_or_else(|| bad("it has no history"))?,
        is_over: true,
    })
}
