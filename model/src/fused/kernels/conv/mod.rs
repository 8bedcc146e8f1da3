//! Convolution over a batch of channels-last images, forward and backward.
//!
//! Images are `[batch, height, width, channels]`, weights `[out, in / groups, kernel rows, kernel columns]`
//! as in PyTorch. A sequence is an image of height 1.

mod choice;
mod direct;
mod gradient;
mod pass;
mod plan;
mod spectra;
#[cfg(test)]
mod tests;
mod tile;
pub(in crate::fused) mod transform;
mod winograd;

use crate::fused::parallel::Threads;
use direct::Packed;
use gradient::WeightGradient;
use plan::{Axis, Plan};
use winograd::Winograd;

/// The shapes of a convolution; pairs are along the height and along the width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) padding: [usize; 2],
    pub(crate) dilation: [usize; 2],
    pub(crate) groups: usize,
}

impl Geometry {
    /// Height and width of the output; `None` where the kernel does not fit into the padded input, or where
    /// the groups do not divide the channels.
    pub(crate) fn output(&self) -> Option<[usize; 2]> {
        let along = |input: usize, axis: usize| {
            let reach = self.dilation[axis].checked_mul(self.kernel[axis].checked_sub(1)?)?.checked_add(1)?;
            let padded = self.padding[axis].checked_mul(2)?.checked_add(input)?;
            Some(padded.checked_sub(reach)?.checked_div(self.stride[axis])? + 1)
        };
        let divides = |channels: usize| channels > 0 && channels.checked_rem(self.groups) == Some(0);
        let fits = divides(self.inputs) && divides(self.outputs) && self.height > 0 && self.width > 0;
        if fits { Some([along(self.height, 0)?, along(self.width, 1)?]) } else { None }
    }

    /// Length of the weights.
    #[cfg(test)]
    pub(crate) fn weights_len(&self) -> usize {
        self.outputs * self.inputs / self.groups * self.kernel[0] * self.kernel[1]
    }

    fn axes(&self) -> [Axis; 2] {
        let output = self.output().unwrap_or([0, 0]);
        let input = [self.height, self.width];
        std::array::from_fn(|axis| Axis {
            input: input[axis],
            output: output[axis],
            kernel: self.kernel[axis],
            stride: self.stride[axis],
            padding: self.padding[axis],
            dilation: self.dilation[axis],
        })
    }

    fn input_shape(&self) -> [usize; 3] {
        [self.height, self.width, self.inputs]
    }

    fn output_shape(&self) -> [usize; 3] {
        let [height, width] = self.output().unwrap_or([0, 0]);
        [height, width, self.outputs]
    }

    /// Groups; outputs and inputs of a group; taps.
    fn weights_shape(&self) -> [usize; 4] {
        let taps = self.kernel[0] * self.kernel[1];
        [self.groups, self.outputs / self.groups, self.inputs / self.groups, taps]
    }
}

/// Buffers of any number of convolutions that run one after the other.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    sums: Vec<f32>,
    winograd: winograd::Buffers,
}

/// One convolution: its plans, and its weights as packed for this step.
#[derive(Debug)]
pub(crate) struct Conv {
    geometry: Geometry,
    engine: Engine,
}

#[derive(Debug)]
enum Engine {
    Direct(Box<Direct>),
    Winograd(Winograd),
}

#[derive(Debug)]
struct Direct {
    forward: Plan,
    backward: Plan,
    gradient: WeightGradient,
    forward_weights: Packed,
    backward_weights: Packed,
}

impl Direct {
    fn new(geometry: &Geometry) -> Self {
        Self {
            forward: Plan::forward(geometry),
            backward: Plan::backward(geometry),
            gradient: WeightGradient::new(geometry),
            forward_weights: Packed::default(),
            backward_weights: Packed::default(),
        }
    }
}

impl Conv {
    /// `None` where [`Geometry::output`] is.
    pub(crate) fn new(geometry: Geometry) -> Option<Self> {
        Self::with(geometry, choice::winograd_is_faster(&geometry))
    }

    fn with(geometry: Geometry, winograd: bool) -> Option<Self> {
        geometry.output()?;
        let engine = if winograd {
            Engine::Winograd(Winograd::new(&geometry))
        } else {
            Engine::Direct(Box::new(Direct::new(&geometry)))
        };
        Some(Self { geometry, engine })
    }

    /// Packs weights `[out, in / groups, kernel rows, kernel columns]`; for [`Conv::backward_input`] as well
    /// if `training`.
    pub(crate) fn pack(&mut self, weights: &[f32], training: bool, threads: &Threads) {
        let shape = self.geometry.weights_shape();
        match &mut self.engine {
            Engine::Direct(direct) => {
                direct.forward_weights.pack_forward(weights, shape, threads);
                if training {
                    direct.backward_weights.pack_backward(weights, shape, threads);
                }
            }
            Engine::Winograd(winograd) => winograd.pack(weights),
        }
    }

    /// `y = conv(x) + bias`, then ReLU if asked, with the packed weights.
    pub(crate) fn forward(
        &self,
        x: &[f32],
        bias: Option<&[f32]>,
        relu: bool,
        y: &mut [f32],
        scratch: &mut Scratch,
        threads: &Threads,
    ) {
        match &self.engine {
            Engine::Direct(direct) => {
                direct::run(&direct.forward, &direct.forward_weights, x, bias, relu, y, threads);
            }
            Engine::Winograd(winograd) => {
                winograd.forward(x, bias, relu, y, &mut scratch.winograd, threads);
            }
        }
    }

    /// Writes the gradient of the weights, in PyTorch's layout, and of the bias.
    pub(crate) fn backward_weights(
        &self,
        x: &[f32],
        dy: &[f32],
        dweight: &mut [f32],
        dbias: Option<&mut [f32]>,
        scratch: &mut Scratch,
        threads: &Threads,
    ) {
        match &self.engine {
            Engine::Direct(direct) => direct.gradient.run(x, dy, dweight, &mut scratch.sums, threads),
            Engine::Winograd(winograd) => {
                winograd.backward_weights(x, dy, dweight, &mut scratch.winograd, threads);
            }
        }
        if let Some(dbias) = dbias {
            gradient::bias(dy, dbias, threads);
        }
    }

    /// Writes the gradient of the input, with the weights as packed for training.
    pub(crate) fn backward_input(
        &self,
        dy: &[f32],
        dx: &mut [f32],
        scratch: &mut Scratch,
        threads: &Threads,
    ) {
        match &self.engine {
            Engine::Direct(direct) => {
                direct::run(&direct.backward, &direct.backward_weights, dy, None, false, dx, threads);
            }
            Engine::Winograd(winograd) => {
                winograd.backward_input(dy, dx, &mut scratch.winograd, threads);
            }
        }
    }
}
