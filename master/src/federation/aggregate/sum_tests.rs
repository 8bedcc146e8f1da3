use super::*;
use proptest::prelude::*;

fn max_abs(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |max, v| max.max(v.abs()))
}

type Visit<'a> = dyn FnMut(usize, Piece<'_>) + 'a;

fn pieces(x: &[f32], chunk: usize) -> impl FnOnce(&mut Visit<'_>) {
    move |f| x.chunks(chunk).enumerate().for_each(|(i, c)| f(i * chunk, Piece::Values(c)))
}

fn add(sum: &ExactSum, weight: f64, x: &[f32], chunk: usize) -> Result<(), SumOverflow> {
    sum.add(weight, max_abs(x), pieces(x, chunk))
}

fn subtract(sum: &ExactSum, weight: f64, x: &[f32], chunk: usize) {
    sum.subtract(weight, max_abs(x), pieces(x, chunk));
}

fn values(sum: &ExactSum) -> Vec<f64> {
    let mut out = vec![0.0; sum.len()];
    sum.for_each(|i, v| out[i] = v);
    out
}

/// The definition: every term rounded to an integer of 128 bits, their sum rounded once.
fn expected<'a>(terms: impl IntoIterator<Item = (f64, &'a [f32])>, len: usize) -> Vec<f64> {
    let mut sums = vec![0i128; len];
    for (weight, x) in terms {
        for (sum, value) in sums.iter_mut().zip(x) {
            *sum += (f64::from(*value) * weight * 2f64.powi(32)).round_ties_even() as i128;
        }
    }
    sums.iter().map(|sum| *sum as f64 / 2f64.powi(32)).collect()
}

fn has_high_words(sum: &ExactSum) -> bool {
    sum.segments.iter().filter_map(OnceLock::get).flatten().any(|stripe| lock(stripe).high.is_some())
}

#[test]
fn a_term_that_could_overflow_is_refused_and_changes_nothing() {
    let sum = ExactSum::new(2);
    add(&sum, 1.0, &[1.0, -2.0], 1).unwrap();
    assert_eq!(add(&sum, 1e18, &[100.0, 0.0], 2), Err(SumOverflow));
    assert_eq!(add(&sum, f64::NAN, &[100.0, 0.0], 2), Err(SumOverflow));
    assert_eq!(add(&sum, -1.0, &[100.0, 0.0], 2), Err(SumOverflow));
    assert_eq!(values(&sum), [1.0, -2.0]);
}

/// What was refused as `norm_too_large` before: many clients with many samples, or one with very many.
#[test]
fn everything_that_an_update_may_claim_fits() {
    let clients = 100_000;
    let sum = ExactSum::new(2);
    for _ in 0..clients {
        add(&sum, 60_000.0, &[0.75, -65_536.0], 2).unwrap();
    }
    let total = 60_000.0 * f64::from(clients);
    assert_eq!(values(&sum), [0.75 * total, -65_536.0 * total]);
    let largest = fl_protocol::limits::MAX_NUM_SAMPLES as f64 * f64::from(fl_protocol::limits::MAX_DELTA_ABS);
    assert!(SUM_UNITS as f64 / largest > 1e6, "a round has at most a million updates");
}

#[test]
fn the_largest_updates_reach_the_limit_exactly() {
    let sum = ExactSum::new(1);
    let largest = |sum: &ExactSum| add(sum, 1e8, &[-65_536.0], 1);
    let mut terms = 0u64;
    // The last steps to the limit, as if most of the terms were there already.
    sum.magnitude.store(SUM_UNITS - 10 * 6_553_600_000_001, Ordering::Relaxed);
    while largest(&sum).is_ok() {
        terms += 1;
    }
    assert_eq!(terms, 10);
    assert_eq!(values(&sum), [-6.5536e13]);
    assert_eq!(sum.magnitude.load(Ordering::Relaxed), SUM_UNITS);
}

#[test]
fn small_federations_need_one_word_an_element() {
    let mut sum = ExactSum::new(10_000);
    let x = vec![0.5; 10_000];
    for _ in 0..1000 {
        // In small pieces: each stripe counts an update once.
        add(&sum, 60_000.0, &x, 64).unwrap();
    }
    assert!(!has_high_words(&sum), "{}", sum.stripe(0).low_units);
    add(&sum, 1e8, &[1000.0; 10_000], 64).unwrap();
    assert!(has_high_words(&sum));
    assert_eq!(values(&sum), vec![0.5 * 6e7 + 1e11; 10_000]);
    sum.reset();
    assert!(!has_high_words(&sum), "the next round is small again");
    assert_eq!(values(&sum), vec![0.0; 10_000]);
}

