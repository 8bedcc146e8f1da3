//! Poolings of images `[batch, height, width, channels]`.
//!
//! Gradients are gathered: each input adds up what the windows that see it give back, in the order of the
//! windows' taps. Samples are independent of each other, so threads take samples.

use super::{columns::items_per_piece, window::Axis};
use crate::fused::{parallel::Threads, simd};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Number of a tap of a window: `row * kernel width + column`.
pub(crate) type Tap = u32;

/// Channels that stay in registers while a window is read.
const LANES: usize = 16;

/// For each position of an axis, what it is connected to: `(tap, position on the other side)`.
type Links = Vec<Vec<(usize, usize)>>;

/// Maximum over windows; the padding never wins, and of equal values the first in the order of the rows.
#[derive(Debug)]
pub(crate) struct MaxPool {
    channels: usize,
    input: [usize; 2],
    output: [usize; 2],
    kernel_width: usize,
    taps: [Links; 2],
    windows: [Links; 2],
}

impl MaxPool {
    /// None if a window lies in the padding.
    pub(crate) fn new(height: Axis, width: Axis, channels: usize) -> Option<Self> {
        let axes = [height, width];
        let taps = axes.map(|axis| (0..axis.output()).map(|o| axis.taps(o).collect()).collect::<Links>());
        let windows = axes.map(|axis| (0..axis.input).map(|i| axis.windows(i).collect()).collect());
        let blind = taps.iter().flatten().any(Vec::is_empty);
        (!blind).then(|| Self {
            channels,
            input: axes.map(|axis| axis.input),
            output: axes.map(Axis::output),
            kernel_width: width.kernel,
            taps,
            windows,
        })
    }

    fn input_len(&self) -> usize {
        self.input[0] * self.input[1] * self.channels
    }

    fn output_len(&self) -> usize {
        self.output[0] * self.output[1] * self.channels
    }

    /// Writes `y`, and to `taken` which tap of its window each value is, both `[batch, height, width, channels]`.
    pub(crate) fn forward(&self, x: &[f32], y: &mut [f32], taken: &mut [Tap], threads: &Threads) {
        let (input, output) = (self.input_len(), self.output_len());
        let samples = items_per_piece(x.len() / input, input);
        let mut pieces: Vec<_> = x
            .chunks(samples * input)
            .zip(y.chunks_mut(samples * output).zip(taken.chunks_mut(samples * output)))
            .collect();
        threads.each(&mut pieces, |_, (x, (y, taken))| simd::run(MaxForward { pool: self, x, y, taken }));
    }

    /// Writes `dx`.
    pub(crate) fn backward(&self, dy: &[f32], taken: &[Tap], dx: &mut [f32], threads: &Threads) {
        let (input, output) = (self.input_len(), self.output_len());
        let samples = items_per_piece(dx.len() / input, input);
        let mut pieces: Vec<_> = dx
            .chunks_mut(samples * input)
            .zip(dy.chunks(samples * output).zip(taken.chunks(samples * output)))
            .collect();
        threads.each(&mut pieces, |_, (dx, (dy, taken))| simd::run(MaxBackward { pool: self, dy, taken, dx }));
    }
}

struct MaxForward<'a> {
    pool: &'a MaxPool,
    x: &'a [f32],
    y: &'a mut [f32],
    taken: &'a mut [Tap],
}

