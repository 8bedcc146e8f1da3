//! Networks from JSON: a user's file, and what a model file carries.

use super::{Layer, ModelSpec, limits, shapes};
use crate::error::ModelError;
use fl_protocol::{Input, Task};
use serde::Deserialize;
use std::path::Path;

/// A spec of version 1 or 2. Sizes that the data gives can be left out of a user's file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AnyVersion {
    name: Option<String>,
    input: Option<Input>,
    task: Option<Task>,
    /// Version 1: an image or a vector.
    input_shape: Option<Vec<usize>>,
    /// Version 1: classification.
    num_classes: Option<usize>,
    layers: Vec<Layer>,
}

impl AnyVersion {
    fn into_spec(
        self,
        name: impl FnOnce() -> Option<String>,
        data: Option<(&Input, &Task)>,
    ) -> Result<ModelSpec, String> {
        let input = match (self.input, self.input_shape) {
            (Some(_), Some(_)) => return Err("it has both `input` and `input_shape`".into()),
            (Some(input), None) => Some(input),
            (None, shape) => shape.map(|shape| Input::numbers(&shape)),
        };
        let task = match (self.task, self.num_classes) {
            (Some(_), Some(_)) => return Err("it has both `task` and `num_classes`".into()),
            (Some(task), None) => Some(task),
            (None, classes) => classes.map(Task::classes),
        };
        Ok(ModelSpec {
            name: self.name.or_else(name).ok_or("it lacks `name`")?,
            input: input.or_else(|| data.map(|(input, _)| input.clone())).ok_or("it lacks `input`")?,
            task: task.or_else(|| data.map(|(_, task)| task.clone())).ok_or("it lacks `task`")?,
            layers: self.layers,
        })
    }
}

impl TryFrom<AnyVersion> for ModelSpec {
    type Error = String;

    fn try_from(file: AnyVersion) -> Result<Self, String> {
        let mut spec = file.into_spec(|| None, None)?;
        // Version 1 let a pooling's stride be left out in a model file too.
        shapes::complete(&mut spec).map_err(|error| error.to_string())?;
        Ok(spec)
    }
}

impl ModelSpec {
    /// A preset by name, or a network by path: whatever has a `.`, `/` or `\` in it is a path.
    ///
    /// # Errors
    /// As [`ModelSpec::preset`]; a file that is missing, not JSON, or that does not fit the data.
    pub fn load(
        name_or_path: &str,
        input: &Input,
        task: &Task,
        model_dim: usize,
    ) -> Result<Self, ModelError> {
        if !name_or_path.contains(['.', '/', '\\']) {
            return Self::preset(name_or_path, input, task, model_dim);
        }
        let bad = |reason: String| ModelError::BadSpecFile { path: name_or_path.to_owned(), reason };
        let spec = Self::read_file(name_or_path, Some((input, task)))?;
        spec.check_data(input, task).map_err(bad)?;
        Ok(spec)
    }

    /// Reads a user's file. What it leaves out of `input` and `task` comes from `data`.
    ///
    /// # Errors
    /// A file that is missing, not JSON, or a network that does not fit together.
    pub fn read_file(path: &str, data: Option<(&Input, &Task)>) -> Result<Self, ModelError> {
        let bad = |reason: String| ModelError::BadSpecFile { path: path.to_owned(), reason };
        let file = Path::new(path);
        let size = std::fs::metadata(file).map_err(|error| bad(error.to_string()))?.len();
        if size > limits::MAX_JSON_BYTES as u64 {
            return Err(bad(format!("it has {size} bytes, more than a network can need")));
        }
        let text = std::fs::read_to_string(file).map_err(|error| bad(error.to_string()))?;
        let any: AnyVersion = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let stem = || file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let mut spec = any.into_spec(stem, data).map_err(bad)?;
        shapes::complete(&mut spec)?;
        spec.validate()?;
        Ok(spec)
    }

    /// Whether samples of this kind fit: their dimensions, and at least as many classes as they have.
    ///
    /// A network on tokens takes any length of sequence that it was made for: text is cut to it.
    ///
    /// # Errors
    /// A sentence with both sides.
    pub fn check_data(&self, input: &Input, task: &Task) -> Result<(), String> {
        let same_input = match (&self.input, input) {
            (Input::Tokens { vocab, .. }, Input::Tokens { vocab: given, .. }) => vocab >= given,
            (own, given) => own.shape() == given.shape() && !matches!(given, Input::Tokens { .. }),
        };
        let same_task = match (&self.task, task) {
            (Task::Classification { classes, .. }, Task::Classification { classes: given, .. }) => {
                classes == given
            }
            (own, given) => own == given,
        };
        match same_input && same_task {
            true => Ok(()),
            false => Err(format!(
                "it is for {}, the data has {}",
                describe(&self.input, &self.task),
                describe(input, task)
            )),
        }
    }

    /// Whether samples of this kind can be mapped to the network's: the same dimensions and the same kind of
    /// targets. Tokens and classes may be fewer and have other numbers.
    pub fn accepts(&self, input: &Input, task: &Task) -> bool {
        let tokens = |input: &Input| matches!(input, Input::Tokens { .. });
        let same_targets = match (&self.task, task) {
            (Task::Classification { .. }, Task::Classification { .. })
            | (Task::LanguageModel, Task::LanguageModel) => true,
            (own, given) => own == given,
        };
        same_targets && tokens(&self.input) == tokens(input) && self.input.shape() == input.shape()
    }

    /// Reads and checks the JSON that a model file carries.
    ///
    /// # Errors
    /// Text that is no network, or layers that do not fit together.
    pub fn from_json(text: &str) -> Result<Self, ModelError> {
        if text.len() > limits::MAX_JSON_BYTES {
            return Err(ModelError::BadSpec(format!("its JSON has {} bytes", text.len())));
        }
        let spec: Self =
            serde_json::from_str(text).map_err(|error| ModelError::BadSpec(error.to_string()))?;
        spec.validate()?;
        Ok(spec)
    }

    /// The JSON that a model file carries: one line, keys in a fixed order.
    pub fn to_json(&self) -> String {
        // Infallible: strings, integers and finite floats.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// Samples and task in words, for messages.
pub fn describe(input: &Input, task: &Task) -> String {
    let samples = match input {
        Input::Vector { shape } => format!("samples of shape {shape:?}"),
        Input::Image { shape } => format!("images of shape {shape:?}"),
        Input::Tokens { shape, vocab } => format!("sequences of {shape:?} tokens below {vocab}"),
    };
    match task {
        Task::Classification { classes, .. } => format!("{samples} in {classes} classes"),
        Task::LanguageModel => format!("{samples} with the next token as target"),
        Task::Regression { outputs } => format!("{samples} with {outputs} numbers as targets"),
        Task::Multilabel { outputs } => format!("{samples} with {outputs} labels each"),
    }
}
