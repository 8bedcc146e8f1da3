//! What the operations of a network compute, on row-major activations with the channels last.

pub(super) mod conv;
pub(super) mod product;