impl WithSimd for MaxForward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { pool, x, y, taken } = self;
        let channels = pool.channels;
        let [_, width] = pool.input;
        let mut at = 0;
        for x in x.chunks_exact(pool.input_len()) {
            for rows in &pool.taps[0] {
                for columns in &pool.taps[1] {
                    let (y, taken) = (&mut y[at..][..channels], &mut taken[at..][..channels]);
                    at += channels;
                    let mut c = 0;
                    while c + LANES <= channels {
                        let (y, taken) = (&mut y[c..][..LANES], &mut taken[c..][..LANES]);
                        let (mut best, mut tap) = ([f32::NEG_INFINITY; LANES], [0; LANES]);
                        let mut first = true;
                        for &(row, i) in rows {
                            for &(column, j) in columns {
                                let x = &x[(i * width + j) * channels + c..][..LANES];
                                let k = (row * pool.kernel_width + column) as Tap;
                                for l in 0..LANES {
                                    let wins = wins(x[l], best[l]) | first;
                                    best[l] = if wins { x[l] } else { best[l] };
                                    tap[l] = if wins { k } else { tap[l] };
                                }
                                first = false;
                            }
                        }
                        y.copy_from_slice(&best);
                        taken.copy_from_slice(&tap);
                        c += LANES;
                    }
                    for c in c..channels {
                        let (mut best, mut tap, mut first) = (f32::NEG_INFINITY, 0, true);
                        for &(row, i) in rows {
                            for &(column, j) in columns {
                                let x = x[(i * width + j) * channels + c];
                                if first || wins(x, best) {
                                    best = x;
                                    tap = (row * pool.kernel_width + column) as Tap;
                                }
                                first = false;
                            }
                        }
                        y[c] = best;
                        taken[c] = tap;
                    }
                }
            }
        }
    }
}

/// Whether `x` takes the place of `best`; a NaN always does, and keeps it.
#[inline(always)]
fn wins(x: f32, best: f32) -> bool {
    (x > best) | x.is_nan()
}

struct MaxBackward<'a> {
    pool: &'a MaxPool,
    dy: &'a [f32],
    taken: &'a [Tap],
    dx: &'a mut [f32],
}

impl WithSimd for MaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { pool, dy, taken, dx } = self;
        let channels = pool.channels;
        let [_, width] = pool.output;
        let output = pool.output_len();
        let mut at = 0;
        for (dy, taken) in dy.chunks_exact(output).zip(taken.chunks_exact(output)) {
            for rows in &pool.windows[0] {
                for columns in &pool.windows[1] {
                    let dx = &mut dx[at..][..channels];
                    at += channels;
                    let mut c = 0;
                    while c + LANES <= channels {
                        let mut sum = [0.0f32; LANES];
                        for &(row, i) in rows {
                            for &(column, j) in columns {
                                let start = (i * width + j) * channels + c;
                                let (dy, taken) = (&dy[start..][..LANES], &taken[start..][..LANES]);
                                let k = (row * pool.kernel_width + column) as Tap;
                                for l in 0..LANES {
                                    sum[l] += if taken[l] == k { dy[l] } else { 0.0 };
                                }
                            }
                        }
                        dx[c..][..LANES].copy_from_slice(&sum);
                        c += LANES;
                    }
                    for c in c..channels {
                        let mut sum = 0.0;
                        for &(row, i) in rows {
                            for &(column, j) in columns {
                                let start = (i * width + j) * channels + c;
                                let k = (row * pool.kernel_width + column) as Tap;
                                sum += if taken[start] == k { dy[start] } else { 0.0 };
                            }
                        }
                        dx[c] = sum;
                    }
                }
            }
        }
    }
}

/// What the windows of [`AveragePool`] see along one axis.
#[derive(Debug)]
struct Windows {
    input: usize,
    /// Inputs of each window.
    inputs: Vec<Range<usize>>,
    /// Windows that see each input: they lie side by side.
    windows: Vec<Range<usize>>,
    /// By how much each window divides.
    divisors: Vec<f32>,
}

impl Windows {
    fn new(input: usize, inputs: Vec<Range<usize>>, divisors: Vec<f32>) -> Self {
        let windows = (0..input)
            .map(|i| {
                let sees = |window: &Range<usize>| window.contains(&i);
                let first = inputs.iter().position(sees).unwrap_or(0);
                first..inputs.iter().rposition(sees).map_or(first, |last| last + 1)
            })
            .collect();
        Self { input, inputs, windows, divisors }
    }

    /// Zeros of the padding count.
    fn sliding(axis: Axis) -> Self {
        let inputs = (0..axis.output())
            .map(|o| {
                let start = o * axis.stride;
                let clip = |at: usize| at.saturating_sub(axis.padding).min(axis.input);
                clip(start)..clip(start + axis.kernel)
            })
            .collect();
        Self::new(axis.input, inputs, vec![axis.kernel as f32; axis.output()])
    }

