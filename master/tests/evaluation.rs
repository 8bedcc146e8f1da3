//! Evaluation by the workers, and the metrics of updates.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Fixture, body, config, delta, layout, refused};
use fl_master::Config;
use fl_protocol::{Metrics, TaskAction, TaskBody, update};
use reqwest::Response;
use serde_json::{Value, json};

fn evaluated(dir: &std::path::Path, every: u64, rounds: u64) -> Config {
    let mut config = config(dir);
    config.evaluation.evaluate_every = every;
    config.round.rounds = rounds;
    config
}

async fn post(f: &Fixture, body: impl Into<reqwest::Body>) -> Response {
    let request = f.client.post(format!("{}/evaluation", f.url)).header("content-type", "application/json");
    request.body(body).send().await.unwrap()
}

fn report(worker: &str, round: u64, num_samples: u64, metrics: Value) -> String {
    json!({"worker_id": worker, "round": round, "num_samples": num_samples, "metrics": metrics}).to_string()
}

async fn taken(f: &Fixture, body: String) -> Value {
    let response = post(f, body).await;
    let (status, text) = (response.status(), response.text().await.unwrap());
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

async fn close_round(f: &Fixture, round: u64) {
    for worker in 0..2 {
        f.accepted(body(worker, round)).await;
    }
}

async fn task(f: &Fixture, worker: &str) -> TaskBody {
    f.json(&format!("/task?worker_id={worker}")).await
}

#[tokio::test]
async fn a_worker_is_asked_once_and_its_result_is_in_history_status_and_metrics() {
    let dir = tempfile::tempdir().unwrap();
    let f = Fixture::start(evaluated(dir.path(), 1, 2)).await;
    let first = task(&f, "a").await;
    assert_eq!(
        (first.action, first.evaluate_every),
        (TaskAction::Train, Some(1)),
        "the initial model is not evaluated"
    );
    close_round(&f, 0).await;
    let asked = task(&f, "a").await;
    assert_eq!((asked.action, asked.round), (TaskAction::Evaluate, 1));
    let etag = f.get("/global").await.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(asked.etag, etag);
    assert_eq!(task(&f, "a").await.action, TaskAction::Train, "the evaluation holds nothing up");
    let ack = taken(&f, report("a", 1, 30, json!({"accuracy": 0.9, "loss": 0.3}))).await;
    assert_eq!(ack, json!({"status": "ok", "global_round": 1, "duplicate": false}));
    assert_eq!(taken(&f, report("a", 1, 1, json!({"accuracy": 0.1}))).await["duplicate"], true);
    taken(&f, report("b", 1, 10, json!({"accuracy": 0.5, "loss": 0.1}))).await;
    let history: Value = f.json("/history").await;
    let found = &history[0]["evaluation"];
    assert_eq!((&found["clients"], &found["num_samples"]), (&json!(2), &json!(40)));
    let accuracy = &found["metrics"]["accuracy"];
    assert!((accuracy["mean"].as_f64().unwrap() - 0.8).abs() < 1e-12, "{accuracy}");
    assert_eq!(
        (&accuracy["worst"], &accuracy["worst_client"], &accuracy["clients"]),
        (&json!(0.5), &json!("b"), &json!(2))
    );
    assert_eq!(found["metrics"]["loss"]["worst_client"], "a");
    let status: Value = f.json("/status").await;
    assert_eq!(status["client_evaluation"]["round"], 1);
    assert_eq!(status["client_evaluation"]["metrics"]["accuracy"], *accuracy);
    let metrics = f.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("fl_client_metric{metric=\"accuracy\",statistic=\"worst\"} 0.5"), "{metrics}");
    assert!(metrics.contains("fl_client_evaluations_total 2"));
    // The last model: evaluated before the worker is told to stop.
    close_round(&f, 1).await;
    let last = task(&f, "a").await;
    assert_eq!((last.action, last.round), (TaskAction::Evaluate, 2));
    assert_eq!(task(&f, "a").await.action, TaskAction::Stop);
    taken(&f, report("a", 2, 30, json!({"accuracy": 0.95}))).await;
    // A late one of the model before counts.
    taken(&f, report("c", 1, 10, json!({"accuracy": 0.7}))).await;
    f.master.shutdown().await.unwrap();
    let f = Fixture::start(evaluated(dir.path(), 1, 2)).await;
    let history: Value = f.json("/history").await;
    assert_eq!(history[0]["evaluation"]["clients"], 3);
    assert_eq!(history[1]["evaluation"]["metrics"]["accuracy"]["mean"], 0.95);
    // What fewer workers find after a restart does not replace it.
    taken(&f, report("z", 2, 30, json!({"accuracy": 0.1}))).await;
    let history: Value = f.json("/history").await;
    assert_eq!(history[1]["evaluation"]["metrics"]["accuracy"]["mean"], 0.1, "one replaces one");
    f.master.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_taken_is_refused_with_the_codes_of_updates() {
    let dir = tempfile::tempdir().unwrap();
    let f = Fixture::start(evaluated(dir.path(), 2, 0)).await;
    close_round(&f, 0).await;
    let good = json!({"accuracy": 0.9});
    refused(post(&f, report("a", 9, 1, good.clone())).await, 409, "future_round").await;
    refused(post(&f, report("a", 1, 1, good.clone())).await, 409, "stale_round").await;
    close_round(&f, 1).await;
    refused(post(&f, report("a", 2, 0, good.clone())).await, 422, "bad_num_samples").await;
    for bad in
        [json!({}), json!({"Accuracy": 1}), json!({"a": null}), json!({"a": "1"}), json!([1]), json!({"": 1})]
    {
        refused(post(&f, report("a", 2, 1, bad)).await, 400, "malformed").await;
    }
    let many: serde_json::Map<String, Value> = (0..33).map(|i| (format!("m{i}"), json!(1))).collect();
    refused(post(&f, report("a", 2, 1, many.into())).await, 400, "malformed").await;
    refused(post(&f, report("a b", 2, 1, good.clone())).await, 400, "malformed").await;
    refused(post(&f, "{\"worker_id\": \"a\", \"metrics\": {\"a\": 1e999}}").await, 400, "malformed").await;
    refused(post(&f, vec![b' '; 20_000]).await, 413, "too_large").await;
    let request = f.client.post(format!("{}/evaluation", f.url)).header("content-type", "text/plain");
    refused(
        request.body(report("a", 2, 1, good.clone())).send().await.unwrap(),
        415,
        "unsupported_media_type",
    )
    .await;
    taken(&f, report("a", 2, 1, good)).await;
    f.master.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_fraction_of_the_workers_is_asked_and_none_without_the_setting() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = evaluated(dir.path(), 1, 0);
    config.evaluation.evaluate_fraction = 0.5;
    let f = Fixture::start(config).await;
    close_round(&f, 0).await;
    let mut asked = 0;
    for i in 0..100 {
        asked += usize::from(task(&f, &format!("v{i}")).await.action == TaskAction::Evaluate);
    }
    assert!((30..70).contains(&asked), "{asked}");
    f.master.shutdown().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let f = Fixture::start(evaluated(dir.path(), 0, 0)).await;
    close_round(&f, 0).await;
    let task = task(&f, "a").await;
    assert_eq!((task.action, task.evaluate_every), (TaskAction::Train, None));
    refused(post(&f, report("a", 1, 1, json!({"a": 1}))).await, 409, "stale_round").await;
    f.master.shutdown().await.unwrap();
}

#[tokio::test]
async fn metrics_of_updates_are_in_the_rounds_history() {
    let dir = tempfile::tempdir().unwrap();
    let f = Fixture::start(config(dir.path())).await;
    let json = json!({
        "worker_id": "w0", "round": 0, "num_samples": 30, "delta": delta(0, 0), "metrics": {"accuracy": 0.9}
    });
    let response = f.post_as("application/json", json.to_string().into_bytes()).await;
    assert_eq!(response.status(), 200);
    let mut meta = update::peek_meta(&body(1, 0)).unwrap();
    (meta.num_samples, meta.metrics) = (10, Metrics::new([("accuracy", 0.5), ("grad.norm", 2.0)]).unwrap());
    let layout = layout();
    let delta = delta(1, 0);
    let tensors: Vec<_> =
        layout.tensors().iter().map(|t| update::Encoded::F32(&delta[t.offset..t.offset + t.len])).collect();
    f.accepted(update::write(&meta, &layout, &tensors).unwrap()).await;
    let check = |history: &Value| {
        let found = &history[0]["update_metrics"];
        assert!((found["accuracy"]["mean"].as_f64().unwrap() - 0.8).abs() < 1e-12, "{found}");
        assert_eq!(found["accuracy"]["worst_client"], "w1");
        assert_eq!(found["grad.norm"]["clients"], 1);
    };
    check(&f.json("/history").await);
    let bad =
        json!({"worker_id": "w0", "round": 1, "num_samples": 3, "delta": delta.clone(), "metrics": {"A": 1}});
    refused(f.post_as("application/json", bad.to_string().into_bytes()).await, 400, "malformed").await;
    f.master.shutdown().await.unwrap();
    let f = Fixture::start(config(dir.path())).await;
    check(&f.json("/history").await);
    f.master.shutdown().await.unwrap();
}