/// The result of a close takes as much memory as is given back meanwhile.
#[test]
fn a_large_sum_gives_its_memory_back_while_it_is_drained() {
    let len = SMALL / 8 + 5;
    let mut sum = ExactSum::new(len);
    let held = |sum: &ExactSum| sum.segments.iter().filter(|segment| segment.get().is_some()).count();
    assert_eq!(held(&sum), 0, "an empty sum takes no memory");
    let x: Vec<f32> = (0..len).map(|i| (i % 1000) as f32).collect();
    add(&sum, 2.0, &x, 4096).unwrap();
    let before = values(&sum);
    assert_eq!(held(&sum), SEGMENTS);
    let mut drained = Vec::new();
    sum.drain(|offset, block| {
        assert_eq!(offset, drained.len());
        drained.extend_from_slice(block);
    });
    assert_eq!((drained == before, held(&sum)), (true, 0));
    sum.reset();
    add(&sum, 1.0, &x[..1], 1).unwrap();
    assert_eq!((values(&sum)[len - 1], held(&sum)), (0.0, 1), "only what is touched takes memory");
}

/// Threads meet in the stripes while others carry: no reservation may be lost on the way.
#[test]
fn threads_do_not_change_the_sum() {
    let len = 10_000;
    let updates: Vec<Vec<f32>> =
        (0..64).map(|k| (0..len).map(|i| 1.0 + ((k * 31 + i) as f32).cos()).collect()).collect();
    // All terms have one sign: without carries, words would overflow after a few updates.
    let weight = |k: usize| 3e8 + k as f64;
    let parallel = ExactSum::new(len);
    std::thread::scope(|scope| {
        for part in 0..4 {
            let (parallel, updates) = (&parallel, &updates);
            scope.spawn(move || {
                for k in (part..64).step_by(4).collect::<Vec<_>>().into_iter().rev() {
                    add(parallel, weight(k), &updates[k], 77).unwrap();
                }
            });
        }
    });
    let expected = expected(updates.iter().enumerate().map(|(k, x)| (weight(k), x.as_slice())), len);
    assert_eq!(values(&parallel), expected);
}

/// Magnitudes and weights far apart: words, carries and terms of two words.
fn terms() -> impl Strategy<Value = Vec<(f64, Vec<f32>)>> {
    let value = prop_oneof![-1e-3f32..1e-3, -1e3f32..1e3, -65_536f32..65_536.0, Just(65_536.0), Just(0.0)];
    let weight = prop_oneof![1u32..1000, 1u32..100_000_000, Just(100_000_000)];
    prop::collection::vec((weight.prop_map(f64::from), prop::collection::vec(value, 5)), 1..40)
}

proptest! {
    #[test]
    fn the_sum_is_that_of_128_bits(terms in terms(), chunk in 1usize..6) {
        let sum = ExactSum::new(5);
        for (weight, x) in &terms {
            add(&sum, *weight, x, chunk).unwrap();
        }
        prop_assert_eq!(values(&sum), expected(terms.iter().map(|(w, x)| (*w, x.as_slice())), 5));
    }

    #[test]
    fn order_and_removal_do_not_change_the_sum(terms in terms(), others in terms(), shuffle in any::<u64>()) {
        let sum = ExactSum::new(5);
        // Some terms come and go in between.
        let mut steps: Vec<(bool, &(f64, Vec<f32>))> = terms.iter().map(|term| (true, term)).collect();
        steps.extend(others.iter().flat_map(|term| [(true, term), (false, term)]));
        let mut order: Vec<usize> = (0..steps.len()).collect();
        order.sort_by_key(|&i| (i as u64 + 1).wrapping_mul(shuffle | 1).rotate_left(17));
        let (adds, removals): (Vec<_>, Vec<_>) = order.into_iter().map(|i| steps[i]).partition(|step| step.0);
        for (index, (_, (weight, x))) in adds.iter().enumerate() {
            add(&sum, *weight, x, 1 + index % 5).unwrap();
        }
        for (index, (_, (weight, x))) in removals.iter().enumerate() {
            subtract(&sum, *weight, x, 1 + index % 3);
        }
        prop_assert_eq!(values(&sum), expected(terms.iter().map(|(w, x)| (*w, x.as_slice())), 5));
        let left: u64 = terms.iter().map(|(w, x)| units(*w, max_abs(x)).unwrap()).sum();
        prop_assert_eq!(sum.magnitude.load(Ordering::Relaxed), left);
    }
}
