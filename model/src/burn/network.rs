//! The network of a spec as a Burn module.
//!
//! This is the definition of what a spec computes.

use crate::{
    dropout::{Mask, MaskSeed},
    spec::{Layer, ModelSpec, Pair},
};
use burn::{
    module::Module,
    nn::{
        GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d,
        conv::{Conv2d, Conv2dConfig},
        pool::{MaxPool2d, MaxPool2dConfig},
    },
    tensor::{Device, Tensor, TensorData, activation::relu},
};

/// The layers of a spec.
#[derive(Module, Debug)]
pub(super) struct Network {
    layers: Vec<NetworkLayer>,
    #[module(skip)]
    input_shape: Vec<usize>,
}

#[derive(Module, Debug)]
enum NetworkLayer {
    Conv2d(Conv2d),
    Linear(Linear),
    Pool(MaxPool2d),
    GroupNorm(GroupNorm),
    Plain(Plain),
}

/// A layer without state.
#[derive(Module, Debug)]
struct Plain {
    #[module(skip)]
    layer: Layer,
}

/// What flows between layers.
#[derive(Debug)]
enum Activation {
    Image(Tensor<4>),
    Vector(Tensor<2>),
}

impl Activation {
    fn map(
        self,
        image: impl FnOnce(Tensor<4>) -> Tensor<4>,
        vector: impl FnOnce(Tensor<2>) -> Tensor<2>,
    ) -> Self {
        match self {
            Self::Image(x) => Self::Image(image(x)),
            Self::Vector(x) => Self::Vector(vector(x)),
        }
    }

    fn image(self, f: impl FnOnce(Tensor<4>) -> Tensor<4>) -> Self {
        self.map(f, |x| x)
    }

    fn flatten(self) -> Tensor<2> {
        match self {
            Self::Image(x) => x.flatten(1, 3),
            Self::Vector(x) => x,
        }
    }
}

impl Network {
    pub(super) fn new(spec: &ModelSpec, device: &Device) -> Self {
        let layer = |layer: &Layer| match *layer {
            Layer::Conv2d { in_channels, out_channels, kernel, padding: Pair([padding, _]), stride, .. } => {
                NetworkLayer::Conv2d(
                    Conv2dConfig::new([in_channels, out_channels], kernel.0)
                        .with_stride(stride.0)
                        .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
                        .init(device),
                )
            }
            Layer::Linear { in_features, out_features, .. } => {
                NetworkLayer::Linear(LinearConfig::new(in_features, out_features).init(device))
            }
            Layer::MaxPool2d { kernel, stride, .. } => {
                NetworkLayer::Pool(MaxPool2dConfig::new(kernel.0).with_strides(stride.0).init())
            }
            Layer::GroupNorm { groups, channels, eps } => NetworkLayer::GroupNorm(
                GroupNormConfig::new(groups, channels).with_epsilon(eps).init(device),
            ),
            ref layer => NetworkLayer::Plain(Plain { layer: layer.clone() }),
        };
        Self {
            layers: spec.layers.iter().map(layer).collect(),
            input_shape: spec.input_shape().to_vec(),
        }
    }

    /// Logits of row-major samples, one row per sample. Without `masks`, dropout does nothing.
    pub(super) fn logits(&self, inputs: &[f32], device: &Device, masks: Option<MaskSeed>) -> Tensor<2> {
        let batch = inputs.len() / self.input_shape.iter().product::<usize>();
        let data = |shape: Vec<usize>| TensorData::new(inputs.to_vec(), shape);
        let mut x = match *self.input_shape {
            [c, h, w] => Activation::Image(Tensor::from_data(data(vec![batch, c, h, w]), device)),
            _ => Activation::Vector(Tensor::from_data(data(vec![batch, inputs.len() / batch]), device)),
        };
        for (index, layer) in self.layers.iter().enumerate() {
            x = match layer {
                NetworkLayer::Conv2d(conv) => x.image(|x| conv.forward(x)),
                NetworkLayer::Pool(pool) => x.image(|x| pool.forward(x)),
                NetworkLayer::GroupNorm(norm) => x.image(|x| norm.forward(x)),
                NetworkLayer::Linear(linear) => x.map(|x| x, |x| linear.forward(x)),
                NetworkLayer::Plain(Plain { layer }) => plain(layer, index, x, masks),
            };
        }
        x.flatten()
    }
}

/// Applies layer `index`, which has no parameters.
fn plain(layer: &Layer, index: usize, x: Activation, masks: Option<MaskSeed>) -> Activation {
    match (layer, masks) {
        (Layer::Relu, _) => x.map(relu, relu),
        (Layer::Flatten, _) => Activation::Vector(x.flatten()),
        (Layer::Dropout { p }, Some(seed)) => {
            let mask = seed.mask(*p, index);
            x.map(|x| drop_some(x, mask), |x| drop_some(x, mask))
        }
        _ => x,
    }
}

fn drop_some<const D: usize>(x: Tensor<D>, mask: Mask) -> Tensor<D> {
    let mask: Vec<f32> = (0..x.shape().num_elements()).map(|index| mask.at(index)).collect();
    let mask = Tensor::<D>::from_data(TensorData::new(mask, x.shape()), &x.device());
    x * mask
}
