//! Presets, gradients, and the model file, through the public interface.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{gradients, learner, noise, norm, read, step};
use fl_model::{Backend, GlobalModel, Learner, ModelSpec, OptimizerConfig, init_parameters};
use fl_protocol::{DataNames, Normalization};

const PRESETS: [&str; 4] = ["softmax", "mlp", "cnn", "mcmahan_cnn"];

fn preset(name: &str, shape: &[usize]) -> ModelSpec {
    ModelSpec::classifier(name, shape, 10, 100_000).unwrap()
}

fn global() -> GlobalModel {
    let spec = preset("softmax", &[1, 8, 8]);
    let parameters = init_parameters(&spec, 1);
    GlobalModel {
        round: 3,
        network: spec.into(),
        normalization: Normalization { mean: vec![0.5], std: vec![0.25] },
        names: DataNames::default(),
        parameters,
        buffers: fl_model::Buffers::default(),
    }
}

#[test]
fn names_travel_in_the_metadata_and_leave_no_trace_without_any() {
    let plain = global();
    let without = plain.to_safetensors().unwrap();
    let text = String::from_utf8_lossy(&without).into_owned();
    assert!(!text.contains(r#""labels""#) && !text.contains(r#""features""#));
    let names = DataNames {
        labels: vec!["cat, wild".into(), "dog \"D\"".into(), "ünïcode".into()],
        features: (0..64).map(|i| format!("pixel {i}")).collect(),
    };
    let named = GlobalModel { names, ..plain };
    assert_eq!(GlobalModel::from_safetensors(&named.to_safetensors().unwrap()).unwrap(), named);
    let quantized = named.to_quantized(&fl_quant::Spec::new(fl_quant::Scheme::F16, 8)).unwrap();
    assert_eq!(GlobalModel::from_safetensors(&quantized).unwrap().names, named.names);
}

#[test]
fn names_that_do_not_fit_the_network_are_refused() {
    let refused = |labels: Vec<String>, features: Vec<String>| {
        let model = GlobalModel { names: DataNames { labels, features }, ..global() };
        model.to_safetensors().unwrap_err().to_string()
    };
    let numbered = |n: usize| (0..n).map(|i| format!("n{i}")).collect::<Vec<_>>();
    assert!(refused(numbered(11), vec![]).contains("11 labels"));
    assert!(refused(vec!["cat".into(), "cat".into()], vec![]).contains("`cat`"));
    assert!(refused(vec![], numbered(63)).contains("63 features"));
    assert!(refused(vec!["x".repeat(1 << 20)], vec![]).contains("header"), "no reader would take it");
}

#[test]
fn presets_have_their_parameter_counts() {
    let counts = PRESETS.map(|name| preset(name, &[1, 28, 28]).num_parameters());
    assert_eq!(counts, [7_850, 99_385, 467_818, 1_663_370]);
}

#[test]
fn initial_parameters_depend_on_the_seed_alone() {
    let spec = preset("cnn", &[1, 28, 28]);
    assert_eq!(init_parameters(&spec, 1), init_parameters(&spec, 1));
    assert_ne!(init_parameters(&spec, 1), init_parameters(&spec, 2));
}

#[test]
fn a_learner_can_move_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Box<dyn Learner>>();
}

#[test]
fn gradients_are_the_slope_of_the_loss() {
    for name in PRESETS {
        let spec = preset(name, &[1, 8, 8]);
        let samples = noise(&spec, 4, 7);
        let mut learner = learner(&spec, Backend::Fused);
        let w = init_parameters(&spec, 5);
        learner.load(&w);
        let (_, gradient) = gradients(&mut *learner, &samples);
        // Along the gradient, scaled to length 1, the slope is the gradient's norm.
        let norm = norm(&gradient);
        let step = 1e-2;
        let mut loss_at = |sign: f64| {
            let moved: Vec<f32> = w
                .iter()
                .zip(&gradient)
                .map(|(w, g)| (f64::from(*w) + sign * step * f64::from(*g) / norm) as f32)
                .collect();
            learner.load(&moved);
            let sums = learner.evaluate(samples.batch()).unwrap();
            sums.loss_sum / sums.samples as f64
        };
        let slope = (loss_at(1.0) - loss_at(-1.0)) / (2.0 * step);
        assert!((slope - norm).abs() < 0.02 * norm, "{name}: slope {slope}, norm {norm}");
    }
}

#[test]
fn a_step_moves_against_the_gradient() {
    for name in PRESETS {
        let spec = preset(name, &[1, 8, 8]);
        let samples = noise(&spec, 4, 7);
        let w = init_parameters(&spec, 5);
        let mut learner = learner(&spec, Backend::Fused);
        learner.load(&w);
        let (_, gradient) = gradients(&mut *learner, &samples);
        step(&mut *learner, &samples, &OptimizerConfig { lr: 0.1, ..OptimizerConfig::default() }).unwrap();
        for ((w, g), after) in w.iter().zip(&gradient).zip(&read(&*learner)) {
            assert!((w - 0.1 * g - after).abs() < 1e-6, "{name}");
        }
    }
}

#[test]
fn the_file_is_deterministic_and_reads_back() {
    let global = global();
    let file = global.to_safetensors().unwrap();
    assert_eq!(file, global.to_safetensors().unwrap());
    assert_eq!(GlobalModel::from_safetensors(&file).unwrap(), global);
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&file[8..8 + length]).unwrap();
    let keys = ["format", "input_shape", "model"].map(|key| header.find(&format!("\"{key}\":")).unwrap());
    assert!(keys.is_sorted(), "metadata is in a fixed order: {header}");
}

