//! A sum that does not depend on the order of its terms, to the bit.
//!
//! Every term is rounded to a multiple of 2^-32 by itself and added as an integer. Integer addition
//! is associative and commutative, so arrival order, threads and a replay after a crash cannot
//! change the result, and a term can be taken out again exactly. The rounding costs at most 2^-33
//! per term: far below an f32 model's own resolution.
//!
//! An element is one word of 64 bits while the terms fit. When they might not, the whole units are
//! carried into a second word, which is allocated then.

use super::{
    fixed_point::{self, FRACTION, FRACTION_BITS, ONE, WORD_UNITS, Width},
    packed,
};
use crate::memory;
use fl_quant::{Codes, Piece};
use pulp::Arch;
use std::sync::{
    Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicU64, Ordering},
};
use thiserror::Error;

/// Elements that one lock guards: small enough for two threads to rarely meet.
const STRIPE: usize = 4096;
/// Parts of the sum whose memory comes and goes on its own.
const SEGMENTS: usize = 8;
/// A sum below this size, in bytes, keeps its memory from round to round.
const SMALL: usize = 4 << 20;
/// Bound of the sum of all terms' magnitudes, in whole units: more than a million clients with the largest
/// number of samples and the largest magnitude that an update may have.
const SUM_UNITS: u64 = i64::MAX as u64;

/// The next term could make the sum overflow.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("weight times magnitude of the updates is beyond {SUM_UNITS}")]
pub struct SumOverflow;

/// `sum_k weight_k * x_k` over vectors x_k of one length: 8 bytes an element, 16 where terms are large or many.
///
/// Any number of threads may add at the same time. The first term takes the memory; that of a large sum is given
/// back while [`Self::drain`] reads it, when the result needs memory too.
#[derive(Debug)]
pub struct ExactSum {
    segments: Vec<OnceLock<Segment>>,
    /// Stripes of each segment but the last.
    segment: usize,
    len: usize,
    /// Bound of the magnitude of the sum, in whole units; at most [`SUM_UNITS`].
    magnitude: AtomicU64,
    arch: Arch,
}

/// Consecutive stripes.
type Segment = Vec<Mutex<Stripe>>;

/// Some elements: each is `high * 2^32 + low`.
#[derive(Debug)]
#[repr(C, align(64))]
struct Stripe {
    /// In place, so that a segment is one allocation, and at the start of a cache line. Beyond the end of the sum
    /// there are zeros.
    low: [i64; STRIPE],
    /// Whole units that were carried out of `low`.
    high: Option<Box<[i64; STRIPE]>>,
    /// Bound of the magnitude of `low`, in whole units; at most [`WORD_UNITS`].
    low_units: u64,
    /// How often `low` was carried.
    carries: u64,
}

impl Stripe {
    fn new() -> Self {
        Self { low: [0; STRIPE], high: None, low_units: 0, carries: 0 }
    }

    /// Makes room in the low words for a term below `units`, less than [`WORD_UNITS`].
    fn reserve(&mut self, units: u64) {
        if self.low_units + units > WORD_UNITS {
            self.carry();
        }
        self.low_units += units;
    }

    /// Moves the whole units of the low words into the high words.
    fn carry(&mut self) {
        let high = self.high.get_or_insert_with(|| Box::new([0; STRIPE]));
        for (high, low) in high.iter_mut().zip(&mut self.low) {
            *high += *low >> FRACTION_BITS;
            *low &= FRACTION;
        }
        self.low_units = 1;
        self.carries += 1;
    }

    /// Adds terms that need two words. Room for one unit is reserved.
    fn add_wide(&mut self, start: usize, values: &[f32], scale: f64) {
        let high = self.high.get_or_insert_with(|| Box::new([0; STRIPE]));
        for ((high, low), &value) in high[start..].iter_mut().zip(&mut self.low[start..]).zip(values) {
            let term = fixed_point::wide(value, scale);
            *high += (term >> FRACTION_BITS) as i64;
            *low += term as i64 & FRACTION;
        }
    }

    fn read(&self, out: &mut [f64]) {
        match &self.high {
            None => out.iter_mut().zip(&self.low).for_each(|(out, low)| *out = *low as f64 / ONE),
            Some(high) => {
                for ((out, low), high) in out.iter_mut().zip(&self.low).zip(&**high) {
                    *out = ((i128::from(*high) << FRACTION_BITS) + i128::from(*low)) as f64 / ONE;
                }
            }
        }
    }

