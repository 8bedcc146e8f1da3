//! A sum that does not depend on the order of its terms, to the bit.
//!
//! Every term is rounded to a multiple of 2^-32 by itself and added as an integer. Integer addition
//! is associative and commutative, so arrival order, threads and a replay after a crash cannot
//! change the result, and a term can be taken out again exactly. The rounding costs at most 2^-33
//! per term: far below an f32 model's own resolution.

use super::packed;
use fl_quant::{Codes, Piece};
use pulp::Arch;
use std::sync::{
    Mutex,
    atomic::{AtomicU64, Ordering},
};
use thiserror::Error;

/// Fractional bits of the fixed-point terms.
const FRACTION_BITS: u32 = 32;
/// One, as a fixed-point number.
const ONE: f64 = (1u64 << FRACTION_BITS) as f64;
/// Adding 1.5 * 2^52 to a double of magnitude below 2^51 leaves its nearest integer in the low bits.
pub(super) const MAGIC: f64 = 6_755_399_441_055_744.0;
/// Terms below this magnitude can take the fast way: 2^51 / 2^32.
const FAST_LIMIT: f64 = (1u64 << (51 - FRACTION_BITS)) as f64;
/// Bound of the sum of all terms' magnitudes: 2^63 / 2^32, less one for their rounding.
const SUM_LIMIT: u64 = (1 << (63 - FRACTION_BITS)) - 1;
/// Elements that one lock guards: small enough for two threads to rarely meet.
const STRIPE: usize = 4096;

/// The next term could make the sum overflow.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("weight times magnitude of the updates is beyond {SUM_LIMIT}")]
pub struct SumOverflow;

/// `sum_k weight_k * x_k` over vectors x_k of one length, 8 bytes an element.
///
/// Any number of threads may add at the same time.
#[derive(Debug)]
pub struct ExactSum {
    stripes: Vec<Mutex<Box<[i64]>>>,
    len: usize,
    /// Sum of all terms' bounds, rounded up: below [`SUM_LIMIT`], so no element can wrap.
    magnitude: AtomicU64,
    arch: Arch,
}

