//! The real binary: exit codes, a disk that is full, state that is damaged, settings that change.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Running, body, client, command, config, free_port, ready, refused};
use fl_protocol::{StatusBody, UpdateAck};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

async fn post(url: &str, body: Vec<u8>) -> reqwest::Response {
    let request = client().post(format!("{url}/update")).header("content-type", "application/octet-stream");
    request.body(body).send().await.unwrap()
}

async fn accepted(url: &str, body: Vec<u8>) -> UpdateAck {
    let response = post(url, body).await;
    let (status, bytes) = (response.status(), response.bytes().await.unwrap());
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&bytes));
    serde_json::from_slice(&bytes).unwrap()
}

async fn status(url: &str) -> StatusBody {
    let response = client().get(format!("{url}/status")).send().await.unwrap();
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

/// Runs it to its end.
fn ends(state: &Path, settings: &[(&str, &str)], args: &[&str]) -> Output {
    command(free_port(), state).envs(settings.iter().copied()).args(args).output().unwrap()
}

fn fails(output: &Output, code: i32, text: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(text), "{stderr}");
}

/// State with a finished round, an open one with one update, and the model.
async fn used(dir: &Path) -> bytes::Bytes {
    let master = common::Fixture::start(config(dir)).await;
    for (worker, round) in [(0, 0), (1, 0), (0, 1)] {
        master.accepted(body(worker, round)).await;
    }
    let model = master.master.global();
    master.master.shutdown().await.unwrap();
    model
}

#[test]
fn a_bad_setting_ends_with_64_before_anything_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fails(&ends(&state, &[("AGG_MIN_CLIENTS", "0")], &[]), 64, "AGG_MIN_CLIENTS");
    fails(&ends(&state, &[("STRATEGY", "best")], &[]), 64, "STRATEGY");
    fails(&ends(&state, &[("FL_TOKEN", "two words")], &[]), 64, "FL_TOKEN=(secret)");
    for args in [&[][..], &["--check"]] {
        fails(&ends(&state, &[("MODEL", "lstm")], args), 64, "softmax, mlp, cnn, mcmahan_cnn");
        fails(&ends(&state, &[("MODEL", "lstm.json")], args), 66, "lstm.json");
    }
    for backend in ["wgpu", "ndarray"] {
        let output = ends(&state, &[("BACKEND", backend)], &["--check"]);
        fails(&output, 64, &format!("--features {backend}"));
    }
    assert!(!state.exists());
}

#[tokio::test]
async fn a_check_reads_everything_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    used(dir.path()).await;
    let before = contents(dir.path());
    let output = ends(dir.path(), &[], &["--check"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(contents(dir.path()), before);
    fails(&ends(dir.path(), &[("MODEL", "mlp")], &["--check"]), 66, "another STATE_DIR");
}

fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn damaged_state_is_refused_by_name_and_never_half_loaded() {
    let dir = tempfile::tempdir().unwrap();
    used(dir.path()).await;
    for (path, whole) in contents(dir.path()) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name} is for its owner only");
        if !name.starts_with("checkpoint") {
            continue;
        }
        // A damaged newest checkpoint alone is made again from the one before and the journal: damage all.
        let mut bad = whole.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        fs::write(&path, &bad).unwrap();
    }
    for args in [&[][..], &["--check"]] {
        fails(&ends(dir.path(), &[], args), 66, "checkpoint-0000000001.fl is damaged");
    }
}

