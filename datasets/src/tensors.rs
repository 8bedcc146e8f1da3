//! Data in a safetensors file: `x` (`[samples, ...]`, U8, F32 or F64) and `y`; optionally `x_test` and `y_test`.
//! Without them every fifth sample (of each class) is test data. Bytes are scaled to 0 to 1, other numbers are used
//! unchanged.
//!
//! `y` says what is learnt: classes (`[samples]`, any integer type), numbers (`[samples, outputs]`, F32 or F64), or
//! labels that apply or not (`[samples, labels]`, U8 or BOOL, each 0 or 1).

use crate::{
    DataNames, Dataset, DatasetError, Features, Normalization, Part, Split,
    limits::{MAX_CLASSES, MAX_FEATURE_BYTES, MAX_OUTPUTS, MAX_SAMPLE_FEATURES, MAX_SAMPLES},
    split::{self, Answers},
};
use fl_protocol::{Input, Task};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{fs, path::Path};

/// Largest file: both splits at their limit.
const MAX_FILE_BYTES: u64 = 2 * MAX_FEATURE_BYTES as u64;

pub(crate) fn load(name: &str, path: &Path, part: Part) -> Result<Dataset, DatasetError> {
    let bytes = read(name, path)?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|error| DatasetError::damaged(path, error.to_string()))?;
    let loaded = Loaded::read(&file, "x", "y", path)?;
    let has_test = file.names().contains(&"x_test");
    let test = has_test.then(|| Loaded::read(&file, "x_test", "y_test", path)).transpose()?;
    let mut task = loaded.task.clone();
    if let Some(test) = &test {
        if test.shape != loaded.shape || test.is_bytes() != loaded.is_bytes() {
            return Err(DatasetError::unusable(
                path,
                "x and x_test must have the same type and sample shape",
            ));
        }
        task = match (task, &test.task) {
            (Task::Classification { classes, .. }, Task::Classification { classes: others, .. }) => {
                Task::classes(classes.max(*others))
            }
            (task, other) if task == *other => task,
            _ => {
                let what = "y and y_test must have the same kind of type and the same number of columns";
                return Err(DatasetError::unusable(path, what));
            }
        };
    }
    let normalization = match loaded.is_bytes() {
        true => Normalization { mean: vec![0.0], std: vec![255.0] },
        false => Normalization { mean: vec![0.0], std: vec![1.0] },
    };
    let input = Input::numbers(&loaded.shape);
    let (train, test) = match test {
        Some(test) => (loaded.into_split(part.has_train()), test.into_split(part.has_test())),
        None => {
            let width = loaded.width();
            split::every_fifth_is_test(loaded.features, loaded.answers, width, part)
        }
    };
    let (name, names) = (name.to_owned(), DataNames::default());
    Ok(Dataset { name, names, input, task, normalization, train, test })
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

/// The tensors of one part.
struct Loaded {
    shape: Vec<usize>,
    features: Features,
    answers: Answers,
    task: Task,
}

impl Loaded {
    fn read(file: &SafeTensors<'_>, x: &str, y: &str, path: &Path) -> Result<Self, DatasetError> {
        let tensor = |name: &str| {
            file.tensor(name)
                .map_err(|_| DatasetError::unusable(path, format!("it lacks the tensor `{name}`")))
        };
        let y_view = tensor(y)?;
        let (answers, task) = read_answers(&y_view, y, path)?;
        let targets = y_view.shape().first().copied().unwrap_or(0);
        let x_view = tensor(x)?;
        let (&samples, dims) =
            x_view.shape().split_first().filter(|(_, dims)| !dims.is_empty()).ok_or_else(|| {
                DatasetError::unusable(path, format!("`{x}` must have the shape [samples, ...]"))
            })?;
        let width: usize = dims.iter().product();
        if samples == 0 || width == 0 || samples != targets {
            let what = format!("`{x}` holds {samples} samples of {width} values, `{y}` {targets} labels");
            return Err(DatasetError::unusable(path, what));
        }
        if samples > MAX_SAMPLES || width > MAX_SAMPLE_FEATURES {
            return Err(DatasetError::too_large(path, format!("`{x}` has the shape {:?}", x_view.shape())));
        }
        let shape = match *dims {
            [height, width] => vec![1, height, width],
            _ => dims.to_vec(),
        };
        Ok(Self { shape, features: read_features(&x_view, x, path)?, answers, task })
    }

    fn is_bytes(&self) -> bool {
        matches!(self.features, Features::U8(_))
    }

    fn width(&self) -> usize {
        self.shape.iter().product()
    }

    fn into_split(self, wanted: bool) -> Split {
        let width = self.width();
        match wanted {
            true => Split::new(self.features, self.answers, width),
            false => Split::empty(width),
        }
    }
}

fn read_features(view: &TensorView<'_>, name: &str, path: &Path) -> Result<Features, DatasetError> {
    if view.dtype() == Dtype::U8 {
        return Ok(Features::U8(view.data().to_vec()));
    }
    read_numbers(view, name, path).map(Features::F32)
}

fn read_numbers(view: &TensorView<'_>, name: &str, path: &Path) -> Result<Vec<f32>, DatasetError> {
    let values: Vec<f32> = match view.dtype() {
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
        None => Ok(values),
    }
}

/// Targets, and the task that their type and shape stand for.
fn read_answers(view: &TensorView<'_>, name: &str, path: &Path) -> Result<(Answers, Task), DatasetError> {
    let &[_, outputs] = view.shape() else {
        let labels = read_labels(view, name, path)?;
        let classes = labels.iter().max().map_or(0, |&max| max as usize + 1);
        return Ok((Answers::Classes(labels), Task::classes(classes)));
    };
    if outputs == 0 || outputs > MAX_OUTPUTS {
        let what = format!("`{name}` has {outputs} columns, 1 to {MAX_OUTPUTS} are taken");
        return Err(DatasetError::unusable(path, what));
    }
    match view.dtype() {
        Dtype::U8 | Dtype::BOOL => {
            if let Some(value) = view.data().iter().find(|&&value| value > 1) {
                let what = format!("`{name}` holds {value}: a label of several is 0 or 1");
                return Err(DatasetError::unusable(path, what));
            }
            let values = view.data().iter().map(|&value| f32::from(value)).collect();
            Ok((Answers::Numbers { values, outputs }, Task::Multilabel { outputs }))
        }
        Dtype::F32 | Dtype::F64 => {
            let values = read_numbers(view, name, path)?;
            Ok((Answers::Numbers { values, outputs }, Task::Regression { outputs }))
        }
        other => {
            let what = format!(
                "`{name}` has type {other:?} and two dimensions: store classes as [samples], numbers as F32, labels \
                 that apply or not as U8"
            );
            Err(DatasetError::unusable(path, what))
        }
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
