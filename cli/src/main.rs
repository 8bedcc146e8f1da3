//! `fl`: runs a whole federation on this machine, and the tools around it.

mod bench;
mod codec;
mod compare;
mod eval;
mod export;
mod federation;
mod output;
mod privacy;
mod progress;
mod remote;
mod report;
mod run;
mod simulate;
mod sweep;
mod watch;

use clap::{Parser, Subcommand};
use fl_app::{LogFormat, exit, logging};
use std::process::ExitCode;

/// Federated learning on one machine: run a federation, evaluate a model, measure the codec.
///
/// `fl run` starts a real master and real workers on loopback, trains on the bundled digits and
/// writes the model, the history and a report. No download, no service.
#[derive(Debug, Parser)]
#[command(name = "fl", version, propagate_version = true)]
struct Cli {
    /// Print one JSON object per line on stdout; everything for people goes to stderr.
    #[arg(long, global = true)]
    json: bool,

    /// What to log on stderr: error, warn, info, debug, or a tracing filter such as `fl_master=debug`.
    #[arg(long, global = true, env = "FL_LOG", default_value = "warn", value_name = "FILTER")]
    log: String,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a federation: one master and N workers over real HTTP on this machine.
    Run(Box<run::RunArgs>),
    /// Train a federation of thousands of virtual clients in this process, without HTTP.
    Simulate(Box<simulate::SimulateArgs>),
    /// Compare runs: accuracy by rounds, bytes and time, means over seeds.
    Compare(compare::CompareArgs),
    /// Run many simulations from TOML files, resumable, and compare them.
    Sweep(sweep::SweepArgs),
    /// Evaluate a global model file on a data set's test part.
    Eval(eval::EvalArgs),
    /// Hand the course of a training to TensorBoard or MLflow.
    Export(export::ExportArgs),
    /// Show a running federation in the terminal.
    Watch(watch::WatchArgs),
    /// Measure quantizers on real deltas: bytes, error and speed.
    Codec(codec::CodecArgs),
    /// Plan differential privacy: epsilon from noise, noise from epsilon, rounds from both.
    ///
    /// It computes only: no training adds noise yet.
    #[command(subcommand)]
    Privacy(privacy::Privacy),
    /// Measure this machine.
    #[command(subcommand)]
    Bench(Bench),
}

/// What `fl bench` measures.
#[derive(Debug, Subcommand)]
enum Bench {
    /// Training speed, memory, and the share of this machine's matrix-product speed.
    Train(bench::train::TrainArgs),
    /// Updates per second that a master accepts over HTTP, and their latency.
    Serve(bench::serve::ServeArgs),
    /// Speed of checking, decoding and adding updates.
    Aggregate(bench::aggregate::AggregateArgs),
}

fn main() -> ExitCode {
    let cli = match exit::parse_args::<Cli>() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let error = error.as_ref();
            let exit = exit::of(error, &[fl_master::exit_of, fl_worker::exit_of]);
            exit::fail("fl", exit, &exit::sentence(error))
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    logging::init("--log", &cli.log, LogFormat::Text)?;
    match cli.command {
        Command::Run(args) => run::run(*args, cli.json),
        Command::Simulate(args) => simulate::run(*args, cli.json),
        Command::Compare(args) => compare::run(&args, cli.json),
        Command::Sweep(args) => sweep::run(&args, cli.json),
        Command::Eval(args) => eval::run(&args, cli.json),
        Command::Export(args) => export::run(&args, cli.json),
        Command::Watch(args) => watch::run(&args, cli.json),
        Command::Codec(args) => codec::run(args, cli.json),
        Command::Privacy(args) => privacy::run(&args, cli.json),
        Command::Bench(Bench::Train(args)) => bench::train::run(&args, cli.json),
        Command::Bench(Bench::Serve(args)) => bench::serve::run(&args, cli.json),
        Command::Bench(Bench::Aggregate(args)) => bench::aggregate::run(&args, cli.json),
    }
}