    fn reset(&mut self) {
        self.low.fill(0);
        (self.high, self.low_units, self.carries) = (None, 0, 0);
    }
}

/// One update on its way into the sum.
struct Term {
    /// Weight times [`ONE`].
    scale: f64,
    width: Width,
    /// Bound of its magnitude in the low words, in whole units.
    units: u64,
    /// Where room for it is reserved: a stripe, and how often that had been carried.
    reserved: Option<(usize, u64)>,
}

impl Term {
    /// Reserves room once per stripe, and again after another update's carry has forgotten the reservation.
    fn reserve(&mut self, index: usize, stripe: &mut Stripe) {
        if self.reserved != Some((index, stripe.carries)) {
            stripe.reserve(self.units);
            self.reserved = Some((index, stripe.carries));
        }
    }
}

impl ExactSum {
    /// An empty sum over vectors of `len` elements.
    pub fn new(len: usize) -> Self {
        let stripes = len.div_ceil(STRIPE);
        let segment = stripes.div_ceil(SEGMENTS).max(1);
        let segments = (0..stripes.div_ceil(segment)).map(|_| OnceLock::new()).collect();
        Self { segments, segment, len, magnitude: AtomicU64::new(0), arch: Arch::new() }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a sum over vectors without elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds `weight * x`. `decode` gives x a piece at a time as `(offset, piece)`, every element once and none
    /// larger in magnitude than `max_abs`.
    ///
    /// # Errors
    /// If the sum could overflow; it is unchanged then.
    pub fn add(
        &self,
        weight: f64,
        max_abs: f32,
        decode: impl FnOnce(&mut dyn FnMut(usize, Piece<'_>)),
    ) -> Result<(), SumOverflow> {
        let units = units(weight, max_abs).ok_or(SumOverflow)?;
        self.magnitude
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |sum| {
                sum.checked_add(units).filter(|sum| *sum <= SUM_UNITS)
            })
            .map_err(|_| SumOverflow)?;
        self.accumulate(weight, units, decode);
        Ok(())
    }

    /// Takes out a term that was added with the same arguments: the sum is then as if it had never
    /// been there.
    pub fn subtract(&self, weight: f64, max_abs: f32, decode: impl FnOnce(&mut dyn FnMut(usize, Piece<'_>))) {
        // What was added has a bound.
        let Some(units) = units(weight, max_abs) else { return };
        self.accumulate(-weight, units, decode);
        self.magnitude.fetch_sub(units, Ordering::AcqRel);
    }

    fn accumulate(&self, weight: f64, units: u64, decode: impl FnOnce(&mut dyn FnMut(usize, Piece<'_>))) {
        let width = Width::of(units);
        // A wide term leaves only its fraction in the low word.
        let units = if width == Width::Wide { 1 } else { units };
        let mut term = Term { scale: weight * ONE, width, units, reserved: None };
        decode(&mut |offset, piece| match piece {
            Piece::Values(values) => self.add_values(offset, values, &mut term),
            Piece::Codes(codes) => self.add_codes(offset, codes, &mut term),
        });
    }

    fn add_values(&self, mut offset: usize, mut values: &[f32], term: &mut Term) {
        let scale = term.scale;
        while !values.is_empty() {
            let (index, start) = (offset / STRIPE, offset % STRIPE);
            let (now, later) = values.split_at(values.len().min(STRIPE - start));
            let mut stripe = self.stripe(index);
            term.reserve(index, &mut stripe);
            if term.width == Width::Wide {
                stripe.add_wide(start, now, scale);
            } else {
                let sums = &mut stripe.low[start..start + now.len()];
                match term.width {
                    Width::Narrow => self.arch.dispatch(|| add_narrow(sums, now, scale)),
                    _ => add_word(sums, now, scale),
                }
            }
            offset += now.len();
            values = later;
        }
    }

    fn add_codes(&self, mut offset: usize, mut codes: Codes<'_>, term: &mut Term) {
        let narrow = term.width == Width::Narrow;
        while !codes.is_empty() {
            let (index, start) = (offset / STRIPE, offset % STRIPE);
            let room = STRIPE - start;
            let whole = if codes.len() <= room { codes.len() } else { room / codes.block() };
            let (now, later) = codes.split(if narrow { whole.max(1) } else { 1 });
            if narrow && now.len() <= room {
                let mut stripe = self.stripe(index);
                term.reserve(index, &mut stripe);
                packed::add(self.arch, &mut stripe.low[start..start + now.len()], &now, term.scale);
            } else {
                // A block that reaches into the next stripe.
                let mut values = [0.0; Codes::MAX_BLOCK];
                let values = &mut values[..now.len()];
                now.decode_into(values);
                self.add_values(offset, values, term);
            }
            offset += now.len();
            codes = later;
        }
    }

    /// Resets to an empty sum. A large one takes memory with its next term.
    pub fn reset(&mut self) {
        if !self.is_small() {
            self.segments.iter_mut().for_each(|segment| drop(segment.take()));
        }
        self.clear();
    }

    /// [`Self::reset`] that keeps the memory.
    pub fn clear(&self) {
        self.segments.iter().filter_map(OnceLock::get).flatten().for_each(|stripe| lock(stripe).reset());
        self.magnitude.store(0, Ordering::Release);
    }

    /// The sum in order, some elements at a time, to be worked on in place: `f(offset, sums)`.
    pub fn for_each_block(&self, mut f: impl FnMut(usize, &mut [f64])) {
        let mut block = [0.0; STRIPE];
        for (index, segment) in self.segments.iter().enumerate() {
            self.read_segment(index, segment.get(), &mut block, &mut f);
        }
    }

    /// [`Self::for_each_block`] for the last time: gives the memory of a large sum back as it is read. The sum is to
    /// be [`Self::reset`] then.
    pub fn drain(&mut self, mut f: impl FnMut(usize, &mut [f64])) {
        let keep = self.is_small();
        let mut block = [0.0; STRIPE];
        for index in 0..self.segments.len() {
            self.read_segment(index, self.segments[index].get(), &mut block, &mut f);
            if !keep {
                self.segments[index].take();
            }
        }
    }

    /// Reads a segment, which is zero if it has no memory.
    fn read_segment(
        &self,
        index: usize,
        segment: Option<&Segment>,
        block: &mut [f64; STRIPE],
        f: &mut impl FnMut(usize, &mut [f64]),
    ) {
        let first = index * self.segment;
        for (at, index) in (first..self.len.div_ceil(STRIPE)).take(self.segment).enumerate() {
            let offset = index * STRIPE;
            let block = &mut block[..STRIPE.min(self.len - offset)];
            match segment {
                Some(segment) => lock(&segment[at]).read(block),
                None => block.fill(0.0),
            }
            f(offset, block);
        }
    }

    fn is_small(&self) -> bool {
        self.len.saturating_mul(size_of::<i64>()) < SMALL
    }

    /// A stripe for a term; the first one in its segment takes the memory.
    fn stripe(&self, index: usize) -> MutexGuard<'_, Stripe> {
        let segment = index / self.segment;
        let stripes = self.segments[segment].get_or_init(|| {
            let len = self.segment.min(self.len.div_ceil(STRIPE) - segment * self.segment);
            let mut stripes = Vec::with_capacity(memory::capacity::<Mutex<Stripe>>(len));
            stripes.resize_with(len, || Mutex::new(Stripe::new()));
            stripes
        });
        lock(&stripes[index % self.segment])
    }

    /// Every element of the sum in order: `f(index, sum)`.
    pub fn for_each(&self, mut f: impl FnMut(usize, f64)) {
        self.for_each_block(|offset, sums| sums.iter().enumerate().for_each(|(i, sum)| f(offset + i, *sum)));
    }
}

/// Sections under these locks do not panic; if one did, the sum would still be a sum.
fn lock(stripe: &Mutex<Stripe>) -> MutexGuard<'_, Stripe> {
    stripe.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `weight * max_abs` in whole units, rounded up, with room for the rounding of the terms.
fn units(weight: f64, max_abs: f32) -> Option<u64> {
    let product = weight * f64::from(max_abs);
    (product >= 0.0 && product < SUM_UNITS as f64).then(|| product as u64 + 1)
}

#[inline(always)]
fn add_narrow(sums: &mut [i64], values: &[f32], scale: f64) {
    for (sum, &value) in sums.iter_mut().zip(values) {
        *sum += fixed_point::narrow(value, scale);
    }
}

fn add_word(sums: &mut [i64], values: &[f32], scale: f64) {
    for (sum, &value) in sums.iter_mut().zip(values) {
        *sum += fixed_point::word(value, scale);
    }
}

#[cfg(test)]
#[path = "sum_tests.rs"]
mod tests;
