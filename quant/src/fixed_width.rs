//! Encodes a tensor by one of the fixed-width schemes: packed codes, or the entropy stage.

use crate::{
    Scheme, Spec,
    bit_packing::{pack, packed_len},
    byte_reader::ByteReader,
    entropy::{IntegerCoder, Quantization, RowLayout, append_segments, sample_len},
    header::{Coding, HEADER_BYTES, Header, seal},
    limits::MAX_BITS,
    schemes::{self, Dequantizer, QuantizerBuffers, TensorParams},
    simd::vectorized,
    split::Split,
    threads::Threads,
};
use half::f16;

/// One tensor to encode.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'x> {
    /// Its values.
    pub values: &'x [f32],
    /// Its dimensions.
    pub shape: &'x [usize],
    /// Its place in the update.
    pub index: usize,
    /// Largest magnitude among the values.
    pub max_abs: f32,
}

/// Buffers of one tensor, reused for the next.
#[derive(Debug, Default)]
pub struct TensorBuffers {
    quantizer: QuantizerBuffers,
    /// Coded segments of a large tensor; before them its scale bytes.
    segments: Vec<Vec<u8>>,
}

/// How a tensor is encoded and on which threads.
#[derive(Debug, Clone, Copy)]
pub struct Encoding<'e> {
    /// Scheme, width and seed.
    pub spec: &'e Spec,
    /// Where a large tensor is cut.
    pub split: Split,
    /// What its parts are spread over.
    pub threads: &'e Threads,
}

impl Encoding<'_> {
    /// Writes the stream of a tensor. There is a coder for each thread.
    pub fn encode(
        &self,
        tensor: &Tensor<'_>,
        buffers: &mut TensorBuffers,
        coders: &mut [IntegerCoder],
        out: &mut Vec<u8>,
    ) {
        let (spec, count) = (self.spec, tensor.values.len());
        let bits = spec.code_bits();
        out.clear();
        let coding = if spec.entropy { Coding::Entropy } else { Coding::Packed };
        Header { scheme: spec.scheme, bits, coding, count }.write(out);
        // Tensors must not use the same random numbers.
        let seed = spec.seed.wrapping_add((tensor.index as u64).wrapping_mul(0xd1b5_4a32_d192_ed03));
        let (max_abs, span, threads) = (tensor.max_abs, self.split.span(count), self.threads);
        let params = TensorParams { bits, max_abs, seed, span, threads };
        schemes::quantize(spec.scheme, tensor.values, &params, &mut buffers.quantizer, out);
        let side = out.len();
        if spec.entropy {
            self.write_entropy(tensor.shape, bits, buffers, coders, out);
        }
        // Codes without structure are shorter packed.
        let scales = &buffers.quantizer.scales;
        if !spec.entropy || out.len() > side + scales.len() + packed_len(count, bits) {
            out.truncate(side);
            Header { scheme: spec.scheme, bits, coding: Coding::Packed, count }.rewrite(out);
            out.extend_from_slice(scales);
            self.write_packed(&buffers.quantizer.codes, bits, out);
        }
        // The side information of a very short tensor is larger than its values.
        if out.len() >= HEADER_BYTES + 4 * count {
            return self.encode_plain(Scheme::None, tensor.values, out);
        }
        seal(out);
    }

    /// Writes the values as f32 or f16.
    pub fn encode_plain(&self, scheme: Scheme, values: &[f32], out: &mut Vec<u8>) {
        out.clear();
        let count = values.len();
        Header { scheme, bits: MAX_BITS, coding: Coding::Packed, count }.write(out);
        let span = self.split.span(count);
        let size = if scheme == Scheme::F16 { 2 } else { 4 };
        out.resize(HEADER_BYTES + size * count, 0);
        let places = out[HEADER_BYTES..].chunks_mut(size * span);
        self.threads.each(values.chunks(span).zip(places), |(values, places)| match scheme {
            Scheme::F16 => {
                for (place, v) in places.as_chunks_mut().0.iter_mut().zip(values) {
                    // Saturates: infinity would be refused by decoders.
                    let v = v.clamp(f16::MIN.to_f32(), f16::MAX.to_f32());
                    *place = f16::from_f32(v).to_le_bytes();
                }
            }
            _ => {
                for (place, v) in places.as_chunks_mut().0.iter_mut().zip(values) {
                    *place = v.to_le_bytes();
                }
            }
        });
        seal(out);
    }

    fn write_packed(&self, codes: &[u8], bits: u8, out: &mut Vec<u8>) {
        let span = self.split.span(codes.len());
        let start = out.len();
        out.resize(start + packed_len(codes.len(), bits), 0);
        // A span is whole bytes, or all there is.
        let places = out[start..].chunks_mut(packed_len(span, bits));
        self.threads.each(codes.chunks(span).zip(places), |(codes, places)| {
            vectorized(
                #[inline(always)]
                || pack(codes, bits, places),
            );
        });
    }

    /// Appends entropy-coded scale bytes and codes: see `docs/format.md`, codings 1 and 3.
    fn write_entropy(
        &self,
        shape: &[usize],
        bits: u8,
        buffers: &mut TensorBuffers,
        coders: &mut [IntegerCoder],
        out: &mut Vec<u8>,
    ) {
        let TensorBuffers { quantizer: QuantizerBuffers { codes, scales, .. }, segments } = buffers;
        let (count, scheme) = (codes.len(), self.spec.scheme);
        let zero = zero_code(scheme, bits, &out[HEADER_BYTES..]);
        let layout = RowLayout::new(shape, count);
        let length = self.split.segment(count, layout.cols, layout.lanes);
        if length == count {
            let [coder, ..] = coders else { return };
            if !scales.is_empty() {
                coder.write_scales(scales, out);
            }
            coder.write_codes(codes, zero, layout, None, out);
            return;
        }
        Header { scheme, bits, coding: Coding::EntropySegments, count }.rewrite(out);
        let shift = coders.first_mut().map(|coder| coder.find_shift_of_codes(codes, zero, layout));
        let number = count.div_ceil(length);
        segments.resize_with(1 + number, Vec::new);
        self.threads.run(coders, segments.iter_mut().enumerate(), |coder, (index, segment)| {
            segment.clear();
            match index.checked_sub(1) {
                None if scales.is_empty() => {}
                None => coder.write_scales(scales, segment),
                Some(index) => {
                    let codes = &codes[index * length..count.min((index + 1) * length)];
                    coder.write_codes(codes, zero, layout.part(codes.len()), shift, segment);
                }
            }
        });
        out.extend_from_slice(&segments[0]);
        append_segments(length, &segments[1..], out);
    }
}

