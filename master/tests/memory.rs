//! The real binary in one large round: its memory depends on the model and not on the number of clients.
//!
//! `FL_MEMORY_CLIENTS` is the number of clients (10000 for a release).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Running, free_port, ready, setting};
use fl_model::ModelSpec;
use fl_protocol::{UpdateAck, UpdateMeta, update, update::Encoded};
use fl_quant::{Encoder, Scheme, Spec, encode_update};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

const MODEL_DIM: usize = 100_180;
const EARLY: u64 = 100;
/// Connections that send at the same time.
const SENDERS: usize = 64;

/// The tensors of an update at 4 bits, which all clients share.
fn streams(layout: &fl_protocol::ModelLayout) -> Vec<Vec<u8>> {
    let x: Vec<f32> = (0..layout.parameters()).map(|i| (i as f32 * 0.7).sin().powi(7) * 0.01).collect();
    let mut streams = Vec::new();
    let spec = Spec::new(Scheme::MsqV2, 4);
    encode_update(&mut Encoder::default(), &x, &layout.shapes(), &spec, &mut streams).unwrap();
    streams
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_does_not_grow_with_the_number_of_clients() {
    let clients = setting("FL_MEMORY_CLIENTS", 1500);
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let count = clients.to_string();
    let dim = MODEL_DIM.to_string();
    let settings = [("MODEL", "mlp"), ("MODEL_DIM", dim.as_str()), ("AGG_MIN_CLIENTS", count.as_str())];
    let mut master = Running::spawn(port, dir.path(), &settings);
    ready(&url).await;
    let idle_mb = master.memory_mb("VmRSS");
    let layout = Arc::new(ModelSpec::preset("mlp", &[1, 8, 8], 10, MODEL_DIM).unwrap().layout());
    let (streams, next, accepted) =
        (Arc::new(streams(&layout)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            let (layout, streams, url) = (layout.clone(), streams.clone(), format!("{url}/update"));
            let (next, accepted) = (next.clone(), accepted.clone());
            tokio::spawn(async move {
                let client = common::client();
                loop {
                    let k = next.fetch_add(1, Ordering::Relaxed);
                    if k >= clients {
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
                    };
                    let tensors: Vec<_> = streams.iter().map(|bytes| Encoded::Stream(bytes)).collect();
                    let body = update::write(&meta, &layout, &tensors).unwrap();
                    let request = client.post(&url).header("content-type", "application/octet-stream");
                    let answer = request.body(body).send().await.unwrap();
                    assert_eq!(answer.status(), 200);
                    let ack: UpdateAck = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
                    assert!(!ack.duplicate);
                    accepted.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    while accepted.load(Ordering::Relaxed) < EARLY && !senders.iter().all(|sender| sender.is_finished()) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let early_mb = master.memory_mb("VmHWM");
    for sender in senders {
        sender.await.unwrap();
    }
    let (end_mb, peak_mb) = (master.memory_mb("VmRSS"), master.memory_mb("VmHWM"));
    let model_mb = 4.0 * layout.parameters() as f64 / 1e6;
    let limit_mb = 30.0 + 3.0 * model_mb;
    println!(
        "{clients} clients x {} parameters: {idle_mb:.1} MB idle, peak {early_mb:.1} MB at client {EARLY}, {end_mb:.1} MB \
         at the end, peak {peak_mb:.1} MB, limit {limit_mb:.1} MB",
        layout.parameters()
    );
    assert!(peak_mb <= limit_mb, "the peak is {peak_mb:.1} MB, at most {limit_mb:.1} MB are allowed");
    assert!(master.terminate().success());
}
