//! The stages on images. A block of images is worked through depth first, one image after the other,
//! so that an image stays in the cache; blocks run in parallel.

use super::{
    conv::{Conv, ConvScratch, Packed},
    norm::{self, Moments},
    plan::{ImageOp, ImageStage, Params, Shape},
    pool,
};
use crate::dropout::{Mask, MaskSeed};

/// What all blocks share: the network, and its weights as the kernels want them.
#[derive(Debug)]
pub(super) struct ImageNet {
    pub(super) stages: Vec<ImageStage>,
    convs: Vec<Option<Conv>>,
    packed: Vec<Packed>,
    /// Where the sums of a stage's gradients lie in [`Block::sums`].
    sums: Vec<Params>,
    /// First stage with parameters: no gradient is needed before it.
    first: usize,
    input: Shape,
    output: Shape,
}

/// The state of a block of images.
#[derive(Debug, Default)]
pub(super) struct Block {
    /// Per stage, the outputs of all images, or of the current one if they need not be kept.
    outputs: Vec<Vec<f32>>,
    /// Per pooling stage, where the maxima are.
    argmax: Vec<Vec<u32>>,
    /// Per normalisation stage.
    moments: Vec<Vec<Moments>>,
    scratch: Vec<Option<ConvScratch>>,
    /// The current image, channels last.
    input: Vec<f32>,
    /// Gradients of a stage's output and input.
    gradients: [Vec<f32>; 2],
    /// Sums of the parameters' gradients; convolution weights in packed layout.
    pub(super) sums: Vec<f32>,
}

/// The part of `buffer` that belongs to one image.
fn of_image<T>(buffer: &[T], len: usize, image: usize, kept: bool) -> &[T] {
    let image = if kept { image } else { 0 };
    &buffer[image * len..(image + 1) * len]
}

fn of_image_mut<T>(buffer: &mut [T], len: usize, image: usize, kept: bool) -> &mut [T] {
    let image = if kept { image } else { 0 };
    &mut buffer[image * len..(image + 1) * len]
}

impl ImageNet {
    /// `None` if there are no image stages.
    pub(super) fn new(stages: Vec<ImageStage>) -> Option<Self> {
        let (input, output) = (stages.first()?.input, stages.last()?.output);
        let conv = |stage: &ImageStage| match stage.op {
            ImageOp::Conv { kernel, padding, stride, .. } => {
                Some(Conv::new(stage.input, stage.output, kernel, padding, stride))
            }
            _ => None,
        };
        let first = stages
            .iter()
            .position(|stage| matches!(stage.op, ImageOp::Conv { .. } | ImageOp::Norm { .. }))
            .unwrap_or(stages.len());
        let convs: Vec<_> = stages.iter().map(conv).collect();
        Some(Self {
            sums: lay_out_sums(&stages, &convs),
            convs,
            packed: stages.iter().map(|_| Packed::default()).collect(),
            stages,
            first,
            input,
            output,
        })
    }

    pub(super) fn output(&self) -> Shape {
        self.output
    }

    /// Rearranges the weights for this step.
    pub(super) fn pack(&mut self, parameters: &[f32], training: bool) {
        for (index, stage) in self.stages.iter().enumerate() {
            if let (ImageOp::Conv { params, .. }, Some(conv)) = (&stage.op, &self.convs[index]) {
                let with_gradient = training && index > self.first;
                conv.pack(&parameters[params.weight.clone()], &mut self.packed[index], with_gradient);
            }
        }
    }

    /// Resizes the buffers of `block` for `images` images.
    pub(super) fn prepare(&self, block: &mut Block, images: usize, training: bool) {
        if block.outputs.is_empty() {
            block.outputs.resize_with(self.stages.len(), Vec::new);
            block.argmax.resize_with(self.stages.len(), Vec::new);
            block.moments.resize_with(self.stages.len(), Vec::new);
            block.scratch = self
                .convs
                .iter()
                .enumerate()
                .map(|(index, conv)| conv.as_ref().map(|conv| conv.scratch(index > self.first)))
                .collect();
            block.input.resize(self.input.len(), 0.0);
            let largest = self.stages.iter().map(|stage| stage.input.len().max(stage.output.len())).max();
            block.gradients = [(); 2].map(|()| vec![0.0; largest.unwrap_or(0)]);
        }
        if training {
            block.sums.resize(self.sums.last().map_or(0, |sums| sums.bias.end), 0.0);
        }
        for (index, stage) in self.stages.iter().enumerate() {
            let len = stage.output.len();
            block.outputs[index].resize(if stage.kept { images * len } else { len }, 0.0);
            match stage.op {
                ImageOp::Pool { .. } => block.argmax[index].resize(images * len, 0),
                ImageOp::Norm { groups, .. } => {
                    block.moments[index].resize(images * groups, Moments::default());
                }
                _ => {}
            }
        }
    }

