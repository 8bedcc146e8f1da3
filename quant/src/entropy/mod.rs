//! The lossless stage: context-adaptive entropy coding of integers.
//!
//! The integers of a tensor are laid out in rows ([`layout`]) and coded up to four rows in parallel, each
//! one column behind the row above ([`wavefront`]). The neighbours that are already coded ([`context`])
//! select one of a few hundred adaptive models ([`model`]) for the integer's symbol ([`token`]), which is
//! coded by [`rans`]. rANS encodes backwards: the encoder ([`coder`]) runs forwards over the integers to
//! record symbols and probabilities, then codes them from the end. The decoder ([`decoder`]) needs one
//! pass.

mod coder;
mod context;
mod decoder;
mod layout;
mod model;
mod rans;
mod token;
mod trellis;
mod wavefront;

pub use coder::{EntropyCoder, SymbolCosts, token_cost};
pub use decoder::EntropyDecoder;
pub use layout::{RowLayout, SignSample};
pub use token::MAX_MAGNITUDE;
pub use trellis::{NEXT, Quantization, STATES, TrellisState, quantizer};
