//! Shape inference: what every layer makes of one sample, and why a list is refused.

use super::{Layer, ModelSpec, limits};
use crate::error::ModelError;
use fl_protocol::limits::MAX_PARAMETERS;

/// Shapes at the input and after every layer.
pub(super) fn infer(spec: &ModelSpec) -> Result<Vec<Vec<usize>>, ModelError> {
    check_frame(spec).map_err(ModelError::BadSpec)?;
    let mut shapes = vec![spec.input_shape.clone()];
    let mut parameters = 0usize;
    for (index, layer) in spec.layers.iter().enumerate() {
        let output = output(index, layer, &shapes[index])?;
        parameters = count(layer)
            .and_then(|n| parameters.checked_add(n))
            .filter(|&n| n <= MAX_PARAMETERS)
            .ok_or_else(|| in_layer(index, format!("the model has more than {MAX_PARAMETERS} parameters")))?;
        shapes.push(output);
    }
    match shapes.last() {
        Some(last) if *last == [spec.num_classes] => {}
        last => {
            return Err(ModelError::BadSpec(format!(
                "the last layer gives {last:?} values a sample, the data has {} classes",
                spec.num_classes
            )));
        }
    }
    if parameters == 0 {
        return Err(ModelError::BadSpec("it has no layer with parameters: there is nothing to train".into()));
    }
    Ok(shapes)
}

/// Fills in the input sizes that a file may leave out.
pub(super) fn complete(spec: &mut ModelSpec) -> Result<(), ModelError> {
    check_frame(spec).map_err(ModelError::BadSpec)?;
    let mut shape = spec.input_shape.clone();
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let first = shape.first().copied().unwrap_or(0);
        match layer {
            Layer::Conv2d { in_channels: size @ 0, .. }
            | Layer::Linear { in_features: size @ 0, .. }
            | Layer::GroupNorm { channels: size @ 0, .. } => *size = first,
            Layer::MaxPool2d { kernel, stride: stride @ 0 } => *stride = *kernel,
            _ => {}
        }
        shape = output(index, layer, &shape)?;
    }
    Ok(())
}

/// Shape after layer `index`, within the limits.
fn output(index: usize, layer: &Layer, input: &[usize]) -> Result<Vec<usize>, ModelError> {
    let shape = apply(layer, input).and_then(|shape| check_activation(&shape).map(|()| shape));
    shape.map_err(|reason| in_layer(index, reason))
}

fn in_layer(index: usize, reason: String) -> ModelError {
    ModelError::BadSpec(format!("layer {index}: {reason}"))
}

fn check_frame(spec: &ModelSpec) -> Result<(), String> {
    if spec.name.is_empty()
        || spec.name.len() > limits::MAX_NAME_BYTES
        || spec.name.chars().any(char::is_control)
    {
        return Err(format!(
            "its name must be 1 to {} bytes without control characters",
            limits::MAX_NAME_BYTES
        ));
    }
    if !matches!(spec.input_shape.len(), 1 | 3) {
        return Err(format!(
            "the input shape is {:?}: it must be [features] or [channels, height, width]",
            spec.input_shape
        ));
    }
    check_activation(&spec.input_shape).map_err(|reason| format!("input: {reason}"))?;
    if !(2..=limits::MAX_DIM).contains(&spec.num_classes) {
        return Err(format!("it has {} classes: at least 2 are needed", spec.num_classes));
    }
    match spec.layers.len() {
        1..=limits::MAX_LAYERS => Ok(()),
        n => Err(format!("it has {n} layers: 1 to {} are allowed", limits::MAX_LAYERS)),
    }
}

fn check_activation(shape: &[usize]) -> Result<(), String> {
    let size = shape.iter().try_fold(1usize, |size, &dim| size.checked_mul(dim));
    match size {
        Some(1..=limits::MAX_ACTIVATION) => Ok(()),
        _ => Err(format!("the shape {shape:?} must hold 1 to {} values a sample", limits::MAX_ACTIVATION)),
    }
}

/// Number of parameters; `None` if it overflows.
fn count(layer: &Layer) -> Option<usize> {
    layer.parameters().iter().try_fold(0usize, |sum, (_, shape)| {
        sum.checked_add(shape.iter().try_fold(1usize, |size, &dim| size.checked_mul(dim))?)
    })
}

fn in_range(what: &str, value: usize, low: usize, high: usize) -> Result<(), String> {
    match (low..=high).contains(&value) {
        true => Ok(()),
        false => Err(format!("{what} is {value}: it must be {low} to {high}")),
    }
}

fn image(input: &[usize], what: &str) -> Result<[usize; 3], String> {
    <[usize; 3]>::try_from(input)
        .map_err(|_| format!("{what} needs [channels, height, width], but gets {input:?}"))
}

fn windows(size: usize, kernel: usize, padding: usize, stride: usize) -> Result<usize, String> {
    (size + 2 * padding)
        .checked_sub(kernel)
        .map(|rest| rest / stride + 1)
        .ok_or_else(|| format!("its window of {kernel} is larger than the image, {size} + 2 x {padding}"))
}

/// Shape after `layer`, or what is wrong with it.
fn apply(layer: &Layer, input: &[usize]) -> Result<Vec<usize>, String> {
    match *layer {
        Layer::Conv2d { in_channels, out_channels, kernel, padding, stride } => {
            let [channels, height, width] = image(input, "conv2d")?;
            in_range("out_channels", out_channels, 1, limits::MAX_DIM)?;
            in_range("kernel", kernel, 1, limits::MAX_KERNEL)?;
            in_range("padding", padding, 0, kernel - 1)?;
            in_range("stride", stride, 1, limits::MAX_KERNEL)?;
            if in_channels != channels {
                return Err(format!("conv2d has {in_channels} in_channels, but gets {channels} channels"));
            }
            Ok(vec![
                out_channels,
                windows(height, kernel, padding, stride)?,
                windows(width, kernel, padding, stride)?,
            ])
        }
        Layer::Linear { in_features, out_features } => {
            in_range("out_features", out_features, 1, limits::MAX_DIM)?;
            match input {
                [features] if *features == in_features => Ok(vec![out_features]),
                [features] => {
                    Err(format!("linear has {in_features} in_features, but gets {features} values"))
                }
                _ => Err(format!("linear needs a vector, but gets {input:?}: put flatten before it")),
            }
        }
        Layer::MaxPool2d { kernel, stride } => {
            let [channels, height, width] = image(input, "max_pool2d")?;
            in_range("kernel", kernel, 1, limits::MAX_KERNEL)?;
            in_range("stride", stride, 1, limits::MAX_KERNEL)?;
            Ok(vec![channels, windows(height, kernel, 0, stride)?, windows(width, kernel, 0, stride)?])
        }
        Layer::GroupNorm { groups, channels } => {
            let [got, ..] = image(input, "group_norm")?;
            if got != channels {
                return Err(format!("group_norm has {channels} channels, but gets {got}"));
            }
            if groups == 0 || channels % groups != 0 {
                return Err(format!("group_norm's {groups} groups must divide its {channels} channels"));
            }
            Ok(input.to_vec())
        }
        Layer::Dropout { p } if !(0.0..1.0).contains(&p) => {
            Err(format!("dropout's p is {p}: it must be 0 to below 1"))
        }
        Layer::Relu | Layer::Dropout { .. } => Ok(input.to_vec()),
        Layer::Flatten => Ok(vec![input.iter().product()]),
    }
}
