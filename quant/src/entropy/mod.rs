//! The lossless stage: context-adaptive entropy coding of integers.
//!
//! Indices are coded row by row, up to four rows side by side, each one column behind the row above
//! ([`walk`]). What is already coded ([`context`]) picks one of a few hundred adaptive models
//! ([`model`]) for the index's symbol ([`token`]), which goes through [`rans`]. Encoders walk
//! forward and record ([`encode`]), then code from the end; decoders ([`decode`]) just walk.

mod context;
mod decode;
mod encode;
mod grid;
mod model;
mod rans;
mod token;
mod trellis;
mod walk;

pub use decode::Scratch;
pub use encode::{Coder, Costs, token_cost};
pub use grid::{Grid, Signs};
pub use token::MAX_MAGNITUDE;
pub use trellis::{Indices, Machine, NEXT, STATES, quantizer};
