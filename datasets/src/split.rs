//! Samples in memory, and batches drawn from them.

use crate::{
    DatasetError, Part,
    samples::{Kind, Samples},
    text::Tokens,
};
use fl_protocol::{Normalization, Targets};

/// The features of all samples, one after the other, each row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum Features {
    /// Raw bytes, such as pixels.
    U8(Vec<u8>),
    /// Numbers.
    F32(Vec<f32>),
    /// A text, which is cut into sequences when samples are gathered.
    Text(Tokens),
}

/// What is to be learnt of each sample.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answers {
    /// Its class.
    Classes(Vec<u32>),
    /// Numbers, or a 1 for each label that applies and a 0 for every other.
    Numbers {
        /// Those of all samples, one after the other.
        values: Vec<f32>,
        /// Numbers a sample.
        outputs: usize,
    },
    /// The next token of a text.
    NextTokens,
}

/// A list of samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    features: Features,
    answers: Answers,
    num_features: usize,
    len: usize,
}

impl Split {
    /// Joins features and labels.
    ///
    /// # Panics
    /// If there are not `num_features` values for each label.
    pub(crate) fn new(features: Features, answers: impl Into<Answers>, num_features: usize) -> Self {
        let answers = answers.into();
        let values = match &features {
            Features::U8(values) => values.len(),
            Features::F32(values) => values.len(),
            Features::Text(_) => 0,
        };
        let len = match &answers {
            Answers::Classes(labels) => labels.len(),
            Answers::Numbers { values, outputs } => values.len() / (*outputs).max(1),
            Answers::NextTokens => 0,
        };
        assert_eq!(values, len * num_features, "features and labels differ in number");
        Self { features, answers, num_features, len }
    }

    /// A text in sequences of `length` tokens, each with the tokens that follow as targets. They do not overlap,
    /// except that the last target is the first token of the next sequence; what is left at the end is unused.
    pub(crate) fn text(tokens: Tokens, length: usize) -> Self {
        let len = tokens.len().saturating_sub(1) / length.max(1);
        Self { features: Features::Text(tokens), answers: Answers::NextTokens, num_features: length, len }
    }

    /// A split without samples.
    pub(crate) fn empty(num_features: usize) -> Self {
        Self::new(Features::U8(Vec::new()), Vec::new(), num_features)
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if there are no samples.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The class of every sample; none unless the task is a classification.
    pub fn labels(&self) -> &[u32] {
        match &self.answers {
            Answers::Classes(labels) => labels,
            Answers::Numbers { .. } | Answers::NextTokens => &[],
        }
    }

    /// The targets of all samples, in the order of the samples; none for a text, whose targets are its tokens.
    pub fn targets(&self) -> Targets<'_> {
        match &self.answers {
            Answers::Numbers { values, .. } => Targets::Numbers(values),
            Answers::Classes(_) | Answers::NextTokens => Targets::Classes(self.labels()),
        }
    }

    pub(crate) fn labels_mut(&mut self) -> &mut [u32] {
        match &mut self.answers {
            Answers::Classes(labels) => labels,
            Answers::Numbers { .. } | Answers::NextTokens => &mut [],
        }
    }

    /// The raw values of every sample.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Number of values of one sample: the length of a sequence for a text.
    pub fn num_features(&self) -> usize {
        self.num_features
    }

    /// Fills `out` with the samples `indices`: normalised values row after row, or tokens, and the targets.
    ///
    /// # Panics
    /// If an index is out of range, or `normalization` does not fit (see [`check_normalization`]).
    ///
    /// [`check_normalization`]: Self::check_normalization
    pub fn gather(&self, indices: &[u32], normalization: &Normalization, out: &mut Samples) {
        let width = self.num_features;
        let Samples { numbers, tokens, classes, outputs, kind } = out;
        *kind = match &self.answers {
            Answers::Classes(labels) => {
                classes.clear();
                classes.extend(indices.iter().map(|&i| labels[i as usize]));
                Kind::Classified
            }
            Answers::Numbers { values, outputs: count } => {
                outputs.clear();
                indices.iter().for_each(|&i| outputs.extend_from_slice(row(values, i, *count)));
                Kind::Measured
            }
            Answers::NextTokens => Kind::Text,
        };
        match &self.features {
            Features::U8(values) => gather_rows(values, indices, width, normalization, numbers),
            Features::F32(values) => gather_rows(values, indices, width, normalization, numbers),
            Features::Text(text) => text.gather(indices, width, tokens, classes),
        }
    }

