//! Encodes the tensors of an update to one stream each.

use crate::{
    EncodeError, Scheme, Spec, Target,
    bit_packing::{pack, packed_len},
    byte_reader::ByteReader,
    entropy::{EntropyCoder, Quantization, RowLayout, SignSample},
    header::{Coding, HEADER_BYTES, Header, seal},
    limits::{MAX_BITS, MAX_ELEMENTS},
    schemes::{self, Dequantizer, QuantizerBuffers, TensorParams, max_abs},
    simd::vectorized,
    uniform,
};
use half::f16;

/// Largest magnitudes that the schemes can quantize: squares must neither overflow nor underflow f32. A
/// tensor outside is written as plain f32.
const QUANTIZABLE: std::ops::Range<f32> = 1e-15..1e15;

/// Buffers that encoding reuses from update to update.
#[derive(Debug, Default)]
pub struct Encoder {
    /// Largest magnitude of each tensor.
    largest: Vec<f32>,
    buffers: QuantizerBuffers,
    search: uniform::StepSearch,
    entropy: EntropyStage,
}

/// The entropy stage of the fixed-width schemes.
#[derive(Debug, Default)]
struct EntropyStage {
    coder: EntropyCoder,
    signs: SignSample,
    indices: Vec<i32>,
}

/// Encodes a whole update: `x` holds the values of all tensors, `shapes` their shapes in the same order.
///
/// Prefer this to [`crate::compress`] for a model's tensors: MSQ_v2 with the entropy stage then finds one
/// step for all of them, and targets hold for the whole update. `outs` is resized to one stream per tensor.
/// Its buffers and the encoder's are reused: once they have grown, encoding allocates nothing. The
/// streams depend on `x`, `shapes` and `spec` alone.
///
/// # Errors
/// If a value is not finite, if `x` and `shapes` differ in length, if a tensor has more than 2^28 elements,
/// or if the width is not 1 to 8.
///
/// ```
/// use fl_quant::{Encoder, Spec, Stream, encode_update};
///
/// // A layer of 2 outputs and 3 inputs, and its bias.
/// let (delta, shapes) = ([0.1, -0.2, 0.3, 0.0, 0.2, -0.1, 0.05, 0.0], [vec![2, 3], vec![2]]);
/// let (mut encoder, mut streams) = (Encoder::default(), Vec::new());
/// encode_update(&mut encoder, &delta, &shapes, &Spec::default(), &mut streams)?;
///
/// let mut sum = [0.0; 8];
/// for (bytes, (start, len)) in streams.iter().zip([(0, 6), (6, 2)]) {
///     let stream = Stream::parse(bytes, len).expect("written above");
///     stream.for_each_chunk(|offset, values| {
///         for (sum, value) in sum[start + offset..].iter_mut().zip(values) {
///             *sum += value;
///         }
///     });
/// }
/// # Ok::<(), fl_quant::EncodeError>(())
/// ```
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
        _ if largest != 0.0 && !QUANTIZABLE.contains(&largest) => None,
        (Scheme::MsqV2, Target::Nmse(nmse)) => Some(uniform::Goal::Nmse(nmse)),
        (Scheme::MsqV2, Target::Bytes(bytes)) => Some(uniform::Goal::Bytes(bytes)),
        (Scheme::MsqV2, Target::Width) if spec.entropy => Some(uniform::Goal::Nmse(spec.width_nmse())),
        _ => None,
    };
    match (goal, spec.target) {
        (Some(goal), _) => {
            let params = uniform::UniformParams { bits: spec.bits, rdo: spec.rdo, goal, largest };
            encoder.search.encode(x, shapes, &params, outs);
        }
        (None, Target::Width) => encoder.encode_width(x, shapes, spec, outs),
        (None, _) => encoder.encode_narrowest(x, shapes, spec, outs),
    }
    Ok(())
}

/// Checks values, shapes and width. Returns the largest magnitude; `of_tensors` receives that of each tensor.
fn check(
    x: &[f32],
    shapes: &[Vec<usize>],
    spec: &Spec,
    of_tensors: &mut Vec<f32>,
) -> Result<f32, EncodeError> {
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
    // One fast pass finds out whether a value is not finite; which one is needed for the message alone.
    of_tensors.clear();
    let mut rest = x;
    vectorized(
        #[inline(always)]
        || {
            for shape in shapes {
                let (tensor, tail) = rest.split_at(shape.iter().product());
                rest = tail;
                of_tensors.push(max_abs(tensor));
            }
        },
    );
    // Their bits order infinities and NaN above all finite magnitudes.
    let largest = max_abs(of_tensors);
    if !largest.is_finite() {
        let position = x.iter().position(|v| !v.is_finite()).unwrap_or(0);
        return Err(EncodeError::NonFinite(position));
    }
    Ok(largest)
}