impl IntegerCoder {
    /// Codes the difference of each scale byte to the one before: the scales of neighbouring blocks are
    /// similar.
    fn write_scales(&mut self, scales: &[u8], out: &mut Vec<u8>) {
        let mut integers = std::mem::take(&mut self.integers);
        let mut before = 0;
        integers.clear();
        integers.extend(scales.iter().map(|scale| {
            let difference = i32::from(*scale) - before;
            before = i32::from(*scale);
            difference
        }));
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        self.write(RowLayout::new(&[], scales.len()), None, Quantization::Scalar, &integers, out);
        let length = (out.len() - start - 4) as u32;
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
        self.integers = integers;
    }

    /// Codes the codes of a tensor or segment, counted from `zero`.
    fn write_codes(
        &mut self,
        codes: &[u8],
        zero: i32,
        mut layout: RowLayout,
        shift: Option<u8>,
        out: &mut Vec<u8>,
    ) {
        let integers = self.integers_of(codes, zero);
        self.find_stride(&mut layout, &integers);
        self.write(layout, shift, Quantization::Scalar, &integers, out);
        self.integers = integers;
    }

    /// The shift for all segments of a tensor.
    fn find_shift_of_codes(&mut self, codes: &[u8], zero: i32, mut layout: RowLayout) -> u8 {
        let integers = self.integers_of(&codes[..sample_len(&layout, codes.len())], zero);
        self.find_stride(&mut layout, &integers);
        self.coder.find_shift(&mut layout, Quantization::Scalar, &integers);
        self.integers = integers;
        layout.shift
    }

    /// The buffer with the codes counted from `zero`.
    fn integers_of(&mut self, codes: &[u8], zero: i32) -> Vec<i32> {
        let mut integers = std::mem::take(&mut self.integers);
        integers.clear();
        integers.extend(codes.iter().map(|code| i32::from(*code) - zero));
        integers
    }
}

/// The code from which the decoder counts.
fn zero_code(scheme: Scheme, bits: u8, side: &[u8]) -> i32 {
    // Parsing cannot fail: this encoder wrote the side information.
    Dequantizer::parse(scheme, bits, &mut ByteReader::new(side, HEADER_BYTES))
        .map_or(0, |levels| levels.zero_code() as i32)
}
