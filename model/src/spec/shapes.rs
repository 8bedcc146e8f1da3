//! Shape inference: what every layer makes of one sample, and why a network is refused.

use super::{
    Join, Layer, ModelSpec, limits,
    rules::{after, in_range},
};
use crate::error::ModelError;
use fl_protocol::{Input, limits::MAX_PARAMETERS};

/// Checks a network.
pub(super) fn check(spec: &ModelSpec) -> Result<(), ModelError> {
    check_frame(spec).map_err(ModelError::BadSpec)?;
    // Only checked, so the copy that `walk` may complete is dropped.
    let mut layers = spec.layers.clone();
    let output = walk(spec, &mut layers, false)?;
    let wanted = spec.task.output_shape(&spec.input);
    if output != wanted {
        return Err(ModelError::BadSpec(format!(
            "the last layer gives {output:?} values a sample, the task ({}) needs {wanted:?}",
            spec.task.name()
        )));
    }
    match spec.num_parameters() {
        0 => Err(ModelError::BadSpec("it has no layer with parameters: there is nothing to train".into())),
        _ => Ok(()),
    }
}

/// Fills in the input sizes that a file may leave out.
pub(super) fn complete(spec: &mut ModelSpec) -> Result<(), ModelError> {
    check_frame(spec).map_err(ModelError::BadSpec)?;
    let mut layers = std::mem::take(&mut spec.layers);
    let outcome = walk(spec, &mut layers, true);
    spec.layers = layers;
    outcome.map(drop)
}

/// Calls `f(layer, input shape, output shape)` for every layer that holds no others, in canonical order.
pub(crate) fn visit_shapes(
    spec: &ModelSpec,
    mut f: impl FnMut(&Layer, &[usize], &[usize]),
) -> Result<(), ModelError> {
    check_frame(spec).map_err(ModelError::BadSpec)?;
    walk_with(spec, &mut spec.layers.clone(), false, &mut f).map(drop)
}

fn walk(spec: &ModelSpec, layers: &mut [Layer], complete: bool) -> Result<Vec<usize>, ModelError> {
    walk_with(spec, layers, complete, &mut |_, _, _| {})
}

/// Gets each layer that holds no others with the shapes before and behind it.
type Visitor<'a> = dyn FnMut(&Layer, &[usize], &[usize]) + 'a;

fn walk_with(
    spec: &ModelSpec,
    layers: &mut [Layer],
    complete: bool,
    visitor: &mut Visitor<'_>,
) -> Result<Vec<usize>, ModelError> {
    let vocab = match spec.input {
        Input::Tokens { vocab, .. } => Some(vocab),
        _ => None,
    };
    let shape = State { shape: spec.input.shape().to_vec(), tokens: vocab };
    let mut walker = Walker { complete, layers: 0, parameters: 0, visitor };
    walker.list(layers, "", 0, shape).map(|state| state.shape).map_err(ModelError::BadSpec)
}

/// Shape of one sample between two layers.
#[derive(Clone)]
struct State {
    shape: Vec<usize>,
    /// The vocabulary while the values are still tokens.
    tokens: Option<usize>,
}

struct Walker<'a, 'b> {
    complete: bool,
    visitor: &'a mut Visitor<'b>,
    layers: usize,
    parameters: usize,
}

impl Walker<'_, '_> {
    fn list(
        &mut self,
        layers: &mut [Layer],
        prefix: &str,
        depth: usize,
        mut state: State,
    ) -> Result<State, String> {
        if depth > limits::MAX_DEPTH {
            return Err(format!("layers nest more than {} deep", limits::MAX_DEPTH));
        }
        for (index, layer) in layers.iter_mut().enumerate() {
            let path = format!("{prefix}{index}");
            self.layers += 1;
            if self.layers > limits::MAX_LAYERS {
                return Err(format!("it has more than {} layers", limits::MAX_LAYERS));
            }
            state = self.layer(layer, &path, depth, state).map_err(|reason| {
                match reason.starts_with("layer ") {
                    // A nested layer has named itself.
                    true => reason,
                    false => format!("layer {path}: {reason}"),
                }
            })?;
        }
        Ok(state)
    }

    fn layer(&mut self, layer: &mut Layer, path: &str, depth: usize, input: State) -> Result<State, String> {
        if self.complete {
            fill_in(layer, &input);
        }
        match layer {
            Layer::Sequential { layers } => return self.list(layers, &format!("{path}."), depth + 1, input),
            Layer::Residual { body, shortcut } => {
                let a = self.list(body, &format!("{path}.body."), depth + 1, input.clone())?;
                let b = self.list(shortcut, &format!("{path}.shortcut."), depth + 1, input)?;
                if a.shape != b.shape || a.tokens.is_some() || b.tokens.is_some() {
                    return Err(format!(
                        "residual adds {:?} of its body to {:?} of its shortcut: both must be equal",
                        a.shape, b.shape
                    ));
                }
                return Ok(a);
            }
            Layer::Branches { branches, join } => {
                let mut results = Vec::new();
                for (k, branch) in branches.iter_mut().enumerate() {
                    results.push(self.list(
                        branch,
                        &format!("{path}.branches.{k}."),
                        depth + 1,
                        input.clone(),
                    )?);
                }
                return joined(&results, *join);
            }
            _ => {}
        }
        let shape = match (input.tokens, &*layer) {
            (None, _) => after(layer, &input.shape)?,
            (Some(tokens), Layer::Embedding { vocab, dim }) => {
                if *vocab < tokens {
                    return Err(format!("embedding has {vocab} vectors, but the tokens are below {tokens}"));
                }
                let [length] = input.shape[..] else { return Err("embedding needs [length]".into()) };
                in_range("dim", *dim, 1, limits::MAX_DIM)?;
                vec![length, *dim]
            }
            (Some(_), _) => return Err("tokens must enter an embedding first".into()),
        };
        check_activation(&shape)?;
        self.parameters = count(layer)
            .and_then(|n| self.parameters.checked_add(n))
            .filter(|&n| n <= MAX_PARAMETERS)
            .ok_or_else(|| format!("the model has more than {MAX_PARAMETERS} parameters"))?;
        (self.visitor)(layer, &input.shape, &shape);
        Ok(State { shape, tokens: None })
    }
}

