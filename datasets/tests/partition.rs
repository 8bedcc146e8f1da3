//! Partitions are exact, seeded, and skewed as their parameter states.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use fl_datasets::{Dataset, DatasetSpec, Part, Partition, Strata, load};
use proptest::prelude::*;
use std::collections::BTreeSet;

fn any_partition() -> impl Strategy<Value = Partition> {
    prop_oneof![
        Just(Partition::Iid),
        (1e-3..100.0f64).prop_map(Partition::Dirichlet),
        (1usize..6).prop_map(Partition::Shards),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_split_is_disjoint_complete_and_without_empty_parts(
        partition in any_partition(),
        labels in prop::collection::vec(0u32..7, 1..300),
        parts in 1usize..40,
        seed: u64,
    ) {
        let split = partition.split(&Strata::classes(&labels, 7), parts, seed);
        prop_assert_eq!(split.len(), parts);
        let mut all: Vec<u32> = split.concat();
        all.sort_unstable();
        prop_assert_eq!(all, (0..labels.len() as u32).collect::<Vec<_>>());
        if parts <= labels.len() {
            prop_assert!(split.iter().all(|part| !part.is_empty()));
        }
        prop_assert_eq!(split, partition.split(&Strata::classes(&labels, 7), parts, seed));
    }

    #[test]
    fn a_draw_is_a_set_within_the_limit(
        partition in any_partition(),
        labels in prop::collection::vec(0u32..7, 1..300),
        limit in 1usize..400,
        seed: u64,
    ) {
        let drawn = partition.draw(&Strata::classes(&labels, 7), "edge-1", seed, limit);
        prop_assert!(!drawn.is_empty() && drawn.len() <= limit);
        prop_assert!(drawn.is_sorted_by(|a, b| a < b));
        prop_assert!(drawn.iter().all(|&index| (index as usize) < labels.len()));
        prop_assert_eq!(drawn, partition.draw(&Strata::classes(&labels, 7), "edge-1", seed, limit));
    }
}

fn balanced(classes: u32, each: usize) -> Vec<u32> {
    (0..classes).flat_map(|class| vec![class; each]).collect()
}

fn classes_of(part: &[u32], labels: &[u32]) -> usize {
    part.iter().map(|&index| labels[index as usize]).collect::<BTreeSet<_>>().len()
}

/// Mean share of a part's largest class.
fn skew(split: &[Vec<u32>], labels: &[u32]) -> f64 {
    let share = |part: &Vec<u32>| {
        let mut counts = [0usize; 10];
        part.iter().for_each(|&index| counts[labels[index as usize] as usize] += 1);
        *counts.iter().max().unwrap() as f64 / part.len() as f64
    };
    split.iter().map(share).sum::<f64>() / split.len() as f64
}

#[test]
fn another_seed_or_worker_gives_other_samples() {
    let labels = balanced(10, 100);
    for partition in [Partition::Iid, Partition::Dirichlet(0.5), Partition::Shards(2)] {
        assert_ne!(
            partition.split(&Strata::classes(&labels, 10), 4, 1),
            partition.split(&Strata::classes(&labels, 10), 4, 2),
            "{partition}"
        );
        let draw = |worker| partition.draw(&Strata::classes(&labels, 10), worker, 1, 100);
        assert_ne!(draw("a"), draw("b"), "{partition}");
    }
}

#[test]
fn iid_parts_are_even_and_mixed() {
    let labels = balanced(10, 100);
    let split = Partition::Iid.split(&Strata::classes(&labels, 10), 7, 3);
    assert!(split.iter().all(|part| (142..=143).contains(&part.len())));
    assert!(split.iter().all(|part| classes_of(part, &labels) == 10));
}

#[test]
fn two_shards_hold_few_classes() {
    let labels = balanced(10, 600);
    let split = Partition::Shards(2).split(&Strata::classes(&labels, 10), 100, 3);
    assert!(split.iter().all(|part| part.len() == 60 && classes_of(part, &labels) <= 2));
    let drawn = Partition::Shards(2).draw(&Strata::classes(&labels, 10), "edge", 3, 50_000);
    assert!(classes_of(&drawn, &labels) <= 2);
}

#[test]
fn a_smaller_concentration_is_more_skewed() {
    let labels = balanced(10, 600);
    let skews: Vec<f64> = [0.05, 0.5, 5.0, 500.0]
        .map(|alpha| skew(&Partition::Dirichlet(alpha).split(&Strata::classes(&labels, 10), 50, 9), &labels))
        .to_vec();
    assert!(skews.is_sorted_by(|a, b| a > b), "{skews:?}");
    assert!(skews[0] > 0.6 && skews[3] < 0.2, "{skews:?}");
}

#[test]
fn a_skewed_draw_stays_skewed_without_a_limit() {
    let labels = balanced(10, 600);
    let drawn: Vec<_> = (0..50)
        .map(|w| Partition::Dirichlet(0.1).draw(&Strata::classes(&labels, 10), &format!("w{w}"), 9, 50_000))
        .collect();
    assert!(skew(&drawn, &labels) > 0.4);
    assert!(drawn.iter().all(|part| part.len() < 4000));
}

/// A text of `len` characters, cut into sequences of `length`.
fn text(len: usize, length: usize) -> Dataset {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.txt");
    std::fs::write(&path, "abcdefghij".repeat(len / 10)).unwrap();
    let data = load(&DatasetSpec::Text(path), None, Part::AllForTraining).unwrap();
    data.with_sequence_length(length).unwrap()
}

/// Runs of neighbouring samples.
fn runs(part: &[u32]) -> usize {
    1 + part.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count()
}

#[test]
fn a_share_of_a_text_is_a_stretch_of_it() {
    let data = text(20_000, 10);
    assert_eq!(data.train.len(), 1999);
    let split = Partition::Shards(1).split(&data.strata(), 8, 5);
    assert!(split.iter().all(|part| runs(part) == 1), "one stretch each");
    let split = Partition::Shards(3).split(&data.strata(), 8, 5);
    assert!(split.iter().all(|part| runs(part) <= 3 && part.len() >= 248), "three stretches each");
    assert!(Partition::Iid.split(&data.strata(), 8, 5).iter().all(|part| runs(part) > 100));
    let drawn = Partition::Shards(1).draw(&data.strata(), "edge", 5, 150);
    assert!(drawn.len() <= 150 && runs(&drawn) == 1);
    // The fewer stretches a worker has of the ten, the more unlike the others it is.
    let tenths = |part: &Vec<u32>| {
        let mut counts = [0usize; 10];
        part.iter().for_each(|&index| counts[index as usize * 10 / 1999] += 1);
        *counts.iter().max().unwrap() as f64 / part.len() as f64
    };
    let skew = |alpha| {
        let split = Partition::Dirichlet(alpha).split(&data.strata(), 8, 5);
        split.iter().map(tenths).sum::<f64>() / 8.0
    };
    assert!(skew(0.1) > 0.4 && skew(100.0) < 0.2, "{} {}", skew(0.1), skew(100.0));
}

#[test]
fn numbers_are_divided_by_their_size() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.csv");
    let rows: String = (0..1000).map(|i| format!("{},{}\n", i % 13, (i * 387) % 1000)).collect();
    std::fs::write(&path, format!("x,price\n{rows}")).unwrap();
    let spec = format!("csv:{}?target=price", path.display()).parse().unwrap();
    let data = load(&spec, None, Part::AllForTraining).unwrap();
    let spread = |partition: Partition| {
        let split = partition.split(&data.strata(), 10, 3);
        assert_eq!(split.concat().len(), 1000);
        let range = |part: &Vec<u32>| {
            let prices = part.iter().map(|&i| (i as i64 * 387) % 1000);
            prices.clone().max().unwrap() - prices.min().unwrap()
        };
        split.iter().map(range).sum::<i64>() as f64 / 10.0
    };
    assert!(spread(Partition::Shards(1)) < 200.0 && spread(Partition::Iid) > 900.0);
}
