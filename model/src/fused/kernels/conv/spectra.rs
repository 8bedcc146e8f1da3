//! Tiles and kernels to spectra and back, vector after vector of channels.

use super::{
    pass::{BLOCK, EDGE, Pass, TAPS},
    tile::{load_part, put_part},
    transform::{POINTS, at_points, filter_matrix, from_points, gradient_at_points},
};
use crate::fused::kernels::tiles::{PANEL, padded};
use pulp::{Simd, WithSimd};
use std::ops::Range;

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

/// The pixels of a tile whose first one is at `(top, left)`, each `padding` further up and to the left; zeros
/// outside the image.
#[inline(always)]
fn pixels<'a, const SIZE: usize>(
    image: &'a [f32],
    [height, width, channels]: [usize; 3],
    [top, left]: [usize; 2],
    padding: [usize; 2],
    zeros: &'a [f32],
) -> [[&'a [f32]; SIZE]; SIZE] {
    let mut pixels = [[zeros; SIZE]; SIZE];
    for (i, line) in pixels.iter_mut().enumerate() {
        let y = (top + i).wrapping_sub(padding[0]);
        if y >= height {
            continue;
        }
        for (j, pixel) in line.iter_mut().enumerate() {
            let x = (left + j).wrapping_sub(padding[1]);
            if x < width {
                *pixel = &image[(y * width + x) * channels..][..channels];
            }
        }
    }
    pixels
}

/// Vector `at` of each pixel; the last one may be partly used.
#[inline(always)]
fn load_pixels<S: Simd, const SIZE: usize>(
    simd: S,
    pixels: &[[&[f32]; SIZE]; SIZE],
    at: usize,
    len: usize,
) -> [[S::f32s; SIZE]; SIZE] {
    let mut block = [[simd.splat_f32s(0.0); SIZE]; SIZE];
    for (line, pixels) in block.iter_mut().zip(pixels) {
        for (value, pixel) in line.iter_mut().zip(pixels) {
            *value = load_part(simd, &pixel[at..][..len]);
        }
    }
    block
}

/// Source tiles of rows of tiles to spectra `[point][tile][channel]`.
pub(super) struct Samples<'a> {
    pub(super) pass: &'a Pass,
    pub(super) rows: Range<usize>,
    pub(super) x: &'a [f32],
    pub(super) spectra: &'a mut [f32],
    pub(super) plane: usize,
}

impl WithSimd for Samples<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { pass, rows, x, spectra, plane } = self;
        let [height, width, channels] = pass.source;
        let zeros = vec![0.0; channels];
        let mut tile = 0;
        for row in rows {
            let image = &x[row / pass.down * height * width * channels..][..height * width * channels];
            for left in 0..pass.across {
                let corner = [row % pass.down * EDGE, left * EDGE];
                let pixels: [[&[f32]; POINTS]; POINTS] =
                    pixels(image, pass.source, corner, pass.padding, &zeros);
                for channel in (0..channels).step_by(S::F32_LANES) {
                    let len = S::F32_LANES.min(channels - channel);
                    let mut lines = load_pixels(simd, &pixels, channel, len);
                    for line in &mut lines {
                        *line = at_points(simd, *line);
                    }
                    let out = &mut spectra[tile * channels + channel..];
                    for q in 0..POINTS {
                        let values = at_points(simd, column(simd, &lines, q));
                        for (p, value) in values.into_iter().enumerate() {
                            put_part(simd, &mut out[(p * POINTS + q) * plane..][..len], value);
                        }
                    }
                }
                tile += 1;
            }
        }
    }
}

/// The output's gradient to spectra `[point][panel][tile][channel]`.
pub(super) struct Gradient<'a> {
    pub(super) pass: &'a Pass,
    pub(super) rows: Range<usize>,
    pub(super) dy: &'a [f32],
    pub(super) spectra: &'a mut [f32],
    pub(super) plane: usize,
}

impl WithSimd for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { pass, rows, dy, spectra, plane } = self;
        let [height, width, channels] = pass.target;
        let zeros = vec![0.0; channels];
        let tiles = rows.len() * pass.across;
        let zero = simd.splat_f32s(0.0);
        let mut tile = 0;
        for row in rows {
            let image = &dy[row / pass.down * height * width * channels..][..height * width * channels];
            for left in 0..pass.across {
                let corner = [row % pass.down * EDGE, left * EDGE];
                let pixels: [[&[f32]; EDGE]; EDGE] = pixels(image, pass.target, corner, [0; 2], &zeros);
                for channel in (0..channels).step_by(S::F32_LANES) {
                    let len = S::F32_LANES.min(channels - channel);
                    let block = load_pixels(simd, &pixels, channel, len);
                    let mut lines = [[zero; POINTS]; EDGE];
                    for (line, values) in lines.iter_mut().zip(block) {
                        *line = gradient_at_points(simd, values);
                    }
                    let first = channel / PANEL * PANEL;
                    let at = first * tiles + tile * padded(channels, first) + channel - first;
                    let out = &mut spectra[at..];
                    for q in 0..POINTS {
                        let values = gradient_at_points(simd, column(simd, &lines, q));
                        for (p, value) in values.into_iter().enumerate() {
                            put_part(simd, &mut out[(p * POINTS + q) * plane..][..S::F32_LANES], value);
                        }
                    }
                }
                tile += 1;
            }
        }
    }
}

/// Spectra `[point][tile][channel]` of rows of tiles to their lines of the target.
pub(super) struct Backward<'a> {
    pub(super) pass: &'a Pass,
    pub(super) rows: Range<usize>,
    pub(super) spectra: &'a [f32],
    pub(super) plane: usize,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) relu: bool,
    pub(super) y: &'a mut [f32],
}

