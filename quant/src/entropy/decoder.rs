//! Entropy decoding: payload to integers.

use super::{
    context::{CONTEXTS, LANES, clamp_all},
    layout::RowLayout,
    model::Models,
    rans::RansDecoder,
    token,
    trellis::Quantization,
    wavefront::{CodedWave, Wave, WaveContexts, WavefrontScan, waves_to_rows},
};
use crate::{limits::CHUNK, simd::vectorized};
use bytemuck::cast;
use std::ops::Range;
use wide::i16x8;

/// Decodes entropy-coded integers; its buffers are reused from call to call.
#[derive(Debug, Default)]
pub struct EntropyDecoder {
    models: Models,
    scan: WavefrontScan,
    waves: Vec<Wave>,
    integers: Vec<i32>,
    values: Vec<f32>,
}

impl EntropyDecoder {
    /// Decodes `count` integers chunk by chunk and calls `f(offset, integers, values)`; `values` is an empty
    /// buffer that `f` may use for its output. Under the trellis the integers are levels, not indices.
    ///
    /// Any payload decodes to something; damage is detected by the stream's checksum.
    pub fn for_each_chunk(
        &mut self,
        layout: &RowLayout,
        quantization: Quantization,
        payload: &[u8],
        count: usize,
        mut f: impl FnMut(usize, &[i32], &mut Vec<f32>),
    ) {
        self.models.reset(CONTEXTS * quantization.quantizers(), layout.shift);
        self.scan.start(layout);
        let mut rans = RansDecoder::new(payload, layout.lanes);
        let group = (layout.cols * layout.lanes).min(count);
        self.integers.clear();
        self.integers.resize(group, 0);
        let mut offset = 0;
        while offset < count {
            let group = group.min(count - offset);
            self.decode_rows(layout.cols, quantization, &mut rans, group);
            for integers in self.integers[..group].chunks(CHUNK) {
                self.values.clear();
                f(offset, integers, &mut self.values);
                offset += integers.len();
            }
        }
    }

    /// Decodes the next `count` integers: a group of rows, or the rest.
    fn decode_rows(
        &mut self,
        cols: usize,
        quantization: Quantization,
        rans: &mut RansDecoder<'_>,
        count: usize,
    ) {
        for span in self.scan.start_group(cols, count) {
            self.waves.clear();
            self.waves.resize(span.len(), [0; LANES]);
            vectorized(
                #[inline(always)]
                || match quantization {
                    Quantization::Scalar => self.decode_span::<false>(rans, span.clone()),
                    Quantization::Trellis => self.decode_span::<true>(rans, span.clone()),
                },
            );
            waves_to_rows(&self.waves, cols, &span, &mut self.integers[..count]);
        }
    }

    #[inline(always)]
    fn decode_span<const TRELLIS: bool>(&mut self, rans: &mut RansDecoder<'_>, span: Range<usize>) {
        let Self { models, scan, waves, .. } = self;
        // A local copy can stay in registers.
        let mut states = *rans;
        scan.span::<TRELLIS>(
            span,
            models,
            #[inline(always)]
            |models, at, active, contexts| {
                let mut wave = DecodedWave::default();
                if active == (0..LANES) {
                    // Unrolled by hand: the loop is too long for the compiler to unroll.
                    wave.decode(0, models, contexts, &mut states);
                    wave.decode(1, models, contexts, &mut states);
                    wave.decode(2, models, contexts, &mut states);
                    wave.decode(3, models, contexts, &mut states);
                } else {
                    active.for_each(|lane| wave.decode(lane, models, contexts, &mut states));
                }
                let DecodedWave { symbols, signed, long } = wave;
                let signed: i16x8 = cast([0, signed]);
                let values = (signed ^ contexts.flips) - contexts.flips;
                let flat = values.to_array();
                let mut indices: Wave = std::array::from_fn(|lane| i32::from(flat[LANES + lane]));
                if let Some(long) = long {
                    restore_long(&long, contexts.flips, &mut indices);
                }
                waves[at] = if TRELLIS {
                    std::array::from_fn(|lane| {
                        Quantization::Trellis.level(contexts.quantizers[lane], indices[lane])
                    })
                } else {
                    indices
                };
                CodedWave { symbols, indices, clamped: clamp_all(values) }
            },
        );
        *rans = states;
    }
}

/// A wave while its lanes are decoded.
#[derive(Default)]
struct DecodedWave {
    symbols: [usize; LANES],
    /// The integers before sign prediction is undone, saturated: four fields of 16 bits.
    signed: u64,
    /// Integers that may exceed 16 bits.
    long: Option<Wave>,
}

impl DecodedWave {
    #[inline(always)]
    fn decode(
        &mut self,
        lane: usize,
        models: &Models,
        contexts: &WaveContexts,
        states: &mut RansDecoder<'_>,
    ) {
        let (symbol, interval) = models.find(contexts.models[lane], states.slot(lane));
        states.advance(lane, interval);
        self.symbols[lane] = symbol;
        let value = if token::is_direct(symbol) {
            token::direct(symbol)
        } else if token::is_short(symbol) {
            token::read_short(symbol, lane, states)
        } else {
            let mut copy = *states;
            let value = token::read_long(symbol, lane, &mut copy);
            *states = copy;
            self.long.get_or_insert([0; LANES])[lane] = value;
            value.clamp(i32::from(-i16::MAX), i32::from(i16::MAX)) as i16
        };
        self.signed |= u64::from(value as u16) << (16 * lane);
    }
}

/// Replaces saturated integers by the full ones.
#[cold]
#[inline(never)]
fn restore_long(long: &Wave, flips: i16x8, indices: &mut Wave) {
    let flips = flips.to_array();
    for lane in 0..LANES {
        if long[lane] != 0 {
            indices[lane] = if flips[LANES + lane] < 0 { -long[lane] } else { long[lane] };
        }
    }
}
