//! The real binary's memory depends on the model, and neither on the number of clients in a round nor on the number
//! of names under which somebody asks for work: what one more of them costs is measured.
//!
//! `FL_MEMORY_CLIENTS` is the number of clients of a round (10000 for a release), `FL_MEMORY_IDS` that of names
//! (1000000).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Running, free_port, ready, setting};
use fl_model::ModelSpec;
use fl_protocol::{UpdateAck, UpdateMeta, update, update::Encoded};
use fl_quant::{Encoder, Scheme, Spec, encode_update};
use std::{
    net::{Ipv4Addr, SocketAddr},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
};

const MODEL_DIM: usize = 100_180;
/// Clients after which growth is measured: tables with a bound are full by then.
const EARLY_CLIENTS: u64 = 2000;
/// An update is 50 kB; a round keeps a name and a few numbers of each.
const MAX_BYTES_PER_CLIENT: f64 = 2000.0;
/// Connections that send at the same time.
const SENDERS: usize = 64;
/// Names after which growth is measured: more than any table holds.
const EARLY_IDS: u64 = 110_000;
/// A table without a bound needs more than that for a name alone.
const MAX_BYTES_PER_ID: f64 = 40.0;
/// Addresses from which work is asked for, with a connection each.
const ADDRESSES: u8 = 16;
/// Requests that are written before their answers are read.
const AT_ONCE: u64 = 100;

/// The tensors of an update at 4 bits, which all clients share.
fn streams(layout: &fl_protocol::ModelLayout) -> Vec<Vec<u8>> {
    let x: Vec<f32> = (0..layout.parameters()).map(|i| (i as f32 * 0.7).sin().powi(7) * 0.01).collect();
    let mut streams = Vec::new();
    let spec = Spec::new(Scheme::MsqV2, 4);
    encode_update(&mut Encoder::default(), &x, &layout.shapes(), &spec, &mut streams).unwrap();
    streams
}

/// Has each of these clients hand in an update of round 0.
async fn hand_in(
    url: &str,
    layout: &Arc<fl_protocol::ModelLayout>,
    shared: &Arc<Vec<Vec<u8>>>,
    clients: Range<u64>,
) {
    let next = Arc::new(AtomicU64::new(clients.start));
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            let (layout, streams, url) = (layout.clone(), shared.clone(), format!("{url}/update"));
            let (next, end) = (next.clone(), clients.end);
            tokio::spawn(async move {
                let client = common::client();
                loop {
                    let k = next.fetch_add(1, Ordering::Relaxed);
                    if k >= end {
                        return;
                    }
                    let meta = UpdateMeta {
                        worker_id: format!("w{k}").parse().unwrap(),
                        round: 0,
                        num_samples: 600,
                        loss: Some(0.5),
                        accuracy: None,
                        compute_factor: None,
                        local_steps: None,
                        local_norm: None,
                        reuse: None,
                        metrics: Default::default(),
                    };
                    let tensors: Vec<_> = streams.iter().map(|bytes| Encoded::Stream(bytes)).collect();
                    let body = update::write(&meta, &layout, &tensors).unwrap();
                    let request = client.post(&url).header("content-type", "application/octet-stream");
                    let answer = request.body(body).send().await.unwrap();
                    assert_eq!(answer.status(), 200);
                    let ack: UpdateAck = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
                    assert!(!ack.duplicate);
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_more_in_a_round_costs_no_memory_to_speak_of() {
    let clients = setting("FL_MEMORY_CLIENTS", 2 * EARLY_CLIENTS).max(EARLY_CLIENTS + 1000);
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let (count, dim) = ((clients + 1).to_string(), MODEL_DIM.to_string());
    let settings = [("MODEL", "mlp"), ("MODEL_DIM", dim.as_str()), ("AGG_MIN_CLIENTS", count.as_str())];
    let mut master = Running::spawn(port, dir.path(), &settings);
    ready(&url).await;
    let idle_mb = master.memory_mb("VmRSS");
    let layout = Arc::new(ModelSpec::classifier("mlp", &[1, 8, 8], 10, MODEL_DIM).unwrap().layout());
    let streams = Arc::new(streams(&layout));
    hand_in(&url, &layout, &streams, 0..EARLY_CLIENTS).await;
    let early_mb = master.memory_mb("VmRSS");
    hand_in(&url, &layout, &streams, EARLY_CLIENTS..clients).await;
    let (end_mb, peak_mb) = (master.memory_mb("VmRSS"), master.memory_mb("VmHWM"));
    let per_client = (end_mb - early_mb) * 1e6 / (clients - EARLY_CLIENTS) as f64;
    println!(
        "{clients} clients x {} parameters: {idle_mb:.1} MB idle, {early_mb:.1} MB at client {EARLY_CLIENTS}, \
         {end_mb:.1} MB at the end, {per_client:.0} B a client, peak {peak_mb:.1} MB",
        layout.parameters()
    );
    assert!(per_client <= MAX_BYTES_PER_CLIENT, "a client more costs {per_client:.0} B");
    assert!(master.terminate().success());
}

/// Asks for work once under each of these names, and gives the number of answers 200.
async fn ask(port: u16, from: u8, ids: Range<u64>) -> u64 {
    const STATUS_LINE: &[u8] = b"HTTP/1.1 ";
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, from), 0))).unwrap();
    let mut stream = socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await.unwrap();
    let (mut bytes, mut taken) = (Vec::new(), 0);
    let mut start = ids.start;
    while start < ids.end {
        let end = ids.end.min(start + AT_ONCE);
        let requests: String = (start..end)
            .map(|k| format!("GET /task?worker_id=somebody-{from}-{k} HTTP/1.1\r\nhost: x\r\n\r\n"))
            .collect();
        stream.write_all(requests.as_bytes()).await.unwrap();
        let mut answers = 0;
        while answers < end - start {
            assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "the connection ends");
            let mut done = 0;
            // A status line ends with the three digits that follow.
            while let Some(at) = bytes[done..]
                .windows(STATUS_LINE.len() + 3)
                .position(|window| window.starts_with(STATUS_LINE))
            {
                let code = done + at + STATUS_LINE.len();
                taken += u64::from(bytes[code..].starts_with(b"200"));
                answers += 1;
                done = code + 3;
            }
            let keep = bytes.len().min(STATUS_LINE.len() + 2);
            bytes.drain(..done.max(bytes.len() - keep));
        }
        start = end;
    }
    taken
}

