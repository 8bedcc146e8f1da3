//! `LOCAL_LAYERS`: personal tensors are trained, never travel, and survive a restart of their worker.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use clap::Parser;
use fl_datasets::{Dataset, DatasetSpec, Part};
use fl_master::Master;
use fl_model::{GlobalModel, ModelSpec, TensorPattern, init_parameters};
use fl_protocol::{TaskBody, Update};
use fl_worker::{Args, LocalClient, Plan, RoundReport, Sent, StartingPoint, WorkerError};
use std::{
    future::pending,
    ops::{ControlFlow, Range},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::mpsc, time::timeout};

const PATIENCE: Duration = Duration::from_secs(60);
const LAST: &str = r"^3\.";
const FIRST: &str = r"^1\.";

fn digits() -> Arc<Dataset> {
    Arc::new(fl_datasets::load(&DatasetSpec::Digits, None, Part::Train).unwrap())
}

/// Where the tensors of `pattern` lie.
fn places(pattern: &str, model: &GlobalModel) -> Vec<Range<usize>> {
    pattern.parse::<TensorPattern>().unwrap().ranges(&model.network.layout()).unwrap()
}

fn values<'a>(model: &'a GlobalModel, pattern: &str) -> Vec<&'a f32> {
    places(pattern, model).into_iter().flat_map(|range| &model.parameters[range]).collect()
}

