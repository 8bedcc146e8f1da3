//! What the operations of a network compute, on row-major activations with the channels last.

pub(super) mod activation;
pub(super) mod attention;
mod columns;
pub(super) mod conv;
pub(super) mod depthwise;
pub(super) mod embedding;
pub(super) mod linear;
mod math;
pub(super) mod norm;
mod pack;
pub(super) mod product;
pub(super) mod recurrent;
mod softmax;
mod tiles;
mod vector;
pub(super) mod window;
