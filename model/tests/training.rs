//! Training on the bundled digits, and the settings of SGD.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{
    classifier, conv, gradients, learner, learner_if_able, linear, nested_spec, noise, norm, parameters,
    read, relative_error, step,
};
use fl_datasets::{DatasetSpec, Part, Samples};
use fl_model::{
    Backend, Batch, Evaluation, Layer, Method, ModelError, ModelSpec, OptimizerConfig, init_parameters,
};
use fl_protocol::{Inputs, Targets};
use std::ops::Range;

/// Accuracy after `epochs` over the digits.
fn train_digits(backend: Backend, spec: &ModelSpec, seed: u64, epochs: usize) -> f64 {
    let data = fl_datasets::load(&DatasetSpec::Digits, None, Part::Both).unwrap();
    let mut learner = learner(spec, backend);
    learner.load(&init_parameters(spec, seed));
    let mut samples = Samples::new();
    let n = data.train.len() as u32;
    // A stride that shares no factor with n visits every sample once.
    let order: Vec<u32> = (0..n).map(|i| (i * 739 + seed as u32) % n).collect();
    let config = OptimizerConfig { lr: 0.1, ..OptimizerConfig::default() };
    for _ in 0..epochs {
        for batch in order.chunks(32) {
            data.train.gather(batch, &data.normalization, &mut samples);
            learner.step(Batch::new(samples.inputs(), samples.targets()), &config).unwrap();
        }
    }
    let all: Vec<u32> = (0..data.test.len() as u32).collect();
    data.test.gather(&all, &data.normalization, &mut samples);
    Evaluation::from(learner.evaluate(Batch::new(samples.inputs(), samples.targets())).unwrap())
        .accuracy
        .unwrap()
}

#[test]
fn every_preset_learns_the_digits() {
    for (name, least) in [("softmax", 0.92), ("mlp", 0.95), ("cnn", 0.94), ("mcmahan_cnn", 0.94)] {
        let spec = ModelSpec::classifier(name, &[1, 8, 8], 10, 20_000).unwrap();
        let accuracy = train_digits(Backend::Auto, &spec, 42, 12);
        assert!(accuracy >= least, "{name}: {accuracy}");
    }
}

#[test]
fn the_fused_step_and_burn_are_worth_the_same_over_five_seeds() {
    for (name, of_one, of_all) in [("mlp", 0.01, 0.004), ("mcmahan_cnn", 0.03, 0.01)] {
        let spec = ModelSpec::classifier(name, &[1, 8, 8], 10, 10_000).unwrap();
        let mut difference = 0.0;
        for seed in 1..=5 {
            let fused = train_digits(Backend::Fused, &spec, seed, 1);
            let burn = train_digits(Backend::Flex, &spec, seed, 1);
            assert!((fused - burn).abs() < of_one, "{name}, seed {seed}: {fused} {burn}");
            difference += (fused - burn) / 5.0;
        }
        assert!(difference.abs() < of_all, "{name}: {difference}");
    }
}

#[cfg(feature = "ndarray")]
#[test]
fn ndarray_learns_the_digits() {
    let spec = ModelSpec::classifier("mlp", &[1, 8, 8], 10, 10_000).unwrap();
    let accuracy = train_digits(Backend::NdArray, &spec, 42, 5);
    assert!(accuracy >= 0.94, "{accuracy}");
}

/// One step of resnet20 on `backend` is that of the fused engine.
#[cfg(any(feature = "ndarray", feature = "wgpu"))]
fn assert_a_step_of_resnet20_is_fuseds(backend: Backend) {
    let spec = ModelSpec::classifier("resnet20", &[3, 16, 16], 10, 0).unwrap();
    let samples = noise(&spec, 4, 1);
    let start = parameters(&spec, 1);
    let run = |backend| {
        let mut learner = learner(&spec, backend);
        learner.load(&start);
        let loss = step(&mut *learner, &samples, &OptimizerConfig::default()).unwrap();
        let moved: Vec<f32> =
            read(&*learner).iter().zip(&start).map(|(after, before)| after - before).collect();
        (loss, moved)
    };
    let ((loss, moved), (expected_loss, expected)) = (run(backend), run(Backend::Fused));
    assert!((loss - expected_loss).abs() < 1e-5 * expected_loss, "{loss} {expected_loss}");
    let error = relative_error(&moved, &expected);
    assert!(error < 1e-3, "{error:e}");
}

