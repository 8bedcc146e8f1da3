//! The networks that have a name.

use super::{Layer, ModelSpec, Pair};
use crate::error::ModelError;
use fl_protocol::{Input, Task};

/// Names of the presets.
pub const PRESETS: [&str; 10] = [
    "softmax",
    "mlp",
    "cnn",
    "mcmahan_cnn",
    "resnet20",
    "vgg11",
    "mobilenet_small",
    "char_lstm",
    "tiny_transformer",
    "linear_regression",
];

/// Tokens of a sequence of `char_lstm` (Caldas et al. 2018) and of `tiny_transformer`.
const LSTM_LENGTH: usize = 80;
const TRANSFORMER_LENGTH: usize = 128;

impl ModelSpec {
    /// A preset that classifies numbers of `shape`: an image if there are three dimensions.
    ///
    /// # Errors
    /// As [`ModelSpec::preset`].
    pub fn classifier(
        name: &str,
        shape: &[usize],
        classes: usize,
        model_dim: usize,
    ) -> Result<Self, ModelError> {
        Self::preset(name, &Input::numbers(shape), &Task::classes(classes), model_dim)
    }

    /// Whether the preset of this name reads text.
    pub fn reads_text(name: &str) -> bool {
        matches!(name, "char_lstm" | "tiny_transformer")
    }

    /// A preset for data of `input` and `task`. Presets on tokens have a length of sequence of their own.
    ///
    /// `model_dim` is the parameter budget of `mlp`, whose hidden layer is the widest that fits; the
    /// other presets have the size that they have.
    ///
    /// # Errors
    /// An unknown name, a budget below one hidden unit, data that the network cannot take.
    pub fn preset(name: &str, input: &Input, task: &Task, model_dim: usize) -> Result<Self, ModelError> {
        if !PRESETS.contains(&name) {
            return Err(ModelError::UnknownModel { name: name.to_owned(), known: PRESETS.join(", ") });
        }
        let mut input = input.clone();
        let outputs = task.num_classes(&input);
        let layers = match (name, &mut input) {
            ("char_lstm", Input::Tokens { shape, vocab }) => {
                *shape = vec![LSTM_LENGTH];
                char_lstm(*vocab, task)
            }
            ("tiny_transformer", Input::Tokens { shape, vocab }) => {
                *shape = vec![TRANSFORMER_LENGTH];
                tiny_transformer(*vocab, task)
            }
            (name, _) if Self::reads_text(name) => {
                return Err(ModelError::BadSpec(format!(
                    "{name} needs text, but the data is numbers of shape {:?}: use shakespeare or text:FILE",
                    input.shape()
                )));
            }
            (_, Input::Tokens { .. }) => {
                return Err(ModelError::BadSpec(format!(
                    "{name} needs numbers, but the data is text: use char_lstm or tiny_transformer"
                )));
            }
            ("softmax" | "linear_regression", input) => vec![Layer::Flatten, linear(input.len(), outputs)],
            ("mlp", input) => {
                let features = input.len();
                let hidden = mlp_width(features, outputs, model_dim)?;
                vec![Layer::Flatten, linear(features, hidden), Layer::Relu, linear(hidden, outputs)]
            }
            (_, input) => convolutional(name, image_shape(name, input.shape())?, outputs),
        };
        if name == "linear_regression" && !matches!(task, Task::Regression { .. }) {
            return Err(ModelError::BadSpec(
                "linear_regression needs numbers as targets (csv:FILE with TARGET=column), but the data has classes: \
                 use softmax"
                    .into(),
            ));
        }
        let mut spec = Self { name: name.to_owned(), input, task: task.clone(), layers };
        super::shapes::complete(&mut spec)?;
        spec.validate()?;
        Ok(spec)
    }
}

