//! Reconstruction points: offsets from the multiples of the step to the centroids of the cells.

use crate::{DecodeError, byte_reader::ByteReader};

/// Number of offsets in a stream: for level 1, level 2, and all above.
pub const COUNT: usize = 3;

/// Unit of the offsets, in steps.
const UNIT: f32 = 1.0 / 64.0;

/// Offsets of the reconstruction points, away from zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offsets([i8; COUNT]);

impl Offsets {
    /// Upper bound of an offset, in steps.
    pub const LARGEST: f32 = 2.0;

    /// Turns levels into values, clamped to `most`. Only the last multiplication rounds, so every platform
    /// gets the same bits.
    #[inline(always)]
    pub fn values(self, levels: &[i32], most: i32, step: f32, values: &mut [f32]) {
        let [first, second, others] = self.0.map(|offset| f32::from(offset) * UNIT);
        for (value, level) in values.iter_mut().zip(levels) {
            // Selections instead of a table look-up: they vectorise.
            let magnitude = level.unsigned_abs().min(most as u32) as i32;
            let offset = if magnitude == 1 { first } else { others };
            let offset = if magnitude == 2 { second } else { offset };
            let offset = if magnitude == 0 { 0.0 } else { offset };
            let position = magnitude as f32 + offset;
            *value = (if *level < 0 { -position } else { position }) * step;
        }
    }

    /// Appends them to the side information.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.0.map(|offset| offset as u8));
    }

    /// Reads them; every byte is a valid offset.
    pub fn parse(reader: &mut ByteReader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(reader.array::<COUNT>()?.map(|byte| byte as i8)))
    }
}

/// Accumulates the centroids of the cells, and the squared error.
#[derive(Debug, Clone, Default)]
pub struct Centroids {
    /// By class of levels; class 0 is level 0, whose reconstruction point is fixed.
    excess: [f64; COUNT + 1],
    squares: [f64; COUNT + 1],
    number: [u64; COUNT + 1],
}

impl Centroids {
    /// Adds an element: its magnitude in steps, and the magnitude of its level.
    #[inline(always)]
    pub fn add(&mut self, position: f32, level: u32) {
        let excess = f64::from(position - level as f32);
        // Most levels are zero, and class 0 needs one sum only.
        if level == 0 {
            self.squares[0] += excess * excess;
            return;
        }
        let class = (level as usize).min(COUNT);
        self.excess[class] += excess;
        self.squares[class] += excess * excess;
        self.number[class] += 1;
    }

    /// Adds elements of one class: sums of their excess and its squares, in steps, and their number.
    pub fn add_sums(&mut self, class: usize, excess: f64, squares: f64, number: u64) {
        self.excess[class] += excess;
        self.squares[class] += squares;
        self.number[class] += number;
    }

    /// Adds the sums of another part of a tensor.
    pub fn merge(&mut self, part: &Self) {
        for class in 0..=COUNT {
            self.add_sums(class, part.excess[class], part.squares[class], part.number[class]);
        }
    }

    /// The centroids, rounded to offsets.
    pub fn offsets(&self) -> Offsets {
        let mut offsets = [0; COUNT];
        for ((offset, excess), number) in offsets.iter_mut().zip(&self.excess[1..]).zip(&self.number[1..]) {
            if *number > 0 {
                *offset = (excess / *number as f64 / f64::from(UNIT)).round().clamp(-48.0, 48.0) as i8;
            }
        }
        Offsets(offsets)
    }

    /// Total squared error with these offsets, in squared steps.
    pub fn error(&self, offsets: &Offsets) -> f64 {
        let mut error = self.squares[0];
        for (class, offset) in (1..).zip(offsets.0) {
            let offset = f64::from(offset) * f64::from(UNIT);
            error += self.squares[class] - 2.0 * offset * self.excess[class];
            error += offset * offset * self.number[class] as f64;
        }
        error
    }
}