fn joined(results: &[State], join: Join) -> Result<State, String> {
    let [first, rest @ ..] = results else { return Err("branches needs at least one branch".into()) };
    if results.iter().any(|result| result.tokens.is_some()) {
        return Err("tokens must enter an embedding first".into());
    }
    let mut shape = first.shape.clone();
    // Channels are the first dimension of an image and the last of a sequence or a vector.
    let channels = if shape.len() == 3 { 0 } else { shape.len() - 1 };
    for State { shape: other, .. } in rest {
        let mut masked = other.clone();
        if join == Join::Concat && other.len() == shape.len() {
            masked[channels] = shape[channels];
        }
        if masked != shape {
            return Err(format!("branches cannot join {shape:?} and {other:?}"));
        }
        if join == Join::Concat {
            shape[channels] = shape[channels].saturating_add(other[channels]);
        }
    }
    check_activation(&shape)?;
    Ok(State { shape, tokens: None })
}

fn fill_in(layer: &mut Layer, input: &State) {
    let first = input.shape.first().copied().unwrap_or(0);
    let last = input.shape.last().copied().unwrap_or(0);
    match layer {
        Layer::Conv2d { in_channels: size @ 0, .. } => *size = first,
        Layer::GroupNorm { channels: size @ 0, .. } | Layer::BatchNorm { channels: size @ 0, .. } => {
            *size = if input.shape.len() == 3 { first } else { last };
        }
        Layer::Conv1d { in_channels: size @ 0, .. }
        | Layer::Linear { in_features: size @ 0, .. }
        | Layer::LayerNorm { features: size @ 0, .. }
        | Layer::Lstm { input_size: size @ 0, .. }
        | Layer::Gru { input_size: size @ 0, .. }
        | Layer::Attention { dim: size @ 0, .. } => *size = last,
        Layer::Embedding { vocab: vocab @ 0, .. } => *vocab = input.tokens.unwrap_or(0),
        Layer::PositionalEmbedding { length, dim } => {
            if *length == 0 {
                *length = first;
            }
            if *dim == 0 {
                *dim = last;
            }
        }
        Layer::MaxPool2d { kernel, stride, .. } | Layer::AvgPool2d { kernel, stride, .. } => {
            for (stride, kernel) in stride.0.iter_mut().zip(kernel.0) {
                if *stride == 0 {
                    *stride = kernel;
                }
            }
        }
        Layer::MaxPool1d { kernel, stride: stride @ 0, .. }
        | Layer::AvgPool1d { kernel, stride: stride @ 0, .. } => *stride = *kernel,
        _ => {}
    }
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
    let shape = spec.input.shape();
    let rank_fits = match spec.input {
        Input::Vector { .. } => matches!(shape.len(), 1 | 2),
        Input::Image { .. } => shape.len() == 3,
        Input::Tokens { .. } => shape.len() == 1,
    };
    if !rank_fits {
        return Err(format!(
            "the input shape is {shape:?}: it must be [features] or [length, channels] for a vector, \
             [channels, height, width] for an image, [length] for tokens"
        ));
    }
    check_activation(shape).map_err(|reason| format!("input: {reason}"))?;
    if let Input::Tokens { vocab, .. } = spec.input {
        in_range("the vocabulary", vocab, 2, limits::MAX_DIM)?;
    }
    let (least, what) = match spec.task {
        fl_protocol::Task::Classification { .. } => (2, "classes"),
        fl_protocol::Task::LanguageModel => (2, "tokens"),
        _ => (1, "outputs"),
    };
    if !(least..=limits::MAX_DIM).contains(&spec.num_classes()) {
        return Err(format!(
            "its task ({}) has {} {what}: at least {least} are needed",
            spec.task.name(),
            spec.num_classes()
        ));
    }
    if let fl_protocol::Task::Classification { classes, labels } = &spec.task
        && !labels.is_empty()
        && labels.len() != *classes
    {
        return Err(format!("its task names {} labels and has {classes} classes", labels.len()));
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
    layer.tensors().iter().try_fold(0usize, |sum, tensor| {
        sum.checked_add(tensor.shape.iter().try_fold(1usize, |size, &dim| size.checked_mul(dim))?)
    })
}
