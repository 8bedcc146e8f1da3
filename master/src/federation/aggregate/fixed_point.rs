//! Fixed-point terms: multiples of 2^-32 as integers. Every way to round a product gives the same integer.

/// Fractional bits of a term.
pub(super) const FRACTION_BITS: u32 = 32;
/// The fractional bits of a term.
pub(super) const FRACTION: i64 = (1 << FRACTION_BITS) - 1;
/// One, as a fixed-point number.
pub(super) const ONE: f64 = (1u64 << FRACTION_BITS) as f64;
/// Adding 1.5 * 2^52 to a double of magnitude below 2^51 leaves its nearest integer in the low bits.
pub(super) const MAGIC: f64 = 6_755_399_441_055_744.0;

/// Which integers hold the terms of one update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// Below 2^51: rounded by adding [`MAGIC`].
    Narrow,
    /// Below 2^63, with room for a fraction.
    Word,
    /// Beyond that: needs two words.
    Wide,
}

impl Width {
    /// The width of terms of a magnitude below `bound` whole units.
    pub(super) fn of(bound: u64) -> Self {
        const NARROW: u64 = 1 << (51 - FRACTION_BITS);
        match bound {
            0..NARROW => Self::Narrow,
            NARROW..WORD_UNITS => Self::Word,
            _ => Self::Wide,
        }
    }
}

/// Whole units that fit into a word: 2^63 / 2^32, less one.
pub(super) const WORD_UNITS: u64 = (1 << (63 - FRACTION_BITS)) - 1;

/// The term of `value`, below 2^51. `scale` is the weight times [`ONE`].
///
/// The product has at most 24 + 29 bits when the weight is a whole number up to 2^29: it is exact,
/// and only the addition of the magic number rounds.
#[inline(always)]
pub(super) fn narrow(value: f32, scale: f64) -> i64 {
    (f64::from(value) * scale + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i64
}

/// The term of `value`, below 2^63.
#[inline(always)]
pub(super) fn word(value: f32, scale: f64) -> i64 {
    (f64::from(value) * scale).round_ties_even() as i64
}

/// The term of `value`, of any magnitude below 2^127.
#[inline(always)]
pub(super) fn wide(value: f32, scale: f64) -> i128 {
    (f64::from(value) * scale).round_ties_even() as i128
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_width_follows_from_the_bound() {
        let widths = [(1 << 19) - 1, 1 << 19, WORD_UNITS - 1, WORD_UNITS].map(Width::of);
        assert_eq!(widths, [Width::Narrow, Width::Word, Width::Word, Width::Wide]);
    }

    proptest! {
        #[test]
        fn all_widths_round_to_the_same_integer(value in -3f32..3.0, weight in 1u32..100_000) {
            let scale = f64::from(weight) * ONE;
            prop_assert_eq!(narrow(value, scale), word(value, scale));
            prop_assert_eq!(i128::from(word(value, scale)), wide(value, scale));
            prop_assert_eq!(narrow(-value, scale), -narrow(value, scale));
        }
    }
}