impl Encoder {
    /// Encodes every tensor at `spec.bits`.
    fn encode_width(&mut self, x: &[f32], shapes: &[Vec<usize>], spec: &Spec, outs: &mut [Vec<u8>]) {
        let mut rest = x;
        for (index, (shape, out)) in shapes.iter().zip(outs.iter_mut()).enumerate() {
            let (tensor, tail) = rest.split_at(shape.iter().product());
            rest = tail;
            self.encode_tensor(tensor, shape, index, spec, out);
        }
    }

    /// Finds the narrowest width that reaches the target error, or the widest within the target size.
    fn encode_narrowest(&mut self, x: &[f32], shapes: &[Vec<usize>], spec: &Spec, outs: &mut [Vec<u8>]) {
        let (mut low, mut high) = (1, MAX_BITS);
        while low < high {
            // Bisection. The side that keeps `bits` (`low` for a size, `high` for an error) decides how the
            // middle is rounded, or the interval would not shrink.
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
            _ if largest != 0.0 && !QUANTIZABLE.contains(&largest) => {
                return write_plain(Scheme::None, x, out);
            }
            _ => {}
        }
        let bits = spec.code_bits();
        out.clear();
        let coding = if spec.entropy { Coding::Entropy } else { Coding::Packed };
        Header { scheme: spec.scheme, bits, coding, count: x.len() }.write(out);
        // Tensors must not use the same random numbers.
        let seed = spec.seed.wrapping_add((index as u64).wrapping_mul(0xd1b5_4a32_d192_ed03));
        let params = TensorParams { bits, max_abs: largest, seed };
        let buffers = &mut self.buffers;
        vectorized(
            #[inline(always)]
            || schemes::quantize(spec.scheme, x, &params, buffers, out),
        );
        let side = out.len();
        if spec.entropy {
            self.entropy.write(spec.scheme, bits, buffers, shape, out);
        }
        // Codes without structure are shorter packed.
        if !spec.entropy || out.len() > side + buffers.scales.len() + packed_len(x.len(), bits) {
            let coding = Coding::Packed;
            out.truncate(side);
            Header { scheme: spec.scheme, bits, coding, count: x.len() }.rewrite(out);
            out.extend_from_slice(&buffers.scales);
            vectorized(
                #[inline(always)]
                || pack(&buffers.codes, bits, out),
            );
        }
        // The side information of a very short tensor is larger than its values.
        if out.len() >= HEADER_BYTES + 4 * x.len() {
            return write_plain(Scheme::None, x, out);
        }
        seal(out);
    }
}

impl EntropyStage {
    /// Appends entropy-coded scale bytes and codes: see `docs/format.md`, coding 1.
    fn write(
        &mut self,
        scheme: Scheme,
        bits: u8,
        buffers: &QuantizerBuffers,
        shape: &[usize],
        out: &mut Vec<u8>,
    ) {
        let zero = zero_code(scheme, bits, &out[HEADER_BYTES..]);
        if !buffers.scales.is_empty() {
            self.write_scales(&buffers.scales, out);
        }
        self.indices.clear();
        self.indices.extend(buffers.codes.iter().map(|code| i32::from(*code) - zero));
        let mut layout = RowLayout::new(shape, buffers.codes.len());
        layout.find_stride(&self.indices, &mut self.signs);
        self.code(layout, out);
    }

    /// Codes the difference of each scale byte to the one before: the scales of neighbouring blocks are
    /// similar.
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
        self.code(RowLayout::new(&[], scales.len()), out);
        let length = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn code(&mut self, layout: RowLayout, out: &mut Vec<u8>) {
        self.coder.write(layout, Quantization::Scalar, &self.indices, out);
    }
}

/// The code from which the decoder counts.
fn zero_code(scheme: Scheme, bits: u8, side: &[u8]) -> i32 {
    // Parsing cannot fail: this encoder wrote the side information.
    Dequantizer::parse(scheme, bits, &mut ByteReader::new(side, HEADER_BYTES))
        .map_or(0, |levels| levels.zero_code() as i32)
}

/// Normalised squared error `|decode(x) - x|^2 / |x|^2`; 0 if x is zero.
fn relative_error(x: &[f32], shapes: &[Vec<usize>], outs: &[Vec<u8>]) -> f64 {
    let (mut error, mut energy) = (0.0, 0.0);
    let mut rest = x;
    for (shape, out) in shapes.iter().zip(outs) {
        let (tensor, tail) = rest.split_at(shape.iter().product());
        rest = tail;
        // Parsing cannot fail: this encoder wrote the stream.
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

/// Writes the values as f32 or f16.
fn write_plain(scheme: Scheme, x: &[f32], out: &mut Vec<u8>) {
    out.clear();
    let bits = MAX_BITS;
    Header { scheme, bits, coding: Coding::Packed, count: x.len() }.write(out);
    match scheme {
        Scheme::F16 => out.extend(x.iter().flat_map(|v| {
            // Saturates: infinity would be refused by decoders.
            let v = v.clamp(f16::MIN.to_f32(), f16::MAX.to_f32());
            f16::from_f32(v).to_le_bytes()
        })),
        _ => out.extend(x.iter().flat_map(|v| v.to_le_bytes())),
    }
    seal(out);
}
