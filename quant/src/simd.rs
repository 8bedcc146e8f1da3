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
