//! Activations on any layout, out of place and in place.

use super::{
    math,
    vector::{Binary, Map, Unary, Zip, ZipInPlace, keep_positive, pieces, relu},
};
use crate::fused::{parallel::Threads, simd};
use pulp::Simd;

/// An activation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Activation {
    Relu,
    LeakyRelu {
        slope: f32,
    },
    /// `x * Phi(x)`.
    Gelu,
    /// [`Activation::Gelu`] with the tanh approximation.
    GeluTanh,
    Silu,
    Tanh,
    Sigmoid,
}

impl Activation {
    /// Whether [`backward`] needs the output; else it needs the input.
    pub(crate) fn keeps_output(self) -> bool {
        match self {
            Self::Relu | Self::Tanh | Self::Sigmoid => true,
            // The sign of the output is that of the input.
            Self::LeakyRelu { slope } => slope >= 0.0,
            Self::Gelu | Self::GeluTanh | Self::Silu => false,
        }
    }

    /// What one value takes, in multiply-adds: for cutting work over threads.
    fn cost(self) -> usize {
        match self {
            // Bound by memory.
            Self::Relu | Self::LeakyRelu { .. } => 4,
            Self::Gelu | Self::GeluTanh | Self::Silu | Self::Tanh | Self::Sigmoid => 8,
        }
    }
}

/// An activation's value, and its derivative from what is kept.
trait Curve: Copy + Sync {
    fn value<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s;
    fn gradient<S: Simd>(self, simd: S, kept: S::f32s, dy: S::f32s) -> S::f32s;
}

#[derive(Clone, Copy)]
struct Value<C>(C);

impl<C: Curve> Unary for Value<C> {
    #[inline(always)]
    fn at<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        self.0.value(simd, x)
    }
}

#[derive(Clone, Copy)]
struct Gradient<C>(C);

impl<C: Curve> Binary for Gradient<C> {
    #[inline(always)]
    fn at<S: Simd>(self, simd: S, kept: S::f32s, dy: S::f32s) -> S::f32s {
        self.0.gradient(simd, kept, dy)
    }
}

#[derive(Clone, Copy)]
struct Relu;

impl Curve for Relu {
    #[inline(always)]
    fn value<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        relu(simd, x)
    }

    #[inline(always)]
    fn gradient<S: Simd>(self, simd: S, kept: S::f32s, dy: S::f32s) -> S::f32s {
        keep_positive(simd, kept, dy)
    }
}

#[derive(Clone, Copy)]
struct Leaky(f32);

impl Curve for Leaky {
    #[inline(always)]
    fn value<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        self.gradient(simd, x, x)
    }

    #[inline(always)]
    fn gradient<S: Simd>(self, simd: S, kept: S::f32s, dy: S::f32s) -> S::f32s {
        let below = simd.mul_f32s(dy, simd.splat_f32s(self.0));
        simd.select_f32s(simd.greater_than_f32s(kept, simd.splat_f32s(0.0)), dy, below)
    }
}

#[derive(Clone, Copy)]
struct Gelu;

impl Gelu {
    /// The normal distribution function.
    #[inline(always)]
    fn phi<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
        let erf = math::erf(simd, simd.mul_f32s(x, simd.splat_f32s(std::f32::consts::FRAC_1_SQRT_2)));
        let half = simd.splat_f32s(0.5);
        simd.mul_add_f32s(erf, half, half)
    }
}

impl Curve for Gelu {
    #[inline(always)]
    fn value<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        simd.mul_f32s(x, Self::phi(simd, x))
    }

    #[inline(always)]
    fn gradient<S: Simd>(self, simd: S, kept: S::f32s, dy: S::f32s) -> S::f32s {
        let exponent = simd.mul_f32s(simd.mul_f32s(kept, kept), simd.splat_f32s(-0.5));
        // 1 / sqrt(2 pi)
        let density = simd.mul_f32s(math::exp(simd, exponent), simd.splat_f32s(0.398_942_3));
        simd.mul_f32s(dy, simd.mul_add_f32s(kept, density, Self::phi(simd, kept)))
    }
}

#[derive(Clone, Copy)]
struct GeluTanh;

impl GeluTanh {
    /// sqrt(2 / pi)
    const SCALE: f32 = 0.797_884_6;
    const CUBIC: f32 = 0.044_715;

