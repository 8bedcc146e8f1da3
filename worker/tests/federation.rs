//! Workers against a real master over real HTTP.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use clap::Parser;
use fl_datasets::{Dataset, DatasetSpec, Part};
use fl_master::Master;
use fl_worker::{Args, Config, Summary};
use std::{future::pending, sync::Arc, time::Duration};
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};

const PATIENCE: Duration = Duration::from_secs(60);

fn master_config(state: &std::path::Path, rounds: u64) -> fl_master::Config {
    let args = [
        "fl-master".to_owned(),
        "--bind=127.0.0.1:0".to_owned(),
        format!("--rounds={rounds}"),
        "--model-dim=5000".to_owned(),
        format!("--state-dir={}", state.display()),
        "--fl-token=secret".to_owned(),
    ];
    fl_master::Args::parse_from(args).check().unwrap()
}

fn worker_config(id: usize, port: u16, extra: &[&str]) -> Config {
    let args = [
        "fl-worker".to_owned(),
        format!("--master-addr=http://127.0.0.1:{port}"),
        format!("--worker-id=w{id}"),
        format!("--partition-id={id}"),
        "--num-partitions=2".to_owned(),
        "--mem-mb=0".to_owned(),
    ];
    let token =
        if extra.iter().any(|arg| arg.starts_with("--fl-token")) { None } else { Some("--fl-token=secret") };
    Args::parse_from(args.iter().map(String::as_str).chain(token).chain(extra.iter().copied()))
        .check()
        .unwrap()
}

fn digits() -> Arc<Dataset> {
    Arc::new(fl_datasets::load(&DatasetSpec::Digits, None, Part::Train).unwrap())
}

fn spawn(config: Config, data: &Arc<Dataset>) -> JoinHandle<Result<Summary, fl_worker::WorkerError>> {
    tokio::spawn(fl_worker::run(config, Some(data.clone()), pending(), None))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workers_train_until_the_master_says_stop() {
    let dir = tempfile::tempdir().unwrap();
    let master = Master::start(master_config(dir.path(), 5), None).await.unwrap();
    let mut rounds = master.rounds();
    let data = digits();
    let port = master.local_addr().port();
    let workers = [0, 1].map(|id| spawn(worker_config(id, port, &[]), &data));
    let mut losses = Vec::new();
    for expected in 1..=5 {
        let record = timeout(PATIENCE, rounds.recv()).await.unwrap().unwrap();
        assert_eq!((record.round, record.participants), (expected, 2));
        losses.push(record.test_loss.unwrap());
    }
    assert!(losses[4] < losses[0]);
    for worker in workers {
        let summary = timeout(PATIENCE, worker).await.unwrap().unwrap().unwrap();
        assert_eq!((summary.rounds, summary.refused), (5, 0));
    }
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_restarts_goes_on_with_the_same_workers() {
    let dir = tempfile::tempdir().unwrap();
    let data = digits();
    let master = Master::start(master_config(dir.path(), 8), None).await.unwrap();
    let address = master.local_addr();
    let mut rounds = master.rounds();
    let workers = [0, 1].map(|id| spawn(worker_config(id, address.port(), &[]), &data));
    while timeout(PATIENCE, rounds.recv()).await.unwrap().unwrap().round < 3 {}
    master.shutdown().await.unwrap();
    let listener = TcpListener::bind(address).await.unwrap();
    let master = Master::start(master_config(dir.path(), 8), Some(listener)).await.unwrap();
    for worker in workers {
        let summary = timeout(PATIENCE, worker).await.unwrap().unwrap().unwrap();
        assert_eq!(summary.rounds, 8);
    }
    assert!(master.is_finished());
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_does_not_fit_ends_with_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let data = digits();
    let master = Master::start(master_config(dir.path(), 5), None).await.unwrap();
    let port = master.local_addr().port();
    let too_large = spawn(worker_config(0, port, &["--model-dim=100"]), &data);
    let error = timeout(PATIENCE, too_large).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.exit() as u8, 66);
    assert!(error.to_string().contains("MODEL_DIM"), "{error}");
    let no_token = spawn(worker_config(0, port, &["--fl-token=wrong"]), &data);
    let error = timeout(PATIENCE, no_token).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.exit() as u8, 69);
    assert!(error.to_string().contains("FL_TOKEN"), "{error}");
    master.shutdown().await.unwrap();
}

/// A table of two columns and their sum.
fn sums(dir: &std::path::Path) -> String {
    let mut rows = String::from("a,b,sum\n");
    for i in 0..100 {
        let (a, b) = (f64::from(i % 10) / 10.0, f64::from(i / 10) / 10.0);
        rows += &format!("{a},{b},{}\n", a + b);
    }
    let path = dir.join("sums.csv");
    std::fs::write(&path, rows).unwrap();
    format!("csv:{}", path.display())
}

