//! Data in a safetensors file: `x` (`[samples, ...]`, U8, F32 or F64) and `y` (`[samples]`, any
//! integer type); optionally `x_test` and `y_test`. Without them every fifth sample of each class is test
//! data. Bytes are scaled to 0 to 1, other numbers are used unchanged.

use crate::{
    DataNames, Dataset, DatasetError, Features, Normalization, Part, Split,
    limits::{MAX_CLASSES, MAX_FEATURE_BYTES, MAX_SAMPLE_FEATURES, MAX_SAMPLES},
    split,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{fs, path::Path};

/// Largest file: both splits at their limit.
const MAX_FILE_BYTES: u64 = 2 * MAX_FEATURE_BYTES as u64;

pub(crate) fn load(name: &str, path: &Path, part: Part) -> Result<Dataset, DatasetError> {
    let bytes = read(name, path)?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|error| DatasetError::damaged(path, error.to_string()))?;
    let loaded = Samples::read(&file, "x", "y", path)?;
    let has_test = file.names().contains(&"x_test");
    let test = has_test.then(|| Samples::read(&file, "x_test", "y_test", path)).transpose()?;
    if let Some(test) = &test
        && (test.shape != loaded.shape || test.is_bytes() != loaded.is_bytes())
    {
        return Err(DatasetError::unusable(path, "x and x_test must have the same type and sample shape"));
    }
    let normalization = match loaded.is_bytes() {
        true => Normalization { mean: vec![0.0], std: vec![255.0] },
        false => Normalization { mean: vec![0.0], std: vec![1.0] },
    };
    let num_classes = loaded.classes().max(test.as_ref().map_or(0, Samples::classes));
    let input_shape = loaded.shape.clone();
    let (train, test) = match test {
        Some(test) => (loaded.into_split(part.has_train()), test.into_split(part.has_test())),
        None => {
            let width = loaded.width();
            split::every_fifth_is_test(loaded.features, loaded.labels, width, part)
        }
    };
    let names = DataNames::default();
    Ok(Dataset { name: name.to_owned(), names, input_shape, num_classes, normalization, train, test })
}

fn read(name: &str, path: &Path) -> Result<Vec<u8>, DatasetError> {
    let size = path.metadata().map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => DatasetError::Missing {
            dataset: name.to_owned(),
            looked_in: format!("no file {}", path.display()),
            hint: "give the path of a safetensors file with `x` and `y`".to_owned(),
        },
        _ => DatasetError::reading(path, source),
    })?;
    if size.len() > MAX_FILE_BYTES {
        return Err(DatasetError::too_large(
            path,
            format!("{} bytes, at most {MAX_FILE_BYTES} are read", size.len()),
        ));
    }
    fs::read(path).map_err(|error| DatasetError::reading(path, error))
}

struct Samples {
    shape: Vec<usize>,
    features: Features,
    labels: Vec<u32>,
}

impl Samples {
    fn read(file: &SafeTensors<'_>, x: &str, y: &str, path: &Path) -> Result<Self, DatasetError> {
        let tensor = |name: &str| {
            file.tensor(name)
                .map_err(|_| DatasetError::unusable(path, format!("it lacks the tensor `{name}`")))
        };
        let labels = read_labels(&tensor(y)?, y, path)?;
        let x_view = tensor(x)?;
        let (&samples, dims) =
            x_view.shape().split_first().filter(|(_, dims)| !dims.is_empty()).ok_or_else(|| {
                DatasetError::unusable(path, format!("`{x}` must have the shape [samples, ...]"))
            })?;
        let width: usize = dims.iter().product();
        if samples == 0 || width == 0 || samples != labels.len() {
            let what =
                format!("`{x}` holds {samples} samples of {width} values, `{y}` {} labels", labels.len());
            return Err(DatasetError::unusable(path, what));
        }
        if samples > MAX_SAMPLES || width > MAX_SAMPLE_FEATURES {
            return Err(DatasetError::too_large(path, format!("`{x}` has the shape {:?}", x_view.shape())));
        }
        let shape = match *dims {
            [height, width] => vec![1, height, width],
            _ => dims.to_vec(),
        };
        Ok(Self { shape, features: read_features(&x_view, x, path)?, labels })
    }

    fn is_bytes(&self) -> bool {
        matches!(self.features, Features::U8(_))
    }

    fn width(&self) -> usize {
        self.shape.iter().product()
    }

    fn classes(&self) -> usize {
        self.labels.iter().max().map_or(0, |&max| max as usize + 1)
    }

    fn into_split(self, wanted: bool) -> Split {
        let width = self.width();
        match wanted {
            true => Split::new(self.features, self.labels, width),
            false => Split::empty(width),
        }
    }
}

fn read_features(view: &TensorView<'_>, name: &str, path: &Path) -> Result<Features, DatasetError> {
    let values: Vec<f32> = match view.dtype() {
        Dtype::U8 => return Ok(Features::U8(view.data().to_vec())),
        Dtype::F32 => view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F64 => view.data().as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        other => {
            return Err(DatasetError::unusable(
                path,
                format!("`{name}` has type {other:?}: store it as U8 or F32"),
            ));
        }
    };
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(DatasetError::unusable(path, format!("value {index} of `{name}` is not finite"))),
        None => Ok(Features::F32(values)),
    }
}

fn read_labels(view: &TensorView<'_>, name: &str, path: &Path) -> Result<Vec<u32>, DatasetError> {
    fn decode<const N: usize>(data: &[u8], read: impl Fn([u8; N]) -> i64) -> Vec<i64> {
        data.as_chunks::<N>().0.iter().map(|bytes| read(*bytes)).collect()
    }
    if view.shape().len() != 1 {
        return Err(DatasetError::unusable(path, format!("`{name}` must have the shape [samples]")));
    }
    let data = view.data();
    let labels = match view.dtype() {
        Dtype::U8 => decode(data, |b: [u8; 1]| i64::from(b[0])),
        Dtype::I8 => decode(data, |b| i64::from(i8::from_le_bytes(b))),
        Dtype::U16 => decode(data, |b| i64::from(u16::from_le_bytes(b))),
        Dtype::I16 => decode(data, |b| i64::from(i16::from_le_bytes(b))),
        Dtype::U32 => decode(data, |b| i64::from(u32::from_le_bytes(b))),
        Dtype::I32 => decode(data, |b| i64::from(i32::from_le_bytes(b))),
        Dtype::I64 => decode(data, i64::from_le_bytes),
        Dtype::U64 => decode(data, |b| u64::from_le_bytes(b).try_into().unwrap_or(-1)),
        other => {
            let what = format!("`{name}` has type {other:?}: store labels as integers");
            return Err(DatasetError::unusable(path, what));
        }
    };
    let in_range = |&label: &i64| u32::try_from(label).ok().filter(|&label| (label as usize) < MAX_CLASSES);
    labels.iter().map(|label| in_range(label).ok_or(label)).collect::<Result<_, _>>().map_err(|label| {
        DatasetError::unusable(path, format!("label {label} is outside of 0 to {}", MAX_CLASSES - 1))
    })
}
