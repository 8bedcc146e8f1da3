//! Losses, gradients and running moments of PyTorch, which `examples/golden_gradients.py` wrote.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Samples, gradients, learner_if_able, read, relative_error, step, worst_error};
use fl_model::{Backend, Evaluation, ModelSpec, OptimizerConfig};
use fl_protocol::{Input, Task};
use serde_json::Value;

const BATCH: usize = 3;

/// As `noise` of the script: a number in [-0.5, 0.5) and the integer that it was made of, for each index.
fn noise(first: usize, count: usize) -> impl Iterator<Item = (f64, u64)> {
    (first..first + count).map(|i| {
        let mut h = ((i as u64 + 1) * 2_654_435_761 + 974_711) % (1 << 32);
        h = (h ^ (h >> 15)) * 2_246_822_519 % (1 << 32);
        h ^= h >> 13;
        (h as f64 / 4_294_967_296.0 - 0.5, h >> 8)
    })
}

fn parameters(spec: &ModelSpec) -> Vec<f32> {
    let mut all = Vec::new();
    for tensor in spec.layout().tensors() {
        let fan_in = tensor.shape[1..].iter().product::<usize>() as f64;
        let around_one = tensor.name.ends_with("weight") || tensor.name.ends_with("running_var");
        all.extend(noise(tensor.offset, tensor.len).map(|(u, _)| match tensor.shape.len() {
            1 if around_one => (1.0 + u) as f32,
            1 => u as f32,
            _ => (u * 3.0 / fan_in.sqrt()) as f32,
        }));
    }
    all
}

fn samples(spec: &ModelSpec) -> Samples {
    let size = BATCH * spec.num_features();
    let drawn = || noise(1_000_000, size);
    let targets = |count| noise(2_000_000, count);
    let whole = |count, below: usize| targets(count).map(|(_, h)| (h % below as u64) as u32).collect();
    let mut samples = Samples { numbers: Vec::new(), tokens: None, classes: Vec::new(), wanted: None };
    match spec.input {
        Input::Tokens { vocab, .. } => {
            samples.tokens = Some(drawn().map(|(_, h)| (h % vocab as u64) as u32).collect());
        }
        _ => samples.numbers = drawn().map(|(u, _)| (3.0 * u) as f32).collect(),
    }
    match spec.task {
        Task::Regression { outputs } => {
            samples.wanted = Some(targets(BATCH * outputs).map(|(u, _)| (2.0 * u) as f32).collect());
        }
        Task::Multilabel { outputs } => {
            samples.wanted = Some(targets(BATCH * outputs).map(|(_, h)| (h % 2) as f32).collect());
        }
        _ => samples.classes = whole(BATCH * spec.task.targets_per_sample(&spec.input), spec.num_classes()),
    }
    samples
}

fn golden() -> Vec<(ModelSpec, Value)> {
    let text = include_str!("data/gradients.json");
    let cases: Vec<Value> = serde_json::from_str(text).unwrap();
    let spec = |case: &Value| ModelSpec::from_json(&case["spec"].to_string()).unwrap();
    cases.into_iter().map(|case| (spec(&case), case)).collect()
}

/// The values of a map of tensors, put where the layout has them; the others are zero.
fn flat(spec: &ModelSpec, tensors: &Value) -> Vec<f32> {
    let layout = spec.layout();
    let mut all = vec![0.0; layout.parameters()];
    let tensors = tensors.as_object().unwrap();
    for (name, values) in tensors {
        let tensor = layout.tensors().iter().find(|tensor| tensor.name == *name).unwrap();
        let values = values.as_array().unwrap().iter().map(|value| value.as_f64().unwrap() as f32);
        assert_eq!(values.len(), tensor.len, "{name}");
        all[tensor.offset..tensor.offset + tensor.len].copy_from_slice(&values.collect::<Vec<_>>());
    }
    all
}

#[test]
fn every_tensor_has_pytorchs_name() {
    for (spec, case) in golden() {
        let mut names: Vec<String> = spec.layout().tensors().iter().map(|t| t.name.clone()).collect();
        let keys = |key: &str| case[key].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let mut expected = [keys("gradients"), keys("buffers")].concat();
        names.sort();
        expected.sort();
        assert_eq!(names, expected, "{}", spec.name);
    }
}

