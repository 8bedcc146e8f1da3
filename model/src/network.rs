//! What is known of the network whose parameters a model file holds.

use crate::{error::ModelError, spec::ModelSpec};
use fl_protocol::{ModelLayout, limits::MAX_PARAMETERS};
use std::borrow::Cow;

/// The network of a model.
#[derive(Debug, Clone, PartialEq)]
pub enum Network {
    /// Layers, which any worker can train.
    Spec(ModelSpec),
    /// Tensors with names and shapes; only the workers know what they compute.
    Tensors(ModelLayout),
}

impl Network {
    /// Names, shapes and flat order of the parameters.
    pub fn layout(&self) -> Cow<'_, ModelLayout> {
        match self {
            Self::Spec(spec) => Cow::Owned(spec.layout()),
            Self::Tensors(layout) => Cow::Borrowed(layout),
        }
    }

    /// The layers, if they are known.
    pub fn spec(&self) -> Option<&ModelSpec> {
        match self {
            Self::Spec(spec) => Some(spec),
            Self::Tensors(_) => None,
        }
    }

    /// The layers.
    ///
    /// # Errors
    /// [`ModelError::NoNetwork`] where only tensors are known.
    pub fn known(&self) -> Result<&ModelSpec, ModelError> {
        self.spec().ok_or(ModelError::NoNetwork)
    }

    /// The name of the network, or `tensors`.
    pub fn name(&self) -> &str {
        self.spec().map_or("tensors", |spec| &spec.name)
    }
}

impl From<ModelSpec> for Network {
    fn from(spec: ModelSpec) -> Self {
        Self::Spec(spec)
    }
}

impl From<ModelLayout> for Network {
    fn from(layout: ModelLayout) -> Self {
        Self::Tensors(layout)
    }
}

/// Lays out tensors whose names and shapes come from a file.
pub(crate) fn checked_layout(tensors: Vec<(String, Vec<usize>)>) -> Result<ModelLayout, ModelError> {
    let len = |shape: &[usize]| shape.iter().try_fold(1usize, |len, &dim| len.checked_mul(dim));
    let mut sum = 0usize;
    for (name, shape) in &tensors {
        sum = len(shape)
            .filter(|&len| len > 0)
            .and_then(|len| sum.checked_add(len))
            .filter(|&sum| sum <= MAX_PARAMETERS)
            .ok_or_else(|| {
                ModelError::BadFile(format!(
                    "tensor `{name}` of shape {shape:?} is empty, or brings it above {MAX_PARAMETERS} parameters"
                ))
            })?;
    }
    if sum == 0 {
        return Err(ModelError::BadFile("it has no tensors".into()));
    }
    Ok(ModelLayout::new(tensors))
}
