//! The model does not depend on the order in which updates arrive, on how many threads add them, or on
//! whether they go through a journal: one digest for all.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use bytes::Bytes;
use common::{Fixture, config};
use fl_model::ModelSpec;
use fl_protocol::{ModelLayout, UpdateAck, UpdateMeta, update, update::Encoded};
use fl_quant::{Encoder, Scheme, Spec, encode_update};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

const UPDATES: usize = 500;
const ORDERS: u64 = 20;
/// Connections that send at the same time: within a run, too, the order is anybody's guess.
const SENDERS: usize = 8;
/// Large enough for several stripes of the sum and for long and short tensors.
const MODEL_DIM: usize = 10_000;

fn layout() -> ModelLayout {
    ModelSpec::classifier("mlp", &[1, 8, 8], 10, MODEL_DIM).unwrap().layout()
}

/// A small custom generator, so that the test's input does not change with a dependency.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.next() as usize % (i + 1));
        }
    }
}

/// Updates of every quantizer and width, with weights and magnitudes far apart.
fn bodies(layout: &ModelLayout) -> Vec<Bytes> {
    let mut random = Random(7);
    let shapes = layout.shapes();
    let mut encoder = Encoder::default();
    (0..UPDATES)
        .map(|k| {
            let magnitude = 10f32.powi(-(random.next() as i32 % 6));
            let x: Vec<f32> = (0..layout.parameters())
                .map(|_| (random.next() as f32 / 2f32.powi(30) - 1.0).powi(3) * magnitude)
                .collect();
            let scheme = Scheme::ALL[k % Scheme::ALL.len()];
            let spec = Spec { seed: k as u64, ..Spec::new(scheme, 1 + (k / Scheme::ALL.len() % 8) as u8) };
            let mut streams = Vec::new();
            encode_update(&mut encoder, &x, &shapes, &spec, &mut streams).unwrap();
            let meta = UpdateMeta {
                worker_id: format!("w{k}").parse().unwrap(),
                round: 0,
                num_samples: 1 + random.next() % 5000,
                loss: None,
                accuracy: None,
                compute_factor: None,
                local_steps: None,
                local_norm: None,
                reuse: None,
                metrics: Default::default(),
            };
            let plain = k % 50 == 0;
            let tensors: Vec<_> = layout
                .tensors()
                .iter()
                .zip(&streams)
                .map(|(t, stream)| match plain {
                    true => Encoded::F32(&x[t.offset..t.offset + t.len]),
                    false => Encoded::Stream(stream),
                })
                .collect();
            update::write(&meta, layout, &tensors).unwrap().into()
        })
        .collect()
}

/// Digest of the model that one round over these updates makes.
async fn digest(bodies: &[Bytes], threads: usize, durable: bool) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path());
    settings.model.model = "mlp".into();
    settings.model.model_dim = MODEL_DIM;
    settings.round.min_clients = bodies.len();
    settings.limits.decode_threads = threads;
    settings.store.durable = durable;
    let f = Fixture::start(settings).await;
    let part = bodies.len().div_ceil(SENDERS);
    let senders: Vec<_> = bodies
        .chunks(part)
        .map(|part| {
            let (client, url, part) = (f.client.clone(), format!("{}/update", f.url), part.to_vec());
            tokio::spawn(async move {
                let mut closed = 0;
                for body in part {
                    let request = client.post(&url).header("content-type", "application/octet-stream");
                    let answer = request.body(body).send().await.unwrap();
                    assert_eq!(answer.status(), 200);
                    let ack: UpdateAck = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
                    closed += u32::from(ack.aggregated);
                }
                closed
            })
        })
        .collect();
    let mut closed = 0;
    for sender in senders {
        closed += sender.await.unwrap();
    }
    assert_eq!(closed, 1, "one update closes the round");
    let digest = Sha256::digest(f.master.global());
    f.master.shutdown().await.unwrap();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_order_and_any_number_of_threads_give_one_model() {
    let mut bodies = bodies(&layout());
    let mut digests = BTreeSet::new();
    for order in 0..ORDERS {
        Random(order + 1).shuffle(&mut bodies);
        for threads in [1, 2] {
            // The journal takes part in the first and the last order; it costs an fsync per group.
            let durable = order == 0 || order == ORDERS - 1;
            digests.insert(digest(&bodies, threads, durable).await);
        }
    }
    println!("{UPDATES} updates, {ORDERS} orders, 1 and 2 threads: {digests:?}");
    assert_eq!(digests.len(), 1, "{digests:?}");
    // The digest says something: one update less makes another model.
    bodies.pop();
    assert!(!digests.contains(&digest(&bodies, 2, false).await));
}
