//! The order in which indices are coded, and the state that encoder and decoder share.
//!
//! Up to four rows are coded in parallel, each one column behind the row above. The elements coded at one
//! time form a *wave*: one per lane, on a diagonal. All symbols of a wave are coded with the models as they
//! were before it, so the lanes do not depend on each other.

use super::{
    context::{self, CONTEXTS, Contexts, LANES, LaneIndices, Neighbours, PackedIndices, contexts},
    layout::RowLayout,
    model::Models,
    trellis::TrellisState,
};
use bytemuck::cast;
use std::ops::Range;
use wide::i16x8;

/// One integer per lane: the elements coded at one time.
pub type Wave = [i32; LANES];

/// The coding contexts of a wave.
#[derive(Debug, Clone, Copy)]
pub struct WaveContexts {
    /// The models of the symbols.
    pub models: [usize; LANES],
    /// In the upper half, -1 where the predicted sign is negative, 0 elsewhere.
    pub flips: i16x8,
    /// The quantizers of the indices.
    pub quantizers: [usize; LANES],
}

/// The symbols and indices of a wave; zeros in inactive lanes.
#[derive(Debug, Clone, Copy, Default)]
pub struct CodedWave {
    /// The symbols.
    pub symbols: [usize; LANES],
    /// The indices.
    pub indices: Wave,
    /// The indices, clamped, in the upper half.
    pub clamped: i16x8,
}

/// Waves per span. Only one span is transposed at a time, so the buffer fits the first-level cache and its
/// size does not depend on what a stream declares.
const SPAN: usize = 512;

/// Scans a tensor in waves and keeps the context state of the indices coded so far.
#[derive(Debug, Default)]
pub struct WavefrontScan {
    /// Running mean magnitude of every column, in sixteenths.
    means: Vec<i16>,
    /// Ring buffer of the group's last waves, one stride long; zeros at first.
    ring: Vec<PackedIndices>,
    strided: bool,
    group: RowGroup,
}

/// The rows that are scanned in parallel, and the state between two spans.
#[derive(Debug, Clone, Copy, Default)]
struct RowGroup {
    /// Columns of each row but the last.
    cols: usize,
    /// Columns of the last row.
    last_row: usize,
    /// Number of rows.
    lanes: usize,
    state: ScanState,
}

/// State that changes with every wave; a copy is kept in registers during a span.
#[derive(Debug, Clone, Copy, Default)]
struct ScanState {
    left: LaneIndices,
    left2: LaneIndices,
    far: LaneIndices,
    /// Means of the lanes' current columns: four fields of 16 bits.
    means: u64,
    trellis: [TrellisState; LANES],
    /// Index of the ring's oldest wave.
    oldest: usize,
}

impl WavefrontScan {
    /// Prepares for a tensor.
    pub fn start(&mut self, layout: &RowLayout) {
        self.means.clear();
        // Zeros for the waves in which the first rows are past their last column.
        self.means.resize(wave_count(layout.cols), 0);
        self.strided = layout.stride > 0;
        self.ring.clear();
        self.ring.resize(layout.stride.max(1), PackedIndices::default());
    }

    /// The running mean of every column.
    pub fn means(&self) -> &[i16] {
        &self.means
    }

    /// Starts the next group of rows of `cols` columns: `count` indices, at most `LANES` rows. Returns the
    /// spans of waves to scan.
    pub fn start_group(&mut self, cols: usize, count: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let lanes = count.div_ceil(cols);
        self.ring.fill(PackedIndices::default());
        self.group =
            RowGroup { cols, lanes, last_row: count - (lanes - 1) * cols, state: ScanState::default() };
        let waves = wave_count(cols);
        (0..waves).step_by(SPAN).map(move |start| start..waves.min(start + SPAN))
    }

    /// Scans a span of waves. For each, `code(models, at, active, contexts)` encodes or decodes the active
    /// lanes; `at` is the position of the wave in the span. The models are updated after the wave.
    #[inline(always)]
    pub fn span<const TRELLIS: bool>(
        &mut self,
        span: Range<usize>,
        models: &mut Models,
        mut code: impl FnMut(&Models, usize, Range<usize>, &WaveContexts) -> CodedWave,
    ) {
        let RowGroup { cols, last_row, lanes, mut state } = self.group;
        let ramp = lanes - 1;
        // Lanes that have an element in a wave.
        let active = |wave: usize| {
            let first = (wave + 1).saturating_sub(cols);
            let last = if wave >= last_row + ramp { ramp } else { lanes.min(wave + 1) };
            first.min(last)..last
        };
        // Most waves have all lanes; a constant range lets the compiler unroll.
        let full = if lanes == LANES { ramp..cols.min(last_row + ramp) } else { 0..0 };
        let full_start = full.start.clamp(span.start, span.end);
        let full_end = full.end.clamp(full_start, span.end);
        let start = span.start;
        for wave in span.start..full_start {
            self.step::<TRELLIS>(active(wave), start, wave, models, &mut state, &mut code);
        }
        for wave in full_start..full_end {
            self.step::<TRELLIS>(0..LANES, start, wave, models, &mut state, &mut code);
        }
        for wave in full_end..span.end {
            self.step::<TRELLIS>(active(wave), start, wave, models, &mut state, &mut code);
        }
        self.group.state = state;
    }