/// A master up to round `rounds` and two workers of it, which keep their state in `dir`. Returns the global model and
/// the bytes of each update.
async fn federation(
    dir: &Path,
    rounds: u64,
    master: &[&str],
    worker: &[&str],
) -> Result<(GlobalModel, Vec<u64>), WorkerError> {
    let state = format!("--state-dir={}", dir.join("master").display());
    let rounds = format!("--rounds={rounds}");
    let common = ["fl-master", "--bind=127.0.0.1:0", "--model-dim=20000", &rounds, &state];
    let config = fl_master::Args::parse_from(common.iter().chain(master)).check().unwrap();
    let master = Master::start(config, None).await.unwrap();
    let (sender, mut reports) = mpsc::unbounded_channel::<RoundReport>();
    let workers = ["0", "1"].map(|id| {
        let args = [
            format!("--master-addr=http://{}", master.local_addr()),
            format!("--worker-id=w{id}"),
            format!("--partition-id={id}"),
            format!("--worker-state-dir={}", dir.join("workers").display()),
        ];
        let fixed = ["fl-worker", "--num-partitions=2", "--mem-mb=0"];
        let all = fixed.into_iter().chain(args.iter().map(String::as_str)).chain(worker.iter().copied());
        let config = Args::parse_from(all).check().unwrap();
        tokio::spawn(fl_worker::run(config, Some(digits()), pending(), Some(sender.clone())))
    });
    drop(sender);
    for worker in workers {
        timeout(PATIENCE, worker).await.unwrap().unwrap()?;
    }
    let model = GlobalModel::from_safetensors(&master.global()).unwrap();
    master.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    while let Some(report) = reports.recv().await {
        bytes.push(report.bytes);
    }
    Ok((model, bytes))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn personal_tensors_do_not_travel_and_survive_a_restart() {
    let dirs: [_; 4] = std::array::from_fn(|_| tempfile::tempdir().unwrap());
    let [shared, whole, halves, forgetful] = dirs.each_ref().map(|dir| dir.path());
    let local = ["--local-layers", FIRST];
    let (all, bytes_of_all) = federation(shared, 6, &[], &[]).await.unwrap();
    let (model, bytes) = federation(whole, 6, &local, &[]).await.unwrap();
    let data = digits();
    let spec = ModelSpec::classifier("mlp", data.input_shape(), data.num_classes(), 20_000).unwrap();
    let start = GlobalModel { parameters: init_parameters(&spec, 42), ..model.clone() };
    assert_eq!(values(&model, FIRST), values(&start, FIRST), "the global model's own stay those of round 0");
    assert_ne!(values(&all, FIRST), values(&start, FIRST));
    assert_ne!(values(&model, LAST), values(&start, LAST));
    let mean = |bytes: &[u64]| bytes.iter().sum::<u64>() as f64 / bytes.len() as f64;
    println!(
        "bytes of an update: {} with everything, {} without the first layer",
        mean(&bytes_of_all),
        mean(&bytes)
    );
    assert_eq!((bytes.len(), bytes_of_all.len()), (12, 12));
    // The first layer has 87 % of the parameters.
    assert!(mean(&bytes) < 0.5 * mean(&bytes_of_all));
    // Both workers end after round 3 and begin again.
    federation(halves, 3, &local, &[]).await.unwrap();
    let (again, _) = federation(halves, 6, &local, &[]).await.unwrap();
    assert_eq!(again, model);
    federation(forgetful, 3, &local, &[]).await.unwrap();
    std::fs::remove_dir_all(forgetful.join("workers")).unwrap();
    assert_ne!(federation(forgetful, 6, &local, &[]).await.unwrap().0, model, "the premise");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_may_choose_its_own_personal_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let (model, _) =
        federation(&dir.path().join("a"), 3, &["--local-layers=bias"], &["--local-layers", LAST])
            .await
            .unwrap();
    let data = digits();
    let spec = ModelSpec::classifier("mlp", data.input_shape(), data.num_classes(), 20_000).unwrap();
    let start = GlobalModel { parameters: init_parameters(&spec, 42), ..model.clone() };
    assert_eq!(values(&model, LAST), values(&start, LAST));
    assert_ne!(values(&model, r"^1\.bias"), values(&start, r"^1\.bias"), "the worker's setting wins");
    for (pattern, text) in [("head", "1.weight, 1.bias"), (".", "nothing would travel")] {
        let flag = format!("--local-layers={pattern}");
        let error = federation(&dir.path().join(text), 3, &[], &[&flag]).await.unwrap_err();
        assert_eq!(error.exit() as u8, 64);
        assert!(error.to_string().contains("LOCAL_LAYERS=") && error.to_string().contains(text), "{error}");
    }
}

/// Rounds of one client from the same global model, whose last layer is its own from round 1 on. Returns what the
/// last update decodes to, and the change of its control variate.
fn client(
    flags: &[&str],
    rounds: u64,
    with_control: bool,
    lazy: bool,
) -> (LocalClient, Vec<f32>, Vec<f32>, usize) {
    let data = digits();
    let spec = ModelSpec::classifier("mlp", data.input_shape(), data.num_classes(), 20_000).unwrap();
    let parameters = init_parameters(&spec, 1);
    let (normalization, names) = (data.normalization.clone(), data.names.clone());
    let global = GlobalModel {
        round: 0,
        network: spec.into(),
        normalization,
        names,
        parameters,
        buffers: fl_model::Buffers::default(),
    };
    let layout = global.network.layout().into_owned();
    let common = ["fl-worker", "--worker-id=w", "--local-steps=3", "--mem-mb=0"];
    let config = Args::parse_from(common.iter().chain(flags)).check().unwrap();
    let mut client = LocalClient::new(&config, data, &global).unwrap();
    let control = vec![0.01; layout.parameters()];
    let (mut sent, mut change, mut notices) = (Vec::new(), Vec::new(), 0);
    for round in 0..rounds {
        client.set_parts(None, (round > 0).then_some(LAST)).unwrap();
        let task = TaskBody { lazy_below: lazy.then_some(1e9), ..TaskBody::train(round) };
        let plan = Plan::new(&config, &task).unwrap();
        let control = with_control.then_some(control.as_slice());
        let from = StartingPoint { round, parameters: &global.parameters, control };
        let update = client.train(&from, &plan, || ControlFlow::Continue(())).unwrap().unwrap();
        let sent_as = if update.notice.is_some() { Sent::Notice } else { Sent::Update };
        notices += usize::from(update.notice.is_some());
        client.settle(sent_as);
        let parsed = Update::parse(&update.body, &layout).unwrap();
        sent = vec![0.0; layout.parameters()];
        parsed.for_each_chunk(|at, chunk| sent[at..at + chunk.len()].copy_from_slice(chunk));
        change = vec![0.0; if with_control { layout.parameters() } else { 0 }];
        parsed.for_each_control_chunk(|at, chunk| change[at..at + chunk.len()].copy_from_slice(chunk));
    }
    (client, sent, change, notices)
}

#[test]
fn residual_control_variate_and_lazy_upload_leave_personal_tensors_out() {
    let data = digits();
    let spec = ModelSpec::classifier("mlp", data.input_shape(), data.num_classes(), 20_000).unwrap();
    let last = LAST.parse::<TensorPattern>().unwrap().ranges(&spec.layout()).unwrap();
    let zero = |values: &[f32]| last.iter().all(|range| values[range.clone()].iter().all(|v| *v == 0.0));
    // A large residual of the round in which the last layer travelled.
    let (one, sent, ..) = client(&["--bits=1", "--error-feedback=true"], 3, false, false);
    assert!(zero(&sent) && zero(one.memory().feedback.residual()));
    assert!(one.memory().feedback.residual().iter().any(|value| *value != 0.0));
    let (_, sent, change, _) = client(&["--quantizer=none"], 3, true, false);
    assert!(zero(&sent) && zero(&change));
    assert!(change.iter().any(|value| *value != 0.0));
    let (one, _, _, notices) = client(&["--quantizer=none"], 4, false, true);
    assert_eq!(notices, 3, "the premise: updates are left out");
    let personal = one.memory().personal.as_ref().unwrap();
    assert_eq!(personal.values.len(), last.iter().map(Range::len).sum::<usize>());
    let (shorter, ..) = client(&["--quantizer=none"], 3, false, true);
    assert_ne!(shorter.memory().personal.as_ref(), Some(personal), "a notice counts as a training too");
}
