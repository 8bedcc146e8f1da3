//! Limits on what a sender may be refused for, and on how many workers it may claim to be.
//!
//! A worker id is anyone's to claim, so refusals are counted per (address, worker id) and, at a higher
//! rate, per address: changing the id does not help. Behind one address there may be a site of many
//! workers, so a worker whose update was accepted from there is not held up by what others send.
//! Accepted updates are limited by the rounds themselves.

use super::connections::network_of;
use fl_protocol::WorkerId;
use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Most remembered senders; beyond that those without recent refusals are forgotten.
const MAX_SENDERS: usize = 10_000;
/// Seconds of refusals that may come at once.
const BURST_S: f64 = 2.0;
/// Refusals allowed for an address, as a multiple of those for one worker.
const PER_ADDRESS: f64 = 10.0;
/// Worker ids of one address that may ask for tasks within [`WINDOW`].
const MAX_IDS: u32 = 10_000;
/// Ids of all addresses that are told apart within [`WINDOW`].
const MAX_ALL_IDS: usize = 100_000;
/// How long an id counts.
const WINDOW: Duration = Duration::from_secs(120);

/// Refusals and ids of every sender.
#[derive(Debug)]
pub struct Limiter {
    per_s: f64,
    hasher: RandomState,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    workers: HashMap<(IpAddr, WorkerId), Bucket>,
    addresses: HashMap<IpAddr, Bucket>,
    ids: Ids,
}

/// A token bucket.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
    /// Whether an update of this sender was accepted.
    is_known: bool,
}

/// The ids that have asked for tasks within the window.
#[derive(Debug, Default)]
struct Ids {
    since: Option<Instant>,
    seen: HashSet<u64>,
    per_address: HashMap<IpAddr, u32>,
}

impl Bucket {
    fn full(per_s: f64, now: Instant) -> Self {
        Self { tokens: capacity(per_s), at: now, is_known: false }
    }

    fn level(&self, per_s: f64, now: Instant) -> f64 {
        (self.tokens + now.duration_since(self.at).as_secs_f64() * per_s).min(capacity(per_s))
    }

    fn take(&mut self, per_s: f64, now: Instant) {
        self.tokens = (self.level(per_s, now) - 1.0).max(0.0);
        self.at = now;
    }
}

fn capacity(per_s: f64) -> f64 {
    (per_s * BURST_S).max(1.0)
}

impl Limiter {
    /// Allows `per_s` refusals a second for a worker, and ten times as many for an address; 0 = any
    /// number.
    pub fn new(per_s: f64) -> Self {
        Self { per_s, hasher: RandomState::new(), state: Mutex::default() }
    }

    /// Whether updates of the sender are refused for now.
    pub fn is_exhausted(&self, ip: IpAddr, worker: &WorkerId) -> bool {
        if self.per_s <= 0.0 {
            return false;
        }
        let (address, now) = (network_of(ip), Instant::now());
        let state = self.lock();
        let of_worker = state.workers.get(&(address, worker.clone()));
        let is_known = of_worker.is_some_and(|bucket| bucket.is_known);
        of_worker.is_some_and(|bucket| bucket.level(self.per_s, now) < 1.0)
            || (!is_known && self.is_address_empty(&state, address, now))
    }

    /// Whether an update from that address is refused before it is read: too many were refused, and none was
    /// accepted.
    pub fn is_address_exhausted(&self, ip: IpAddr) -> bool {
        if self.per_s <= 0.0 {
            return false;
        }
        let (address, now) = (network_of(ip), Instant::now());
        let state = self.lock();
        let is_known = state.addresses.get(&address).is_some_and(|bucket| bucket.is_known);
        !is_known && self.is_address_empty(&state, address, now)
    }

    fn is_address_empty(&self, state: &State, address: IpAddr, now: Instant) -> bool {
        let bucket = state.addresses.get(&address);
        bucket.is_some_and(|bucket| bucket.level(self.per_s * PER_ADDRESS, now) < 1.0)
    }

    /// Notes a refusal; the worker may be unknown.
    pub fn refused(&self, ip: IpAddr, worker: Option<WorkerId>) {
        if self.per_s <= 0.0 {
            return;
        }
        let (address, now) = (network_of(ip), Instant::now());
        let mut state = self.lock();
        let per_address = self.per_s * PER_ADDRESS;
        bucket_of(&mut state.addresses, address, per_address, now).take(per_address, now);
        if let Some(worker) = worker {
            bucket_of(&mut state.workers, (address, worker), self.per_s, now).take(self.per_s, now);
        }
    }

    /// Notes that an update was accepted.
    pub fn accepted(&self, ip: IpAddr, worker: &WorkerId) {
        if self.per_s <= 0.0 {
            return;
        }
        let (address, now) = (network_of(ip), Instant::now());
        let mut state = self.lock();
        bucket_of(&mut state.addresses, address, self.per_s * PER_ADDRESS, now).is_known = true;
        bucket_of(&mut state.workers, (address, worker.clone()), self.per_s, now).is_known = true;
    }