impl ExactSum {
    /// A sum of no terms, over vectors of `len` elements.
    pub fn new(len: usize) -> Self {
        let stripes = (0..len.div_ceil(STRIPE))
            .map(|i| Mutex::new(vec![0i64; STRIPE.min(len - i * STRIPE)].into_boxed_slice()))
            .collect();
        Self { stripes, len, magnitude: AtomicU64::new(0), arch: Arch::new() }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a sum over vectors without elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Largest product of weight and magnitude that each of `terms` terms may have.
    pub fn share(terms: usize) -> f64 {
        (SUM_LIMIT / terms.max(1) as u64).saturating_sub(1) as f64
    }

    /// Adds `weight * x`. `decode` gives x a piece at a time as `(offset, piece)`, no element larger in
    /// magnitude than `max_abs`.
    ///
    /// # Errors
    /// If the sum could overflow; it is unchanged then.
    pub fn add(
        &self,
        weight: f64,
        max_abs: f32,
        decode: impl FnOnce(&mut dyn FnMut(usize, Piece<'_>)),
    ) -> Result<(), SumOverflow> {
        let bound = bound(weight, max_abs).ok_or(SumOverflow)?;
        self.magnitude
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |sum| {
                sum.checked_add(bound).filter(|sum| *sum <= SUM_LIMIT)
            })
            .map_err(|_| SumOverflow)?;
        self.accumulate(weight, max_abs, decode);
        Ok(())
    }

    /// Takes out a term that was added with the same arguments: the sum is then as if it had never
    /// been there.
    pub fn subtract(&self, weight: f64, max_abs: f32, decode: impl FnOnce(&mut dyn FnMut(usize, Piece<'_>))) {
        self.accumulate(-weight, max_abs, decode);
        if let Some(bound) = bound(weight, max_abs) {
            self.magnitude.fetch_sub(bound, Ordering::AcqRel);
        }
    }

    fn accumulate(&self, weight: f64, max_abs: f32, decode: impl FnOnce(&mut dyn FnMut(usize, Piece<'_>))) {
        let scale = weight * ONE;
        let fast = weight.abs() * f64::from(max_abs) < FAST_LIMIT;
        decode(&mut |offset, piece| match piece {
            Piece::Values(values) => self.add_values(offset, values, scale, fast),
            Piece::Codes(codes) => self.add_codes(offset, codes, scale, fast),
        });
    }

    fn add_values(&self, mut offset: usize, mut values: &[f32], scale: f64, fast: bool) {
        while !values.is_empty() {
            let start = offset % STRIPE;
            let (now, later) = values.split_at(values.len().min(STRIPE - start));
            let mut stripe = lock(&self.stripes[offset / STRIPE]);
            let sums = &mut stripe[start..start + now.len()];
            match fast {
                true => self.arch.dispatch(|| add_fast(sums, now, scale)),
                false => add_large(sums, now, scale),
            }
            offset += now.len();
            values = later;
        }
    }

    fn add_codes(&self, mut offset: usize, mut codes: Codes<'_>, scale: f64, fast: bool) {
        while !codes.is_empty() {
            let start = offset % STRIPE;
            let room = STRIPE - start;
            let whole = if codes.len() <= room { codes.len() } else { room / codes.block() };
            let (now, later) = codes.split(if fast { whole.max(1) } else { 1 });
            if fast && now.len() <= room {
                let mut stripe = lock(&self.stripes[offset / STRIPE]);
                packed::add(self.arch, &mut stripe[start..start + now.len()], &now, scale);
            } else {
                // A block that reaches into the next stripe.
                let mut values = [0.0; Codes::MAX_BLOCK];
                let values = &mut values[..now.len()];
                now.decode_into(values);
                self.add_values(offset, values, scale, fast);
            }
            offset += now.len();
            codes = later;
        }
    }

    /// Back to a sum of no terms.
    pub fn reset(&self) {
        for stripe in &self.stripes {
            lock(stripe).fill(0);
        }
        self.magnitude.store(0, Ordering::Release);
    }

    /// Every element of the sum in order: `f(index, sum)`.
    pub fn for_each(&self, mut f: impl FnMut(usize, f64)) {
        for (number, stripe) in self.stripes.iter().enumerate() {
            for (i, &sum) in lock(stripe).iter().enumerate() {
                f(number * STRIPE + i, sum as f64 / ONE);
            }
        }
    }
}

/// A panic inside the short sections under these locks is impossible; if there were one, the sum
/// would still be a sum.
fn lock(stripe: &Mutex<Box<[i64]>>) -> std::sync::MutexGuard<'_, Box<[i64]>> {
    stripe.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// `weight * max_abs`, rounded up, with room for the rounding of the terms.
fn bound(weight: f64, max_abs: f32) -> Option<u64> {
    let product = weight * f64::from(max_abs);
    (product >= 0.0 && product < SUM_LIMIT as f64).then(|| product as u64 + 1)
}

/// The product has at most 24 + 29 bits when the weight is a whole number up to 2^29: it is exact,
/// and only the addition of the magic number rounds.
#[inline(always)]
pub(super) fn fixed(value: f32, scale: f64) -> i64 {
    (f64::from(value) * scale + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i64
}

#[inline(always)]
fn add_fast(sums: &mut [i64], values: &[f32], scale: f64) {
    for (sum, &value) in sums.iter_mut().zip(values) {
        *sum = sum.wrapping_add(fixed(value, scale));
    }
}

/// The same function of value and scale as [`fixed`], for terms of any magnitude.
fn add_large(sums: &mut [i64], values: &[f32], scale: f64) {
    for (sum, &value) in sums.iter_mut().zip(values) {
        *sum = sum.wrapping_add((f64::from(value) * scale).round_ties_even() as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn max_abs(x: &[f32]) -> f32 {
        x.iter().fold(0.0, |max, v| max.max(v.abs()))
    }

    fn add(sum: &ExactSum, weight: f64, x: &[f32], chunk: usize) -> Result<(), SumOverflow> {
        sum.add(weight, max_abs(x), |f| {
            x.chunks(chunk).enumerate().for_each(|(i, c)| f(i * chunk, Piece::Values(c)))
        })
    }

    fn values(sum: &ExactSum) -> Vec<f64> {
        let mut out = vec![0.0; sum.len()];
        sum.for_each(|i, v| out[i] = v);
        out
    }

    #[test]
    fn both_ways_of_rounding_are_one_function() {
        let x: Vec<f32> = (0..1000).map(|i| ((i * 2_654_435_761u64) as f32).sin() * 3.0).collect();
        for weight in [1.0, 7.0, 599.0, 100_000.0] {
            let (mut a, mut b) = (vec![0; 1000], vec![0; 1000]);
            add_fast(&mut a, &x, weight * ONE);
            add_large(&mut b, &x, weight * ONE);
            assert_eq!(a, b);
        }
    }

    #[test]
    fn a_term_that_could_overflow_is_refused_and_changes_nothing() {
        let sum = ExactSum::new(2);
        add(&sum, 1.0, &[1.0, -2.0], 1).unwrap();
        assert_eq!(add(&sum, 1e8, &[100.0, 0.0], 2), Err(SumOverflow));
        assert_eq!(add(&sum, f64::NAN, &[100.0, 0.0], 2), Err(SumOverflow));
        assert_eq!(values(&sum), [1.0, -2.0]);
    }

    #[test]
    fn every_term_within_its_share_fits() {
        let terms = 1000;
        let sum = ExactSum::new(1);
        let weight = (ExactSum::share(terms) / 8.0).floor();
        for _ in 0..terms {
            add(&sum, weight, &[8.0], 1).unwrap();
        }
        assert_eq!(values(&sum)[0], weight * 8.0 * terms as f64);
    }

    #[test]
    fn threads_do_not_change_the_sum() {
        let updates: Vec<Vec<f32>> =
            (0..64).map(|k| (0..10_000).map(|i| ((k * 31 + i) as f32).cos()).collect()).collect();
        let serial = ExactSum::new(10_000);
        updates.iter().enumerate().for_each(|(k, x)| add(&serial, (k + 1) as f64, x, 1024).unwrap());
        let parallel = ExactSum::new(10_000);
        std::thread::scope(|scope| {
            for part in 0..4 {
                let (parallel, updates) = (&parallel, &updates);
                scope.spawn(move || {
                    for k in (part..64).step_by(4).collect::<Vec<_>>().into_iter().rev() {
                        add(parallel, (k + 1) as f64, &updates[k], 777).unwrap();
                    }
                });
            }
        });
        assert_eq!(values(&serial), values(&parallel));
    }

    proptest! {
        #[test]
        fn order_and_removal_do_not_change_the_sum(
            terms in prop::collection::vec((1u32..100_000, prop::collection::vec(-1e3f32..1e3, 5)), 1..20),
            shuffle in any::<u64>(),
        ) {
            let sum = ExactSum::new(5);
            for (weight, x) in &terms {
                add(&sum, f64::from(*weight), x, 2).unwrap();
            }
            let again = ExactSum::new(5);
            let mut order: Vec<usize> = (0..terms.len()).collect();
            order.sort_by_key(|&i| (i as u64 + 1).wrapping_mul(shuffle | 1).rotate_left(17));
            add(&again, 3.0, &[1.5; 5], 5).unwrap();
            for i in order {
                add(&again, f64::from(terms[i].0), &terms[i].1, 3).unwrap();
            }
            again.subtract(3.0, 1.5, |f| f(0, Piece::Values(&[1.5; 5])));
            prop_assert_eq!(values(&sum), values(&again));
            for (i, value) in values(&sum).into_iter().enumerate() {
                let plain: f64 = terms.iter().map(|(w, x)| f64::from(*w) * f64::from(x[i])).sum();
                prop_assert!((value - plain).abs() < 1e-6);
            }
        }
    }
}
