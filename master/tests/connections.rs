//! What clients do with connections harms nobody else: idle ones, readers that stall, too many of them.
//!
//! `FL_IDLE_CONNECTIONS` and `FL_STALLED_READERS` make it harder (900 and 300 for a release); then the
//! times and the memory count.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Fixture, Running, client, config, free_port, ready, setting};
use fl_master::settings::TlsConfig;
use fl_model::ModelSpec;
use fl_protocol::{ErrorBody, ModelLayout, UpdateAck, UpdateMeta, update, update::Encoded};
use rcgen::{CertificateParams, KeyPair};
use reqwest::Client;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::sleep,
};
use tokio_rustls::TlsConnector;

const ROUNDS: u64 = 40;
const PARAMETERS: usize = 200_000;
/// What an honest worker takes to train.
const TRAINING: Duration = Duration::from_millis(20);

/// A connection from 127.0.0.`from`.
async fn connect(port: u16, from: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    // A reader that stalls should not have its answer in the kernel's buffers.
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, from), 0))).unwrap();
    socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap()
}

/// Sends a request and reads its answer to the end of its body; `None` if the connection ends before.
async fn ask<S>(stream: &mut S, path: &str) -> Option<(u16, String, Vec<u8>)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..at]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.map_or(0, |text| text.trim().parse().unwrap());
            if bytes.len() >= at + 4 + length {
                return Some((head[9..12].parse().unwrap(), head, bytes[at + 4..].to_vec()));
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// Begins a long poll. It is sent together with a probe: once that is answered, the poll has been read.
async fn poll<S>(stream: &mut S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let poll =
        "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /global?min_round=1&wait=60 HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(poll.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"}") {
        assert!(stream.read_buf(&mut answer).await.unwrap() > 0);
    }
}

async fn status_of(stream: &mut TcpStream, path: &str) -> u16 {
    ask(stream, path).await.expect("there is an answer").0
}

fn is_refusal((status, head, body): &(u16, String, Vec<u8>)) -> bool {
    let problem: ErrorBody = serde_json::from_slice(body).unwrap();
    *status == 503 && problem.code.as_str() == "overloaded" && head.contains("retry-after:")
}

#[tokio::test]
async fn beyond_the_cap_probes_are_answered_and_the_rest_is_told_to_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path());
    settings.limits.max_connections = 4;
    settings.limits.max_connections_per_ip = Some(2);
    let f = Fixture::start(settings).await;
    let port = f.master.local_addr().port();
    // Long polls keep their connections busy.
    let mut busy = Vec::new();
    for from in [2, 2, 3, 3] {
        let mut stream = connect(port, from).await;
        poll(&mut stream).await;
        busy.push(stream);
    }
    // The polls have begun once nobody gives way.
    loop {
        let mut stream = connect(port, 4).await;
        match ask(&mut stream, "/status").await {
            Some((200, ..)) => tokio::task::yield_now().await,
            answer => {
                assert!(is_refusal(&answer.expect("a refusal is an answer")));
                break;
            }
        }
    }
    for from in [2, 3, 4, 5] {
        for path in ["/healthz", "/readyz"] {
            assert_eq!(status_of(&mut connect(port, from).await, path).await, 200, "{path}");
        }
        assert!(is_refusal(&ask(&mut connect(port, from).await, "/global").await.unwrap()));
    }
    drop(busy);
    f.master.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_longest_idle_connection_gives_way() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path());
    settings.limits.max_connections = 4;
    settings.limits.max_connections_per_ip = Some(2);
    let f = Fixture::start(settings).await;
    let port = f.master.local_addr().port();
    let mut idle = Vec::new();
    for from in [2, 2, 3, 3] {
        let mut stream = connect(port, from).await;
        assert_eq!(status_of(&mut stream, "/status").await, 200);
        idle.push(stream);
    }
    // A third one of an address takes the place of its own first, and a new address that of the oldest.
    let mut third = connect(port, 3).await;
    assert_eq!(status_of(&mut third, "/status").await, 200);
    assert_eq!(idle[2].read(&mut [0]).await.unwrap_or(0), 0, "the first of that address is closed");
    let mut other = connect(port, 4).await;
    assert_eq!(status_of(&mut other, "/status").await, 200);
    assert_eq!(idle[0].read(&mut [0]).await.unwrap_or(0), 0, "the longest idle one is closed");
    for stream in [1, 3] {
        assert_eq!(status_of(&mut idle[stream], "/status").await, 200, "the others go on");
    }
    f.master.shutdown().await.unwrap();
}

#[tokio::test]
async fn beyond_the_cap_a_client_of_tls_is_answered_within_tls() {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
    let (cert, key_file) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, certificate.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let mut settings = config(&dir.path().join("state"));
    settings.limits.max_connections = 1;
    settings.tls = Some(TlsConfig { cert, key: key_file, client_ca: None });
    let f = Fixture::start(settings).await;
    let port = f.master.local_addr().port();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).unwrap();
    let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let connector = TlsConnector::from(Arc::new(client));
    let connect_tls = async || {
        let name = ServerName::try_from("127.0.0.1").unwrap();
        connector.connect(name, connect(port, 1).await).await.expect("the handshake is made")
    };

    let mut busy = connect_tls().await;
    poll(&mut busy).await;
    loop {
        match ask(&mut connect_tls().await, "/status").await {
            Some((200, ..)) => panic!("the poll gave way"),
            Some(answer) => break assert!(is_refusal(&answer)),
            None => tokio::task::yield_now().await,
        }
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask(&mut connect_tls().await, path).await.unwrap().0, 200, "{path}");
    }
    drop(busy);
    f.master.shutdown().await.unwrap();
}

