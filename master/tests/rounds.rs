//! Rounds in time over HTTP: the pause between them, and what is measured of them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Fixture, body, config};
use fl_master::Config;
use fl_protocol::{StatusBody, TaskAction, TaskBody};

async fn fixture_with(change: impl FnOnce(&mut Config)) -> (Fixture, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.round.min_clients = 1;
    change(&mut config);
    (Fixture::start(config).await, dir)
}

#[tokio::test]
async fn nobody_is_asked_to_train_during_the_pause_and_updates_are_taken_all_the_same() {
    let (f, _dir) = fixture_with(|c| c.round.pause_s = 3600.0).await;
    assert_eq!(f.json::<TaskBody>("/task?worker_id=w0").await.action, TaskAction::Train, "the first round");
    assert!(f.accepted(body(0, 0)).await.aggregated);
    let task: TaskBody = f.json("/task?worker_id=w0").await;
    assert_eq!((task.action, task.round), (TaskAction::Wait, 1));
    assert!(f.accepted(body(0, 1)).await.aggregated);
    assert_eq!(f.json::<StatusBody>("/status").await.global_round, 2);
    f.master.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_end_of_the_pause_is_told_to_everyone_who_waits() {
    let (f, _dir) = fixture_with(|c| c.round.pause_s = 0.2).await;
    for round in 0..3 {
        assert!(f.accepted(body(0, round)).await.aggregated);
        let tasks = ["a", "b", "c"].map(|worker| format!("/task?worker_id={worker}&wait=60"));
        let [a, b, c] = tasks.each_ref().map(|path| f.json::<TaskBody>(path));
        let (a, b, c) = tokio::join!(a, b, c);
        for task in [a, b, c] {
            assert_eq!((task.action, task.round), (TaskAction::Train, round + 1));
        }
    }
    f.master.shutdown().await.unwrap();
}

#[tokio::test]
async fn every_evaluation_is_counted_with_its_time() {
    let (f, _dir) = fixture_with(|c| (c.model.eval_every, c.round.rounds) = (1, 3)).await;
    let finished = f.master.finished();
    for round in 0..3 {
        f.accepted(body(0, round)).await;
    }
    finished.await;
    let metrics = f.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("fl_evaluate_seconds_count 3"), "{metrics}");
    let sum = metrics.lines().find_map(|line| line.strip_prefix("fl_evaluate_seconds_sum ")).unwrap();
    assert!(sum.parse::<f64>().unwrap() > 0.0, "{sum}");
    f.master.shutdown().await.unwrap();
}