    /// PyTorch's rule: window `o` is `floor(o * input / output)..ceil((o + 1) * input / output)`.
    fn adaptive(input: usize, output: usize) -> Self {
        let inputs: Vec<_> =
            (0..output).map(|o| o * input / output..((o + 1) * input).div_ceil(output)).collect();
        let divisors = inputs.iter().map(|window| window.len() as f32).collect();
        Self::new(input, inputs, divisors)
    }

    fn output(&self) -> usize {
        self.inputs.len()
    }
}

/// Mean over windows.
#[derive(Debug)]
pub(crate) struct AveragePool {
    channels: usize,
    height: Windows,
    width: Windows,
}

impl AveragePool {
    /// Windows that slide, without dilation; zeros of the padding count.
    pub(crate) fn sliding(height: Axis, width: Axis, channels: usize) -> Self {
        Self { channels, height: Windows::sliding(height), width: Windows::sliding(width) }
    }

    /// Windows that give `output` from `input`, both `[height, width]`; one window is the mean over all.
    pub(crate) fn adaptive(input: [usize; 2], output: [usize; 2], channels: usize) -> Self {
        let [height, width] = [0, 1].map(|k: usize| Windows::adaptive(input[k], output[k]));
        Self { channels, height, width }
    }

    fn input_len(&self) -> usize {
        self.height.input * self.width.input * self.channels
    }

    fn output_len(&self) -> usize {
        self.height.output() * self.width.output() * self.channels
    }

    /// Writes `y [batch, height, width, channels]`.
    pub(crate) fn forward(&self, x: &[f32], y: &mut [f32], threads: &Threads) {
        let (input, output) = (self.input_len(), self.output_len());
        let samples = items_per_piece(x.len() / input, input);
        let mut pieces: Vec<_> = x.chunks(samples * input).zip(y.chunks_mut(samples * output)).collect();
        threads.each(&mut pieces, |_, (x, y)| simd::run(MeanForward { pool: self, x, y }));
    }

    /// Writes `dx`.
    pub(crate) fn backward(&self, dy: &[f32], dx: &mut [f32], threads: &Threads) {
        let (input, output) = (self.input_len(), self.output_len());
        let samples = items_per_piece(dx.len() / input, input);
        let mut pieces: Vec<_> = dx.chunks_mut(samples * input).zip(dy.chunks(samples * output)).collect();
        threads.each(&mut pieces, |_, (dx, dy)| simd::run(MeanBackward { pool: self, dy, dx }));
    }
}

struct MeanForward<'a> {
    pool: &'a AveragePool,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for MeanForward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { pool, x, y } = self;
        let AveragePool { channels, height, width } = pool;
        let samples = x.chunks_exact(pool.input_len()).zip(y.chunks_exact_mut(pool.output_len()));
        for (x, y) in samples {
            let mut at = 0;
            for (rows, row_divisor) in height.inputs.iter().zip(&height.divisors) {
                for (columns, column_divisor) in width.inputs.iter().zip(&width.divisors) {
                    let scale = 1.0 / (row_divisor * column_divisor);
                    let y = &mut y[at..][..*channels];
                    at += channels;
                    let mut c = 0;
                    while c + LANES <= *channels {
                        let mut sum = [0.0f32; LANES];
                        for i in rows.clone() {
                            for j in columns.clone() {
                                let x = &x[(i * width.input + j) * channels + c..][..LANES];
                                for l in 0..LANES {
                                    sum[l] += x[l];
                                }
                            }
                        }
                        for l in 0..LANES {
                            sum[l] *= scale;
                        }
                        y[c..][..LANES].copy_from_slice(&sum);
                        c += LANES;
                    }
                    for c in c..*channels {
                        let mut sum = 0.0;
                        for i in rows.clone() {
                            for j in columns.clone() {
                                sum += x[(i * width.input + j) * channels + c];
                            }
                        }
                        y[c] = sum * scale;
                    }
                }
            }
        }
    }
}

