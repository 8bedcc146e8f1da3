//! What a sample is and what is learnt from it: the terms that data sets, networks and clients share.

use serde::{Deserialize, Serialize};

/// What enters a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Input {
    /// Numbers: `[features]`, or `[length, channels]` for a series of vectors.
    Vector {
        /// Dimensions of one sample.
        shape: Vec<usize>,
    },
    /// Pixels: `[channels, height, width]`.
    Image {
        /// Dimensions of one sample.
        shape: Vec<usize>,
    },
    /// Whole numbers below `vocab`: `[length]`.
    Tokens {
        /// Dimensions of one sample.
        shape: Vec<usize>,
        /// Number of distinct tokens.
        vocab: usize,
    },
}

impl Input {
    /// The input of a data set of numbers: an image if it has three dimensions.
    pub fn numbers(shape: &[usize]) -> Self {
        match shape.len() {
            3 => Self::Image { shape: shape.to_vec() },
            _ => Self::Vector { shape: shape.to_vec() },
        }
    }

    /// Dimensions of one sample.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Vector { shape } | Self::Image { shape } | Self::Tokens { shape, .. } => shape,
        }
    }

    /// Values of one sample. Saturates where the dimensions are beyond all limits.
    pub fn len(&self) -> usize {
        self.shape().iter().fold(1, |len, dim| len.saturating_mul(*dim))
    }

    /// Whether a sample has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What is learnt: the form of the targets, the loss and the metrics.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Task {
    /// One class a sample. Loss: cross-entropy in nats. Metric: accuracy.
    Classification {
        /// Number of classes.
        classes: usize,
        /// Names of the classes; may be left out.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        labels: Vec<String>,
    },
    /// The next token at every position. Loss: cross-entropy in nats a token. Metric: accuracy.
    LanguageModel,
    /// Numbers. Loss: mean squared error over samples and outputs. Metric: mean absolute error.
    Regression {
        /// Numbers a sample.
        outputs: usize,
    },
    /// Any number of labels a sample. Loss: mean binary cross-entropy over samples and labels. Metric: share
    /// of (sample, label) pairs that are right.
    Multilabel {
        /// Number of labels.
        outputs: usize,
    },
}

impl Task {
    /// Classification without names.
    pub fn classes(classes: usize) -> Self {
        Self::Classification { classes, labels: Vec::new() }
    }

    /// The name in a spec file.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Classification { .. } => "classification",
            Self::LanguageModel => "language_model",
            Self::Regression { .. } => "regression",
            Self::Multilabel { .. } => "multilabel",
        }
    }

    /// Shape of what the network must give for one sample of `input`.
    pub fn output_shape(&self, input: &Input) -> Vec<usize> {
        match (self, input) {
            (Self::Classification { classes, .. }, _) => vec![*classes],
            (Self::Regression { outputs } | Self::Multilabel { outputs }, _) => vec![*outputs],
            (Self::LanguageModel, Input::Tokens { shape, vocab }) => {
                vec![shape.first().copied().unwrap_or(0), *vocab]
            }
            (Self::LanguageModel, _) => Vec::new(),
        }
    }

    /// Targets of one sample of `input`: classes (or tokens), or numbers.
    pub fn targets_per_sample(&self, input: &Input) -> usize {
        match self {
            Self::Classification { .. } => 1,
            Self::LanguageModel => input.len(),
            Self::Regression { outputs } | Self::Multilabel { outputs } => *outputs,
        }
    }

    /// Whether the targets are whole numbers below [`Task::num_classes`].
    pub fn has_classes(&self) -> bool {
        matches!(self, Self::Classification { .. } | Self::LanguageModel)
    }

    /// Classes that a target can be, or numbers that it has.
    pub fn num_classes(&self, input: &Input) -> usize {
        match (self, input) {
            (Self::Classification { classes, .. }, _) => *classes,
            (Self::LanguageModel, Input::Tokens { vocab, .. }) => *vocab,
            (Self::LanguageModel, _) => 0,
            (Self::Regression { outputs } | Self::Multilabel { outputs }, _) => *outputs,
        }
    }
}

/// Inputs of some samples, one sample after the other.
#[derive(Debug, Clone, Copy)]
pub enum Inputs<'a> {
    /// Normalised numbers, each sample in the order of its shape (channels outermost).
    Numbers(&'a [f32]),
    /// Tokens.
    Tokens(&'a [u32]),
}

impl Inputs<'_> {
    /// Values or tokens of all samples.
    pub fn len(&self) -> usize {
        match self {
            Self::Numbers(values) => values.len(),
            Self::Tokens(tokens) => tokens.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Targets of some samples, one sample after the other.
#[derive(Debug, Clone, Copy)]
pub enum Targets<'a> {
    /// The class of each sample, or the next token of each position.
    Classes(&'a [u32]),
    /// Numbers to be met, or a 1 for every label that applies and a 0 for every other.
    Numbers(&'a [f32]),
}

impl Targets<'_> {
    /// Targets of all samples.
    pub fn len(&self) -> usize {
        match self {
            Self::Classes(classes) => classes.len(),
            Self::Numbers(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> From<&'a [f32]> for Inputs<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::Numbers(values)
    }
}

impl<'a> From<&'a [u32]> for Inputs<'a> {
    fn from(tokens: &'a [u32]) -> Self {
        Self::Tokens(tokens)
    }
}

impl<'a> From<&'a Vec<f32>> for Inputs<'a> {
    fn from(values: &'a Vec<f32>) -> Self {
        Self::Numbers(values)
    }
}

impl<'a> From<&'a [u32]> for Targets<'a> {
    fn from(classes: &'a [u32]) -> Self {
        Self::Classes(classes)
    }
}

impl<'a> From<&'a Vec<u32>> for Targets<'a> {
    fn from(classes: &'a Vec<u32>) -> Self {
        Self::Classes(classes)
    }
}

impl<'a> From<&'a [f32]> for Targets<'a> {
    fn from(values: &'a [f32]) -> Self {
        Self::Numbers(values)
    }
}