#[tokio::test]
async fn readiness_ends_before_the_port_closes() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let mut master = Running::spawn(port, dir.path(), &[]);
    ready(&url).await;
    let pid = master.0.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    while status_of(&mut connect(port, 1).await, "/readyz").await == 200 {}
    // Requests that come by new connections are served for a moment.
    assert_eq!(status_of(&mut connect(port, 1).await, "/status").await, 200);
    assert_eq!(status_of(&mut connect(port, 1).await, "/healthz").await, 200);
    assert!(master.0.wait().unwrap().success());
}

fn layout() -> ModelLayout {
    ModelSpec::classifier("mlp", &[1, 8, 8], 10, PARAMETERS).unwrap().layout()
}

/// An update that changes nothing.
fn update(layout: &ModelLayout, round: u64) -> Vec<u8> {
    let meta = UpdateMeta {
        worker_id: "honest".parse().unwrap(),
        round,
        num_samples: 10,
        loss: None,
        accuracy: None,
        compute_factor: None,
        local_steps: None,
        local_norm: None,
        reuse: None,
        metrics: Default::default(),
    };
    let zeros = vec![0.0; layout.parameters()];
    let tensors: Vec<_> =
        layout.tensors().iter().map(|t| Encoded::F32(&zeros[t.offset..t.offset + t.len])).collect();
    update::write(&meta, layout, &tensors).unwrap()
}

/// A worker's rounds, each in milliseconds: train, send, take the next model.
async fn rounds(client: &Client, url: &str, range: std::ops::Range<u64>) -> Vec<f64> {
    let layout = layout();
    let mut times = Vec::new();
    for round in range {
        let body = update(&layout, round);
        let started = Instant::now();
        sleep(TRAINING).await;
        let ack: UpdateAck = loop {
            let post =
                client.post(format!("{url}/update")).header("content-type", "application/octet-stream");
            // A connection may have been closed while it was idle: the update is sent again, as a worker does.
            let Ok(response) = post.body(body.clone()).send().await else { continue };
            let status = response.status();
            let bytes = response.bytes().await.unwrap();
            assert_eq!(status, 200, "the worker is refused: {}", String::from_utf8_lossy(&bytes));
            break serde_json::from_slice(&bytes).unwrap();
        };
        assert!(ack.aggregated);
        let next = loop {
            let get = client.get(format!("{url}/global?min_round={}&wait=60", round + 1));
            if let Ok(response) = get.send().await {
                break response;
            }
        };
        assert_eq!(next.status(), 200);
        next.bytes().await.unwrap();
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    times
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Asks `/healthz` over new connections until it is told to stop: the longest answer, in milliseconds.
async fn probe(port: u16, over: Arc<AtomicBool>) -> (f64, u64) {
    let (mut longest, mut probes) = (0.0f64, 0);
    while !over.load(Ordering::Relaxed) {
        let started = Instant::now();
        let status = status_of(&mut connect(port, 1).await, "/healthz").await;
        assert_eq!(status, 200, "a probe is refused");
        longest = longest.max(started.elapsed().as_secs_f64() * 1e3);
        probes += 1;
        sleep(Duration::from_millis(50)).await;
    }
    (longest, probes)
}

/// `from` is the last number of the attackers' address; the honest worker and the probes have 1.
async fn attacked(from: u8) {
    let (idle, stalled) = (setting("FL_IDLE_CONNECTIONS", 200), setting("FL_STALLED_READERS", 60));
    let is_release = idle >= 900 && stalled >= 300;
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    // Fewer places than connections.
    let places = (idle * 768 / 900).to_string();
    let parameters = PARAMETERS.to_string();
    let settings = [
        ("MODEL", "mlp"),
        ("MODEL_DIM", parameters.as_str()),
        ("AGG_MIN_CLIENTS", "1"),
        ("MAX_CONNECTIONS", places.as_str()),
        ("DURABLE", "false"),
    ];
    let mut master = Running::spawn(port, dir.path(), &settings);
    ready(&url).await;
    let client = client();
    let quiet_ms = median(rounds(&client, &url, 0..ROUNDS).await);
    let quiet_mb = master.memory_mb("VmRSS");

    let over = Arc::new(AtomicBool::new(false));
    let probes = tokio::spawn(probe(port, over.clone()));
    let mut held = Vec::new();
    for _ in 0..idle {
        held.push(connect(port, from).await);
    }
    for _ in 0..stalled {
        let mut stream = connect(port, from).await;
        stream.write_all(b"GET /global HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        held.push(stream);
    }
    let times = rounds(&client, &url, ROUNDS..2 * ROUNDS).await;
    let attacked_ms = median(times);
    over.store(true, Ordering::Relaxed);
    let (probe_ms, probes) = probes.await.unwrap();
    let grown_mb = master.memory_mb("VmHWM") - quiet_mb;
    println!("{idle} idle connections and {stalled} stalled readers from 127.0.0.{from}:");
    println!("{probes} probes, the longest {probe_ms:.1} ms");
    println!("rounds: {quiet_ms:.1} ms quiet, {attacked_ms:.1} ms attacked");
    println!("resident: {quiet_mb:.1} MB quiet, grown by {grown_mb:.1} MB");
    assert!(grown_mb < 40.0, "grown by {grown_mb:.1} MB");
    // A busy machine must not fail a short run; a long one is a measurement.
    if is_release {
        assert!(probe_ms < 1000.0, "a probe took {probe_ms:.1} ms");
        assert!(attacked_ms <= 2.0 * quiet_ms, "{attacked_ms:.1} ms against {quiet_ms:.1} ms");
    }
    drop(held);
    assert!(master.terminate().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_and_a_worker_go_on_beside_attackers_elsewhere() {
    attacked(7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_and_a_worker_go_on_beside_attackers_of_the_same_address() {
    attacked(1).await;
}