struct MeanBackward<'a> {
    pool: &'a AveragePool,
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl WithSimd for MeanBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { pool, dy, dx } = self;
        let AveragePool { channels, height, width } = pool;
        let samples = dx.chunks_exact_mut(pool.input_len()).zip(dy.chunks_exact(pool.output_len()));
        for (dx, dy) in samples {
            let mut at = 0;
            for rows in &height.windows {
                for columns in &width.windows {
                    let dx = &mut dx[at..][..*channels];
                    at += channels;
                    dx.fill(0.0);
                    for i in rows.clone() {
                        for j in columns.clone() {
                            let scale = 1.0 / (height.divisors[i] * width.divisors[j]);
                            let dy = &dy[(i * width.output() + j) * channels..][..*channels];
                            for (dx, dy) in dx.iter_mut().zip(dy) {
                                *dx = dy.mul_add(scale, *dx);
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::vector::tests::*, *};

    fn axes() -> Vec<Axis> {
        let axis = |input, kernel, stride, padding| Axis { input, kernel, stride, padding, dilation: 1 };
        vec![axis(1, 1, 1, 0), axis(6, 2, 2, 0), axis(7, 3, 2, 1), axis(5, 2, 3, 1), axis(8, 5, 1, 2), axis(4, 4, 4, 0)]
    }

    /// The windows of a sample as `(output, inputs with tap)`, by the plainest loops.
    fn windows(height: Axis, width: Axis) -> Vec<Vec<(usize, usize)>> {
        let mut all = Vec::new();
        for o in 0..height.output() {
            for p in 0..width.output() {
                let mut window = Vec::new();
                for k in 0..height.kernel {
                    for l in 0..width.kernel {
                        let (i, j) = (o * height.stride + k, p * width.stride + l);
                        let inside = i >= height.padding
                            && j >= width.padding
                            && i - height.padding < height.input
                            && j - width.padding < width.input;
                        if inside {
                            let at = (i - height.padding) * width.input + j - width.padding;
                            window.push((k * width.kernel + l, at));
                        }
                    }
                }
                all.push(window);
            }
        }
        all
    }

    #[test]
    fn maxima_are_the_first_ones_and_get_the_gradient() {
        let two = Threads::new(2).unwrap();
        for height in axes() {
            for width in axes() {
                for channels in [1, 3, 16, 37] {
                    let pool = MaxPool::new(height, width, channels).unwrap();
                    let (batch, windows) = (5, windows(height, width));
                    let pixels = height.input * width.input;
                    // Few different values: many are equal.
                    let x: Vec<f32> =
                        noise(batch * pixels * channels, 1).iter().map(|v| (4.0 * v).round() - 9.0).collect();
                    let dy = noise(batch * windows.len() * channels, 2);
                    let (mut y, mut dx) = (vec![7.0; dy.len()], vec![7.0; x.len()]);
                    let mut taken = vec![9; dy.len()];
                    two.enter(|| {
                        pool.forward(&x, &mut y, &mut taken, &two);
                        pool.backward(&dy, &taken, &mut dx, &two);
                    });
                    let mut expected = vec![0.0f64; x.len()];
                    for (at, y) in y.iter().enumerate() {
                        let (c, window) = (at % channels, &windows[at / channels % windows.len()]);
                        let sample = at / channels / windows.len();
                        let index = |i: usize| (sample * pixels + i) * channels + c;
                        let best = window.iter().map(|(_, i)| x[index(*i)]).fold(f32::NEG_INFINITY, f32::max);
                        let (tap, i) = window.iter().find(|(_, i)| x[index(*i)] == best).unwrap();
                        assert_eq!((*y, taken[at] as usize), (best, *tap));
                        expected[index(*i)] += f64::from(dy[at]);
                    }
                    assert_close(&dx, &expected, 1e-6, &format!("{height:?} {width:?} {channels}"));
                }
            }
        }
    }

    #[test]
    fn a_maximum_of_infinities_or_nan_is_one_of_the_inputs() {
        let axis = Axis { input: 3, kernel: 3, stride: 1, padding: 1, dilation: 1 };
        let pool = MaxPool::new(axis, axis, 1).unwrap();
        let (mut y, mut taken) = (vec![0.0; 9], vec![0; 9]);
        pool.forward(&[f32::NEG_INFINITY; 9], &mut y, &mut taken, &Threads::none());
        assert_eq!(y, [f32::NEG_INFINITY; 9]);
        assert_eq!(taken, [4, 3, 3, 1, 0, 0, 1, 0, 0]);
        let mut x = [1.0; 9];
        x[4] = f32::NAN;
        pool.forward(&x, &mut y, &mut taken, &Threads::none());
        assert!(y.iter().all(|y| y.is_nan()));
    }

    fn check_mean(pool: &AveragePool, windows: &[(Vec<usize>, f64)], pixels: usize, what: &str) {
        let two = Threads::new(2).unwrap();
        let (batch, channels) = (3, pool.channels);
        let (x, dy) = (noise(batch * pixels * channels, 1), noise(batch * windows.len() * channels, 2));
        let (mut y, mut dx) = (vec![7.0; dy.len()], vec![7.0; x.len()]);
        two.enter(|| {
            pool.forward(&x, &mut y, &two);
            pool.backward(&dy, &mut dx, &two);
        });
        let (mut expected_y, mut expected_dx) = (vec![0.0f64; dy.len()], vec![0.0f64; x.len()]);
        for at in 0..dy.len() {
            let (c, (window, divisor)) = (at % channels, &windows[at / channels % windows.len()]);
            let sample = at / channels / windows.len();
            for i in window {
                let index = (sample * pixels + i) * channels + c;
                expected_y[at] += f64::from(x[index]) / divisor;
                expected_dx[index] += f64::from(dy[at]) / divisor;
            }
        }
        assert_close(&y, &expected_y, 1e-5, what);
        assert_close(&dx, &expected_dx, 1e-5, what);
    }

    #[test]
    fn sliding_means_count_the_padding() {
        for height in axes() {
            for width in axes() {
                for channels in [1, 3, 16, 37] {
                    let divisor = (height.kernel * width.kernel) as f64;
                    let windows: Vec<_> = windows(height, width)
                        .iter()
                        .map(|window| (window.iter().map(|(_, i)| *i).collect(), divisor))
                        .collect();
                    let pool = AveragePool::sliding(height, width, channels);
                    check_mean(&pool, &windows, height.input * width.input, &format!("{height:?} {width:?}"));
                }
            }
        }
    }

    #[test]
    fn adaptive_means_have_the_windows_of_pytorch() {
        // torch.nn.AdaptiveAvgPool1d(3) of 7 values: 0..3, 2..5, 4..7.
        assert_eq!(Windows::adaptive(7, 3).inputs, [0..3, 2..5, 4..7]);
        assert_eq!(Windows::adaptive(2, 3).inputs, [0..1, 0..2, 1..2]);
        for ([height, width], [tall, wide]) in
            [([7, 9], [1, 1]), ([7, 10], [3, 4]), ([2, 3], [3, 5]), ([1, 17], [1, 1]), ([8, 8], [8, 2])]
        {
            for channels in [1, 3, 16, 37] {
                let ends = |input: usize, output: usize, o: usize| {
                    let ratio = input as f64 / output as f64;
                    let end = ((o + 1) as f64 * ratio - 1e-9).ceil() as usize;
                    (o as f64 * ratio + 1e-9).floor() as usize..end
                };
                let mut windows = Vec::new();
                for o in 0..tall {
                    for p in 0..wide {
                        let columns = ends(width, wide, p);
                        let window: Vec<usize> = ends(height, tall, o)
                            .flat_map(|i| columns.clone().map(move |j| i * width + j))
                            .collect();
                        let divisor = window.len() as f64;
                        windows.push((window, divisor));
                    }
                }
                let pool = AveragePool::adaptive([height, width], [tall, wide], channels);
                check_mean(&pool, &windows, height * width, &format!("{height} x {width} to {tall} x {wide}"));
            }
        }
    }
}
