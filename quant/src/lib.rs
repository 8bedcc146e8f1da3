//! Quantizers and the byte format of model updates.
#![warn(missing_docs)]

mod error;
mod spec;
mod stream;

pub use error::{DecodeError, EncodeError};
pub use spec::{Scheme, Spec};
pub use stream::{Encoder, Stream, encode_update};
