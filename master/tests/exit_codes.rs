//! The real binary's exit codes and last words, as docs/operators.md's table has them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Running, command, free_port, ready};
use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Output, Stdio},
};

fn ends(state: &Path, settings: &[(&str, &str)], args: &[&str]) -> Output {
    command(free_port(), state).envs(settings.iter().copied()).args(args).output().unwrap()
}

/// Checks the exit code, and that the last line of the log holds each text exactly once.
fn fails(output: &Output, code: i32, texts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    let last = stderr.lines().last().unwrap_or_default();
    for text in texts {
        assert_eq!(last.matches(text).count(), 1, "`{text}` in: {stderr}");
    }
}

#[test]
fn a_bad_setting_is_64() {
    let dir = tempfile::tempdir().unwrap();
    fails(&ends(dir.path(), &[("KEEP_ROUNDS", "0")], &[]), 64, &["KEEP_ROUNDS=0"]);
    fails(&ends(dir.path(), &[("RUST_LOG", "fl_master=loud")], &[]), 64, &["RUST_LOG=fl_master=loud"]);
    let output = ends(dir.path(), &[], &["--no-such-flag"]);
    assert_eq!(output.status.code(), Some(64));
    let output = ends(dir.path(), &[("LOG_FORMAT", "json"), ("DURABLE", "true"), ("STRATEGY", "luck")], &[]);
    fails(&output, 64, &["STRATEGY=luck", "\"level\":\"ERROR\""]);
}

#[test]
fn a_model_that_does_not_exist_is_64_and_lists_those_that_do() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&[][..], &["--check"]] {
        let output = ends(dir.path(), &[("MODEL", "lstm")], args);
        fails(&output, 64, &["unknown model `lstm`", "softmax", "mcmahan_cnn"]);
    }
}

#[test]
fn a_missing_file_is_66() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    let gone = gone.to_str().unwrap();
    fails(&ends(dir.path(), &[("DATASET", &format!("idx:{gone}"))], &[]), 66, &["was not found"]);
    fails(&ends(dir.path(), &[("MODEL", &format!("{gone}.json"))], &[]), 66, &[gone]);
    let output = ends(dir.path(), &[("TLS_CERT", gone), ("TLS_KEY", gone)], &["--check"]);
    fails(&output, 66, &[gone, "os error 2"]);
    let file = dir.path().join("not.pem");
    fs::write(&file, "no certificate").unwrap();
    let file = file.to_str().unwrap();
    let output = ends(dir.path(), &[("TLS_CERT", file), ("TLS_KEY", file)], &[]);
    fails(&output, 66, &["TLS_KEY=", "PEM"]);
}

#[test]
fn an_initial_model_of_another_network_is_66() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pretrained.safetensors");
    let path = file.to_str().unwrap();
    fails(&ends(dir.path(), &[("INITIAL_MODEL", path)], &[]), 66, &["INITIAL_MODEL=", "os error 2"]);
    let header = r#"{"fc.weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    fs::write(&file, bytes).unwrap();
    let output = ends(dir.path(), &[("INITIAL_MODEL", path), ("MODEL", "softmax")], &[]);
    fails(&output, 66, &["INITIAL_MODEL=", "`1.weight` [10, 64] is missing", "`fc.weight` [1] is unknown"]);
}

#[test]
fn a_trainable_that_finds_no_tensor_is_64_and_lists_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [("TRAINABLE", "head"), ("MODEL", "softmax")];
    fails(&ends(dir.path(), &settings, &[]), 64, &["TRAINABLE=head", "1.weight, 1.bias"]);
    fails(&ends(dir.path(), &[("TRAINABLE", "(")], &["--check"]), 64, &["TRAINABLE=("]);
}

#[test]
fn local_layers_that_find_nothing_or_everything_are_64() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |pattern: &str, texts: &[&str]| {
        let settings = [("LOCAL_LAYERS", pattern), ("MODEL", "softmax")];
        fails(&ends(dir.path(), &settings, &[]), 64, texts);
    };
    refused("head", &["LOCAL_LAYERS=head", "1.weight, 1.bias"]);
    refused("^1", &["LOCAL_LAYERS=^1", "nothing would travel"]);
    refused("(", &["LOCAL_LAYERS=("]);
}

#[test]
fn a_port_in_use_is_74() {
    let dir = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = taken.local_addr().unwrap().to_string();
    fails(&ends(dir.path(), &[("BIND", &bind)], &[]), 74, &[&format!("BIND={bind}"), "os error"]);
}

#[test]
fn a_state_folder_that_cannot_be_created_or_written_is_74() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let state = file.join("state");
    for args in [&[][..], &["--check"]] {
        fails(&ends(&state, &[], args), 74, &[state.to_str().unwrap(), "os error"]);
    }
    // No file can be created there, not even by root.
    fails(&ends(Path::new("/sys"), &[], &[]), 74, &["/sys/lock", "os error"]);
}

#[test]
fn a_start_on_a_full_disk_is_74() {
    let dir = tempfile::tempdir().unwrap();
    let binary = command(free_port(), dir.path());
    let mut shell = Command::new("sh");
    // With the signal ignored, a write beyond the limit fails as on a full disk.
    shell.args(["-c", "trap '' XFSZ; ulimit -S -f 0; exec \"$0\""]).arg(binary.get_program()).env_clear();
    shell.envs(binary.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = shell.env("PATH", "/usr/bin:/bin").stdout(Stdio::null()).output().unwrap();
    fails(&output, 74, &["checkpoint-0000000000.fl", "os error"]);
}

#[tokio::test]
async fn a_health_check_is_0_or_69() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let mut master = Running::spawn(port, dir.path(), &[]);
    ready(&url).await;
    let asked = ends(dir.path(), &[], &["--health-check", &url]);
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    assert!(master.terminate().success());
    fails(&ends(dir.path(), &[], &["--health-check", &url]), 69, &[&url]);
}
