//! What predicts an index: its neighbours in the row, and the column's recent past.
//!
//! A row of a weight's delta belongs to one output, a column to one input. Inputs differ by orders of
//! magnitude in how much they move their weights, and do so in every row: the running mean of the
//! column says how large the next index may be. Within a row, neighbours share their sign, above all
//! those that are one image row apart, which is what the grid's stride is for.
//!
//! The contexts of four rows are computed at once, in vectors of eight 16-bit numbers.

use bytemuck::cast;
use wide::{i8x16, i16x8, u8x16};

/// Rows side by side.
pub const LANES: usize = 4;

/// Magnitudes count up to this.
const CLAMP: i32 = 40;

/// Contexts without the trellis; with it there are twice as many.
pub const CONTEXTS: usize = COLUMN_CLASSES * NEAR_CLASSES * SIGN_CLASSES;

const COLUMN_CLASSES: usize = COLUMN_STEPS.len() + 1;
const NEAR_CLASSES: usize = NEAR_STEPS.len() + 1;
const SIGN_CLASSES: usize = SIGN_STEPS.len() + 1;

/// Where a higher class of the column's mean begins, in sixteenths.
const COLUMN_STEPS: [i16; 5] = [1, 2, 5, 9, 20];
/// Where a higher class of the neighbours' weighted magnitude begins.
const NEAR_STEPS: [i16; 11] = [1, 6, 10, 15, 22, 32, 46, 66, 100, 160, 280];
/// Where a higher class of the predicted sign's strength begins.
const SIGN_STEPS: [i16; 5] = [1, 4, 8, 14, 26];

/// Clamps an index to what contexts are made of.
#[inline(always)]
pub fn clamp(index: i32) -> i16 {
    index.clamp(-CLAMP, CLAMP) as i16
}

/// The same for indices in 16 bits.
#[inline(always)]
pub fn clamped(indices: i16x8) -> i16x8 {
    indices.max(i16x8::splat(-CLAMP as i16)).min(i16x8::splat(CLAMP as i16))
}

/// A clamped index of each row: four magnitudes, then the four numbers themselves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Indices(i16x8);

impl Indices {
    /// From clamped indices in the upper half; what the lower half holds does not matter.
    #[inline(always)]
    pub fn new(clamped: i16x8) -> Self {
        let [_, magnitudes]: [u64; 2] = cast(clamped.abs());
        let [_, indices]: [u64; 2] = cast(clamped);
        Self(cast([magnitudes, indices]))
    }
}

/// The same in four bytes, for those that are far back.
#[derive(Debug, Clone, Copy, Default)]
pub struct Packed([u8; LANES]);

impl Packed {
    /// Packs them; magnitudes up to 40 fit a byte.
    #[inline(always)]
    pub fn new(indices: Indices) -> Self {
        let [_, indices]: [u64; 2] = cast(indices.0);
        let bytes = i8x16::from_i16x16_saturate(cast([indices, 0, 0, 0]));
        let [first, ..]: [u32; 4] = cast(bytes);
        Self(first.to_le_bytes())
    }

    /// Unpacks them.
    #[inline(always)]
    pub fn unpack(self) -> Indices {
        let bytes: u8x16 = cast([0, u32::from_le_bytes(self.0), 0, 0]);
        Indices::new((i16x8::from_u8x16_low(bytes) << 8) >> 8)
    }
}

/// The neighbours of one element of each row.
#[derive(Debug, Clone, Copy)]
pub struct Neighbours {
    /// The index before.
    pub left: Indices,
    /// The one before that.
    pub left2: Indices,
    /// The index one stride before.
    pub far: Indices,
    /// The one after that.
    pub far_next: Indices,
}

/// The contexts of one element of each row.
#[derive(Debug, Clone, Copy)]
pub struct Contexts {
    /// Which model, below [`CONTEXTS`]: four numbers of 16 bits.
    pub models: u64,
    /// In the upper half, -1 where the predicted sign is negative: signs are coded the other way
    /// round. 0 elsewhere.
    pub flips: i16x8,
}

/// The contexts, given the neighbours and the running means of the columns (lower half).
#[inline(always)]
pub fn contexts(around: &Neighbours, means: i16x8) -> Contexts {
    let Neighbours { left, left2, far, far_next } = around;
    let (close, next) = (left.0 + far.0, left2.0 + far_next.0);
    // The lower half sums magnitudes, the upper half signed numbers.
    let sums: i16x8 = (close << 2) + close + next + next;
    let strengths = sums.abs();
    // A comparison gives -1 where it holds. Three sums side by side, or each would wait for the one before.
    let mut counts = [i16x8::default(); 3];
    for (k, steps) in NEAR_AND_SIGN_STEPS.into_iter().enumerate() {
        counts[k % 3] += strengths.simd_gt(i16x8::new(steps));
    }
    let mut classes: i16x8 = counts[0] + counts[1] + counts[2];
    let mut columns = i16x8::default();
    for step in COLUMN_STEPS {
        columns -= means.simd_gt(i16x8::splat(step - 1));
    }
    let per_near = SIGN_CLASSES as i16;
    classes *= i16x8::new([-per_near, -per_near, -per_near, -per_near, -1, -1, -1, -1]);
    columns *= i16x8::splat((NEAR_CLASSES * SIGN_CLASSES) as i16);
    let [near, sign]: [u64; 2] = cast(classes);
    let [column, _]: [u64; 2] = cast(columns);
    // No field of 16 bits overflows into the next. Sums of magnitudes are never negative.
    Contexts { models: near + sign + column, flips: sums.is_negative() }
}

/// One below each step, of the neighbours in the lower half and of the sign in the upper.
const NEAR_AND_SIGN_STEPS: [[i16; 8]; NEAR_STEPS.len()] = {
    let mut steps = [[i16::MAX; 8]; NEAR_STEPS.len()];
    let mut k = 0;
    while k < NEAR_STEPS.len() {
        let mut lane = 0;
        while lane < LANES {
            steps[k][lane] = NEAR_STEPS[k] - 1;
            if k < SIGN_STEPS.len() {
                steps[k][LANES + lane] = SIGN_STEPS[k] - 1;
            }
            lane += 1;
        }
        k += 1;
    }
    steps
};

/// The running means (lower half) after the columns' next indices; they stay below 16 x 40.
#[inline(always)]
pub fn learn(means: i16x8, indices: Indices) -> i16x8 {
    means - (means >> 2) + (indices.0 << 2)
}
