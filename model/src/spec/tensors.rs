//! The tensors of each layer: names, shapes and first values, as in PyTorch.

use super::layer::{Layer, Pair};

/// What a tensor of a layer is for, and how it begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Start {
    /// Uniform within plus and minus the bound.
    Uniform(f32),
    /// Normal with this standard deviation.
    Normal(f32),
    /// All the same.
    Constant(f32),
}

/// A tensor of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerTensor {
    /// PyTorch's name within the layer.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its first values.
    pub start: Start,
    /// Whether it is moved by the forward pass (running moments) and not by gradients.
    pub buffer: bool,
}

impl LayerTensor {
    fn new(name: &str, shape: &[usize], start: Start) -> Self {
        Self { name: name.to_owned(), shape: shape.to_vec(), start, buffer: false }
    }

    fn buffer(name: &str, shape: &[usize], start: Start) -> Self {
        Self { buffer: true, ..Self::new(name, shape, start) }
    }
}

/// PyTorch's default bound of weights and biases: `1 / sqrt(fan_in)` (Kaiming-uniform with `a = sqrt(5)`).
fn fan_in(size: usize) -> Start {
    Start::Uniform(1.0 / (size.max(1) as f32).sqrt())
}

/// Weight and, if asked, bias of an affine map with `size` inputs an output.
fn affine(weight: &[usize], size: usize, bias: bool) -> Vec<LayerTensor> {
    let mut tensors = vec![LayerTensor::new("weight", weight, fan_in(size))];
    if bias {
        tensors.push(LayerTensor::new("bias", &weight[..1], fan_in(size)));
    }
    tensors
}

fn scale_and_shift(size: usize) -> Vec<LayerTensor> {
    vec![
        LayerTensor::new("weight", &[size], Start::Constant(1.0)),
        LayerTensor::new("bias", &[size], Start::Constant(0.0)),
    ]
}

fn recurrent(gates: usize, input: usize, hidden: usize, layers: usize) -> Vec<LayerTensor> {
    let rows = gates.saturating_mul(hidden);
    let tensor = |name: String, shape: &[usize]| LayerTensor::new(&name, shape, fan_in(hidden));
    (0..layers)
        .flat_map(|k| {
            [
                tensor(format!("weight_ih_l{k}"), &[rows, if k == 0 { input } else { hidden }]),
                tensor(format!("weight_hh_l{k}"), &[rows, hidden]),
                tensor(format!("bias_ih_l{k}"), &[rows]),
                tensor(format!("bias_hh_l{k}"), &[rows]),
            ]
        })
        .collect()
}

impl Layer {
    /// The layer's own tensors in PyTorch's order, names and layout; those of nested layers are not among them.
    pub fn tensors(&self) -> Vec<LayerTensor> {
        match *self {
            Self::Conv2d { in_channels, out_channels, kernel: Pair([h, w]), groups, bias, .. } => {
                let inputs = in_channels / groups.max(1);
                affine(&[out_channels, inputs, h, w], inputs.saturating_mul(h).saturating_mul(w), bias)
            }
            Self::Conv1d { in_channels, out_channels, kernel, groups, bias, .. } => {
                let inputs = in_channels / groups.max(1);
                affine(&[out_channels, inputs, kernel], inputs.saturating_mul(kernel), bias)
            }
            Self::Linear { in_features, out_features, bias } => {
                affine(&[out_features, in_features], in_features, bias)
            }
            Self::BatchNorm { channels, .. } => {
                let mut tensors = scale_and_shift(channels);
                tensors.push(LayerTensor::buffer("running_mean", &[channels], Start::Constant(0.0)));
                tensors.push(LayerTensor::buffer("running_var", &[channels], Start::Constant(1.0)));
                tensors
            }
            Self::GroupNorm { channels, .. } => scale_and_shift(channels),
            Self::LayerNorm { features, .. } => scale_and_shift(features),
            Self::Embedding { vocab, dim } => {
                vec![LayerTensor::new("weight", &[vocab, dim], Start::Normal(1.0))]
            }
            Self::PositionalEmbedding { length, dim } => {
                vec![LayerTensor::new("weight", &[length, dim], Start::Normal(0.02))]
            }
            Self::Lstm { input_size, hidden_size, num_layers } => {
                recurrent(4, input_size, hidden_size, num_layers)
            }
            Self::Gru { input_size, hidden_size, num_layers } => {
                recurrent(3, input_size, hidden_size, num_layers)
            }
            Self::Attention { dim, bias, .. } => {
                let rows = dim.saturating_mul(3);
                // PyTorch: Xavier-uniform for the input projection, zero biases.
                let xavier = (6.0 / (4.0 * dim.max(1) as f32)).sqrt();
                let mut tensors =
                    vec![LayerTensor::new("in_proj_weight", &[rows, dim], Start::Uniform(xavier))];
                if bias {
                    tensors.push(LayerTensor::new("in_proj_bias", &[rows], Start::Constant(0.0)));
                }
                tensors.push(LayerTensor::new("out_proj.weight", &[dim, dim], fan_in(dim)));
                if bias {
                    tensors.push(LayerTensor::new("out_proj.bias", &[dim], Start::Constant(0.0)));
                }
                tensors
            }
            _ => Vec::new(),
        }
    }

    /// The lists of layers inside, each with the prefix of its keys, as PyTorch's modules nest.
    pub fn nested(&self) -> Vec<(String, &[Layer])> {
        match self {
            Self::Residual { body, shortcut } => {
                vec![("body.".into(), body.as_slice()), ("shortcut.".into(), shortcut)]
            }
            Self::Branches { branches, .. } => {
                branches.iter().enumerate().map(|(k, b)| (format!("branches.{k}."), b.as_slice())).collect()
            }
            Self::Sequential { layers } => vec![(String::new(), layers.as_slice())],
            _ => Vec::new(),
        }
    }
}
