//! `fl watch` and `fl export` against a master, as users call them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use clap::Parser;
use fl_worker::Args;
use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

const ROUNDS: u64 = 3;

fn fl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fl")).args(args).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A master that one worker has trained with to the end.
async fn trained(dir: &Path) -> fl_master::Master {
    let state = format!("--state-dir={}", dir.display());
    let master =
        ["fl-master", "--bind=127.0.0.1:0", "--model=softmax", "--agg-min-clients=1", "--rounds=3", &state];
    let master =
        fl_master::Master::start(fl_master::Args::parse_from(master).check().unwrap(), None).await.unwrap();
    let address = format!("--master-addr=http://{}", master.local_addr());
    let worker = ["fl-worker", &address, "--worker-id=edge1", "--mem-mb=0"];
    let worker = Args::parse_from(worker).check().unwrap();
    fl_worker::run(worker, None, std::future::pending(), None).await.unwrap();
    master
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_is_watched_and_exported() {
    let dir = tempfile::tempdir().unwrap();
    let master = trained(&dir.path().join("state")).await;
    let url = format!("http://{}", master.local_addr());
    tokio::task::spawn_blocking({
        let dir = dir.path().to_owned();
        move || {
            let picture = text(&fl(&["watch", &url, "--once"]));
            for part in ["round 3: finished", "fedavg digits softmax", "edge1"] {
                assert!(picture.contains(part), "{part} is missing in\n{picture}");
            }
            let lines: Vec<Value> = text(&fl(&["watch", &url, "--json"]))
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            let rounds: Vec<u64> = lines.iter().map(|line| line["round"].as_u64().unwrap()).collect();
            assert_eq!(rounds, (1..=ROUNDS).collect::<Vec<_>>());

            let events = dir.join("events");
            let exported =
                fl(&["export", &url, "--tensorboard", events.to_str().unwrap(), "--follow", "--json"]);
            let exported: Value = serde_json::from_str(&text(&exported)).unwrap();
            assert_eq!(exported["rounds"], ROUNDS);
            let file = fs::read(exported["tensorboard"].as_str().unwrap()).unwrap();
            for series in ["train_loss", "bytes_up"] {
                let found = file.windows(series.len()).filter(|window| *window == series.as_bytes()).count();
                assert_eq!(found as u64, ROUNDS, "{series}");
            }
        }
    })
    .await
    .unwrap();
    master.shutdown().await.unwrap();
}

#[test]
fn what_is_no_master_is_said_in_a_sentence() {
    let fails = |args: &[&str], code: i32, said: &str| {
        let output = fl(args);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(said), "{error}");
    };
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("nothing");
    fails(&["watch", "localhost:5000", "--once"], 64, "http://");
    fails(&["watch", "http://127.0.0.1:9", "--once"], 69, "does not answer");
    fails(
        &["export", "http://127.0.0.1:9", "--tensorboard", missing.to_str().unwrap()],
        69,
        "does not answer",
    );
    fails(
        &["export", missing.to_str().unwrap(), "--tensorboard", "x"],
        66,
        "give a folder that fl run wrote",
    );
    fails(&["export", "http://127.0.0.1:9", "--mlflow", "localhost"], 64, "tracking server");
    assert!(!missing.exists(), "nothing is written before the master has answered");
}
