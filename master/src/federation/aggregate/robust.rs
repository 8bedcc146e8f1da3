//! Averages that a few hostile updates cannot move far. All take the updates in the order of the
//! workers' names, so that the result does not depend on the order of arrival.

/// Coordinates that are worked on at a time, so that their values lie in the first cache levels.
const BLOCK: usize = 256;

/// Calls `f(coordinate, values)` with the values of every coordinate, sorted.
fn sorted_coordinates(updates: &[&[f32]], mut f: impl FnMut(usize, &[f32])) {
    let length = updates.first().map_or(0, |update| update.len());
    let mut block = vec![0.0f32; BLOCK * updates.len()];
    for start in (0..length).step_by(BLOCK) {
        let end = length.min(start + BLOCK);
        for (index, update) in updates.iter().enumerate() {
            for (row, value) in block.chunks_exact_mut(updates.len()).zip(&update[start..end]) {
                row[index] = *value;
            }
        }
        for (row, coordinate) in block.chunks_exact_mut(updates.len()).zip(start..end) {
            row.sort_unstable_by(f32::total_cmp);
            f(coordinate, row);
        }
    }
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64
}

/// The median of each coordinate; of an even number of updates the mean of the two in the middle.
pub fn median(updates: &[&[f32]], mut f: impl FnMut(usize, f64)) {
    let count = updates.len();
    sorted_coordinates(updates, |coordinate, sorted| {
        f(coordinate, mean(&sorted[(count - 1) / 2..=count / 2]));
    });
}

/// The mean of each coordinate without its `cut` smallest and `cut` largest values.
///
/// # Panics
/// If that leaves none.
pub fn trimmed_mean(updates: &[&[f32]], cut: usize, mut f: impl FnMut(usize, f64)) {
    assert!(updates.len() > 2 * cut, "more updates than are left out");
    let kept = cut..updates.len() - cut;
    sorted_coordinates(updates, |coordinate, sorted| f(coordinate, mean(&sorted[kept.clone()])));
}

/// The `chosen` updates with the smallest scores, in their order: a score is the sum of the squared
/// distances to the `n - hostile - 2` nearest other updates. Ties go to the first by name.
pub fn krum(updates: &[&[f32]], hostile: usize, chosen: usize) -> Vec<usize> {
    let count = updates.len();
    let mut distances = vec![0.0f64; count * count];
    for i in 0..count {
        for j in 0..i {
            let distance = squared_distance(updates[i], updates[j]);
            distances[i * count + j] = distance;
            distances[j * count + i] = distance;
        }
    }
    let near = count.saturating_sub(hostile + 2);
    let score = |i: usize| {
        let mut others: Vec<f64> = (0..count).filter(|j| *j != i).map(|j| distances[i * count + j]).collect();
        others.sort_unstable_by(f64::total_cmp);
        others.iter().take(near).sum::<f64>()
    };
    let mut ranked: Vec<(f64, usize)> = (0..count).map(|i| (score(i), i)).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut best: Vec<usize> = ranked.into_iter().take(chosen).map(|(_, i)| i).collect();
    best.sort_unstable();
    best
}

fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    // Eight sums side by side: one alone would wait for itself.
    let mut sums = [0.0f64; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            let difference = f64::from(*a) - f64::from(*b);
            *sum += difference * difference;
        }
    }
    sums.iter().sum()
}

/// The mean of the updates with these indices.
pub fn mean_of(updates: &[&[f32]], chosen: &[usize], mut f: impl FnMut(usize, f64)) {
    let chosen: Vec<&[f32]> = chosen.iter().map(|&i| updates[i]).collect();
    let parameters = chosen.first().map_or(0, |update| update.len());
    for coordinate in 0..parameters {
        let sum: f64 = chosen.iter().map(|update| f64::from(update[coordinate])).sum();
        f(coordinate, sum / chosen.len() as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(run: impl FnOnce(&mut dyn FnMut(usize, f64))) -> Vec<f64> {
        let mut out = Vec::new();
        run(&mut |i, value| {
            assert_eq!(i, out.len());
            out.push(value);
        });
        out
    }

    #[test]
    fn median_and_trimmed_mean_of_small_numbers() {
        let updates: [&[f32]; 4] = [&[1.0, 9.0], &[2.0, -5.0], &[100.0, 1.0], &[3.0, 3.0]];
        assert_eq!(collect(|f| median(&updates, f)), [2.5, 2.0]);
        assert_eq!(collect(|f| median(&updates[..3], f)), [2.0, 1.0]);
        assert_eq!(collect(|f| trimmed_mean(&updates, 1, f)), [2.5, 2.0]);
    }

    #[test]
    fn long_vectors_are_cut_into_blocks_without_a_seam() {
        let rows: Vec<Vec<f32>> = (0..3).map(|k| (0..1000).map(|i| (i * (k + 1)) as f32).collect()).collect();
        let updates: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let expected: Vec<f64> = (0..1000).map(|i| f64::from(2 * i)).collect();
        assert_eq!(collect(|f| median(&updates, f)), expected);
    }

    #[test]
    fn krum_leaves_the_far_ones_out() {
        let updates: [&[f32]; 7] =
            [&[1.0, 1.0], &[1.1, 1.0], &[90.0, 0.0], &[1.0, 1.1], &[1.05, 1.05], &[-90.0, 0.0], &[1.2, 1.2]];
        assert_eq!(krum(&updates, 2, 1), [4]);
        assert_eq!(krum(&updates, 2, 5), [0, 1, 3, 4, 6]);
        assert_eq!(collect(|f| mean_of(&updates, &[0, 1], f)), [(1.0 + f64::from(1.1f32)) / 2.0, 1.0]);
    }
}
