//! Samples in memory, and batches drawn from them.

use crate::{DatasetError, Part};
use fl_protocol::Normalization;

/// The features of all samples, one after the other, each row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum Features {
    /// Raw bytes, such as pixels.
    U8(Vec<u8>),
    /// Numbers.
    F32(Vec<f32>),
}

/// A list of samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    features: Features,
    labels: Vec<u32>,
    num_features: usize,
}

impl Split {
    /// Joins features and labels.
    ///
    /// # Panics
    /// If there are not `num_features` values for each label.
    pub(crate) fn new(features: Features, labels: Vec<u32>, num_features: usize) -> Self {
        let len = match &features {
            Features::U8(values) => values.len(),
            Features::F32(values) => values.len(),
        };
        assert_eq!(len, labels.len() * num_features, "features and labels differ in number");
        Self { features, labels, num_features }
    }

    /// A split without samples.
    pub(crate) fn empty(num_features: usize) -> Self {
        Self { features: Features::U8(Vec::new()), labels: Vec::new(), num_features }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True if there are no samples.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// The class of every sample.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    pub(crate) fn labels_mut(&mut self) -> &mut [u32] {
        &mut self.labels
    }

    /// The raw values of every sample.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Number of values of one sample.
    pub fn num_features(&self) -> usize {
        self.num_features
    }

    /// Fills `x` with the normalised values of the samples `indices`, row after row, and `y` with
    /// their classes. The buffers keep their memory from call to call.
    ///
    /// # Panics
    /// If an index is out of range, or `normalization` does not fit (see [`check_normalization`]).
    ///
    /// [`check_normalization`]: Self::check_normalization
    pub fn gather(&self, indices: &[u32], normalization: &Normalization, x: &mut Vec<f32>, y: &mut Vec<u32>) {
        let width = self.num_features;
        x.resize(indices.len() * width, 0.0);
        y.clear();
        y.extend(indices.iter().map(|&index| self.labels[index as usize]));
        let rows = x.chunks_exact_mut(width.max(1)).zip(indices);
        match &self.features {
            Features::U8(values) => {
                rows.for_each(|(out, &i)| normalise(row(values, i, width), normalization, out));
            }
            Features::F32(values) => {
                rows.for_each(|(out, &i)| normalise(row(values, i, width), normalization, out));
            }
        }
    }

    /// Checks that `normalization` fits these samples, so that [`gather`](Self::gather) can use it.
    ///
    /// # Errors
    /// If its lengths differ or do not divide the sample, or a value is not finite, or a deviation is 0.
    pub fn check_normalization(&self, normalization: &Normalization) -> Result<(), DatasetError> {
        let (mean, std) = (normalization.mean.len(), normalization.std.len());
        let usable = mean == std
            && mean > 0
            && self.num_features.is_multiple_of(mean)
            && normalization.mean.iter().all(|value| value.is_finite())
            && normalization.std.iter().all(|value| value.is_finite() && *value != 0.0);
        match usable {
            true => Ok(()),
            false => Err(DatasetError::Normalization { mean, std, features: self.num_features }),
        }
    }
}

fn row<T>(values: &[T], index: u32, width: usize) -> &[T] {
    let start = index as usize * width;
    &values[start..start + width]
}

/// `(raw - mean) / std`. One mean applies to a run of values: the sample, a channel, or one value.
///
/// This is on the training path. Multiplying by the inverse lets the compiler use vectors; a table of
/// the 256 results of a byte took 1.6 to 2 times as long, because loads from a table do not vectorise.
fn normalise<T: Copy + Into<f32>>(raw: &[T], normalization: &Normalization, out: &mut [f32]) {
    let (means, stds) = (&normalization.mean, &normalization.std);
    let run = raw.len() / means.len();
    if run == 1 {
        for (((out, &value), mean), std) in out.iter_mut().zip(raw).zip(means).zip(stds) {
            *out = (value.into() - mean) * (1.0 / std);
        }
        return;
    }
    let runs = out.chunks_exact_mut(run).zip(raw.chunks_exact(run));
    for ((out, raw), (&mean, &std)) in runs.zip(means.iter().zip(stds)) {
        let inverse = 1.0 / std;
        for (out, &value) in out.iter_mut().zip(raw) {
            *out = (value.into() - mean) * inverse;
        }
    }
}

