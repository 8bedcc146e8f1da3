//! What the operations of a network compute, on row-major activations with the channels last.

mod pack;
pub(super) mod product;
mod tiles;
