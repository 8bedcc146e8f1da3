//! Tiles of an image to spectra and back, vector after vector of channels.

use super::{GAP, TILES, Winograd};
use crate::fused::{
    chain::plan::Shape,
    kernels::conv::transform::{POINTS, at_points, from_points, gradient_at_points},
};
use pulp::{Simd, WithSimd};

#[inline(always)]
fn load<S: Simd>(_: S, values: &[f32], at: usize) -> S::f32s {
    S::as_simd_f32s(&values[at..at + S::F32_LANES]).0[0]
}

#[inline(always)]
fn put<S: Simd>(_: S, values: &mut [f32], at: usize, value: S::f32s) {
    S::as_mut_simd_f32s(&mut values[at..at + S::F32_LANES]).0[0] = value;
}

/// Column `index` of a block of vectors.
#[inline(always)]
fn column<S: Simd, const ROWS: usize, const COLUMNS: usize>(
    simd: S,
    lines: &[[S::f32s; COLUMNS]; ROWS],
    index: usize,
) -> [S::f32s; ROWS] {
    let mut column = [simd.splat_f32s(0.0); ROWS];
    for (value, line) in column.iter_mut().zip(lines) {
        *value = line[index];
    }
    column
}

/// Tiles of the zero-padded input to `v`.
pub(super) struct InputTransform<'a> {
    pub(super) geometry: &'a Winograd,
    pub(super) first: usize,
    pub(super) tiles: usize,
    pub(super) padded: &'a [f32],
    pub(super) v: &'a mut [f32],
}

impl WithSimd for InputTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { geometry, first, tiles, padded, v } = self;
        let channels = geometry.input.channels;
        let (row, plane) = (geometry.padded_width * channels, TILES * channels + GAP);
        let zero = simd.splat_f32s(0.0);
        for tile in 0..tiles {
            let (y, x) = geometry.corner(first + tile);
            for channel in (0..channels).step_by(S::F32_LANES) {
                let at = y * row + x * channels + channel;
                let mut lines = [[zero; POINTS]; POINTS];
                for (i, line) in lines.iter_mut().enumerate() {
                    for (j, value) in line.iter_mut().enumerate() {
                        *value = load(simd, padded, at + i * row + j * channels);
                    }
                    *line = at_points(simd, *line);
                }
                let at = tile * channels + channel;
                for q in 0..POINTS {
                    let column = at_points(simd, column(simd, &lines, q));
                    for (p, value) in column.into_iter().enumerate() {
                        put(simd, v, (p * POINTS + q) * plane + at, value);
                    }
                }
            }
        }
    }
}

/// `m` to tiles of the output.
pub(super) struct OutputTransform<'a> {
    pub(super) geometry: &'a Winograd,
    pub(super) first: usize,
    pub(super) tiles: usize,
    pub(super) m: &'a [f32],
    pub(super) bias: &'a [f32],
    pub(super) relu: bool,
    pub(super) y: &'a mut [f32],
}

impl WithSimd for OutputTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.geometry.edge {
            2 => self.run::<S, 2>(simd),
            _ => self.run::<S, 4>(simd),
        }
    }
}

impl OutputTransform<'_> {
    #[inline(always)]
    fn run<S: Simd, const EDGE: usize>(self, simd: S) {
        let Self { geometry, first, tiles, m, bias, relu, y } = self;
        let Shape { channels, height, width } = geometry.output;
        let plane = TILES * channels + GAP;
        let zero = simd.splat_f32s(0.0);
        for tile in 0..tiles {
            let (top, left) = geometry.corner(first + tile);
            let (rows, columns) = (EDGE.min(height - top), EDGE.min(width - left));
            for channel in (0..channels).step_by(S::F32_LANES) {
                let at = tile * channels + channel;
                let mut lines = [[zero; EDGE]; POINTS];
                for (p, line) in lines.iter_mut().enumerate() {
                    let mut values = [zero; POINTS];
                    for (q, value) in values.iter_mut().enumerate() {
                        *value = load(simd, m, (p * POINTS + q) * plane + at);
                    }
                    *line = from_points(simd, values);
                }
                let bias = if bias.is_empty() { zero } else { load(simd, bias, channel) };
                // A constant bound: the loop is unrolled, and the lines stay in registers.
                for j in 0..EDGE {
                    if j >= columns {
                        break;
                    }
                    let column: [S::f32s; EDGE] = from_points(simd, column(simd, &lines, j));
                    for (i, value) in column.into_iter().enumerate().take(rows) {
                        let sum = simd.add_f32s(value, bias);
                        // Operand order matters: `max(sum, 0)` would drop a NaN.
                        let value = if relu { simd.max_f32s(zero, sum) } else { sum };
                        put(simd, y, ((top + i) * width + left + j) * channels + channel, value);
                    }
                }
            }
        }
    }
}

/// Tiles of the output's gradient to `m`.
pub(super) struct GradientTransform<'a> {
    pub(super) geometry: &'a Winograd,
    pub(super) first: usize,
    pub(super) tiles: usize,
    pub(super) dy: &'a [f32],
    pub(super) m: &'a mut [f32],
}

impl WithSimd for GradientTransform<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match self.geometry.edge {
            2 => self.run::<S, 2>(simd),
            _ => self.run::<S, 4>(simd),
        }
    }
}

impl GradientTransform<'_> {
    #[inline(always)]
    fn run<S: Simd, const EDGE: usize>(self, simd: S) {
        let Self { geometry, first, tiles, dy, m } = self;
        let Shape { channels, height, width } = geometry.output;
        let plane = TILES * channels + GAP;
        let zero = simd.splat_f32s(0.0);
        for tile in 0..tiles {
            let (top, left) = geometry.corner(first + tile);
            let (rows, columns) = (EDGE.min(height - top), EDGE.min(width - left));
            for channel in (0..channels).step_by(S::F32_LANES) {
                let mut lines = [[zero; POINTS]; EDGE];
                for (i, line) in lines.iter_mut().enumerate().take(rows) {
                    // Beyond the image's edge there is no output.
                    let mut values = [zero; EDGE];
                    for (j, value) in values.iter_mut().enumerate().take(columns) {
                        *value = load(simd, dy, ((top + i) * width + left + j) * channels + channel);
                    }
                    *line = gradient_at_points(simd, values);
                }
                let at = tile * channels + channel;
                for q in 0..POINTS {
                    let column = gradient_at_points(simd, column(simd, &lines, q));
                    for (p, value) in column.into_iter().enumerate() {
                        put(simd, m, (p * POINTS + q) * plane + at, value);
                    }
                }
            }
        }
    }
}
