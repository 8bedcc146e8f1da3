//! How large tensors are cut into parts that threads work on side by side.

use crate::limits::CHUNK;
use std::ops::Range;

/// Elements from which a tensor is cut.
const LARGE: usize = 1 << 20;

/// Spans of a segment's length.
const SPANS: usize = 4;

/// Most spans of a tensor: bounds the memory of their partial results.
const MAX_SPANS: usize = 64;

/// Where tensors are cut. Shorter ones are encoded as a whole.
#[derive(Debug, Clone, Copy)]
pub struct Split {
    /// Elements from which a tensor is cut; about the length of a segment.
    pub large: usize,
}

impl Default for Split {
    fn default() -> Self {
        Self { large: LARGE }
    }
}

impl Split {
    /// Whether a tensor is cut.
    pub fn is_large(&self, count: usize) -> bool {
        count >= self.large
    }

    /// Elements of a span, in which quantizers sum and choose codes: whole chunks and blocks.
    pub fn span(&self, count: usize) -> usize {
        if !self.is_large(count) {
            return count.max(1);
        }
        (self.large / SPANS).max(count.div_ceil(MAX_SPANS)).next_multiple_of(4 * CHUNK)
    }

    /// Elements of a segment, which the entropy coder codes by itself: whole rows of `cols`, mostly whole
    /// groups of `lanes` rows. `count` if there is one segment only.
    pub fn segment(&self, count: usize, cols: usize, lanes: usize) -> usize {
        if !self.is_large(count) {
            return count;
        }
        // An even number of segments keeps two threads equally busy.
        let segments = count.div_ceil(self.large).next_multiple_of(2);
        let length = count.div_ceil(segments);
        let group = cols * lanes;
        length.next_multiple_of(if 8 * group <= length { group } else { cols }).min(count)
    }
}

/// A part of a tensor of an update.
#[derive(Debug, Clone)]
pub struct Unit {
    /// Which tensor.
    pub tensor: usize,
    /// Its place among the values of all tensors.
    pub range: Range<usize>,
}

impl Unit {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.range.len()
    }
}

/// Number of elements of a tensor.
pub fn count_of(shape: &[usize]) -> usize {
    shape.iter().product()
}

/// Cuts every tensor into units of `length(shape, count)` elements; the last one may be shorter. A tensor
/// without elements is one unit.
pub fn units(shapes: &[Vec<usize>], length: impl Fn(&[usize], usize) -> usize) -> Vec<Unit> {
    let mut units = Vec::with_capacity(shapes.len());
    let mut start = 0;
    for (tensor, shape) in shapes.iter().enumerate() {
        let count = count_of(shape);
        let length = length(shape, count).max(1);
        let end = start + count;
        for part in 0..count.div_ceil(length).max(1) {
            let first = start + part * length;
            units.push(Unit { tensor, range: first..end.min(first + length) });
        }
        start = end;
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_cover_every_tensor() {
        let split = Split { large: 4096 };
        let shapes = [vec![3, 5], vec![], vec![0, 4], vec![130, 77], vec![4095], vec![9000]];
        let total: usize = shapes.iter().map(|shape| count_of(shape)).sum();
        for spans in [false, true] {
            let found = units(&shapes, |shape, count| match shape {
                _ if spans => split.span(count),
                [_, cols] => split.segment(count, *cols, 4),
                _ => split.segment(count, 1024, 4),
            });
            let mut at = 0;
            for unit in &found {
                assert_eq!(unit.range.start, at);
                at = unit.range.end;
            }
            assert_eq!(at, total);
            for (tensor, shape) in shapes.iter().enumerate() {
                let parts = found.iter().filter(|unit| unit.tensor == tensor).count();
                assert_eq!(parts > 1, shape.iter().product::<usize>() > 4096, "tensor {tensor}");
            }
        }
    }

    #[test]
    fn segments_are_whole_rows_of_about_the_same_length() {
        let split = Split::default();
        for (count, cols) in [(1 << 20, 1024), (10_000_000, 1024), (784 * 5000, 784), (65_535 * 33, 65_535)] {
            let segment = split.segment(count, cols, 4);
            assert!(segment.is_multiple_of(cols) && segment <= LARGE + 4 * cols && 4 * segment >= LARGE);
            assert!(count.div_ceil(segment) >= 2);
        }
        assert_eq!(split.segment(LARGE - 1, 1024, 4), LARGE - 1);
    }
}