fn compare(backend: Backend) -> usize {
    let mut compared = 0;
    for (spec, case) in golden() {
        let Some(mut learner) = learner_if_able(&spec, backend) else { continue };
        let (start, samples) = (parameters(&spec), samples(&spec));
        learner.load(&start);
        let (loss, gradient) = gradients(&mut *learner, &samples);
        let near = |value: f64, key: &str| {
            let wanted = case[key].as_f64().unwrap();
            assert!(
                (value - wanted).abs() < 1e-5 * wanted.abs(),
                "{backend} {}: {key} {value} {wanted}",
                spec.name
            );
        };
        near(f64::from(loss), "loss");
        let evaluation = Evaluation::from(learner.evaluate(samples.batch()).unwrap());
        near(evaluation.loss, "evaluation_loss");
        assert_eq!(evaluation.samples, BATCH as u64);
        let expected = flat(&spec, &case["gradients"]);
        let error = worst_error(&spec, &gradient, &expected);
        assert!(error < 1e-5, "{backend} {}: {error:e}", spec.name);
        assert_eq!(read(&*learner), start, "{backend} {}: gradients change nothing", spec.name);

        // Plain SGD, and once with all that an optimizer could do to a buffer.
        let decayed =
            OptimizerConfig { weight_decay: 0.1, momentum: 0.5, mu: 0.1, ..OptimizerConfig::default() };
        for config in [OptimizerConfig::default(), decayed] {
            learner.load(&start);
            step(&mut *learner, &samples, &config).unwrap();
            let (moved, expected) = (read(&*learner), flat(&spec, &case["buffers"]));
            for range in spec.buffers() {
                let error = relative_error(&moved[range.clone()], &expected[range]);
                assert!(error < 1e-5, "{backend} {}: running moments {error:e}", spec.name);
            }
        }
        compared += 1;
    }
    compared
}

#[test]
fn flex_has_pytorchs_gradients() {
    assert_eq!(compare(Backend::Flex), golden().len());
}

#[test]
fn the_fused_engine_has_pytorchs_gradients() {
    assert!(compare(Backend::Fused) > 0);
}

#[cfg(feature = "ndarray")]
#[test]
fn ndarray_has_pytorchs_gradients() {
    assert_eq!(compare(Backend::NdArray), golden().len());
}

/// `d loss / d parameter` of a few parameters of every tensor, by a central difference.
#[test]
fn flex_has_the_slopes_of_the_loss() {
    let (mut wrong, mut all) = (Vec::new(), 0);
    for (spec, _) in golden() {
        let mut learner = learner_if_able(&spec, Backend::Flex).unwrap();
        let (start, samples) = (parameters(&spec), samples(&spec));
        learner.load(&start);
        let (_, gradient) = gradients(&mut *learner, &samples);
        let buffers = spec.buffers();
        let mut loss_at = |index: usize, step: f32| {
            let mut moved = start.clone();
            moved[index] += step;
            learner.load(&moved);
            f64::from(gradients(&mut *learner, &samples).0)
        };
        for tensor in spec.layout().tensors() {
            for index in (tensor.offset..tensor.offset + tensor.len).step_by(tensor.len.div_ceil(3)) {
                if buffers.iter().any(|range| range.contains(&index)) {
                    assert_eq!(gradient[index], 0.0, "a buffer has no gradient");
                    continue;
                }
                let slope = (loss_at(index, 4e-3) - loss_at(index, -4e-3)) / 8e-3;
                let error = (slope - f64::from(gradient[index])).abs();
                all += 1;
                if error >= 3e-3 * (0.1 + slope.abs()) {
                    wrong.push(format!("{} {} {index}: {slope} {}", spec.name, tensor.name, gradient[index]));
                }
            }
        }
    }
    // A step across the kink of a maximum or of a ReLU has another slope.
    assert!(wrong.len() * 50 < all, "of {all}: {wrong:#?}");
}
