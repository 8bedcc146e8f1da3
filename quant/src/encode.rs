//! From a flat vector to one stream per tensor.

use crate::{
    EncodeError, Scheme, Spec,
    bits::pack,
    header::{Coding, HEADER_BYTES, Header, seal},
    limits::{MAX_BITS, MAX_ELEMENTS},
    schemes::{self, Request, Scratch, max_abs},
};
use half::f16;

/// Largest magnitude that the schemes work with; a tensor beyond goes out as plain f32. So does one
/// whose largest magnitude is so small that its squares leave the range of f32.
const WORKABLE: std::ops::Range<f32> = 1e-15..1e15;

/// Reusable scratch memory of the encoder.
#[derive(Debug, Default)]
pub struct Encoder {
    scratch: Scratch,
}

/// Encodes a whole update: `x` is the flat vector, `shapes` the tensors' shapes in order.
///
/// `outs` is resized to one stream per tensor; its buffers are reused, as are the encoder's, so that
/// nothing is allocated once both have grown to the update's size. The result depends on `x`,
/// `shapes` and `spec` alone.
///
/// # Errors
/// If a value is not finite, if `x` and `shapes` differ in length, or if the width is not 1 to 8.
pub fn encode_update(
    encoder: &mut Encoder,
    x: &[f32],
    shapes: &[Vec<usize>],
    spec: &Spec,
    outs: &mut Vec<Vec<u8>>,
) -> Result<(), EncodeError> {
    check(x, shapes, spec)?;
    outs.resize_with(shapes.len(), Vec::new);
    let mut rest = x;
    for (index, (shape, out)) in shapes.iter().zip(outs.iter_mut()).enumerate() {
        let (tensor, tail) = rest.split_at(shape.iter().product());
        rest = tail;
        encode_tensor(encoder, tensor, index as u64, spec, out);
    }
    Ok(())
}

fn check(x: &[f32], shapes: &[Vec<usize>], spec: &Spec) -> Result<(), EncodeError> {
    if !(1..=MAX_BITS).contains(&spec.bits) {
        return Err(EncodeError::Bits { scheme: spec.scheme.name(), bits: spec.bits });
    }
    let mut total = 0usize;
    for shape in shapes {
        let count = shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
        match count.filter(|count| *count <= MAX_ELEMENTS) {
            Some(count) => total = total.saturating_add(count),
            None => return Err(EncodeError::TooLarge { max: MAX_ELEMENTS }),
        }
    }
    if total != x.len() {
        return Err(EncodeError::Shape { shape: total, found: x.len() });
    }
    // One fast pass for the common case; the position matters only to the message.
    if !pulp::Arch::new().dispatch(|| max_abs(x)).is_finite() {
        let position = x.iter().position(|v| !v.is_finite()).unwrap_or(0);
        return Err(EncodeError::NonFinite(position));
    }
    Ok(())
}

fn encode_tensor(encoder: &mut Encoder, x: &[f32], index: u64, spec: &Spec, out: &mut Vec<u8>) {
    let largest = pulp::Arch::new().dispatch(|| max_abs(x));
    match spec.scheme {
        Scheme::None => return write_plain(Scheme::None, x, out),
        Scheme::F16 => return write_plain(Scheme::F16, x, out),
        _ if largest != 0.0 && !WORKABLE.contains(&largest) => return write_plain(Scheme::None, x, out),
        _ => {}
    }
    let bits = spec.code_bits();
    out.clear();
    Header { scheme: spec.scheme, bits, coding: Coding::Packed, count: x.len() }.write(out);
    // Tensors must not share random numbers.
    let seed = spec.seed.wrapping_add(index.wrapping_mul(0xd1b5_4a32_d192_ed03));
    let request = Request { bits, max_abs: largest, seed };
    let scratch = &mut encoder.scratch;
    pulp::Arch::new().dispatch(|| schemes::quantize(spec.scheme, x, &request, scratch, out));
    pulp::Arch::new().dispatch(|| pack(&scratch.codes, bits, out));
    // Side information outweighs the codes of a very short tensor.
    if out.len() >= HEADER_BYTES + 4 * x.len() {
        return write_plain(Scheme::None, x, out);
    }
    seal(out);
}

/// Writes the values themselves.
fn write_plain(scheme: Scheme, x: &[f32], out: &mut Vec<u8>) {
    out.clear();
    let bits = MAX_BITS;
    Header { scheme, bits, coding: Coding::Packed, count: x.len() }.write(out);
    match scheme {
        Scheme::F16 => out.extend(x.iter().flat_map(|v| {
            // Beyond the range of f16 the nearest finite value beats infinity.
            let v = v.clamp(f16::MIN.to_f32(), f16::MAX.to_f32());
            f16::from_f32(v).to_le_bytes()
        })),
        _ => out.extend(x.iter().flat_map(|v| v.to_le_bytes())),
    }
    seal(out);
}
