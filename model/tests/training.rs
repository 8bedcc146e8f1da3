//! Training on the bundled digits, and the settings of SGD.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{noise, parameters, relative_error};
use fl_datasets::{DatasetSpec, Part};
use fl_model::{Backend, Evaluation, ModelSpec, SgdConfig, Trainer, init_parameters};

/// Accuracy after `epochs` over the digits.
fn train_digits(mut trainer: Trainer, spec: &ModelSpec, seed: u64, epochs: usize) -> f64 {
    let data = fl_datasets::load(&DatasetSpec::Digits, None, Part::Both).unwrap();
    trainer.set_parameters(&init_parameters(spec, seed));
    let (mut x, mut y) = (Vec::new(), Vec::new());
    let n = data.train.len() as u32;
    // A stride that shares no factor with n visits every sample once.
    let order: Vec<u32> = (0..n).map(|i| (i * 739 + seed as u32) % n).collect();
    let config = SgdConfig { lr: 0.1, ..SgdConfig::default() };
    for _ in 0..epochs {
        for batch in order.chunks(32) {
            data.train.gather(batch, &data.normalization, &mut x, &mut y);
            trainer.train_step(&x, &y, &config).unwrap();
        }
    }
    let all: Vec<u32> = (0..data.test.len() as u32).collect();
    data.test.gather(&all, &data.normalization, &mut x, &mut y);
    Evaluation::from(trainer.evaluate(&x, &y).unwrap()).accuracy
}

#[test]
fn every_preset_learns_the_digits() {
    for (name, least) in [("softmax", 0.92), ("mlp", 0.95), ("cnn", 0.94), ("mcmahan_cnn", 0.94)] {
        let spec = ModelSpec::preset(name, &[1, 8, 8], 10, 20_000).unwrap();
        let trainer = Trainer::new(&spec, Backend::Flex, 2).unwrap();
        let accuracy = train_digits(trainer, &spec, 42, 12);
        assert!(accuracy >= least, "{name}: {accuracy}");
    }
}

#[test]
fn the_fused_step_and_burn_are_worth_the_same_over_five_seeds() {
    for (name, of_one, of_all) in [("mlp", 0.01, 0.004), ("mcmahan_cnn", 0.03, 0.01)] {
        let spec = ModelSpec::preset(name, &[1, 8, 8], 10, 10_000).unwrap();
        let mut difference = 0.0;
        for seed in 1..=5 {
            let fused = train_digits(Trainer::new(&spec, Backend::Flex, 2).unwrap(), &spec, seed, 1);
            let burn = train_digits(Trainer::reference(&spec, Backend::Flex).unwrap(), &spec, seed, 1);
            assert!((fused - burn).abs() < of_one, "{name}, seed {seed}: {fused} {burn}");
            difference += (fused - burn) / 5.0;
        }
        assert!(difference.abs() < of_all, "{name}: {difference}");
    }
}

#[cfg(feature = "ndarray")]
#[test]
fn ndarray_learns_the_digits() {
    let spec = ModelSpec::preset("mlp", &[1, 8, 8], 10, 10_000).unwrap();
    let accuracy = train_digits(Trainer::new(&spec, Backend::NdArray, 1).unwrap(), &spec, 42, 5);
    assert!(accuracy >= 0.94, "{accuracy}");
}

/// Needs a graphics adapter or Mesa's software driver: `mesa-vulkan-drivers`.
#[cfg(feature = "wgpu")]
#[test]
fn wgpu_learns_the_digits() {
    let spec = ModelSpec::preset("mlp", &[1, 8, 8], 10, 10_000).unwrap();
    let accuracy = train_digits(Trainer::new(&spec, Backend::Wgpu, 1).unwrap(), &spec, 42, 5);
    assert!(accuracy >= 0.94, "{accuracy}");
}

