//! Lazy upload: a worker whose update has hardly changed leaves the upload out, and its last one counts once
//! more (LAQ, Sun et al. 2019, algorithm 2).
//!
//! The rule is the paper's (7a), for updates in place of gradients: the squared change of the encoded update
//! is at most the weighted sum of the last squared steps of the model. Where the paper adds three times the
//! quantization errors, we add nothing: at few bits they alone would let every upload go, and error feedback
//! keeps what is lost. The master computes the sum, workers compare.

use bytes::Bytes;
use fl_protocol::{UpdateMeta, WorkerId};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Steps of the model that are looked back on: `D` of the paper's experiments.
const STEPS: usize = 10;

/// Squared norms of the model's last steps, the newest first; part of the checkpoint.
pub fn push_step(steps: &mut Vec<f32>, before: &[f32], after: &[f32]) {
    let squares = before.iter().zip(after).map(|(b, a)| (f64::from(*a) - f64::from(*b)).powi(2));
    steps.insert(0, squares.sum::<f64>() as f32);
    steps.truncate(STEPS);
}

/// The right-hand side of the rule: `factor` is the sum of the paper's weights, which are all alike.
pub fn threshold(factor: f64, steps: &[f32]) -> f32 {
    (factor / STEPS as f64 * steps.iter().map(|step| f64::from(*step)).sum::<f64>()) as f32
}

/// The last update of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastUpdate {
    /// The round that it was made for.
    pub round: u64,
    /// The container.
    pub body: Bytes,
}

/// How much is kept of the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Rounds after which an update does not count any more: the paper's `t`.
    pub max_age: u64,
    /// Bytes of all kept updates between two rounds.
    pub max_bytes: usize,
}

/// The last update of every worker; part of the checkpoint.
///
/// A worker hands in once a round, so what a notice refers to does not depend on the order of arrival; what
/// is given up is given up between rounds, when there is an order.
#[derive(Debug, Default)]
pub struct LastUpdates {
    /// `None`: nothing is kept.
    bounds: Option<Bounds>,
    kept: Mutex<BTreeMap<WorkerId, LastUpdate>>,
}

impl Bounds {
    /// Gives nothing up.
    pub const NONE: Self = Self { max_age: u64::MAX, max_bytes: usize::MAX };
}

impl LastUpdates {
    /// Goes on with `kept`, or keeps nothing without `bounds`.
    pub fn new(bounds: Option<Bounds>, mut kept: BTreeMap<WorkerId, LastUpdate>) -> Self {
        if bounds.is_none() {
            kept.clear();
        }
        Self { bounds, kept: Mutex::new(kept) }
    }

    /// An accepted container of `meta.round`; a notice leaves everything as it was.
    pub fn keep(&self, meta: &UpdateMeta, body: &Bytes) {
        if self.bounds.is_some() && meta.reuse.is_none() {
            // A copy: the request's buffer is to be used again, and may be larger than what it holds.
            let last = LastUpdate { round: meta.round, body: Bytes::copy_from_slice(body) };
            self.lock().insert(meta.worker_id.clone(), last);
        }
    }

    /// The container that a notice refers to.
    pub fn reused(&self, notice: &UpdateMeta) -> Option<Bytes> {
        let kept = self.lock();
        let last = kept.get(&notice.worker_id)?;
        (Some(last.round) == notice.reuse).then(|| last.body.clone())
    }

    /// Gives up, before `round` opens, what is too old, and the oldest of what is too much.
    pub fn prune(&self, round: u64) {
        let Some(Bounds { max_age, max_bytes }) = self.bounds else { return };
        let mut kept = self.lock();
        kept.retain(|_, last| last.round.saturating_add(max_age) >= round);
        let mut bytes: usize = kept.values().map(|last| last.body.len()).sum();
        while bytes > max_bytes {
            let oldest = kept.iter().min_by_key(|(_, last)| last.round).map(|(worker, _)| worker.clone());
            let Some(given_up) = oldest.and_then(|worker| kept.remove(&worker)) else { return };
            bytes -= given_up.body.len();
        }
    }

    /// A copy for the checkpoint; the bodies are shared.
    pub fn snapshot(&self) -> BTreeMap<WorkerId, LastUpdate> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<WorkerId, LastUpdate>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(worker: &str, round: u64, reuse: Option<u64>) -> UpdateMeta {
        UpdateMeta {
            worker_id: worker.parse().unwrap(),
            round,
            num_samples: 1,
            loss: None,
            accuracy: None,
            compute_factor: None,
            local_steps: None,
            local_norm: None,
            reuse,
        }
    }

    #[test]
    fn the_threshold_is_the_weighted_sum_of_the_last_ten_steps() {
        let mut steps = Vec::new();
        assert_eq!(threshold(0.8, &steps), 0.0);
        for k in 0..12 {
            push_step(&mut steps, &[0.0, 1.0], &[k as f32, 1.0]);
        }
        // Squares of 2 to 11.
        assert_eq!(steps.len(), 10);
        assert!((threshold(0.8, &steps) - 0.08 * 505.0).abs() < 1e-4);
    }

    #[test]
    fn only_the_named_update_of_the_same_worker_is_reused() {
        let bounds = Bounds { max_age: 3, max_bytes: 10 };
        let lasts = LastUpdates::new(Some(bounds), BTreeMap::new());
        let body = |text: &'static str| Bytes::from_static(text.as_bytes());
        lasts.keep(&meta("a", 1, None), &body("first"));
        lasts.keep(&meta("a", 2, None), &body("secon"));
        lasts.keep(&meta("a", 3, Some(2)), &body("notice"));
        assert_eq!(lasts.reused(&meta("a", 4, Some(2))), Some(body("secon")));
        assert_eq!(lasts.reused(&meta("a", 4, Some(1))), None);
        assert_eq!(lasts.reused(&meta("b", 4, Some(2))), None);
        // The oldest goes when there is no room, and whatever is too old.
        lasts.keep(&meta("b", 3, None), &body("12345"));
        lasts.keep(&meta("c", 3, None), &body("1"));
        lasts.prune(4);
        assert_eq!(lasts.snapshot().keys().map(WorkerId::as_str).collect::<Vec<_>>(), ["b", "c"]);
        lasts.prune(7);
        assert!(lasts.snapshot().is_empty());
        let off = LastUpdates::default();
        off.keep(&meta("a", 1, None), &body("first"));
        assert_eq!(off.reused(&meta("a", 2, Some(1))), None);
    }
}
