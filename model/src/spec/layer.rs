//! The layers, with PyTorch's names, parameters and defaults.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Height and width of a kernel, stride, padding or dilation: one number if they are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair(pub [usize; 2]);

impl From<usize> for Pair {
    fn from(size: usize) -> Self {
        Self([size; 2])
    }
}

impl Serialize for Pair {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            [a, b] if a == b => a.serialize(serializer),
            pair => pair.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Pair {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a whole number or a pair of them")]
        enum Raw {
            One(usize),
            Two([usize; 2]),
        }
        Ok(match Raw::deserialize(deserializer)? {
            Raw::One(size) => size.into(),
            Raw::Two(pair) => Self(pair),
        })
    }
}

/// How the results of branches become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Join {
    /// One after the other along the channels.
    Concat,
    /// Summed.
    Add,
}

/// The two forms of the Gaussian error linear unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GeluForm {
    /// `x * Phi(x)`.
    #[default]
    None,
    /// With the tanh approximation (Hendrycks and Gimpel 2016).
    Tanh,
}

/// One layer. Names and defaults are PyTorch's, shapes are those of one sample.
///
/// A sequence has the shape `[length, channels]`, an image `[channels, height, width]`. Sizes of the input
/// (`in_channels`, `in_features`, ...) may be left out in a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Layer {
    /// 2D convolution. Parameters: `weight [out, in / groups, kernel, kernel]`, `bias [out]`.
    Conv2d {
        /// Channels of the input.
        #[serde(default)]
        in_channels: usize,
        /// Channels of the output.
        out_channels: usize,
        /// Height and width of the kernel.
        #[serde(alias = "kernel_size")]
        kernel: Pair,
        /// Zeros added on each side.
        #[serde(default = "zeros")]
        padding: Pair,
        /// Distance between two applications of the kernel.
        #[serde(default = "ones")]
        stride: Pair,
        /// Distance between two taps of the kernel.
        #[serde(default = "ones", skip_serializing_if = "are_ones")]
        dilation: Pair,
        /// Groups of channels that do not mix; divides both numbers of channels.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        groups: usize,
        /// Whether there is a bias.
        #[serde(default = "yes", skip_serializing_if = "is_yes")]
        bias: bool,
    },
    /// Convolution along a sequence. Parameters: `weight [out, in / groups, kernel]`, `bias [out]`.
    Conv1d {
        /// Channels of the input.
        #[serde(default)]
        in_channels: usize,
        /// Channels of the output.
        out_channels: usize,
        /// Length of the kernel.
        #[serde(alias = "kernel_size")]
        kernel: usize,
        /// Zeros added at each end.
        #[serde(default)]
        padding: usize,
        /// Distance between two applications of the kernel.
        #[serde(default = "one")]
        stride: usize,
        /// Distance between two taps of the kernel.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        dilation: usize,
        /// Groups of channels that do not mix.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        groups: usize,
        /// Whether there is a bias.
        #[serde(default = "yes", skip_serializing_if = "is_yes")]
        bias: bool,
    },
    /// Dense layer over the last dimension. Parameters: `weight [out, in]`, `bias [out]`.
    Linear {
        /// Features of the input.
        #[serde(default)]
        in_features: usize,
        /// Features of the output.
        out_features: usize,
        /// Whether there is a bias.
        #[serde(default = "yes", skip_serializing_if = "is_yes")]
        bias: bool,
    },
    /// Normalisation of each channel over the batch (Ioffe and Szegedy 2015). Parameters: `weight`, `bias`;
    /// buffers: `running_mean`, `running_var`; all `[channels]`.
    BatchNorm {
        /// Channels of the input.
        #[serde(default, alias = "num_features")]
        channels: usize,
        /// Added to the variance.
        #[serde(default = "epsilon", skip_serializing_if = "is_epsilon")]
        eps: f64,
        /// Share of the batch in the running moments.
        #[serde(default = "tenth", skip_serializing_if = "is_tenth")]
        momentum: f64,
    },
    /// Normalisation over groups of channels (Wu and He 2018). Parameters: `weight [channels]`, `bias [channels]`.
    GroupNorm {
        /// Number of groups; divides the channels.
        #[serde(alias = "num_groups")]
        groups: usize,
        /// Channels of the input.
        #[serde(default, alias = "num_channels")]
        channels: usize,
        /// Added to the variance.
        #[serde(default = "epsilon", skip_serializing_if = "is_epsilon")]
        eps: f64,
    },
    /// Normalisation over the last dimension (Ba et al. 2016). Parameters: `weight [features]`, `bias [features]`.
    LayerNorm {
        /// Features of the input.
        #[serde(default, alias = "normalized_shape")]
        features: usize,
        /// Added to the variance.
        #[serde(default = "epsilon", skip_serializing_if = "is_epsilon")]
        eps: f64,
    },
    /// `max(x, 0)`.
    Relu,
    /// `x` if positive, else `negative_slope * x`.
    LeakyRelu {
        /// Slope below zero.
        #[serde(default = "hundredth")]
        negative_slope: f32,
    },
    /// Gaussian error linear unit.
    Gelu {
        /// Which of the two forms.
        #[serde(default, skip_serializing_if = "is_exact")]
        approximate: GeluForm,
    },
    /// `x * sigmoid(x)`.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
    /// Maximum over windows.
    #[serde(rename = "max_pool2d")]
    MaxPool2d {
        /// Height and width of the window.
        #[serde(alias = "kernel_size")]
        kernel: Pair,
        /// Distance between two windows; 0 or left out: the kernel's size.
        #[serde(default = "zeros")]
        stride: Pair,
        /// Border of minus infinity; at most half the kernel.
        #[serde(default = "zeros", skip_serializing_if = "are_zeros")]
        padding: Pair,
    },
    /// Mean over windows; a padding of zeros counts.
    #[serde(rename = "avg_pool2d")]
    AvgPool2d {
        /// Height and width of the window.
        #[serde(alias = "kernel_size")]
        kernel: Pair,
        /// Distance between two windows; 0 or left out: the kernel's size.
        #[serde(default = "zeros")]
        stride: Pair,
        /// Border of zeros; at most half the kernel.
        #[serde(default = "zeros", skip_serializing_if = "are_zeros")]
        padding: Pair,
    },
    /// Mean over as many windows as asked, which may overlap and differ by one in size, as in PyTorch.
    #[serde(rename = "adaptive_avg_pool2d")]
    AdaptiveAvgPool2d {
        /// Height and width of the output.
        #[serde(default = "ones", alias = "output_size")]
        size: Pair,
    },
    /// Maximum over windows of a sequence.
    #[serde(rename = "max_pool1d")]
    MaxPool1d {
        /// Length of the window.
        #[serde(alias = "kernel_size")]
        kernel: usize,
        /// Distance between two windows; 0 or left out: the kernel's size.
        #[serde(default)]
        stride: usize,
        /// Border of minus infinity; at most half the kernel.
        #[serde(default, skip_serializing_if = "is_zero")]
        padding: usize,
    },
    /// Mean over windows of a sequence; a padding of zeros counts.
    #[serde(rename = "avg_pool1d")]
    AvgPool1d {
        /// Length of the window.
        #[serde(alias = "kernel_size")]
        kernel: usize,
        /// Distance between two windows; 0 or left out: the kernel's size.
        #[serde(default)]
        stride: usize,
        /// Border of zeros; at most half the kernel.
        #[serde(default, skip_serializing_if = "is_zero")]
        padding: usize,
    },
    /// Mean over as many windows of a sequence as asked.
    #[serde(rename = "adaptive_avg_pool1d")]
    AdaptiveAvgPool1d {
        /// Length of the output.
        #[serde(default = "one", alias = "output_size")]
        size: usize,
    },
    /// Sets a share of the values to zero while training and scales the rest.
    Dropout {
        /// Probability of a zero, 0 to below 1.
        #[serde(default = "half")]
        p: f32,
    },
    /// A vector for each token. Parameters: `weight [vocab, dim]`.
    Embedding {
        /// Number of distinct tokens.
        #[serde(default, alias = "num_embeddings")]
        vocab: usize,
        /// Length of a vector.
        #[serde(alias = "embedding_dim")]
        dim: usize,
    },
    /// Adds a learnt vector to each position. Parameters: `weight [length, dim]`.
    PositionalEmbedding {
        /// Positions: at least the length of the sequence; left out: that length.
        #[serde(default)]
        length: usize,
        /// Channels of the sequence.
        #[serde(default)]
        dim: usize,
    },
    /// Long short-term memory over a sequence (Hochreiter and Schmidhuber 1997). Parameters of each of the
    /// stacked layers `k`: `weight_ih_lk [4 hidden, in]`, `weight_hh_lk [4 hidden, hidden]`, `bias_ih_lk`,
    /// `bias_hh_lk [4 hidden]`; gates in the order input, forget, cell, output.
    Lstm {
        /// Channels of the input.
        #[serde(default)]
        input_size: usize,
        /// Channels of the output.
        hidden_size: usize,
        /// Stacked layers.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        num_layers: usize,
    },
    /// Gated recurrent unit over a sequence (Cho et al. 2014). Parameters as [`Layer::Lstm`] with three gates:
    /// reset, update, new.
    Gru {
        /// Channels of the input.
        #[serde(default)]
        input_size: usize,
        /// Channels of the output.
        hidden_size: usize,
        /// Stacked layers.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        num_layers: usize,
    },
    /// Multi-head self-attention over a sequence (Vaswani et al. 2017). Parameters, as in
    /// `torch.nn.MultiheadAttention`: `in_proj_weight [3 dim, dim]`, `in_proj_bias [3 dim]`,
    /// `out_proj.weight [dim, dim]`, `out_proj.bias [dim]`.
    Attention {
        /// Channels of the sequence.
        #[serde(default, alias = "embed_dim")]
        dim: usize,
        /// Number of heads; divides the channels.
        #[serde(alias = "num_heads")]
        heads: usize,
        /// Whether a position sees only those up to itself.
        #[serde(default)]
        causal: bool,
        /// Whether the projections have biases.
        #[serde(default = "yes", skip_serializing_if = "is_yes")]
        bias: bool,
    },
    /// Makes a vector of an image or a sequence, in the order of the shape.
    Flatten,
    /// The mean of a sequence's positions.
    MeanTokens,
    /// The last position of a sequence.
    LastToken,
    /// `body(x) + shortcut(x)` (He et al. 2016).
    Residual {
        /// The layers of the body.
        body: Vec<Layer>,
        /// The layers of the shortcut; none: the identity.
        #[serde(default)]
        shortcut: Vec<Layer>,
    },
    /// Several ways through the network, joined.
    Branches {
        /// The layers of each branch; a branch without layers is the identity.
        branches: Vec<Vec<Layer>>,
        /// How the results become one.
        join: Join,
    },
    /// Layers in a list of their own.
    Sequential {
        /// The layers, first to last.
        layers: Vec<Layer>,
    },
}

fn zeros() -> Pair {
    0.into()
}
fn ones() -> Pair {
    1.into()
}
fn are_zeros(pair: &Pair) -> bool {
    *pair == zeros()
}
fn are_ones(pair: &Pair) -> bool {
    *pair == ones()
}
fn one() -> usize {
    1
}
fn is_one(value: &usize) -> bool {
    *value == 1
}
fn is_zero(value: &usize) -> bool {
    *value == 0
}
fn yes() -> bool {
    true
}
fn is_yes(value: &bool) -> bool {
    *value
}
fn half() -> f32 {
    0.5
}
fn hundredth() -> f32 {
    0.01
}
fn tenth() -> f64 {
    0.1
}
fn is_tenth(value: &f64) -> bool {
    *value == 0.1
}
fn epsilon() -> f64 {
    super::EPSILON
}
fn is_epsilon(value: &f64) -> bool {
    *value == super::EPSILON
}
fn is_exact(form: &GeluForm) -> bool {
    *form == GeluForm::None
}
