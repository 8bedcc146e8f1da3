//! The master's binary: settings, logs, serving, exit codes.

use clap::Parser;
use fl_datasets::DatasetError;
use fl_master::{Args, Config, LogFormat, Master, SettingError, store::StoreError};
use fl_model::ModelError;
use std::{io, io::IsTerminal, process::ExitCode, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

const USAGE: u8 = 64;
const NO_INPUT: u8 = 66;
const UNREACHABLE: u8 = 69;
const INTERNAL: u8 = 70;
const IO: u8 = 74;

/// Threads of the network side: requests are short, and what takes time has threads of its own.
const ASYNC_THREADS: usize = 2;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(ASYNC_THREADS).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(INTERNAL, &format!("the runtime does not start: {error}")),
    };
    if let Some(url) = &args.health_check {
        let ready = runtime.block_on(async { timeout(Duration::from_secs(3), is_ready(url)).await });
        return match ready {
            Ok(Ok(true)) => ExitCode::SUCCESS,
            _ => fail(UNREACHABLE, &format!("no ready master at {url}")),
        };
    }
    if let Err(message) = init_logging(args.log_format, &args.rust_log) {
        return fail(USAGE, &message);
    }
    let only_check = args.check;
    let config = match args.check() {
        Ok(config) => config,
        Err(error) => return fail(USAGE, &error.to_string()),
    };
    let result = if only_check {
        fl_master::check(&config)
            .map(|round| println!("settings and state are valid; the state is of round {round}"))
    } else {
        runtime.block_on(serve(config))
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
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

fn exit_code(error: &anyhow::Error) -> u8 {
    error
        .chain()
        .find_map(|cause| {
            if cause.is::<SettingError>() {
                Some(USAGE)
            } else if let Some(error) = cause.downcast_ref::<DatasetError>() {
                Some(error.exit_code())
            } else if matches!(cause.downcast_ref::<StoreError>(), Some(StoreError::Io { .. })) {
                Some(IO)
            } else if cause.is::<ModelError>() || cause.is::<StoreError>() {
                Some(NO_INPUT)
            } else if cause.is::<io::Error>() {
                Some(IO)
            } else {
                None
            }
        })
        .unwrap_or(INTERNAL)
}

/// Asks `/readyz` over plain HTTP, for a container without a shell. A port that speaks TLS counts as
/// ready once it accepts connections.
async fn is_ready(url: &str) -> io::Result<bool> {
    let (address, tls) = match url.strip_prefix("https://") {
        Some(rest) => (rest, true),
        None => (url.strip_prefix("http://").unwrap_or(url), false),
    };
    let address = address.trim_end_matches('/');
    let mut stream = TcpStream::connect(address).await?;
    if tls {
        return Ok(true);
    }
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut status = [0u8; 12];
    stream.read_exact(&mut status).await?;
    Ok(&status == b"HTTP/1.1 200")
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
    eprintln!("fl-master: {message}");
    ExitCode::from(code)
}
