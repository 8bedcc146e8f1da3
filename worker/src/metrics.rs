//! `METRICS_ADDR`: Prometheus metrics and a health probe, and the probe's client.

use crate::run::RoundReport;
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Registry, TextEncoder, exponential_buckets,
};
use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::timeout,
};

/// Longest request head that is read, in bytes.
const MAX_HEAD_BYTES: usize = 4096;

/// A probe that takes longer is cut off.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections at a time; a probe and a scraper need two.
const MAX_CONNECTIONS: usize = 16;

/// The worker's series.
pub struct Metrics {
    registry: Registry,
    round: IntGauge,
    rounds: IntCounter,
    loss: Gauge,
    bytes_up: IntCounter,
    last_contact: Gauge,
    train_seconds: Histogram,
    encode_seconds: Histogram,
    upload_seconds: Histogram,
    /// Updates that came for the wrong round.
    pub refused: IntCounter,
    /// Calls that had to be repeated.
    pub retries: IntCounter,
}

impl Metrics {
    /// Registers every series. The names are constants that do not collide: it cannot fail.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name, help| register(&registry, IntCounter::new(name, help));
        let histogram = |name, help| {
            // From a millisecond to an hour.
            let buckets = exponential_buckets(0.001, 4.0, 12).unwrap_or_default();
            register(&registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets)))
        };
        Self {
            round: register(&registry, IntGauge::new("fl_worker_round", "Round of the last accepted update")),
            rounds: counter("fl_worker_updates_total", "Updates that the master accepted"),
            loss: register(
                &registry,
                Gauge::new("fl_worker_train_loss", "Mean training loss of the last round, in nats"),
            ),
            bytes_up: counter("fl_worker_sent_bytes_total", "Bytes of accepted updates"),
            last_contact: register(
                &registry,
                Gauge::new(
                    "fl_worker_last_contact_timestamp_seconds",
                    "When the master last answered, in seconds since 1970",
                ),
            ),
            train_seconds: histogram("fl_worker_train_seconds", "Local training of a round, in seconds"),
            encode_seconds: histogram("fl_worker_encode_seconds", "Encoding of an update, in seconds"),
            upload_seconds: histogram(
                "fl_worker_upload_seconds",
                "Upload of an update until it is acknowledged, in seconds",
            ),
            refused: counter(
                "fl_worker_stale_updates_total",
                "Updates that came for a round that was not open",
            ),
            retries: counter("fl_worker_retries_total", "Calls to the master that had to be repeated"),
            registry,
        }
    }

    /// The master has answered.
    pub fn seen(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_contact.set(now.as_secs_f64());
    }

    /// A round is done.
    pub fn record(&self, report: &RoundReport) {
        self.round.set(i64::try_from(report.round).unwrap_or(i64::MAX));
        self.rounds.inc();
        self.loss.set(report.loss);
        self.bytes_up.inc_by(report.bytes);
        self.train_seconds.observe(report.train_ms / 1e3);
        self.encode_seconds.observe(report.encode_ms / 1e3);
        self.upload_seconds.observe(report.upload_ms / 1e3);
    }

    fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}

fn register<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    series: prometheus::Result<C>,
) -> C {
    let series = series.expect("the name is a constant in Prometheus' alphabet");
    registry.register(Box::new(series.clone())).expect("no two series share a name");
    series
}

/// Opens the port and answers in the background until `stopped`.
///
/// # Errors
/// If the port cannot be opened.
pub async fn serve(
    addr: SocketAddr,
    metrics: Arc<Metrics>,
    mut stopped: watch::Receiver<bool>,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(addr).await?;
    let local = listener.local_addr()?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stopped.wait_for(|stopped| *stopped) => return,
            };
            let Ok((stream, _)) = accepted else {
                // Out of descriptors, most likely: accepting at once would spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let metrics = metrics.clone();
            tokio::spawn(async move {
                let _ = timeout(REQUEST_TIMEOUT, answer(stream, &metrics)).await;
                drop(place);
            });
        }
    });
    Ok(local)
}

async fn answer(mut stream: TcpStream, metrics: &Metrics) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        let mut buffer = [0u8; 512];
        let read = stream.read(&mut buffer).await?;
        if read == 0 || head.len() + read > MAX_HEAD_BYTES {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..read]);
    }
    let path = head.strip_prefix(b"GET ").and_then(|rest| rest.split(|b| *b == b' ').next());
    let (status, kind, body) = match path {
        Some(b"/metrics") => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", metrics.text()),
        Some(b"/healthz") => ("200 OK", "text/plain", "ok\n".to_owned()),
        Some(_) => ("404 Not Found", "text/plain", "there are /metrics and /healthz\n".to_owned()),
        None => ("405 Method Not Allowed", "text/plain", "only GET\n".to_owned()),
    };
    let response = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(addr: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn it_answers_probes_and_scrapers_and_nobody_else() {
        let (_stop, stopped) = watch::channel(false);
        let addr = serve(([127, 0, 0, 1], 0).into(), Arc::new(Metrics::new()), stopped).await.unwrap();
        assert!(get(addr, "GET /healthz HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        assert!(get(addr, "GET /metrics HTTP/1.1\r\n\r\n").await.contains("# HELP fl_worker_retries_total"));
        assert!(get(addr, "GET /x HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404"));
        assert!(get(addr, "POST / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 405"));
        assert_eq!(get(addr, &"x".repeat(MAX_HEAD_BYTES + 1)).await, "");
    }
}