#[cfg(feature = "ndarray")]
#[test]
fn ndarray_steps_as_fused_does() {
    assert_a_step_of_resnet20_is_fuseds(Backend::NdArray);
}

/// Needs a graphics adapter or Mesa's software driver: `mesa-vulkan-drivers`.
#[cfg(feature = "wgpu")]
#[test]
fn wgpu_learns_the_digits() {
    let spec = ModelSpec::classifier("mlp", &[1, 8, 8], 10, 10_000).unwrap();
    let accuracy = train_digits(Backend::Wgpu, &spec, 42, 5);
    assert!(accuracy >= 0.94, "{accuracy}");
}

/// Needs what the test above needs.
#[cfg(feature = "wgpu")]
#[test]
fn wgpu_steps_as_fused_does() {
    assert_a_step_of_resnet20_is_fuseds(Backend::Wgpu);
}

#[test]
fn backends_that_are_not_built_in_say_how_to_get_them() {
    let spec = ModelSpec::classifier("softmax", &[1, 8, 8], 10, 0).unwrap();
    for (name, built) in
        [("flex", true), ("ndarray", cfg!(feature = "ndarray")), ("wgpu", cfg!(feature = "wgpu"))]
    {
        let backend: Backend = name.parse().unwrap();
        assert_eq!(backend.to_string(), name);
        if built {
            continue;
        }
        for error in [backend.check().unwrap_err(), spec.learner(backend, 1).err().unwrap()] {
            assert!(error.to_string().contains(&format!("--features {name}")), "{error}");
            assert!(matches!(error, ModelError::BackendNotBuilt(_)));
        }
    }
    let unknown = "tpu".parse::<Backend>().unwrap_err();
    for backend in Backend::ALL {
        assert!(unknown.to_string().contains(backend.name()), "it lists {backend}: {unknown}");
    }
}

/// Convolutions on images of `size` pixels with this many channels, one after the other.
fn convolutions(channels: &[usize], size: usize) -> ModelSpec {
    let mut from = 16;
    let mut layers = vec![conv(1, from, 1, 0, 1)];
    for &to in channels {
        layers.push(conv(from, to, 3, 1, 1));
        from = to;
    }
    layers.extend([Layer::Flatten, linear(from * size * size, 2)]);
    classifier("convolutions", &[1, size, size], 2, layers)
}

#[test]
fn auto_is_the_faster_backend() {
    for name in ["softmax", "mlp", "cnn", "mcmahan_cnn"] {
        let spec = ModelSpec::classifier(name, &[3, 32, 32], 10, 100_000).unwrap();
        assert_eq!(Backend::Auto.for_spec(&spec), Backend::Fused, "{name}");
    }
    assert_eq!(Backend::Auto.for_spec(&convolutions(&[128, 128], 7)), Backend::Fused);
    assert_eq!(Backend::Auto.for_spec(&convolutions(&[512, 512], 14)), Backend::Fused);
    assert_eq!(Backend::Auto.for_spec(&convolutions(&[512, 512], 7)), Backend::Fused);
    assert_eq!(Backend::Flex.for_spec(&convolutions(&[512, 512], 7)), Backend::Flex, "a name is obeyed");
}

#[test]
fn a_wide_border_of_zeros_takes_no_memory() {
    // A border of a thousand pixels around a long line of them: 8 GB of zeros.
    let conv = conv(1, 1, 1024, 1023, 1024);
    let side = ((1 << 20) + 2046 - 1024) / 1024 + 1;
    let layers = vec![conv, Layer::Flatten, linear(side, 2)];
    let spec = classifier("line", &[1, 1 << 20, 1], 2, layers);
    spec.validate().unwrap();
    assert!(spec.learner(Backend::Fused, 1).is_ok());
    assert_eq!(Backend::Auto.for_spec(&spec), Backend::Fused);
}