    /// Runs the stages forward. `x` holds the block's images, channels first; `first_image` is the
    /// index of the block's first image in the batch.
    pub(super) fn forward(
        &self,
        block: &mut Block,
        x: &[f32],
        parameters: &[f32],
        first_image: usize,
        masks: Option<MaskSeed>,
    ) {
        for (image, x) in x.chunks_exact(self.input.len()).enumerate() {
            channels_last(x, self.input, &mut block.input);
            for index in 0..self.stages.len() {
                self.stage_forward(block, index, image, parameters, first_image, masks);
            }
        }
    }

    /// The last stage's outputs, channels last.
    pub(super) fn results<'a>(&self, block: &'a Block) -> impl Iterator<Item = &'a [f32]> {
        let results = block.outputs.last().map_or(&[][..], Vec::as_slice);
        results.chunks_exact(self.output.len())
    }

    fn stage_forward(
        &self,
        block: &mut Block,
        index: usize,
        image: usize,
        parameters: &[f32],
        first_image: usize,
        masks: Option<MaskSeed>,
    ) {
        let stage = &self.stages[index];
        let (before, rest) = block.outputs.split_at_mut(index);
        let x = match before.last() {
            None => block.input.as_slice(),
            Some(outputs) => of_image(outputs, stage.input.len(), image, self.stages[index - 1].kept),
        };
        let len = stage.output.len();
        let y = of_image_mut(&mut rest[0], len, image, stage.kept);
        match &stage.op {
            ImageOp::Conv { params, .. } => {
                let (Some(conv), Some(scratch)) = (&self.convs[index], &mut block.scratch[index]) else {
                    return;
                };
                let bias = &parameters[params.bias.clone()];
                return conv.forward(x, &self.packed[index], bias, stage.relu, scratch, y);
            }
            ImageOp::Pool { kernel, stride } => {
                let argmax = of_image_mut(&mut block.argmax[index], len, image, true);
                pool::forward(x, (stage.input, stage.output), (*kernel, *stride), y, argmax);
            }
            ImageOp::Norm { groups, params } => {
                let affine = (&parameters[params.weight.clone()], &parameters[params.bias.clone()]);
                let moments = of_image_mut(&mut block.moments[index], *groups, image, true);
                norm::forward(x, stage.input, affine, y, moments);
            }
            ImageOp::Dropout { p, layer } => {
                y.copy_from_slice(x);
                if let Some(seed) = masks {
                    drop_some(
                        y,
                        stage.output,
                        seed.mask(*p, *layer, stage.output.len()),
                        first_image + image,
                    );
                }
            }
            ImageOp::Pass => y.copy_from_slice(x),
        }
        if stage.relu {
            y.iter_mut().for_each(|y| *y = if *y < 0.0 { 0.0 } else { *y });
        }
    }

    /// Runs the stages backward and adds the parameters' gradients to the block's sums.
    /// `gradient(image, values)` gives the gradient of each image's result, channels last.
    pub(super) fn backward(
        &self,
        block: &mut Block,
        x: &[f32],
        parameters: &[f32],
        first_image: usize,
        masks: Option<MaskSeed>,
        mut gradient: impl FnMut(usize, &mut [f32]),
    ) {
        block.sums.fill(0.0);
        for (image, x) in x.chunks_exact(self.input.len()).enumerate() {
            channels_last(x, self.input, &mut block.input);
            gradient(image, &mut block.gradients[0][..self.output.len()]);
            for index in (self.first..self.stages.len()).rev() {
                self.stage_backward(block, index, image, parameters, first_image, masks);
            }
        }
    }

    /// Takes the gradient of the stage's output from the first gradient buffer and leaves that of its
    /// input there.
    fn stage_backward(
        &self,
        block: &mut Block,
        index: usize,
        image: usize,
        parameters: &[f32],
        first_image: usize,
        masks: Option<MaskSeed>,
    ) {
        let stage = &self.stages[index];
        let [dy, dx] = &mut block.gradients;
        let (dy, dx) = (&mut dy[..stage.output.len()], &mut dx[..stage.input.len()]);
        if stage.relu {
            let y = of_image(&block.outputs[index], stage.output.len(), image, true);
            for (dy, y) in dy.iter_mut().zip(y) {
                *dy = if *y > 0.0 { *dy } else { 0.0 };
            }
        }
        let x = match index {
            0 => block.input.as_slice(),
            _ => of_image(&block.outputs[index - 1], stage.input.len(), image, self.stages[index - 1].kept),
        };
        match &stage.op {
            ImageOp::Conv { .. } => {
                let (Some(conv), Some(scratch)) = (&self.convs[index], &mut block.scratch[index]) else {
                    return;
                };
                let sums = &self.sums[index];
                let (weights, bias) =
                    block.sums[sums.weight.start..sums.bias.end].split_at_mut(sums.weight.len());
                conv.backward_weights(x, dy, scratch, weights, bias);
                if index > self.first {
                    conv.backward_input(dy, &self.packed[index], scratch, dx);
                    block.gradients.swap(0, 1);
                }
            }
            ImageOp::Pool { .. } => {
                pool::backward(dy, of_image(&block.argmax[index], dy.len(), image, true), dx);
                block.gradients.swap(0, 1);
            }
            ImageOp::Norm { groups, params } => {
                let sums = &self.sums[index];
                let sums = block.sums[sums.weight.start..sums.bias.end].split_at_mut(sums.weight.len());
                let moments = of_image(&block.moments[index], *groups, image, true);
                norm::backward(x, stage.input, &parameters[params.weight.clone()], moments, dy, sums);
            }
            ImageOp::Dropout { p, layer } => {
                if let Some(seed) = masks {
                    drop_some(
                        dy,
                        stage.output,
                        seed.mask(*p, *layer, stage.output.len()),
                        first_image + image,
                    );
                }
            }
            ImageOp::Pass => {}
        }
    }

    /// Calls `f(position in the flat vector, value)` for every element of a block's sums.
    pub(super) fn for_each_gradient(&self, sums: &[f32], mut f: impl FnMut(usize, f32)) {
        for (index, stage) in self.stages.iter().enumerate() {
            let (ImageOp::Conv { params, .. } | ImageOp::Norm { params, .. }) = &stage.op else { continue };
            let of_stage = &self.sums[index];
            let weights = &sums[of_stage.weight.clone()];
            match &self.convs[index] {
                Some(conv) => conv.for_each_unpacked(weights, |at, value| f(params.weight.start + at, value)),
                None => params.weight.clone().zip(weights).for_each(|(at, value)| f(at, *value)),
            }
            params.bias.clone().zip(&sums[of_stage.bias.clone()]).for_each(|(at, value)| f(at, *value));
        }
    }
}

