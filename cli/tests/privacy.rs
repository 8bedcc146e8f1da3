//! `fl privacy`, as a user starts it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::Value;
use std::process::{Command, Output};

fn fl(line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fl")).args(line.split_whitespace()).output().unwrap()
}

fn json(line: &str) -> Value {
    let output = fl(&format!("{line} --json"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn epsilon_is_printed_by_both_accountants() {
    let line = "privacy epsilon --noise-multiplier 1.3 --sampling-rate 0.0025 --rounds 6000 --delta 1e-5";
    let found = json(line);
    // compute_dp_sgd_privacy_test.py of TF-Privacy; prv-accountant 0.2.0.
    assert!((found["epsilon_rdp"].as_f64().unwrap() / 0.724_223_402_610_959_5 - 1.0).abs() < 1e-9);
    assert_eq!(found["order_rdp"], 19.0);
    assert!((found["epsilon_pld"].as_f64().unwrap() - 0.640_004).abs() < 1e-3);
    let text = String::from_utf8(fl(line).stdout).unwrap();
    assert!(text.starts_with("epsilon 0.6400 (PLD)   0.7242 (RDP, order 19)"), "{text}");
}

#[test]
fn noise_and_rounds_stay_within_the_budget() {
    for accountant in ["rdp", "pld"] {
        let epsilon = format!("epsilon_{accountant}");
        let common = format!("--epsilon 2 --sampling-rate 0.05 --delta 1e-5 --accountant {accountant}");
        let noise = json(&format!("privacy noise --rounds 100 {common}"));
        let sigma = noise["noise_multiplier"].as_f64().unwrap();
        let reached = noise[&epsilon].as_f64().unwrap();
        assert!(reached <= 2.0 && reached > 1.999, "{noise}");
        // A little more noise for the same budget allows at least the same rounds.
        let rounds = json(&format!("privacy rounds --noise-multiplier {} {common}", 1.0001 * sigma));
        let count = rounds["rounds"].as_u64().unwrap();
        assert!((100..=102).contains(&count) && rounds[&epsilon].as_f64().unwrap() <= 2.0, "{rounds}");
    }
}

#[test]
fn bad_values_are_settings_that_are_refused() {
    for (line, flag) in [
        ("epsilon --noise-multiplier 0 --sampling-rate 0.1 --rounds 10", "--noise-multiplier=0"),
        ("epsilon --noise-multiplier NaN --sampling-rate 0.1 --rounds 10", "--noise-multiplier=NaN"),
        ("epsilon --noise-multiplier 1 --sampling-rate 1.5 --rounds 10", "--sampling-rate=1.5"),
        ("epsilon --noise-multiplier 1 --sampling-rate 0.1 --rounds 10 --delta 1", "--delta=1"),
        ("epsilon --noise-multiplier 1 --sampling-rate 0.1 --rounds 2000000000", "--rounds=2000000000"),
        ("noise --epsilon 0 --sampling-rate 0.1 --rounds 10", "--epsilon=0"),
        ("noise --epsilon 1 --sampling-rate 0.1 --rounds 0", "--rounds=0"),
        ("noise --epsilon 0.0001 --sampling-rate 1 --rounds 1000000000 --accountant rdp", "--epsilon=0.0001"),
        ("rounds --epsilon 1 --noise-multiplier -1 --sampling-rate 0.1", "unexpected argument"),
        ("rounds --epsilon inf --noise-multiplier 1 --sampling-rate 0.1", "--epsilon=inf"),
        ("epsilon --sampling-rate 0.1 --rounds 10", "--noise-multiplier <SIGMA>"),
    ] {
        let output = fl(&format!("privacy {line}"));
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64), "{line}: {message}");
        assert!(message.contains(flag), "{line}: {message}");
    }
}