async fn page(master: &Master, path: &str) -> String {
    reqwest::get(format!("http://{}{path}", master.local_addr())).await.unwrap().text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_regression_has_an_absolute_error_and_no_accuracy() {
    let dir = tempfile::tempdir().unwrap();
    let dataset = sums(dir.path());
    let config = || {
        let args = [
            "fl-master".to_owned(),
            "--bind=127.0.0.1:0".to_owned(),
            "--rounds=3".to_owned(),
            "--agg-min-clients=1".to_owned(),
            "--model=linear_regression".to_owned(),
            format!("--dataset={dataset}"),
            "--target=sum".to_owned(),
            format!("--state-dir={}", dir.path().join("state").display()),
        ];
        fl_master::Args::parse_from(args).check().unwrap()
    };
    let master = Master::start(config(), None).await.unwrap();
    let addr = format!("--master-addr=http://{}", master.local_addr());
    let data = format!("--dataset={dataset}");
    let args = ["fl-worker", "--worker-id=w", "--mem-mb=0", "--target=sum", &addr, &data];
    let worker = tokio::spawn(fl_worker::run(Args::parse_from(args).check().unwrap(), None, pending(), None));
    timeout(PATIENCE, worker).await.unwrap().unwrap().unwrap();
    timeout(PATIENCE, master.finished()).await.unwrap();
    let shows = |status: &str| {
        let status: serde_json::Value = serde_json::from_str(status).unwrap();
        let last = &status["last_evaluation"];
        assert!(last.get("accuracy").is_none(), "{last}");
        assert!(last["absolute_error"].as_f64().unwrap() > 0.0, "{last}");
    };
    shows(&page(&master, "/status").await);
    let metrics = page(&master, "/metrics").await;
    assert!(metrics.contains("\nfl_test_absolute_error ") && !metrics.contains("fl_test_accuracy_ratio"));
    let history = page(&master, "/history").await;
    let history: serde_json::Value = serde_json::from_str(&history).unwrap();
    assert!(history[2]["test_accuracy"].is_null() && history[2]["test_absolute_error"].is_f64(), "{history}");
    master.shutdown().await.unwrap();
    // The history on disk says the same after a restart.
    let master = Master::start(config(), None).await.unwrap();
    shows(&page(&master, "/status").await);
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_evaluate_on_what_they_hold_out_and_train_on_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = master_config(dir.path(), 3);
    config.token = None;
    config.evaluation.evaluate_every = 1;
    let master = Master::start(config, None).await.unwrap();
    let data = digits();
    let port = master.local_addr().port();
    // The second one takes no part in evaluations.
    let workers = [(0, "--lr=0.1"), (1, "--local-test=0")]
        .map(|(id, extra)| spawn(worker_config(id, port, &["--fl-token=", extra]), &data));
    for worker in workers {
        assert_eq!(timeout(PATIENCE, worker).await.unwrap().unwrap().unwrap().rounds, 3);
    }
    let history = master.history();
    for record in &history {
        let found = record.evaluation.as_ref().unwrap();
        assert_eq!((found.clients, found.metrics.len()), (1, 2), "{found:?}");
        let accuracy = &found.metrics["accuracy"];
        assert_eq!(accuracy.worst_client.as_str(), "w0");
        assert!((0.0..=1.0).contains(&accuracy.mean));
        // 1,437 samples for training in all, of which the first worker holds a tenth of its half out.
        let own = found.num_samples + record.num_samples;
        assert_eq!(own, data.train.len() as u64);
        assert!((71..=73).contains(&found.num_samples), "{}", found.num_samples);
    }
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_a_network_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let layout = fl_protocol::ModelLayout::new([("w".to_owned(), vec![4])]);
    let model = fl_model::GlobalModel::of_tensors(0, layout, vec![0.5; 4]);
    let path = dir.path().join("init.safetensors");
    std::fs::write(&path, model.to_safetensors().unwrap()).unwrap();
    for every in [0, 1] {
        let mut config = master_config(&dir.path().join(format!("state{every}")), 0);
        (config.token, config.model.model) = (None, format!("safetensors:{}", path.display()));
        config.evaluation.evaluate_every = every;
        let master = Master::start(config, None).await.unwrap();
        let port = master.local_addr().port();
        let worker = spawn(worker_config(0, port, &["--fl-token="]), &digits());
        let error = timeout(PATIENCE, worker).await.unwrap().unwrap().unwrap_err();
        assert_eq!(error.exit() as u8, 66);
        assert!(error.to_string().contains("tensors without a network"), "{error}");
        master.shutdown().await.unwrap();
    }
}
