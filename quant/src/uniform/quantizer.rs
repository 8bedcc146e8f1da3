//! Quantizes an update with one step: indices, centroids, error.

use super::{
    SideInfo,
    magnitudes::energy,
    offsets::Centroids,
    round::{measure, round},
    viterbi::Viterbi,
};
use crate::{
    entropy::{IntegerCoder, Quantization, RowLayout, TrellisState},
    simd::vectorized,
    split::{Split, Unit, count_of, units},
    threads::Threads,
};
use std::cmp::Reverse;

/// An update, and where it is cut for the threads.
#[derive(Debug)]
pub struct UniformUpdate<'u> {
    /// The values of all tensors.
    pub x: &'u [f32],
    /// Their shapes.
    pub shapes: &'u [Vec<usize>],
    /// Parts for which errors are summed.
    pub spans: Vec<Unit>,
    /// Parts that are coded by themselves: a tensor, or a segment of it.
    pub segments: Vec<Unit>,
    /// Length of a span of all values together.
    pub span: usize,
    /// What the parts are spread over.
    pub threads: &'u Threads,
}

impl<'u> UniformUpdate<'u> {
    /// Cuts the tensors.
    pub fn new(x: &'u [f32], shapes: &'u [Vec<usize>], split: Split, threads: &'u Threads) -> Self {
        let spans = units(shapes, |_, count| split.span(count));
        let segments = units(shapes, |shape, count| {
            let layout = RowLayout::new(shape, count);
            split.segment(count, layout.cols, layout.lanes)
        });
        Self { x, shapes, spans, segments, span: split.span(x.len()), threads }
    }

    /// The values of a part.
    pub fn values(&self, unit: &Unit) -> &'u [f32] {
        &self.x[unit.range.clone()]
    }

    /// The layout of a part's rows, without a stride.
    pub fn layout(&self, unit: &Unit) -> RowLayout {
        let shape = &self.shapes[unit.tensor];
        RowLayout::new(shape, count_of(shape)).part(unit.len())
    }
}

/// Quantizes; its buffers are reused.
#[derive(Debug, Default)]
pub struct Quantizer {
    /// Under the trellis the indices of all values. Other indices are computed again when they are coded.
    indices: Vec<i32>,
    /// One for each thread.
    viterbis: Vec<Viterbi>,
}

/// What quantization with one step gives.
#[derive(Debug)]
pub struct Quantized {
    /// The side information of each tensor.
    pub sides: Vec<SideInfo>,
    /// Under the trellis the layout of each segment; empty otherwise.
    layouts: Vec<RowLayout>,
    /// Total squared error.
    pub error: f64,
    step: f32,
}

/// Statistics of a part of a tensor.
#[derive(Debug, Clone, Default)]
struct Part {
    centroids: Centroids,
    /// Magnitude of the largest index.
    largest: u32,
    /// Squared norm; only for a step of zero.
    energy: f64,
}

impl Quantizer {
    /// Quantizes all tensors with one step.
    pub fn quantize(
        &mut self,
        update: &UniformUpdate<'_>,
        step: f32,
        rdo: bool,
        coders: &mut [IntegerCoder],
    ) -> Quantized {
        if rdo {
            return self.quantize_trellis(update, step, coders);
        }
        let mut parts = vec![Part::default(); update.spans.len()];
        update.threads.each(update.spans.iter().zip(&mut parts), |(unit, part)| {
            let x = update.values(unit);
            vectorized(
                #[inline(always)]
                || {
                    (part.centroids, part.largest) = measure(x, step);
                    part.energy = if step > 0.0 { 0.0 } else { energy(x) };
                },
            );
        });
        let (sides, error) = sides(&update.spans, &parts, step, Quantization::Scalar);
        Quantized { sides, layouts: Vec::new(), error, step }
    }

