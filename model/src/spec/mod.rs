//! What a network is: layers, which may nest, from an input to the output of a task.
//!
//! A [`ModelSpec`] travels as JSON in the model file's metadata, so a worker builds the network with
//! no setting of its own. The layers have PyTorch's names, parameters and defaults; keys are those of nested
//! PyTorch modules (`3.body.0.weight`), and the index of a layer counts every layer of its list, as in
//! `torch.nn.Sequential`.

mod file;
mod layer;
mod presets;
mod rules;
mod shapes;
mod tensors;

pub use file::describe;
pub use layer::{GeluForm, Join, Layer, Pair};
pub use presets::PRESETS;
pub(crate) use shapes::visit_shapes;
pub use tensors::{LayerTensor, Start};

use crate::error::ModelError;
use fl_protocol::{Input, ModelLayout, Task};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Bounds on a network, which may come from a file or a server.
pub mod limits {
    /// Most layers, nested ones included.
    pub const MAX_LAYERS: usize = 1024;
    /// Most lists of layers around a layer.
    pub const MAX_DEPTH: usize = 16;
    /// Largest size of one dimension: channels, features, height, width, classes.
    pub const MAX_DIM: usize = 1 << 24;
    /// Largest kernel, stride or padding of a layer.
    pub const MAX_KERNEL: usize = 1 << 10;
    /// Most stacked layers of a recurrent one.
    pub const MAX_STACKED: usize = 64;
    /// Most values of one sample between two layers.
    pub const MAX_ACTIVATION: usize = 1 << 26;
    /// Longest name, in bytes.
    pub const MAX_NAME_BYTES: usize = 128;
    /// Largest JSON text of a network, in bytes.
    pub const MAX_JSON_BYTES: usize = 1 << 20;
}

/// PyTorch's default epsilon of all normalisations.
pub const EPSILON: f64 = 1e-5;

/// A network: layers from an input to what its task needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "file::AnyVersion")]
pub struct ModelSpec {
    /// Name of the preset or of the file it came from.
    pub name: String,
    /// What enters it.
    pub input: Input,
    /// What it learns.
    pub task: Task,
    /// The layers, first to last.
    pub layers: Vec<Layer>,
}

impl ModelSpec {
    /// Names, shapes and flat order of the parameters and buffers, keyed as nested PyTorch modules key them.
    pub fn layout(&self) -> ModelLayout {
        ModelLayout::new(self.tensors().into_iter().map(|(key, tensor)| (key, tensor.shape)))
    }

    /// All tensors in canonical order, with their keys.
    pub fn tensors(&self) -> Vec<(String, LayerTensor)> {
        fn collect(layers: &[Layer], prefix: &str, out: &mut Vec<(String, LayerTensor)>) {
            for (index, layer) in layers.iter().enumerate() {
                for tensor in layer.tensors() {
                    out.push((format!("{prefix}{index}.{}", tensor.name), tensor));
                }
                for (name, nested) in layer.nested() {
                    collect(nested, &format!("{prefix}{index}.{name}"), out);
                }
            }
        }
        let mut tensors = Vec::new();
        collect(&self.layers, "", &mut tensors);
        tensors
    }

    /// Where in the flat vector the buffers are: what no gradient moves.
    pub fn buffers(&self) -> Vec<Range<usize>> {
        let (mut at, mut ranges) = (0, Vec::new());
        for (_, tensor) in self.tensors() {
            let len: usize = tensor.shape.iter().product();
            if tensor.buffer {
                ranges.push(at..at + len);
            }
            at += len;
        }
        ranges
    }

    /// Number of parameters, buffers included.
    pub fn num_parameters(&self) -> usize {
        self.layout().parameters()
    }

    /// Values of one sample.
    pub fn num_features(&self) -> usize {
        self.input.len()
    }

    /// Dimensions of one sample.
    pub fn input_shape(&self) -> &[usize] {
        self.input.shape()
    }

    /// Classes that a target can be, or numbers that it has.
    pub fn num_classes(&self) -> usize {
        self.task.num_classes(&self.input)
    }

    /// Whether it has a layer that `test` accepts, nested ones included.
    pub fn has_layer(&self, test: impl Fn(&Layer) -> bool) -> bool {
        fn any(layers: &[Layer], test: &dyn Fn(&Layer) -> bool) -> bool {
            layers.iter().any(|l| test(l) || l.nested().iter().any(|(_, nested)| any(nested, test)))
        }
        any(&self.layers, &test)
    }

    /// Checks that the layers fit together and stay within [`limits`].
    ///
    /// # Errors
    /// A sentence that names the layer.
    pub fn validate(&self) -> Result<(), ModelError> {
        shapes::check(self)
    }
}

/// Shape of one sample after `layer`, in PyTorch's order.
///
/// # Errors
/// What does not fit.
pub fn output_shape(layer: &Layer, input: &[usize]) -> Result<Vec<usize>, String> {
    rules::after(layer, input)
}
