//! Elementary functions on vectors: polynomials in fused multiply-adds, equal to the bit for every width.
//!
//! The coefficients are Chebyshev fits to the functions on the stated intervals. Errors are measured in
//! the tests against f64. A NaN stays one.

use pulp::Simd;

/// Bound of the arguments of [`exp`]: from here on the result is 0 or infinite.
const EXP_LOWEST: f32 = -105.0;
const EXP_HIGHEST: f32 = 89.0;

/// Adding it to a value of less than `2^22` rounds to a whole number.
const ROUND: f32 = 12_582_912.0;

/// `(exp(r) - 1 - r) / r^2` for `|r| <= ln(2) / 2`, highest power first.
const EXP: [f32; 5] = [0.001_393_390_2, 0.008_363_348, 0.041_666_463, 0.166_665_76, 0.5];

/// `(tanh(x) - x) / x^3` as a polynomial of `x^2` for `|x| <= 0.625`.
const TANH: [f32; 5] = [-0.006_104_935_4, 0.021_003_63, -0.053_852_495, 0.133_327_83, -0.333_333_28];

/// `erf(x) / x` as a polynomial of `x^2` for `|x| <= 1`.
const ERF: [f32; 7] = [
    7.882_497_4e-5,
    -0.000_801_885_5,
    0.005_189_312,
    -0.026_854_329,
    0.112_835_97,
    -0.376_126_26,
    std::f32::consts::FRAC_2_SQRT_PI,
];

/// `ln(1 - erf(x))` for `1 <= x <= 4`.
const LN_ERFC: [f32; 8] = [
    -1.720_824_4e-5,
    0.000_381_189_8,
    -0.003_867_521_2,
    0.024_187_015,
    -0.106_611_535,
    -0.635_087_7,
    -1.128_533_6,
    -5.618_353_7e-5,
];

#[inline(always)]
fn polynomial<S: Simd, const N: usize>(simd: S, coefficients: [f32; N], x: S::f32s) -> S::f32s {
    let mut sum = simd.splat_f32s(coefficients[0]);
    for &coefficient in &coefficients[1..] {
        sum = simd.mul_add_f32s(sum, x, simd.splat_f32s(coefficient));
    }
    sum
}

/// `2^k` for whole `k` from -126 to 127.
#[inline(always)]
fn power_of_two<S: Simd>(simd: S, k: S::f32s) -> S::f32s {
    // The mantissa of 2^23 + 127 + k ends in the exponent's bits.
    let bits = simd.transmute_u32s_f32s(simd.add_f32s(k, simd.splat_f32s(8_388_608.0 + 127.0)));
    simd.transmute_f32s_u32s(simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23)))
}

#[inline(always)]
fn round<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let shift = simd.splat_f32s(ROUND);
    simd.sub_f32s(simd.add_f32s(x, shift), shift)
}

/// `e^x` within 1.5 units in the last place; results below the normal numbers too.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let (low, high) = (simd.splat_f32s(EXP_LOWEST), simd.splat_f32s(EXP_HIGHEST));
    let x = simd.select_f32s(simd.less_than_f32s(x, low), low, x);
    let x = simd.select_f32s(simd.greater_than_f32s(x, high), high, x);
    let n = round(simd, simd.mul_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E)));
    // ln(2) in two parts, of which the first has few bits: its product with n is exact.
    let r = simd.mul_add_f32s(n, simd.splat_f32s(-0.693_359_4), x);
    let r = simd.mul_add_f32s(n, simd.splat_f32s(2.121_944_4e-4), r);
    let p = polynomial(simd, EXP, r);
    let p = simd.mul_add_f32s(p, simd.mul_f32s(r, r), r);
    let p = simd.add_f32s(p, simd.splat_f32s(1.0));
    // Two factors: 2^n alone would overflow or be subnormal at the ends.
    let half = round(simd, simd.mul_f32s(n, simd.splat_f32s(0.5)));
    let p = simd.mul_f32s(p, power_of_two(simd, half));
    simd.mul_f32s(p, power_of_two(simd, simd.sub_f32s(n, half)))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    let e = exp(simd, simd.neg_f32s(x));
    simd.div_f32s(one, simd.add_f32s(one, e))
}

/// The hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let (one, two) = (simd.splat_f32s(1.0), simd.splat_f32s(2.0));
    let square = simd.mul_f32s(x, x);
    let small = simd.mul_add_f32s(polynomial(simd, TANH, square), simd.mul_f32s(square, x), x);
    let magnitude = simd.abs_f32s(x);
    let e = exp(simd, simd.add_f32s(magnitude, magnitude));
    let large = simd.sub_f32s(one, simd.div_f32s(two, simd.add_f32s(e, one)));
    let large = with_sign_of(simd, large, x);
    simd.select_f32s(simd.less_than_f32s(magnitude, simd.splat_f32s(0.625)), small, large)
}

