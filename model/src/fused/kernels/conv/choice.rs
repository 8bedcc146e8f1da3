//! Which way a convolution is computed.

use super::{Geometry, winograd::Winograd};

/// An estimate from shapes alone: the choice is part of the result, to the last bit.
pub(super) fn winograd_is_faster(geometry: &Geometry) -> bool {
    Winograd::applies(geometry) && geometry.height > 2 && geometry.inputs >= 8
}
