//! Run-time dispatch: compiles plain loops for each vector instruction set and runs the widest that the
//! machine has.

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
/// the baseline. The bound is `FnMut` because calling a closure through `FnOnce` goes through a shim that
/// cannot be marked `#[inline(always)]`.
#[inline(always)]
pub fn vectorized<R>(work: impl FnMut() -> R) -> R {
    #[cfg(test)]
    if tests::PORTABLE.get() {
        return portable(work);
    }
    Arch::new().dispatch(Vectorized(work))
}

/// The copy for machines without vector extensions.
#[cfg(test)]
fn portable<R>(work: impl FnMut() -> R) -> R {
    tests::PORTABLE_RUNS.set(tests::PORTABLE_RUNS.get() + 1);
    Arch::Scalar.dispatch(Vectorized(work))
}

/// 2^23: adding it to a small f32 rounds away the fraction and leaves a whole number in the lowest bits.
const WHOLE: f32 = 8_388_608.0;

/// The largest whole number that is not above `v`, for 0 <= v < 2^22. (A cast to an integer saturates, and
/// saturating casts are not vectorised.)
#[inline(always)]
pub fn floor(v: f32) -> f32 {
    let nearest = (v + WHOLE) - WHOLE;
    if nearest > v { nearest - 1.0 } else { nearest }
}

/// Converts a whole number from 0 to 2^22 to an integer.
#[inline(always)]
pub fn to_integer(whole: f32) -> u32 {
    (whole + WHOLE).to_bits() & 0x007f_ffff
}

/// `to_integer(floor(v))` in fewer instructions.
#[inline(always)]
pub fn floor_to_integer(v: f32) -> u32 {
    let nearest = v + WHOLE;
    (nearest.to_bits() & 0x007f_ffff) - u32::from(nearest - WHOLE > v)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Encoder, Scheme, Spec, Stream, Target, encode_update};
    use proptest::prelude::*;
    use std::cell::Cell;

    thread_local! {
        /// Whether this thread takes the portable path.
        pub static PORTABLE: Cell<bool> = const { Cell::new(false) };
        /// How often it did.
        pub static PORTABLE_RUNS: Cell<u32> = const { Cell::new(0) };
    }

    /// Runs `work` on one of the paths. Sets the path every time, because an earlier `work` may have panicked.
    fn on_path<R>(portable: bool, work: impl FnOnce() -> R) -> R {
        PORTABLE.set(portable);
        let result = work();
        PORTABLE.set(false);
        result
    }

    #[test]
    fn whole_numbers_are_those_of_a_cast() {
        for i in 0..4_194_304u32 {
            for v in [i as f32, i as f32 + 0.25, i as f32 + 0.5, (i as f32 + 1.0).next_down()] {
                assert_eq!(floor(v), (v as i32) as f32);
                assert_eq!(floor_to_integer(v), v as u32);
            }
            assert_eq!(to_integer(i as f32), i);
        }
    }

    #[test]
    fn tests_can_choose_the_path() {
        let runs = || PORTABLE_RUNS.get();
        vectorized(|| ());
        assert_eq!(runs(), 0);
        on_path(true, || vectorized(|| ()));
        assert_eq!(runs(), 1);
        // The other path must be another one, or the comparison below compares nothing.
        let scalar = matches!(Arch::new(), Arch::Scalar);
        assert!(!scalar || !cfg!(target_arch = "x86_64"), "this machine has no AVX2");
    }

    /// Streams, and the bits of every decoded value by each way of decoding.
    type Trace = (Vec<Vec<u8>>, Vec<[u32; 2]>);

    fn trace(x: &[f32], shape: &[usize], spec: &Spec) -> Trace {
        let mut streams = Vec::new();
        encode_update(&mut Encoder::default(), x, &[shape.to_vec()], spec, &mut streams).unwrap();
        let stream = Stream::parse(&streams[0], x.len()).unwrap();
        let mut chunks = Vec::new();
        stream.for_each_chunk(|_, values| chunks.extend_from_slice(values));
        let mut pieces = vec![0.0; x.len()];
        stream.for_each_piece(|offset, piece| piece.decode_into(&mut pieces[offset..offset + piece.len()]));
        let values = chunks.iter().zip(&pieces).map(|(a, b)| [a.to_bits(), b.to_bits()]).collect();
        (streams, values)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Streams written on one machine must decode to the same bits on any other.
        #[test]
        fn the_portable_path_gives_the_same_bits(
            rows in 1usize..9,
            cols in 1usize..700,
            exponents in -20i32..0,
            seed: u64,
            bits in 1u8..=8,
        ) {
            let mut state = seed | 1;
            let x: Vec<f32> = (0..rows * cols).map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let unit = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
                if state & 0x30 == 0 { 0.0 } else { unit * f32::powi(2.0, (state % 24) as i32 + exponents) }
            }).collect();
            for scheme in Scheme::ALL {
                for (entropy, rdo) in [(false, false), (true, false), (true, true)] {
                    for target in [Target::Width, Target::Nmse(0.01)] {
                        let spec = Spec { scheme, bits, seed, entropy, rdo, target };
                        let vector = on_path(false, || trace(&x, &[rows, cols], &spec));
                        let portable = on_path(true, || trace(&x, &[rows, cols], &spec));
                        prop_assert!(vector == portable, "{:?}", spec);
                    }
                }
            }
        }
    }
}
