//! Both accountants against published values and other implementations.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use fl_privacy::{Mechanism, Rounds, pld, rdp};

fn rounds(sigma: f64, q: f64, count: u64) -> [Rounds; 1] {
    [Rounds::new(Mechanism::new(sigma, q).unwrap(), count).unwrap()]
}

fn close(found: f64, expected: f64, relative: f64, what: &str) {
    assert!((found / expected - 1.0).abs() <= relative, "{what}: {found}, expected {expected}");
}

/// compute_dp_sgd_privacy_test.py of TF-Privacy; accountants_test.py of Opacus. At whole orders all libraries agree.
///
/// At fractional orders the moment is an alternating series. Opacus adds it up as it is, and so does mpmath (30 digits,
/// quadrature). dp-accounting, and TF-Privacy with it, adds absolute values: its figures are bounds slightly above.
#[test]
fn rdp_epsilons_are_those_of_other_libraries() {
    for (sigma, q, count, delta, expected, order, digits) in [
        (1.3, 0.0025, 6000, 1e-5, 0.724_223_402_610_959_5, 19.0, 1e-9),
        (1.0, 0.001, 30_000, 1e-7, 1.415_498_849_544_484_2, 13.0, 1e-9),
        // mpmath; dp-accounting has 3.2392676.
        (0.7, 0.01, 120, 1e-5, 3.239_192_193_913_13, 4.4, 1e-12),
        (0.7, 1.0, 2, 1e-5, 10.860_203_6, 3.3, 1e-8),
        (1.5, 0.04, 2250, 1e-5, 7.329_111_171_43, 3.9, 1e-9),
        // The reference gives epsilon as 1, at the best real order; the grid has 22.
        (4.530_877_117, 1.0, 1, 1e-6, 1.0, 22.0, 1e-6),
    ] {
        let found = rdp::epsilon(&rounds(sigma, q, count), delta).unwrap();
        println!("{sigma} {q} {count} {found:?}");
        close(found.epsilon, expected, digits, &format!("{sigma} {q} {count}"));
        assert_eq!(found.order, order, "{sigma} {q} {count}");
    }
}

/// Opacus and TF-Privacy at whole orders, mpmath at fractional ones: sigma 2.5, q 0.01, 50 rounds.
#[test]
fn divergences_are_those_of_other_libraries() {
    for (order, expected) in [
        (1.5, 6.500_708_971_880_40e-4),
        (2.5, 1.085_418_056_918_12e-3),
        (5.0, 2.180_756_56e-3),
        (50.0, 2.384_603_75e-2),
        (100.0, 167.416_308),
    ] {
        let found = 50.0 * rdp::divergence(&Mechanism::new(2.5, 0.01).unwrap(), order).unwrap();
        println!("{order} {found}");
        close(found, expected, 4e-9, &format!("order {order}"));
    }
}

/// The figures of dp-accounting at fractional orders, which are above the exact ones, by the series that it adds up: the
/// difference is in that bound, not in the formula. Section 3.3 of Mironov, Talwar, Zhang (2019), in absolute values.
#[test]
fn figures_from_absolute_series_are_above_the_exact_ones() {
    for (sigma, q, order, count, expected) in [
        (2.5, 0.01, 1.5, 50.0, 6.705_797_41e-4),
        (2.5, 0.01, 2.5, 50.0, 1.085_487_10e-3),
        // Epsilon 3.2392676 at delta 1e-5, converted back to the divergence.
        (
            0.7,
            0.01,
            4.4,
            120.0,
            3.239_267_649_500_794 - (1.0f64 - 1.0 / 4.4).ln() + (1e-5f64 * 4.4).ln() / 3.4,
        ),
    ] {
        let bound = count * absolute_series(sigma, q, order).ln() / (order - 1.0);
        close(bound, expected, 5e-9, &format!("order {order}"));
        let exact = count * rdp::divergence(&Mechanism::new(sigma, q).unwrap(), order).unwrap();
        assert!(exact < bound && exact > 0.96 * bound, "order {order}: {exact} {bound}");
    }
}

fn absolute_series(sigma: f64, q: f64, order: f64) -> f64 {
    let variance = sigma * sigma;
    let split = variance * (1.0 / q - 1.0).ln() + 0.5;
    let half_erfc = |x: f64| 0.5 * libm::erfc(x / (std::f64::consts::SQRT_2 * sigma));
    let (mut sum, mut binomial) = (0.0, 1.0f64);
    for i in 0..1000 {
        let i = f64::from(i);
        let j = order - i;
        let left =
            q.powf(i) * (1.0 - q).powf(j) * ((i * i - i) / (2.0 * variance)).exp() * half_erfc(i - split);
        let right =
            q.powf(j) * (1.0 - q).powf(i) * ((j * j - j) / (2.0 * variance)).exp() * half_erfc(split - j);
        let term = binomial.abs() * (left + right);
        if !term.is_finite() || term < 1e-18 * sum {
            break;
        }
        sum += term;
        binomial *= (order - i) / (i + 1.0);
    }
    sum
}

