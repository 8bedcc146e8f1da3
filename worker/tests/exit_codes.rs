//! The real binary's exit codes beyond settings and data, as docs/operators.md's table has them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    net::TcpListener,
    process::{Command, Output},
};

fn worker(env: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fl-worker"));
    command.env_clear().env("WORKER_ID", "w").env("MEM_MB", "0").envs(env.iter().copied()).args(args);
    command.output().unwrap()
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
fn a_port_in_use_is_74() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    fails(&worker(&[("METRICS_ADDR", &addr)], &[]), 74, &[&format!("METRICS_ADDR={addr}"), "os error"]);
}

#[test]
fn a_health_check_without_a_worker_is_69() {
    // Port 9 of loopback: nothing listens there.
    fails(&worker(&[], &["--health-check", "http://127.0.0.1:9"]), 69, &["http://127.0.0.1:9"]);
}

#[test]
fn memory_that_no_system_has_is_71() {
    fails(&worker(&[("MEM_MB", "16000000")], &[]), 71, &["MEM_MB"]);
}
