//! Cuts work over a fixed number of threads.

use crate::error::ModelError;
use rayon::prelude::*;

/// Rows of a tile of the matrix product: pieces of work are multiples of it.
const TILE_ROWS: usize = 6;

/// Products of fewer multiply-adds are slower on two threads than on one.
const WORTH_A_THREAD: usize = 1 << 19;

/// The threads of one learner: a pool, or the caller's thread alone.
#[derive(Debug)]
pub(crate) struct Threads(Option<rayon::ThreadPool>);

impl Threads {
    /// The caller's thread alone.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    pub(crate) fn new(count: usize) -> Result<Self, ModelError> {
        if count <= 1 {
            return Ok(Self(None));
        }
        rayon::ThreadPoolBuilder::new()
            .num_threads(count)
            .thread_name(|index| format!("train-{index}"))
            .build()
            .map(|pool| Self(Some(pool)))
            .map_err(|error| {
                ModelError::BackendFailed(format!("{error}: ask for fewer than {count} training threads"))
            })
    }

    /// How many threads work on a call of [`Threads::each`].
    pub(crate) fn count(&self) -> usize {
        self.0.as_ref().map_or(1, rayon::ThreadPool::current_num_threads)
    }

    /// Runs `f` where [`Threads::each`] and [`Threads::rows`] can use all threads.
    pub(crate) fn enter<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.0 {
            None => f(),
            Some(pool) => pool.install(f),
        }
    }

    /// Calls `f` on every item.
    pub(crate) fn each<T: Send>(&self, items: &mut [T], f: impl Fn(usize, &mut T) + Sync) {
        match &self.0 {
            None => items.iter_mut().enumerate().for_each(|(index, item)| f(index, item)),
            Some(_) => {
                items.par_iter_mut().enumerate().with_max_len(1).for_each(|(index, item)| f(index, item))
            }
        }
    }

    /// Calls `f(first_row, rows)` on pieces of a matrix with rows of `row_len`; `cost` is what one row
    /// takes, in multiply-adds.
    pub(crate) fn rows(
        &self,
        matrix: &mut [f32],
        row_len: usize,
        cost: usize,
        f: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let rows = matrix.len() / row_len;
        let threads = self.count();
        if threads == 1 || rows * cost < WORTH_A_THREAD {
            return f(0, matrix);
        }
        let piece = rows.div_ceil(threads).next_multiple_of(TILE_ROWS);
        matrix.par_chunks_mut(piece * row_len).enumerate().for_each(|(index, chunk)| f(index * piece, chunk));
    }
}