    #[inline(always)]
    fn tanh<S: Simd>(simd: S, x: S::f32s, square: S::f32s) -> S::f32s {
        let inner = simd.mul_add_f32s(
            square,
            simd.splat_f32s(Self::SCALE * Self::CUBIC),
            simd.splat_f32s(Self::SCALE),
        );
        math::tanh(simd, simd.mul_f32s(x, inner))
    }
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn value<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        let tanh = Self::tanh(simd, x, simd.mul_f32s(x, x));
        let half = simd.mul_f32s(x, simd.splat_f32s(0.5));
        simd.mul_add_f32s(half, tanh, half)
    }

    #[inline(always)]
    fn gradient<S: Simd>(self, simd: S, kept: S::f32s, dy: S::f32s) -> S::f32s {
        let square = simd.mul_f32s(kept, kept);
        let tanh = Self::tanh(simd, kept, square);
        let half = simd.splat_f32s(0.5);
        // (1 + t) / 2 + x (1 - t^2) / 2 * inner'
        let inner = simd.mul_add_f32s(
            square,
            simd.splat_f32s(3.0 * Self::SCALE * Self::CUBIC),
            simd.splat_f32s(Self::SCALE),
        );
        let slope = simd.sub_f32s(half, simd.mul_f32s(simd.mul_f32s(tanh, tanh), half));
        let right = simd.mul_f32s(simd.mul_f32s(kept, slope), inner);
        simd.mul_f32s(dy, simd.add_f32s(simd.mul_add_f32s(tanh, half, half), right))
    }
}

#[derive(Clone, Copy)]
struct Silu;

impl Curve for Silu {
    #[inline(always)]
    fn value<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        simd.mul_f32s(x, math::sigmoid(simd, x))
    }

    #[inline(always)]
    fn gradient<S: Simd>(self, simd: S, kept: S::f32s, dy: S::f32s) -> S::f32s {
        let s = math::sigmoid(simd, kept);
        // s (1 + x (1 - s))
        let one = simd.splat_f32s(1.0);
        let inner = simd.mul_add_f32s(kept, simd.sub_f32s(one, s), one);
        simd.mul_f32s(dy, simd.mul_f32s(s, inner))
    }
}

#[derive(Clone, Copy)]
struct Tanh;

impl Curve for Tanh {
    #[inline(always)]
    fn value<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        math::tanh(simd, x)
    }

    #[inline(always)]
    fn gradient<S: Simd>(self, simd: S, kept: S::f32s, dy: S::f32s) -> S::f32s {
        let one = simd.splat_f32s(1.0);
        let slope = simd.mul_f32s(simd.sub_f32s(one, kept), simd.add_f32s(one, kept));
        simd.mul_f32s(dy, slope)
    }
}

#[derive(Clone, Copy)]
struct Sigmoid;

impl Curve for Sigmoid {
    #[inline(always)]
    fn value<S: Simd>(self, simd: S, x: S::f32s) -> S::f32s {
        math::sigmoid(simd, x)
    }

    #[inline(always)]
    fn gradient<S: Simd>(self, simd: S, kept: S::f32s, dy: S::f32s) -> S::f32s {
        let slope = simd.mul_f32s(kept, simd.sub_f32s(simd.splat_f32s(1.0), kept));
        simd.mul_f32s(dy, slope)
    }
}

/// Calls `$run` with the curve of an activation.
macro_rules! with_curve {
    ($kind:expr, $curve:ident => $run:expr) => {
        match $kind {
            Activation::Relu => {
                let $curve = Relu;
                $run
            }
            Activation::LeakyRelu { slope } => {
                let $curve = Leaky(slope);
                $run
            }
            Activation::Gelu => {
                let $curve = Gelu;
                $run
            }
            Activation::GeluTanh => {
                let $curve = GeluTanh;
                $run
            }
            Activation::Silu => {
                let $curve = Silu;
                $run
            }
            Activation::Tanh => {
                let $curve = Tanh;
                $run
            }
            Activation::Sigmoid => {
                let $curve = Sigmoid;
                $run
            }
        }
    };
}

/// `y = f(x)`.
pub(crate) fn forward(kind: Activation, x: &[f32], y: &mut [f32], threads: &Threads) {
    assert_eq!(x.len(), y.len());
    pieces(threads, y, kind.cost(), |start, y| {
        let x = &x[start..][..y.len()];
        with_curve!(kind, curve => simd::run(Map(Value(curve), x, y)));
    });
}

