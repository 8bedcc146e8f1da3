//! Compiles plain loops for the widest vectors that the machine has.

use pulp::{Arch, Simd, WithSimd};

struct Vectorized<F>(F);

impl<R, F: FnMut() -> R> WithSimd for Vectorized<F> {
    type Output = R;

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, _: S) -> R {
        (self.0)()
    }
}

/// Runs `work` in a copy that is compiled for this machine's vectors.
///
/// The closure and what it calls must be `#[inline(always)]`: whatever is not inlined is compiled for
/// the baseline. The bound is `FnMut` on purpose: calling a closure through `FnOnce` goes through a
/// shim that no attribute reaches.
#[inline(always)]
pub fn vectorized<R>(work: impl FnMut() -> R) -> R {
    Arch::new().dispatch(Vectorized(work))
}

/// Adding it leaves an f32 without fractional bits, and a small whole number in its lowest bits.
const WHOLE: f32 = 8_388_608.0;

/// The largest whole number that is not above `v`, for 0 <= v < 2^22. (A cast to an integer and back
/// saturates, which compilers do one element at a time.)
#[inline(always)]
pub fn floor(v: f32) -> f32 {
    let nearest = (v + WHOLE) - WHOLE;
    if nearest > v { nearest - 1.0 } else { nearest }
}

/// A whole number from 0 to 2^22 as an integer.
#[inline(always)]
pub fn to_integer(whole: f32) -> u32 {
    (whole + WHOLE).to_bits() & 0x007f_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_those_of_a_cast() {
        for i in 0..4_194_304u32 {
            for v in [i as f32, i as f32 + 0.25, i as f32 + 0.5, (i as f32 + 1.0).next_down()] {
                assert_eq!(floor(v), (v as i32) as f32);
            }
            assert_eq!(to_integer(i as f32), i);
        }
    }
}
