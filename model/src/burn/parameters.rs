//! Between the parameters of a Burn module and one flat vector in the model file's order and layout.
//!
//! Nothing here depends on the module: its parameters are visited in the order of its fields.

use burn::{
    module::{ModuleMapper, ModuleVisitor, Param},
    tensor::{Device, Gradients, Tensor, TensorData},
};

/// The values of a tensor; empty if the backend cannot give them.
pub(super) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap_or_default()
}

/// Burn keeps the weights of linear layers, the only parameters of rank 2, as `[in, out]`.
fn to_file_layout<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if D == 2 { tensor.swap_dims(0, 1) } else { tensor }
}

/// Puts a flat vector into the parameters, in order.
pub(super) struct Load<'a> {
    pub(super) rest: &'a [f32],
    pub(super) device: &'a Device,
}

impl ModuleMapper for Load<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let mut shape = param.lazy_shape().dims::<D>();
        if D == 2 {
            shape.reverse();
        }
        let (values, rest) = self.rest.split_at(shape.iter().product());
        self.rest = rest;
        let tensor = Tensor::<D>::from_data(TensorData::new(values.to_vec(), shape), self.device);
        param.map(|_| to_file_layout(tensor).detach().require_grad())
    }
}

/// Copies the parameters, or their gradients, out into a flat vector.
pub(super) struct Read<'a> {
    pub(super) rest: &'a mut [f32],
    pub(super) gradients: Option<&'a Gradients>,
}

impl ModuleVisitor for Read<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = param.val();
        let len = tensor.shape().num_elements();
        let (out, rest) = std::mem::take(&mut self.rest).split_at_mut(len);
        self.rest = rest;
        let tensor = match self.gradients {
            None => Some(tensor),
            Some(gradients) => tensor.grad(gradients),
        };
        match tensor {
            Some(tensor) => out.copy_from_slice(&values(to_file_layout(tensor))),
            // The loss does not depend on this parameter.
            None => out.fill(0.0),
        }
    }
}

/// One step of plain SGD, on the device.
pub(super) struct Descend {
    pub(super) lr: f32,
    pub(super) gradients: Gradients,
}

impl ModuleMapper for Descend {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(gradient) = param.val().grad_remove(&mut self.gradients) else { return param };
        param.map(|tensor| {
            let moved = tensor.without_autodiff() - gradient * self.lr;
            moved.autodiff().require_grad()
        })
    }
}
