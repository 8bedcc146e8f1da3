//! From a layer list to the stages that the fused engine runs.
//!
//! A stage is one operation with the ReLU that follows it. A ReLU between an operation and a pooling
//! moves behind the pooling (the two commute, gradients included), so that the large image before
//! the pooling need not be kept for the backward pass.

use crate::{
    error::ModelError,
    spec::{EPSILON, Layer, LayerTensor, ModelSpec, Pair, limits::MAX_ACTIVATION, visit_shapes},
};
use fl_protocol::{Input, Task};
use std::ops::Range;

/// Shape of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Shape {
    pub(super) fn pixels(self) -> usize {
        self.height * self.width
    }

    pub(super) fn len(self) -> usize {
        self.channels * self.pixels()
    }
}

/// Where a layer's parameters lie in the flat vector.
#[derive(Debug, Clone)]
pub(super) struct Params {
    pub(super) weight: Range<usize>,
    pub(super) bias: Range<usize>,
}

/// An operation on images.
#[derive(Debug, Clone)]
pub(super) enum ImageOp {
    Conv {
        kernel: usize,
        padding: usize,
        stride: usize,
        params: Params,
    },
    Pool {
        kernel: usize,
        stride: usize,
    },
    Norm {
        groups: usize,
        params: Params,
    },
    Dropout {
        p: f32,
        layer: usize,
    },
    /// Only the stage's ReLU.
    Pass,
}

/// One stage on images.
#[derive(Debug, Clone)]
pub(super) struct ImageStage {
    pub(super) op: ImageOp,
    pub(super) relu: bool,
    pub(super) input: Shape,
    pub(super) output: Shape,
    /// Whether the backward pass needs the output of every image of the batch.
    pub(super) kept: bool,
}

/// An operation on vectors.
#[derive(Debug, Clone)]
pub(super) enum DenseOp {
    Linear(Params),
    Dropout {
        p: f32,
        layer: usize,
    },
    /// Only the stage's ReLU.
    Pass,
}

/// One stage on vectors.
#[derive(Debug, Clone)]
pub(super) struct DenseStage {
    pub(super) op: DenseOp,
    pub(super) relu: bool,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
}

/// The whole network: stages on images, then stages on vectors.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) image: Vec<ImageStage>,
    pub(super) dense: Vec<DenseStage>,
    /// Parameters of the image stages: they come first in the flat vector.
    pub(super) image_parameters: usize,
    pub(super) parameters: usize,
}

impl Plan {
    /// Plans a network.
    ///
    /// # Errors
    /// A spec that does not fit together; [`ModelError::NotFused`].
    pub(super) fn new(spec: &ModelSpec) -> Result<Self, ModelError> {
        let chain = |reason: &str| Err(ModelError::NotFused(reason.to_owned()));
        if !matches!(spec.task, Task::Classification { .. }) || matches!(spec.input, Input::Tokens { .. }) {
            return chain("it is no classification of numbers");
        }
        if spec.has_layer(|layer| !layer.nested().is_empty()) {
            return chain("its layers nest");
        }
        let mut shapes = vec![spec.input_shape().to_vec()];
        visit_shapes(spec, |_, _, output| shapes.push(output.to_vec()))?;
        let mut plan = Self { image: Vec::new(), dense: Vec::new(), image_parameters: 0, parameters: 0 };
        let mut flat = shapes[0].len() == 1;
        for (index, layer) in spec.layers.iter().enumerate() {
            let params = plan.take_parameters(layer);
            let (input, output) = (&shapes[index], &shapes[index + 1]);
            let added = if *layer == Layer::Flatten {
                flat = true;
                Some(())
            } else if flat {
                plan.add_dense(layer, index, params, input, output)
            } else {
                plan.image_parameters = plan.parameters;
                plan.add_image(layer, index, params, input, output)
            };
            if added.is_none() {
                return Err(ModelError::NotFused(format!("layer {index}, {layer:?} on {input:?}")));
            }
        }
        plan.move_relus_behind_pools();
        plan.mark_kept();
        Ok(plan)
    }

