//! Client sampling: a seeded draw among the workers that are present.

use fl_protocol::WorkerId;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Seconds after its last question for which a worker counts as present: two of the longest polls.
const PRESENT_S: f64 = 2.0 * fl_protocol::limits::MAX_WAIT_S as f64;
/// Workers that are remembered as present. Anyone can ask under any name, so beyond that the half that
/// asked longest ago is forgotten; a worker that is still there asks again within seconds.
const MAX_PRESENT: usize = 100_000;

#[derive(Debug, Clone)]
pub(super) struct Sampling {
    size: usize,
    seed: u64,
    timeout_s: f64,
    /// Last question of every worker that is present.
    seen: BTreeMap<WorkerId, f64>,
    /// Chosen workers of this round and since when they may train.
    chosen: BTreeMap<WorkerId, f64>,
}

impl Sampling {
    pub(super) fn new(size: usize, seed: u64, timeout_s: f64) -> Self {
        Self { size, seed, timeout_s, seen: BTreeMap::new(), chosen: BTreeMap::new() }
    }

    /// Draws for a new round in which nobody trains before `starts`. If fewer are present than are wanted, the next
    /// ones that ask fill up.
    pub(super) fn open(&mut self, round: u64, now: f64, starts: f64) {
        self.seen.retain(|_, last| now - *last <= PRESENT_S);
        let chosen = draw(self.seed, round, self.seen.keys(), self.size);
        self.chosen = chosen.into_iter().map(|worker| (worker.clone(), starts)).collect();
    }

    /// Whether `worker` is to train. A chosen worker that stays silent loses its place to the next
    /// one that asks; one whose update is there (`has_slot`) keeps it.
    pub(super) fn ask(
        &mut self,
        worker: &WorkerId,
        now: f64,
        starts: f64,
        has_slot: impl Fn(&WorkerId) -> bool,
    ) -> bool {
        self.remember(worker, now);
        if self.chosen.contains_key(worker) {
            return true;
        }
        if self.chosen.len() >= self.size {
            let timeout_s = self.timeout_s;
            self.chosen.retain(|id, since| now - *since <= timeout_s || has_slot(id));
        }
        if self.chosen.len() >= self.size {
            return false;
        }
        self.chosen.insert(worker.clone(), now.max(starts));
        true
    }

    fn remember(&mut self, worker: &WorkerId, now: f64) {
        self.seen.insert(worker.clone(), now);
        if self.seen.len() > MAX_PRESENT {
            let mut times: Vec<f64> = self.seen.values().copied().collect();
            let (_, median, _) = times.select_nth_unstable_by(MAX_PRESENT / 2, f64::total_cmp);
            let median = *median;
            self.seen.retain(|_, last| *last > median);
            self.seen.insert(worker.clone(), now);
        }
    }
}

/// Draws `size` of `workers` for a round. The draw of one worker does not depend on who else is there.
pub fn draw<'a>(
    seed: u64,
    round: u64,
    workers: impl Iterator<Item = &'a WorkerId>,
    size: usize,
) -> Vec<&'a WorkerId> {
    let mut ranked: Vec<_> = workers.map(|worker| (rank(seed, round, worker), worker)).collect();
    ranked.sort_unstable();
    ranked.into_iter().take(size).map(|(_, worker)| worker).collect()
}

/// A worker's place in the draw of a round: independent of who else is there.
fn rank(seed: u64, round: u64, worker: &WorkerId) -> [u8; 32] {
    Sha256::new()
        .chain_update(seed.to_le_bytes())
        .chain_update(round.to_le_bytes())
        .chain_update(worker.as_str())
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(i: usize) -> WorkerId {
        format!("w{i}").parse().unwrap()
    }

    #[test]
    fn the_draw_is_fair_and_repeatable() {
        let draw = |round| {
            let mut sampling = Sampling::new(10, 7, 60.0);
            (0..100).for_each(|i| {
                sampling.ask(&id(i), 0.0, 0.0, |_| false);
            });
            sampling.open(round, 1.0, 1.0);
            sampling.chosen.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let mut counts = BTreeMap::<WorkerId, usize>::new();
        (0..400).flat_map(draw).for_each(|w| *counts.entry(w).or_default() += 1);
        assert_eq!(counts.len(), 100);
        assert!(counts.values().all(|n| (15..70).contains(n)), "{counts:?}");
    }

    #[test]
    fn a_silent_worker_loses_its_place_and_a_done_one_keeps_it() {
        let mut sampling = Sampling::new(2, 7, 60.0);
        assert!(sampling.ask(&id(0), 0.0, 0.0, |_| false));
        assert!(sampling.ask(&id(1), 0.0, 0.0, |_| false));
        assert!(!sampling.ask(&id(2), 59.0, 0.0, |_| false));
        assert!(sampling.ask(&id(2), 61.0, 0.0, |w| *w == id(0)));
        assert!(!sampling.ask(&id(3), 61.0, 0.0, |w| *w == id(0)));
    }

    #[test]
    fn asking_under_ever_new_names_takes_bounded_memory() {
        let mut sampling = Sampling::new(1, 7, 60.0);
        for i in 0..MAX_PRESENT + 10 {
            sampling.ask(&id(i), i as f64 * 1e-3, 0.0, |_| false);
        }
        assert!(sampling.seen.len() <= MAX_PRESENT / 2 + 10);
        assert!(sampling.seen.contains_key(&id(MAX_PRESENT + 9)), "the newest stay");
        // All at one time: a flood.
        let mut sampling = Sampling::new(1, 7, 60.0);
        for i in 0..2 * MAX_PRESENT {
            sampling.ask(&id(i), 0.0, 0.0, |_| false);
        }
        assert!(sampling.seen.len() <= MAX_PRESENT);
    }

    #[test]
    fn those_who_left_are_not_drawn() {
        let mut sampling = Sampling::new(5, 7, 60.0);
        sampling.ask(&id(0), 0.0, 0.0, |_| false);
        sampling.ask(&id(1), 100.0, 0.0, |_| false);
        sampling.open(1, 130.0, 130.0);
        assert_eq!(sampling.chosen.into_keys().collect::<Vec<_>>(), [id(1)]);
    }
}
