//! The real binary: exit codes and messages.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::{BufRead, BufReader, Read},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Output, Stdio},
};

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

/// A worker process that logs to a pipe.
fn start(env: &[(&str, &str)]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fl-worker"));
    command.env_clear().env("WORKER_ID", "w").env("MEM_MB", "0").envs(env.iter().copied());
    command.stderr(Stdio::piped()).spawn().unwrap()
}

fn terminate(mut child: Child) -> (Option<i32>, String) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let status = child.wait().unwrap();
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    (status.code(), log)
}

#[test]
fn sigterm_ends_a_worker_that_waits_for_its_master_with_0() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let child = start(&[("MASTER_ADDR", &address)]);
    // It has sent its first request, which nobody will answer.
    let (stream, _) = listener.accept().unwrap();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    assert!(line.starts_with("GET /task"), "{line}");
    let (code, log) = terminate(child);
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("worker stopped"), "{log}");
}

#[test]
fn sigterm_ends_a_worker_that_is_still_starting_with_0() {
    // The data set is a pipe that nobody writes to: loading it does not end.
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("data.csv");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dataset = format!("csv:{}", fifo.display());
    let child = start(&[("DATASET", &dataset), ("METRICS_ADDR", &metrics.to_string())]);
    // The metrics' port opens right before the data are loaded.
    while TcpStream::connect(metrics).is_err() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let (code, log) = terminate(child);
    assert_eq!(code, Some(0), "{log}");
}
