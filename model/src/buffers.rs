//! Integer tensors of a model that the master does not understand, such as PyTorch's `num_batches_tracked`: they travel
//! with the model and are neither trained, averaged nor counted.

use crate::error::ModelError;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// One integer tensor.
#[derive(Debug, Clone, PartialEq)]
struct Buffer {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// The integer tensors of a model, those with the largest elements first.
///
/// In an exact file those of eight bytes an element stand before the parameters and all others after them, because a
/// tensor must begin at a multiple of its element's size (PyTorch demands it) and no gaps are allowed. In a quantized
/// file all stand before the streams.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Buffers(Vec<Buffer>);

impl Buffers {
    /// Whether tensors of this type are carried along.
    pub(crate) fn takes(dtype: Dtype) -> bool {
        matches!(
            dtype,
            Dtype::I64
                | Dtype::U64
                | Dtype::I32
                | Dtype::U32
                | Dtype::I16
                | Dtype::U16
                | Dtype::I8
                | Dtype::U8
                | Dtype::BOOL
        )
    }

    /// Copies the tensors `names` of a file.
    ///
    /// # Errors
    /// If one is missing, named twice, or is of another type than [`Self::takes`].
    pub(crate) fn read<'n>(
        file: &SafeTensors<'_>,
        names: impl IntoIterator<Item = &'n str>,
    ) -> Result<Self, ModelError> {
        let bad = |name: &str, what: String| ModelError::BadFile(format!("the buffer `{name}` {what}"));
        let mut seen = HashSet::new();
        let mut buffers = Vec::new();
        for name in names {
            let view = file.tensor(name).map_err(|_| bad(name, "is missing".into()))?;
            if !Self::takes(view.dtype()) || !seen.insert(name) {
                return Err(bad(name, format!("is {:?}: a buffer is an integer, named once", view.dtype())));
            }
            buffers.push(Buffer {
                name: name.to_owned(),
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                data: view.data().to_vec(),
            });
        }
        buffers.sort_by(|a, b| size(b.dtype).cmp(&size(a.dtype)).then_with(|| a.name.cmp(&b.name)));
        Ok(Self(buffers))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Names, in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|buffer| buffer.name.as_str())
    }

    /// The bytes that stand before the parameters.
    pub fn before(&self) -> Vec<u8> {
        self.data(|buffer| size(buffer.dtype) == 8)
    }

    /// The bytes that stand after the parameters.
    pub fn after(&self) -> Vec<u8> {
        self.data(|buffer| size(buffer.dtype) < 8)
    }

    fn data(&self, chosen: impl Fn(&Buffer) -> bool) -> Vec<u8> {
        self.0.iter().filter(|buffer| chosen(buffer)).flat_map(|buffer| &buffer.data).copied().collect()
    }

    /// All bytes, one tensor after the other.
    pub(crate) fn all(&self) -> Vec<u8> {
        self.data(|_| true)
    }

    /// Adds the header's entries; `parameters` are the bytes of all parameters of an exact file, 0 for a quantized one.
    pub(crate) fn describe(&self, parameters: usize, header: &mut Map<String, Value>) {
        let mut end = 0;
        let mut gap = parameters;
        for buffer in &self.0 {
            if size(buffer.dtype) < 8 {
                end += std::mem::take(&mut gap);
            }
            let start = end;
            end += buffer.data.len();
            let entry = json!({"dtype": buffer.dtype, "shape": buffer.shape, "data_offsets": [start, end]});
            header.insert(buffer.name.clone(), entry);
        }
    }
}

/// Bytes of an element.
fn size(dtype: Dtype) -> usize {
    dtype.bitsize() / 8
}
