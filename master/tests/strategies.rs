//! Every strategy over real HTTP: the optimiser's state survives SIGKILL, and neither that nor the order of
//! arrival changes a byte of the model.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Fixture, client, config, delta, layout, refused};
use fl_master::settings::NormAction;
use fl_model::GlobalModel;
use fl_protocol::{UpdateAck, UpdateMeta, update, update::Encoded};
use std::{
    io::BufRead,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

const WORKERS: usize = 5;
const ROUNDS: u64 = 4;

/// A container with uneven steps, and with control variates if they are asked for.
fn body(worker: usize, round: u64, control: bool) -> Vec<u8> {
    let meta = UpdateMeta {
        worker_id: format!("w{worker}").parse().unwrap(),
        round,
        num_samples: 10 + worker as u64,
        loss: None,
        accuracy: None,
        compute_factor: None,
        local_steps: Some(1 + worker as u32),
        local_norm: None,
        reuse: None,
        metrics: Default::default(),
    };
    let layout = layout();
    let mut vectors = vec![delta(worker, round)];
    if control {
        vectors.push(delta(worker + 100, round));
    }
    let tensors: Vec<_> = vectors
        .iter()
        .flat_map(|vector| layout.tensors().iter().map(|t| Encoded::F32(&vector[t.offset..t.offset + t.len])))
        .collect();
    update::write(&meta, &layout, &tensors).unwrap()
}

/// Who hands in an update of which round in each round; with fedbuff some are late.
fn schedule(strategy: &str) -> Vec<Vec<(usize, u64)>> {
    (0..ROUNDS)
        .map(|round| match strategy.starts_with("fedbuff") {
            true => vec![(0, round), (1, round), (2 + round as usize % 3, round.saturating_sub(2))],
            false => (0..WORKERS).map(|worker| (worker, round)).collect(),
        })
        .collect()
}

fn per_round(strategy: &str) -> usize {
    if strategy.starts_with("fedbuff") { 3 } else { WORKERS }
}

struct Process {
    child: Child,
    url: String,
}

impl Process {
    /// Starts the binary on a port of its own and waits for the log line that names it.
    fn start(state: &Path, strategy: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_fl-master"))
            .env_clear()
            .env("BIND", "127.0.0.1:0")
            .env("STATE_DIR", state)
            .env("MODEL", "softmax")
            .env("AGG_MIN_CLIENTS", per_round(strategy).to_string())
            .env("STRATEGY", strategy)
            .env("EVAL_EVERY", "0")
            .env("LOG_FORMAT", "json")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (sender, receiver) = std::sync::mpsc::channel();
        for stream in [Box::new(out) as Box<dyn std::io::Read + Send>, Box::new(err)] {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in std::io::BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        let address = loop {
            let line = receiver.recv_timeout(Duration::from_secs(60)).expect("the master names its address");
            if let Some(at) = line.find("127.0.0.1:") {
                let address: String =
                    line[at..].chars().take_while(|c| c.is_ascii_digit() || ".:".contains(*c)).collect();
                break address;
            }
        };
        Self { child, url: format!("http://{address}") }
    }

    async fn post(&self, body: Vec<u8>) -> UpdateAck {
        let request = client().post(format!("{}/update", self.url));
        let response =
            request.header("content-type", "application/octet-stream").body(body).send().await.unwrap();
        let (status, bytes) = (response.status(), response.bytes().await.unwrap());
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&bytes));
        serde_json::from_slice(&bytes).unwrap()
    }

    async fn get(&self, path: &str) -> bytes::Bytes {
        let response = client().get(format!("{}{path}", self.url)).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.bytes().await.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kills the master after all but one update of every round, and in between rounds.
async fn interrupted(strategy: &str) -> (bytes::Bytes, Option<bytes::Bytes>) {
    let control = strategy.starts_with("scaffold");
    let dir = tempfile::tempdir().unwrap();
    let mut process = Process::start(dir.path(), strategy);
    for updates in schedule(strategy) {
        let (&last, others) = updates.split_last().unwrap();
        for &(worker, base) in others {
            assert!(!process.post(body(worker, base, control)).await.duplicate);
        }
        drop(process);
        process = Process::start(dir.path(), strategy);
        let (worker, base) = others[0];
        assert!(
            process.post(body(worker, base, control)).await.duplicate,
            "{strategy}: it was accepted before"
        );
        let (worker, base) = last;
        assert!(process.post(body(worker, base, control)).await.aggregated);
        drop(process);
        process = Process::start(dir.path(), strategy);
        assert!(process.post(body(worker, base, control)).await.duplicate, "{strategy}: it closed the round");
    }
    let control = if control { Some(process.get("/control").await) } else { None };
    (process.get("/global").await, control)
}

/// The same updates without a crash, in the opposite order.
async fn quiet(strategy: &str) -> (bytes::Bytes, Option<bytes::Bytes>) {
    let control = strategy.starts_with("scaffold");
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path());
    settings.aggregation.strategy = strategy.parse().unwrap();
    settings.aggregation.server.lr = settings.aggregation.strategy.default_server_lr();
    settings.round.min_clients = per_round(strategy);
    settings.store.durable = false;
    let f = Fixture::start(settings).await;
    for updates in schedule(strategy) {
        for &(worker, base) in updates.iter().rev() {
            f.accepted(body(worker, base, control)).await;
        }
    }
    let file = if control { Some(f.get("/control").await.bytes().await.unwrap()) } else { None };
    (f.master.global(), file)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_kills_nor_the_order_of_arrival_change_the_model() {
    let mut models = Vec::new();
    for strategy in [
        "fedavg",
        "fedavgm",
        "fedyogi",
        "fedadam",
        "fednova",
        "scaffold:9",
        "fedbuff:3",
        "median",
        "multikrum:1:2",
    ] {
        let (model, control) = interrupted(strategy).await;
        assert!((model.clone(), control) == quiet(strategy).await, "{strategy}: the models differ");
        assert!(!models.contains(&model), "{strategy} is like another one");
        models.push(model);
    }
}

#[tokio::test]
async fn what_a_strategy_cannot_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let with = |strategy: &str| {
        let mut settings = config(dir.path());
        settings.aggregation.strategy = strategy.parse().unwrap();
        settings.store.durable = false;
        settings
    };
    let nova = Fixture::start(with("fednova")).await;
    refused(nova.post(common::body(0, 0)).await, 400, "malformed").await;
    refused(nova.get("/control").await, 404, "not_found").await;
    nova.accepted(body(0, 0, false)).await;
    let scaffold = Fixture::start(with("scaffold:2")).await;
    refused(scaffold.post(body(0, 0, false)).await, 422, "wrong_tensors").await;
    scaffold.accepted(body(0, 0, true)).await;
    let plain = Fixture::start(with("fedavg")).await;
    refused(plain.post(body(0, 0, true)).await, 422, "wrong_tensors").await;
    let mut late = with("fedbuff:2");
    late.aggregation.max_staleness = 1;
    let f = Fixture::start(late).await;
    for round in 0..2 {
        f.accepted(body(0, round, false)).await;
        f.accepted(body(1, round, false)).await;
    }
    refused(f.post(body(2, 0, false)).await, 409, "stale_round").await;
    f.accepted(body(2, 1, false)).await;
    let mut large = with("median");
    large.aggregation.max_buffer_mb = 1;
    large.round.min_clients = 500;
    let error = fl_master::Master::start(large, None).await.unwrap_err().to_string();
    assert!(error.contains("MAX_BUFFER_MB"), "{error}");
}

/// A container of one value in every place.
fn claim(worker: usize, num_samples: u64, local_steps: u32, value: f32, control: Option<f32>) -> Vec<u8> {
    let meta = UpdateMeta {
        num_samples,
        local_steps: Some(local_steps),
        ..update::peek_meta(&body(worker, 0, false)).unwrap()
    };
    let layout = layout();
    let vectors: Vec<_> =
        std::iter::once(value).chain(control).map(|value| vec![value; layout.parameters()]).collect();
    let tensors: Vec<_> = vectors
        .iter()
        .flat_map(|vector| layout.tensors().iter().map(|t| Encoded::F32(&vector[t.offset..t.offset + t.len])))
        .collect();
    update::write(&meta, &layout, &tensors).unwrap()
}

/// The value in every place that has this norm.
fn of_norm(norm: f64) -> f32 {
    (norm / (layout().parameters() as f64).sqrt()) as f32
}

fn distance(before: &[u8], after: &[u8]) -> f64 {
    let [before, after] = [before, after].map(|file| GlobalModel::from_safetensors(file).unwrap().parameters);
    before.iter().zip(&after).map(|(b, a)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
}

/// How far one round of these updates moves the model under `MAX_UPDATE_NORM=10`.
async fn moved(strategy: &str, bodies: &[Vec<u8>]) -> f64 {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path());
    settings.aggregation.strategy = strategy.parse().unwrap();
    settings.aggregation.max_update_norm = Some(10.0);
    settings.round.min_clients = bodies.len();
    settings.store.durable = false;
    let f = Fixture::start(settings).await;
    let before = f.master.global();
    for body in bodies {
        f.accepted(body.clone()).await;
    }
    distance(&before, &f.master.global())
}

#[tokio::test]
async fn fednova_a_claim_of_local_steps_does_not_scale_the_others() {
    let honest = claim(0, 10, 10, of_norm(0.01), None);
    let alone = moved("fednova", std::slice::from_ref(&honest)).await;
    assert!((alone - 0.01).abs() < 1e-6, "{alone}");
    for num_samples in [1, 10, 100_000_000] {
        let hostile = claim(1, num_samples, 10_000_000, 0.0, None);
        let both = moved("fednova", &[honest.clone(), hostile]).await;
        assert!(both <= alone, "{num_samples} samples: {both} instead of {alone}");
    }
}

#[tokio::test]
async fn fednova_few_local_steps_do_not_scale_an_update_beyond_the_limit() {
    let mut bodies: Vec<_> = (0..3).map(|k| claim(k, 10, 1000, of_norm(0.01), None)).collect();
    bodies.push(claim(3, 10, 1, of_norm(9.99), None));
    let moved = moved("fednova", &bodies).await;
    assert!(moved <= 10.0 / 4.0 + 0.01, "a quarter of the limit and the honest ones: {moved}");
}

#[tokio::test]
async fn scaffold_control_variates_have_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path());
    settings.aggregation.strategy = "scaffold:4".parse().unwrap();
    settings.aggregation.max_update_norm = Some(10.0);
    settings.round.min_clients = 1;
    settings.store.durable = false;
    let hostile = claim(0, 10, 10, of_norm(0.01), Some(of_norm(1e4)));
    let f = Fixture::start(settings.clone()).await;
    let error = refused(f.post(hostile.clone()).await, 422, "norm_too_large").await;
    assert!(error.msg.contains("control variate"), "{error:?}");
    f.accepted(claim(0, 10, 10, of_norm(0.01), Some(of_norm(9.99)))).await;
    settings.aggregation.norm_action = NormAction::Clip;
    let f = Fixture::start(settings).await;
    let before = f.get("/control").await.bytes().await.unwrap();
    f.accepted(hostile).await;
    let moved = distance(&before, &f.get("/control").await.bytes().await.unwrap());
    assert!((moved - 10.0 / 4.0).abs() < 1e-3, "the limit over four workers: {moved}");
}

#[tokio::test]
async fn no_update_counts_for_more_samples_than_max_weight() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path());
    settings.aggregation.max_weight = Some(30);
    settings.store.durable = false;
    let f = Fixture::start(settings).await;
    let before = f.master.global();
    f.accepted(claim(0, 10, 1, of_norm(0.0), None)).await;
    f.accepted(claim(1, 100_000_000, 1, of_norm(1.0), None)).await;
    let moved = distance(&before, &f.master.global());
    assert!((moved - 0.75).abs() < 1e-5, "30 of 40 samples: {moved}");
}

/// With so many clients and samples the sum had room for 0.36 in every place.
#[tokio::test]
async fn many_clients_with_many_samples_have_room_in_the_sum() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path());
    settings.round.min_clients = 100_000;
    settings.store.durable = false;
    let f = Fixture::start(settings).await;
    f.accepted(claim(0, 60_000, 1, 0.75, None)).await;
    f.accepted(claim(1, 100_000_000, 1, 65_536.0, None)).await;
}
