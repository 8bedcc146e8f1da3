//! Lloyd-Max codebooks (Lloyd 1982, Max 1960) over a histogram of [-1, 1].
//!
//! One pass over the data fills the histogram; the cost of an iteration then depends on the number of
//! levels alone. Only additions, multiplications and divisions of f64 are used, in a fixed order, so
//! that a decoder that repeats the computation gets the same bits.

/// Weight and first moment per cell of [-1, 1].
#[derive(Debug, Default, Clone)]
pub struct Histogram {
    weight: Vec<f64>,
    moment: Vec<f64>,
    cells: usize,
}

impl Histogram {
    /// Empties it and gives it `cells` cells.
    pub fn reset(&mut self, cells: usize) {
        self.cells = cells;
        self.weight.clear();
        self.weight.resize(cells + 1, 0.0);
        self.moment.clear();
        self.moment.resize(cells + 1, 0.0);
    }

    /// The cell of `u`.
    #[inline(always)]
    pub fn cell(&self, u: f32) -> usize {
        cell_of(u, self.cells)
    }

    /// Adds `weight` at `u` to `cell`.
    #[inline(always)]
    pub fn add(&mut self, cell: usize, weight: f64, u: f64) {
        self.weight[cell + 1] += weight;
        self.moment[cell + 1] += weight * u;
    }

    /// One histogram for each of `spans` spans (at least one), for [`Self::accumulate`].
    pub fn for_each(buffers: &mut Vec<Self>, spans: usize, cells: usize) -> std::slice::IterMut<'_, Self> {
        buffers.resize_with(spans.max(1), Self::default);
        if spans == 0 {
            buffers[0].reset(cells);
        }
        buffers[..spans].iter_mut()
    }

    /// Adds the histograms of all spans, in order, and turns the cells into running sums. Call it once,
    /// before [`lloyd_max`].
    pub fn accumulate(histograms: &mut [Self]) -> &Self {
        let (first, others) = histograms.split_at_mut(1);
        let first = &mut first[0];
        for other in others {
            let sums = first.weight.iter_mut().zip(&mut first.moment);
            for ((weight, moment), (w, m)) in sums.zip(other.weight.iter().zip(&other.moment)) {
                *weight += w;
                *moment += m;
            }
        }
        for i in 1..=first.cells {
            first.weight[i] += first.weight[i - 1];
            first.moment[i] += first.moment[i - 1];
        }
        first
    }

    /// Squared error of ascending levels, less the energy of the data.
    pub fn error(&self, levels: &[f32]) -> f64 {
        let mut trial = [0.0; 256];
        let trial = &mut trial[..levels.len()];
        for (trial, level) in trial.iter_mut().zip(levels) {
            *trial = f64::from(*level);
        }
        centroids(self, trial)
    }

    /// Weight and moment of what lies below `u`; within a cell both grow linearly.
    fn below(&self, u: f64) -> (f64, f64) {
        let position = ((u + 1.0) * 0.5 * self.cells as f64).clamp(0.0, self.cells as f64);
        let cell = (position as usize).min(self.cells - 1);
        let part = position - cell as f64;
        let at = |sums: &[f64]| sums[cell] + part * (sums[cell + 1] - sums[cell]);
        (at(&self.weight), at(&self.moment))
    }
}

/// The cell of `u` among `cells` over [-1, 1].
#[inline(always)]
pub fn cell_of(u: f32, cells: usize) -> usize {
    let position = (u + 1.0) * (0.5 * cells as f32);
    (position as i32).clamp(0, cells as i32 - 1) as usize
}

/// Half widths of the uniform codebooks that the search starts from.
const CLIPS: [f64; 6] = [1.0, 0.8, 0.64, 0.5, 0.36, 0.25];

/// Fills `levels` (at least two) with the codebook of least squared error, in ascending order.
///
/// Starts from the best of a few uniform codebooks. With `keep_zero` the level nearest to zero is set to
/// zero. `iterations` bounds the work.
pub fn lloyd_max(histogram: &Histogram, levels: &mut [f64], keep_zero: bool, iterations: usize) {
    let mut best = f64::INFINITY;
    let mut trial = [0.0; 256];
    let trial = &mut trial[..levels.len()];
    for clip in CLIPS {
        let step = 2.0 * clip / (levels.len() - 1) as f64;
        for (i, level) in trial.iter_mut().enumerate() {
            *level = i as f64 * step - clip;
        }
        if keep_zero {
            snap_to_zero(trial);
        }
        let error = centroids(histogram, trial);
        if error < best {
            best = error;
            levels.copy_from_slice(trial);
        }
    }
    for _ in 0..iterations {
        if keep_zero {
            snap_to_zero(levels);
        }
        let error = centroids(histogram, levels);
        // Converged: the last iteration changed the error by less than 1e-5 of it.
        if (best - error).abs() <= 1e-5 * best.abs() {
            break;
        }
        best = error;
    }
    if keep_zero {
        snap_to_zero(levels);
    }
}

