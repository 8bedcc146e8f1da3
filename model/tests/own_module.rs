//! A user's Burn modules, and model files that hold tensors without a network.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![cfg(feature = "flex")]

mod common;

use burn::{
    module::{Module, Param},
    nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, conv::Conv2d, conv::Conv2dConfig},
    tensor::{Device, Int, Tensor},
};
use common::{gradients, noise, norm, read, step};
use fl_model::{
    GlobalModel, Learner, ModelError, ModelSpec, OptimizerConfig,
    burn::{BurnLearner, BurnNetwork, NetworkInput},
    init_parameters,
};
use fl_protocol::{Input, Task};

/// Ranks 1, 2 and 4, a skip connection, running moments, whole numbers, and a frozen parameter.
#[derive(Module, Debug)]
struct Own {
    conv: Conv2d,
    norm: BatchNorm,
    scale: Param<Tensor<1>>,
    frozen: Param<Tensor<1>>,
    counts: Param<Tensor<1, Int>>,
    heads: Vec<Linear>,
}

impl BurnNetwork for Own {
    fn forward(&self, input: NetworkInput) -> Tensor<2> {
        let x = input.images();
        let y = self.norm.forward(self.conv.forward(x.clone()));
        let y = (y + x).flatten::<2>(1, 3) * self.scale.val().unsqueeze() + self.frozen.val().unsqueeze();
        self.heads.iter().map(|head| head.forward(y.clone())).reduce(|a, b| a + b).unwrap()
    }
}

fn own() -> BurnLearner<Own> {
    let device = Device::flex();
    device.seed(3);
    let module = Own {
        conv: Conv2dConfig::new([2, 2], [1, 1]).init(&device),
        norm: BatchNormConfig::new(2).init(&device),
        scale: Param::from_tensor(Tensor::ones([18], &device)),
        frozen: Param::from_tensor(Tensor::ones([18], &device)).set_require_grad(false),
        counts: Param::initialized(burn::module::ParamId::new(), Tensor::ones([1], &device)),
        heads: (0..2).map(|_| LinearConfig::new(18, 3).init(&device)).collect(),
    };
    BurnLearner::new(module, Input::numbers(&[2, 3, 3]), Task::classes(3), device)
}

/// Data of the same form as the module's.
fn like() -> ModelSpec {
    let layers = vec![fl_model::Layer::Flatten, common::linear(18, 3)];
    common::classifier("like", &[2, 3, 3], 3, layers)
}

#[test]
fn names_and_shapes_are_the_modules() {
    let learner = own();
    let tensors: Vec<_> =
        learner.layout().tensors().iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
    for (name, shape) in [
        ("conv.weight", vec![2, 2, 1, 1]),
        ("norm.running_mean", vec![2]),
        ("scale", vec![18]),
        ("frozen", vec![18]),
        ("heads.1.weight", vec![18, 3]),
    ] {
        assert!(tensors.contains(&(name.to_owned(), shape)), "{name}: {tensors:?}");
    }
    assert!(tensors.iter().all(|(name, _)| name != "counts"), "whole numbers are left alone");
}

#[test]
fn it_trains_and_its_buffers_move_by_the_forward_pass_alone() {
    let mut learner = own();
    let samples = noise(&like(), 8, 1);
    let start = read(&learner);
    let (_, gradient) = gradients(&mut learner, &samples);
    assert!(norm(&gradient) > 0.0);
    assert_eq!(read(&learner), start, "gradients change nothing");
    let place = |name: &str| {
        let layout = own().layout().clone();
        let tensor = layout.tensors().iter().find(|t| t.name == name).unwrap().clone();
        tensor.offset..tensor.offset + tensor.len
    };
    assert!(gradient[place("norm.running_mean")].iter().chain(&gradient[place("frozen")]).all(|g| *g == 0.0));
    let plain = OptimizerConfig::default();
    let mut moments = Vec::new();
    for config in [plain, OptimizerConfig { weight_decay: 0.1, momentum: 0.5, ..plain }] {
        learner.load(&start);
        let first = step(&mut learner, &samples, &config).unwrap();
        let moved = read(&learner);
        moments.push(moved[place("norm.running_mean")].to_vec());
        assert_ne!(moved[place("norm.running_mean")], start[place("norm.running_mean")]);
        assert_eq!(moved[place("frozen")], start[place("frozen")]);
        assert_ne!(moved[place("heads.0.weight")], start[place("heads.0.weight")]);
        let mut last = first;
        for _ in 0..20 {
            last = step(&mut learner, &samples, &config).unwrap();
        }
        assert!(last < first, "{first} {last}");
    }
    assert_eq!(moments[0], moments[1], "an optimizer leaves buffers alone");
    learner.load(&start);
    assert_eq!(read(&learner), start, "nothing of an earlier step is left");
}

#[test]
fn a_module_with_other_outputs_than_the_task_needs_is_refused() {
    let device = Device::flex();
    let module = LinearOnly { linear: LinearConfig::new(18, 4).init(&device) };
    let mut learner = BurnLearner::new(module, Input::numbers(&[2, 3, 3]), Task::classes(3), device);
    let samples = noise(&like(), 2, 1);
    let error = step(&mut learner, &samples, &OptimizerConfig::default()).unwrap_err().to_string();
    assert!(error.contains("[2, 4]") && error.contains("[2, 3]"), "{error}");
}

#[derive(Module, Debug)]
struct LinearOnly {
    linear: Linear,
}

impl BurnNetwork for LinearOnly {
    fn forward(&self, input: NetworkInput) -> Tensor<2> {
        self.linear.forward(input.vectors())
    }
}

#[test]
fn tensors_without_a_network_make_a_model_file() {
    let file = own().to_safetensors().unwrap();
    let model = GlobalModel::from_safetensors(&file).unwrap();
    assert_eq!(&*model.network.layout(), own().layout());
    assert_eq!(model.network.known().unwrap_err(), ModelError::NoNetwork);
    assert_eq!(model.to_safetensors().unwrap(), file);
    let quantized = model.to_quantized(&fl_quant::Spec::new(fl_quant::Scheme::F16, 8)).unwrap();
    assert_eq!(GlobalModel::from_safetensors(&quantized).unwrap().network, model.network);
    for len in 0..file.len() {
        assert!(GlobalModel::from_safetensors(&file[..len]).is_err(), "cut at {len}");
    }
    // As any program writes it: another file's tensors, its metadata ignored.
    let spec = ModelSpec::classifier("softmax", &[1, 8, 8], 10, 0).unwrap();
    let named = GlobalModel {
        round: 4,
        network: spec.clone().into(),
        normalization: fl_protocol::Normalization { mean: vec![0.5], std: vec![0.25] },
        names: Default::default(),
        parameters: init_parameters(&spec, 1),
        buffers: fl_model::Buffers::default(),
    };
    let read = GlobalModel::from_any_safetensors(&named.to_safetensors().unwrap()).unwrap();
    assert_eq!((read.round, &*read.network.layout(), read.parameters), (0, &spec.layout(), named.parameters));
}
