//! The fused engine against Burn's flex, and flex against finite differences.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{
    classifier, conv, gradients, group_norm, layer_lists, learner, learner_if_able, linear, nested_spec,
    nested_specs, noise, norm, parameters, read, relative_error, step, wide_convolution_lists, worst_error,
};
use fl_model::{Backend, Layer, ModelSpec, OptimizerConfig};
use fl_protocol::{Input, Task};
use proptest::{prelude::*, test_runner::RngSeed};

/// The largest error of any tensor, of the loss, and of the parameters after a step; none if the fused engine does
/// not run the network.
fn compare(spec: &ModelSpec, batch: usize, seed: u64) -> Option<f64> {
    let samples = noise(spec, batch, seed);
    let start = parameters(spec, seed);
    let run = |backend| {
        let mut learner = learner_if_able(spec, backend)?;
        learner.load(&start);
        learner.begin_round(seed);
        let (loss, gradient) = gradients(&mut *learner, &samples);
        let same = step(&mut *learner, &samples, &OptimizerConfig::default()).unwrap();
        assert_eq!(loss, same, "a step starts from the same loss");
        Some((loss, gradient, read(&*learner)))
    };
    let (loss, gradient, moved) = run(Backend::Fused)?;
    let (expected_loss, expected, expected_moved) = run(Backend::Flex)?;
    let mut worst = f64::from((loss - expected_loss).abs() / expected_loss);
    worst = worst.max(relative_error(&moved, &expected_moved));
    Some(worst.max(worst_error(spec, &gradient, &expected)))
}

#[test]
fn every_preset_has_burns_gradients() {
    for name in ["softmax", "mlp", "cnn", "mcmahan_cnn"] {
        for shape in [[1, 28, 28], [3, 32, 32]] {
            let spec = ModelSpec::classifier(name, &shape, 10, 100_000).unwrap();
            let worst = compare(&spec, 19, 7).unwrap();
            assert!(worst < 1e-5, "{name}: {worst:e}");
        }
    }
}

/// With a smooth activation: among the hundred thousands of values of a deep network some lie so close to 0 that two
/// orders of summation put them on different sides of a ReLU.
#[test]
fn deep_presets_have_burns_gradients() {
    for name in ["resnet20", "mobilenet_small"] {
        for shape in [[1, 28, 28], [3, 32, 32]] {
            let spec = ModelSpec::classifier(name, &shape, 10, 100_000).unwrap();
            let smooth = spec.to_json().replace(r#"{"type":"relu"}"#, r#"{"type":"silu"}"#);
            let worst = compare(&ModelSpec::from_json(&smooth).unwrap(), 5, 7).unwrap();
            assert!(worst < 3e-5, "{name}: {worst:e}");
        }
    }
}

#[test]
fn presets_on_text_have_burns_gradients() {
    let input = Input::Tokens { shape: vec![80], vocab: 40 };
    for name in ["char_lstm", "tiny_transformer"] {
        let spec = ModelSpec::preset(name, &input, &Task::LanguageModel, 0).unwrap();
        if let Some(worst) = compare(&spec, 2, 7) {
            assert!(worst < 1e-4, "{name}: {worst:e}");
        }
    }
}

#[test]
fn vectors_need_no_flatten() {
    let layers = vec![
        Layer::Dropout { p: 0.2 },
        linear(13, 21),
        Layer::Relu,
        Layer::Dropout { p: 0.5 },
        linear(21, 3),
    ];
    let spec = classifier("vector", &[13], 3, layers);
    assert!(compare(&spec, 33, 1).unwrap() < 1e-5);
}

/// The same lists in every run: among random ones there is now and then a ReLU whose input is so
/// close to 0 that two orders of summation put it on different sides.
fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 128,
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_layer_lists_have_burns_gradients(
        spec in layer_lists(),
        batch in 1usize..36,
        seed in 0u64..1000,
    ) {
        prop_assert!(spec.validate().is_ok());
        let worst = compare(&spec, batch, seed).unwrap();
        prop_assert!(worst < 1e-5, "{:e} {:?}", worst, spec.layers);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..config() })]

    #[test]
    fn random_wide_convolutions_have_burns_gradients(
        spec in wide_convolution_lists(),
        batch in 1usize..20,
        seed in 0u64..1000,
    ) {
        prop_assert!(spec.validate().is_ok());
        let worst = compare(&spec, batch, seed).unwrap();
        prop_assert!(worst < 1e-5, "{:e} {:?}", worst, spec.layers);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..config() })]

    #[test]
    fn random_nested_networks_have_burns_gradients(
        spec in nested_specs(),
        batch in 2usize..9,
        seed in 0u64..1000,
    ) {
        prop_assert!(spec.validate().is_ok(), "{:?} {:?}", spec.validate(), spec);
        if let Some(worst) = compare(&spec, batch, seed) {
            prop_assert!(worst < 3e-5, "{:e} {:?}", worst, spec);
        }
    }
}