    fn quantize_trellis(
        &mut self,
        update: &UniformUpdate<'_>,
        step: f32,
        coders: &mut [IntegerCoder],
    ) -> Quantized {
        let segments = &update.segments;
        self.indices.resize(update.x.len(), 0);
        self.viterbis.resize_with(coders.len(), Viterbi::default);
        let mut layouts: Vec<_> = segments.iter().map(|unit| update.layout(unit)).collect();
        let mut parts = vec![Part::default(); segments.len()];
        let mut rest = &mut self.indices[..];
        let mut items = Vec::with_capacity(segments.len());
        for ((unit, layout), part) in segments.iter().zip(&mut layouts).zip(&mut parts) {
            let (indices, tail) = rest.split_at_mut(unit.len());
            rest = tail;
            items.push((unit, layout, part, indices));
        }
        // The longest first, so that no thread begins one when the others are done.
        items.sort_by_key(|(unit, ..)| Reverse(unit.len()));
        let mut scratch: Vec<_> = self.viterbis.iter_mut().zip(coders).collect();
        update.threads.run(
            &mut scratch,
            items.into_iter(),
            |(viterbi, coder), (unit, layout, part, indices)| {
                let x = update.values(unit);
                vectorized(
                    #[inline(always)]
                    || {
                        round(x, 2.0 * step, indices);
                        // The Viterbi search codes as it goes, so it needs the final layout.
                        layout.find_stride(indices, &mut coder.signs);
                        if step > 0.0 {
                            viterbi.quantize(x, step, layout, &mut coder.coder, indices);
                        }
                        (part.centroids, part.largest) = trellis_centroids(x, step, layout, indices);
                        part.energy = if step > 0.0 { 0.0 } else { energy(x) };
                    },
                );
            },
        );
        let (sides, error) = sides(segments, &parts, step, Quantization::Trellis);
        Quantized { sides, layouts, error, step }
    }

    /// The first `count` indices of a segment; `buffer` may be used for them.
    pub fn indices<'i>(
        &'i self,
        update: &UniformUpdate<'_>,
        quantized: &Quantized,
        segment: usize,
        count: usize,
        buffer: &'i mut Vec<i32>,
    ) -> &'i [i32] {
        let start = update.segments[segment].range.start;
        if quantized.is_trellis() {
            return &self.indices[start..start + count];
        }
        buffer.resize(count, 0);
        vectorized(
            #[inline(always)]
            || round(&update.x[start..start + count], quantized.step, buffer),
        );
        buffer
    }
}

impl Quantized {
    /// The layout of a segment with these first indices.
    pub fn layout(
        &self,
        update: &UniformUpdate<'_>,
        segment: usize,
        indices: &[i32],
        coder: &mut IntegerCoder,
    ) -> RowLayout {
        self.layouts.get(segment).copied().unwrap_or_else(|| {
            let mut layout = update.layout(&update.segments[segment]);
            coder.find_stride(&mut layout, indices);
            layout
        })
    }

    fn is_trellis(&self) -> bool {
        !self.layouts.is_empty()
    }
}

/// The side information of every tensor, and the total squared error.
fn sides(units: &[Unit], parts: &[Part], step: f32, quantization: Quantization) -> (Vec<SideInfo>, f64) {
    let (mut sides, mut total) = (Vec::new(), 0.0);
    let mut parts = parts.iter();
    for units in units.chunk_by(|a, b| a.tensor == b.tensor) {
        let mut whole = parts.next().cloned().unwrap_or_default();
        for part in parts.by_ref().take(units.len() - 1) {
            whole.centroids.merge(&part.centroids);
            whole.largest = whole.largest.max(part.largest);
            whole.energy += part.energy;
        }
        let Part { centroids, largest, energy } = whole;
        let offsets = centroids.offsets();
        // A step of zero decodes to zeros.
        total +=
            if step > 0.0 { centroids.error(&offsets) * f64::from(step) * f64::from(step) } else { energy };
        sides.push(SideInfo { step, largest, offsets, quantization });
    }
    (sides, total)
}

/// Centroids of the cells under the trellis, and the magnitude of the largest index.
#[inline(always)]
fn trellis_centroids(x: &[f32], step: f32, layout: &RowLayout, values: &[i32]) -> (Centroids, u32) {
    let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    let (mut centroids, mut largest) = (Centroids::default(), 0);
    for (x, values) in x.chunks(layout.cols).zip(values.chunks(layout.cols)) {
        let mut state = TrellisState::default();
        for (x, value) in x.iter().zip(values) {
            let level = Quantization::Trellis.level(state.quantizer(), *value);
            state.advance(*value);
            largest = largest.max(value.unsigned_abs());
            centroids.add((x * inverse).abs(), level.unsigned_abs());
        }
    }
    (centroids, largest)
}
