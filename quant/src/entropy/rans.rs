//! Range asymmetric numeral systems (Duda 2013): the coder under the models.
//!
//! Up to four states take turns, so that a decoder has four independent chains of arithmetic in
//! flight. A state is 32 bits wide and moves 16 bits at a time. Encoding runs backwards over what the
//! forward pass recorded.

use super::model::{Interval, PRECISION, log2};

/// Most states.
pub const MAX_LANES: usize = 4;

/// Lower end of a state's range; its upper end is 2^16 times as much.
const LOW: u32 = 1 << 16;

/// Symbols in the order in which they will be decoded.
#[derive(Debug, Default)]
pub struct Recorder {
    /// `lane << 30 | frequency << 15 | start`.
    symbols: Vec<u32>,
    words: Vec<u16>,
}

impl Recorder {
    /// Starts anew.
    pub fn clear(&mut self) {
        self.symbols.clear();
    }

    /// Adds a symbol.
    #[inline(always)]
    pub fn push(&mut self, lane: usize, interval: Interval) {
        self.symbols.push((lane as u32) << 30 | interval.frequency << PRECISION | interval.start);
    }

    /// Adds `bits` bits (at most 14) without a model.
    #[inline(always)]
    pub fn push_raw(&mut self, lane: usize, value: u32, bits: u32) {
        let frequency = 1 << (PRECISION - bits);
        self.push(lane, Interval { start: value * frequency, frequency });
    }

    /// Bits that the symbols will take.
    pub fn bits(&self) -> f64 {
        let bits = |symbol: &u32| PRECISION as f32 - log2(symbol >> PRECISION & 0x7fff);
        self.symbols.iter().map(|symbol| f64::from(bits(symbol))).sum()
    }

    /// Writes everything: the states, then the words, both little-endian.
    pub fn finish(&mut self, lanes: usize, out: &mut Vec<u8>) {
        let mut states = [LOW; MAX_LANES];
        self.words.clear();
        for symbol in self.symbols.iter().rev() {
            let state = &mut states[(symbol >> 30) as usize];
            let frequency = symbol >> PRECISION & 0x7fff;
            let start = symbol & 0x7fff;
            if *state >= frequency << 17 {
                self.words.push(*state as u16);
                *state >>= 16;
            }
            *state = ((*state / frequency) << PRECISION) + *state % frequency + start;
        }
        for state in &states[..lanes] {
            out.extend_from_slice(&state.to_le_bytes());
        }
        out.extend(self.words.iter().rev().flat_map(|word| word.to_le_bytes()));
    }
}

/// The decoder's states. What follows the end reads as zero: a stream from the network may end
/// anywhere, and any bytes decode to something.
#[derive(Debug)]
pub struct Reader<'a> {
    states: [u32; MAX_LANES],
    words: &'a [[u8; 2]],
    next: usize,
}

impl<'a> Reader<'a> {
    /// Reads the states of `lanes` lanes.
    pub fn new(payload: &'a [u8], lanes: usize) -> Self {
        let mut states = [LOW; MAX_LANES];
        let (heads, rest) = payload.split_at(payload.len().min(4 * lanes));
        for (state, bytes) in states.iter_mut().zip(heads.as_chunks::<4>().0) {
            *state = u32::from_le_bytes(*bytes);
        }
        Self { states, words: rest.as_chunks::<2>().0, next: 0 }
    }

    /// Where the next symbol of `lane` lies.
    #[inline(always)]
    pub fn slot(&self, lane: usize) -> u32 {
        self.states[lane] & ((1 << PRECISION) - 1)
    }

    /// Takes the symbol with this interval off `lane`.
    #[inline(always)]
    pub fn advance(&mut self, lane: usize, interval: Interval) {
        let state = self.states[lane];
        let slot = state & ((1 << PRECISION) - 1);
        // At most 2^15 * (2^17 - 1) + 2^15: no overflow.
        let state = interval.frequency * (state >> PRECISION) + slot - interval.start;
        let low = state < LOW;
        let word = self.words.get(self.next).map_or(0, |bytes| u32::from(u16::from_le_bytes(*bytes)));
        self.states[lane] = if low { state << 16 | word } else { state };
        self.next += usize::from(low);
    }

    /// Takes `bits` bits (at most 14) off `lane`.
    pub fn raw(&mut self, lane: usize, bits: u32) -> u32 {
        let frequency = 1 << (PRECISION - bits);
        let value = self.slot(lane) / frequency;
        self.advance(lane, Interval { start: value * frequency, frequency });
        value
    }
}