/// `pld` of dp-accounting 0.6.0 (steps of 1e-4 or 1e-5; pessimistic) and the estimate of prv-accountant 0.2.0
/// (`eps_error=0.001`). The PRV values that Opacus tests (0.2704033641, 5.6720555088, 0.4370051087) are upper ends with
/// `eps_error=0.01`: ours must be below them by about that.
#[test]
fn pld_epsilons_are_those_of_other_libraries() {
    for (sigma, q, count, delta, expected) in [
        (1.3, 0.0025, 6000, 1e-5, 0.640_004),
        (1.0, 0.001, 30_000, 1e-7, 1.097_677),
        (0.7, 0.01, 120, 1e-5, 2.461_238_1),
        (0.7, 1.0, 2, 1e-5, 10.122_494_6),
        (1.5, 0.04, 2250, 1e-5, 6.768_780),
        (0.8, 0.001, 100, 1e-6, 0.260_337),
        (2.0, 0.2, 100, 1e-6, 5.661_788),
        (1.5, 0.001, 20_000, 1e-6, 0.426_967),
    ] {
        let time = std::time::Instant::now();
        let found = pld::epsilon(&rounds(sigma, q, count), delta).unwrap();
        println!("{sigma} {q} {count} {found} expected {expected} {:?}", time.elapsed());
        assert!((found - expected).abs() < 1e-3, "{sigma} {q} {count}: {found}, expected {expected}");
    }
    for (sigma, q, count, delta, upper) in [
        (0.8, 0.001, 100, 1e-6, 0.270_403_364_1),
        (2.0, 0.2, 100, 1e-6, 5.672_055_508_8),
        (1.5, 0.001, 20_000, 1e-6, 0.437_005_108_7),
        (1.5, 0.04, 2250, 1e-5, 6.777_395_712_150_674),
    ] {
        let found = pld::epsilon(&rounds(sigma, q, count), delta).unwrap();
        assert!(found < upper && upper - found < 0.0105, "{sigma} {q} {count}: {found}, upper end {upper}");
    }
}

/// Neighbours of the published values. RDP at whole orders: dp-accounting 0.6.0 with the orders 2 to 63, 128, 256, 512
/// and 1024. PLD: estimate of prv-accountant 0.2.0 with `eps_error=0.001`, `delta_error=delta/1000`. Delta at epsilon 1:
/// `PLDAccountant` of dp-accounting with steps of 1e-4 (1e-5 for up to 100 rounds).
#[test]
fn neighbours_of_the_published_values() {
    for (sigma, q, count, delta, by_rdp, by_pld, delta_at_one) in [
        (0.6, 0.005, 500, 1e-6, 6.357_597_923_024_326, 4.444_206_937_538_523, 0.008_183_620_828_756_73),
        (0.9, 0.05, 300, 1e-5, 8.111_779_594_862_238, 7.187_956_338_546_015, 0.226_793_198_506_777_34),
        (1.1, 0.02, 1000, 1e-6, 4.048_746_719_353_468, 3.702_077_843_861_063, 0.042_871_967_125_676_83),
        (4.0, 0.3, 2000, 1e-7, 24.706_120_656_566_824, 22.963_139_163_819_94, 0.852_954_769_075_859_9),
        (1.0, 0.5, 10, 1e-5, 11.770_582_666_023_335, 10.459_927_283_976_793, 0.375_293_498_347_143_54),
    ] {
        let rounds = rounds(sigma, q, count);
        let whole = |order: &f64| order.fract() == 0.0 && (*order <= 63.0 || order.log2().fract() == 0.0);
        let best = rdp::orders()
            .into_iter()
            .filter(|order| whole(order) && *order <= 1024.0)
            .chain([10.0])
            .map(|order| {
                let divergence = count as f64 * rdp::divergence(&rounds[0].mechanism(), order).unwrap();
                divergence + (-1.0 / order).ln_1p() - (delta * order).ln() / (order - 1.0)
            })
            .fold(f64::INFINITY, f64::min);
        close(best, by_rdp, 1e-9, &format!("{sigma} {q} {count}"));
        assert!(rdp::epsilon(&rounds, delta).unwrap().epsilon <= best + 1e-12);
        let found = pld::epsilon(&rounds, delta).unwrap();
        assert!((found - by_pld).abs() < 1e-3, "{sigma} {q} {count}: {found}, expected {by_pld}");
        close(
            pld::delta(&rounds, 1.0).unwrap(),
            delta_at_one,
            1e-3,
            &format!("delta of {sigma} {q} {count}"),
        );
    }
}