fn convolutional(name: &str, [channels, height, width]: [usize; 3], outputs: usize) -> Vec<Layer> {
    match name {
        "cnn" => {
            let mut layers = Vec::new();
            for (from, to) in [(channels, 32), (32, 64)] {
                layers.extend([conv(from, to, 3), Layer::Relu, conv(to, to, 3), Layer::Relu, pool()]);
            }
            with_head(layers, 64 * (height / 4) * (width / 4), 128, outputs)
        }
        "mcmahan_cnn" => {
            let layers =
                vec![conv(channels, 32, 5), Layer::Relu, pool(), conv(32, 64, 5), Layer::Relu, pool()];
            with_head(layers, 64 * (height / 4) * (width / 4), 512, outputs)
        }
        "resnet20" => resnet20(channels, outputs),
        "vgg11" => vgg11([channels, height, width], outputs),
        _ => mobilenet_small(channels, outputs),
    }
}

/// Largest hidden width `h` with `h * (features + 1 + classes) + classes <= model_dim`.
fn mlp_width(features: usize, classes: usize, model_dim: usize) -> Result<usize, ModelError> {
    let per_unit = features.saturating_add(1).saturating_add(classes);
    match model_dim.saturating_sub(classes) / per_unit {
        0 => Err(ModelError::BudgetTooSmall { model_dim, smallest: per_unit.saturating_add(classes) }),
        width => Ok(width),
    }
}

fn pool() -> Layer {
    Layer::MaxPool2d { kernel: 2.into(), stride: 2.into(), padding: 0.into() }
}

fn linear(in_features: usize, out_features: usize) -> Layer {
    Layer::Linear { in_features, out_features, bias: true }
}

fn convolution(
    inputs: usize,
    outputs: usize,
    kernel: usize,
    stride: usize,
    groups: usize,
    bias: bool,
) -> Layer {
    Layer::Conv2d {
        in_channels: inputs,
        out_channels: outputs,
        kernel: kernel.into(),
        padding: (kernel / 2).into(),
        stride: stride.into(),
        dilation: 1.into(),
        groups,
        bias,
    }
}

/// A convolution that keeps the image's size.
fn conv(inputs: usize, outputs: usize, kernel: usize) -> Layer {
    convolution(inputs, outputs, kernel, 1, 1, true)
}

fn group_norm(channels: usize) -> Layer {
    Layer::GroupNorm { groups: 8, channels, eps: super::EPSILON }
}

fn with_head(mut layers: Vec<Layer>, features: usize, hidden: usize, classes: usize) -> Vec<Layer> {
    layers.extend([Layer::Flatten, linear(features, hidden), Layer::Relu, linear(hidden, classes)]);
    layers
}

fn mean_and_head(mut layers: Vec<Layer>, channels: usize, outputs: usize) -> Vec<Layer> {
    layers.extend([
        Layer::AdaptiveAvgPool2d { size: Pair([1, 1]) },
        Layer::Flatten,
        linear(channels, outputs),
    ]);
    layers
}

/// ResNet-20 (He et al. 2016, section 4.2) with group norm, which averages well over clients (Hsieh et al.
/// 2020), and projections where the size changes.
fn resnet20(channels: usize, outputs: usize) -> Vec<Layer> {
    let mut layers = vec![convolution(channels, 16, 3, 1, 1, false), group_norm(16), Layer::Relu];
    let mut from = 16;
    for (to, first_stride) in [(16, 1), (32, 2), (64, 2)] {
        for stride in [first_stride, 1, 1] {
            let body = vec![
                convolution(from, to, 3, stride, 1, false),
                group_norm(to),
                Layer::Relu,
                convolution(to, to, 3, 1, 1, false),
                group_norm(to),
            ];
            let shortcut = match from == to {
                true => Vec::new(),
                false => vec![convolution(from, to, 1, stride, 1, false), group_norm(to)],
            };
            layers.extend([Layer::Residual { body, shortcut }, Layer::Relu]);
            from = to;
        }
    }
    mean_and_head(layers, 64, outputs)
}

