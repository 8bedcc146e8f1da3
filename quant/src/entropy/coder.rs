//! Entropy encoding: integers to payload.

use super::{
    context::{CONTEXTS, Contexts, LANES, LaneIndices, Neighbours, clamp, clamp_all, contexts},
    layout::RowLayout,
    model::{LAST_SHIFTS, Models, SYMBOLS},
    rans::{RansEncoder, RansSymbol},
    token,
    trellis::Quantization,
    wavefront::{CodedWave, Wave, WavefrontScan, rows_to_waves},
};
use crate::simd::vectorized;
use bytemuck::cast;
use std::ops::Range;
use wide::{i16x8, i32x8};

/// The part of a tensor (1/32) that is coded on trial to choose the shift, and its bounds in elements.
const SAMPLED_PART: usize = 32;
const MIN_SAMPLE: usize = 2048;
const MAX_SAMPLE: usize = 32_768;

/// Integers of a tensor of `count` that are coded on trial: whole groups of rows.
pub fn sample_len(layout: &RowLayout, count: usize) -> usize {
    let rows = (count / SAMPLED_PART).clamp(MIN_SAMPLE, MAX_SAMPLE).div_ceil(layout.cols);
    count.min(rows.next_multiple_of(layout.lanes) * layout.cols)
}

/// Encodes integers; its buffers are reused from call to call.
#[derive(Debug, Default)]
pub struct EntropyCoder {
    models: Models,
    scan: WavefrontScan,
    rans: RansEncoder,
    waves: Vec<Wave>,
}

impl EntropyCoder {
    /// Codes `values` and appends the payload.
    pub fn encode(
        &mut self,
        layout: &RowLayout,
        quantization: Quantization,
        values: &[i32],
        out: &mut Vec<u8>,
    ) {
        self.start(layout, quantization);
        for rows in values.chunks(layout.cols * layout.lanes) {
            self.encode_rows(layout, quantization, rows);
        }
        vectorized(
            #[inline(always)]
            || self.rans.finish(layout.lanes, out),
        );
    }

    /// Prepares for a new tensor.
    pub fn start(&mut self, layout: &RowLayout, quantization: Quantization) {
        self.models.reset(CONTEXTS * quantization.quantizers(), layout.shift);
        self.scan.start(layout);
        self.rans.clear();
    }

    /// Codes the next group of `lanes` rows (the last one may be shorter).
    pub fn encode_rows(&mut self, layout: &RowLayout, quantization: Quantization, values: &[i32]) {
        for span in self.scan.start_group(layout.cols, values.len()) {
            rows_to_waves(values, layout.cols, &span, &mut self.waves);
            vectorized(
                #[inline(always)]
                || match quantization {
                    Quantization::Scalar => self.encode_span::<false>(span.clone()),
                    Quantization::Trellis => self.encode_span::<true>(span.clone()),
                },
            );
        }
    }

    #[inline(always)]
    fn encode_span<const TRELLIS: bool>(&mut self, span: Range<usize>) {
        let Self { models, scan, rans, waves } = self;
        scan.span::<TRELLIS>(
            span,
            models,
            #[inline(always)]
            |models, at, active, contexts| {
                let indices = waves[at];
                let [i0, i1, i2, i3] = indices;
                let values = i16x8::from_i32x8_saturate(i32x8::new([0, 0, 0, 0, i0, i1, i2, i3]));
                // i16::MIN has no magnitude in i16.
                let values = values.max(i16x8::splat(-i16::MAX));
                let (symbols, open) = token::symbols(values, contexts.flips);
                let symbols = std::array::from_fn(|lane| (symbols >> (16 * lane)) as usize & 0xff);
                let record = |lane: usize| {
                    RansSymbol::new(lane, models.interval(contexts.models[lane], symbols[lane]))
                };
                if active == (0..LANES) && !open {
                    rans.extend(std::array::from_fn(record));
                } else {
                    for lane in active {
                        rans.push(record(lane));
                        token::write_plain_bits(indices[lane].unsigned_abs(), lane, rans);
                    }
                }
                CodedWave { symbols, indices, clamped: clamp_all(values) }
            },
        );
    }

