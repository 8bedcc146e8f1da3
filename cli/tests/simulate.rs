//! `fl simulate` as users call it, compared with `fl run` over real HTTP.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

/// Runs `fl` with a command line whose arguments hold no spaces.
fn fl(line: &str, out: &Path) -> Output {
    let out = ["--json", "--out", out.to_str().unwrap()];
    Command::new(env!("CARGO_BIN_EXE_fl")).args(line.split_whitespace()).args(out).output().unwrap()
}

/// The lines of a run that succeeds, and its model.
fn run(line: &str, out: &Path) -> (Vec<Value>, Vec<u8>) {
    let output = fl(line, out);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (lines, fs::read(out.join("global.safetensors")).unwrap())
}

const SMALL: &str = "--rounds 4 --model-dim 3000";

#[test]
fn a_simulated_run_and_the_same_run_over_http_give_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for flags in [
        "--local-steps 3 --quantizer StocQ --bits 3",
        "--local-steps 3 --strategy fedadam --partition shards:2 --lr-schedule exp:0.9",
        "--local-steps 3 --strategy scaffold --quantizer SDQ --bits 8",
        "--local-epochs 1 --strategy fednova --mu 0.1",
        "--local-steps 3 --strategy trimmed_mean:1 --clip-norm 1",
        "--local-steps 3 --lazy 30 --down-bits 6",
        "--local-steps 3 --local-layers ^3 --strategy scaffold --bits 2",
        "--local-steps 3 --strategy scaffold --uplink-mbit 0.1 --down-bits 8 --down-quantizer MSQ_v2",
    ] {
        let (simulated_lines, simulated) =
            run(&format!("simulate --clients 5 --per-round 5 {SMALL} {flags}"), &dir.path().join("s"));
        let (real_lines, real) = run(&format!("run --workers 5 {SMALL} {flags}"), &dir.path().join("h"));
        assert!(simulated == real, "{flags}: the models differ");
        let found = |lines: &[Value]| lines.last().unwrap()["client_accuracy"].clone();
        assert_eq!(found(&simulated_lines), found(&real_lines), "{flags}: the clients find something else");
        if flags.contains("--lazy") {
            let reused =
                |lines: &[Value]| lines.iter().filter_map(|line| line["reused"].as_u64()).collect::<Vec<_>>();
            assert!(!reused(&real_lines).is_empty(), "no upload was left out: the comparison says nothing");
            assert_eq!(reused(&simulated_lines), reused(&real_lines));
        }
    }
}

#[test]
fn a_budget_is_kept_to_and_made_use_of() {
    let dir = tempfile::tempdir().unwrap();
    for (mbit, flags) in [(0.5, ""), (0.5, "--strategy scaffold"), (2.0, "--quantizer SDQ")] {
        let line = format!("simulate --clients 5 --per-round 5 --rounds 6 --uplink-mbit {mbit} {flags}");
        let (lines, _) = run(&line, dir.path());
        let (sent, share) =
            (lines.last().unwrap()["bytes_up_per_update"].as_f64().unwrap(), mbit * 1e6 / 8.0 / 5.0);
        assert!(sent <= share && sent > 0.5 * share, "{flags}: {sent} of {share} bytes");
    }
}

#[test]
fn a_simulation_is_the_same_for_any_number_of_threads_and_samples_its_clients() {
    let dir = tempfile::tempdir().unwrap();
    let sampled = |threads: usize, extra: &str, name: &str| {
        let head = format!("simulate --clients 30 --per-round 4 --threads {threads} --local-steps 3");
        run(&format!("{head} {SMALL} {extra}"), &dir.path().join(name))
    };
    let (lines, one) = sampled(1, "", "1");
    let (_, three) = sampled(3, "", "3");
    assert!(one == three, "the number of threads changes the model");
    assert_eq!(lines.len(), 5);
    for round in &lines[..4] {
        assert_eq!((&round["event"], &round["participants"]), (&Value::from("round"), &Value::from(4)));
    }
    let keys = "accuracy loss rounds wall_s round_ms_median bytes_up_per_update bits_per_param params global \
                peak_rss_mb virtual_s";
    for key in keys.split_whitespace() {
        assert!(!lines[4][key].is_null(), "{key}");
    }
    let harsh = "--dropout 0.3 --overselect 1.5 --deadline-s 2 --speed-spread 1 --uneven 1:3";
    let (first, model) = sampled(2, harsh, "a");
    let (second, again) = sampled(1, harsh, "b");
    assert!(model == again && model != one, "drop-out, deadline and stragglers are drawn from the seed");
    assert_eq!(first[4]["virtual_s"], second[4]["virtual_s"]);
    // Notices that arrive late, and clients that were absent for some rounds.
    let lazy = format!("{harsh} --lazy 100");
    assert!(sampled(2, &lazy, "c").1 == sampled(1, &lazy, "d").1, "lazy uploads too");
}

#[test]
fn a_slow_client_does_not_hold_up_fedbuff() {
    let dir = tempfile::tempdir().unwrap();
    let virtual_s = |strategy: &str, rounds: usize| {
        let line = format!(
            "simulate --clients 10 --per-round 10 --slow 1:20 --model-dim 3000 --strategy {strategy} --rounds {rounds}"
        );
        let (lines, model) = run(&line, &dir.path().join("x"));
        (lines.last().unwrap()["virtual_s"].as_f64().unwrap(), model)
    };
    let (synchronous, _) = virtual_s("fedavg", 5);
    let (asynchronous, model) = virtual_s("fedbuff:5", 10);
    assert!(synchronous > 3.0 * asynchronous, "{synchronous} and {asynchronous} virtual seconds");
    assert!(model == virtual_s("fedbuff:5", 10).1, "and it is deterministic");
}

#[test]
fn robust_strategies_bear_what_ruins_the_average() {
    let dir = tempfile::tempdir().unwrap();
    let accuracy = |strategy: &str| {
        let line = format!(
            "simulate --clients 10 --per-round 10 --partition iid --rounds 30 --lr 0.1 --attack sign_flip:1 \
             --attack scale:1:100 --strategy {strategy}"
        );
        run(&line, &dir.path().join("x")).0.last().unwrap()["accuracy"].as_f64().unwrap()
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
    for (flags, text) in [
        ("--clients 0", "--clients"),
        ("--clients 5 --per-round 6", "--per-round"),
        ("--clients 5000 --per-round 5", "samples"),
        ("--strategy luck", "unknown strategy"),
        ("--strategy krum:5", "needs 13 updates"),
        ("--strategy median --max-buffer-mb 1", "keeps 10 updates"),
        ("--attack noise", "no attack"),
        ("--dropout 2", "--dropout"),
        ("--lr-schedule linear", "LR_SCHEDULE"),
        ("--lazy 0.8 --strategy scaffold", "no use for an update that came before"),
        ("--lazy=-1", "LAZY"),
        ("--uplink-mbit 1 --bits 4", "--uplink-mbit"),
        ("--uplink-mbit 0", "0.001 to 1e6"),
        ("--down-bits 9", "DOWN_BITS"),
        ("--down-quantizer SDQ", "DOWN_BITS"),
    ] {
        let output = fl(&format!("simulate {flags}"), dir.path());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{flags}: {stderr}");
        assert!(stderr.contains(text), "{flags}: {stderr}");
    }
}