    fn take_parameters(&mut self, layer: &Layer) -> Params {
        let mut ranges = layer.tensors().into_iter().map(|LayerTensor { shape, .. }| {
            let start = self.parameters;
            self.parameters += shape.iter().product::<usize>();
            start..self.parameters
        });
        let weight = ranges.next().unwrap_or_default();
        let bias = ranges.next().unwrap_or_default();
        Params { weight, bias }
    }

    fn add_image(
        &mut self,
        layer: &Layer,
        index: usize,
        params: Params,
        input: &[usize],
        output: &[usize],
    ) -> Option<()> {
        let op = match *layer {
            Layer::Relu => {
                if let Some(last) = self.image.last_mut() {
                    last.relu = true;
                    return Some(());
                }
                ImageOp::Pass
            }
            Layer::Conv2d {
                kernel: Pair([kernel, width]),
                padding: Pair([padding, right]),
                stride: Pair([stride, across]),
                dilation: Pair([1, 1]),
                groups: 1,
                bias: true,
                ..
            } if (kernel, padding, stride) == (width, right, across) => {
                let (input, output) = (shape(input)?, shape(output)?);
                fits_with_border(input, 2 * padding + kernel)?;
                fits_with_border(Shape { channels: output.channels, ..input }, 2 * kernel)?;
                ImageOp::Conv { kernel, padding, stride, params }
            }
            Layer::MaxPool2d {
                kernel: Pair([kernel, width]),
                stride: Pair([stride, across]),
                padding: Pair([0, 0]),
            } if (kernel, stride) == (width, across) => ImageOp::Pool { kernel, stride },
            Layer::GroupNorm { groups, eps, .. } if eps == EPSILON => ImageOp::Norm { groups, params },
            Layer::Dropout { p } => ImageOp::Dropout { p, layer: index },
            _ => return None,
        };
        let relu = *layer == Layer::Relu;
        self.image.push(ImageStage { op, relu, input: shape(input)?, output: shape(output)?, kept: false });
        Some(())
    }

    fn add_dense(
        &mut self,
        layer: &Layer,
        index: usize,
        params: Params,
        input: &[usize],
        output: &[usize],
    ) -> Option<()> {
        let op = match *layer {
            Layer::Relu => {
                if let Some(last) = self.dense.last_mut() {
                    last.relu = true;
                    return Some(());
                }
                DenseOp::Pass
            }
            Layer::Linear { bias: true, .. } => DenseOp::Linear(params),
            Layer::Dropout { p } => DenseOp::Dropout { p, layer: index },
            _ => return None,
        };
        let relu = *layer == Layer::Relu;
        let [inputs, outputs] = [input, output].map(|shape| shape.iter().product());
        self.dense.push(DenseStage { op, relu, inputs, outputs });
        Some(())
    }

    fn move_relus_behind_pools(&mut self) {
        for index in 1..self.image.len() {
            if matches!(self.image[index].op, ImageOp::Pool { .. }) && self.image[index - 1].relu {
                self.image[index - 1].relu = false;
                self.image[index].relu = true;
            }
        }
    }

    fn mark_kept(&mut self) {
        for index in 0..self.image.len() {
            let next_reads_it = self
                .image
                .get(index + 1)
                .is_some_and(|next| matches!(next.op, ImageOp::Conv { .. } | ImageOp::Norm { .. }));
            let is_result = index + 1 == self.image.len();
            self.image[index].kept = self.image[index].relu || next_reads_it || is_result;
        }
    }
}

/// `None` if an image that is `border` pixels higher and wider is larger than an image may be: a
/// convolution keeps its input and the gradient of its output with zeros around them.
fn fits_with_border(shape: Shape, border: usize) -> Option<()> {
    let pixels = (shape.height + border).checked_mul(shape.width + border)?;
    (pixels.checked_mul(shape.channels)? <= MAX_ACTIVATION).then_some(())
}

fn shape(dims: &[usize]) -> Option<Shape> {
    match *dims {
        [channels, height, width] => Some(Shape { channels, height, width }),
        _ => None,
    }
}
