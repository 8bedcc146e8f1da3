//! What a Burn module must be to be trained by a [`BurnLearner`](super::BurnLearner).

use crate::{dropout::MaskSeed, learner::Batch};
use burn::{
    module::Module,
    tensor::{Device, Int, Tensor, TensorData},
};
use fl_protocol::{Input, Inputs};

/// Samples on a device, the first dimension counts them.
#[derive(Debug, Clone)]
pub enum NetworkInput {
    /// `[samples, features]`.
    Vectors(Tensor<2>),
    /// `[samples, length, channels]`.
    Sequences(Tensor<3>),
    /// `[samples, channels, height, width]`.
    Images(Tensor<4>),
    /// `[samples, length]`.
    Tokens(Tensor<2, Int>),
}

impl NetworkInput {
    /// Puts the samples of a checked batch on `device`.
    pub(super) fn new(input: &Input, inputs: Inputs<'_>, samples: usize, device: &Device) -> Self {
        match (inputs, input.shape()) {
            (Inputs::Tokens(tokens), _) => {
                let tokens: Vec<i32> = tokens.iter().map(|&token| token as i32).collect();
                let shape = [samples, tokens.len() / samples];
                Self::Tokens(Tensor::from_data(TensorData::new(tokens, shape), device))
            }
            (Inputs::Numbers(x), &[channels, height, width]) => {
                let shape = [samples, channels, height, width];
                Self::Images(Tensor::from_data(TensorData::new(x.to_vec(), shape), device))
            }
            (Inputs::Numbers(x), &[length, channels]) => {
                let shape = [samples, length, channels];
                Self::Sequences(Tensor::from_data(TensorData::new(x.to_vec(), shape), device))
            }
            (Inputs::Numbers(x), _) => {
                let shape = [samples, x.len() / samples];
                Self::Vectors(Tensor::from_data(TensorData::new(x.to_vec(), shape), device))
            }
        }
    }

    /// The samples as images of one row if they are sequences, and of one pixel if they are vectors. Tokens become
    /// their numbers.
    pub fn images(self) -> Tensor<4> {
        match self {
            Self::Images(x) => x,
            Self::Sequences(x) => x.swap_dims(1, 2).unsqueeze_dim(2),
            Self::Vectors(x) => x.unsqueeze_dims(&[2, 3]),
            Self::Tokens(x) => x.float().unsqueeze_dims(&[2, 3]),
        }
    }

    /// One vector for each sample, in the order of its shape. Tokens become their numbers.
    pub fn vectors(self) -> Tensor<2> {
        match self {
            Self::Vectors(x) => x,
            Self::Sequences(x) => x.flatten(1, 2),
            Self::Images(x) => x.flatten(1, 3),
            Self::Tokens(x) => x.float(),
        }
    }
}

/// What a forward pass of a training step has besides its input.
#[derive(Debug, Default)]
pub struct TrainingPass {
    masks: MaskSeed,
    /// New values of buffers: where they begin in the flat vector, and the values.
    moved: Vec<(usize, Vec<f32>)>,
}

impl TrainingPass {
    pub(super) fn new(masks: MaskSeed) -> Self {
        Self { masks, moved: Vec::new() }
    }

    pub(crate) fn masks(&self) -> MaskSeed {
        self.masks
    }

    /// Sets buffers (parameters that need no gradient) to `values` from place `offset` of the flat vector on.
    pub(super) fn move_buffers(&mut self, offset: usize, values: Vec<f32>) {
        self.moved.push((offset, values));
    }

    pub(super) fn into_moved(self) -> Vec<(usize, Vec<f32>)> {
        self.moved
    }
}

/// A Burn module that can be trained in a federation.
///
/// Its float tensors are the model, in the order and with the names of the module's fields (`conv1.weight`). Those
/// that need gradients are trained; the others (the running moments of a batch normalisation, frozen
/// parameters) travel with the model, but no optimizer moves them. All else is left alone.
pub trait BurnNetwork: Module + Sync {
    /// The outputs of a batch, a row each: logits of the classes or labels, or numbers, of a sample; in a language
    /// model the logits of a position, positions of a sample one after the other.
    fn forward(&self, input: NetworkInput) -> Tensor<2>;

    /// As [`BurnNetwork::forward`], in a training step. Modules that behave differently then (Burn's dropout and batch
    /// normalisation) know it from the device.
    fn forward_training(&self, input: NetworkInput, pass: &mut TrainingPass) -> Tensor<2> {
        let _ = pass;
        self.forward(input)
    }
}

/// Mean loss of a batch, as `crate::tasks` defines it, on the device.
pub(super) mod loss {
    use super::Batch;
    use burn::tensor::{
        Device, Int, Tensor, TensorData,
        activation::{log_sigmoid, log_softmax},
    };
    use fl_protocol::{Targets, Task};

    pub(in crate::burn) fn mean(
        task: &Task,
        outputs: Tensor<2>,
        batch: Batch<'_>,
        device: &Device,
    ) -> Tensor<1> {
        let shape = outputs.dims();
        match batch.targets {
            Targets::Classes(classes) => {
                let classes: Vec<i32> = classes.iter().map(|&class| class as i32).collect();
                let rows = classes.len();
                let classes = Tensor::<2, Int>::from_data(TensorData::new(classes, [rows, 1]), device);
                log_softmax(outputs, 1).gather(1, classes).mean().neg()
            }
            Targets::Numbers(wanted) => {
                let wanted = Tensor::<2>::from_data(TensorData::new(wanted.to_vec(), shape), device);
                match task {
                    Task::Multilabel { .. } => {
                        // -t ln s(y) - (1 - t) ln s(-y), and ln s(-y) = ln s(y) - y.
                        let missing = wanted.neg() + 1.0;
                        (missing * outputs.clone() - log_sigmoid(outputs)).mean()
                    }
                    _ => {
                        let difference = outputs - wanted;
                        (difference.clone() * difference).mean()
                    }
                }
            }
        }
    }
}
