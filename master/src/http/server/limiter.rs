//! A limit on refused updates per worker. Accepted ones are limited by the rounds themselves.

use fl_protocol::WorkerId;
use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// Senders that are remembered; beyond that the ones with a clean slate are forgotten.
const MAX_SENDERS: usize = 10_000;
/// Seconds of refusals that may come at once.
const BURST_S: f64 = 2.0;

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// A token bucket per (address, worker id): an id alone is anyone's to claim.
#[derive(Debug)]
pub struct Limiter {
    per_s: f64,
    buckets: Mutex<HashMap<(IpAddr, WorkerId), Bucket>>,
}

impl Limiter {
    /// Allows `per_s` refusals a second; 0 = any number.
    pub fn new(per_s: f64) -> Self {
        Self { per_s, buckets: Mutex::default() }
    }

    fn capacity(&self) -> f64 {
        (self.per_s * BURST_S).max(1.0)
    }

    /// Whether the sender has to wait.
    pub fn is_exhausted(&self, ip: IpAddr, worker: &WorkerId) -> bool {
        if self.per_s <= 0.0 {
            return false;
        }
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets
            .get(&(ip, worker.clone()))
            .is_some_and(|bucket| bucket.tokens + bucket.at.elapsed().as_secs_f64() * self.per_s < 1.0)
    }

    /// Notes a refusal.
    pub fn refused(&self, ip: IpAddr, worker: WorkerId) {
        if self.per_s <= 0.0 {
            return;
        }
        let (now, capacity) = (Instant::now(), self.capacity());
        let level = |bucket: &Bucket| {
            (bucket.tokens + now.duration_since(bucket.at).as_secs_f64() * self.per_s).min(capacity)
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_SENDERS {
            buckets.retain(|_, bucket| level(bucket) < capacity);
            if buckets.len() >= MAX_SENDERS {
                buckets.clear();
            }
        }
        let bucket = buckets.entry((ip, worker)).or_insert(Bucket { tokens: capacity, at: now });
        bucket.tokens = (level(bucket) - 1.0).max(0.0);
        bucket.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_allowed_and_other_senders_are_not_affected() {
        let limiter = Limiter::new(0.001);
        let ip = IpAddr::from([127, 0, 0, 1]);
        let (bad, good): (WorkerId, WorkerId) = ("bad".parse().unwrap(), "good".parse().unwrap());
        assert!(!limiter.is_exhausted(ip, &bad));
        limiter.refused(ip, bad.clone());
        assert!(limiter.is_exhausted(ip, &bad));
        assert!(!limiter.is_exhausted(ip, &good));
        assert!(!limiter.is_exhausted(IpAddr::from([127, 0, 0, 2]), &bad));
    }

    #[test]
    fn memory_is_bounded() {
        let limiter = Limiter::new(1.0);
        for i in 0..MAX_SENDERS + 10 {
            limiter.refused(IpAddr::from([127, 0, 0, 1]), format!("w{i}").parse().unwrap());
        }
        assert!(limiter.buckets.lock().unwrap().len() <= MAX_SENDERS);
    }
}
