//! The worker's binary: settings, logs, the loop, exit codes.

use clap::Parser;
use fl_worker::{Args, Config, WorkerError, settings::LogFormat};
use std::{io, io::IsTerminal, process::ExitCode};
use tokio::signal::unix::{SignalKind, signal};
use tracing::error;
use tracing_subscriber::EnvFilter;

const USAGE: u8 = 64;
const UNREACHABLE: u8 = 69;
const INTERNAL: u8 = 70;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    // One thread for the network; training has its own. That keeps a worker small.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(INTERNAL, &format!("the runtime does not start: {error}")),
    };
    if let Some(url) = &args.health_check {
        let healthy = runtime.block_on(fl_worker::health_check(url));
        return if healthy {
            ExitCode::SUCCESS
        } else {
            fail(UNREACHABLE, &format!("no healthy worker at {url}"))
        };
    }
    if let Err(message) = init_logging(args.observe.log_format, &args.observe.rust_log) {
        return fail(USAGE, &message);
    }
    let check = args.check;
    let config = match args.check() {
        Ok(config) => config,
        Err(error) => return fail(USAGE, &error.to_string()),
    };
    if check {
        println!("the settings are valid");
        return ExitCode::SUCCESS;
    }
    let result = runtime.block_on(work(config));
    // A thread may still be loading data: nobody waits for it.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

async fn work(config: Config) -> Result<(), WorkerError> {
    // From the start on: the data may take a while to load.
    let summary = fl_worker::run(config, None, terminated(), None).await?;
    tracing::info!(
        rounds = summary.rounds,
        refused = summary.refused,
        dropped = summary.dropped,
        sent_bytes = summary.bytes_up,
        "worker stopped"
    );
    Ok(())
}

/// Catches SIGTERM and SIGINT from the call on; resolves at the first.
fn terminated() -> impl Future<Output = ()> + Send + 'static {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async {
        let (Ok(mut term), Ok(mut int)) = signals else {
            // Without handlers the default action ends the process anyway.
            return std::future::pending().await;
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    }
}

fn init_logging(format: LogFormat, filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter).map_err(|error| format!("RUST_LOG={filter}: {error}"))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

fn fail(code: u8, message: &str) -> ExitCode {
    eprintln!("fl-worker: {message}");
    ExitCode::from(code)
}
