//! What the two directions of a Winograd convolution and its transforms share.

use crate::fused::kernels::tiles::LANES;

/// Edge of a tile of outputs.
pub(super) const EDGE: usize = 4;

/// Values of a kernel.
pub(super) const TAPS: usize = 9;

/// Channels of both kinds that are transformed together in weights: as many as the widest vector has lanes.
pub(super) const BLOCK: usize = LANES;

/// A convolution with 3 x 3 kernels and stride 1: forward, or to the gradient of the input.
#[derive(Debug)]
pub(super) struct Pass {
    /// Height, width, channels.
    pub(super) source: [usize; 3],
    pub(super) target: [usize; 3],
    pub(super) padding: [usize; 2],
    /// Tiles along the axes of one image.
    pub(super) down: usize,
    pub(super) across: usize,
    /// The kernels are turned, and inputs and outputs exchanged.
    pub(super) turned: bool,
}
