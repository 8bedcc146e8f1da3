//! Extreme and bad parameters.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use fl_privacy::{Mechanism, PrivacyError, Rounds, pld, rdp};

fn rounds(sigma: f64, q: f64, count: u64) -> [Rounds; 1] {
    [Rounds::new(Mechanism::new(sigma, q).unwrap(), count).unwrap()]
}

/// Every combination of extremes gives a number, and the tight accountant is never above the other.
#[test]
fn extremes_are_computed() {
    for sigma in [0.01, 0.5, 1e6] {
        for q in [1e-9, 1e-3, 0.5, 1.0] {
            for (count, delta) in [(1, 0.3), (1_000_000, 1e-20), (1_000_000_000, 1e-5)] {
                let rounds = rounds(sigma, q, count);
                let time = std::time::Instant::now();
                let loose = rdp::epsilon(&rounds, delta).unwrap().epsilon;
                let tight = pld::epsilon(&rounds, delta).unwrap();
                println!("{sigma} {q} {count} {delta}: {loose} {tight} {:?}", time.elapsed());
                assert!(loose.is_finite() && loose >= 0.0, "{sigma} {q} {count} {delta}: {loose}");
                assert!(tight >= 0.0 && tight <= loose, "{sigma} {q} {count} {delta}: {tight} {loose}");
            }
        }
    }
}

/// The Gaussian mechanism in closed form, and the same by transform: rounds with a sampling rate that is nearly 1.
#[test]
fn a_sampling_rate_near_one_joins_the_closed_form() {
    for (sigma, count) in [(0.8, 1), (5.0, 50), (300.0, 1_000_000)] {
        let exact = pld::epsilon(&rounds(sigma, 1.0, count), 1e-6).unwrap();
        let near = pld::epsilon(&rounds(sigma, 0.999_999_999, count), 1e-6).unwrap();
        assert!((near - exact).abs() < 3e-4 * exact.max(1.0), "{sigma} {count}: {near} {exact}");
    }
}

/// One round in closed form: `P(z > t) - e^epsilon Q(z > t)`, where t is the output whose loss is epsilon (definition of
/// delta; P is the mixture). The distribution on a grid must be above and close.
#[test]
fn one_round_is_as_in_closed_form() {
    let above = |x: f64| 0.5 * libm::erfc(x / std::f64::consts::SQRT_2);
    for (sigma, q, delta) in
        [(0.5, 0.001, 1e-5), (0.5, 0.5, 1e-5), (0.8, 0.001, 1e-8), (2.0, 0.3, 1e-4), (10.0, 0.9, 1e-9)]
    {
        let found = pld::epsilon(&rounds(sigma, q, 1), delta).unwrap();
        let exact = |epsilon: f64| {
            let t = sigma * sigma * (epsilon.exp_m1() / q).ln_1p() + 0.5;
            let (without, with) = (above(t / sigma), above((t - 1.0) / sigma));
            (1.0 - q) * without + q * with - epsilon.exp() * without
        };
        assert!(exact(found) <= delta * (1.0 + 1e-9), "{sigma} {q}: {found}");
        assert!(exact(found - 1e-3) > delta, "{sigma} {q}: {found}");
    }
}

/// Rounds with and without subsampling in one account.
#[test]
fn mixed_rounds_cost_at_least_each_part_and_at_most_their_sum() {
    let some = rounds(1.0, 0.01, 500)[0];
    let all = rounds(8.0, 1.0, 2)[0];
    let epsilon = |rounds: &[Rounds]| pld::epsilon(rounds, 1e-5).unwrap();
    let (first, second, mixed) = (epsilon(&[some]), epsilon(&[all]), epsilon(&[some, all]));
    assert!(mixed > first.max(second) && mixed < first + second, "{first} {second} {mixed}");
    let split = [rounds(1.0, 0.01, 200)[0], all, rounds(1.0, 0.01, 300)[0]];
    assert_eq!(epsilon(&split), mixed);
}

#[test]
fn delta_and_epsilon_are_inverse() {
    for (sigma, q, count) in [(1.3, 0.0025, 6000), (0.7, 0.01, 120), (2.0, 0.2, 100), (4.0, 1.0, 3)] {
        let rounds = rounds(sigma, q, count);
        for delta in [1e-3, 1e-6, 1e-12] {
            let epsilon = pld::epsilon(&rounds, delta).unwrap();
            let back = pld::delta(&rounds, epsilon).unwrap();
            assert!((back / delta - 1.0).abs() < 0.02, "{sigma} {q} {count} {delta}: {epsilon} {back}");
            let loose = rdp::epsilon(&rounds, delta).unwrap().epsilon;
            let back = rdp::delta(&rounds, loose).unwrap();
            assert!((back / delta - 1.0).abs() < 1e-6 || loose == 0.0, "{sigma} {q} {count} {delta}: {back}");
        }
    }
}

#[test]
fn bad_parameters_are_refused() {
    for (sigma, q) in [(0.0, 0.1), (-1.0, 0.1), (f64::NAN, 0.1), (f64::INFINITY, 0.1), (1e7, 0.1)] {
        assert!(matches!(Mechanism::new(sigma, q), Err(PrivacyError::OutOfRange { .. })), "{sigma}");
    }
    for q in [0.0, -0.1, 1.000_001, f64::NAN, 1e-10] {
        assert!(matches!(Mechanism::new(1.0, q), Err(PrivacyError::OutOfRange { .. })), "{q}");
    }
    let one = rounds(1.0, 0.1, 1);
    for delta in [0.0, 1.0, -1e-5, 1e-40, f64::NAN] {
        assert!(rdp::epsilon(&one, delta).is_err() && pld::epsilon(&one, delta).is_err(), "{delta}");
    }
    for epsilon in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(rdp::delta(&one, epsilon).is_err() && pld::delta(&one, epsilon).is_err(), "{epsilon}");
    }
    for order in [1.0, 0.5, f64::NAN, 1e8] {
        assert!(rdp::divergence(&one[0].mechanism(), order).is_err(), "{order}");
    }
    assert!(Rounds::new(one[0].mechanism(), 1_000_000_001).is_err());
    let too_many: Vec<Rounds> = (0..300).map(|i| rounds(1.0 + f64::from(i), 0.1, 1)[0]).collect();
    assert!(matches!(rdp::epsilon(&too_many, 1e-5), Err(PrivacyError::TooMany { .. })));
    assert!(rdp::epsilon(&[rounds(1.0, 0.1, 1_000_000_000)[0]; 2], 1e-5).is_err());
}
