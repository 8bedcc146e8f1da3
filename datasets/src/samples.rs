//! A buffer for the samples of a batch.

use fl_protocol::{Inputs, Targets};

/// Some samples as a network takes them. [`Split::gather`](crate::Split::gather) fills it; it keeps its memory
/// from batch to batch.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    pub(crate) numbers: Vec<f32>,
    pub(crate) tokens: Vec<u32>,
    pub(crate) classes: Vec<u32>,
    pub(crate) outputs: Vec<f32>,
    pub(crate) kind: Kind,
}

/// Which of the buffers count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `numbers` and `classes`.
    #[default]
    Classified,
    /// `numbers` and `outputs`.
    Measured,
    /// `tokens`, and `classes` as the tokens that follow.
    Text,
}

impl Samples {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// What enters the network.
    pub fn inputs(&self) -> Inputs<'_> {
        match self.kind {
            Kind::Classified | Kind::Measured => Inputs::Numbers(&self.numbers),
            Kind::Text => Inputs::Tokens(&self.tokens),
        }
    }

    /// What the network should give.
    pub fn targets(&self) -> Targets<'_> {
        match self.kind {
            Kind::Classified | Kind::Text => Targets::Classes(&self.classes),
            Kind::Measured => Targets::Numbers(&self.outputs),
        }
    }

    /// Replaces each class by that of the model, and each token of a text likewise: `map` is what
    /// [`Dataset::class_map`](crate::Dataset::class_map) gave.
    ///
    /// # Panics
    /// If a class is not below `map.len()`.
    pub fn renumber(&mut self, map: &[u32]) {
        let replace = |values: &mut [u32]| values.iter_mut().for_each(|value| *value = map[*value as usize]);
        match self.kind {
            Kind::Classified => replace(&mut self.classes),
            Kind::Text => {
                replace(&mut self.classes);
                replace(&mut self.tokens);
            }
            Kind::Measured => {}
        }
    }
}