/// VGG-11 (Simonyan and Zisserman 2015, table 1, A) with one hidden dense layer of 512. Small images are
/// pooled as often as their size allows.
fn vgg11([channels, mut height, mut width]: [usize; 3], outputs: usize) -> Vec<Layer> {
    let mut layers = Vec::new();
    let mut from = channels;
    for stage in [&[64][..], &[128], &[256, 256], &[512, 512], &[512, 512]] {
        for &to in stage {
            layers.extend([conv(from, to, 3), Layer::Relu]);
            from = to;
        }
        if height >= 2 && width >= 2 {
            layers.push(pool());
            (height, width) = (height / 2, width / 2);
        }
    }
    with_head(layers, 512 * height * width, 512, outputs)
}

/// A small MobileNet (Howard et al. 2017): depthwise 3x3 and pointwise convolutions with group norm.
fn mobilenet_small(channels: usize, outputs: usize) -> Vec<Layer> {
    let mut layers = vec![convolution(channels, 32, 3, 1, 1, false), group_norm(32), Layer::Relu];
    let mut from = 32;
    for (to, stride) in [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1)] {
        layers.extend([convolution(from, from, 3, stride, from, false), group_norm(from), Layer::Relu]);
        layers.extend([convolution(from, to, 1, 1, 1, false), group_norm(to), Layer::Relu]);
        from = to;
    }
    mean_and_head(layers, 256, outputs)
}

/// Reduces a sequence to its last position where the task is not to predict every next token.
fn sequence_head(layers: &mut Vec<Layer>, channels: usize, vocab: usize, task: &Task) {
    match task {
        Task::LanguageModel => layers.push(linear(channels, vocab)),
        Task::Classification { classes: outputs, .. }
        | Task::Regression { outputs }
        | Task::Multilabel { outputs } => layers.extend([Layer::LastToken, linear(channels, *outputs)]),
    }
}

/// The character model of Caldas et al. 2018 (LEAF) and McMahan et al. 2017: an embedding of 8 and two LSTM
/// layers of 256.
fn char_lstm(vocab: usize, task: &Task) -> Vec<Layer> {
    let mut layers = vec![
        Layer::Embedding { vocab, dim: 8 },
        Layer::Lstm { input_size: 8, hidden_size: 256, num_layers: 2 },
    ];
    sequence_head(&mut layers, 256, vocab, task);
    layers
}

/// A decoder of four pre-norm blocks, width 128, four heads, causal.
fn tiny_transformer(vocab: usize, task: &Task) -> Vec<Layer> {
    const WIDTH: usize = 128;
    let norm = || Layer::LayerNorm { features: WIDTH, eps: super::EPSILON };
    let residual = |body| Layer::Residual { body, shortcut: Vec::new() };
    let mut layers = vec![
        Layer::Embedding { vocab, dim: WIDTH },
        Layer::PositionalEmbedding { length: TRANSFORMER_LENGTH, dim: WIDTH },
    ];
    for _ in 0..4 {
        layers.push(residual(vec![
            norm(),
            Layer::Attention { dim: WIDTH, heads: 4, causal: true, bias: true },
        ]));
        layers.push(residual(vec![
            norm(),
            linear(WIDTH, 4 * WIDTH),
            Layer::Gelu { approximate: super::GeluForm::None },
            linear(4 * WIDTH, WIDTH),
        ]));
    }
    layers.push(norm());
    sequence_head(&mut layers, WIDTH, vocab, task);
    layers
}

fn image_shape(name: &str, input_shape: &[usize]) -> Result<[usize; 3], ModelError> {
    match *input_shape {
        [channels, height, width] if height >= 4 && width >= 4 => Ok([channels, height, width]),
        _ => Err(ModelError::BadSpec(format!(
            "{name} needs images of at least 4 x 4 pixels, but the data has shape {input_shape:?}: use mlp"
        ))),
    }
}