/// One range after the other: the gradients of some convolutions' weights are summed in a form that is
/// larger than the weights.
fn lay_out_sums(stages: &[ImageStage], convs: &[Option<Conv>]) -> Vec<Params> {
    let mut end = 0;
    let mut take = |len: usize| {
        end += len;
        end - len..end
    };
    let lay_out = |(stage, conv): (&ImageStage, &Option<Conv>)| match (&stage.op, conv) {
        (ImageOp::Conv { params, .. }, Some(conv)) => {
            Params { weight: take(conv.sums_len()), bias: take(params.bias.len()) }
        }
        (ImageOp::Norm { params, .. }, _) => {
            Params { weight: take(params.weight.len()), bias: take(params.bias.len()) }
        }
        _ => Params { weight: take(0), bias: take(0) },
    };
    stages.iter().zip(convs).map(lay_out).collect()
}

/// Multiplies an image by its part of the batch's mask, which is laid out channels first.
fn drop_some(values: &mut [f32], shape: Shape, mask: Mask, image: usize) {
    for (index, value) in values.iter_mut().enumerate() {
        let (pixel, channel) = (index / shape.channels, index % shape.channels);
        *value *= mask.at(image * shape.len() + channel * shape.pixels() + pixel);
    }
}

/// Copies an image from channels first to channels last.
pub(super) fn channels_last(x: &[f32], shape: Shape, out: &mut [f32]) {
    if shape.channels == 1 {
        return out.copy_from_slice(x);
    }
    for (channel, plane) in x.chunks_exact(shape.pixels()).enumerate() {
        for (pixel, value) in plane.iter().enumerate() {
            out[pixel * shape.channels + channel] = *value;
        }
    }
}
