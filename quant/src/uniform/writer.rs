//! Entropy-codes quantized tensors and writes their streams.

use super::quantizer::{Quantized, Quantizer, UniformUpdate};
use crate::{
    Scheme,
    entropy::{IntegerCoder, append_segments, sample_len},
    header::{Coding, Header, seal},
    split::{Unit, count_of},
};
use std::{cmp::Reverse, mem};

/// Writes streams; its buffers are reused.
#[derive(Debug, Default)]
pub struct Writer {
    /// Coded segments of large tensors.
    segments: Vec<Vec<u8>>,
}

/// A segment to be coded.
struct Piece<'p> {
    index: usize,
    /// The shift of the tensor's segments; none for a tensor of one segment.
    shift: Option<u8>,
    /// Where a tensor of one segment has its stream, or the buffer of a segment.
    out: &'p mut Vec<u8>,
}

impl Writer {
    /// Codes the indices and writes one stream per tensor. Returns their total size.
    pub fn write(
        &mut self,
        update: &UniformUpdate<'_>,
        quantizer: &Quantizer,
        quantized: &Quantized,
        bits: u8,
        coders: &mut [IntegerCoder],
        outs: &mut [Vec<u8>],
    ) -> usize {
        let start = |coding, tensor: usize, out: &mut Vec<u8>| {
            out.clear();
            let count = count_of(&update.shapes[tensor]);
            Header { scheme: Scheme::MsqV2, bits, coding, count }.write(out);
            quantized.sides[tensor].write(out);
        };
        let mut pieces = self.pieces(update, quantizer, quantized, coders, outs);
        // The longest first, so that no thread begins one when the others are done.
        pieces.sort_by_key(|piece| Reverse(update.segments[piece.index].len()));
        update.threads.run(coders, pieces.into_iter(), |coder, Piece { index, shift, out }| {
            let unit = &update.segments[index];
            let mut buffer = mem::take(&mut coder.integers);
            let indices = quantizer.indices(update, quantized, index, unit.len(), &mut buffer);
            let layout = quantized.layout(update, index, indices, coder);
            let quantization = quantized.sides[unit.tensor].quantization;
            out.clear();
            if shift.is_none() {
                start(Coding::Uniform, unit.tensor, out);
            }
            coder.write(layout, shift, quantization, indices, out);
            if shift.is_none() {
                seal(out);
            }
            coder.integers = buffer;
        });
        let mut segments = &self.segments[..];
        for (units, out) in tensors(&update.segments).zip(&mut *outs).filter(|(units, _)| units.len() > 1) {
            let (own, others) = segments.split_at(units.len());
            segments = others;
            start(Coding::UniformSegments, units[0].tensor, out);
            append_segments(units[0].len(), own, out);
            seal(out);
        }
        outs.iter().map(Vec::len).sum()
    }

    /// All segments. For large tensors, codes the first rows on trial to choose the shift.
    fn pieces<'p>(
        &'p mut self,
        update: &UniformUpdate<'_>,
        quantizer: &Quantizer,
        quantized: &Quantized,
        coders: &mut [IntegerCoder],
        outs: &'p mut [Vec<u8>],
    ) -> Vec<Piece<'p>> {
        let large: usize = tensors(&update.segments).map(<[Unit]>::len).filter(|parts| *parts > 1).sum();
        self.segments.resize_with(large, Vec::new);
        let mut buffers = self.segments.iter_mut();
        let mut pieces = Vec::with_capacity(update.segments.len());
        let mut firsts = Vec::new();
        for (units, out) in tensors(&update.segments).zip(outs) {
            let index = pieces.len();
            if units.len() == 1 {
                pieces.push(Piece { index, shift: None, out });
                continue;
            }
            firsts.push((index, units.len(), 0));
            let own = buffers.by_ref().take(units.len()).enumerate();
            pieces.extend(own.map(|(part, out)| Piece { index: index + part, shift: None, out }));
        }
        update.threads.run(coders, firsts.iter_mut(), |coder, (index, _, shift)| {
            let unit = &update.segments[*index];
            let count = sample_len(&update.layout(unit), count_of(&update.shapes[unit.tensor]));
            let count = count.min(unit.len());
            let mut buffer = mem::take(&mut coder.integers);
            let indices = quantizer.indices(update, quantized, *index, count, &mut buffer);
            let mut layout = quantized.layout(update, *index, indices, coder);
            let quantization = quantized.sides[unit.tensor].quantization;
            coder.coder.find_shift(&mut layout, quantization, indices);
            *shift = layout.shift;
            coder.integers = buffer;
        });
        for (index, parts, shift) in firsts {
            pieces[index..index + parts].iter_mut().for_each(|piece| piece.shift = Some(shift));
        }
        pieces
    }
}

/// The segments of each tensor.
fn tensors(segments: &[Unit]) -> impl Iterator<Item = &[Unit]> {
    segments.chunk_by(|a, b| a.tensor == b.tensor)
}
