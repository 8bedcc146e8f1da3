//! Range asymmetric numeral systems (Duda 2013): the coder under the models.
//!
//! Up to four states take turns, so that a decoder has four independent chains of arithmetic in
//! flight. A state is 32 bits wide and moves 16 bits at a time. Encoding runs backwards over what the
//! forward pass recorded.

use super::{
    context::LANES,
    model::{Interval, PRECISION, log2},
};

/// Lower end of a state's range; its upper end is 2^16 times as much.
const LOW: u32 = 1 << 16;

/// A symbol as the coder sees it: `lane << 30 | frequency << 15 | start`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Record(u32);

impl Record {
    /// The symbol with this interval, in a lane.
    #[inline(always)]
    pub fn new(lane: usize, interval: Interval) -> Self {
        Self((lane as u32) << 30 | interval.frequency << PRECISION | interval.start)
    }

    #[inline(always)]
    fn frequency(self) -> u32 {
        self.0 >> PRECISION & 0x7fff
    }

    #[inline(always)]
    fn start(self) -> u32 {
        self.0 & 0x7fff
    }
}

/// Symbols in the order in which they will be decoded.
#[derive(Debug, Default)]
pub struct Recorder {
    symbols: Vec<Record>,
    words: Vec<[u8; 2]>,
}

impl Recorder {
    /// Starts anew.
    pub fn clear(&mut self) {
        self.symbols.clear();
    }

    /// Adds a symbol.
    #[inline(always)]
    pub fn push(&mut self, symbol: Record) {
        self.symbols.push(symbol);
    }

    /// Adds a symbol of each lane.
    #[inline(always)]
    pub fn extend(&mut self, symbols: [Record; LANES]) {
        self.symbols.extend_from_slice(&symbols);
    }

    /// Adds `bits` bits (at most 14) without a model.
    #[inline(always)]
    pub fn push_raw(&mut self, lane: usize, value: u32, bits: u32) {
        if bits > 0 {
            let frequency = 1 << (PRECISION - bits);
            self.push(Record::new(lane, Interval { start: value * frequency, frequency }));
        }
    }

    /// Bits that the symbols will take.
    #[inline(always)]
    pub fn bits(&self) -> f64 {
        let mut sums = [0.0f32; 16];
        let mut total = 0.0;
        for stretch in self.symbols.chunks(4096) {
            let (groups, rest) = stretch.as_chunks::<16>();
            for group in groups {
                for (sum, symbol) in sums.iter_mut().zip(group) {
                    *sum += PRECISION as f32 - log2(symbol.frequency());
                }
            }
            for symbol in rest {
                sums[0] += PRECISION as f32 - log2(symbol.frequency());
            }
            total += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
            sums = [0.0; 16];
        }
        total
    }

    /// Writes everything: the states, then the words, both little-endian.
    #[inline(always)]
    pub fn finish(&mut self, lanes: usize, out: &mut Vec<u8>) {
        let mut states = [LOW; LANES];
        // A symbol puts out at most one word. What an earlier tensor has left there does not matter.
        if self.words.len() < self.symbols.len() {
            self.words.resize(self.symbols.len(), [0; 2]);
        }
        let mut first = self.words.len();
        for symbol in self.symbols.iter().rev() {
            let state = &mut states[(symbol.0 >> 30) as usize % LANES];
            let (frequency, start) = (symbol.frequency(), symbol.start());
            // Whether a word goes out is hard to predict: it is always written, but counted only then.
            let full = *state >= frequency << 17;
            self.words[first - 1] = (*state as u16).to_le_bytes();
            first -= usize::from(full);
            let low = if full { *state >> 16 } else { *state };
            *state = ((low / frequency) << PRECISION) + low % frequency + start;
        }
        for state in &states[..lanes] {
            out.extend_from_slice(&state.to_le_bytes());
        }
        out.extend_from_slice(self.words[first..].as_flattened());
    }
}

/// The decoder's states. What follows the end reads as zero: a stream from the network may end
/// anywhere, and any bytes decode to something.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    states: [u32; LANES],
    words: &'a [[u8; 2]],
    next: usize,
}

impl<'a> Reader<'a> {
    /// Reads the states of `lanes` lanes.
    pub fn new(payload: &'a [u8], lanes: usize) -> Self {
        let mut states = [LOW; LANES];
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
    #[inline(always)]
    pub fn raw(&mut self, lane: usize, bits: u32) -> u32 {
        let shift = PRECISION - bits;
        let value = self.slot(lane) >> shift;
        self.advance(lane, Interval { start: value << shift, frequency: 1 << shift });
        value
    }
}
