//! The network in plain Burn: modules and autodiff, on any of Burn's backends.
//!
//! This is the definition of what a layer list computes. The fused path of this crate is tested
//! against it.

use crate::{
    backend::Backend,
    dropout::Mask,
    error::ModelError,
    sgd::{SgdConfig, SgdState},
    spec::{GROUP_NORM_EPSILON, Layer, ModelSpec},
};
use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    nn::{
        GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
        pool::{MaxPool2d, MaxPool2dConfig},
    },
    tensor::{Device, Gradients, Int, Tensor, TensorData, activation::log_softmax, activation::relu},
};

/// The layers as a Burn module.
#[derive(Module, Debug)]
struct Net {
    layers: Vec<NetLayer>,
}

#[derive(Module, Debug)]
enum NetLayer {
    Conv2d(Conv2d),
    Linear(Linear),
    Pool(MaxPool2d),
    GroupNorm(GroupNorm),
    Plain(Plain),
}

/// A layer without state.
#[derive(Module, Debug)]
struct Plain {
    #[module(skip)]
    layer: Layer,
}

/// What flows between layers.
#[derive(Debug)]
enum Activation {
    Image(Tensor<4>),
    Vector(Tensor<2>),
}

impl Activation {
    fn map(
        self,
        image: impl FnOnce(Tensor<4>) -> Tensor<4>,
        vector: impl FnOnce(Tensor<2>) -> Tensor<2>,
    ) -> Self {
        match self {
            Self::Image(x) => Self::Image(image(x)),
            Self::Vector(x) => Self::Vector(vector(x)),
        }
    }

    fn image(self, f: impl FnOnce(Tensor<4>) -> Tensor<4>) -> Self {
        self.map(f, |x| x)
    }
}

/// Seed and step of the dropout masks; `None` outside training.
type DropoutStep = Option<(u64, u64)>;

impl Net {
    fn new(spec: &ModelSpec, device: &Device) -> Self {
        let layer = |layer: &Layer| match *layer {
            Layer::Conv2d { in_channels, out_channels, kernel, padding, stride } => NetLayer::Conv2d(
                Conv2dConfig::new([in_channels, out_channels], [kernel, kernel])
                    .with_stride([stride, stride])
                    .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
                    .init(device),
            ),
            Layer::Linear { in_features, out_features } => {
                NetLayer::Linear(LinearConfig::new(in_features, out_features).init(device))
            }
            Layer::MaxPool2d { kernel, stride } => {
                NetLayer::Pool(MaxPool2dConfig::new([kernel, kernel]).with_strides([stride, stride]).init())
            }
            Layer::GroupNorm { groups, channels } => NetLayer::GroupNorm(
                GroupNormConfig::new(groups, channels).with_epsilon(GROUP_NORM_EPSILON).init(device),
            ),
            layer => NetLayer::Plain(Plain { layer }),
        };
        Self { layers: spec.layers.iter().map(layer).collect() }
    }

    fn forward(&self, mut x: Activation, dropout: DropoutStep) -> Activation {
        for (index, layer) in self.layers.iter().enumerate() {
            x = match layer {
                NetLayer::Conv2d(conv) => x.image(|x| conv.forward(x)),
                NetLayer::Pool(pool) => x.image(|x| pool.forward(x)),
                NetLayer::GroupNorm(norm) => x.image(|x| norm.forward(x)),
                NetLayer::Linear(linear) => x.map(|x| x, |x| linear.forward(x)),
                NetLayer::Plain(Plain { layer }) => plain(*layer, index, x, dropout),
            };
        }
        x
    }
}

fn plain(layer: Layer, index: usize, x: Activation, dropout: DropoutStep) -> Activation {
    match (layer, dropout) {
        (Layer::Relu, _) => x.map(relu, relu),
        (Layer::Flatten, _) => match x {
            Activation::Image(x) => Activation::Vector(x.flatten(1, 3)),
            vector => vector,
        },
        (Layer::Dropout { p }, Some(step)) => {
            x.map(|x| drop_some(x, p, step, index), |x| drop_some(x, p, step, index))
        }
        _ => x,
    }
}

fn drop_some<const D: usize>(x: Tensor<D>, p: f32, (seed, step): (u64, u64), layer: usize) -> Tensor<D> {
    let mask = Mask::new(p, seed, step, layer);
    let mask: Vec<f32> = (0..x.shape().num_elements()).map(|index| mask.at(index)).collect();
    let mask = Tensor::<D>::from_data(TensorData::new(mask, x.shape()), &x.device());
    x * mask
}

/// The plain Burn trainer.
pub(crate) struct BurnTrainer {
    net: Net,
    device: Device,
    input_shape: Vec<usize>,
    parameters: usize,
    state: SgdState,
    dropout: (u64, u64),
}

impl BurnTrainer {
    pub(crate) fn new(spec: &ModelSpec, backend: Backend) -> Result<Self, ModelError> {
        let device = backend.device()?.autodiff();
        Ok(Self {
            net: Net::new(spec, &device),
            input_shape: spec.input_shape.clone(),
            parameters: spec.num_parameters(),
            device,
            state: SgdState::default(),
            dropout: (0, 0),
        })
    }