#[test]
fn backends_that_are_not_built_in_say_how_to_get_them() {
    let spec = ModelSpec::preset("softmax", &[1, 8, 8], 10, 0).unwrap();
    for backend in ["ndarray", "wgpu"] {
        let backend: Backend = backend.parse().unwrap();
        if let Err(error) = Trainer::new(&spec, backend, 1) {
            assert!(error.to_string().contains(&format!("--features {backend}")), "{error}");
        }
    }
    assert!("tpu".parse::<Backend>().is_err());
}

#[test]
fn every_setting_of_sgd_is_the_same_on_both_paths() {
    let spec = ModelSpec::preset("cnn", &[1, 8, 8], 10, 0).unwrap();
    let (x, y) = noise(&spec, 12, 3);
    let plain = SgdConfig::default();
    let configs = [
        SgdConfig { momentum: 0.9, ..plain },
        SgdConfig { weight_decay: 0.01, ..plain },
        SgdConfig { mu: 0.5, ..plain },
        SgdConfig { clip_norm: Some(0.1), ..plain },
        SgdConfig { momentum: 0.5, weight_decay: 0.02, mu: 0.1, clip_norm: Some(1.0), lr: 0.1 },
    ];
    for config in configs {
        let train = |mut trainer: Trainer| {
            trainer.set_parameters(&parameters(&spec, 1));
            for _ in 0..3 {
                trainer.train_step(&x, &y, &config).unwrap();
            }
            let mut out = vec![0.0; trainer.num_parameters()];
            trainer.parameters(&mut out);
            out
        };
        let fused = train(Trainer::new(&spec, Backend::Flex, 1).unwrap());
        let burn = train(Trainer::reference(&spec, Backend::Flex).unwrap());
        let plain_step = relative_error(&burn, &parameters(&spec, 1));
        assert!(plain_step > 1e-4, "{config:?} moves the parameters");
        let error = relative_error(&fused, &burn);
        assert!(error < 1e-5, "{config:?}: {error:e}");
    }
}

#[test]
fn bad_batches_and_settings_are_errors() {
    let spec = ModelSpec::preset("softmax", &[1, 8, 8], 10, 0).unwrap();
    let mut trainer = Trainer::new(&spec, Backend::Flex, 1).unwrap();
    let config = SgdConfig::default();
    let mut step = |x: &[f32], y: &[u32], config: &SgdConfig| trainer.train_step(x, y, config);
    assert!(step(&[0.0; 64], &[10], &config).is_err(), "a label out of range");
    assert!(step(&[0.0; 63], &[1], &config).is_err(), "a short sample");
    assert!(step(&[], &[], &config).is_err(), "an empty batch");
    assert!(step(&[f32::NAN; 64], &[1], &config).is_err(), "a loss that is not a number");
    for bad in [
        SgdConfig { lr: 0.0, ..config },
        SgdConfig { lr: f32::NAN, ..config },
        SgdConfig { momentum: 1.0, ..config },
        SgdConfig { weight_decay: -1.0, ..config },
        SgdConfig { clip_norm: Some(0.0), ..config },
    ] {
        assert!(step(&[0.0; 64], &[1], &bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_batch_may_have_any_size_from_step_to_step() {
    let spec = ModelSpec::preset("mcmahan_cnn", &[1, 8, 8], 10, 0).unwrap();
    let start = parameters(&spec, 2);
    let gradient_of = |trainer: &mut Trainer, batch: usize| {
        let (x, y) = noise(&spec, batch, 9);
        trainer.set_parameters(&start);
        let mut out = vec![0.0; start.len()];
        trainer.gradients(&x, &y, &mut out).unwrap();
        out
    };
    let mut reused = Trainer::new(&spec, Backend::Flex, 1).unwrap();
    for batch in [64, 3, 130, 1, 17] {
        let mut fresh = Trainer::new(&spec, Backend::Flex, 1).unwrap();
        assert!(gradient_of(&mut reused, batch) == gradient_of(&mut fresh, batch), "{batch}");
    }
}
