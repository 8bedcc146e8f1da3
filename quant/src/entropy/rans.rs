//! Range asymmetric numeral systems (rANS; Duda 2013, arXiv:1311.2540).
//!
//! Up to four interleaved states, one per lane, give the decoder four independent dependency chains. A
//! state has 32 bits and is renormalised by 16-bit words. Encoding runs backwards over the recorded
//! symbols.

use super::{
    context::LANES,
    model::{Interval, PRECISION, log2},
};

/// Lower bound of a normalised state; the upper bound is 2^16 times as much.
const LOW: u32 = 1 << 16;

/// Symbols encoded at a time: room is made for as many words only.
const STRIP: usize = 4096;

/// A symbol to encode: `lane << 30 | frequency << 15 | start`.
#[derive(Debug, Clone, Copy, Default)]
pub struct RansSymbol(u32);

impl RansSymbol {
    /// A symbol with this interval in `lane`.
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

/// Collects symbols in decoding order, then encodes them from the last to the first.
#[derive(Debug, Default)]
pub struct RansEncoder {
    symbols: Vec<RansSymbol>,
    words: Vec<[u8; 2]>,
}

impl RansEncoder {
    /// Removes all symbols.
    pub fn clear(&mut self) {
        self.symbols.clear();
    }

    /// Adds a symbol.
    #[inline(always)]
    pub fn push(&mut self, symbol: RansSymbol) {
        self.symbols.push(symbol);
    }

    /// Adds one symbol of each lane.
    #[inline(always)]
    pub fn extend(&mut self, symbols: [RansSymbol; LANES]) {
        self.symbols.extend_from_slice(&symbols);
    }

    /// Adds `bits` equiprobable bits (at most 14).
    #[inline(always)]
    pub fn push_raw(&mut self, lane: usize, value: u32, bits: u32) {
        if bits > 0 {
            let frequency = 1 << (PRECISION - bits);
            self.push(RansSymbol::new(lane, Interval { start: value * frequency, frequency }));
        }
    }

    /// Size of the symbols in bits, by their probabilities.
    #[inline(always)]
    pub fn bits(&self) -> f64 {
        let mut sums = [0.0f32; 16];
        let mut total = 0.0;
        for chunk in self.symbols.chunks(4096) {
            let (groups, rest) = chunk.as_chunks::<16>();
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

    /// Encodes and appends everything: the final states, then the words, little-endian.
    #[inline(always)]
    pub fn finish(&mut self, lanes: usize, out: &mut Vec<u8>) {
        let mut states = [LOW; LANES];
        self.words.clear();
        for symbols in self.symbols.rchunks(STRIP) {
            // A symbol emits at most one word.
            let start = self.words.len();
            self.words.resize(start + symbols.len(), [0; 2]);
            let words = &mut self.words[start..];
            let mut next = 0;
            for symbol in symbols.iter().rev() {
                let state = &mut states[(symbol.0 >> 30) as usize % LANES];
                let (frequency, start) = (symbol.frequency(), symbol.start());
                // Branch-free, because it would be mispredicted: the word is always stored, but kept only if
                // full.
                let full = *state >= frequency << 17;
                words[next] = (*state as u16).to_le_bytes();
                next += usize::from(full);
                let low = if full { *state >> 16 } else { *state };
                *state = ((low / frequency) << PRECISION) + low % frequency + start;
            }
            self.words.truncate(start + next);
        }
        for state in &states[..lanes] {
            out.extend_from_slice(&state.to_le_bytes());
        }
        // The decoder reads the last word first.
        self.words.reverse();
        out.extend_from_slice(self.words.as_flattened());
    }
}

/// Decoder states. Reading past the end gives zeros, so any bytes decode to something; damage is detected
/// by the stream's checksum.
#[derive(Debug, Clone, Copy)]
pub struct RansDecoder<'a> {
    states: [u32; LANES],
    words: &'a [[u8; 2]],
    next: usize,
}

impl<'a> RansDecoder<'a> {
    /// Reads the states of `lanes` lanes.
    pub fn new(payload: &'a [u8], lanes: usize) -> Self {
        let mut states = [LOW; LANES];
        let (heads, rest) = payload.split_at(payload.len().min(4 * lanes));
        for (state, bytes) in states.iter_mut().zip(heads.as_chunks::<4>().0) {
            *state = u32::from_le_bytes(*bytes);
        }
        Self { states, words: rest.as_chunks::<2>().0, next: 0 }
    }

    /// The slot in `0..2^15` that identifies the next symbol of `lane`.
    #[inline(always)]
    pub fn slot(&self, lane: usize) -> u32 {
        self.states[lane] & ((1 << PRECISION) - 1)
    }

    /// Consumes the symbol with this interval from `lane`.
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

    /// Consumes `bits` equiprobable bits (at most 14) from `lane`.
    #[inline(always)]
    pub fn raw(&mut self, lane: usize, bits: u32) -> u32 {
        let shift = PRECISION - bits;
        let value = self.slot(lane) >> shift;
        self.advance(lane, Interval { start: value << shift, frequency: 1 << shift });
        value
    }
}
