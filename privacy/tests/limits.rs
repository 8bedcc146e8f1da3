//! Extreme and bad parameters.

use fl_privacy::{Mechanism, PrivacyError, Rounds, pld, rdp};

fn rounds(sigma: f64, q: f64, count: u64) -> [Rounds; 1] {
    [Rounds::new(Mechanism::new(sigma, q).unwrap(), count).unwrap()]
}

/// Every combination gives a number or a documented error, and the tight accountant is not above the other by more
/// than its tolerance.
#[test]
fn extremes_are_computed_or_refused() {
    for sigma in [0.01, 0.1, 0.5, 1.0, 10.0, 1e3, 1e6] {
        for q in [1e-9, 1e-5, 1e-3, 0.1, 0.5, 0.999_999, 1.0] {
            for count in [1, 1000, 1_000_000, 1_000_000_000] {
                for delta in [1e-20, 1e-5, 0.3] {
                    let rounds = rounds(sigma, q, count);
                    let time = std::time::Instant::now();
                    let loose = rdp::epsilon(&rounds, delta).unwrap().epsilon;
                    let first = time.elapsed();
                    let tight = pld::epsilon(&rounds, delta);
                    println!("{sigma} {q} {count} {delta}: {loose} {tight:?} {first:?} {:?}", time.elapsed() - first);
                    assert!(loose >= 0.0, "{sigma} {q} {count} {delta}: {loose}");
                    match tight {
                        Ok(tight) => assert!(
                            tight >= 0.0 && tight <= loose * 1.001 + 1e-9,
                            "{sigma} {q} {count} {delta}: {tight} {loose}"
                        ),
                        Err(error) => assert!(matches!(error, PrivacyError::NotComputable(_)), "{error}"),
                    }
                }
            }
        }
    }
}
