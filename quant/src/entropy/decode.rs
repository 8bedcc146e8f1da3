//! Decoding: payload to integers.

use super::{
    context::{CONTEXTS, LANES, clamped},
    grid::Grid,
    model::Models,
    rans::Reader,
    token,
    trellis::Indices,
    walk::{Coded, Places, Time, Walk, by_row},
};
use crate::{limits::CHUNK, simd::vectorized};
use bytemuck::cast;
use std::ops::Range;
use wide::i16x8;

/// Memory that decoding reuses.
#[derive(Debug, Default)]
pub struct Scratch {
    models: Models,
    walk: Walk,
    by_time: Vec<Time>,
    integers: Vec<i32>,
    values: Vec<f32>,
}

impl Scratch {
    /// Decodes `count` integers chunk by chunk: `f(offset, integers, values)`, where `values` is an
    /// empty buffer for what becomes of them. Under the trellis they are what [`Indices::level`] makes
    /// of the indices.
    ///
    /// Any payload decodes to something; what it decodes to is checked by its checksum alone.
    pub fn for_each_chunk(
        &mut self,
        grid: &Grid,
        indices: Indices,
        payload: &[u8],
        count: usize,
        mut f: impl FnMut(usize, &[i32], &mut Vec<f32>),
    ) {
        self.models.reset(CONTEXTS * indices.quantizers(), grid.shift);
        self.walk.start(grid);
        let mut reader = Reader::new(payload, grid.lanes);
        let group = (grid.cols * grid.lanes).min(count);
        self.integers.clear();
        self.integers.resize(group, 0);
        let mut offset = 0;
        while offset < count {
            let group = group.min(count - offset);
            self.decode_rows(grid.cols, indices, &mut reader, group);
            for integers in self.integers[..group].chunks(CHUNK) {
                self.values.clear();
                f(offset, integers, &mut self.values);
                offset += integers.len();
            }
        }
    }

    /// Decodes the next `count` integers, a group of rows or what is left.
    fn decode_rows(&mut self, cols: usize, indices: Indices, reader: &mut Reader<'_>, count: usize) {
        for span in self.walk.start_group(cols, count) {
            self.by_time.clear();
            self.by_time.resize(span.len(), [0; LANES]);
            vectorized(
                #[inline(always)]
                || match indices {
                    Indices::Scalar => self.decode_span::<false>(reader, span.clone()),
                    Indices::Trellis => self.decode_span::<true>(reader, span.clone()),
                },
            );
            by_row(&self.by_time, cols, &span, &mut self.integers[..count]);
        }
    }

    #[inline(always)]
    fn decode_span<const TRELLIS: bool>(&mut self, reader: &mut Reader<'_>, span: Range<usize>) {
        let Self { models, walk, by_time, .. } = self;
        // A copy: what is reached through a pointer cannot stay in registers.
        let mut states = *reader;
        walk.span::<TRELLIS>(
            span,
            models,
            #[inline(always)]
            |models, at, active, places| {
                let mut turn = Turn::default();
                if active == (0..LANES) {
                    // Spelled out: the compiler does not unroll so long a loop.
                    turn.decode(0, models, places, &mut states);
                    turn.decode(1, models, places, &mut states);
                    turn.decode(2, models, places, &mut states);
                    turn.decode(3, models, places, &mut states);
                } else {
                    active.for_each(|lane| turn.decode(lane, models, places, &mut states));
                }
                let Turn { symbols, signed, long } = turn;
                let signed: i16x8 = cast([0, signed]);
                let values = (signed ^ places.flips) - places.flips;
                let flat = values.to_array();
                let mut indices: Time = std::array::from_fn(|lane| i32::from(flat[LANES + lane]));
                if let Some(long) = long {
                    restore(&long, places.flips, &mut indices);
                }
                by_time[at] = if TRELLIS {
                    std::array::from_fn(|lane| Indices::Trellis.level(places.quantizers[lane], indices[lane]))
                } else {
                    indices
                };
                Coded { symbols, indices, clamped: clamped(values) }
            },
        );
        *reader = states;
    }
}

/// What the lanes have decoded at one time.
#[derive(Default)]
struct Turn {
    symbols: [usize; LANES],
    /// The integers with their signs as coded: four numbers of 16 bits.
    signed: u64,
    /// Those that may be wider.
    long: Option<Time>,
}

impl Turn {
    #[inline(always)]
    fn decode(&mut self, lane: usize, models: &Models, places: &Places, states: &mut Reader<'_>) {
        let (symbol, interval) = models.find(places.models[lane], states.slot(lane));
        states.advance(lane, interval);
        self.symbols[lane] = symbol;
        let value = if token::is_direct(symbol) {
            token::direct(symbol)
        } else if token::is_short(symbol) {
            token::read_short(symbol, lane, states)
        } else {
            let mut copy = *states;
            let value = token::read_long(symbol, lane, &mut copy);
            *states = copy;
            self.long.get_or_insert([0; LANES])[lane] = value;
            value.clamp(i32::from(-i16::MAX), i32::from(i16::MAX)) as i16
        };
        self.signed |= u64::from(value as u16) << (16 * lane);
    }
}

/// Puts integers that may be wider than 16 bits in their places.
#[cold]
#[inline(never)]
fn restore(long: &Time, flips: i16x8, indices: &mut Time) {
    let flips = flips.to_array();
    for lane in 0..LANES {
        if long[lane] != 0 {
            indices[lane] = if flips[LANES + lane] < 0 { -long[lane] } else { long[lane] };
        }
    }
}
