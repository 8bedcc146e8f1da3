//! What partitions tell training samples apart by.

use crate::Dataset;
use fl_protocol::{Targets, Task};
use std::borrow::Cow;

/// Stretches that a text is divided into, and groups that numbers are divided into by their size.
const GROUPS: usize = 10;

/// The stratum of every sample: its class, or what stands for a class where there are none.
#[derive(Debug, Clone)]
pub struct Strata<'a> {
    pub(crate) labels: Cow<'a, [u32]>,
    pub(crate) count: usize,
    /// Whether neighbours belong together, as in a text: shards are then runs of the samples as they stand.
    pub(crate) ordered: bool,
}

impl<'a> Strata<'a> {
    /// Samples with these classes, all below `num_classes`.
    pub fn classes(labels: &'a [u32], num_classes: usize) -> Self {
        Self { labels: labels.into(), count: num_classes, ordered: false }
    }

    /// Ten stretches of `len` samples.
    fn stretches(len: usize) -> Self {
        let labels = (0..len).map(|index| (index * GROUPS / len) as u32).collect();
        Self { labels: Cow::Owned(labels), count: GROUPS, ordered: true }
    }

    /// Ten groups of equal size, by the first of each sample's `outputs` numbers: the smallest are group 0.
    fn sizes(values: &[f32], outputs: usize) -> Self {
        let firsts: Vec<f32> = values.iter().step_by(outputs.max(1)).copied().collect();
        let mut order: Vec<u32> = (0..firsts.len() as u32).collect();
        order.sort_by(|&a, &b| firsts[a as usize].total_cmp(&firsts[b as usize]));
        let mut labels = vec![0; firsts.len()];
        for (rank, &index) in order.iter().enumerate() {
            labels[index as usize] = (rank * GROUPS / order.len()) as u32;
        }
        Self { labels: Cow::Owned(labels), count: GROUPS, ordered: false }
    }

    /// By the first label that applies; samples without any are a stratum of their own.
    fn first_labels(values: &[f32], outputs: usize) -> Self {
        let first = |row: &[f32]| row.iter().position(|value| *value > 0.5).unwrap_or(outputs) as u32;
        let labels = values.chunks_exact(outputs.max(1)).map(first).collect();
        Self { labels: Cow::Owned(labels), count: outputs + 1, ordered: false }
    }
}

impl Dataset {
    /// What a [`Partition`](crate::Partition) tells the training samples apart by: their class; for a text, in which
    /// tenth of it they stand; for numbers, the tenth of the training samples that the first target belongs to; for
    /// several labels, the first that applies.
    pub fn strata(&self) -> Strata<'_> {
        match (&self.task, self.train.targets()) {
            (Task::LanguageModel, _) => Strata::stretches(self.train.len()),
            (Task::Regression { outputs }, Targets::Numbers(values)) => Strata::sizes(values, *outputs),
            (Task::Multilabel { outputs }, Targets::Numbers(values)) => {
                Strata::first_labels(values, *outputs)
            }
            (_, Targets::Classes(labels)) => Strata::classes(labels, self.num_classes()),
            // No data set pairs a classification with numbers as targets.
            (_, Targets::Numbers(values)) => Strata::stretches(values.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_fall_into_groups_of_equal_size() {
        let values: Vec<f32> = (0..20).flat_map(|i| [((i * 7) % 20) as f32, -1.0]).collect();
        let strata = Strata::sizes(&values, 2);
        let expected: Vec<u32> = (0..20).map(|i| ((i * 7) % 20) / 2).collect();
        assert_eq!((strata.count, &*strata.labels), (10, &expected[..]));
        assert!(Strata::sizes(&[], 2).labels.is_empty());
    }

    #[test]
    fn labels_are_told_apart_by_the_first_that_applies() {
        let strata = Strata::first_labels(&[0.0, 1.0, 1.0, 1.0, 0.0, 0.0], 2);
        assert_eq!((strata.count, &*strata.labels), (3, &[1, 0, 2][..]));
    }

    #[test]
    fn a_text_is_ten_stretches() {
        let strata = Strata::stretches(25);
        assert!(strata.ordered && strata.labels.is_sorted());
        assert_eq!((strata.labels[0], strata.labels[24]), (0, 9));
        assert_eq!(&*Strata::stretches(3).labels, [0, 3, 6]);
    }
}
