//! The real binary under attack: nothing that is not a valid update changes the model, every answer is
//! one that the API names, and honest workers go on at their pace.
//!
//! `FL_HOSTILE_REQUESTS` makes it longer (100000 for a release).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Fixture, Running, body, body_of, client, config, delta, free_port, layout, ready, setting};
use fl_protocol::{ErrorBody, StatusBody, UpdateAck, limits::max_update_bytes};
use reqwest::Client;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::sleep,
};

const HONEST: usize = 4;
const QUIET_ROUNDS: u64 = 60;
/// Connections that send hostile requests one after another.
const ATTACKERS: usize = 12;
const IDLE: usize = 500;
/// Bodies that trickle in at the same time.
const SLOW: usize = 20;
/// The time that an honest worker takes to train, about that of five steps of a small network.
const TRAINING: Duration = Duration::from_millis(20);

/// What an attack has seen: answers by status and code.
type Answers = Arc<Mutex<BTreeMap<(u16, String), u64>>>;

/// A connection from an address of its own: refusals are counted by address and worker.
async fn connect(port: u16, from: u8) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, from), 0)))?;
    socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await
}

fn request(content_type: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST /update HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// Every way to be refused, as whole requests. None of them is valid at any time.
fn hostile_requests() -> Vec<Vec<u8>> {
    const OCTETS: &str = "application/octet-stream";
    let good = body_of("evil", 0, 10, &delta(9, 0));
    let parameters = layout().parameters();
    let with = |value: f32| {
        let mut x = delta(9, 0);
        x[parameters / 2] = value;
        body_of("evil", 0, 10, &x)
    };
    let edited = |from: &str, to: &str| {
        let at = good.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let mut body = good.clone();
        body.splice(at..at + from.len(), to.bytes());
        let header = u64::from_le_bytes(body[..8].try_into().unwrap()) + to.len() as u64 - from.len() as u64;
        body[..8].copy_from_slice(&header.to_le_bytes());
        body
    };
    let mut bodies: Vec<Vec<u8>> =
        [0, 1, 7, 8, 9, 40, 200, good.len() / 2, good.len() - 1].map(|len| good[..len].to_vec()).into();
    bodies.extend([f32::NAN, f32::INFINITY, -f32::INFINITY, f32::MAX].map(with));
    bodies.extend([
        edited("\"num_samples\":\"10\"", "\"num_samples\":\"0\""),
        edited("\"num_samples\":\"10\"", "\"num_samples\":\"-1\""),
        edited("\"num_samples\":\"10\"", "\"num_samples\":\"18446744073709551615\""),
        edited("\"round\":\"0\"", "\"round\":\"18446744073709551615\""),
        edited("\"loss\":\"0.5\"", "\"loss\":\"NaN\""),
        edited("\"worker_id\":\"evil\"", "\"worker_id\":\"../evil\""),
        edited("\"worker_id\":\"evil\"", &format!("\"worker_id\":\"{}\"", "e".repeat(500))),
        edited("1.weight", "2.weight"),
        edited("\"F32\"", "\"I64\""),
        u64::MAX.to_le_bytes().to_vec(),
        [&(1u64 << 19).to_le_bytes()[..], &b"{".repeat(1 << 10)].concat(),
        vec![0; 4096],
    ]);
    let mut requests: Vec<_> = bodies.iter().map(|body| request(OCTETS, body)).collect();
    let json = "application/json";
    requests.extend([
        request("text/plain", &good),
        request("", &good),
        request(json, b"{"),
        request(json, b"{\"worker_id\":\"evil\",\"round\":0,\"num_samples\":1,\"delta\":[1]}"),
        request(json, b"{\"worker_id\":\"evil\",\"round\":\"x\",\"num_samples\":1,\"delta\":[]}"),
        request(json, &[b"[".repeat(5000), b"]".repeat(5000)].concat()),
        b"GET /global?round=-1 HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"GET /task?worker_id=%00 HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"DELETE /update HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
    ]);
    requests
}

/// Requests after which the connection is not to be used again.
fn closing_requests() -> Vec<Vec<u8>> {
    let too_large = max_update_bytes(layout().parameters()) + 1;
    let head = |length: &str| {
        format!(
            "POST /update HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\n{length}\r\n\r\n"
        )
        .into_bytes()
    };
    vec![
        [head(&format!("content-length: {too_large}")), vec![0; too_large]].concat(),
        head("content-length: 18446744073709551616"),
        head("content-length: -5"),
        [head("transfer-encoding: chunked"), b"zz\r\n".to_vec()].concat(),
        [b"POST /update HTTP/1.1\r\nhost: x\r\nx: ".to_vec(), vec![b'a'; 64 << 10], b"\r\n\r\n".to_vec()]
            .concat(),
        [b"GET /status HTTP/1.1\r\n".to_vec(), b"a: b\r\n".repeat(500), b"\r\n".to_vec()].concat(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(20),
        b"HELO there\r\n\r\n".to_vec(),
    ]
}

/// Reads one answer; `None` if the master closed the connection instead.
async fn answer(stream: &mut TcpStream) -> Option<(u16, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..at]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.map_or(0, |text| text.trim().parse().unwrap());
            if bytes.len() >= at + 4 + length {
                return Some((head[9..12].parse().unwrap(), bytes[at + 4..].to_vec()));
            }
        }
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

fn note(answers: &Answers, (status, body): (u16, Vec<u8>)) {
    let code = match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(problem) => {
            assert_eq!(status, problem.code.http_status());
            problem.code.as_str().to_owned()
        }
        Err(_) => String::from_utf8_lossy(&body).into_owned(),
    };
    *answers.lock().unwrap().entry((status, code)).or_default() += 1;
}

