//! The worker's binary: settings, logs, the loop, exit codes.

use fl_app::{
    Exit,
    exit::{self, fail},
    health, logging,
};
use fl_worker::{Args, Config, WorkerError};
use std::{process::ExitCode, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use tracing::error;

const NAME: &str = "fl-worker";
const HEALTH_LIMIT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let args = match exit::parse_args::<Args>() {
        Ok(args) => args,
        Err(code) => return code,
    };
    if let Some(url) = &args.health_check {
        return match health::is_healthy(url, "/healthz", HEALTH_LIMIT) {
            true => ExitCode::SUCCESS,
            false => fail(NAME, Exit::Unreachable, &format!("no healthy worker at {url}")),
        };
    }
    if let Err(error) = logging::init("RUST_LOG", &args.observe.rust_log, args.observe.log_format) {
        return fail(NAME, Exit::Usage, &error.to_string());
    }
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{}", exit::sentence(&error));
            error.exit().into()
        }
    }
}

#[expect(clippy::result_large_err, reason = "returned once a process")]
fn run(args: Args) -> Result<(), WorkerError> {
    let check = args.check;
    let config = args.check()?;
    if check {
        println!("the settings are valid");
        return Ok(());
    }
    // One thread for the network; training has its own. That keeps a worker small.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(WorkerError::Runtime)?;
    let result = runtime.block_on(work(config));
    // A thread may still be loading data: nobody waits for it.
    runtime.shutdown_background();
    result
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
