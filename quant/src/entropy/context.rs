//! What predicts an index: its neighbours in the row, and the column's recent past.
//!
//! A row of a weight's delta belongs to one output, a column to one input. Inputs differ by orders of
//! magnitude in how much they move their weights, and do so in every row: the running mean of the
//! column says how large the next index may be. Within a row, neighbours share their sign, above all
//! those that are one image row apart, which is what the grid's stride is for.

/// Magnitudes count up to this.
const CLAMP: i32 = 40;

/// Contexts without the trellis; with it there are twice as many.
pub const CONTEXTS: usize = COLUMN_CLASSES * NEAR_CLASSES * SIGN_CLASSES;

const COLUMN_CLASSES: usize = COLUMN_STEPS.len() + 1;
const NEAR_CLASSES: usize = NEAR_STEPS.len() + 1;
const SIGN_CLASSES: usize = SIGN_STEPS.len() + 1;

/// Where a higher class of the column's mean begins, in sixteenths.
const COLUMN_STEPS: [u16; 5] = [1, 2, 5, 9, 20];
/// Where a higher class of the neighbours' weighted magnitude begins.
const NEAR_STEPS: [u16; 11] = [1, 6, 10, 15, 22, 32, 46, 66, 100, 160, 280];
/// Where a higher class of the predicted sign's strength begins.
const SIGN_STEPS: [u16; 5] = [1, 4, 8, 14, 26];

/// More than any value that is looked up, and a power of two.
const TABLE: usize = 1024;

/// The class of every value, times `factor`.
const fn classes(steps: &[u16], factor: u16) -> [u16; TABLE] {
    let mut table = [0; TABLE];
    let mut value = 0;
    while value < TABLE {
        let mut class = 0;
        while class < steps.len() && steps[class] as usize <= value {
            class += 1;
        }
        table[value] = class as u16 * factor;
        value += 1;
    }
    table
}

static COLUMN_CLASS: [u16; TABLE] = classes(&COLUMN_STEPS, (NEAR_CLASSES * SIGN_CLASSES) as u16);
static NEAR_CLASS: [u16; TABLE] = classes(&NEAR_STEPS, SIGN_CLASSES as u16);
static SIGN_CLASS: [u16; TABLE] = classes(&SIGN_STEPS, 1);

/// The context of one index.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Which model, below [`CONTEXTS`].
    pub model: usize,
    /// The predicted sign is negative: signs are coded the other way round.
    pub flip: bool,
}

/// A row while it is walked.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// The indices so far, clamped, behind `stride` zeros.
    values: Vec<i8>,
    stride: usize,
    left: i32,
    left2: i32,
}

impl Row {
    /// Starts a row of `cols` columns. A stride of 0 means that there is none.
    pub fn start(&mut self, cols: usize, stride: usize) {
        // Without a stride, what lies that far back must be zero: before the row's first column.
        self.stride = if stride == 0 { cols + 1 } else { stride };
        self.values.clear();
        self.values.resize(cols + self.stride + 1, 0);
        (self.left, self.left2) = (0, 0);
    }

    /// Goes back to the first column; the values ahead of the walk are never read.
    #[inline(always)]
    pub fn restart(&mut self) {
        (self.left, self.left2) = (0, 0);
    }

    /// The context at `column`, given the running mean of the column.
    #[inline(always)]
    pub fn context(&self, column: usize, mean: u16) -> Context {
        let far = i32::from(self.values[column]);
        let far_next = i32::from(self.values[column + 1]);
        let near = 5 * (self.left.abs() + far.abs()) + 2 * (self.left2.abs() + far_next.abs());
        let sign = 5 * (self.left + far) + 2 * (self.left2 + far_next);
        let model = COLUMN_CLASS[mean as usize % TABLE]
            + NEAR_CLASS[near as usize % TABLE]
            + SIGN_CLASS[sign.unsigned_abs() as usize % TABLE];
        Context { model: usize::from(model), flip: sign < 0 }
    }

    /// Takes the index at `column` over, and moves the column's mean.
    #[inline(always)]
    pub fn push(&mut self, column: usize, index: i32, mean: &mut u16) {
        let value = index.clamp(-CLAMP, CLAMP);
        self.values[column + self.stride] = value as i8;
        (self.left2, self.left) = (self.left, value);
        *mean = *mean - *mean / 4 + 4 * value.unsigned_abs() as u16;
    }
}
