//! Adaptive probabilities of sixteen symbols, in 15-bit fixed point.
//!
//! A model is a cumulative distribution. After each symbol its bounds move towards that symbol by a
//! fraction 2^-shift of the distance; the shift grows with the symbols seen. Sixteen 16-bit bounds fit one
//! vector register, so search and update take a few instructions.

use bytemuck::{cast, cast_ref};
use wide::{i8x16, i16x8};

/// Symbols of the alphabet.
pub const SYMBOLS: usize = 16;

/// The probabilities of a model sum to two to this power.
pub const PRECISION: u32 = 15;

/// Initial frequencies, in 2^-15: a two-sided geometric distribution.
const PRIOR: [i16; SYMBOLS] =
    [16_384, 4_096, 4_096, 1_536, 1_536, 768, 768, 768, 768, 512, 512, 256, 256, 208, 208, 96];

/// Adaptation shift of a new model.
const FIRST_SHIFT: u8 = 3;

/// Valid final shifts: small ones adapt to changing statistics, large ones estimate stable statistics more
/// precisely.
pub const LAST_SHIFTS: std::ops::RangeInclusive<u8> = 5..=8;

/// Symbols after which the shift grows by one.
const SHIFT_AFTER: u8 = 8;

/// A symbol's part of `0..2^15`.
#[derive(Debug, Clone, Copy)]
pub struct Interval {
    /// Sum of the frequencies of the symbols before it.
    pub start: u32,
    /// Its own frequency, at least 1 and less than 2^15.
    pub frequency: u32,
}

/// At least the number of contexts of both quantizers; a power of two makes the bounds check a mask.
const TABLE: usize = 1024;

/// Cumulative frequencies: the sum of those before each symbol; the first is 0.
type Bounds = [i16x8; 2];

/// The models of all contexts.
#[derive(Debug, Clone)]
pub struct Models {
    bounds: Box<[Bounds; TABLE]>,
    /// Per context: number of symbols seen, up to the one at which the shift is final.
    seen: Box<[u8; TABLE]>,
    last_shift: u8,
}

impl Default for Models {
    fn default() -> Self {
        Self { bounds: Box::new([Bounds::default(); TABLE]), seen: Box::new([0; TABLE]), last_shift: 0 }
    }
}

impl Models {
    /// Resets `contexts` models to the prior; their shift grows to `last_shift`.
    pub fn reset(&mut self, contexts: usize, last_shift: u8) {
        self.last_shift = last_shift;
        let mut first = [0; SYMBOLS];
        for symbol in 1..SYMBOLS {
            first[symbol] = first[symbol - 1] + PRIOR[symbol - 1];
        }
        self.bounds[..contexts].fill(cast(first));
        self.seen[..contexts].fill(0);
    }

    #[inline(always)]
    fn bounds(&self, context: usize) -> &Bounds {
        &self.bounds[context % TABLE]
    }

    /// The interval of `symbol`.
    #[inline(always)]
    pub fn interval(&self, context: usize, symbol: usize) -> Interval {
        interval(self.bounds(context), symbol)
    }

    /// The symbol whose interval contains `slot`, and the interval.
    #[inline(always)]
    pub fn find(&self, context: usize, slot: u32) -> (usize, Interval) {
        let bounds = self.bounds(context);
        let slots = i16x8::splat(slot as i16);
        let above: [i16x8; 2] = [bounds[0].simd_gt(slots), bounds[1].simd_gt(slots)];
        let above = i8x16::from_i16x16_saturate(cast(above)).to_bitmask();
        // Bounds ascend: the symbol is the last one whose bound is not above the slot. The first bound is 0.
        let symbol = (SYMBOLS as u32 - 1).wrapping_sub(above.count_ones()) as usize % SYMBOLS;
        (symbol, interval(bounds, symbol))
    }

    /// Adapts the model of `context` to `symbol`.
    #[inline(always)]
    pub fn update(&mut self, context: usize, symbol: usize) {
        let seen = &mut self.seen[context % TABLE];
        let shift = FIRST_SHIFT + *seen / SHIFT_AFTER;
        *seen += u8::from(shift < self.last_shift);
        let targets = &TARGETS[symbol % SYMBOLS];
        let bounds = &mut self.bounds[context % TABLE];
        // The shift rounds down, which keeps every frequency at 1 or more.
        for (bounds, targets) in bounds.iter_mut().zip(targets) {
            *bounds += (*targets - *bounds) >> i32::from(shift);
        }
    }

    /// Cost in bits of each symbol in a context.
    pub fn costs(&self, context: usize) -> [f32; SYMBOLS] {
        let bounds = self.bounds(context);
        std::array::from_fn(|symbol| PRECISION as f32 - log2(interval(bounds, symbol).frequency))
    }
}

/// Binary logarithm to within 0.01: precise enough to compare costs.
#[inline(always)]
pub fn log2(value: u32) -> f32 {
    let bits = (value as f32).to_bits();
    let mantissa = f32::from_bits(bits & 0x007f_ffff | 0x3f80_0000);
    let fraction = (-0.344_845 * mantissa + 2.024_658) * mantissa - 1.674_873;
    (bits >> 23) as f32 - 127.0 + fraction
}

#[inline(always)]
fn interval(bounds: &Bounds, symbol: usize) -> Interval {
    let bounds: &[i16; SYMBOLS] = cast_ref(bounds);
    let start = bounds[symbol % SYMBOLS] as u32;
    // The end of the last symbol is 2^15; the index wraps to bound 0, which is the same modulo 2^15.
    let end = bounds[(symbol + 1) % SYMBOLS] as u32;
    Interval { start, frequency: end.wrapping_sub(start) & 0x7fff }
}

/// The limit of the bounds if one symbol repeats endlessly: every other symbol keeps a frequency of 1.
static TARGETS: [Bounds; SYMBOLS] = {
    let mut all = [[i16x8::ZERO; 2]; SYMBOLS];
    let mut symbol = 0;
    while symbol < SYMBOLS {
        let mut targets = [[0; SYMBOLS / 2]; 2];
        let mut i = 0;
        while i < SYMBOLS {
            let target = if i <= symbol { i } else { 32_768 - SYMBOLS + i };
            targets[i / 8][i % 8] = target as i16;
            i += 1;
        }
        all[symbol] = [i16x8::new(targets[0]), i16x8::new(targets[1])];
        symbol += 1;
    }
    all
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prior_sums_to_one() {
        assert_eq!(PRIOR.iter().map(|f| *f as i32).sum::<i32>(), 1 << PRECISION);
    }

    #[test]
    fn every_symbol_keeps_a_place_whatever_is_seen() {
        let mut models = Models::default();
        models.reset(2, *LAST_SHIFTS.end());
        let mut state = 1u32;
        for i in 0..100_000u32 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Long runs, then noise.
            let symbol =
                if i % 4_000 < 3_000 { (i / 4_000) as usize } else { (state >> 24) as usize } % SYMBOLS;
            models.update(1, symbol);
            let mut at = 0;
            for symbol in 0..SYMBOLS {
                let found = models.interval(1, symbol);
                assert_eq!(found.start, at);
                assert!(found.frequency > 0 && found.frequency < 1 << PRECISION);
                at += found.frequency;
            }
            assert_eq!(at, 1 << PRECISION);
            let slot = state >> 17;
            let (symbol, found) = models.find(1, slot);
            assert!((found.start..found.start + found.frequency).contains(&slot), "{symbol}");
        }
    }
}
