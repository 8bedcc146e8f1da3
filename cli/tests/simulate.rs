//! `fl simulate` as users call it, against `fl run` over real HTTP.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn fl(args: &[&str], out: &Path) -> Output {
    let out = ["--json", "--out", out.to_str().unwrap()];
    Command::new(env!("CARGO_BIN_EXE_fl")).args(args).args(out).output().unwrap()
}

/// The lines of a run that succeeds, and its model.
fn run(args: &[&str], out: &Path) -> (Vec<Value>, Vec<u8>) {
    let output = fl(args, out);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (lines, fs::read(out.join("global.safetensors")).unwrap())
}

const SMALL: [&str; 6] = ["--rounds", "4", "--model-dim", "3000", "--local-steps", "3"];

#[test]
fn a_simulated_run_and_the_same_run_over_http_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for flags in [
        &["--quantizer", "StocQ", "--bits", "3"][..],
        &["--strategy", "fedadam", "--partition", "shards:2", "--lr-schedule", "exp:0.9"],
        &["--strategy", "scaffold", "--quantizer", "SDQ", "--bits", "8"],
        &["--strategy", "fednova", "--mu", "0.1", "--local-epochs", "1"],
        &["--strategy", "trimmed_mean:1", "--clip-norm", "1"],
    ] {
        // --local-epochs stands against --local-steps.
        let base = if flags.contains(&"--local-epochs") { &SMALL[..4] } else { &SMALL[..] };
        let (_, simulated) = run(
            &[&["simulate", "--clients", "5", "--per-round", "5"], base, flags].concat(),
            &dir.path().join("s"),
        );
        let (_, real) = run(&[&["run", "--workers", "5"], base, flags].concat(), &dir.path().join("h"));
        assert!(simulated == real, "{flags:?}: the models differ");
    }
}

#[test]
fn a_simulation_is_the_same_for_any_number_of_threads_and_samples_its_clients() {
    let dir = tempfile::tempdir().unwrap();
    let sampled = |threads: &str, extra: &[&str], name: &str| {
        let head = ["simulate", "--clients", "30", "--per-round", "4", "--threads", threads];
        run(&[&head[..], &SMALL, extra].concat(), &dir.path().join(name))
    };
    let (lines, one) = sampled("1", &[], "1");
    let (_, three) = sampled("3", &[], "3");
    assert!(one == three, "the number of threads changes the model");
    assert_eq!(lines.len(), 5);
    for round in &lines[..4] {
        assert_eq!((&round["event"], &round["participants"]), (&Value::from("round"), &Value::from(4)));
    }
    for key in [
        "accuracy",
        "loss",
        "rounds",
        "wall_s",
        "round_ms_median",
        "bytes_up_per_update",
        "bits_per_param",
        "params",
        "global",
        "peak_rss_mb",
        "virtual_s",
    ] {
        assert!(!lines[4][key].is_null(), "{key}");
    }
    let harsh = [
        "--dropout",
        "0.3",
        "--overselect",
        "1.5",
        "--deadline-s",
        "2",
        "--speed-spread",
        "1",
        "--uneven",
        "1:3",
    ];
    let (first, model) = sampled("2", &harsh, "a");
    let (second, again) = sampled("1", &harsh, "b");
    assert!(model == again && model != one, "drop-out, deadline and stragglers are drawn from the seed");
    assert_eq!(first[4]["virtual_s"], second[4]["virtual_s"]);
}

#[test]
fn a_slow_client_does_not_hold_up_fedbuff() {
    let dir = tempfile::tempdir().unwrap();
    let virtual_s = |strategy: &str, rounds: &str| {
        let args = [
            "simulate",
            "--clients",
            "10",
            "--per-round",
            "10",
            "--slow",
            "1:20",
            "--strategy",
            strategy,
            "--model-dim",
            "3000",
            "--rounds",
            rounds,
        ];
        let (lines, model) = run(&args, &dir.path().join("x"));
        (lines.last().unwrap()["virtual_s"].as_f64().unwrap(), model)
    };
    let (synchronous, _) = virtual_s("fedavg", "5");
    let (asynchronous, model) = virtual_s("fedbuff:5", "10");
    assert!(synchronous > 3.0 * asynchronous, "{synchronous} and {asynchronous} virtual seconds");
    assert!(model == virtual_s("fedbuff:5", "10").1, "and it is deterministic");
}

#[test]
fn robust_strategies_bear_what_ruins_the_average() {
    let dir = tempfile::tempdir().unwrap();
    let accuracy = |strategy: &str| {
        let args = [
            "simulate",
            "--clients",
            "10",
            "--per-round",
            "10",
            "--partition",
            "iid",
            "--rounds",
            "30",
            "--lr",
            "0.1",
            "--attack",
            "sign_flip:1",
            "--attack",
            "scale:1:100",
            "--strategy",
            strategy,
        ];
        run(&args, &dir.path().join("x")).0.last().unwrap()["accuracy"].as_f64().unwrap()
    };
    for strategy in ["median", "trimmed_mean:2", "multikrum:2:6", "krum:2"] {
        let found = accuracy(strategy);
        assert!(found > 0.9, "{strategy}: {found}");
    }
    let found = accuracy("fedavg");
    assert!(found < 0.5, "fedavg: {found}");
}

#[test]
fn bad_settings_are_one_sentence_and_code_64() {
    let dir = tempfile::tempdir().unwrap();
    for (args, text) in [
        (&["--clients", "0"][..], "--clients"),
        (&["--clients", "5", "--per-round", "6"], "--per-round"),
        (&["--clients", "5000", "--per-round", "5"], "samples"),
        (&["--strategy", "luck"], "unknown strategy"),
        (&["--strategy", "krum:5"], "needs 13 updates"),
        (&["--strategy", "median", "--max-buffer-mb", "1"], "keeps 10 updates"),
        (&["--attack", "noise"], "no attack"),
        (&["--dropout", "2"], "--dropout"),
        (&["--lr-schedule", "linear"], "LR_SCHEDULE"),
    ] {
        let output = fl(&[&["simulate"], args].concat(), dir.path());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{args:?}: {stderr}");
        assert!(stderr.contains(text), "{args:?}: {stderr}");
    }
}
