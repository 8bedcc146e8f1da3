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
    let clients = &first["client_accuracy"];
    assert_eq!(clients["clients"], 4, "the last model is evaluated by all");
    let worst = clients["worst_client"].as_str().unwrap();
    let report = fs::read_to_string(dir.path().join("a/report.html")).unwrap();
    for text in ["Accuracy on the clients' data", worst] {
        assert!(report.contains(text), "{text} is missing");
    }
    let file = dir.path().join("a/global.safetensors");
    let evaluated = last_line(&fl(&["eval", file.to_str().unwrap(), "--json"]));
    assert_eq!(evaluated["accuracy"], first["accuracy"]);
}

#[test]
fn a_run_goes_on_from_a_file_and_trains_the_chosen_tensors_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (first, model) = short_run(&dir.path().join("a"), &[]);
    let start = dir.path().join("a/global.safetensors");
    let from = ["--initial-model", start.to_str().unwrap()];
    let (second, _) = short_run(&dir.path().join("b"), &from);
    assert!(second["accuracy"].as_f64() > first["accuracy"].as_f64());
    let last = [&from[..], &["--trainable", "^3\\."]].concat();
    let (tuned, after) = short_run(&dir.path().join("c"), &last);
    assert!(
        tuned["bytes_up_per_update"].as_f64()
            < second["bytes_up_per_update"].as_f64().map(|bytes| 0.8 * bytes),
        "{tuned} {second}"
    );
    let differs = |name: &str| tensor(&model, name) != tensor(&after, name);
    assert_eq!(["1.weight", "1.bias", "3.weight", "3.bias"].map(differs), [false, false, true, true]);
    let local = [&from[..], &["--local-layers", "^1\\."]].concat();
    let (personal, after) = short_run(&dir.path().join("d"), &local);
    let half = second["bytes_up_per_update"].as_f64().map(|bytes| 0.5 * bytes);
    assert!(personal["bytes_up_per_update"].as_f64() < half, "{personal} {second}");
    let differs = |name: &str| tensor(&model, name) != tensor(&after, name);
    assert_eq!(["1.weight", "1.bias", "3.weight", "3.bias"].map(differs), [false, false, true, true]);
    fails(&["run", "--local-layers", ".", "--out", dir.path().to_str().unwrap()], 64, "nothing would travel");
    fails(&["run", "--trainable", "head", "--out", dir.path().to_str().unwrap()], 64, "1.weight, 1.bias");
    fails(
        &["run", "--strategy", "fednova", "--optimizer", "adam", "--out", dir.path().to_str().unwrap()],
        64,
        "--optimizer",
    );
}

/// The bytes of one tensor of a model's file.
fn tensor<'a>(file: &'a [u8], name: &str) -> &'a [u8] {
    let header = 8 + u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    let json: Value = serde_json::from_slice(&file[8..header]).unwrap();
    let at = |index: usize| header + json[name]["data_offsets"][index].as_u64().unwrap() as usize;
    &file[at(0)..at(1)]
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
    for command in ["run", "simulate"] {
        fails(&[command, "--model", "safetensors:init.safetensors", "--out", out], 64, "need a network");
    }
    fails(&["run", "--dataset", "idx:/nowhere", "--out", out], 66, "/nowhere");
    fails(&["eval", "/nowhere/global.safetensors"], 66, "/nowhere");
    let broken = dir.path().join("broken.safetensors");
    fs::write(&broken, b"not a model").unwrap();
    fails(&["eval", broken.to_str().unwrap()], 66, "broken.safetensors");
    fails(&["codec", broken.to_str().unwrap()], 66, "broken.safetensors");
}
