//! The real binary: exit codes and messages.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::{Command, Output};

fn worker(env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fl-worker"));
    command.env_clear().env("WORKER_ID", "w").env("MEM_MB", "0").envs(env.iter().copied());
    command.output().unwrap()
}

fn fails(env: &[(&str, &str)], code: i32, text: &str) {
    let output = worker(env);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(text), "{stderr}");
}

#[test]
fn a_bad_setting_ends_with_64_and_its_name() {
    fails(&[("QUANTIZER", "zip")], 64, "QUANTIZER");
    fails(&[("BITS", "9")], 64, "BITS");
    fails(&[("LR", "-1")], 64, "LR");
    fails(&[("PARTITION", "dirichlet:x")], 64, "PARTITION");
}

#[test]
fn missing_data_end_with_66_and_a_hint() {
    let dir = tempfile::tempdir().unwrap();
    fails(&[("DATASET", "idx:/nowhere")], 66, "/nowhere");
    fails(&[("DATASET", "csv:gone.csv"), ("DATA_DIR", dir.path().to_str().unwrap())], 66, "gone.csv");
}

#[test]
fn an_unreachable_master_ends_with_69_once_it_gives_up() {
    // Port 9 of loopback: nothing listens there.
    fails(&[("MASTER_ADDR", "http://127.0.0.1:9"), ("GIVE_UP_S", "0.3")], 69, "MASTER_ADDR");
}
