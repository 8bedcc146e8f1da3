//! The network of a spec as a Burn module.
//!
//! This is the definition of what a spec computes: PyTorch's semantics, in plain tensor operations.

mod layers;
mod sequence;

use super::module::{BurnNetwork, NetworkInput, TrainingPass};
use crate::spec::{GeluForm, Join, Layer, ModelSpec};
use burn::{
    module::{Module, Param},
    tensor::{
        Device, Int, Tensor,
        activation::{gelu_approximate, leaky_relu, relu, sigmoid, silu},
        module::embedding,
    },
};
use layers::Moments;

/// The layers of a spec, and its tensors in canonical order and in PyTorch's layout.
#[derive(Module, Debug)]
pub(super) struct SpecNetwork {
    tensors: Vec<AnyTensor>,
    #[module(skip)]
    layers: Vec<Layer>,
}

/// A parameter or buffer of any rank that layers have.
#[derive(Module, Debug)]
enum AnyTensor {
    One(Param<Tensor<1>>),
    Two(Param<Tensor<2>>),
    Three(Param<Tensor<3>>),
    Four(Param<Tensor<4>>),
}

impl AnyTensor {
    fn new(shape: &[usize], buffer: bool, device: &Device) -> Self {
        fn zeros<const D: usize>(shape: [usize; D], buffer: bool, device: &Device) -> Param<Tensor<D>> {
            Param::from_tensor(Tensor::zeros(shape, device)).set_require_grad(!buffer)
        }
        match *shape {
            [a, b, c, d] => Self::Four(zeros([a, b, c, d], buffer, device)),
            [a, b, c] => Self::Three(zeros([a, b, c], buffer, device)),
            [a, b] => Self::Two(zeros([a, b], buffer, device)),
            _ => Self::One(zeros([shape.iter().product()], buffer, device)),
        }
    }
}

/// What flows between layers.
#[derive(Debug, Clone)]
enum Activation {
    Tokens(Tensor<2, Int>),
    Vector(Tensor<2>),
    Sequence(Tensor<3>),
    Image(Tensor<4>),
}

/// Applies an expression to the tensor of any rank. Tokens stay as they are: no valid spec gets here.
macro_rules! each {
    ($activation:expr, $x:ident => $result:expr) => {
        match $activation {
            Activation::Vector($x) => Activation::Vector($result),
            Activation::Sequence($x) => Activation::Sequence($result),
            Activation::Image($x) => Activation::Image($result),
            tokens @ Activation::Tokens(_) => tokens,
        }
    };
}

impl From<NetworkInput> for Activation {
    fn from(input: NetworkInput) -> Self {
        match input {
            NetworkInput::Tokens(x) => Self::Tokens(x),
            NetworkInput::Vectors(x) => Self::Vector(x),
            NetworkInput::Sequences(x) => Self::Sequence(x),
            NetworkInput::Images(x) => Self::Image(x),
        }
    }
}

impl Activation {
    fn image(self, f: impl FnOnce(Tensor<4>) -> Tensor<4>) -> Self {
        match self {
            Self::Image(x) => Self::Image(f(x)),
            other => other,
        }
    }

    fn sequence(self, f: impl FnOnce(Tensor<3>) -> Tensor<3>) -> Self {
        match self {
            Self::Sequence(x) => Self::Sequence(f(x)),
            other => other,
        }
    }

    /// A vector for each sample, in the order of its shape.
    fn flatten(self) -> Self {
        match self {
            Self::Image(x) => Self::Vector(x.flatten(1, 3)),
            Self::Sequence(x) => Self::Vector(x.flatten(1, 2)),
            other => other,
        }
    }

    fn add(self, other: Self) -> Self {
        match (self, other) {
            (Self::Vector(a), Self::Vector(b)) => Self::Vector(a + b),
            (Self::Sequence(a), Self::Sequence(b)) => Self::Sequence(a + b),
            (Self::Image(a), Self::Image(b)) => Self::Image(a + b),
            (a, _) => a,
        }
    }

    /// Along the channels.
    fn concat(self, other: Self) -> Self {
        match (self, other) {
            (Self::Vector(a), Self::Vector(b)) => Self::Vector(Tensor::cat(vec![a, b], 1)),
            (Self::Sequence(a), Self::Sequence(b)) => Self::Sequence(Tensor::cat(vec![a, b], 2)),
            (Self::Image(a), Self::Image(b)) => Self::Image(Tensor::cat(vec![a, b], 1)),
            (a, _) => a,
        }
    }
}

