//! Brings an image to another size.

use super::decode::Picture;

/// Which source pixels make a target pixel: the first, and the weight of each.
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

/// Linear interpolation; where the image shrinks, the kernel is widened by the same factor, so that every source
/// pixel counts. Weights sum to 1.
fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f32 / to as f32;
    let reach = scale.max(1.0);
    let tap = |target: usize| {
        let centre = (target as f32 + 0.5) * scale - 0.5;
        let first = (centre - reach).ceil().max(0.0) as usize;
        let last = ((centre + reach).floor().max(0.0) as usize).min(from - 1);
        let first = first.min(last);
        let mut weights: Vec<f32> =
            (first..=last).map(|source| (1.0 - (source as f32 - centre).abs() / reach).max(0.0)).collect();
        let sum: f32 = weights.iter().sum();
        if sum > 0.0 {
            weights.iter_mut().for_each(|weight| *weight /= sum);
        } else {
            weights.fill(1.0 / (last - first + 1) as f32);
        }
        Taps { first, weights }
    };
    (0..to).map(tap).collect()
}

/// Writes `picture` with another size to `out`, in the order of its pixels. The proportions may change.
///
/// Rows are mixed first, so that no more than one row of the source is held besides the source.
pub(super) fn resize(picture: &Picture, width: usize, height: usize, out: &mut Vec<u8>) {
    let Picture { width: from_width, height: from_height, channels, pixels } = picture;
    let (rows, columns) = (taps(*from_height, height), taps(*from_width, width));
    let line = from_width * channels;
    let mut mixed = vec![0.0f32; line];
    out.clear();
    out.reserve(width * height * channels);
    for row in &rows {
        mixed.fill(0.0);
        for (source, &weight) in pixels.chunks_exact(line).skip(row.first).zip(&row.weights) {
            mixed.iter_mut().zip(source).for_each(|(sum, &value)| *sum += weight * f32::from(value));
        }
        for column in &columns {
            let sources = mixed.chunks_exact(*channels).skip(column.first);
            let mut sums = [0.0f32; 3];
            for (source, &weight) in sources.zip(&column.weights) {
                sums.iter_mut().zip(source).for_each(|(sum, &value)| *sum += weight * value);
            }
            out.extend(sums[..*channels].iter().map(|sum| (sum + 0.5).clamp(0.0, 255.0) as u8));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: usize, height: usize, channels: usize, pixels: Vec<u8>) -> Picture {
        Picture { width, height, channels, pixels }
    }

    fn resized(picture: &Picture, width: usize, height: usize) -> Vec<u8> {
        let mut out = Vec::new();
        resize(picture, width, height, &mut out);
        out
    }

    #[test]
    fn a_single_colour_stays_what_it_is() {
        let red = picture(5, 7, 3, [200, 10, 0].repeat(35));
        for (width, height) in [(1, 1), (3, 2), (5, 7), (16, 9), (1, 40)] {
            assert_eq!(resized(&red, width, height), [200, 10, 0].repeat(width * height));
        }
    }

    #[test]
    fn shrinking_takes_means_and_the_same_size_changes_nothing() {
        let stripes = picture(64, 2, 1, [0, 200].repeat(64));
        assert!(resized(&stripes, 8, 1).iter().all(|&value| (90..=110).contains(&value)));
        let any = picture(3, 2, 1, vec![1, 2, 3, 250, 0, 9]);
        assert_eq!(resized(&any, 3, 2), any.pixels);
    }

    #[test]
    fn enlarging_keeps_left_and_right_apart() {
        let edge = picture(2, 1, 1, vec![0, 100]);
        assert_eq!(resized(&edge, 8, 1), [0, 0, 13, 38, 63, 88, 100, 100]);
    }
}
