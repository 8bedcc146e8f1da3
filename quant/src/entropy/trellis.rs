//! The state machine of dependent (trellis-coded) quantization.
//!
//! Two scalar quantizers with twice the step: one reconstructs the even multiples of the step, the other
//! the odd ones and zero. The parity of each index drives a machine of eight states, and the state
//! selects the quantizer of the next index (Marcellin and Fischer 1990; entropy-coded and sign-symmetric as
//! in Joshi, Crump and Fischer 1995 and in VVC). An encoder that searches the trellis gets most of the gain
//! of vector quantization.

/// Number of states.
pub const STATES: usize = 8;

/// The next state, by state and parity of the index.
pub const NEXT: [[u8; 2]; STATES] = [[0, 2], [5, 7], [1, 3], [6, 4], [2, 0], [4, 6], [3, 1], [7, 5]];

/// How coded indices map to levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantization {
    /// An index is its level.
    Scalar,
    /// An index belongs to the quantizer that the trellis state selects.
    Trellis,
}

impl Quantization {
    /// Number of quantizers.
    pub const fn quantizers(self) -> usize {
        match self {
            Self::Scalar => 1,
            Self::Trellis => 2,
        }
    }

    /// The level (multiple of the step) of `index` in `quantizer`.
    #[inline(always)]
    pub const fn level(self, quantizer: usize, index: i32) -> i32 {
        match self {
            Self::Scalar => index,
            Self::Trellis => 2 * index - index.signum() * quantizer as i32,
        }
    }
}

/// The trellis state of one row.
#[derive(Debug, Clone, Copy, Default)]
pub struct TrellisState {
    state: u8,
}

impl TrellisState {
    /// The quantizer of the next index.
    #[inline(always)]
    pub fn quantizer(self) -> usize {
        quantizer(self.state as usize)
    }

    /// Moves on by an index.
    #[inline(always)]
    pub fn advance(&mut self, index: i32) {
        self.state = NEXT[self.state as usize % STATES][index as usize & 1];
    }
}

/// The quantizer of a state: 0 for even multiples of the step, 1 for odd ones and zero.
#[inline(always)]
pub const fn quantizer(state: usize) -> usize {
    state & 1
}