impl SpecNetwork {
    pub(super) fn new(spec: &ModelSpec, device: &Device) -> Self {
        let tensors = spec.tensors();
        Self {
            tensors: tensors.iter().map(|(_, t)| AnyTensor::new(&t.shape, t.buffer, device)).collect(),
            layers: spec.layers.clone(),
        }
    }

    fn run(&self, input: NetworkInput, training: Option<&mut TrainingPass>) -> Tensor<2> {
        let mut walk = Walk { tensors: self.tensors.iter(), offset: 0, layer: 0, training };
        match walk.list(&self.layers, input.into()) {
            // A row for each token.
            Activation::Sequence(x) => x.flatten(0, 1),
            Activation::Vector(x) => x,
            Activation::Image(x) => x.flatten(1, 3),
            Activation::Tokens(x) => x.float(),
        }
    }
}

impl BurnNetwork for SpecNetwork {
    fn forward(&self, input: NetworkInput) -> Tensor<2> {
        self.run(input, None)
    }

    fn forward_training(&self, input: NetworkInput, pass: &mut TrainingPass) -> Tensor<2> {
        self.run(input, Some(pass))
    }
}

/// A forward pass, layer by layer in canonical order.
struct Walk<'a> {
    /// The tensors of the layers that come.
    tensors: std::slice::Iter<'a, AnyTensor>,
    /// Where the next tensor is in the flat vector.
    offset: usize,
    /// Number of the next layer, nested ones and those that hold them included: what dropout's masks depend on.
    layer: usize,
    training: Option<&'a mut TrainingPass>,
}

macro_rules! next_tensor {
    ($name:ident, $rank:literal, $variant:ident) => {
        fn $name(&mut self) -> Tensor<$rank> {
            match self.tensors.next() {
                Some(AnyTensor::$variant(param)) => {
                    let tensor = param.val();
                    self.offset += tensor.shape().num_elements();
                    tensor
                }
                _ => unreachable!("the network was made of the tensors of these layers"),
            }
        }
    };
}

