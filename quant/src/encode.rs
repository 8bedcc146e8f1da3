//! From a flat vector to one stream per tensor.

use crate::{
    EncodeError, Scheme, Spec, Target,
    bits::{pack, packed_len},
    entropy::{Coder, Grid, Indices, Signs},
    header::{Coding, HEADER_BYTES, Header, seal},
    limits::{MAX_BITS, MAX_ELEMENTS},
    reader::Reader,
    schemes::{self, Levels, Request, Scratch, max_abs},
    simd::vectorized,
    uniform,
};
use half::f16;

/// Largest magnitude that the schemes work with; a tensor beyond goes out as plain f32. So does one
/// whose largest magnitude is so small that its squares leave the range of f32.
const WORKABLE: std::ops::Range<f32> = 1e-15..1e15;

/// Reusable scratch memory of the encoder.
#[derive(Debug, Default)]
pub struct Encoder {
    /// The largest magnitude of each tensor.
    largest: Vec<f32>,
    scratch: Scratch,
    search: uniform::Search,
    lossless: Lossless,
}

/// What the entropy stage reuses.
#[derive(Debug, Default)]
struct Lossless {
    coder: Coder,
    signs: Signs,
    indices: Vec<i32>,
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
    let largest = check(x, shapes, spec, &mut encoder.largest)?;
    outs.resize_with(shapes.len(), Vec::new);
    let goal = match (spec.scheme, spec.target) {
        _ if largest != 0.0 && !WORKABLE.contains(&largest) => None,
        (Scheme::MsqV2, Target::Nmse(nmse)) => Some(uniform::Goal::Nmse(nmse)),
        (Scheme::MsqV2, Target::Bytes(bytes)) => Some(uniform::Goal::Bytes(bytes)),
        (Scheme::MsqV2, Target::Width) if spec.entropy => Some(uniform::Goal::Nmse(spec.width_nmse())),
        _ => None,
    };
    match (goal, spec.target) {
        (Some(goal), _) => {
            let request = uniform::Request { bits: spec.bits, rdo: spec.rdo, goal, largest };
            uniform::encode(&mut encoder.search, x, shapes, &request, outs);
        }
        (None, Target::Width) => encoder.encode_width(x, shapes, spec, outs),
        (None, _) => encoder.encode_narrowest(x, shapes, spec, outs),
    }
    Ok(())
}

/// Checks everything. Returns the largest magnitude; `each` gets that of each tensor.
fn check(x: &[f32], shapes: &[Vec<usize>], spec: &Spec, each: &mut Vec<f32>) -> Result<f32, EncodeError> {
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
    each.clear();
    let mut rest = x;
    vectorized(
        #[inline(always)]
        || {
            for shape in shapes {
                let (tensor, tail) = rest.split_at(shape.iter().product());
                rest = tail;
                each.push(max_abs(tensor));
            }
        },
    );
    // As integers infinities and NaN are larger than any finite magnitude.
    let largest = f32::from_bits(each.iter().fold(0, |max, each| max.max(each.to_bits())));
    if !largest.is_finite() {
        let position = x.iter().position(|v| !v.is_finite()).unwrap_or(0);
        return Err(EncodeError::NonFinite(position));
    }
    Ok(largest)
}

impl Encoder {
    /// Every tensor at the width that the spec asks for.
    fn encode_width(&mut self, x: &[f32], shapes: &[Vec<usize>], spec: &Spec, outs: &mut [Vec<u8>]) {
        let mut rest = x;
        for (index, (shape, out)) in shapes.iter().zip(outs.iter_mut()).enumerate() {
            let (tensor, tail) = rest.split_at(shape.iter().product());
            rest = tail;
            self.encode_tensor(tensor, shape, index, spec, out);
        }
    }

    /// The narrowest width that reaches the target's error, or the widest within its bytes.
    fn encode_narrowest(&mut self, x: &[f32], shapes: &[Vec<usize>], spec: &Spec, outs: &mut [Vec<u8>]) {
        let (mut low, mut high) = (1, MAX_BITS);
        while low < high {
            // Of two candidates, an error goal tries the narrower one, a size goal the wider.
            let bits = if matches!(spec.target, Target::Bytes(_)) {
                (low + high).div_ceil(2)
            } else {
                (low + high) / 2
            };
            self.encode_width(x, shapes, &Spec { bits, ..*spec }, outs);
            match spec.target {
                Target::Bytes(bytes) if outs.iter().map(Vec::len).sum::<usize>() <= bytes => low = bits,
                Target::Bytes(_) => high = bits - 1,
                Target::Nmse(nmse) if relative_error(x, shapes, outs) <= nmse => high = bits,
                Target::Nmse(_) | Target::Width => low = bits + 1,
            }
        }
        self.encode_width(x, shapes, &Spec { bits: low, ..*spec }, outs);
    }