#[test]
fn the_generator_draws_every_layer_and_task() {
    let text: String = (0..400).map(|seed| nested_spec(seed).to_json()).collect();
    for kind in [
        "conv2d",
        "conv1d",
        "linear",
        "batch_norm",
        "group_norm",
        "layer_norm",
        "relu",
        "leaky_relu",
        "gelu",
        "silu",
        "tanh",
        "sigmoid",
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "max_pool1d",
        "avg_pool1d",
        "adaptive_avg_pool1d",
        "dropout",
        "embedding",
        "positional_embedding",
        "lstm",
        "gru",
        "attention",
        "flatten",
        "mean_tokens",
        "last_token",
        "residual",
        "branches",
        "sequential",
        "classification",
        "language_model",
        "regression",
        "multilabel",
    ] {
        assert!(text.contains(&format!(r#""type":"{kind}""#)), "{kind}");
    }
}

/// Along the gradient, scaled to length 1, the slope of the training loss is the gradient's norm.
#[test]
fn burns_gradients_of_nested_networks_are_the_slopes_of_the_loss() {
    let (mut good, mut all) = (0, 0);
    for seed in 0..150 {
        let spec = nested_spec(seed);
        let samples = noise(&spec, 4, seed);
        let start = parameters(&spec, seed);
        let mut learner = learner(&spec, Backend::Flex);
        learner.load(&start);
        learner.begin_round(seed);
        let (_, gradient) = gradients(&mut *learner, &samples);
        let norm = norm(&gradient);
        let mut loss_at = |length: f64| {
            let along = |(w, g): (&f32, &f32)| (f64::from(*w) + length * f64::from(*g) / norm) as f32;
            learner.load(&start.iter().zip(&gradient).map(along).collect::<Vec<_>>());
            f64::from(gradients(&mut *learner, &samples).0)
        };
        let slope = (loss_at(3e-3) - loss_at(-3e-3)) / 6e-3;
        all += 1;
        good += usize::from((slope - norm).abs() < 0.02 * norm);
    }
    // A step across the kink of a ReLU or of a maximum has another slope.
    assert!(good * 100 >= all * 95, "{good} of {all}");
}

#[test]
fn a_smooth_network_has_the_slopes_of_its_evaluation() {
    let layers = vec![conv(2, 4, 3, 1, 2), group_norm(2, 4), Layer::Flatten, linear(36, 3)];
    let spec = classifier("smooth", &[2, 5, 5], 3, layers);
    let samples = noise(&spec, 6, 3);
    let start = parameters(&spec, 3);
    let mut learner = learner(&spec, Backend::Flex);
    learner.load(&start);
    let (_, gradient) = gradients(&mut *learner, &samples);
    let mut loss_at = |index: usize, step: f32| {
        let mut moved = start.clone();
        moved[index] += step;
        learner.load(&moved);
        learner.evaluate(samples.batch()).unwrap().loss_sum / 6.0
    };
    for index in (0..start.len()).step_by(7) {
        let slope = (loss_at(index, 1e-2) - loss_at(index, -1e-2)) / 2e-2;
        let error = (slope - f64::from(gradient[index])).abs();
        assert!(error < 2e-3 * (1.0 + slope.abs()), "parameter {index}: {slope} {}", gradient[index]);
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    for name in ["softmax", "mlp", "cnn", "mcmahan_cnn"] {
        let spec = ModelSpec::classifier(name, &[1, 28, 28], 10, 100_000).unwrap();
        let samples = noise(&spec, 64, 5);
        let train = |threads| {
            let mut learner = spec.learner(Backend::Fused, threads).unwrap();
            learner.load(&parameters(&spec, 5));
            for _ in 0..3 {
                step(&mut *learner, &samples, &OptimizerConfig::default()).unwrap();
            }
            read(&*learner).into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let one = train(1);
        assert!(one == train(2) && one == train(3), "{name}");
    }
}