    /// Whether `worker` may ask for a task: an address may claim at most `MAX_IDS` ids within `WINDOW`.
    pub fn may_ask(&self, ip: IpAddr, worker: &WorkerId) -> bool {
        if self.per_s <= 0.0 {
            return true;
        }
        let (address, now) = (network_of(ip), Instant::now());
        let id = self.hasher.hash_one((address, worker));
        let ids = &mut self.lock().ids;
        if ids.since.is_none_or(|since| now.duration_since(since) > WINDOW) {
            *ids = Ids { since: Some(now), ..Ids::default() };
        }
        if ids.seen.contains(&id) {
            return true;
        }
        if ids.seen.len() >= MAX_ALL_IDS {
            // The table is full: a new id is neither counted nor refused for that.
            return ids.per_address.get(&address).is_none_or(|count| *count < MAX_IDS);
        }
        let count = ids.per_address.entry(address).or_default();
        if *count >= MAX_IDS {
            return false;
        }
        *count += 1;
        ids.seen.insert(id);
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bucket of a sender. If there are too many, the ones that are full are forgotten, unknown senders
/// first; then all.
fn bucket_of<K: Eq + std::hash::Hash>(
    buckets: &mut HashMap<K, Bucket>,
    sender: K,
    per_s: f64,
    now: Instant,
) -> &mut Bucket {
    if buckets.len() >= MAX_SENDERS && !buckets.contains_key(&sender) {
        let is_full = |bucket: &Bucket| bucket.level(per_s, now) >= capacity(per_s);
        buckets.retain(|_, bucket| bucket.is_known || !is_full(bucket));
        if buckets.len() >= MAX_SENDERS {
            buckets.retain(|_, bucket| !is_full(bucket));
        }
        if buckets.len() >= MAX_SENDERS {
            buckets.clear();
        }
    }
    buckets.entry(sender).or_insert_with(|| Bucket::full(per_s, now))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([127, 0, 0, n])
    }

    fn id(name: impl ToString) -> WorkerId {
        name.to_string().parse().unwrap()
    }

    #[test]
    fn a_burst_is_allowed_and_other_senders_are_not_affected() {
        let limiter = Limiter::new(0.001);
        let (bad, good) = (id("bad"), id("good"));
        limiter.accepted(ip(1), &good);
        assert!(!limiter.is_exhausted(ip(1), &bad));
        limiter.refused(ip(1), Some(bad.clone()));
        assert!(limiter.is_exhausted(ip(1), &bad));
        assert!(!limiter.is_exhausted(ip(1), &good));
        assert!(!limiter.is_exhausted(ip(2), &bad));
    }

    #[test]
    fn changing_the_id_does_not_evade_the_limit() {
        let limiter = Limiter::new(0.1);
        let tries = (0..1000)
            .take_while(|i| {
                let new = id(format!("evil{i}"));
                let goes_on = !limiter.is_exhausted(ip(1), &new) && !limiter.is_address_exhausted(ip(1));
                limiter.refused(ip(1), Some(new));
                goes_on
            })
            .count();
        // Twice the rate of the address, and hardly more while the test runs.
        assert!((2..20).contains(&tries), "{tries}");
        assert!(!limiter.is_exhausted(ip(2), &id("evil0")), "another address is not affected");
    }

    #[test]
    fn bodies_without_an_id_count_for_their_address() {
        let limiter = Limiter::new(0.001);
        limiter.refused(ip(1), None);
        assert!(limiter.is_address_exhausted(ip(1)));
    }

    #[test]
    fn a_known_worker_behind_the_same_address_goes_on() {
        let limiter = Limiter::new(0.001);
        let good = id("good");
        limiter.accepted(ip(1), &good);
        for i in 0..100 {
            limiter.refused(ip(1), Some(id(format!("evil{i}"))));
        }
        assert!(limiter.is_exhausted(ip(1), &id("new")));
        assert!(!limiter.is_exhausted(ip(1), &good));
        assert!(!limiter.is_address_exhausted(ip(1)), "its updates are read");
    }

    #[test]
    fn memory_is_bounded() {
        let limiter = Limiter::new(1.0);
        for i in 0..MAX_SENDERS + 10 {
            limiter.refused(ip(1), Some(id(format!("w{i}"))));
            limiter.accepted(ip(1), &id(format!("v{i}")));
        }
        assert!(limiter.lock().workers.len() <= MAX_SENDERS);
        for i in 0..MAX_SENDERS as u32 + 10 {
            limiter.refused(IpAddr::from(i.to_be_bytes()), None);
        }
        assert!(limiter.lock().addresses.len() <= MAX_SENDERS);
    }

    #[test]
    fn an_address_claims_only_so_many_ids_and_known_ones_go_on() {
        let limiter = Limiter::new(1.0);
        let asked = (0..2 * MAX_IDS).filter(|i| limiter.may_ask(ip(1), &id(format!("w{i}")))).count();
        assert_eq!(asked, MAX_IDS as usize);
        assert!(limiter.may_ask(ip(1), &id("w0")), "one that is known may ask again");
        assert!(limiter.may_ask(ip(2), &id("other")), "another address may ask");
        for network in 3..50 {
            (0..MAX_IDS).for_each(|i| _ = limiter.may_ask(ip(network), &id(format!("w{i}"))));
        }
        assert!(limiter.lock().ids.seen.len() <= MAX_ALL_IDS);
    }
}
