//! Averages that a few hostile updates cannot move far. All take the updates in the order of the
//! workers' names, so that the result does not depend on the order of arrival, and give the result some
//! coordinates at a time: `f(offset, values)`.

/// Coordinates that are worked on at a time, so that their values lie in the first cache levels.
const BLOCK: usize = 256;

/// Calls `f` with what `summarize` makes of the sorted values of every coordinate.
fn sorted_coordinates(
    updates: &[&[f32]],
    summarize: impl Fn(&[f32]) -> f64,
    mut f: impl FnMut(usize, &mut [f64]),
) {
    let length = updates.first().map_or(0, |update| update.len());
    let mut rows = vec![0.0f32; BLOCK * updates.len()];
    let mut block = [0.0; BLOCK];
    for start in (0..length).step_by(BLOCK) {
        let end = length.min(start + BLOCK);
        for (index, update) in updates.iter().enumerate() {
            for (row, value) in rows.chunks_exact_mut(updates.len()).zip(&update[start..end]) {
                row[index] = *value;
            }
        }
        let block = &mut block[..end - start];
        for (row, value) in rows.chunks_exact_mut(updates.len()).zip(&mut *block) {
            row.sort_unstable_by(f32::total_cmp);
            *value = summarize(row);
        }
        f(start, block);
    }
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64
}

/// The median of each coordinate; of an even number of updates the mean of the two in the middle.
pub fn median(updates: &[&[f32]], f: impl FnMut(usize, &mut [f64])) {
    let count = updates.len();
    sorted_coordinates(updates, |sorted| mean(&sorted[(count - 1) / 2..=count / 2]), f);
}

/// The mean of each coordinate without its `cut` smallest and `cut` largest values, or without as many as
/// leave one or two.
pub fn trimmed_mean(updates: &[&[f32]], cut: usize, f: impl FnMut(usize, &mut [f64])) {
    let cut = cut.min(updates.len().saturating_sub(1) / 2);
    sorted_coordinates(updates, |sorted| mean(&sorted[cut..sorted.len() - cut]), f);
}

/// The indices of the `chosen` updates with the smallest scores, ascending: a score is the sum of the squared
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
    // Eight sums side by side: additions to a single one would wait for each other.
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
pub fn mean_of(updates: &[&[f32]], chosen: &[usize], mut f: impl FnMut(usize, &mut [f64])) {
    let chosen: Vec<&[f32]> = chosen.iter().map(|&i| updates[i]).collect();
    let parameters = chosen.first().map_or(0, |update| update.len());
    let mut block = [0.0; BLOCK];
    for start in (0..parameters).step_by(BLOCK) {
        let block = &mut block[..BLOCK.min(parameters - start)];
        for (coordinate, value) in (start..).zip(&mut *block) {
            let sum: f64 = chosen.iter().map(|update| f64::from(update[coordinate])).sum();
            *value = sum / chosen.len() as f64;
        }
        f(start, block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collect(run: impl FnOnce(&mut dyn FnMut(usize, &mut [f64]))) -> Vec<f64> {
        let mut out = Vec::new();
        run(&mut |offset, values| {
            assert_eq!(offset, out.len());
            out.extend_from_slice(values);
        });
        out
    }

    #[test]
    fn median_and_trimmed_mean_of_small_numbers() {
        let updates: [&[f32]; 4] = [&[1.0, 9.0], &[2.0, -5.0], &[100.0, 1.0], &[3.0, 3.0]];
        assert_eq!(collect(|f| median(&updates, f)), [2.5, 2.0]);
        assert_eq!(collect(|f| median(&updates[..3], f)), [2.0, 1.0]);
        assert_eq!(collect(|f| trimmed_mean(&updates, 1, f)), [2.5, 2.0]);
        assert_eq!(collect(|f| trimmed_mean(&updates, 9, f)), [2.5, 2.0]);
        assert!(collect(|f| trimmed_mean(&[], 1, f)).is_empty());
    }

    #[test]
    fn long_vectors_are_cut_into_blocks_without_a_seam() {
        let rows: Vec<Vec<f32>> = (0..3).map(|k| (0..1000).map(|i| (i * (k + 1)) as f32).collect()).collect();
        let updates: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let expected: Vec<f64> = (0..1000).map(|i| f64::from(2 * i)).collect();
        assert_eq!(collect(|f| median(&updates, f)), expected);
        assert_eq!(collect(|f| mean_of(&updates, &[0, 1, 2], f)), expected);
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
