//! `fl` as users call it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

fn fl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fl")).args(args).output().unwrap()
}

fn last_line(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.lines().last().unwrap()).unwrap()
}

fn short_run(out: &Path, extra: &[&str]) -> (Value, Vec<u8>) {
    let out_text = out.to_str().unwrap();
    let base = ["run", "--json", "--rounds", "4", "--model-dim", "5000", "--out", out_text];
    let result = last_line(&fl(&[&base[..], extra].concat()));
    (result, fs::read(out.join("global.safetensors")).unwrap())
}

#[test]
fn one_seed_gives_one_model_whatever_the_start_order() {
    let dir = tempfile::tempdir().unwrap();
    let (first, model) = short_run(&dir.path().join("a"), &[]);
    let (_, again) = short_run(&dir.path().join("b"), &[]);
    let (_, shuffled) = short_run(&dir.path().join("c"), &["--shuffle-start", "3"]);
    let (_, other) = short_run(&dir.path().join("d"), &["--seed", "43"]);
    assert_eq!(first["rounds"], 4);
    assert!(model == again && model == shuffled, "the same seed gives the same bytes");
    assert!(model != other, "another seed gives another model");
    for file in ["history.csv", "history.json", "report.html"] {
        assert!(fs::metadata(dir.path().join("a").join(file)).unwrap().len() > 100, "{file}");
    }
    let file = dir.path().join("a/global.safetensors");
    let evaluated = last_line(&fl(&["eval", file.to_str().unwrap(), "--json"]));
    assert_eq!(evaluated["accuracy"], first["accuracy"]);
}

fn fails(args: &[&str], code: i32, text: &str) {
    let output = fl(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(text), "{stderr}");
}

#[test]
fn bad_input_is_one_sentence_and_an_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().to_str().unwrap();
    fails(&["run", "--quantizer", "zip", "--out", out], 64, "zip");
    fails(&["run", "--workers", "0", "--out", out], 64, "--workers");
    fails(&["run", "--model", "lstm", "--out", out], 64, "lstm");
    fails(&["run", "--dataset", "idx:/nowhere", "--out", out], 66, "/nowhere");
    fails(&["eval", "/nowhere/global.safetensors"], 66, "/nowhere");
    let broken = dir.path().join("broken.safetensors");
    fs::write(&broken, b"not a model").unwrap();
    fails(&["eval", broken.to_str().unwrap()], 66, "broken.safetensors");
    fails(&["codec", broken.to_str().unwrap()], 66, "broken.safetensors");
}