    pub(crate) fn set_dropout_seed(&mut self, seed: u64) {
        self.dropout.0 = seed;
    }

    pub(crate) fn set_parameters(&mut self, parameters: &[f32]) {
        self.state.reset(parameters);
        self.dropout.1 = 0;
        self.load(parameters);
    }

    fn load(&mut self, parameters: &[f32]) {
        let mut load = Load { rest: parameters, device: self.device.clone() };
        self.net = self.net.clone().map(&mut load);
    }

    pub(crate) fn parameters(&self, out: &mut [f32]) {
        let mut read = Read { rest: out, gradients: None };
        self.net.visit(&mut read);
    }

    /// Mean loss of the batch; its gradient goes to `out`.
    pub(crate) fn gradients(&mut self, x: &[f32], y: &[u32], out: &mut [f32]) -> f32 {
        let (loss, gradients) = self.backward(x, y);
        self.net.visit(&mut Read { rest: out, gradients: Some(&gradients) });
        loss
    }

    pub(crate) fn set_drift(&mut self, drift: &[f32]) {
        self.state.set_drift(drift);
    }

    pub(crate) fn train_step(&mut self, x: &[f32], y: &[u32], config: &SgdConfig) -> f32 {
        if self.state.is_plain(config) {
            let (loss, gradients) = self.backward(x, y);
            self.net = self.net.clone().map(&mut Descend { lr: config.lr, gradients });
            self.dropout.1 += 1;
            return loss;
        }
        let mut gradient = vec![0.0; self.parameters];
        let mut parameters = vec![0.0; self.parameters];
        let loss = self.gradients(x, y, &mut gradient);
        self.parameters(&mut parameters);
        self.state.step(&mut parameters, &mut gradient, config);
        self.load(&parameters);
        self.dropout.1 += 1;
        loss
    }

    /// Row-major logits of a batch.
    pub(crate) fn logits(&self, x: &[f32]) -> Vec<f32> {
        let input = self.input(x, &self.device.clone().inner());
        match self.net.valid().forward(input, None) {
            Activation::Vector(logits) => read(logits),
            Activation::Image(logits) => read(logits),
        }
    }

    fn backward(&self, x: &[f32], y: &[u32]) -> (f32, Gradients) {
        let labels: Vec<i32> = y.iter().map(|&label| label as i32).collect();
        let labels = Tensor::<1, Int>::from_data(labels.as_slice(), &self.device);
        let logits = match self.net.forward(self.input(x, &self.device), Some(self.dropout)) {
            Activation::Vector(logits) => logits,
            Activation::Image(logits) => logits.flatten(1, 3),
        };
        let log_probabilities = log_softmax(logits, 1).gather(1, labels.reshape([y.len(), 1]));
        let loss = log_probabilities.mean().neg();
        let gradients = loss.backward();
        (read(loss)[0], gradients)
    }

    fn input(&self, x: &[f32], device: &Device) -> Activation {
        let features: usize = self.input_shape.iter().product();
        let batch = x.len() / features;
        match *self.input_shape {
            [c, h, w] => {
                Activation::Image(Tensor::from_data(TensorData::new(x.to_vec(), [batch, c, h, w]), device))
            }
            _ => {
                Activation::Vector(Tensor::from_data(TensorData::new(x.to_vec(), [batch, features]), device))
            }
        }
    }
}

fn read<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap_or_default()
}

/// Burn keeps the weights of linear layers, the only parameters of rank 2, as `[in, out]`.
fn to_file_layout<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if D == 2 { tensor.swap_dims(0, 1) } else { tensor }
}

/// Puts a flat vector into the parameters, in order.
struct Load<'a> {
    rest: &'a [f32],
    device: Device,
}

impl ModuleMapper for Load<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let mut shape = param.lazy_shape().dims::<D>();
        if D == 2 {
            shape.reverse();
        }
        let (values, rest) = self.rest.split_at(shape.iter().product());
        self.rest = rest;
        let tensor = Tensor::<D>::from_data(TensorData::new(values.to_vec(), shape), &self.device);
        param.map(|_| to_file_layout(tensor).detach().require_grad())
    }
}

/// Takes the parameters, or their gradients, out into a flat vector.
struct Read<'a> {
    rest: &'a mut [f32],
    gradients: Option<&'a Gradients>,
}

impl ModuleVisitor for Read<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        let len = tensor.shape().num_elements();
        let (out, rest) = std::mem::take(&mut self.rest).split_at_mut(len);
        self.rest = rest;
        let values = match self.gradients {
            None => Some(tensor),
            Some(gradients) => tensor.grad(gradients),
        };
        match values {
            Some(values) => out.copy_from_slice(&read(to_file_layout(values))),
            // The loss does not depend on this parameter.
            None => out.fill(0.0),
        }
    }
}

/// One step of plain SGD, on the device.
struct Descend {
    lr: f32,
    gradients: Gradients,
}

impl ModuleMapper for Descend {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = param.val().grad_remove(&mut self.gradients) else { return param };
        param.map(|tensor| {
            let moved = tensor.without_autodiff() - gradient * self.lr;
            moved.autodiff().require_grad()
        })
    }
}