#[test]
fn rounds_have_dropout_masks_of_their_own_on_every_backend() {
    let layers = vec![
        Layer::Dropout { p: 0.5 },
        conv(1, 3, 3, 0, 1),
        Layer::Dropout { p: 0.5 },
        Layer::Flatten,
        Layer::Dropout { p: 0.5 },
        linear(108, 10),
    ];
    let spec = classifier("drops", &[1, 8, 8], 10, layers);
    let (samples, start) = (noise(&spec, 9, 1), parameters(&spec, 1));
    let round = |backend, seed| {
        let mut learner = learner(&spec, backend);
        learner.load(&start);
        learner.begin_round(seed);
        let before = gradients(&mut *learner, &samples).1;
        step(&mut *learner, &samples, &OptimizerConfig::default()).unwrap();
        learner.load(&start);
        assert_eq!(before, gradients(&mut *learner, &samples).1, "{backend}: evaluating changes no mask");
        before
    };
    for backend in [Backend::Fused, Backend::Flex] {
        let first = round(backend, 1);
        assert_eq!(first, round(backend, 1), "{backend}: one seed, one result");
        let error = relative_error(&round(backend, 2), &first);
        assert!(error > 0.1, "{backend}: another seed is another mask: {error}");
    }
    assert!(relative_error(&round(Backend::Fused, 2), &round(Backend::Flex, 2)) < 1e-5);
}

#[test]
fn every_setting_of_sgd_is_the_same_on_both_paths() {
    let spec = ModelSpec::classifier("cnn", &[1, 8, 8], 10, 0).unwrap();
    let samples = noise(&spec, 12, 3);
    let plain = OptimizerConfig::default();
    let configs = [
        OptimizerConfig { momentum: 0.9, ..plain },
        OptimizerConfig { weight_decay: 0.01, ..plain },
        OptimizerConfig { mu: 0.5, ..plain },
        OptimizerConfig { clip_norm: Some(0.1), ..plain },
        OptimizerConfig {
            momentum: 0.5,
            weight_decay: 0.02,
            mu: 0.1,
            clip_norm: Some(1.0),
            lr: 0.1,
            ..plain
        },
        OptimizerConfig { momentum: 0.8, nesterov: true, ..plain },
        // Adam divides a gradient by its size: of one that is rounding alone the sign would decide.
        OptimizerConfig { method: Method::Adam, lr: 0.01, epsilon: 0.1, ..plain },
        OptimizerConfig { method: Method::AdamW, lr: 0.01, epsilon: 0.1, weight_decay: 0.1, ..plain },
    ];
    for config in configs {
        let train = |backend| {
            let mut learner = learner(&spec, backend);
            learner.load(&parameters(&spec, 1));
            for _ in 0..3 {
                step(&mut *learner, &samples, &config).unwrap();
            }
            read(&*learner)
        };
        let (fused, burn) = (train(Backend::Fused), train(Backend::Flex));
        let plain_step = relative_error(&burn, &parameters(&spec, 1));
        assert!(plain_step > 1e-4, "{config:?} moves the parameters");
        let error = relative_error(&fused, &burn);
        assert!(error < 1e-5, "{config:?}: {error:e}");
    }
}

/// Where a tensor lies in the flat vector.
fn place(spec: &ModelSpec, tensor: usize) -> Range<usize> {
    let layout = spec.layout();
    let tensor = &layout.tensors()[tensor];
    tensor.offset..tensor.offset + tensor.len
}

