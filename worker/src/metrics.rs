//! `METRICS_ADDR`: Prometheus metrics, a liveness and a readiness probe.

use crate::{pauses::Stop, report::RoundReport};
use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
    exponential_buckets,
};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
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
    dropped: IntCounterVec,
    /// Updates that came for the wrong round.
    pub refused: IntCounter,
    /// Calls that had to be repeated.
    pub retries: IntCounter,
    /// Failed writes to `WORKER_STATE_DIR`.
    pub state_failures: IntCounter,
    /// Whether the master has ever answered.
    ready: AtomicBool,
}

/// Why an update was made in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// The training ended with values that are not finite.
    Diverged,
    /// The master refused the update's norm.
    NormTooLarge,
}

impl DropReason {
    const ALL: [Self; 2] = [Self::Diverged, Self::NormTooLarge];

    fn label(self) -> &'static str {
        match self {
            Self::Diverged => "diverged",
            Self::NormTooLarge => "norm_too_large",
        }
    }
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
        let dropped = register(
            &registry,
            IntCounterVec::new(
                Opts::new("fl_worker_dropped_updates_total", "Updates that were made in vain, by reason"),
                &["reason"],
            ),
        );
        for reason in DropReason::ALL {
            dropped.with_label_values(&[reason.label()]);
        }
        Self {
            dropped,
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
            state_failures: counter(
                "fl_worker_state_write_failures_total",
                "Writes to WORKER_STATE_DIR that failed",
            ),
            ready: AtomicBool::new(false),
            registry,
        }
    }

    /// The master has answered.
    pub fn reached(&self) {
        self.ready.store(true, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_contact.set(now.as_secs_f64());
    }

    /// An update was made in vain.
    pub fn dropped(&self, reason: DropReason) {
        self.dropped.with_label_values(&[reason.label()]).inc();
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

    pub(crate) fn text(&self) -> String {
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

/// Opens the port and answers in the background until `stop`.
///
/// # Errors
/// If the port cannot be opened.
pub async fn serve(addr: SocketAddr, metrics: Arc<Metrics>, stop: Stop) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(addr).await?;
    let local = listener.local_addr()?;
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.wait() => return,
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
        Some(b"/readyz") if metrics.ready.load(Ordering::Relaxed) => {
            ("200 OK", "text/plain", "ok\n".to_owned())
        }
        Some(b"/readyz") => {
            ("503 Service Unavailable", "text/plain", "the master has not answered yet\n".to_owned())
        }
        Some(_) => ("404 Not Found", "text/plain", "there are /metrics, /healthz and /readyz\n".to_owned()),
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
        let (_sender, stop) = Stop::channel();
        let addr = serve(([127, 0, 0, 1], 0).into(), Arc::new(Metrics::new()), stop).await.unwrap();
        assert!(get(addr, "GET /healthz HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 200"));
        assert!(get(addr, "GET /metrics HTTP/1.1\r\n\r\n").await.contains("# HELP fl_worker_retries_total"));
        assert!(get(addr, "GET /x HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404"));
        assert!(get(addr, "POST / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 405"));
        assert_eq!(get(addr, &"x".repeat(MAX_HEAD_BYTES + 1)).await, "");
    }

    #[tokio::test]
    async fn a_worker_is_ready_once_it_has_reached_the_master() {
        let (_sender, stop) = Stop::channel();
        let metrics = Arc::new(Metrics::new());
        let addr = serve(([127, 0, 0, 1], 0).into(), metrics.clone(), stop).await.unwrap();
        assert!(get(addr, "GET /healthz HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 200"), "it lives");
        assert!(get(addr, "GET /readyz HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 503"));
        metrics.reached();
        assert!(get(addr, "GET /readyz HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    }
}