    /// Chooses the shift by coding the first [`sample_len`] integers of a tensor on trial.
    pub fn find_shift(&mut self, layout: &mut RowLayout, quantization: Quantization, sample: &[i32]) {
        let group = layout.cols * layout.lanes;
        let mut bits = |shift| {
            self.start(&RowLayout { shift, ..*layout }, quantization);
            sample.chunks(group).for_each(|rows| self.encode_rows(layout, quantization, rows));
            self.rans.bits()
        };
        // Assumes one minimum: descends from the default shift, upwards first.
        let mut best = (bits(layout.shift), layout.shift);
        for direction in [1, -1] {
            let before = best.1;
            for shift in (1..).map(|steps| before.wrapping_add_signed(direction * steps)) {
                let tried = if LAST_SHIFTS.contains(&shift) { bits(shift) } else { f64::INFINITY };
                if tried >= best.0 {
                    break;
                }
                best = (tried, shift);
            }
            if best.1 != before {
                break;
            }
        }
        layout.shift = best.1;
    }

    /// Scans a guess of the next row without coding it and calls `f(column, flip, costs)`: whether the
    /// predicted sign is negative, and the costs of all symbols under both quantizers.
    #[inline(always)]
    pub fn look_ahead(
        &mut self,
        layout: &RowLayout,
        guess: &[i32],
        costs: &mut SymbolCosts,
        mut f: impl FnMut(usize, bool, [&[f32; SYMBOLS]; 2]),
    ) {
        // Zero outside the row.
        let at = |column: Option<usize>| {
            let index = column.map_or(0, |column| clamp(guess[column]));
            LaneIndices::new(i16x8::splat(index))
        };
        let far = |column: usize| if layout.stride == 0 { None } else { column.checked_sub(layout.stride) };
        for column in 0..guess.len() {
            let around = Neighbours {
                left: at(column.checked_sub(1)),
                left2: at(column.checked_sub(2)),
                far: at(far(column)),
                far_next: at(far(column + 1)),
            };
            let Contexts { models, flips } = contexts(&around, i16x8::splat(self.scan.means()[column]));
            let model = models as u16 as usize;
            costs.fill(&self.models, model);
            costs.fill(&self.models, model + CONTEXTS);
            let [_, flips]: [u64; 2] = cast(flips);
            f(column, flips & 1 != 0, [&costs.tables[model], &costs.tables[model + CONTEXTS]]);
        }
    }
}

/// Cache of symbol costs in bits. Between calls of `renew` the models count as unchanged.
#[derive(Debug, Default)]
pub struct SymbolCosts {
    tables: Vec<[f32; SYMBOLS]>,
    /// The period in which each table was filled.
    filled: Vec<u32>,
    now: u32,
}

impl SymbolCosts {
    /// Invalidates the cache.
    pub fn renew(&mut self) {
        self.tables.resize(2 * CONTEXTS, [0.0; SYMBOLS]);
        self.filled.resize(2 * CONTEXTS, self.now);
        self.now = self.now.wrapping_add(1);
    }

    #[inline(always)]
    fn fill(&mut self, models: &Models, model: usize) {
        if self.filled[model] != self.now {
            self.filled[model] = self.now;
            self.tables[model] = models.costs(model);
        }
    }
}

/// Cost of an index in bits; `sign` is 1 if it is negative after sign prediction.
#[inline(always)]
pub fn token_cost(magnitude: u32, sign: usize, costs: &[f32; SYMBOLS]) -> f32 {
    let symbol = token::symbol(magnitude, sign == 1);
    let plain = if magnitude > token::DIRECT { token::plain_bits(magnitude) as f32 } else { 0.0 };
    costs[symbol % SYMBOLS] + plain
}