#[test]
fn a_quantized_file_reads_back_within_its_error_and_is_as_hard_to_damage() {
    let global = global();
    let spec = fl_quant::Spec { entropy: true, ..fl_quant::Spec::new(fl_quant::Scheme::Sdq, 8) };
    let file = global.to_quantized(&spec).unwrap();
    assert_eq!(file, global.to_quantized(&spec).unwrap());
    assert!(4 * file.len() < 2 * global.to_safetensors().unwrap().len());
    let read = GlobalModel::from_safetensors(&file).unwrap();
    let energy = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>();
    let lost = energy(&mut read.parameters.iter().zip(&global.parameters).map(|(a, b)| a - b));
    assert!(lost < 1e-3 * energy(&mut global.parameters.iter().copied()));
    assert_eq!(
        (read.round, &read.network, &read.normalization),
        (global.round, &global.network, &global.normalization)
    );
    for at in (0..file.len()).step_by(7) {
        assert!(GlobalModel::from_safetensors(&file[..at]).is_err(), "cut at {at}");
    }
    let mut flipped = file.clone();
    *flipped.last_mut().unwrap() ^= 1;
    assert!(GlobalModel::from_safetensors(&flipped).is_err(), "a stream has a checksum");
}

#[test]
fn a_file_cut_anywhere_is_an_error() {
    let file = global().to_safetensors().unwrap();
    for len in 0..file.len() {
        assert!(GlobalModel::from_safetensors(&file[..len]).is_err(), "cut at {len}");
    }
}

#[test]
fn hostile_files_are_errors() {
    let global = global();
    let file = global.to_safetensors().unwrap();
    let mut huge_header = file.clone();
    huge_header[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(GlobalModel::from_safetensors(&huge_header).is_err());
    let mut nan = file.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(GlobalModel::from_safetensors(&nan).is_err());
    let replace = |from: &str, to: &str| -> Vec<u8> {
        assert_eq!(from.len(), to.len());
        let at = file.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        let mut changed = file.clone();
        changed[at..at + to.len()].copy_from_slice(to.as_bytes());
        changed
    };
    for (from, to) in [
        ("1.weight", "2.weight"),
        ("[10,64]", "[64,10]"),
        ("\"dtype\":\"F32\"", "\"dtype\":\"I32\""),
        ("__metadata__", "__metadatx__"),
        ("\"round\":\"3\"", "\"round\":\"x\""),
    ] {
        assert!(GlobalModel::from_safetensors(&replace(from, to)).is_err(), "{from} -> {to}");
    }
}

#[test]
fn a_model_that_is_not_finite_is_not_written() {
    let mut global = global();
    global.parameters[0] = f32::INFINITY;
    assert!(global.to_safetensors().is_err());
    global.parameters.pop();
    assert!(global.to_safetensors().is_err());
}
