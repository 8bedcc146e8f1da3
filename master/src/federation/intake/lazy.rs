//! Lazy upload: a worker whose update has hardly changed leaves the upload out, and its last one counts once
//! more (LAQ, Sun et al. 2019, algorithm 2).
//!
//! The rule is the paper's (7a), for updates in place of gradients: the squared change of the encoded update
//! is at most the weighted sum of the last squared steps of the model. Where the paper adds three times the
//! quantization errors, we add nothing: at few bits they alone would let every upload go, and error feedback
//! keeps what is lost. The master computes the sum, workers compare.

use crate::federation::{AggregationSettings, step::FileValues};
use bytes::Bytes;
use fl_protocol::{UpdateMeta, WorkerId};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Number of past steps in the rule: `D` of the paper's experiments.
const STEPS: usize = 10;

/// Puts the squared norm of the model's newest step before those of the last ones.
pub fn push_step(squared_steps: &mut Vec<f32>, before: &FileValues, after: &FileValues) {
    let value = |bytes: &[u8; 4]| f64::from(f32::from_le_bytes(*bytes));
    let squares = before.iter().zip(after).map(|(b, a)| (value(a) - value(b)).powi(2));
    squared_steps.insert(0, squares.sum::<f64>() as f32);
    squared_steps.truncate(STEPS);
}

/// The right-hand side of the rule: `factor` is the sum of the paper's weights, which are all alike.
pub fn threshold(factor: f64, squared_steps: &[f32]) -> f32 {
    (factor / STEPS as f64 * squared_steps.iter().map(|step| f64::from(*step)).sum::<f64>()) as f32
}

/// The last accepted update of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedUpdate {
    /// Round that it was accepted for.
    pub round: u64,
    /// The update container.
    pub body: Bytes,
}

/// Limits of an [`UpdateCache`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Rounds after which an update expires: the paper's `t`.
    pub max_age: u64,
    /// Bytes of all cached updates between two rounds.
    pub max_bytes: usize,
}

/// The last accepted update of every worker; part of the checkpoint.
///
/// A worker sends one update a round, so what a notice refers to does not depend on the order of arrival.
/// Updates are evicted between rounds only, for the same reason.
#[derive(Debug, Default)]
pub struct UpdateCache {
    /// `None`: nothing is cached.
    limits: Option<CacheLimits>,
    cached: Mutex<BTreeMap<WorkerId, CachedUpdate>>,
}

impl CacheLimits {
    /// Evicts nothing.
    pub const NONE: Self = Self { max_age: u64::MAX, max_bytes: usize::MAX };
}

impl UpdateCache {
    /// Goes on with `cached` under `settings`.
    pub fn open(settings: &AggregationSettings, cached: BTreeMap<WorkerId, CachedUpdate>) -> Self {
        let max_bytes = settings.max_buffer_mb.saturating_mul(1_000_000);
        let limits = CacheLimits { max_age: settings.max_staleness, max_bytes };
        Self::new(settings.lazy.map(|_| limits), cached)
    }

    /// The same while rounds are replayed: a notice that was accepted must find what it refers to, whatever
    /// the settings say now.
    pub fn replaying(settings: &AggregationSettings, cached: BTreeMap<WorkerId, CachedUpdate>) -> Self {
        Self::new((settings.lazy.is_some() || !cached.is_empty()).then_some(CacheLimits::NONE), cached)
    }

    /// Starts with `cached`; without `limits` nothing is cached.
    pub fn new(limits: Option<CacheLimits>, mut cached: BTreeMap<WorkerId, CachedUpdate>) -> Self {
        if limits.is_none() {
            cached.clear();
        }
        Self { limits, cached: Mutex::new(cached) }
    }

    /// Caches an accepted container of `meta.round`; a notice changes nothing.
    pub fn insert(&self, meta: &UpdateMeta, body: &Bytes) {
        if self.limits.is_some() && meta.reuse.is_none() {
            // A copy: the request's buffer is reused, and may be larger than what it holds.
            let last = CachedUpdate { round: meta.round, body: Bytes::copy_from_slice(body) };
            self.lock().insert(meta.worker_id.clone(), last);
        }
    }

    /// The container that a notice refers to.
    pub fn get(&self, notice: &UpdateMeta) -> Option<Bytes> {
        let cached = self.lock();
        let last = cached.get(&notice.worker_id)?;
        (Some(last.round) == notice.reuse).then(|| last.body.clone())
    }

    /// Evicts what has expired before `round`, and then the oldest beyond the limit of bytes.
    pub fn evict(&self, round: u64) {
        let Some(CacheLimits { max_age, max_bytes }) = self.limits else { return };
        let mut cached = self.lock();
        cached.retain(|_, last| last.round.saturating_add(max_age) >= round);
        let mut bytes: usize = cached.values().map(|last| last.body.len()).sum();
        while bytes > max_bytes {
            let oldest = cached.iter().min_by_key(|(_, last)| last.round).map(|(worker, _)| worker.clone());
            let Some(evicted) = oldest.and_then(|worker| cached.remove(&worker)) else { return };
            bytes -= evicted.body.len();
        }
    }

    /// A copy for the checkpoint; the bodies are shared.
    pub fn snapshot(&self) -> BTreeMap<WorkerId, CachedUpdate> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<WorkerId, CachedUpdate>> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
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
            metrics: Default::default(),
        }
    }

    #[test]
    fn the_threshold_is_the_weighted_sum_of_the_last_ten_steps() {
        let mut steps = Vec::new();
        assert_eq!(threshold(0.8, &steps), 0.0);
        for k in 0..12 {
            let [before, after] = [[0.0, 1.0], [k as f32, 1.0]].map(|values| values.map(f32::to_le_bytes));
            push_step(&mut steps, &before, &after);
        }
        // Squares of 2 to 11.
        assert_eq!(steps.len(), 10);
        assert!((threshold(0.8, &steps) - 0.08 * 505.0).abs() < 1e-4);
    }

    #[test]
    fn only_the_named_update_of_the_same_worker_is_reused() {
        let limits = CacheLimits { max_age: 3, max_bytes: 10 };
        let cache = UpdateCache::new(Some(limits), BTreeMap::new());
        let body = |text: &'static str| Bytes::from_static(text.as_bytes());
        cache.insert(&meta("a", 1, None), &body("first"));
        cache.insert(&meta("a", 2, None), &body("secon"));
        cache.insert(&meta("a", 3, Some(2)), &body("notice"));
        assert_eq!(cache.get(&meta("a", 4, Some(2))), Some(body("secon")));
        assert_eq!(cache.get(&meta("a", 4, Some(1))), None);
        assert_eq!(cache.get(&meta("b", 4, Some(2))), None);
        // The oldest goes when there is no room, and whatever is too old.
        cache.insert(&meta("b", 3, None), &body("12345"));
        cache.insert(&meta("c", 3, None), &body("1"));
        cache.evict(4);
        assert_eq!(cache.snapshot().keys().map(WorkerId::as_str).collect::<Vec<_>>(), ["b", "c"]);
        cache.evict(7);
        assert!(cache.snapshot().is_empty());
        let off = UpdateCache::default();
        off.insert(&meta("a", 1, None), &body("first"));
        assert_eq!(off.get(&meta("a", 2, Some(1))), None);
    }
}
