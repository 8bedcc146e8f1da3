//! Quantizers and the byte format of model updates.
//!
//! A tensor of f32 becomes one self-describing stream:
//!
//! ```text
//! 0    3       4      5    6      7        8     12   16
//! "FLQ" version scheme bits coding reserved count crc  side information, codes
//! ```
//!
//! Codes are packed at a fixed width, or go through a context-adaptive entropy coder; MSQ_v2 then is a
//! uniform quantizer whose step is chosen for a target error or size.
//!
//! [`encode_update`] writes the streams of a whole update, [`Stream::parse`] checks one from the
//! network, and [`Stream::for_each_chunk`] decodes it without a further error. [`Feedback`] carries
//! what quantization lost to the next round. `docs/format.md` describes every byte.

mod bits;
mod codes;
mod encode;
mod entropy;
mod error;
mod feedback;
mod header;
mod limits;
mod lloyd;
mod reader;
mod scale;
mod schemes;
mod simd;
mod spec;
mod stream;
mod uniform;

pub use codes::{Codes, Piece};
pub use encode::{Encoder, encode_update};
pub use error::{DecodeError, EncodeError};
pub use feedback::{Feedback, FeedbackRule};
pub use spec::{Bits, Scheme, Spec, Target};
pub use stream::Stream;
