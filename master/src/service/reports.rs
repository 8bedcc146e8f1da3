//! What workers report of the models, in memory.

use crate::federation::evaluation::{EvaluationRules, Evaluations};
use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

/// The results, and what of them is not on disk yet.
#[derive(Debug)]
pub(super) struct Reports {
    pub(super) evaluations: Mutex<Evaluations>,
    /// Rounds whose records have changed since they were written.
    pub(super) unwritten: Mutex<BTreeSet<u64>>,
    /// Whether a task will write them.
    pub(super) is_due: AtomicBool,
    /// Held while a record is read and queued: of two records about a round the newer must be written last.
    pub(super) writing: Mutex<()>,
}

impl Reports {
    pub(super) fn new(rules: EvaluationRules) -> Self {
        Self {
            evaluations: Mutex::new(Evaluations::new(rules)),
            unwritten: Mutex::default(),
            is_due: AtomicBool::new(false),
            writing: Mutex::default(),
        }
    }
}

/// A panic under these locks leaves whole results.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
