//! The transforms of Winograd's convolution in one dimension, on vectors of channels.
//!
//! Loops rather than closures: what a closure does is not always compiled with the instructions of the
//! function around it.

use pulp::Simd;

/// Points in one dimension.
pub(in crate::fused) const POINTS: usize = 6;

/// The points `A` and `B = 1 / A`, beside their negatives, 0 and infinity.
const A: f32 = 2.0 / 3.0;
const B: f32 = 3.0 / 2.0;

const POWERS_OF_A: [f32; 4] = [1.0, A, A * A, A * A * A];
const POWERS_OF_B: [f32; 4] = [1.0, B, B * B, B * B * B];

/// From a kernel's row to its values at the points.
pub(in crate::fused) fn filter_matrix(kernel: usize) -> [[f32; 5]; POINTS] {
    let row = |point: f32, scale: f32| std::array::from_fn(|power| point.powi(power as i32) / scale);
    let (of_a, of_b) = (2.0 * A * A * (A * A - B * B), 2.0 * B * B * (B * B - A * A));
    let mut infinity = [0.0; 5];
    infinity[kernel - 1] = 1.0;
    [[1.0, 0.0, 0.0, 0.0, 0.0], row(A, of_a), row(-A, of_a), row(B, of_b), row(-B, of_b), infinity]
}

/// Six inputs to their values at the points.
#[inline(always)]
pub(in crate::fused) fn at_points<S: Simd>(simd: S, d: [S::f32s; POINTS]) -> [S::f32s; POINTS] {
    let middle = simd.splat_f32s(-(A * A + B * B));
    let (a, b) = (simd.splat_f32s(A), simd.splat_f32s(B));
    let (minus_a, minus_b) = (simd.splat_f32s(-A), simd.splat_f32s(-B));
    let even_a = simd.mul_add_f32s(simd.splat_f32s(-B * B), d[2], d[4]);
    let odd_a = simd.mul_add_f32s(minus_b, d[1], simd.mul_f32s(a, d[3]));
    let even_b = simd.mul_add_f32s(simd.splat_f32s(-A * A), d[2], d[4]);
    let odd_b = simd.mul_add_f32s(minus_a, d[1], simd.mul_f32s(b, d[3]));
    [
        simd.mul_add_f32s(middle, d[2], simd.add_f32s(d[0], d[4])),
        simd.add_f32s(even_a, odd_a),
        simd.sub_f32s(even_a, odd_a),
        simd.add_f32s(even_b, odd_b),
        simd.sub_f32s(even_b, odd_b),
        simd.mul_add_f32s(middle, d[3], simd.add_f32s(d[1], d[5])),
    ]
}

/// Values of a product at the points to `EDGE` outputs.
#[inline(always)]
pub(in crate::fused) fn from_points<S: Simd, const EDGE: usize>(
    simd: S,
    m: [S::f32s; POINTS],
) -> [S::f32s; EDGE] {
    let of_a = [simd.add_f32s(m[1], m[2]), simd.sub_f32s(m[1], m[2])];
    let of_b = [simd.add_f32s(m[3], m[4]), simd.sub_f32s(m[3], m[4])];
    let mut out = [m[0]; EDGE];
    for (power, out) in out.iter_mut().enumerate() {
        let side = power % 2;
        let b = simd.mul_f32s(simd.splat_f32s(POWERS_OF_B[power]), of_b[side]);
        let finite = simd.mul_add_f32s(simd.splat_f32s(POWERS_OF_A[power]), of_a[side], b);
        *out = if power == 0 {
            simd.add_f32s(m[0], finite)
        } else if power == EDGE - 1 {
            simd.add_f32s(m[5], finite)
        } else {
            finite
        };
    }
    out
}

/// Gradients of `EDGE` outputs to those of the product at the points: [`from_points`] transposed.
#[inline(always)]
pub(in crate::fused) fn gradient_at_points<S: Simd, const EDGE: usize>(
    simd: S,
    dy: [S::f32s; EDGE],
) -> [S::f32s; POINTS] {
    let [a, minus_a] = gradient_at_pair(simd, dy, POWERS_OF_A);
    let [b, minus_b] = gradient_at_pair(simd, dy, POWERS_OF_B);
    [dy[0], a, minus_a, b, minus_b, dy[EDGE - 1]]
}

/// The same at one point and at its negative.
#[inline(always)]
fn gradient_at_pair<S: Simd, const EDGE: usize>(
    simd: S,
    dy: [S::f32s; EDGE],
    powers: [f32; 4],
) -> [S::f32s; 2] {
    let mut sides = [dy[0], simd.mul_f32s(simd.splat_f32s(powers[1]), dy[1])];
    for (power, (factor, dy)) in powers.into_iter().zip(dy).enumerate().skip(2) {
        let side = power % 2;
        sides[side] = simd.mul_add_f32s(simd.splat_f32s(factor), dy, sides[side]);
    }
    [simd.add_f32s(sides[0], sides[1]), simd.sub_f32s(sides[0], sides[1])]
}
