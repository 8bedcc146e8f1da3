//! Runs generic SIMD code with the widest instructions of this machine.

use pulp::{Simd, WithSimd};

/// Runs `op` with AVX-512, AVX2, NEON or scalar instructions, whichever the machine has.
///
/// All of them give bit-identical results: every kernel of this module adds in an order that does not
/// depend on the width of a vector, and uses fused multiply-adds throughout.
#[inline]
pub(crate) fn run<Op: WithSimd>(op: Op) -> Op::Output {
    #[cfg(test)]
    let op = match tests::forced(op) {
        Ok(output) => return output,
        Err(op) => op,
    };
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

#[cfg(test)]
mod tests {
    //! Whole networks with narrower instructions than the machine has.

    use super::*;
    use crate::{
        Backend, ModelSpec,
        common::{gradients, layer_lists, noise, parameters, wide_convolution_lists},
    };
    use proptest::prelude::*;
    use std::cell::Cell;

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Level {
        /// Without vectors, as on a machine that pulp does not know.
        Scalar,
        #[cfg(target_arch = "x86_64")]
        Avx2,
        Widest,
    }

    thread_local! {
        static LEVEL: Cell<Level> = const { Cell::new(Level::Widest) };
    }

    /// Runs `op` at the level of this thread, or gives it back where that is the widest.
    pub(super) fn forced<Op: WithSimd>(op: Op) -> Result<Op::Output, Op> {
        match LEVEL.get() {
            Level::Scalar => Ok(Simd::vectorize(pulp::Scalar, op)),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => match pulp::x86::V3::try_new() {
                Some(simd) => Ok(Simd::vectorize(simd, op)),
                None => Err(op),
            },
            Level::Widest => Err(op),
        }
    }

    /// Loss, gradient and evaluation as bits. On one thread, which is the caller's: `level` holds there.
    fn outcome(spec: &ModelSpec, batch: usize, seed: u64, level: Level) -> Vec<u64> {
        let samples = noise(spec, batch, seed);
        let mut learner = spec.learner(Backend::Fused, 1).unwrap();
        learner.load(&parameters(spec, seed));
        LEVEL.set(level);
        let (loss, gradient) = gradients(&mut *learner, &samples);
        let sums = learner.evaluate(samples.batch()).unwrap();
        LEVEL.set(Level::Widest);
        let values = gradient.iter().chain([&loss]).map(|value| u64::from(value.to_bits()));
        values.chain([sums.loss_sum.to_bits(), sums.correct.unwrap_or(0)]).collect()
    }

    fn same_at_every_level(spec: &ModelSpec, batch: usize, seed: u64) {
        let widest = outcome(spec, batch, seed, Level::Widest);
        assert!(widest == outcome(spec, batch, seed, Level::Scalar), "scalar: {spec:?}");
        #[cfg(target_arch = "x86_64")]
        assert!(widest == outcome(spec, batch, seed, Level::Avx2), "AVX2: {spec:?}");
    }

    #[test]
    fn presets_are_the_same_to_the_bit_on_machines_with_narrower_vectors() {
        for name in ["softmax", "mlp", "cnn", "mcmahan_cnn"] {
            same_at_every_level(&ModelSpec::classifier(name, &[3, 8, 8], 10, 5_000).unwrap(), 9, 1);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn layer_lists_are_the_same_to_the_bit(spec in layer_lists(), batch in 1usize..20, seed: u64) {
            same_at_every_level(&spec, batch, seed);
        }

        #[test]
        fn wide_convolutions_are_the_same_to_the_bit(
            spec in wide_convolution_lists(), batch in 1usize..10, seed: u64,
        ) {
            same_at_every_level(&spec, batch, seed);
        }
    }
}