/// The real binary with a limit on the size of its files: beyond it a write fails as on a full disk.
fn spawn_limited(port: u16, state: &Path, blocks: u32) -> Running {
    let binary = command(port, state);
    let mut shell = Command::new("sh");
    // The signal that comes with the limit is ignored, so that the write itself fails.
    shell.args(["-c", "trap '' XFSZ; ulimit -S -f \"$1\"; exec \"$0\""]);
    shell.arg(binary.get_program()).arg(blocks.to_string()).env_clear();
    shell.envs(binary.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.env("AGG_MIN_CLIENTS", "12").env("PATH", "/usr/bin:/bin");
    // A log that is a large file already would be beyond the limit.
    shell.stdout(Stdio::null()).stderr(Stdio::null());
    Running(shell.spawn().unwrap())
}

#[tokio::test]
async fn a_full_disk_gives_503_and_reads_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    // 16 blocks of 512 or 1024 bytes, by the shell: room for the checkpoint of 3 kB and a few updates of 3 kB.
    let mut master = spawn_limited(port, dir.path(), 16);
    let url = url(port);
    ready(&url).await;
    let mut stored = 0;
    let full = loop {
        let response = post(&url, body(stored, 0)).await;
        if response.status() != 200 {
            break response;
        }
        stored += 1;
        assert!(stored < 12, "the limit does not hold");
    };
    assert!(stored > 0);
    let retry_after: u64 = full.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((3..=5).contains(&retry_after), "{retry_after}");
    refused(full, 503, "storage_unavailable").await;
    for path in ["/global", "/status", "/history", "/metrics", "/healthz", "/readyz"] {
        let response = client().get(format!("{url}{path}")).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
    }
    assert_eq!(status(&url).await.pending_updates, stored as u64);
    refused(post(&url, body(stored, 0)).await, 503, "storage_unavailable").await;
    assert!(accepted(&url, body(0, 0)).await.duplicate, "what was acknowledged is still known");

    // Space is freed: the same master goes on, and the refused updates left no trace in the sum.
    let pid = master.0.id().to_string();
    let lifted = Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited:unlimited"]).status();
    assert!(lifted.unwrap().success());
    for worker in stored..12 {
        accepted(&url, body(worker, 0)).await;
    }
    let model = client().get(format!("{url}/global")).send().await.unwrap().bytes().await.unwrap();
    assert!(master.terminate().success());
    let quiet = tempfile::tempdir().unwrap();
    let mut settings = config(quiet.path());
    settings.round.min_clients = 12;
    let f = common::Fixture::start(settings).await;
    for worker in 0..12 {
        f.accepted(body(worker, 0)).await;
    }
    assert_eq!(f.master.global(), model);
}

#[tokio::test]
async fn sigterm_drains_and_ends_with_0() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut master = Running::spawn(port, dir.path(), &[]);
    ready(&url(port)).await;
    accepted(&url(port), body(0, 0)).await;
    assert!(master.terminate().success());
    let mut master = Running::spawn(port, dir.path(), &[]);
    ready(&url(port)).await;
    assert_eq!(status(&url(port)).await.pending_updates, 1);
    master.kill();
}

/// An update is judged once: what was acknowledged counts as it was accepted, whatever limits a later
/// start has.
#[tokio::test]
async fn changed_limits_do_not_judge_accepted_updates_again() {
    let norm =
        |worker: usize| common::delta(worker, 0).iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let half = (norm(0) / 2.0).to_string();
    let clip = [("MAX_UPDATE_NORM", half.as_str()), ("NORM_ACTION", "clip")];
    let reject = [("MAX_UPDATE_NORM", "0.000001"), ("NORM_ACTION", "reject")];
    let mut models = Vec::new();
    // Clipped throughout; then clipped, and judged by other limits after a restart in the middle.
    for after in [&clip[..], &reject, &[]] {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let mut master = Running::spawn(port, dir.path(), &clip);
        ready(&url(port)).await;
        accepted(&url(port), body(0, 0)).await;
        master.kill();
        assert!(ends(dir.path(), after, &["--check"]).status.success());
        let mut master = Running::spawn(port, dir.path(), after);
        ready(&url(port)).await;
        assert!(accepted(&url(port), body(0, 0)).await.duplicate);
        if after == reject {
            refused(post(&url(port), body(1, 0)).await, 422, "norm_too_large").await;
            master.kill();
            master = Running::spawn(port, dir.path(), &clip);
            ready(&url(port)).await;
        }
        let ack = accepted(&url(port), body(1, 0)).await;
        assert!(ack.aggregated);
        models
            .push(client().get(format!("{}/global", url(port))).send().await.unwrap().bytes().await.unwrap());
        master.kill();
    }
    assert_eq!(models[0], models[1]);
    assert_ne!(models[0], models[2], "the second update was not clipped there");
}

#[tokio::test]
async fn another_strategy_in_an_open_round_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    used(dir.path()).await;
    assert!(ends(dir.path(), &[("STRATEGY", "scaffold:2")], &["--check"]).status.success());
}
