//! The rows in which a tensor's indices are coded.

use super::{context::LANES, model::LAST_SHIFTS};
use crate::{DecodeError, byte_reader::ByteReader};

/// Size of a layout on the wire.
const LAYOUT_BYTES: usize = 6;

/// Widest row.
const MAX_COLS: usize = u16::MAX as usize;

/// Row width of tensors without a usable first dimension.
const FOLD: usize = 1024;

/// Fewest elements for which four lanes save more time than they cost bytes.
const MIN_FOR_LANES: usize = 4096;

/// Candidate strides: widths of small images.
const STRIDES: std::ops::RangeInclusive<usize> = 3..=128;

/// The shift before [`super::EntropyCoder::find_shift`] has searched for one.
const DEFAULT_SHIFT: u8 = 6;

/// Rows sampled to find the stride.
const SAMPLED_ROWS: usize = 16;

/// Parameters of the entropy coder that the stream carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLayout {
    /// Elements of a row; the last row may be shorter.
    pub cols: usize,
    /// Distance to the correlated element in the same row (the width of an image), or 0 for none.
    pub stride: usize,
    /// Rows coded in parallel: 1 to 4.
    pub lanes: usize,
    /// Adaptation shift of a model that has seen many symbols.
    pub shift: u8,
}

impl RowLayout {
    /// The layout of a tensor: one row per output (first dimension).
    pub fn new(shape: &[usize], count: usize) -> Self {
        let cols = match shape {
            [rows, rest @ ..] if *rows > 1 && !rest.is_empty() => count / rows,
            _ if count > 4 * FOLD => FOLD,
            _ => count,
        };
        let cols = if cols > MAX_COLS { FOLD } else { cols.max(1) };
        Self { cols, stride: 0, lanes: lanes_for(cols, count), shift: DEFAULT_SHIFT }
    }

    /// The layout of the first `count` integers alone.
    pub fn part(&self, count: usize) -> Self {
        let cols = self.cols.min(count.max(1));
        Self { cols, stride: 0, lanes: lanes_for(cols, count), ..*self }
    }

    /// Sets the stride at which signs agree most often.
    #[inline(always)]
    pub fn find_stride(&mut self, indices: &[i32], signs: &mut SignSample) {
        signs.sample(indices, self.cols);
        let longest = (self.cols / 2).min(*STRIDES.end());
        let mut best = (signs.nonzero() as i64 / 16, 0);
        for stride in *STRIDES.start()..=longest {
            let agreement = signs.agreement(stride);
            if agreement > best.0 {
                best = (agreement, stride);
            }
        }
        self.stride = best.1;
    }

    /// Appends it to the side information.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.cols as u16).to_le_bytes());
        out.extend_from_slice(&(self.stride as u16).to_le_bytes());
        out.extend_from_slice(&[self.lanes as u8, self.shift]);
    }

    /// Reads and checks the layout of `count` integers. The checks bound what decoding allocates.
    pub fn parse(count: usize, reader: &mut ByteReader<'_>) -> Result<Self, DecodeError> {
        let [c0, c1, s0, s1, lanes, shift] = reader.array::<LAYOUT_BYTES>()?;
        let cols = usize::from(u16::from_le_bytes([c0, c1]));
        let stride = usize::from(u16::from_le_bytes([s0, s1]));
        let lanes = usize::from(lanes);
        let cols_fit = (1..=count.max(1)).contains(&cols) && stride != 1 && stride <= cols;
        let lanes_fit = cols_fit && (1..=count.div_ceil(cols).clamp(1, LANES)).contains(&lanes);
        if !lanes_fit || !LAST_SHIFTS.contains(&shift) {
            return Err(DecodeError::Corrupt("its row layout is out of range"));
        }
        Ok(Self { cols, stride, lanes, shift })
    }
}

fn lanes_for(cols: usize, count: usize) -> usize {
    if count >= MIN_FOR_LANES && count / cols >= LANES { LANES } else { 1 }
}

/// Signs of sampled rows as bit sets; each row starts a new word.
#[derive(Debug, Default)]
pub struct SignSample {
    positive: Vec<u64>,
    negative: Vec<u64>,
    words: usize,
}

impl SignSample {
    #[inline(always)]
    fn sample(&mut self, indices: &[i32], cols: usize) {
        let rows = indices.len().div_ceil(cols).max(1);
        // One extra word per row, so that a shifted read stays inside the row.
        self.words = cols.div_ceil(64) + 1;
        self.positive.clear();
        self.negative.clear();
        for row in indices.chunks(cols).step_by(rows.div_ceil(SAMPLED_ROWS)) {
            let start = self.positive.len();
            self.positive.resize(start + self.words, 0);
            self.negative.resize(start + self.words, 0);
            for (column, index) in row.iter().enumerate() {
                let (word, bit) = (start + column / 64, column % 64);
                self.positive[word] |= u64::from(*index > 0) << bit;
                self.negative[word] |= u64::from(*index < 0) << bit;
            }
        }
    }

    fn nonzero(&self) -> u32 {
        self.positive.iter().chain(&self.negative).map(|word| word.count_ones()).sum()
    }

    /// Number of pairs at this distance with equal signs, minus those with opposite signs.
    #[inline(always)]
    fn agreement(&self, stride: usize) -> i64 {
        let (skip, shift) = (stride / 64, stride % 64);
        let rows = self.positive.chunks(self.words).zip(self.negative.chunks(self.words));
        rows.map(|(positive, negative)| {
            let shifted = |bits: &[u64], at: usize| {
                let word = |i: usize| bits.get(i).copied().unwrap_or(0);
                word(at + skip) >> shift | (word(at + skip + 1) << 1) << (63 - shift)
            };
            let mut sum = 0;
            for at in 0..self.words {
                let (p, n) = (shifted(positive, at), shifted(negative, at));
                let same = positive[at] & p | negative[at] & n;
                let other = positive[at] & n | negative[at] & p;
                sum += i64::from(same.count_ones()) - i64::from(other.count_ones());
            }
            sum
        })
        .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_in_the_signs_is_found() {
        let cols = 784;
        let indices: Vec<i32> = (0..40 * cols)
            .map(|i| {
                let (row, column) = (i / cols, i % cols);
                let hash = ((column % 28) * 7919 + row * 104_729) % 11;
                [1, -1, 0][hash % 3]
            })
            .collect();
        let mut layout = RowLayout::new(&[40, cols], indices.len());
        assert_eq!((layout.cols, layout.lanes), (cols, 4));
        layout.find_stride(&indices, &mut SignSample::default());
        assert_eq!(layout.stride, 28);
    }

    #[test]
    fn every_shape_has_a_layout() {
        assert_eq!(
            RowLayout::new(&[10], 10),
            RowLayout { cols: 10, stride: 0, lanes: 1, shift: DEFAULT_SHIFT }
        );
        assert_eq!(RowLayout::new(&[1 << 24], 1 << 24).cols, FOLD);
        assert_eq!(RowLayout::new(&[32, 3, 3, 3], 864).cols, 27);
        assert_eq!(RowLayout::new(&[2, 100_000], 200_000).cols, FOLD);
        assert_eq!(RowLayout::new(&[0, 5], 0).cols, 1);
        assert_eq!(RowLayout::new(&[], 1).cols, 1);
    }
}