impl Walk<'_> {
    next_tensor!(one, 1, One);
    next_tensor!(two, 2, Two);
    next_tensor!(three, 3, Three);
    next_tensor!(four, 4, Four);

    fn bias(&mut self, bias: bool) -> Option<Tensor<1>> {
        bias.then(|| self.one())
    }

    fn list(&mut self, layers: &[Layer], mut x: Activation) -> Activation {
        for layer in layers {
            let number = self.layer;
            self.layer += 1;
            x = self.layer(layer, number, x);
        }
        x
    }

    fn layer(&mut self, layer: &Layer, number: usize, x: Activation) -> Activation {
        match *layer {
            Layer::Conv2d { padding, stride, dilation, groups, bias, .. } => {
                let (weight, bias) = (self.four(), self.bias(bias));
                x.image(|x| layers::conv2d(x, weight, bias, [padding, stride, dilation], groups))
            }
            Layer::Conv1d { padding, stride, dilation, groups, bias, .. } => {
                let (weight, bias) = (self.three(), self.bias(bias));
                x.sequence(|x| layers::conv1d(x, weight, bias, [padding, stride, dilation], groups))
            }
            Layer::Linear { bias, .. } => {
                let (weight, bias) = (self.two(), self.bias(bias));
                each!(x, x => layers::linear(x, weight, bias))
            }
            Layer::BatchNorm { eps, momentum, .. } => self.batch_norm(x, eps, momentum),
            Layer::GroupNorm { groups, eps, .. } => {
                let (weight, bias) = (self.one(), self.one());
                each!(x, x => layers::group_norm(x, groups, eps, weight, bias))
            }
            Layer::LayerNorm { eps, .. } => {
                let (weight, bias) = (self.one(), self.one());
                each!(x, x => layers::layer_norm(x, eps, weight, bias))
            }
            Layer::Relu => each!(x, x => relu(x)),
            Layer::LeakyRelu { negative_slope } => each!(x, x => leaky_relu(x, f64::from(negative_slope))),
            Layer::Gelu { approximate: GeluForm::None } => each!(x, x => layers::gelu(x)),
            Layer::Gelu { approximate: GeluForm::Tanh } => each!(x, x => gelu_approximate(x)),
            Layer::Silu => each!(x, x => silu(x)),
            Layer::Tanh => each!(x, x => x.tanh()),
            Layer::Sigmoid => each!(x, x => sigmoid(x)),
            Layer::MaxPool2d { kernel, stride, padding } => {
                x.image(|x| layers::max_pool2d(x, kernel, stride, padding))
            }
            Layer::AvgPool2d { kernel, stride, padding } => {
                x.image(|x| layers::avg_pool2d(x, kernel, stride, padding))
            }
            Layer::AdaptiveAvgPool2d { size } => x.image(|x| layers::adaptive_avg_pool2d(x, size)),
            Layer::MaxPool1d { kernel, stride, padding } => {
                x.sequence(|x| layers::max_pool1d(x, kernel, stride, padding))
            }
            Layer::AvgPool1d { kernel, stride, padding } => {
                x.sequence(|x| layers::avg_pool1d(x, kernel, stride, padding))
            }
            Layer::AdaptiveAvgPool1d { size } => x.sequence(|x| layers::adaptive_avg_pool1d(x, size)),
            Layer::Dropout { p } => match &self.training {
                Some(pass) => {
                    let masks = pass.masks();
                    each!(x, x => layers::dropout(x, masks, p, number))
                }
                None => x,
            },
            Layer::Embedding { .. } => {
                let weight = self.two();
                match x {
                    Activation::Tokens(tokens) => Activation::Sequence(embedding(weight, tokens)),
                    other => other,
                }
            }
            Layer::PositionalEmbedding { .. } => {
                let weight = self.two();
                x.sequence(|x| {
                    let [_, length, _] = x.dims();
                    x + weight.narrow(0, 0, length).unsqueeze::<3>()
                })
            }
            Layer::Lstm { num_layers, .. } => self.recurrent(x, num_layers, sequence::lstm),
            Layer::Gru { num_layers, .. } => self.recurrent(x, num_layers, sequence::gru),
            Layer::Attention { heads, causal, bias, .. } => {
                let (in_weight, in_bias) = (self.two(), self.bias(bias));
                let (out_weight, out_bias) = (self.two(), self.bias(bias));
                x.sequence(|x| {
                    let mixed = sequence::attention(layers::linear(x, in_weight, in_bias), heads, causal);
                    layers::linear(mixed, out_weight, out_bias)
                })
            }
            Layer::Flatten => x.flatten(),
            Layer::MeanTokens => match x {
                Activation::Sequence(x) => Activation::Vector(x.mean_dim(1).squeeze_dim(1)),
                other => other,
            },
            Layer::LastToken => match x {
                Activation::Sequence(x) => {
                    let [_, length, _] = x.dims();
                    Activation::Vector(x.narrow(1, length - 1, 1).squeeze_dim(1))
                }
                other => other,
            },
            Layer::Residual { ref body, ref shortcut } => {
                let y = self.list(body, x.clone());
                y.add(self.list(shortcut, x))
            }
            Layer::Branches { ref branches, join } => {
                let mut results = branches.iter().map(|branch| self.list(branch, x.clone()));
                match (results.next(), join) {
                    (Some(first), Join::Add) => results.fold(first, Activation::add),
                    (Some(first), Join::Concat) => results.fold(first, Activation::concat),
                    (None, _) => x,
                }
            }
            Layer::Sequential { ref layers } => self.list(layers, x),
        }
    }

    fn batch_norm(&mut self, x: Activation, eps: f64, momentum: f64) -> Activation {
        let parameters = [self.one(), self.one()];
        let offset = self.offset;
        let running = Moments { mean: self.one(), variance: self.one() };
        let training = self.training.is_some();
        let old = running.clone();
        let (x, batch) = match x {
            Activation::Image(x) => {
                let (x, batch) = layers::batch_norm(x, 1, running, eps, parameters, training);
                (Activation::Image(x), batch)
            }
            Activation::Sequence(x) => {
                let (x, batch) = layers::batch_norm(x, 2, running, eps, parameters, training);
                (Activation::Sequence(x), batch)
            }
            Activation::Vector(x) => {
                let (x, batch) = layers::batch_norm(x, 1, running, eps, parameters, training);
                (Activation::Vector(x), batch)
            }
            tokens @ Activation::Tokens(_) => (tokens, None),
        };
        if let (Some(pass), Some(batch)) = (&mut self.training, batch) {
            pass.move_buffers(offset, old.moved(batch, momentum));
        }
        x
    }

    fn recurrent(&mut self, x: Activation, stacked: usize, cell: sequence::Cell) -> Activation {
        let layers: Vec<_> = (0..stacked)
            .map(|_| sequence::Weights {
                input: self.two(),
                hidden: self.two(),
                input_bias: self.one(),
                hidden_bias: self.one(),
            })
            .collect();
        x.sequence(|x| sequence::stacked(x, &layers, cell))
    }
}
