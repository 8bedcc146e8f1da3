//! Batches that go through the network in pieces.

use super::*;
use crate::{common::*, spec::Layer};

/// The learner as it is, and one that takes at most five samples at a time.
fn pair(spec: &ModelSpec) -> [GraphLearner; 2] {
    let mut pair = [(); 2].map(|()| GraphLearner::new(spec, 1).unwrap());
    pair[1].batches.most = 5;
    pair
}

#[test]
fn a_batch_in_pieces_is_worth_the_whole() {
    let layers = vec![
        conv(2, 6, 3, 1, 1),
        group_norm(2, 6),
        Layer::Silu,
        Layer::Dropout { p: 0.3 },
        Layer::Flatten,
        linear(6 * 64, 5),
    ];
    let images = classifier("pieces", &[2, 8, 8], 5, layers);
    for spec in [images, nested_spec(3), nested_spec(4), nested_spec(5)] {
        if spec.has_layer(|layer| matches!(layer, Layer::BatchNorm { .. })) || !GraphLearner::runs(&spec) {
            continue;
        }
        let samples = noise(&spec, 23, 1);
        for config in [
            OptimizerConfig::default(),
            OptimizerConfig { momentum: 0.9, clip_norm: Some(0.1), ..OptimizerConfig::default() },
        ] {
            let [whole, pieces] = pair(&spec).map(|mut learner| {
                learner.load(&parameters(&spec, 2));
                learner.begin_round(7);
                let (loss, gradient) = gradients(&mut learner, &samples);
                let losses = [(); 2].map(|()| step(&mut learner, &samples, &config).unwrap());
                (loss, gradient, losses, read(&learner))
            });
            assert!((whole.0 - pieces.0).abs() < 1e-5 * whole.0.abs(), "{} {}", whole.0, pieces.0);
            assert!(relative_error(&pieces.1, &whole.1) < 1e-5, "{}", spec.to_json());
            assert!(
                (whole.2[1] - pieces.2[1]).abs() < 1e-4 * whole.2[1].abs(),
                "{:?} {:?}",
                whole.2,
                pieces.2
            );
            assert!(relative_error(&pieces.3, &whole.3) < 1e-5, "{}", spec.to_json());
        }
    }
}

#[test]
fn pieces_move_running_moments_in_a_step_alone() {
    let layers = vec![
        conv(1, 3, 3, 1, 1),
        Layer::BatchNorm { channels: 3, eps: 1e-5, momentum: 0.1 },
        Layer::Flatten,
        linear(48, 2),
    ];
    let spec = classifier("moments", &[1, 4, 4], 2, layers);
    let [_, mut learner] = pair(&spec);
    let (start, samples) = (parameters(&spec, 1), noise(&spec, 12, 1));
    learner.load(&start);
    gradients(&mut learner, &samples);
    assert_eq!(read(&learner), start);
    step(&mut learner, &samples, &OptimizerConfig::default()).unwrap();
    let moved = read(&learner);
    for range in spec.buffers() {
        assert_ne!(moved[range.clone()], start[range]);
    }
}

#[test]
fn a_frozen_layer_keeps_no_input() {
    let layers =
        vec![conv(4, 4, 3, 1, 1), conv(4, 4, 3, 1, 1), conv(4, 4, 3, 1, 1), Layer::Flatten, linear(256, 2)];
    let spec = classifier("chain", &[4, 8, 8], 2, layers);
    let mut learner = GraphLearner::new(&spec, 1).unwrap();
    let floats = |learner: &GraphLearner| learner.training.slots.iter().sum::<usize>();
    let all = floats(&learner);
    let layout = spec.layout();
    let [first, .., last] = layout.tensors() else { panic!("tensors expected") };
    learner.set_trainable(std::slice::from_ref(&(last.offset..last.offset + last.len)));
    assert_eq!(learner.training.backward.len(), 1, "nothing below the first trained layer goes backward");
    assert!(floats(&learner) < all, "{} {all}", floats(&learner));
    learner.set_trainable(std::slice::from_ref(&(0..first.len)));
    assert!(learner.training.backward.len() > 4);
    assert!(floats(&learner) < all);
}