    fn encode_tensor(&mut self, x: &[f32], shape: &[usize], index: usize, spec: &Spec, out: &mut Vec<u8>) {
        let largest = self.largest[index];
        match spec.scheme {
            Scheme::None => return write_plain(Scheme::None, x, out),
            Scheme::F16 => return write_plain(Scheme::F16, x, out),
            _ if largest != 0.0 && !WORKABLE.contains(&largest) => return write_plain(Scheme::None, x, out),
            _ => {}
        }
        let bits = spec.code_bits();
        out.clear();
        let coding = if spec.entropy { Coding::Entropy } else { Coding::Packed };
        Header { scheme: spec.scheme, bits, coding, count: x.len() }.write(out);
        // Tensors must not share random numbers.
        let seed = spec.seed.wrapping_add((index as u64).wrapping_mul(0xd1b5_4a32_d192_ed03));
        let request = Request { bits, max_abs: largest, seed };
        let scratch = &mut self.scratch;
        vectorized(
            #[inline(always)]
            || schemes::quantize(spec.scheme, x, &request, scratch, out),
        );
        let side = out.len();
        if spec.entropy {
            self.lossless.write(spec.scheme, bits, scratch, shape, out);
        }
        // Codes without structure are shorter as they are.
        if !spec.entropy || out.len() > side + scratch.scales.len() + packed_len(x.len(), bits) {
            let coding = Coding::Packed;
            out.truncate(side);
            Header { scheme: spec.scheme, bits, coding, count: x.len() }.rewrite(out);
            out.extend_from_slice(&scratch.scales);
            vectorized(
                #[inline(always)]
                || pack(&scratch.codes, bits, out),
            );
        }
        // Side information outweighs the codes of a very short tensor.
        if out.len() >= HEADER_BYTES + 4 * x.len() {
            return write_plain(Scheme::None, x, out);
        }
        seal(out);
    }
}

impl Lossless {
    /// Appends scale bytes and codes, entropy-coded: see `docs/format.md`.
    fn write(&mut self, scheme: Scheme, bits: u8, scratch: &Scratch, shape: &[usize], out: &mut Vec<u8>) {
        let zero = zero_code(scheme, bits, &out[HEADER_BYTES..]);
        if !scratch.scales.is_empty() {
            self.write_scales(&scratch.scales, out);
        }
        self.indices.clear();
        self.indices.extend(scratch.codes.iter().map(|code| i32::from(*code) - zero));
        let mut grid = Grid::new(shape, scratch.codes.len());
        grid.find_stride(&self.indices, &mut self.signs);
        self.code(grid, out);
    }

    /// Scales differ little from block to block: what is coded is the differences.
    fn write_scales(&mut self, scales: &[u8], out: &mut Vec<u8>) {
        let mut before = 0;
        self.indices.clear();
        self.indices.extend(scales.iter().map(|scale| {
            let difference = i32::from(*scale) - before;
            before = i32::from(*scale);
            difference
        }));
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        self.code(Grid::new(&[], scales.len()), out);
        let length = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn code(&mut self, grid: Grid, out: &mut Vec<u8>) {
        self.coder.write(grid, Indices::Scalar, &self.indices, out);
    }
}

/// The code that the decoder will take for zero.
fn zero_code(scheme: Scheme, bits: u8, side: &[u8]) -> i32 {
    // The side information has just been written.
    Levels::parse(scheme, bits, &mut Reader::new(side, HEADER_BYTES))
        .map_or(0, |levels| levels.zero_code() as i32)
}

/// `|decode(x) - x|^2 / |x|^2`; 0 for an x of zeros.
fn relative_error(x: &[f32], shapes: &[Vec<usize>], outs: &[Vec<u8>]) -> f64 {
    let (mut error, mut energy) = (0.0, 0.0);
    let mut rest = x;
    for (shape, out) in shapes.iter().zip(outs) {
        let (tensor, tail) = rest.split_at(shape.iter().product());
        rest = tail;
        // The encoder has just written it.
        let Ok(stream) = crate::Stream::parse(out, tensor.len()) else { return f64::INFINITY };
        stream.for_each_chunk(|offset, values| {
            for (v, x) in values.iter().zip(&tensor[offset..]) {
                let lost = f64::from(*v) - f64::from(*x);
                error += lost * lost;
                energy += f64::from(*x) * f64::from(*x);
            }
        });
    }
    if energy > 0.0 { error / energy } else { 0.0 }
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
