//! Which buffer holds which value, and which its gradient, at each time of a step.
//!
//! Time counts the operations forward, then backward. Buffers are given to values in order of time, so the
//! gradients of late layers use the memory of activations that nothing needs any more.

use super::build::Graph;

/// Number of a buffer.
pub(super) type Slot = usize;

/// The buffers of a pass.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Floats a sample of every buffer.
    pub(super) slots: Vec<usize>,
    /// Buffer of every value; none for the network's input.
    pub(super) values: Vec<Option<Slot>>,
    /// Backward steps, last operation first.
    pub(super) backward: Vec<BackwardStep>,
}

/// The backward pass of one operation.
#[derive(Debug)]
pub(super) struct BackwardStep {
    pub(super) node: usize,
    /// Buffer with the gradient of the output.
    pub(super) output: Slot,
    /// Where the gradient of each input goes; none if nothing needs it.
    pub(super) inputs: Vec<Option<GradientSlot>>,
}

/// Where an operation puts the gradient of an input.
#[derive(Debug, Clone, Copy)]
pub(super) struct GradientSlot {
    /// The buffer that the operation writes.
    pub(super) slot: Slot,
    /// The buffer with what other operations gave, to which it is then added.
    pub(super) add_to: Option<Slot>,
}

/// Buffers that are in use, or free to be used again.
#[derive(Default)]
struct Pool {
    sizes: Vec<usize>,
    free: Vec<Slot>,
}

impl Pool {
    /// The smallest free buffer that is large enough; else the largest one, made larger; else a new one.
    fn take(&mut self, size: usize) -> Slot {
        let fits = |slot: &Slot| self.sizes[*slot] >= size;
        let best = match self.free.iter().copied().filter(fits).min_by_key(|slot| self.sizes[*slot]) {
            Some(slot) => Some(slot),
            None => self.free.iter().copied().max_by_key(|slot| self.sizes[*slot]),
        };
        match best {
            Some(slot) => {
                self.free.retain(|other| *other != slot);
                self.sizes[slot] = self.sizes[slot].max(size);
                slot
            }
            None => {
                self.sizes.push(size);
                self.sizes.len() - 1
            }
        }
    }

    fn give_back(&mut self, slot: Slot) {
        debug_assert!(!self.free.contains(&slot));
        self.free.push(slot);
    }
}

impl Plan {
    /// Plans the forward pass alone.
    pub(super) fn evaluation(graph: &Graph) -> Self {
        let mut last_use = vec![0; graph.sizes.len()];
        for (time, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|&input| last_use[input] = time);
        }
        last_use[graph.output] = usize::MAX;
        let mut pool = Pool::default();
        let values = forward(graph, &last_use, &mut pool);
        Self { slots: pool.sizes, values, backward: Vec::new() }
    }

    /// Plans a training step in which the operations that `trained` marks get gradients of their parameters.
    pub(super) fn training(graph: &Graph, trained: &[bool]) -> Self {
        let n = graph.nodes.len();
        // Whether a value depends on a parameter that is trained.
        let mut needs_gradient = vec![false; graph.sizes.len()];
        for (node, trained) in graph.nodes.iter().zip(trained) {
            needs_gradient[node.output] = *trained || node.inputs.iter().any(|&input| needs_gradient[input]);
        }
        let backward_time = |node: usize| 2 * n - node;
        let mut last_use = vec![0; graph.sizes.len()];
        for (index, node) in graph.nodes.iter().enumerate() {
            let runs_backward = needs_gradient[node.output];
            let keeps = node.operation.keeps(trained[index]);
            for &input in &node.inputs {
                let until = if runs_backward && keeps.input { backward_time(index) } else { index };
                last_use[input] = last_use[input].max(until);
            }
            if runs_backward && keeps.output {
                last_use[node.output] = last_use[node.output].max(backward_time(index));
            }
        }
        // The loss is computed in place: the buffer of the output becomes that of its gradient.
        last_use[graph.output] = usize::MAX;
        let mut pool = Pool::default();
        let values = forward(graph, &last_use, &mut pool);
        let mut gradients: Vec<Option<Slot>> = vec![None; graph.sizes.len()];
        gradients[graph.output] = values[graph.output];
        // If the output is kept for its operation's backward pass, its gradient needs a buffer of its own.
        let output_is_kept = graph.nodes.last().is_some_and(|node| node.operation.keeps(true).output);
        if output_is_kept {
            gradients[graph.output] = Some(pool.take(graph.sizes[graph.output]));
        }
        let mut backward = Vec::new();
        for index in (0..n).rev() {
            let node = &graph.nodes[index];
            let Some(output) = gradients[node.output] else { continue };
            let mut extra = Vec::new();
            let inputs = node
                .inputs
                .iter()
                .map(|&input| {
                    needs_gradient[input].then(|| {
                        let slot = pool.take(graph.sizes[input]);
                        match gradients[input] {
                            None => {
                                gradients[input] = Some(slot);
                                GradientSlot { slot, add_to: None }
                            }
                            Some(sum) => {
                                extra.push(slot);
                                GradientSlot { slot, add_to: Some(sum) }
                            }
                        }
                    })
                })
                .collect();
            backward.push(BackwardStep { node: index, output, inputs });
            extra.into_iter().for_each(|slot| pool.give_back(slot));
            pool.give_back(output);
            for (value, last) in last_use.iter().enumerate() {
                if *last == backward_time(index)
                    && let Some(slot) = values[value]
                {
                    pool.give_back(slot);
                }
            }
        }
        Self { slots: pool.sizes, values, backward }
    }
}

/// Gives every value a buffer, and back those that nothing reads after their time.
fn forward(graph: &Graph, last_use: &[usize], pool: &mut Pool) -> Vec<Option<Slot>> {
    let mut values: Vec<Option<Slot>> = vec![None; graph.sizes.len()];
    for (time, node) in graph.nodes.iter().enumerate() {
        values[node.output] = Some(pool.take(graph.sizes[node.output]));
        for value in 0..graph.sizes.len() {
            // A result that nobody reads is free at once.
            let dead = last_use[value] == time && (node.inputs.contains(&value) || node.output == value);
            if dead && let Some(slot) = values[value] {
                pool.give_back(slot);
            }
        }
    }
    values
}