/// The error function, within 2e-7.
#[inline(always)]
pub(crate) fn erf<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    let small = simd.mul_f32s(x, polynomial(simd, ERF, simd.mul_f32s(x, x)));
    let magnitude = simd.abs_f32s(x);
    let four = simd.splat_f32s(4.0);
    let bounded = simd.select_f32s(simd.greater_than_f32s(magnitude, four), four, magnitude);
    let large = simd.sub_f32s(one, exp(simd, polynomial(simd, LN_ERFC, bounded)));
    let large = with_sign_of(simd, large, x);
    simd.select_f32s(simd.less_than_f32s(magnitude, one), small, large)
}

/// `magnitude`, which is not negative, with the sign of `x`.
#[inline(always)]
fn with_sign_of<S: Simd>(simd: S, magnitude: S::f32s, x: S::f32s) -> S::f32s {
    let sign = simd.and_u32s(simd.transmute_u32s_f32s(x), simd.splat_u32s(1 << 31));
    simd.transmute_f32s_u32s(simd.or_u32s(simd.transmute_u32s_f32s(magnitude), sign))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fused::{
        kernels::vector::{Map, Unary, tests::assert_same_bits},
        simd,
    };

    macro_rules! function {
        ($name:ident, $function:path) => {
            #[derive(Clone, Copy)]
            struct $name;
            impl Unary for $name {
                #[inline(always)]
                fn at<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
                    $function(simd, x)
                }
            }
        };
    }
    function!(Exp, exp);
    function!(Tanh, tanh);
    function!(Sigmoid, sigmoid);
    function!(Erf, erf);

    /// Evaluates `f`, and compares the bits with scalar code.
    fn at<F: Unary>(f: F, x: &[f32]) -> Vec<f32> {
        let (mut y, mut scalar) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        simd::run(Map(f, x, &mut y));
        Simd::vectorize(pulp::Scalar, Map(f, x, &mut scalar));
        let numbers = |y: &[f32]| -> Vec<f32> { y.iter().copied().filter(|v| !v.is_nan()).collect() };
        assert_same_bits(&numbers(&y), &numbers(&scalar), "scalar code");
        assert!(y.iter().zip(&scalar).all(|(a, b)| a.is_nan() == b.is_nan()));
        y
    }

    fn grid(low: f32, high: f32) -> Vec<f32> {
        (0..=200_001).map(|i| low + (high - low) * i as f32 / 200_001.0).collect()
    }

    /// The error function in f64: its Taylor series near 0, the continued fraction of `erfc` elsewhere.
    fn erf64(x: f64) -> f64 {
        if x.abs() < 3.0 {
            let (mut term, mut sum) = (x, x);
            for n in 1..120 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return sum * 2.0 / std::f64::consts::PI.sqrt();
        }
        let mut fraction = 0.0;
        for k in (1..80).rev() {
            fraction = f64::from(k) / 2.0 / (x.abs() + fraction);
        }
        (1.0 - (-x * x).exp() / std::f64::consts::PI.sqrt() / (x.abs() + fraction)).copysign(x)
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let x = grid(-87.0, 88.7);
        for (x, y) in x.iter().zip(at(Exp, &x)) {
            let expected = f64::from(*x).exp();
            let error = (f64::from(y) - expected).abs() / expected / f64::from(f32::EPSILON);
            assert!(error < 1.5, "exp({x}) = {y}: {error} units");
        }
        let x = grid(-110.0, -87.0);
        for (x, y) in x.iter().zip(at(Exp, &x)) {
            assert!(
                (f64::from(y) - f64::from(*x).exp()).abs() < 2.9e-45 + 2e-7 * f64::from(*x).exp(),
                "exp({x})"
            );
        }
    }

    #[test]
    fn bounded_functions_are_within_two_ten_millionths() {
        let x = grid(-12.0, 12.0);
        let reference: [(Vec<f32>, fn(f64) -> f64, f64); 3] = [
            (at(Tanh, &x), f64::tanh, 1.2e-7),
            (at(Sigmoid, &x), |x| 1.0 / (1.0 + (-x).exp()), 1.2e-7),
            (at(Erf, &x), erf64, 2e-7),
        ];
        for (values, f, bound) in reference {
            for (x, y) in x.iter().zip(values) {
                let error = (f64::from(y) - f(f64::from(*x))).abs();
                assert!(error < bound, "f({x}) = {y}: {error}");
            }
        }
    }

    #[test]
    fn ends_and_what_is_no_number() {
        let infinity = f32::INFINITY;
        let x = [f32::NEG_INFINITY, -1e30, -200.0, 0.0, 200.0, 1e30, infinity, f32::NAN];
        let check = |got: Vec<f32>, expected: [f32; 7]| {
            assert_eq!(got[..7], expected);
            assert!(got[7].is_nan());
        };
        check(at(Exp, &x), [0.0, 0.0, 0.0, 1.0, infinity, infinity, infinity]);
        check(at(Sigmoid, &x), [0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]);
        check(at(Tanh, &x), [-1.0, -1.0, -1.0, 0.0, 1.0, 1.0, 1.0]);
        check(at(Erf, &x), [-1.0, -1.0, -1.0, 0.0, 1.0, 1.0, 1.0]);
    }
}