impl WithSimd for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { pass, rows, spectra, plane, bias, relu, y } = self;
        let [height, width, channels] = pass.target;
        let zero = simd.splat_f32s(0.0);
        let (first_line, mut tile) = (pass.line(rows.start), 0);
        for row in rows {
            let (line, top) = (pass.line(row) - first_line, row % pass.down * EDGE);
            let y = &mut y[line * width * channels..][..EDGE.min(height - top) * width * channels];
            for left in (0..width).step_by(EDGE) {
                for channel in (0..channels).step_by(S::F32_LANES) {
                    let len = S::F32_LANES.min(channels - channel);
                    let from = &spectra[tile * channels + channel..];
                    let mut lines = [[zero; EDGE]; POINTS];
                    for (p, line) in lines.iter_mut().enumerate() {
                        let mut values = [zero; POINTS];
                        for (q, value) in values.iter_mut().enumerate() {
                            *value = load_part(simd, &from[(p * POINTS + q) * plane..][..len]);
                        }
                        *line = from_points(simd, values);
                    }
                    let bias = match bias {
                        Some(bias) => load_part(simd, &bias[channel..][..len]),
                        None => zero,
                    };
                    // A constant bound: the loop is unrolled, and the lines stay in registers.
                    for j in 0..EDGE {
                        if left + j >= width {
                            break;
                        }
                        let values: [S::f32s; EDGE] = from_points(simd, column(simd, &lines, j));
                        let lines = y.chunks_exact_mut(width * channels);
                        for (value, line) in values.into_iter().zip(lines) {
                            let sum = simd.add_f32s(value, bias);
                            // Operand order matters: `max(sum, 0)` would drop a NaN.
                            let value = if relu { simd.max_f32s(zero, sum) } else { sum };
                            put_part(simd, &mut line[(left + j) * channels + channel..][..len], value);
                        }
                    }
                }
                tile += 1;
            }
        }
    }
}

/// Kernels `[row][tap][lane]` to spectra, of which `spectra` holds the first row's first point: rows are `width`
/// apart, points a `plane`.
pub(super) struct FromWeights<'a> {
    pub(super) block: &'a [f32],
    /// Turns the kernels.
    pub(super) turned: bool,
    pub(super) spectra: &'a mut [f32],
    pub(super) width: usize,
    pub(super) plane: usize,
}

impl WithSimd for FromWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { block, turned, spectra, width, plane } = self;
        let g = filter_matrix(3);
        let zero = simd.splat_f32s(0.0);
        for (row, block) in block.chunks_exact(TAPS * BLOCK).enumerate() {
            for lane in (0..BLOCK).step_by(S::F32_LANES) {
                let mut kernel = [[zero; 3]; 3];
                for (y, line) in kernel.iter_mut().enumerate() {
                    for (x, value) in line.iter_mut().enumerate() {
                        let tap = if turned { TAPS - 1 - (y * 3 + x) } else { y * 3 + x };
                        *value = load_part(simd, &block[tap * BLOCK + lane..][..S::F32_LANES]);
                    }
                }
                let mut lines = [[zero; POINTS]; 3];
                for (line, kernel) in lines.iter_mut().zip(&kernel) {
                    for (value, g) in line.iter_mut().zip(&g) {
                        *value = three(simd, *kernel, g);
                    }
                }
                let out = &mut spectra[row * width + lane..];
                for q in 0..POINTS {
                    let column = column(simd, &lines, q);
                    for (p, g) in g.iter().enumerate() {
                        let value = three(simd, column, g);
                        put_part(simd, &mut out[(p * POINTS + q) * plane..][..S::F32_LANES], value);
                    }
                }
            }
        }
    }
}

/// A kernel's row times a row of the filter's matrix.
#[inline(always)]
fn three<S: Simd>(simd: S, kernel: [S::f32s; 3], g: &[f32; 5]) -> S::f32s {
    let first = simd.mul_f32s(simd.splat_f32s(g[0]), kernel[0]);
    let second = simd.mul_add_f32s(simd.splat_f32s(g[1]), kernel[1], first);
    simd.mul_add_f32s(simd.splat_f32s(g[2]), kernel[2], second)
}

/// Gradients of spectra to those of the kernels: [`FromWeights`] transposed.
pub(super) struct ToWeights<'a> {
    pub(super) spectra: &'a [f32],
    pub(super) width: usize,
    pub(super) plane: usize,
    pub(super) block: &'a mut [f32],
}

impl WithSimd for ToWeights<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { spectra, width, plane, block } = self;
        let g = filter_matrix(3);
        let zero = simd.splat_f32s(0.0);
        for (row, block) in block.chunks_exact_mut(TAPS * BLOCK).enumerate() {
            for lane in (0..BLOCK).step_by(S::F32_LANES) {
                let from = &spectra[row * width + lane..];
                let mut lines = [[zero; 3]; POINTS];
                for (p, line) in lines.iter_mut().enumerate() {
                    for (q, g) in g.iter().enumerate() {
                        let value = load_part(simd, &from[(p * POINTS + q) * plane..][..S::F32_LANES]);
                        for (sum, g) in line.iter_mut().zip(g) {
                            *sum = simd.mul_add_f32s(simd.splat_f32s(*g), value, *sum);
                        }
                    }
                }
                for x in 0..3 {
                    let column: [S::f32s; POINTS] = column(simd, &lines, x);
                    for y in 0..3 {
                        let mut sum = zero;
                        for (value, g) in column.iter().zip(&g) {
                            sum = simd.mul_add_f32s(simd.splat_f32s(g[y]), *value, sum);
                        }
                        put_part(simd, &mut block[(y * 3 + x) * BLOCK + lane..][..S::F32_LANES], sum);
                    }
                }
            }
        }
    }
}