/// Sends requests from the list, over and over, until enough have been sent.
async fn attack(port: u16, me: usize, left: Arc<AtomicU64>, total: u64, replayed: Vec<u8>, answers: Answers) {
    let (requests, closing) = (hostile_requests(), closing_requests());
    let mut stream = connect(port, 2).await.unwrap();
    while let Ok(n) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)) {
        let n = (total - n) as usize;
        // One in fifty ends its connection, one in ten replays what was accepted long ago.
        let is_last = n % 50 == me;
        let bytes = match n % 10 {
            _ if is_last => &closing[n / 50 % closing.len()],
            9 => &replayed,
            _ => &requests[n % requests.len()],
        };
        let sent = stream.write_all(bytes).await;
        match answer(&mut stream).await {
            Some(answer) => note(&answers, answer),
            None => assert!(
                is_last,
                "no answer to {}: {sent:?}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(300)])
            ),
        }
        if is_last {
            stream = connect(port, 2).await.unwrap();
        }
    }
}

/// Bodies that arrive a byte at a time, until the master has had enough.
async fn trickle(port: u16, over: Arc<AtomicBool>, answers: Answers) {
    let whole = request("application/octet-stream", &body_of("slow", 0, 10, &delta(9, 0)));
    let head = whole.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    while !over.load(Ordering::Relaxed) {
        let mut stream = connect(port, 3).await.unwrap();
        stream.write_all(&whole[..head]).await.unwrap();
        let (mut read, mut write) = stream.split();
        let mut bytes = Vec::new();
        let trickling = async {
            for byte in &whole[head..whole.len() - 1] {
                if write.write_all(&[*byte]).await.is_err() {
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            _ = read.read_to_end(&mut bytes) => {}
            () = trickling => {}
        }
        let text = String::from_utf8_lossy(&bytes);
        let (head, body) = text.split_once("\r\n\r\n").expect("a slow body has an answer");
        note(&answers, (head[9..12].parse().unwrap(), body.as_bytes().to_vec()));
    }
}

/// One honest worker's round: train, send, wait for the next.
async fn work(client: Client, worker: usize, url: String, round: u64) {
    sleep(TRAINING).await;
    let request = client.post(format!("{url}/update")).header("content-type", "application/octet-stream");
    let response = request.body(body(worker, round)).send().await.unwrap();
    let (status, bytes) = (response.status(), response.bytes().await.unwrap());
    assert_eq!(status, 200, "an honest worker is refused: {}", String::from_utf8_lossy(&bytes));
    let ack: UpdateAck = serde_json::from_slice(&bytes).unwrap();
    assert!(!ack.duplicate);
    let next = format!("{url}/global?min_round={}&wait=60", round + 1);
    assert_eq!(client.get(next).send().await.unwrap().status(), 200);
}

/// All honest workers' rounds, one time per round.
async fn rounds(clients: &[Client], url: &str, range: std::ops::Range<u64>) -> Vec<f64> {
    let mut times = Vec::new();
    for round in range {
        let started = Instant::now();
        let workers: Vec<_> = clients
            .iter()
            .enumerate()
            .map(|(worker, client)| tokio::spawn(work(client.clone(), worker, url.to_owned(), round)))
            .collect();
        for worker in workers {
            worker.await.unwrap();
        }
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    times
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Status and code of every refusal that the API document names.
async fn documented(url: &str) -> BTreeSet<u16> {
    let response = client().get(format!("{url}/openapi.json")).send().await.unwrap();
    let document: serde_json::Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    let responses = document["paths"]["/update"]["post"]["responses"].as_object().unwrap();
    // What no single path owns: unknown paths and methods, and requests that are not HTTP.
    responses
        .keys()
        .map(|status| status.parse().unwrap())
        .chain([404, 405, 431])
        .filter(|s| *s >= 400)
        .collect()
}

/// Every request reaches what it attacks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_change_nothing_and_stop_nobody() {
    attacked("0").await;
}

/// Most are answered 429 before anything else looks at them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests_that_are_rate_limited_change_nothing_and_stop_nobody() {
    attacked("20").await;
}

async fn attacked(refused_per_s: &str) {
    // One after the other: both measure memory and rounds.
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _turn = TURN.lock().await;
    let total = setting("FL_HOSTILE_REQUESTS", 5000);
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let settings = [
        ("AGG_MIN_CLIENTS", "4"),
        ("BODY_TIMEOUT_S", "1"),
        ("HEADER_TIMEOUT_S", "3600"),
        ("REFUSED_PER_S", refused_per_s),
    ];
    let mut master = Running::spawn(port, dir.path(), &settings);
    ready(&url).await;
    let clients = [(); HONEST].map(|()| client());
    let quiet_ms = median(rounds(&clients, &url, 0..QUIET_ROUNDS).await);
    let quiet_mb = master.memory_mb("VmRSS");

    let (answers, over) = (Answers::default(), Arc::new(AtomicBool::new(false)));
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        idle.push(connect(port, 4).await.unwrap());
    }
    let left = Arc::new(AtomicU64::new(total));
    let slow: Vec<_> =
        (0..SLOW).map(|_| tokio::spawn(trickle(port, over.clone(), answers.clone()))).collect();
    let attackers: Vec<_> = (0..ATTACKERS)
        .map(|me| tokio::spawn(attack(port, me, left.clone(), total, body_of_round_0(), answers.clone())))
        .collect();
    let started = Instant::now();
    let mut round = QUIET_ROUNDS;
    let mut times = Vec::new();
    while attackers.iter().any(|attacker| !attacker.is_finished()) || times.len() < 10 {
        times.extend(rounds(&clients, &url, round..round + 1).await);
        round += 1;
    }
    let took_s = started.elapsed().as_secs_f64();
    for attacker in attackers {
        attacker.await.unwrap();
    }
    over.store(true, Ordering::Relaxed);
    for connection in slow {
        connection.await.unwrap();
    }
    let (attacked_ms, peak_mb) = (median(times.clone()), master.memory_mb("VmHWM"));
    println!("{total} hostile requests in {took_s:.1} s, {IDLE} idle connections, {SLOW} slow ones");
    println!("honest rounds: {quiet_ms:.1} ms quiet, {attacked_ms:.1} ms attacked ({} rounds)", times.len());
    println!("resident: {quiet_mb:.1} MB quiet, {peak_mb:.1} MB at the peak");
    let documented = documented(&url).await;
    for ((status, code), count) in answers.lock().unwrap().iter() {
        println!("{count:7}  {status} {code}");
        assert!(documented.contains(status), "{status} {code} is not in the API's document");
    }

    let response = client().get(format!("{url}/status")).send().await.unwrap();
    let state: StatusBody = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    assert_eq!((state.global_round, state.pending_updates), (round, 0));
    assert_eq!(state.workers.len(), HONEST, "only honest workers are known");
    let attacked = client().get(format!("{url}/global")).send().await.unwrap().bytes().await.unwrap();
    drop(idle);
    assert!(master.terminate().success());
    let quiet = tempfile::tempdir().unwrap();
    let mut settings = config(quiet.path());
    settings.round.min_clients = HONEST;
    settings.store.durable = false;
    let f = Fixture::start(settings).await;
    for round in 0..round {
        for worker in 0..HONEST {
            f.accepted(body(worker, round)).await;
        }
    }
    assert_eq!(f.master.global(), attacked, "the model is not that of the honest updates alone");
    // A busy machine must not fail a short run; a long one is a measurement.
    if total >= 100_000 {
        assert!(attacked_ms <= 2.0 * quiet_ms, "{attacked_ms} ms against {quiet_ms} ms");
    }
}

/// An honest worker's update of a round that is long over.
fn body_of_round_0() -> Vec<u8> {
    request("application/octet-stream", &body(0, 0))
}