#[test]
fn frozen_layers_stay_and_the_others_move_as_burns_do() {
    let presets = ["resnet20", "mobilenet_small", "vgg11"].map(|name| {
        let spec = ModelSpec::classifier(name, &[3, 32, 32], 10, 0).unwrap();
        // Some values lie so close to 0 that two orders of summation put them on different sides of a ReLU.
        ModelSpec::from_json(&spec.to_json().replace(r#"{"type":"relu"}"#, r#"{"type":"silu"}"#)).unwrap()
    });
    for spec in presets.into_iter().chain((0..12).map(nested_spec)) {
        let tensors = spec.layout().tensors().len();
        if tensors == 0 {
            continue;
        }
        let (samples, start) = (noise(&spec, 3, 1), parameters(&spec, 1));
        for trained in [0, tensors / 2, tensors - 1] {
            let trained = place(&spec, trained);
            let run = |backend| {
                let mut learner = learner_if_able(&spec, backend)?;
                learner.set_trainable(std::slice::from_ref(&trained));
                learner.load(&start);
                learner.begin_round(1);
                let losses =
                    [(); 2].map(|()| step(&mut *learner, &samples, &OptimizerConfig::default()).unwrap());
                Some((losses, read(&*learner)))
            };
            let (Some((losses, fused)), Some((expected, burn))) = (run(Backend::Fused), run(Backend::Flex))
            else {
                continue;
            };
            let close = |a: f32, b: f32| (a - b).abs() < 1e-3 * b.abs().max(1e-3);
            assert!(losses.iter().zip(expected).all(|(a, b)| close(*a, b)), "{losses:?} {expected:?}");
            let delta = |after: &[f32]| -> Vec<f32> {
                after[trained.clone()].iter().zip(&start[trained.clone()]).map(|(a, b)| a - b).collect()
            };
            let (own, wanted) = (delta(&fused), delta(&burn));
            assert!(
                norm(&wanted) < 1e-6 || relative_error(&own, &wanted) < 1e-3,
                "{:e} {}",
                relative_error(&own, &wanted),
                spec.to_json()
            );
            let mut buffers = spec.buffers();
            buffers.push(trained.clone());
            let is_free = |at: &usize| buffers.iter().any(|range| range.contains(at));
            assert!((0..start.len()).filter(|at| !is_free(at)).all(|at| fused[at] == start[at]));
        }
    }
}

#[test]
fn a_batch_of_a_million_samples_is_a_step_like_any_other() {
    // A chain and a graph; whole, their activations would take gigabytes.
    for middle in [Layer::Relu, Layer::Tanh] {
        let layers = vec![linear(4, 512), middle, linear(512, 2)];
        let spec = classifier("wide", &[4], 2, layers);
        let few = noise(&spec, 1000, 5);
        let (Inputs::Numbers(x), Targets::Classes(y)) = (few.batch().inputs, few.batch().targets) else {
            panic!("numbers and classes expected")
        };
        let (all_x, all_y) = (x.repeat(1000), y.repeat(1000));
        let start = parameters(&spec, 1);
        let run = |batch: Batch<'_>| {
            let mut learner = learner(&spec, Backend::Fused);
            learner.load(&start);
            let config = OptimizerConfig { lr: 0.5, ..OptimizerConfig::default() };
            let loss = learner.step(batch, &config).unwrap();
            (loss, read(&*learner))
        };
        let (loss, moved) = run(few.batch());
        let (large_loss, large) = run(Batch::new(&all_x, &all_y));
        assert!((loss - large_loss).abs() < 1e-4, "{loss} {large_loss}");
        assert!(relative_error(&large, &moved) < 1e-5);
        assert!(relative_error(&moved, &start) > 1e-3, "the premise: something moves");
    }
}

#[test]
fn bad_batches_and_settings_are_errors() {
    let spec = ModelSpec::classifier("softmax", &[1, 8, 8], 10, 0).unwrap();
    let config = OptimizerConfig::default();
    for backend in [Backend::Fused, Backend::Flex] {
        let mut learner = learner(&spec, backend);
        let mut refused = |x: &[f32], y: &[u32], config: &OptimizerConfig| {
            assert!(
                learner.step(Batch::new(x, y), config).is_err(),
                "{backend}: {} {y:?} {config:?}",
                x.len()
            );
        };
        refused(&[0.0; 64], &[10], &config);
        refused(&[0.0; 63], &[1], &config);
        refused(&[], &[], &config);
        refused(&[f32::NAN; 64], &[1], &config);
        for bad in [
            OptimizerConfig { lr: 0.0, ..config },
            OptimizerConfig { lr: f32::NAN, ..config },
            OptimizerConfig { momentum: 1.0, ..config },
            OptimizerConfig { weight_decay: -1.0, ..config },
            OptimizerConfig { clip_norm: Some(0.0), ..config },
        ] {
            refused(&[0.0; 64], &[1], &bad);
        }
    }
}

#[test]
fn a_batch_may_have_any_size_from_step_to_step() {
    let spec = ModelSpec::classifier("mcmahan_cnn", &[1, 8, 8], 10, 0).unwrap();
    let start = parameters(&spec, 2);
    let mut reused = learner(&spec, Backend::Fused);
    for batch in [64, 3, 130, 1, 17] {
        let samples = noise(&spec, batch, 9);
        let mut fresh = learner(&spec, Backend::Fused);
        reused.load(&start);
        fresh.load(&start);
        assert_eq!(gradients(&mut *reused, &samples), gradients(&mut *fresh, &samples), "{batch}");
    }
}
