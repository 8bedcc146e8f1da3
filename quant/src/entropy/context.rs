//! The context that predicts an index: its neighbours in the row, and the column's running mean.
//!
//! A row of a weight's delta belongs to one output, a column to one input. Inputs differ by orders of
//! magnitude in how much their weights change, in every row alike: the running mean of the column
//! predicts the magnitude of the next index. Within a row, neighbours tend to share their sign, above all
//! those one image row apart, at the layout's stride.
//!
//! The contexts of four rows are computed together, in vectors of eight 16-bit numbers.

use bytemuck::cast;
use wide::{i8x16, i16x8, u8x16};

/// Rows coded in parallel.
pub const LANES: usize = 4;

/// Contexts see magnitudes up to this.
const CLAMP: i32 = 40;

/// Number of contexts; under the trellis each quantizer has as many.
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

/// Clamps an index to the range that contexts see.
#[inline(always)]
pub fn clamp(index: i32) -> i16 {
    index.clamp(-CLAMP, CLAMP) as i16
}

/// [`clamp`] for a vector.
#[inline(always)]
pub fn clamp_all(indices: i16x8) -> i16x8 {
    indices.max(i16x8::splat(-CLAMP as i16)).min(i16x8::splat(CLAMP as i16))
}

/// One clamped index of each row: four magnitudes (lower half), then the four signed numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct LaneIndices(i16x8);

impl LaneIndices {
    /// From clamped indices in the upper half; the lower half is ignored.
    #[inline(always)]
    pub fn new(clamped: i16x8) -> Self {
        let [_, magnitudes]: [u64; 2] = cast(clamped.abs());
        let [_, indices]: [u64; 2] = cast(clamped);
        Self(cast([magnitudes, indices]))
    }
}

/// [`LaneIndices`] in four bytes, for the ring of past columns.
#[derive(Debug, Clone, Copy, Default)]
pub struct PackedIndices([u8; LANES]);

impl PackedIndices {
    /// Packs; clamped indices fit a byte.
    #[inline(always)]
    pub fn new(indices: LaneIndices) -> Self {
        let [_, indices]: [u64; 2] = cast(indices.0);
        let bytes = i8x16::from_i16x16_saturate(cast([indices, 0, 0, 0]));
        let [first, ..]: [u32; 4] = cast(bytes);
        Self(first.to_le_bytes())
    }

    /// Unpacks.
    #[inline(always)]
    pub fn unpack(self) -> LaneIndices {
        let bytes: u8x16 = cast([0, u32::from_le_bytes(self.0), 0, 0]);
        LaneIndices::new((i16x8::from_u8x16_low(bytes) << 8) >> 8)
    }
}

/// The coded neighbours of one element of each row.
#[derive(Debug, Clone, Copy)]
pub struct Neighbours {
    /// One column back.
    pub left: LaneIndices,
    /// Two columns back.
    pub left2: LaneIndices,
    /// One stride back.
    pub far: LaneIndices,
    /// One stride back, plus one column.
    pub far_next: LaneIndices,
}

/// The contexts of one element of each row.
#[derive(Debug, Clone, Copy)]
pub struct Contexts {
    /// Numbers of the models, below [`CONTEXTS`]: four fields of 16 bits.
    pub models: u64,
    /// In the upper half, -1 where the predicted sign is negative, which swaps the symbols of the two
    /// signs; 0 elsewhere.
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
    // A comparison gives -1 for true. Three partial sums shorten the chain of dependent additions.
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

/// Each step minus one, for `>`: of the neighbours in the lower half, of the sign in the upper.
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

/// Updates the running means of the columns (lower half) by their next indices. Means stay below 16 x 40.
#[inline(always)]
pub fn update_means(means: i16x8, indices: LaneIndices) -> i16x8 {
    means - (means >> 2) + (indices.0 << 2)
}
