//! The fused engine: training steps on the CPU by this crate's own kernels.

mod chain;
mod gemm;
mod graph;
mod kernels;
mod simd;
mod transpose;

pub(crate) use crate::parallel;
use crate::{error::ModelError, learner::Learner, spec::ModelSpec};
use gemm::Store;
use std::time::{Duration, Instant};

/// Builds the learner of a network: a chain where that is worth it, else a graph. The choice depends on the spec
/// alone, so that workers with any number of threads compute the same.
///
/// # Errors
/// A network that the engine does not run; threads that cannot be started.
pub(crate) fn learner(spec: &ModelSpec, threads: usize) -> Result<Box<dyn Learner>, ModelError> {
    match chain::choice::is_faster(spec) {
        true => Ok(Box::new(chain::ChainLearner::new(spec, threads)?)),
        false => Ok(Box::new(graph::GraphLearner::new(spec, threads)?)),
    }
}

/// Whether the engine has an operation for every layer of `spec`.
pub(crate) fn runs(spec: &ModelSpec) -> bool {
    graph::GraphLearner::runs(spec)
}

/// Best of many products of one tile row's width with operands in the first two cache levels.
pub(crate) fn measure_gemm_gflops() -> f64 {
    const ROWS: usize = 120;
    const COLUMNS: usize = 64;
    const DEPTH: usize = 256;
    let (l, r, mut c) = (vec![0.5; ROWS * DEPTH], vec![0.5; DEPTH * COLUMNS], vec![0.0; ROWS * COLUMNS]);
    let starts: Vec<usize> = (0..ROWS).map(|row| row * DEPTH).collect();
    let rows = gemm::Rows { data: &l, starts: &starts, segments: &[0], segment_len: DEPTH };
    let mut best = f64::INFINITY;
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(100) {
        let start = Instant::now();
        for _ in 0..4 {
            gemm::nn(rows, std::hint::black_box(&r), COLUMNS, &mut c, COLUMNS, COLUMNS, Store::Set);
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    (4 * 2 * ROWS * COLUMNS * DEPTH) as f64 / best / 1e9
}
