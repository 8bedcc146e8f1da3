//! The networks that have a name.

use super::{Layer, ModelSpec};
use crate::error::ModelError;

/// Names of the presets.
pub const PRESETS: [&str; 4] = ["softmax", "mlp", "cnn", "mcmahan_cnn"];

impl ModelSpec {
    /// A preset for data of `input_shape` with `num_classes` classes.
    ///
    /// `model_dim` is the parameter budget of `mlp`, whose hidden layer is the widest that fits; the
    /// other presets have the size that they have.
    ///
    /// # Errors
    /// An unknown name, a budget below one hidden unit, data that a convolution cannot take.
    pub fn preset(
        name: &str,
        input_shape: &[usize],
        num_classes: usize,
        model_dim: usize,
    ) -> Result<Self, ModelError> {
        let features = input_shape.iter().product();
        let layers = match name {
            "softmax" => vec![Layer::Flatten, linear(features, num_classes)],
            "mlp" => {
                let hidden = mlp_width(features, num_classes, model_dim)?;
                vec![Layer::Flatten, linear(features, hidden), Layer::Relu, linear(hidden, num_classes)]
            }
            "cnn" => {
                let [channels, height, width] = image_shape(name, input_shape)?;
                let mut layers = Vec::new();
                for (from, to) in [(channels, 32), (32, 64)] {
                    layers.extend([conv(from, to, 3), Layer::Relu, conv(to, to, 3), Layer::Relu, POOL]);
                }
                with_head(layers, 64 * (height / 4) * (width / 4), 128, num_classes)
            }
            "mcmahan_cnn" => {
                let [channels, height, width] = image_shape(name, input_shape)?;
                let layers =
                    vec![conv(channels, 32, 5), Layer::Relu, POOL, conv(32, 64, 5), Layer::Relu, POOL];
                with_head(layers, 64 * (height / 4) * (width / 4), 512, num_classes)
            }
            _ => return Err(ModelError::UnknownModel { name: name.to_owned() }),
        };
        let spec = Self { name: name.to_owned(), input_shape: input_shape.to_vec(), num_classes, layers };
        spec.validate()?;
        Ok(spec)
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

const POOL: Layer = Layer::MaxPool2d { kernel: 2, stride: 2 };

fn linear(in_features: usize, out_features: usize) -> Layer {
    Layer::Linear { in_features, out_features }
}

/// A convolution that keeps the image's size.
fn conv(in_channels: usize, out_channels: usize, kernel: usize) -> Layer {
    Layer::Conv2d { in_channels, out_channels, kernel, padding: kernel / 2, stride: 1 }
}

fn with_head(mut layers: Vec<Layer>, features: usize, hidden: usize, classes: usize) -> Vec<Layer> {
    layers.extend([Layer::Flatten, linear(features, hidden), Layer::Relu, linear(hidden, classes)]);
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
