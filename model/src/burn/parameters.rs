//! Between the float tensors of a Burn module and one flat vector.
//!
//! Nothing here depends on the module: its tensors are visited in the order of its fields, and have the shapes that
//! the module gives them.

use burn::{
    module::{ModuleMapper, ModuleVisitor, Param},
    tensor::{Device, Gradients, Tensor, TensorData},
};
use std::ops::Range;

/// The values of a tensor; empty if the backend cannot give them.
pub(super) fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap_or_default()
}

/// Names and shapes of the tensors, and which of them need no gradient.
#[derive(Default)]
pub(super) struct Survey {
    path: Vec<String>,
    pub(super) tensors: Vec<(String, Vec<usize>)>,
    pub(super) buffers: Vec<Range<usize>>,
    len: usize,
}

impl ModuleVisitor for Survey {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let shape: Vec<usize> = param.lazy_shape().iter().copied().collect();
        let end = self.len + shape.iter().product::<usize>();
        if !param.val().is_require_grad() {
            self.buffers.push(self.len..end);
        }
        self.len = end;
        self.tensors.push((self.path.join("."), shape));
    }
}

/// Puts a flat vector into the tensors, in order.
pub(super) struct Load<'a> {
    pub(super) rest: &'a [f32],
    pub(super) device: &'a Device,
}

impl ModuleMapper for Load<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape().dims::<D>();
        let (values, rest) = self.rest.split_at(shape.iter().product());
        self.rest = rest;
        let tensor = Tensor::<D>::from_data(TensorData::new(values.to_vec(), shape), self.device);
        param.map(|old| tensor.set_require_grad(old.is_require_grad()))
    }
}

/// Puts values into the tensors that begin at the given places of the flat vector.
pub(super) struct LoadSome<'a> {
    pub(super) at: usize,
    pub(super) moved: &'a [(usize, Vec<f32>)],
    pub(super) device: &'a Device,
}

impl ModuleMapper for LoadSome<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape().dims::<D>();
        let start = self.at;
        let len: usize = shape.iter().product();
        self.at += len;
        let values = self.moved.iter().find_map(|(first, values)| {
            start.checked_sub(*first).and_then(|skipped| values.get(skipped..skipped + len))
        });
        let Some(values) = values else { return param };
        let tensor = Tensor::<D>::from_data(TensorData::new(values.to_vec(), shape), self.device);
        param.map(|old| tensor.set_require_grad(old.is_require_grad()))
    }
}

/// Copies the tensors, or their gradients, out into a flat vector.
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
            Some(tensor) => out.copy_from_slice(&values(tensor)),
            // The loss does not depend on it, or it is a buffer.
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
