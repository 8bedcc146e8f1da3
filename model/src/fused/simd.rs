//! Runs generic SIMD code with the widest instructions of this machine.

use pulp::{Simd, WithSimd};

/// Runs `op` with AVX-512, AVX2, NEON or scalar instructions, whichever the machine has.
///
/// All of them give bit-identical results: every kernel of this module adds in an order that does not
/// depend on the width of a vector, and uses fused multiply-adds throughout.
#[inline]
pub(crate) fn run<Op: WithSimd>(op: Op) -> Op::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(simd) = pulp::x86::V4::try_new() {
            return Simd::vectorize(simd, op);
        }
        if let Some(simd) = pulp::x86::V3::try_new() {
            return Simd::vectorize(simd, op);
        }
    }
    pulp::Arch::new().dispatch(op)
}
