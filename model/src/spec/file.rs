//! Layer lists from JSON: a user's file, and what a model file carries.

use super::{Layer, ModelSpec, limits, shapes};
use crate::error::ModelError;
use serde::Deserialize;
use std::path::Path;

/// A user's file. Sizes that the data gives can be left out.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    input_shape: Option<Vec<usize>>,
    num_classes: Option<usize>,
    layers: Vec<Layer>,
}

impl ModelSpec {
    /// A preset by name, or a layer list by path: whatever has a `.`, `/` or `\` in it is a path.
    ///
    /// # Errors
    /// As [`ModelSpec::preset`]; a file that is missing, not JSON, or that does not fit the data.
    pub fn load(
        name_or_path: &str,
        input_shape: &[usize],
        num_classes: usize,
        model_dim: usize,
    ) -> Result<Self, ModelError> {
        if !name_or_path.contains(['.', '/', '\\']) {
            return Self::preset(name_or_path, input_shape, num_classes, model_dim);
        }
        let path = Path::new(name_or_path);
        let bad = |reason: String| ModelError::BadSpecFile { path: name_or_path.to_owned(), reason };
        let size = std::fs::metadata(path).map_err(|error| bad(error.to_string()))?.len();
        if size > limits::MAX_JSON_BYTES as u64 {
            return Err(bad(format!("it has {size} bytes, more than a layer list can need")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
        let file: File = serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?;
        let stem = || path.file_stem().map_or_else(|| "custom".into(), |s| s.to_string_lossy().into_owned());
        let mut spec = Self {
            name: file.name.unwrap_or_else(stem),
            input_shape: file.input_shape.unwrap_or_else(|| input_shape.to_vec()),
            num_classes: file.num_classes.unwrap_or(num_classes),
            layers: file.layers,
        };
        if spec.input_shape != input_shape || spec.num_classes != num_classes {
            return Err(bad(format!(
                "it is for samples of shape {:?} in {} classes, the data has {input_shape:?} in {num_classes}",
                spec.input_shape, spec.num_classes
            )));
        }
        shapes::complete(&mut spec)?;
        spec.validate()?;
        Ok(spec)
    }

    /// Reads and checks the JSON that a model file carries.
    ///
    /// # Errors
    /// Text that is no layer list, or a list that does not fit together.
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
