//! Names, shapes and flat order of a model's tensors.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// One tensor of the model, in the file's (PyTorch's) layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorLayout {
    /// Key in the model file, as `torch.nn.Sequential` names it (`1.weight`).
    pub name: String,
    /// Dimensions, outermost first; row-major.
    pub shape: Vec<usize>,
    /// Index of the first element in the flat vector.
    pub offset: usize,
    /// Number of elements.
    pub len: usize,
}

/// All tensors of the model in canonical order: the flat vector is their concatenation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelLayout {
    tensors: Vec<TensorLayout>,
    parameters: usize,
}

impl ModelLayout {
    /// Lays `(name, shape)` pairs out one after the other.
    pub fn new(tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> Self {
        let mut layout = Self::default();
        for (name, shape) in tensors {
            let len = shape.iter().product();
            layout.tensors.push(TensorLayout { name, shape, offset: layout.parameters, len });
            layout.parameters += len;
        }
        layout
    }

    /// The tensors in canonical order.
    pub fn tensors(&self) -> &[TensorLayout] {
        &self.tensors
    }

    /// Number of parameters of the whole model.
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// The tensors' shapes, in order.
    pub fn shapes(&self) -> Vec<Vec<usize>> {
        self.tensors.iter().map(|t| t.shape.clone()).collect()
    }

    /// A digest of names and shapes: equal for two models whose updates can be added.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for tensor in &self.tensors {
            hash.update((tensor.name.len() as u64).to_le_bytes());
            hash.update(tensor.name.as_bytes());
            hash.update((tensor.shape.len() as u64).to_le_bytes());
            for &dim in &tensor.shape {
                hash.update((dim as u64).to_le_bytes());
            }
        }
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_follow_one_another() {
        let layout = ModelLayout::new([("1.weight".into(), vec![3, 4]), ("1.bias".into(), vec![3])]);
        assert_eq!(layout.parameters(), 15);
        assert_eq!(layout.tensors()[1].offset, 12);
    }

    #[test]
    fn the_fingerprint_tells_shapes_apart() {
        let a = ModelLayout::new([("w".into(), vec![3, 4])]);
        let b = ModelLayout::new([("w".into(), vec![4, 3])]);
        assert_ne!(a.fingerprint(), b.fingerprint());
        assert_eq!(a.fingerprint(), a.clone().fingerprint());
    }
}
