//! What the operations of a network compute, on row-major activations with the channels last.

#![allow(
    clippy::needless_range_loop,
    clippy::manual_memcpy,
    clippy::too_many_arguments,
    clippy::type_complexity,
    reason = "plain loops over fixed arrays are compiled to vector instructions where closures and iterator adaptors \
              become calls; a pass has many tensors"
)]

pub(super) mod activation;
pub(super) mod attention;
mod columns;
pub(super) mod conv;
pub(super) mod depthwise;
pub(super) mod dropping;
pub(super) mod embedding;
pub(super) mod joining;
pub(super) mod layer_norm;
pub(super) mod linear;
pub(super) mod loss;
mod math;
pub(super) mod norm;
mod pack;
mod panel;
pub(super) mod pool;
pub(super) mod product;
pub(super) mod recurrent;
mod softmax;
mod tiles;
mod vector;
mod view;
pub(super) mod window;
