//! The state machine of dependent quantization.
//!
//! Two scalar quantizers of twice the step share the real line: one has the even multiples, the other
//! the odd ones and zero. The parity of each index drives a machine of eight states, and the state
//! picks the quantizer of the next index (trellis-coded quantization, Marcellin and Fischer 1990;
//! entropy-coded and sign-symmetric as in Joshi, Crump and Fischer 1995 and in VVC). An encoder that
//! plans ahead can so place its points almost as densely as vectors would.

/// States.
pub const STATES: usize = 8;

/// The next state, by state and parity of the index.
pub const NEXT: [[u8; 2]; STATES] = [[0, 2], [5, 7], [1, 3], [6, 4], [2, 0], [4, 6], [3, 1], [7, 5]];

/// What the coded integers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Indices {
    /// Each stands for itself.
    Scalar,
    /// Indices of the quantizer that the state picks.
    Trellis,
}

impl Indices {
    /// Quantizers that take part.
    pub const fn quantizers(self) -> usize {
        match self {
            Self::Scalar => 1,
            Self::Trellis => 2,
        }
    }

    /// The multiple of the step that `index` of `quantizer` stands for.
    #[inline(always)]
    pub const fn level(self, quantizer: usize, index: i32) -> i32 {
        match self {
            Self::Scalar => index,
            Self::Trellis => 2 * index - index.signum() * quantizer as i32,
        }
    }
}

/// The machine of one row.
#[derive(Debug, Clone, Copy, Default)]
pub struct Machine {
    state: u8,
}

impl Machine {
    /// The quantizer of the next index.
    #[inline(always)]
    pub fn quantizer(self) -> usize {
        quantizer(self.state as usize)
    }

    /// Takes an index over.
    #[inline(always)]
    pub fn advance(&mut self, index: i32) {
        self.state = NEXT[self.state as usize % STATES][index as usize & 1];
    }
}

/// The quantizer of a state: 0 has the even multiples of the step, 1 the odd ones and zero.
#[inline(always)]
pub const fn quantizer(state: usize) -> usize {
    state & 1
}
