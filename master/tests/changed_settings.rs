//! A restart under other aggregation settings: rounds that were closed are remade as they were closed, the open
//! round is finished as it was begun, and the new settings hold from the next round on.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Fixture, body, config};
use fl_master::Config;
use std::{fs, path::Path};

fn with(dir: &Path, strategy: &str, server_lr: f64) -> Config {
    let mut config = config(dir);
    config.aggregation.strategy = strategy.parse().unwrap();
    config.aggregation.server.lr = server_lr;
    config
}

async fn round(fixture: &Fixture, round: u64) {
    for worker in 0..2 {
        fixture.accepted(body(worker, round)).await;
    }
}

/// The newest checkpoint is gone: the start has to remake its round from the journal.
fn forget_newest_checkpoint(dir: &Path) {
    let mut checkpoints: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("checkpoint-"))
        .collect();
    checkpoints.sort();
    fs::remove_file(checkpoints.last().unwrap()).unwrap();
}

#[tokio::test]
async fn a_closed_round_is_remade_as_it_was_closed_whatever_the_settings_say_now() {
    for (strategy, server_lr) in [("fedavgm", 0.25), ("fedavg", 1.0), ("median", 1.0), ("fedadam", 0.01)] {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Fixture::start(with(dir.path(), "fedavgm", 1.0)).await;
        for r in 0..3 {
            round(&fixture, r).await;
        }
        let before = fixture.master.global();
        fixture.master.shutdown().await.unwrap();
        forget_newest_checkpoint(dir.path());
        let fixture = Fixture::start(with(dir.path(), strategy, server_lr)).await;
        assert_eq!(fixture.master.global(), before, "{strategy} {server_lr}");
        // It goes on.
        round(&fixture, 3).await;
        fixture.master.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn the_open_round_is_finished_as_it_was_begun_and_the_next_one_is_not() {
    // One after the other under settings that never change, as the reference of each round.
    let reference = |strategies: [(&'static str, f64); 2]| async move {
        let dir = tempfile::tempdir().unwrap();
        let mut models = Vec::new();
        for (r, (strategy, server_lr)) in strategies.into_iter().enumerate() {
            let fixture = Fixture::start(with(dir.path(), strategy, server_lr)).await;
            round(&fixture, r as u64).await;
            models.push(fixture.master.global());
            fixture.master.shutdown().await.unwrap();
        }
        models
    };
    let (first, second) = (("fedavg", 0.5), ("trimmed_mean:1", 1.0));
    let mut expected = None;
    for change_at_update in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Fixture::start(with(dir.path(), first.0, first.1)).await;
        fixture.accepted(body(0, 0)).await;
        let mut changed = with(dir.path(), second.0, second.1);
        changed.round.min_clients = 3;
        let fixture = if change_at_update {
            fixture.master.shutdown().await.unwrap();
            Fixture::start(changed.clone()).await
        } else {
            fixture
        };
        fixture.accepted(body(1, 0)).await;
        if change_at_update {
            // Three updates close a round now.
            fixture.accepted(body(2, 0)).await;
        }
        let model = fixture.master.global();
        fixture.master.shutdown().await.unwrap();
        if change_at_update {
            // FedAvg of three with its own step size: what a master that never changed makes.
            let dir = tempfile::tempdir().unwrap();
            let mut unchanged = with(dir.path(), first.0, first.1);
            unchanged.round.min_clients = 3;
            let fixture = Fixture::start(unchanged).await;
            for worker in 0..3 {
                fixture.accepted(body(worker, 0)).await;
            }
            assert_eq!(fixture.master.global(), model);
        } else {
            expected = Some(model);
        }
    }
    let models = reference([first, ("fedavg", 1.0)]).await;
    assert_eq!(expected.as_ref(), Some(&models[0]));
    assert_ne!(models[0], models[1]);
}

#[tokio::test]
async fn an_open_round_that_cannot_be_finished_any_more_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut krum = with(dir.path(), "krum:1", 1.0);
    krum.round.min_clients = 5;
    let fixture = Fixture::start(krum).await;
    fixture.accepted(body(0, 0)).await;
    fixture.master.shutdown().await.unwrap();
    let error = fl_master::check(&with(dir.path(), "fedavg", 1.0)).unwrap_err().to_string();
    assert!(error.contains("krum:1") && error.contains("AGG_MIN_CLIENTS"), "{error}");
}
