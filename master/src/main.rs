//! The master's binary: settings, logs, serving, exit codes.

use fl_app::{
    Exit,
    exit::{self, fail},
    health, logging,
};
use fl_master::{Args, Config, Master};
use std::{process::ExitCode, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info};

/// Threads of the network side: requests are short, and what takes time has threads of its own.
const ASYNC_THREADS: usize = 2;

const NAME: &str = "fl-master";
const HEALTH_LIMIT: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let args = match exit::parse_args::<Args>() {
        Ok(args) => args,
        Err(code) => return code,
    };
    if let Some(url) = &args.health_check {
        return match health::is_healthy(url, "/readyz", HEALTH_LIMIT) {
            true => ExitCode::SUCCESS,
            false => fail(NAME, Exit::Unreachable, &format!("no ready master at {url}")),
        };
    }
    if let Err(error) = logging::init("RUST_LOG", &args.observe.rust_log, args.observe.log_format) {
        return fail(NAME, Exit::Usage, &error.to_string());
    }
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{}", exit::sentence(error.as_ref()));
            exit::of(error.as_ref(), &[fl_master::exit_of]).into()
        }
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    let (only_check, rollback_to) = (args.check, args.rollback_to);
    let config = args.check()?;
    if only_check {
        let round = fl_master::check(&config)?;
        println!("settings and state are valid; the state is of round {round}");
        return Ok(());
    }
    if let Some(round) = rollback_to {
        let archive = fl_master::rollback_to(&config, round)?;
        println!("the state is of round {round}; what was newer is in {archive}");
        return Ok(());
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(ASYNC_THREADS).enable_all().build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let master = Master::start(config, None).await?;
    tokio::select! {
        _ = term.recv() => info!("SIGTERM: draining"),
        _ = int.recv() => info!("SIGINT: draining"),
    }
    // A second signal skips the grace.
    tokio::select! {
        () = master.retire() => {}
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    master.shutdown().await
}
