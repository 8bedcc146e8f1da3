//! Which samples are this worker's, and which of them each step of a round sees.

use crate::{
    plan::{Plan, Work},
    settings::Config,
};
use fl_datasets::{Dataset, Purpose, seeded_rng};
use fl_protocol::WorkerId;
use rand::{rngs::ChaCha8Rng, seq::SliceRandom};

/// The samples of this worker: the part with `PARTITION_ID`, otherwise a draw from its id.
pub(crate) fn own_samples(config: &Config, data: &Dataset) -> Vec<u32> {
    let (strata, seed) = (data.strata(), config.seed);
    let (worker, limit) = (config.worker_id.as_str(), config.data.dataset_size);
    let Some(share) = config.data.share else {
        return config.data.partition.draw(&strata, worker, seed, limit);
    };
    let mut own = config.data.partition.split(&strata, share.of, seed).swap_remove(share.id);
    if own.len() > limit {
        // Parts are sorted: their beginning would be biased where the file is sorted by class.
        own.shuffle(&mut seeded_rng(seed, worker, 0, Purpose::Partition));
        own.truncate(limit);
    }
    own
}

/// Divides the samples of a client into those that it trains on, in their order, and those that it evaluates models on:
/// `share` of them, at least one and not all; none of a single sample, or with a share of 0. Seed and name of the client
/// determine which.
pub fn hold_out(own: Vec<u32>, share: f64, seed: u64, worker: &WorkerId) -> (Vec<u32>, Vec<u32>) {
    if share <= 0.0 || own.len() < 2 {
        return (own, Vec::new());
    }
    let count = ((share * own.len() as f64).round() as usize).clamp(1, own.len() - 1);
    let mut places: Vec<u32> = (0..own.len() as u32).collect();
    places.shuffle(&mut seeded_rng(seed, worker.as_str(), 0, Purpose::LocalTest));
    let mut is_held = vec![false; own.len()];
    places.iter().take(count).for_each(|place| is_held[*place as usize] = true);
    let part = |wanted: bool| {
        let chosen = own.iter().zip(&is_held).filter(|(_, held)| **held == wanted);
        chosen.map(|(sample, _)| *sample).collect()
    };
    (part(false), part(true))
}

/// Draws batches without replacement, reshuffling after each pass.
pub(crate) struct Batches {
    order: Vec<u32>,
    rng: ChaCha8Rng,
    size: usize,
    next: usize,
    work_left: Work,
}

impl Batches {
    pub(crate) fn new(order: Vec<u32>, plan: &Plan, rng: ChaCha8Rng) -> Self {
        let next = order.len();
        Self { size: plan.batch_size.min(order.len()), order, rng, next, work_left: plan.work }
    }

    /// The next batch's indices. With steps every batch is full; with epochs the last one of a pass may
    /// be smaller, so that each sample is seen once.
    pub(crate) fn next(&mut self) -> Option<&[u32]> {
        match &mut self.work_left {
            Work::Steps(0) => return None,
            Work::Steps(left) => {
                *left -= 1;
                if self.next + self.size > self.order.len() {
                    self.shuffle();
                }
            }
            Work::Epochs(left) => {
                if self.next == self.order.len() {
                    if *left == 0 {
                        return None;
                    }
                    *left -= 1;
                    self.shuffle();
                }
            }
        }
        let start = self.next;
        self.next = (start + self.size).min(self.order.len());
        Some(&self.order[start..self.next])
    }

    fn shuffle(&mut self) {
        self.order.shuffle(&mut self.rng);
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fl_model::OptimizerConfig;
    use fl_quant::{FeedbackRule, Scheme, Spec};
    use rand::SeedableRng;

    fn batches(samples: u32, batch_size: usize, work: Work) -> Vec<Vec<u32>> {
        let plan = Plan {
            work,
            batch_size,
            sgd: OptimizerConfig::default(),
            encoding: Spec::new(Scheme::None, 8),
            feedback: FeedbackRule::Nothing,
            lazy_below: None,
            compute_factor: None,
        };
        let mut batches = Batches::new((0..samples).collect(), &plan, ChaCha8Rng::seed_from_u64(1));
        let mut all = Vec::new();
        while let Some(batch) = batches.next() {
            all.push(batch.to_vec());
        }
        all
    }

    #[test]
    fn a_share_is_held_out_by_seed_and_name_and_a_share_of_zero_changes_nothing() {
        let held = |share: f64, count: u32, seed, worker: &str| {
            hold_out((0..count).rev().collect(), share, seed, &worker.parse().unwrap())
        };
        let (train, test) = held(0.1, 50, 1, "a");
        assert_eq!((train.len(), test.len()), (45, 5));
        assert!(train.is_sorted_by(|a, b| a > b), "the order stays");
        let mut all = [train.clone(), test.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
        assert_eq!(held(0.1, 50, 1, "a"), (train, test.clone()));
        assert_ne!(held(0.1, 50, 1, "b").1, test);
        assert_ne!(held(0.1, 50, 2, "a").1, test);
        assert_eq!(held(0.0, 3, 1, "a"), (vec![2, 1, 0], vec![]));
        assert_eq!(held(0.5, 1, 1, "a"), (vec![0], vec![]));
        let sizes = |share, count| held(share, count, 1, "a").1.len();
        assert_eq!((sizes(0.1, 2), sizes(0.9, 2), sizes(0.1, 14)), (1, 1, 1));
    }

    #[test]
    fn an_epoch_sees_every_sample_once() {
        let all = batches(10, 4, Work::Epochs(2));
        assert_eq!(all.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2, 4, 4, 2]);
        let mut first = all[..3].concat();
        first.sort_unstable();
        assert_eq!(first, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn steps_are_full_batches_however_few_the_samples() {
        assert!(batches(10, 4, Work::Steps(7)).iter().all(|batch| batch.len() == 4));
        let small = batches(3, 64, Work::Steps(5));
        assert_eq!(small.len(), 5);
        assert!(small.iter().all(|batch| batch.len() == 3));
    }
}