/// Divides samples that came as one list: the fifth, tenth, fifteenth ... sample of each class is test
/// data, the others are training data. Nothing is random, so that any program can reproduce the split.
/// With [`Part::AllForTraining`] every sample is training data.
pub(crate) fn every_fifth_is_test(
    features: Features,
    labels: Vec<u32>,
    width: usize,
    part: Part,
) -> (Split, Split) {
    if part == Part::AllForTraining {
        return (Split::new(features, labels, width), Split::empty(width));
    }
    let is_test = fifths(&labels);
    let pick = |wanted: bool, test: bool| match wanted {
        true => select(&features, &labels, width, |index| is_test[index] == test),
        false => Split::empty(width),
    };
    (pick(part.has_train(), false), pick(part.has_test(), true))
}

/// For each sample, whether it is a test sample.
pub(crate) fn fifths(labels: &[u32]) -> Vec<bool> {
    let classes = labels.iter().max().map_or(0, |&max| max as usize + 1);
    let mut seen = vec![0u32; classes];
    let mark = |&label: &u32| {
        seen[label as usize] += 1;
        seen[label as usize].is_multiple_of(5)
    };
    labels.iter().map(mark).collect()
}

fn select(features: &Features, labels: &[u32], width: usize, keep: impl Fn(usize) -> bool) -> Split {
    let kept: Vec<u32> = (0..labels.len()).filter(|&index| keep(index)).map(|index| index as u32).collect();
    fn rows<T: Copy>(values: &[T], kept: &[u32], width: usize) -> Vec<T> {
        let mut out = Vec::with_capacity(kept.len() * width);
        kept.iter().for_each(|&index| out.extend_from_slice(row(values, index, width)));
        out
    }
    let features = match features {
        Features::U8(values) => Features::U8(rows(values, &kept, width)),
        Features::F32(values) => Features::F32(rows(values, &kept, width)),
    };
    Split::new(features, kept.iter().map(|&index| labels[index as usize]).collect(), width)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes() -> Split {
        Split::new(Features::U8((0..24).collect()), vec![0, 1, 2], 8)
    }

    fn norm(mean: &[f32], std: &[f32]) -> Normalization {
        Normalization { mean: mean.to_vec(), std: std.to_vec() }
    }

    #[test]
    fn gathers_in_the_given_order_and_reuses_buffers() {
        let (mut x, mut y) = (Vec::new(), Vec::new());
        bytes().gather(&[2, 0], &norm(&[4.0], &[2.0]), &mut x, &mut y);
        assert_eq!(y, [2, 0]);
        assert_eq!(x.len(), 16);
        assert_eq!(x[..3], [6.0, 6.5, 7.0]);
        assert_eq!(x[8..10], [-2.0, -1.5]);
        let before = x.as_ptr();
        bytes().gather(&[1], &norm(&[0.0], &[1.0]), &mut x, &mut y);
        assert_eq!((x.as_ptr(), x.len(), y.len()), (before, 8, 1));
        assert_eq!(x, [8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
    }

    #[test]
    fn normalises_by_channel_and_by_value() {
        let (mut x, mut y) = (Vec::new(), Vec::new());
        bytes().gather(&[0], &norm(&[0.0, 4.0], &[1.0, 2.0]), &mut x, &mut y);
        assert_eq!(x, [0.0, 1.0, 2.0, 3.0, 0.0, 0.5, 1.0, 1.5]);
        let mean: Vec<f32> = (0..8).map(|v| v as f32).collect();
        bytes().gather(&[1], &norm(&mean, &[4.0; 8]), &mut x, &mut y);
        assert_eq!(x, [2.0; 8]);
    }

    #[test]
    fn numbers_take_the_same_path() {
        let split = Split::new(Features::F32(vec![1.5, -2.0]), vec![0], 2);
        let (mut x, mut y) = (Vec::new(), Vec::new());
        split.gather(&[0, 0], &norm(&[0.5], &[0.5]), &mut x, &mut y);
        assert_eq!(x, [2.0, -5.0, 2.0, -5.0]);
    }

    #[test]
    fn refuses_a_normalisation_that_does_not_fit() {
        let split = bytes();
        assert!(split.check_normalization(&norm(&[0.0; 8], &[1.0; 8])).is_ok());
        assert!(split.check_normalization(&norm(&[0.0; 2], &[1.0; 2])).is_ok());
        for bad in [
            norm(&[], &[]),
            norm(&[0.0; 3], &[1.0; 3]),
            norm(&[0.0; 2], &[1.0]),
            norm(&[0.0], &[0.0]),
            norm(&[f32::NAN], &[1.0]),
        ] {
            assert!(split.check_normalization(&bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_fifth_of_each_class_is_test() {
        let labels: Vec<u32> = (0..20).map(|i| i % 2).collect();
        let features = Features::U8((0..20).collect());
        let (train, test) = every_fifth_is_test(features, labels, 1, Part::Both);
        assert_eq!(test.features(), &Features::U8(vec![8, 9, 18, 19]));
        assert_eq!(train.len(), 16);
    }
}