    /// Codes one wave, then updates models, means and neighbours.
    #[inline(always)]
    fn step<const TRELLIS: bool>(
        &mut self,
        active: Range<usize>,
        start: usize,
        wave: usize,
        models: &mut Models,
        state: &mut ScanState,
        code: &mut impl FnMut(&Models, usize, Range<usize>, &WaveContexts) -> CodedWave,
    ) {
        let ScanState { left, left2, far, trellis, oldest, .. } = *state;
        let next = if oldest + 1 < self.ring.len() { oldest + 1 } else { 0 };
        let far_next = self.ring[next].unpack();
        let means: i16x8 = cast([state.means << 16 | self.means[wave] as u64, 0]);
        let Contexts { models: names, flips } = contexts(&Neighbours { left, left2, far, far_next }, means);
        let mut names: [usize; LANES] = std::array::from_fn(|lane| (names >> (16 * lane)) as usize & 0xffff);
        let mut quantizers = [0; LANES];
        if TRELLIS {
            for lane in 0..LANES {
                quantizers[lane] = trellis[lane].quantizer();
                names[lane] += CONTEXTS * quantizers[lane];
            }
        }
        let coded =
            code(models, wave - start, active.clone(), &WaveContexts { models: names, flips, quantizers });
        let values = LaneIndices::new(coded.clamped);
        let [mut updated, _]: [u64; 2] = cast(context::update_means(means, values));
        if active != (0..LANES) {
            // Keeps the means of inactive lanes.
            let fields = |lanes: usize| if lanes == LANES { u64::MAX } else { (1 << (16 * lanes)) - 1 };
            let mask = fields(active.end) & !fields(active.start);
            let [before, _]: [u64; 2] = cast(means);
            updated = updated & mask | before & !mask;
        }
        for lane in active {
            models.update(names[lane], coded.symbols[lane]);
            if TRELLIS {
                state.trellis[lane].advance(coded.indices[lane]);
            }
        }
        if self.strided {
            self.ring[oldest] = PackedIndices::new(values);
        }
        if let Some(column) = (wave + 1).checked_sub(LANES) {
            self.means[column] = (updated >> 48) as i16;
        }
        (state.left2, state.left, state.far) = (left, values, far_next);
        (state.means, state.oldest) = (updated, next);
    }
}

/// Number of waves in a group of rows of `cols` columns.
pub const fn wave_count(cols: usize) -> usize {
    cols + LANES - 1
}

/// Transposes a span of up to four rows into waves.
pub fn rows_to_waves(rows: &[i32], cols: usize, span: &Range<usize>, out: &mut Vec<Wave>) {
    out.clear();
    out.resize(span.len(), [0; LANES]);
    for (lane, row) in rows.chunks(cols).take(LANES).enumerate() {
        let (places, columns) = overlap(lane, row.len(), span);
        for (wave, index) in out[places].iter_mut().zip(&row[columns]) {
            wave[lane] = *index;
        }
    }
}

/// Transposes a span of waves back into rows.
pub fn waves_to_rows(waves: &[Wave], cols: usize, span: &Range<usize>, rows: &mut [i32]) {
    for (lane, row) in rows.chunks_mut(cols).take(LANES).enumerate() {
        let (places, columns) = overlap(lane, row.len(), span);
        for (wave, index) in waves[places].iter().zip(&mut row[columns]) {
            *index = wave[lane];
        }
    }
}

/// The positions in the span that hold elements of a lane's row, and their columns.
fn overlap(lane: usize, len: usize, span: &Range<usize>) -> (Range<usize>, Range<usize>) {
    let first = span.start.clamp(lane, lane + len);
    let end = span.end.clamp(first, lane + len);
    if first < span.start {
        return (0..0, 0..0);
    }
    (first - span.start..end - span.start, first - lane..end - lane)
}
