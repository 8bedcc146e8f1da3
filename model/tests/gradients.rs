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

/// Sizes that the random networks above do not reach: more channels than a vector, groups, wide kernels, long
/// sequences. Activations are smooth for the reason given above.
#[test]
fn networks_of_odd_sizes_have_burns_gradients() {
    let conv = |out: usize, rest: &str| format!(r#"{{"type":"conv2d","out_channels":{out},{rest}}}"#);
    let linear = |out: usize| format!(r#"{{"type":"linear","out_features":{out}}}"#);
    let norm_silu = r#"{"type":"batch_norm"},{"type":"silu"}"#;
    let drop = r#"{"type":"dropout","p":0.2}"#;
    let pooled =
        format!(r#"{{"type":"adaptive_avg_pool2d","size":[2,3]}},{{"type":"flatten"}},{}"#, linear(5));
    let classes = r#""task":{"type":"classification","classes":5}"#;
    let residual_block = |out: usize, stride: usize| {
        let kernel = r#""kernel":3,"padding":1,"bias":false"#;
        let first = conv(out, &format!(r#"{kernel},"stride":{stride}"#));
        let shortcut = conv(out, &format!(r#""kernel":1,"stride":{stride}"#));
        format!(
            r#"{{"type":"residual","body":[{first},{norm_silu},{}],"shortcut":[{shortcut}]}}"#,
            conv(out, kernel)
        )
    };
    let transformer = format!(
        r#"{{"type":"residual","body":[{{"type":"layer_norm"}},{{"type":"attention","heads":3}},{drop}]}},
           {{"type":"residual","body":[{{"type":"layer_norm"}},{},{{"type":"gelu"}},{}]}}"#,
        linear(200),
        linear(96)
    );
    let image = |shape: &str, layers: &[String]| {
        let layers = layers.join(",");
        format!(r#""input":{{"kind":"image","shape":{shape}}},{classes},"layers":[{layers},{pooled}]"#)
    };
    let others =
        |input: &str, task: &str, layers: &str| format!(r#""input":{input},{task},"layers":[{layers}]"#);
    let tokens = |length: usize| format!(r#"{{"kind":"tokens","shape":[{length}],"vocab":41}}"#);
    let language = r#""task":{"type":"language_model"}"#;
    let specs = [
        image("[3,19,15]", &[residual_block(12, 1), residual_block(27, 2), residual_block(50, 2)]),
        image(
            "[8,14,13]",
            &[
                conv(16, r#""kernel":3,"padding":1,"groups":4"#),
                r#"{"type":"silu"}"#.into(),
                conv(36, r#""kernel":3,"padding":2,"dilation":2,"groups":2"#),
                conv(36, r#""kernel":5,"padding":2,"stride":2,"groups":36"#),
                r#"{"type":"tanh"}"#.into(),
                conv(70, r#""kernel":1,"stride":2"#),
            ],
        ),
        image(
            "[3,17,18]",
            &[
                conv(20, r#""kernel":7,"padding":3"#),
                r#"{"type":"gelu"},{"type":"avg_pool2d","kernel":3,"stride":2,"padding":1}"#.into(),
                conv(33, r#""kernel":[1,7],"padding":[0,3]"#),
                conv(33, r#""kernel":[5,1],"stride":[2,1]"#),
            ],
        ),
        image(
            "[5,12,11]",
            &[
                format!(
                    r#"{{"type":"branches","join":"concat","branches":[[{}],[{},{norm_silu},{}],
                       [{{"type":"avg_pool2d","kernel":3,"stride":1,"padding":1}},{}]]}}"#,
                    conv(16, r#""kernel":1"#),
                    conv(7, r#""kernel":1"#),
                    conv(21, r#""kernel":5,"padding":2"#),
                    conv(9, r#""kernel":1"#)
                ),
                drop.into(),
                conv(17, r#""kernel":3"#),
            ],
        ),
        image(
            "[3,1,29]",
            &[
                format!(
                    r#"{{"type":"sequential","layers":[{},{drop}]}}"#,
                    conv(18, r#""kernel":[1,5],"padding":[0,2]"#)
                ),
                r#"{"type":"sigmoid"}"#.into(),
            ],
        ),
        others(
            r#"{"kind":"vector","shape":[200,3]}"#,
            r#""task":{"type":"regression","outputs":2}"#,
            &format!(
                r#"{{"type":"conv1d","out_channels":18,"kernel":9,"stride":2,"padding":4}},{{"type":"tanh"}},
                   {{"type":"conv1d","out_channels":34,"kernel":3,"dilation":3,"groups":2}},
                   {{"type":"max_pool1d","kernel":3}},{{"type":"gru","hidden_size":40}},
                   {{"type":"mean_tokens"}},{}"#,
                linear(2)
            ),
        ),
        others(
            &tokens(33),
            language,
            &format!(
                r#"{{"type":"embedding","dim":19}},{{"type":"lstm","hidden_size":100,"num_layers":2}},{}"#,
                linear(41)
            ),
        ),
        others(
            &tokens(77),
            language,
            &format!(
                r#"{{"type":"embedding","dim":96}},{{"type":"positional_embedding"}},{transformer},{}"#,
                linear(41)
            ),
        ),
        others(
            r#"{"kind":"vector","shape":[130]}"#,
            r#""task":{"type":"multilabel","outputs":3}"#,
            &format!(
                r#"{},{{"type":"layer_norm"}},{{"type":"gelu"}},{},{norm_silu},{drop},{}"#,
                linear(333),
                linear(150),
                linear(3)
            ),
        ),
    ];
    for (number, spec) in specs.iter().enumerate() {
        let spec = ModelSpec::from_json(&format!(r#"{{"name":"odd{number}",{spec}}}"#)).unwrap();
        let worst = compare(&spec, 7, 3).unwrap();
        assert!(worst < 1e-4, "{worst:e} {spec:?}");
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