/// `dx = dy * f'`, from the output where [`Activation::keeps_output`], else from the input.
pub(crate) fn backward(kind: Activation, kept: &[f32], dy: &[f32], dx: &mut [f32], threads: &Threads) {
    assert!(kept.len() == dx.len() && dy.len() == dx.len());
    pieces(threads, dx, kind.cost(), |start, dx| {
        let (kept, dy) = (&kept[start..][..dx.len()], &dy[start..][..dx.len()]);
        with_curve!(kind, curve => simd::run(Zip(Gradient(curve), kept, dy, dx)));
    });
}

/// `dy = dy * f'`: [`backward`] in place.
pub(crate) fn backward_in_place(kind: Activation, kept: &[f32], dy: &mut [f32], threads: &Threads) {
    assert_eq!(kept.len(), dy.len());
    pieces(threads, dy, kind.cost(), |start, dy| {
        let kept = &kept[start..][..dy.len()];
        with_curve!(kind, curve => simd::run(ZipInPlace(Gradient(curve), kept, dy)));
    });
}

#[cfg(test)]
mod tests {
    use super::{super::vector::tests::*, *};

    const ALL: [Activation; 8] = [
        Activation::Relu,
        Activation::LeakyRelu { slope: 0.01 },
        Activation::LeakyRelu { slope: -0.5 },
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Silu,
        Activation::Tanh,
        Activation::Sigmoid,
    ];

    /// The value in f64. GELU by Simpson's rule over the density.
    fn value(kind: Activation, x: f64) -> f64 {
        match kind {
            Activation::Relu => x.max(0.0),
            Activation::LeakyRelu { slope } => {
                if x > 0.0 {
                    x
                } else {
                    x * f64::from(slope)
                }
            }
            Activation::Gelu => {
                let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
                let h = x / 200.0;
                let sum: f64 = (0..200)
                    .map(|i| {
                        let t = f64::from(i) * h;
                        density(t) + 4.0 * density(t + h / 2.0) + density(t + h)
                    })
                    .sum();
                x * (0.5 + sum * h / 6.0)
            }
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
            }
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Tanh => x.tanh(),
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        }
    }

    #[test]
    fn values_and_derivatives_are_those_of_f64() {
        let threads = Threads::new(2).unwrap();
        for kind in ALL {
            for len in [1usize, 17, 40_001] {
                let x: Vec<f32> = noise(len, 3).iter().map(|v| 6.0 * v).collect();
                let dy = noise(len, 4);
                let expected: Vec<f64> = x.iter().map(|x| value(kind, f64::from(*x))).collect();
                let mut y = vec![0.0; len];
                threads.enter(|| forward(kind, &x, &mut y, &threads));
                assert_close(&y, &expected, 1e-6, &format!("{kind:?}"));

                let gradient: Vec<f64> = x
                    .iter()
                    .zip(&dy)
                    .map(|(x, dy)| {
                        let (x, h) = (f64::from(*x), 1e-5);
                        f64::from(*dy) * (value(kind, x + h) - value(kind, x - h)) / (2.0 * h)
                    })
                    .collect();
                let kept = if kind.keeps_output() { &y } else { &x };
                let mut dx = vec![0.0; len];
                threads.enter(|| backward(kind, kept, &dy, &mut dx, &threads));
                assert_close(&dx, &gradient, 1e-5, &format!("gradient of {kind:?}"));
                let mut in_place = dy.clone();
                backward_in_place(kind, kept, &mut in_place, &Threads::none());
                assert_same_bits(&in_place, &dx, "gradient in place");
            }
        }
    }

    #[test]
    fn a_nan_stays_one_and_rectifiers_have_no_slope_at_zero() {
        for kind in ALL {
            let mut y = [0.0; 19];
            forward(kind, &[f32::NAN; 19], &mut y, &Threads::none());
            assert!(y.iter().all(|v| v.is_nan()), "{kind:?}");
        }
        let mut dx = [1.0; 3];
        backward_in_place(Activation::Relu, &[0.0, -0.0, 1e-30], &mut dx, &Threads::none());
        assert_eq!(dx, [0.0, 0.0, 1.0]);
    }
}
