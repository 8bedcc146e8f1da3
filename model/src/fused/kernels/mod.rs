//! What the operations of a network compute, on row-major activations with the channels last.

pub(super) mod activation;
pub(super) mod attention;
pub(super) mod columns;
pub(super) mod conv;
pub(super) mod depthwise;
pub(super) mod embedding;
pub(super) mod math;
pub(super) mod norm;
pub(super) mod product;
pub(super) mod recurrent;
pub(super) mod vector;
pub(super) mod window;
