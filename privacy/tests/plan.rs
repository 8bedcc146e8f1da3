//! Least noise and most rounds.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use fl_privacy::{
    Ledger, Mechanism, PrivacyError, Rounds,
    plan::{Accountant, least_noise, most_rounds},
};

const BOTH: [Accountant; 2] = [Accountant::Rdp, Accountant::Pld];

fn epsilon(accountant: Accountant, sigma: f64, q: f64, count: u64, delta: f64) -> f64 {
    accountant.epsilon(&[Rounds::new(Mechanism::new(sigma, q).unwrap(), count).unwrap()], delta).unwrap()
}

#[test]
fn the_least_noise_is_just_enough() {
    for accountant in BOTH {
        for (target, q, count, delta) in [(1.0, 1.0, 1, 1e-6), (2.0, 0.01, 1000, 1e-5), (0.5, 0.1, 20, 1e-6)]
        {
            let time = std::time::Instant::now();
            let sigma = least_noise(accountant, target, q, count, delta).unwrap();
            println!("{accountant:?} {target} {q} {count} {delta}: {sigma} {:?}", time.elapsed());
            let at = epsilon(accountant, sigma, q, count, delta);
            let below = epsilon(accountant, 0.999 * sigma, q, count, delta);
            assert!(at <= target && below > target, "{accountant:?} {target} {q}: {sigma} {at} {below}");
        }
    }
    // dp-accounting's test of the Gaussian mechanism, and Balle and Wang's exact calibration of the same.
    assert!((least_noise(Accountant::Rdp, 1.0, 1.0, 1, 1e-6).unwrap() - 4.530_877_117).abs() < 1e-5);
}

#[test]
fn the_most_rounds_are_just_within_the_budget() {
    for accountant in BOTH {
        for (target, sigma, q, delta) in
            [(1.0, 1.3, 0.0025, 1e-5), (3.0, 1.0, 0.01, 1e-6), (5.0, 4.0, 1.0, 1e-5)]
        {
            let mechanism = Mechanism::new(sigma, q).unwrap();
            let time = std::time::Instant::now();
            let count = most_rounds(accountant, target, &mechanism, &[], delta).unwrap().unwrap();
            println!("{accountant:?} {target} {sigma} {q} {delta}: {count} {:?}", time.elapsed());
            assert!(epsilon(accountant, sigma, q, count, delta) <= target);
            assert!(epsilon(accountant, sigma, q, count + 1, delta) > target);
        }
    }
}

#[test]
fn limits_of_the_search() {
    let mechanism = Mechanism::new(1.0, 0.01).unwrap();
    let find = |target, sigma, q| {
        most_rounds(Accountant::Rdp, target, &Mechanism::new(sigma, q).unwrap(), &[], 1e-5).unwrap()
    };
    assert_eq!(find(0.01, 0.5, 1.0), Some(0));
    assert_eq!(find(10.0, 1e6, 1e-9), None);
    let unreachable = least_noise(Accountant::Rdp, 1e-4, 1.0, 1_000_000_000, 1e-9);
    assert!(matches!(unreachable, Err(PrivacyError::Unreachable { .. })), "{unreachable:?}");
    assert_eq!(least_noise(Accountant::Rdp, 1e6, 1.0, 1, 1e-5).unwrap(), 0.01);
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(least_noise(Accountant::Pld, bad, 0.1, 10, 1e-5).is_err(), "{bad}");
        assert!(most_rounds(Accountant::Pld, bad, &mechanism, &[], 1e-5).is_err(), "{bad}");
    }
    assert!(least_noise(Accountant::Pld, 1.0, 0.1, 0, 1e-5).is_err());
}

#[test]
fn a_ledger_knows_what_is_left() {
    let mechanism = Mechanism::new(1.0, 0.01).unwrap();
    let mut ledger = Ledger::default();
    for round in 0..100 {
        ledger.charge(round, mechanism).unwrap();
    }
    let left = ledger.rounds_left(Accountant::Rdp, 2.0, 1e-5, &mechanism).unwrap().unwrap();
    let all = most_rounds(Accountant::Rdp, 2.0, &mechanism, &[], 1e-5).unwrap().unwrap();
    assert_eq!(left + 100, all);
    assert!(ledger.rounds_left(Accountant::Rdp, 0.01, 1e-5, &mechanism).is_err());
}
