//! From a spec to the operations that compute it, in the order in which they run.

use super::{
    dim::{Dim, ValueId},
    operation::{Operation, operations},
};
use crate::{
    error::ModelError,
    spec::{Join, Layer, ModelSpec},
};
use fl_protocol::Input;
use std::ops::Range;

/// One operation with what it reads and writes.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) operation: Operation,
    pub(super) inputs: Vec<ValueId>,
    pub(super) output: ValueId,
    /// The layer's tensors in the flat vector, one after the other.
    pub(super) tensors: Vec<Range<usize>>,
}

impl Node {
    /// The layer's part of the flat vector.
    pub(super) fn range(&self) -> Range<usize> {
        match (self.tensors.first(), self.tensors.last()) {
            (Some(first), Some(last)) => first.start..last.end,
            _ => 0..0,
        }
    }
}

/// The operations of a network and the sizes of the values between them.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    /// Floats a sample of every value. Value 0 is the network's input, which no operation writes.
    pub(super) sizes: Vec<usize>,
    pub(super) output: ValueId,
}

impl Graph {
    pub(super) fn new(spec: &ModelSpec) -> Result<Self, ModelError> {
        spec.validate()?;
        let tokens = matches!(spec.input, Input::Tokens { .. });
        let mut builder = Builder {
            graph: Self { nodes: Vec::new(), sizes: vec![spec.num_features()], output: 0 },
            pinned: vec![true],
            parameters: 0,
            layers: 0,
        };
        let dim = Dim::of(spec.input_shape());
        // Images arrive with the channels outermost, and so does what `flatten` must give.
        let channels_first = !tokens && dim.channels > 1 && dim.pixels() > 1 && spec.input_shape().len() == 3;
        let input = State { value: 0, shape: spec.input_shape().to_vec(), channels_first };
        let end = builder.list(&spec.layers, input)?;
        builder.graph.output = end.value;
        match end.value {
            0 => Err(ModelError::NotFused("it has no operation".into())),
            _ => Ok(builder.graph),
        }
    }
}

/// A value on its way through the layers.
#[derive(Debug, Clone)]
struct State {
    value: ValueId,
    /// In PyTorch's order.
    shape: Vec<usize>,
    /// Whether the values lie in PyTorch's order, as the network's input does.
    channels_first: bool,
}

struct Builder {
    graph: Graph,
    /// Whether a value is read by more than the operation that comes next.
    pinned: Vec<bool>,
    parameters: usize,
    /// Layers seen so far, nested ones and containers included.
    layers: usize,
}

impl Builder {
    fn list(&mut self, layers: &[Layer], mut state: State) -> Result<State, ModelError> {
        for layer in layers {
            let number = self.layers;
            self.layers += 1;
            state = self.layer(layer, number, state)?;
        }
        Ok(state)
    }

    fn layer(&mut self, layer: &Layer, number: usize, state: State) -> Result<State, ModelError> {
        match layer {
            Layer::Sequential { layers } => return self.list(layers, state),
            Layer::Residual { body, shortcut } => {
                let state = self.channels_last(state);
                self.pinned[state.value] = true;
                let a = self.list(body, state.clone())?;
                let a = self.channels_last(a);
                self.pinned[a.value] = true;
                let b = self.list(shortcut, state)?;
                let b = self.channels_last(b);
                return Ok(self.join(&[a, b], Join::Add));
            }
            Layer::Branches { branches, join } => {
                let state = self.channels_last(state);
                self.pinned[state.value] = true;
                let mut ends = Vec::new();
                for branch in branches {
                    let end = self.list(branch, state.clone())?;
                    let end = self.channels_last(end);
                    self.pinned[end.value] = true;
                    ends.push(end);
                }
                return Ok(self.join(&ends, *join));
            }
            Layer::Flatten => return Ok(self.flatten(state)),
            Layer::Relu if self.fuse_relu(&state) => return Ok(state),
            Layer::Dropout { p: 0.0 } => return Ok(state),
            _ => {}
        }
        let state = if matches!(layer, Layer::Embedding { .. }) { state } else { self.channels_last(state) };
        let shape = match (layer, state.shape.as_slice()) {
            (Layer::Embedding { dim, .. }, [length]) => vec![*length, *dim],
            _ => crate::spec::output_shape(layer, &state.shape).map_err(ModelError::BadSpec)?,
        };
        let tensors: Vec<Range<usize>> = layer
            .tensors()
            .iter()
            .map(|tensor| {
                let start = self.parameters;
                self.parameters += tensor.shape.iter().product::<usize>();
                start..self.parameters
            })
            .collect();
        let input = match (layer, state.shape.as_slice()) {
            // Its mask goes over channels first in every image; one of height 1 must not pass for a sequence.
            (Layer::Dropout { .. }, &[channels, 1, width]) => Dim { height: width, width: 1, channels },
            _ => Dim::of(&state.shape),
        };
        let steps = operations(layer, number, input, Dim::of(&shape), &tensors)?;
        let mut value = state.value;
        for step in steps {
            let output = self.value(step.output.len());
            self.graph.nodes.push(Node {
                operation: step.operation,
                inputs: vec![value],
                output,
                tensors: step.tensors,
            });
            value = output;
        }
        Ok(State { value, shape, channels_first: false })
    }

    fn value(&mut self, size: usize) -> ValueId {
        self.graph.sizes.push(size);
        self.pinned.push(false);
        self.graph.sizes.len() - 1
    }

    fn push(&mut self, operation: Operation, inputs: Vec<ValueId>, size: usize) -> ValueId {
        let output = self.value(size);
        self.graph.nodes.push(Node { operation, inputs, output, tensors: Vec::new() });
        output
    }

    /// Lets the operation that made `state` apply the ReLU, if it can and nothing else reads its result.
    fn fuse_relu(&mut self, state: &State) -> bool {
        if self.pinned[state.value] {
            return false;
        }
        match self.graph.nodes.last_mut() {
            Some(node) if node.output == state.value => node.operation.fuse_relu(),
            _ => false,
        }
    }

    fn channels_last(&mut self, state: State) -> State {
        if !state.channels_first {
            return state;
        }
        let dim = Dim::of(&state.shape);
        let value = self.push(Operation::ToChannelsLast(dim), vec![state.value], dim.len());
        State { value, channels_first: false, ..state }
    }

    fn flatten(&mut self, state: State) -> State {
        let dim = Dim::of(&state.shape);
        let image = state.shape.len() == 3 && dim.pixels() > 1 && dim.channels > 1;
        let value = match image && !state.channels_first {
            true => self.push(Operation::ToChannelsFirst(dim), vec![state.value], dim.len()),
            false => state.value,
        };
        State { value, shape: vec![dim.len()], channels_first: false }
    }

    fn join(&mut self, ends: &[State], join: Join) -> State {
        let [first, rest @ ..] = ends else {
            return State { value: 0, shape: Vec::new(), channels_first: false };
        };
        if rest.is_empty() {
            return first.clone();
        }
        let mut shape = first.shape.clone();
        let inputs: Vec<ValueId> = ends.iter().map(|end| end.value).collect();
        let operation = match join {
            Join::Add => Operation::Add { relu: false },
            Join::Concat => {
                let channels: Vec<usize> = ends.iter().map(|end| Dim::of(&end.shape).channels).collect();
                let axis = if shape.len() == 3 { 0 } else { shape.len() - 1 };
                shape[axis] = channels.iter().sum();
                Operation::Concat { channels }
            }
        };
        let value = self.push(operation, inputs, Dim::of(&shape).len());
        State { value, shape, channels_first: false }
    }
}
