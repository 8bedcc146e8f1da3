//! Quantizers and the byte format of model updates.
//!
//! A tensor of f32 becomes a stream of bytes that describes itself, typically 5 to 60 times smaller:
//!
//! ```
//! use fl_quant::{Spec, compress, decompress};
//!
//! // The update of a layer with 64 outputs and 256 inputs.
//! let delta: Vec<f32> = (0..64 * 256).map(|i| 1e-3 * (i as f32 * 0.1).sin()).collect();
//! let bytes = compress(&delta, &[64, 256], &Spec::default())?;
//! let restored = decompress(&bytes, delta.len())?;
//!
//! assert!(bytes.len() < delta.len());
//! let error: f32 = delta.iter().zip(&restored).map(|(a, b)| (a - b).powi(2)).sum();
//! assert!(error < 0.01 * delta.iter().map(|v| v * v).sum::<f32>());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Spec`] chooses scheme, width and target. The other entries serve whole updates:
//! - [`encode_update`] writes one stream per tensor and reuses its buffers;
//! - [`Stream::parse`] validates a stream from the network, [`Stream::for_each_chunk`] then decodes it
//!   without a further error, and [`Stream::for_each_piece`] gives access to packed codes;
//! - [`Feedback`] carries what quantization lost to the next round.
//!
//! # Format
//!
//! ```text
//! 0    3       4      5    6      7        8     12   16
//! "FLQ" version scheme bits coding reserved count crc  side information, codes
//! ```
//!
//! Codes are packed at a fixed width or coded by a context-adaptive entropy coder; MSQ_v2 with the entropy
//! coder is a uniform quantizer whose step is chosen for a target error or size. `docs/format.md`
//! describes every byte.

mod bit_packing;
mod byte_reader;
mod codec;
mod encoder;
mod entropy;
mod error;
mod feedback;
mod fixed_width;
mod header;
mod limits;
mod packed;
mod schemes;
mod simd;
mod spec;
mod split;
mod stream;
mod threads;
mod uniform;

pub use codec::{compress, decompress};
pub use encoder::{Encoder, encode_update};
pub use error::{DecodeError, EncodeError};
pub use feedback::{Feedback, FeedbackRule};
pub use packed::{Codes, Piece};
pub use spec::{Bits, Scheme, Spec, Target};
pub use stream::{Stream, decode_update};
pub use threads::Threads;
