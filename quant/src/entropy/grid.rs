//! How a tensor's indices are laid out for coding.

use super::{context::LANES, model::LAST_SHIFTS};
use crate::{DecodeError, reader::Reader};

/// Bytes of a grid on the wire.
const GRID_BYTES: usize = 6;

/// Widest row.
const MAX_COLS: usize = u16::MAX as usize;

/// The width that a vector without rows of its own is folded to.
const FOLD: usize = 1024;

/// Fewest elements that are worth four lanes.
const MIN_FOR_LANES: usize = 4096;

/// Strides that are looked at: image rows are no wider.
const STRIDES: std::ops::RangeInclusive<usize> = 3..=128;

/// The shift of a grid for which none has been looked for.
const USUAL_SHIFT: u8 = 6;

/// Rows in which a stride is looked for.
const SAMPLED_ROWS: usize = 16;

/// Rows, columns and what else both sides must agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Columns of a row; the last row may be shorter.
    pub cols: usize,
    /// Distance of the related element in the same row, or 0 if there is none.
    pub stride: usize,
    /// Rows that are coded side by side: 1 to 4.
    pub lanes: usize,
    /// The shift that the models end up with.
    pub shift: u8,
}

impl Grid {
    /// The grid for a tensor: one row per output.
    pub fn new(shape: &[usize], count: usize) -> Self {
        let cols = match shape {
            [rows, rest @ ..] if *rows > 1 && !rest.is_empty() => count / rows,
            _ if count > 4 * FOLD => FOLD,
            _ => count,
        };
        let cols = if cols > MAX_COLS { FOLD } else { cols.max(1) };
        let lanes = if count >= MIN_FOR_LANES && count / cols >= LANES { LANES } else { 1 };
        Self { cols, stride: 0, lanes, shift: USUAL_SHIFT }
    }

    /// Finds the stride at which signs agree best.
    #[inline(always)]
    pub fn find_stride(&mut self, indices: &[i32], signs: &mut Signs) {
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
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.cols as u16).to_le_bytes());
        out.extend_from_slice(&(self.stride as u16).to_le_bytes());
        out.extend_from_slice(&[self.lanes as u8, self.shift]);
    }

    /// Reads the grid of `count` integers and checks it: what decoding allocates follows from it.
    pub fn parse(count: usize, reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let [c0, c1, s0, s1, lanes, shift] = reader.array::<GRID_BYTES>()?;
        let cols = usize::from(u16::from_le_bytes([c0, c1]));
        let stride = usize::from(u16::from_le_bytes([s0, s1]));
        let lanes = usize::from(lanes);
        let cols_fit = (1..=count.max(1)).contains(&cols) && stride != 1 && stride <= cols;
        let lanes_fit = cols_fit && (1..=count.div_ceil(cols).clamp(1, LANES)).contains(&lanes);
        if !lanes_fit || !LAST_SHIFTS.contains(&shift) {
            return Err(DecodeError::Corrupt("its grid is out of range"));
        }
        Ok(Self { cols, stride, lanes, shift })
    }
}

/// Signs of some rows as bits, each row from a new word on.
#[derive(Debug, Default)]
pub struct Signs {
    positive: Vec<u64>,
    negative: Vec<u64>,
    words: usize,
}

impl Signs {
    #[inline(always)]
    fn sample(&mut self, indices: &[i32], cols: usize) {
        let rows = indices.len().div_ceil(cols).max(1);
        // One word more than needed, so that a shifted read stays inside the row.
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

    /// Pairs at this distance with one sign, less those with two.
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
        let mut grid = Grid::new(&[40, cols], indices.len());
        assert_eq!((grid.cols, grid.lanes), (cols, 4));
        grid.find_stride(&indices, &mut Signs::default());
        assert_eq!(grid.stride, 28);
    }

    #[test]
    fn every_shape_has_a_grid() {
        assert_eq!(Grid::new(&[10], 10), Grid { cols: 10, stride: 0, lanes: 1, shift: USUAL_SHIFT });
        assert_eq!(Grid::new(&[1 << 24], 1 << 24).cols, FOLD);
        assert_eq!(Grid::new(&[32, 3, 3, 3], 864).cols, 27);
        assert_eq!(Grid::new(&[2, 100_000], 200_000).cols, FOLD);
        assert_eq!(Grid::new(&[0, 5], 0).cols, 1);
        assert_eq!(Grid::new(&[], 1).cols, 1);
    }
}
