//! Loads, stores and loops over vectors of any width.

use crate::fused::parallel::Threads;
use pulp::{Simd, WithSimd};

/// Values that one piece of an elementwise operation is a multiple of.
const PIECE: usize = 16;

/// `VECTORS` vectors from the start of `row`; with `TAIL`, the last one is what is left of `row`.
#[inline(always)]
pub(crate) fn load<S: Simd, const VECTORS: usize, const TAIL: bool>(
    simd: S,
    row: &[f32],
) -> [S::f32s; VECTORS] {
    let (full, rest) = S::as_simd_f32s(row);
    let mut out = [simd.splat_f32s(0.0); VECTORS];
    let whole = if TAIL { VECTORS - 1 } else { VECTORS };
    let full = &full[..whole];
    // A plain loop: closures are not always inlined, and then compiled without the vector instructions.
    for v in 0..whole {
        out[v] = full[v];
    }
    if TAIL {
        out[VECTORS - 1] = simd.partial_load_f32s(rest);
    }
    out
}

/// Stores what [`load`] would read.
#[inline(always)]
pub(crate) fn store<S: Simd, const VECTORS: usize, const TAIL: bool>(
    simd: S,
    row: &mut [f32],
    values: [S::f32s; VECTORS],
) {
    let (full, rest) = S::as_mut_simd_f32s(row);
    let whole = if TAIL { VECTORS - 1 } else { VECTORS };
    let full = &mut full[..whole];
    for v in 0..whole {
        full[v] = values[v];
    }
    if TAIL {
        simd.partial_store_f32s(rest, values[VECTORS - 1]);
    }
}

/// `max(x, 0)`; a NaN stays one.
#[inline(always)]
pub(crate) fn relu<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let zero = simd.splat_f32s(0.0);
    // `max` of scalar code would drop a NaN.
    simd.select_f32s(simd.less_than_f32s(x, zero), zero, x)
}

/// `value` where `positive > 0`, else 0.
#[inline(always)]
pub(crate) fn keep_positive<S: Simd>(simd: S, positive: S::f32s, value: S::f32s) -> S::f32s {
    let zero = simd.splat_f32s(0.0);
    simd.select_f32s(simd.greater_than_f32s(positive, zero), value, zero)
}

/// A function of one value.
pub(crate) trait Unary: Copy + Sync {
    fn at<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s;
}

/// A function of two values.
pub(crate) trait Binary: Copy + Sync {
    fn at<S: Simd>(self, simd: S, a: S::f32s, b: S::f32s) -> S::f32s;
}

/// `y = f(x)`.
pub(crate) struct Map<'a, F>(pub(crate) F, pub(crate) &'a [f32], pub(crate) &'a mut [f32]);

impl<F: Unary> WithSimd for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(f, x, y) = self;
        let (x, x_rest) = S::as_simd_f32s(x);
        let (y, y_rest) = S::as_mut_simd_f32s(y);
        for (y, x) in y.iter_mut().zip(x) {
            *y = f.at(simd, *x);
        }
        if !y_rest.is_empty() {
            let value = f.at(simd, simd.partial_load_f32s(x_rest));
            simd.partial_store_f32s(y_rest, value);
        }
    }
}

/// `y = f(a, b)`.
pub(crate) struct Zip<'a, F>(
    pub(crate) F,
    pub(crate) &'a [f32],
    pub(crate) &'a [f32],
    pub(crate) &'a mut [f32],
);

impl<F: Binary> WithSimd for Zip<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(f, a, b, y) = self;
        let (a, a_rest) = S::as_simd_f32s(a);
        let (b, b_rest) = S::as_simd_f32s(b);
        let (y, y_rest) = S::as_mut_simd_f32s(y);
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y = f.at(simd, *a, *b);
        }
        if !y_rest.is_empty() {
            let value = f.at(simd, simd.partial_load_f32s(a_rest), simd.partial_load_f32s(b_rest));
            simd.partial_store_f32s(y_rest, value);
        }
    }
}

/// `y = f(a, y)`.
pub(crate) struct ZipInPlace<'a, F>(pub(crate) F, pub(crate) &'a [f32], pub(crate) &'a mut [f32]);

impl<F: Binary> WithSimd for ZipInPlace<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self(f, a, y) = self;
        let (a, a_rest) = S::as_simd_f32s(a);
        let (y, y_rest) = S::as_mut_simd_f32s(y);
        for (y, a) in y.iter_mut().zip(a) {
            *y = f.at(simd, *a, *y);
        }
        if !y_rest.is_empty() {
            let value = f.at(simd, simd.partial_load_f32s(a_rest), simd.partial_load_f32s(y_rest));
            simd.partial_store_f32s(y_rest, value);
        }
    }
}

/// Calls `f(start, piece)` on pieces of `values`; `cost` is what one value takes, in multiply-adds.
pub(crate) fn pieces(
    threads: &Threads,
    values: &mut [f32],
    cost: usize,
    f: impl Fn(usize, &mut [f32]) + Sync,
) {
    if values.is_empty() {
        return;
    }
    threads.rows(values, PIECE, cost * PIECE, |first, piece| f(first * PIECE, piece));
}

#[cfg(test)]
pub(crate) mod tests {
    //! What the tests of the kernels share.

    /// Values between -1 and 1 that depend on `seed`.
    pub(crate) fn noise(len: usize, seed: u64) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// Fails unless the difference of the vectors is at most `bound` of the length of `expected`.
    #[track_caller]
    /// The output of `f`, and the slopes of its product with `dy` along every value, by central differences.
    pub(crate) fn output_and_slopes(
        values: [&Vec<f32>; 5],
        dy: &[f32],
        f: impl Fn(&[Vec<f64>; 5]) -> Vec<f64>,
    ) -> Vec<Vec<f64>> {
        let mut values = values.map(|values| values.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>());
        let mut out = vec![f(&values)];
        let loss = |y: Vec<f64>| -> f64 { y.iter().zip(dy).map(|(y, d)| y * f64::from(*d)).sum() };
        for which in 0..values.len() {
            let gradient = (0..values[which].len())
                .map(|k| {
                    let value = values[which][k];
                    let mut at = |shift| {
                        values[which][k] = value + shift;
                        loss(f(&values))
                    };
                    let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                    values[which][k] = value;
                    slope
                })
                .collect();
            out.push(gradient);
        }
        out
    }

    pub(crate) fn assert_close(got: &[f32], expected: &[f64], bound: f64, what: &str) {
        assert_eq!(got.len(), expected.len(), "{what}");
        let difference: f64 = got.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
        let length: f64 = expected.iter().map(|b| b * b).sum();
        let relative = difference.sqrt() / length.sqrt().max(1e-3);
        assert!(relative <= bound, "{what}: {relative:e} is more than {bound:e}");
    }

    /// The result of `op` with the widest instructions, compared to that with scalar code.
    #[track_caller]
    pub(crate) fn assert_same_bits(got: &[f32], expected: &[f32], what: &str) {
        let bits = |values: &[f32]| -> Vec<u32> { values.iter().map(|v| v.to_bits()).collect() };
        assert!(bits(got) == bits(expected), "{what}: the bits differ");
    }
}