/// The same from all addresses, under `ids` names altogether.
async fn ask_from_everywhere(port: u16, ids: Range<u64>) -> u64 {
    let each = |k: u64| k / u64::from(ADDRESSES);
    let asking: Vec<_> =
        (0..ADDRESSES).map(|i| tokio::spawn(ask(port, 2 + i, each(ids.start)..each(ids.end)))).collect();
    let mut taken = 0;
    for asked in asking {
        taken += asked.await.unwrap();
    }
    taken
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_more_under_which_work_is_asked_for_costs_no_memory() {
    let ids = setting("FL_MEMORY_IDS", 200_000);
    // Without a limit on what an address may claim, and with the default one.
    for limit in ["0", "20"] {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let settings = [("REFUSED_PER_S", limit), ("CLIENTS_PER_ROUND", "2"), ("AGG_MIN_CLIENTS", "2")];
        let mut master = Running::spawn(port, dir.path(), &settings);
        ready(&format!("http://127.0.0.1:{port}")).await;
        let idle_mb = master.memory_mb("VmRSS");
        let taken = ask_from_everywhere(port, 0..EARLY_IDS).await;
        // The tables without a bound of the limiter would take all of them, those with one most.
        assert!(taken >= EARLY_IDS * 9 / 10, "{taken}");
        let early_mb = master.memory_mb("VmRSS");
        ask_from_everywhere(port, EARLY_IDS..EARLY_IDS + ids).await;
        let end_mb = master.memory_mb("VmRSS");
        let per_id = (end_mb - early_mb) * 1e6 / ids as f64;
        println!(
            "REFUSED_PER_S={limit}: {idle_mb:.1} MB idle, {early_mb:.1} MB after {EARLY_IDS} names, {end_mb:.1} MB \
             after {ids} more: {per_id:.1} B each"
        );
        assert!(per_id <= MAX_BYTES_PER_ID, "a name more costs {per_id:.1} B");
        assert!(master.terminate().success());
    }
}
