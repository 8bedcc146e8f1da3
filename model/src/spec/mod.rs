//! What a network is: a named list of layers with the shape of its input.
//!
//! A [`ModelSpec`] travels as JSON in the model file's metadata, so a worker builds the network with
//! no setting of its own. The layers have PyTorch's names, parameters and defaults, and the index of
//! a layer counts every layer, as in `torch.nn.Sequential`.

mod file;
mod presets;
mod shapes;

pub use presets::PRESETS;

use crate::error::ModelError;
use fl_protocol::ModelLayout;
use serde::{Deserialize, Serialize};

/// Bounds on a layer list, which may come from a file or a server.
pub mod limits {
    /// Most layers.
    pub const MAX_LAYERS: usize = 256;
    /// Largest size of one dimension: channels, features, height, width, classes.
    pub const MAX_DIM: usize = 1 << 24;
    /// Largest kernel, stride or padding of a layer.
    pub const MAX_KERNEL: usize = 1 << 10;
    /// Most values of one sample between two layers.
    pub const MAX_ACTIVATION: usize = 1 << 26;
    /// Longest name, in bytes.
    pub const MAX_NAME_BYTES: usize = 128;
    /// Largest JSON text of a layer list, in bytes.
    pub const MAX_JSON_BYTES: usize = 1 << 20;
}

/// A network: a list of layers from an input shape to one logit per class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Name of the preset or of the file it came from.
    pub name: String,
    /// Shape of one sample: `[features]`, or `[channels, height, width]` for images.
    pub input_shape: Vec<usize>,
    /// Number of logits.
    pub num_classes: usize,
    /// The layers, first to last.
    pub layers: Vec<Layer>,
}

/// One layer. Names and defaults are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Layer {
    /// 2D convolution with a square kernel and a bias. Parameters: `weight [out, in, k, k]`, `bias [out]`.
    Conv2d {
        /// Channels of the input; may be left out in a file.
        #[serde(default)]
        in_channels: usize,
        /// Channels of the output.
        out_channels: usize,
        /// Height and width of the kernel.
        kernel: usize,
        /// Zeros added on each side.
        #[serde(default)]
        padding: usize,
        /// Distance between two applications of the kernel.
        #[serde(default = "one")]
        stride: usize,
    },
    /// Dense layer with a bias. Parameters: `weight [out, in]`, `bias [out]`.
    Linear {
        /// Features of the input; may be left out in a file.
        #[serde(default)]
        in_features: usize,
        /// Features of the output.
        out_features: usize,
    },
    /// `max(x, 0)`.
    Relu,
    /// Maximum over square windows, without padding.
    #[serde(rename = "max_pool2d")]
    MaxPool2d {
        /// Height and width of the window.
        kernel: usize,
        /// Distance between two windows; 0 or left out: the kernel's size.
        #[serde(default)]
        stride: usize,
    },
    /// Makes a vector of an image, channels outermost.
    Flatten,
    /// Sets a share of the values to zero while training and scales the rest.
    Dropout {
        /// Probability of a zero, 0 to below 1.
        p: f32,
    },
    /// Normalisation over groups of channels. Parameters: `weight [channels]`, `bias [channels]`.
    GroupNorm {
        /// Number of groups; divides the channels.
        groups: usize,
        /// Channels of the input; may be left out in a file.
        #[serde(default)]
        channels: usize,
    },
}

fn one() -> usize {
    1
}

impl Layer {
    /// Shapes of the layer's parameters in PyTorch's layout, by PyTorch's names.
    pub fn parameters(&self) -> Vec<(&'static str, Vec<usize>)> {
        match *self {
            Layer::Conv2d { in_channels, out_channels, kernel, .. } => vec![
                ("weight", vec![out_channels, in_channels, kernel, kernel]),
                ("bias", vec![out_channels]),
            ],
            Layer::Linear { in_features, out_features } => {
                vec![("weight", vec![out_features, in_features]), ("bias", vec![out_features])]
            }
            Layer::GroupNorm { channels, .. } => vec![("weight", vec![channels]), ("bias", vec![channels])],
            Layer::Relu | Layer::MaxPool2d { .. } | Layer::Flatten | Layer::Dropout { .. } => Vec::new(),
        }
    }
}

/// Epsilon of [`Layer::GroupNorm`], PyTorch's default.
pub const GROUP_NORM_EPSILON: f64 = 1e-5;

impl ModelSpec {
    /// Names, shapes and flat order of the parameters, keyed as `torch.nn.Sequential` keys them.
    pub fn layout(&self) -> ModelLayout {
        ModelLayout::new(self.layers.iter().enumerate().flat_map(|(index, layer)| {
            layer.parameters().into_iter().map(move |(name, shape)| (format!("{index}.{name}"), shape))
        }))
    }

    /// Number of parameters.
    pub fn num_parameters(&self) -> usize {
        self.layout().parameters()
    }

    /// Values of one sample.
    pub fn num_features(&self) -> usize {
        self.input_shape.iter().product()
    }

    /// Checks that the layers fit together and stay within [`limits`].
    ///
    /// # Errors
    /// A sentence that names the layer.
    pub fn validate(&self) -> Result<(), ModelError> {
        self.shapes().map(drop)
    }

    /// Shape of one sample at the input and after every layer: one more than there are layers.
    ///
    /// # Errors
    /// As [`ModelSpec::validate`].
    pub fn shapes(&self) -> Result<Vec<Vec<usize>>, ModelError> {
        shapes::infer(self)
    }
}
