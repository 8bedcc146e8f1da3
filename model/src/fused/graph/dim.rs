//! Values between operations: their numbers and shapes.

/// Number of a value of the graph.
pub(super) type ValueId = usize;

/// Shape of one sample between two operations: an image; a sequence has height 1, a vector one pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fused) struct Dim {
    pub(in crate::fused) height: usize,
    pub(in crate::fused) width: usize,
    pub(in crate::fused) channels: usize,
}

impl Dim {
    /// From a shape in PyTorch's order.
    pub(super) fn of(shape: &[usize]) -> Self {
        match *shape {
            [channels, height, width] => Self { height, width, channels },
            [length, channels] => Self { height: 1, width: length, channels },
            _ => Self { height: 1, width: 1, channels: shape.iter().product() },
        }
    }

    /// Rows of a sample: pixels or tokens.
    pub(in crate::fused) fn pixels(self) -> usize {
        self.height * self.width
    }

    pub(in crate::fused) fn len(self) -> usize {
        self.pixels() * self.channels
    }
}