fn snap_to_zero(levels: &mut [f64]) {
    let mut nearest = 0;
    for i in 1..levels.len() {
        if levels[i].abs() < levels[nearest].abs() {
            nearest = i;
        }
    }
    levels[nearest] = 0.0;
}

/// Moves every level to the centroid of its cell. Returns the squared error before the move, less the
/// energy of the data.
fn centroids(histogram: &Histogram, levels: &mut [f64]) -> f64 {
    let mut error = 0.0;
    let (mut weight_below, mut moment_below) = (0.0, 0.0);
    for i in 0..levels.len() {
        let upper = if i + 1 < levels.len() { (levels[i] + levels[i + 1]) * 0.5 } else { 1.0 };
        let (weight, moment) = histogram.below(upper);
        let (cell_weight, cell_moment) = (weight - weight_below, moment - moment_below);
        let level = levels[i];
        error += level * level * cell_weight - 2.0 * level * cell_moment;
        if cell_weight > 0.0 {
            levels[i] = (cell_moment / cell_weight).clamp(-1.0, 1.0);
        }
        (weight_below, moment_below) = (weight, moment);
    }
    error
}

/// Cells of [`LevelFinder`]'s table.
const FINDER_CELLS: usize = 4096;

/// Finds the level nearest to a value of [-1, 1] by one table look-up and two comparisons.
#[derive(Debug, Clone)]
pub struct LevelFinder {
    /// Code of the level nearest to the lower end of each cell.
    first: Box<[u8; FINDER_CELLS]>,
    /// Upper bound of each level's cell; infinite for the last.
    upper: [f32; 256],
}

impl Default for LevelFinder {
    fn default() -> Self {
        Self { first: Box::new([0; FINDER_CELLS]), upper: [f32::INFINITY; 256] }
    }
}

impl LevelFinder {
    /// Prepares for ascending `levels`.
    pub fn prepare(&mut self, levels: &[f32]) {
        self.upper.fill(f32::INFINITY);
        for (upper, pair) in self.upper.iter_mut().zip(levels.windows(2)) {
            *upper = 0.5 * (pair[0] + pair[1]);
        }
        let mut level = 0;
        for (cell, first) in self.first.iter_mut().enumerate() {
            let start = cell as f32 / (FINDER_CELLS / 2) as f32 - 1.0;
            while start > self.upper[level] {
                level += 1;
            }
            *first = level as u8;
        }
    }

    /// The code of the level nearest to `u`.
    #[inline(always)]
    pub fn code(&self, u: f32) -> u8 {
        let mut code = self.first[cell_of(u, FINDER_CELLS)];
        code += u8::from(u > self.upper[code as usize]);
        code += u8::from(u > self.upper[code as usize]);
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Max (1960), table I: the error of the best n-level quantizer of a Gaussian.
    #[test]
    fn gaussian_codebooks_reach_the_published_error() {
        let mut histogram = Histogram::default();
        histogram.reset(8192);
        let sigma = 0.2;
        let mut energy = 0.0;
        for i in 0..8192 {
            let u = (f64::from(i) + 0.5) / 4096.0 - 1.0;
            let weight = (-0.5 * (u / sigma) * (u / sigma)).exp();
            energy += weight * u * u;
            histogram.add(i as usize, weight, u);
        }
        Histogram::accumulate(std::slice::from_mut(&mut histogram));
        for (bits, published) in [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)] {
            let mut levels = vec![0.0; 1 << bits];
            lloyd_max(&histogram, &mut levels, false, 300);
            let nmse = 1.0 + centroids(&histogram, &mut levels) / energy;
            assert!((nmse / published - 1.0).abs() < 0.02, "{bits} bits: {nmse} against {published}");
        }
    }

    #[test]
    fn finder_agrees_with_a_search() {
        let levels: Vec<f32> = (0..16).map(|i| ((i as f32 - 7.0) / 9.0).powi(3)).collect();
        let mut finder = LevelFinder::default();
        finder.prepare(&levels);
        for i in -1000..=1000 {
            let u = i as f32 / 1000.0;
            let best = levels.iter().map(|l| (l - u).abs()).fold(f32::INFINITY, f32::min);
            assert!((levels[finder.code(u) as usize] - u).abs() <= best + 1e-6);
        }
    }
}