    /// Checks that `normalization` fits these samples, so that [`gather`](Self::gather) can use it. A text needs
    /// none, and any will do.
    ///
    /// # Errors
    /// If its lengths differ or do not divide the sample, or a value is not finite, or a deviation is 0.
    pub fn check_normalization(&self, normalization: &Normalization) -> Result<(), DatasetError> {
        let (mean, std) = (normalization.mean.len(), normalization.std.len());
        if matches!(self.features, Features::Text(_)) {
            return Ok(());
        }
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

fn gather_rows<T: Copy + Into<f32>>(
    values: &[T],
    indices: &[u32],
    width: usize,
    normalization: &Normalization,
    out: &mut Vec<f32>,
) {
    out.resize(indices.len() * width, 0.0);
    for (out, &index) in out.chunks_exact_mut(width.max(1)).zip(indices) {
        normalise(row(values, index, width), normalization, out);
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

/// Divides samples that came as one list: the fifth, tenth, fifteenth ... sample of each class (of all samples, if
/// they have no classes) is test data, the others are training data. Nothing is random, so that any program can
/// reproduce the split. With [`Part::AllForTraining`] every sample is training data.
pub(crate) fn every_fifth_is_test(
    features: Features,
    answers: impl Into<Answers>,
    width: usize,
    part: Part,
) -> (Split, Split) {
    let answers = answers.into();
    if part == Part::AllForTraining {
        return (Split::new(features, answers, width), Split::empty(width));
    }
    let is_test = answers.fifths();
    let pick = |wanted: bool, test: bool| match wanted {
        true => select(&features, &answers, width, &is_test, test),
        false => Split::empty(width),
    };
    (pick(part.has_train(), false), pick(part.has_test(), true))
}

impl Answers {
    /// For each sample, whether it is a test sample.
    pub(crate) fn fifths(&self) -> Vec<bool> {
        match self {
            Self::Classes(labels) => fifths(labels),
            Self::Numbers { values, outputs } => fifths(&vec![0; values.len() / (*outputs).max(1)]),
            Self::NextTokens => Vec::new(),
        }
    }
}

impl From<Vec<u32>> for Answers {
    fn from(classes: Vec<u32>) -> Self {
        Self::Classes(classes)
    }
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

/// The samples that are test samples, or those that are none.
fn select(features: &Features, answers: &Answers, width: usize, is_test: &[bool], test: bool) -> Split {
    let kept: Vec<u32> =
        (0u32..).zip(is_test).filter_map(|(index, &is)| (is == test).then_some(index)).collect();
    fn rows<T: Copy>(values: &[T], kept: &[u32], width: usize) -> Vec<T> {
        let mut out = Vec::with_capacity(kept.len() * width);
        kept.iter().for_each(|&index| out.extend_from_slice(row(values, index, width)));
        out
    }
    let features = match features {
        Features::U8(values) => Features::U8(rows(values, &kept, width)),
        Features::F32(values) => Features::F32(rows(values, &kept, width)),
        Features::Text(text) => Features::Text(text.clone()),
    };
    let answers = match answers {
        Answers::Classes(labels) => Answers::Classes(rows(labels, &kept, 1)),
        Answers::Numbers { values, outputs } => {
            Answers::Numbers { values: rows(values, &kept, *outputs), outputs: *outputs }
        }
        Answers::NextTokens => Answers::NextTokens,
    };
    Split::new(features, answers, width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fl_protocol::Inputs;

    fn bytes() -> Split {
        Split::new(Features::U8((0..24).collect()), vec![0, 1, 2], 8)
    }

    fn norm(mean: &[f32], std: &[f32]) -> Normalization {
        Normalization { mean: mean.to_vec(), std: std.to_vec() }
    }

    fn numbers(samples: &Samples) -> &[f32] {
        match samples.inputs() {
            Inputs::Numbers(values) => values,
            Inputs::Tokens(_) => panic!("numbers expected"),
        }
    }

    fn gathered(split: &Split, indices: &[u32], normalization: &Normalization) -> Vec<f32> {
        let mut samples = Samples::new();
        split.gather(indices, normalization, &mut samples);
        numbers(&samples).to_vec()
    }

    #[test]
    fn gathers_in_the_given_order_and_reuses_buffers() {
        let mut samples = Samples::new();
        bytes().gather(&[2, 0], &norm(&[4.0], &[2.0]), &mut samples);
        assert!(matches!(samples.targets(), Targets::Classes([2, 0])));
        let x = numbers(&samples);
        assert_eq!(x.len(), 16);
        assert_eq!(x[..3], [6.0, 6.5, 7.0]);
        assert_eq!(x[8..10], [-2.0, -1.5]);
        let before = x.as_ptr();
        bytes().gather(&[1], &norm(&[0.0], &[1.0]), &mut samples);
        let x = numbers(&samples);
        assert_eq!((x.as_ptr(), x.len(), samples.targets().len()), (before, 8, 1));
        assert_eq!(x, [8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
    }

    #[test]
    fn normalises_by_channel_and_by_value() {
        let x = gathered(&bytes(), &[0], &norm(&[0.0, 4.0], &[1.0, 2.0]));
        assert_eq!(x, [0.0, 1.0, 2.0, 3.0, 0.0, 0.5, 1.0, 1.5]);
        let mean: Vec<f32> = (0..8).map(|v| v as f32).collect();
        assert_eq!(gathered(&bytes(), &[1], &norm(&mean, &[4.0; 8])), [2.0; 8]);
    }

    #[test]
    fn numbers_take_the_same_path() {
        let split = Split::new(Features::F32(vec![1.5, -2.0]), vec![0], 2);
        assert_eq!(gathered(&split, &[0, 0], &norm(&[0.5], &[0.5])), [2.0, -5.0, 2.0, -5.0]);
    }

    #[test]
    fn targets_that_are_numbers_follow_their_samples() {
        let answers = Answers::Numbers { values: (0..20).map(|v| v as f32).collect(), outputs: 2 };
        let features = Features::U8((0..10).collect());
        let (train, test) = every_fifth_is_test(features, answers, 1, Part::Both);
        assert_eq!((train.len(), test.len(), test.features()), (8, 2, &Features::U8(vec![4, 9])));
        let mut samples = Samples::new();
        test.gather(&[1, 0], &norm(&[0.0], &[1.0]), &mut samples);
        assert_eq!(numbers(&samples), [9.0, 4.0]);
        assert!(matches!(samples.targets(), Targets::Numbers([18.0, 19.0, 8.0, 9.0])));
        samples.renumber(&[]);
        assert!(train.labels().is_empty());
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
