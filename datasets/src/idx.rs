//! IDX files: the format of MNIST and its relatives, raw or gzip-compressed.
//!
//! `[0, 0, type, dimensions]`, a big-endian u32 per dimension, then the values. Only bytes (type 8)
//! are read. A folder holds four files whose names contain `train-images`, `train-labels`, and
//! `t10k-images`, `t10k-labels` (or `test-images`, `test-labels`).

use crate::{
    DataNames, Dataset, DatasetError, Features, Normalization, Part, Split,
    limits::{MAX_CLASSES, MAX_DEFLATE_RATIO, MAX_FEATURE_BYTES, MAX_SAMPLE_FEATURES, MAX_SAMPLES},
};
use fl_protocol::{Input, Task};
use flate2::bufread::GzDecoder;
use std::{
    fs::{self, File},
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

/// A data set with a well-known location and known statistics.
pub(crate) struct Known {
    name: &'static str,
    classes: usize,
    /// Of the training pixels, 0 to 255.
    mean: f32,
    std: f32,
    hint: &'static str,
}

pub(crate) const FASHION_MNIST: Known = Known {
    name: "fashion-mnist",
    classes: 10,
    mean: 72.940_35,
    std: 90.021_18,
    hint: "run `apt-get install dataset-fashion-mnist`, or set DATA_DIR to a folder with its four IDX files",
};

pub(crate) const MNIST: Known = Known {
    name: "mnist",
    classes: 10,
    mean: 33.318_42,
    std: 78.567_49,
    hint: "set DATA_DIR to a folder with train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, \
           t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz",
};

/// Where Debian's `dataset-*` packages put their files.
const SYSTEM_DIR: &str = "/usr/share/datasets";

const TRAIN: [&str; 1] = ["train"];
const TEST: [&str; 2] = ["t10k", "test"];

/// Loads a known data set from `data_dir`, or from the system's folder for it.
pub(crate) fn load_known(
    known: &Known,
    data_dir: Option<&Path>,
    part: Part,
) -> Result<Dataset, DatasetError> {
    let mut folders: Vec<PathBuf> =
        data_dir.iter().flat_map(|dir| [dir.to_path_buf(), dir.join(known.name)]).collect();
    folders.push(Path::new(SYSTEM_DIR).join(known.name));
    let complete = |dir: &PathBuf| {
        (!part.has_train() || Pair::find(dir, &TRAIN).is_some())
            && (!part.has_test() || Pair::find(dir, &TEST).is_some())
    };
    let Some(dir) = folders.iter().find(|dir| complete(dir)) else {
        return Err(missing(known.name, &folders, known.hint));
    };
    let mut data = load_dir(known.name, dir, part)?;
    if data.num_classes() > known.classes {
        return Err(DatasetError::unusable(dir, format!("its labels go beyond {}", known.classes - 1)));
    }
    data.task = Task::classes(known.classes);
    data.normalization = Normalization { mean: vec![known.mean], std: vec![known.std] };
    Ok(data)
}

/// Loads a folder of IDX files. Bytes are scaled to 0 to 1.
pub(crate) fn load_dir(name: &str, dir: &Path, part: Part) -> Result<Dataset, DatasetError> {
    let read = |wanted: bool, prefixes: &[&str]| -> Result<Option<(Vec<usize>, Split)>, DatasetError> {
        if !wanted {
            return Ok(None);
        }
        let hint = format!("put IDX files named `{}-images...` and `{0}-labels...` there", prefixes[0]);
        Pair::find(dir, prefixes).ok_or_else(|| missing(name, &[dir.to_owned()], &hint))?.load().map(Some)
    };
    let train = read(part.has_train(), &TRAIN)?;
    let test = read(part.has_test(), &TEST)?;
    if let (Some((a, _)), Some((b, _))) = (&train, &test)
        && a != b
    {
        return Err(DatasetError::unusable(
            dir,
            format!("training images have shape {a:?}, test images {b:?}; they must be the same"),
        ));
    }
    // Both label files are read, so that the number of classes does not depend on `part`; labels are small.
    let num_classes = match (&train, &test) {
        (Some((_, a)), Some((_, b))) => classes(a.labels()).max(classes(b.labels())),
        (Some((_, a)), None) => classes(a.labels()).max(other_classes(dir, &TEST)?),
        (None, Some((_, b))) => classes(b.labels()).max(other_classes(dir, &TRAIN)?),
        (None, None) => 0,
    };
    let shape = train.as_ref().or(test.as_ref()).map(|(shape, _)| shape.clone()).unwrap_or_default();
    let width = shape.iter().product();
    let or_empty =
        |loaded: Option<(_, Split)>| loaded.map_or_else(|| Split::empty(width), |(_, split)| split);
    Ok(Dataset {
        name: name.to_owned(),
        names: DataNames::default(),
        input: Input::numbers(&shape),
        task: Task::classes(num_classes),
        normalization: Normalization { mean: vec![0.0], std: vec![255.0] },
        train: or_empty(train),
        test: or_empty(test),
    })
}

fn missing(name: &str, folders: &[PathBuf], hint: &str) -> DatasetError {
    let list: Vec<_> = folders.iter().map(|dir| dir.display().to_string()).collect();
    DatasetError::Missing {
        dataset: name.to_owned(),
        looked_in: format!("looked in {}", list.join(", ")),
        hint: hint.to_owned(),
    }
}

fn classes(labels: &[u32]) -> usize {
    labels.iter().max().map_or(0, |&max| max as usize + 1)
}

fn other_classes(dir: &Path, prefixes: &[&str]) -> Result<usize, DatasetError> {
    Pair::find(dir, prefixes).map_or(Ok(0), |pair| Ok(classes(&read_labels(&pair.labels)?)))
}

/// The two files of one part.
struct Pair {
    images: PathBuf,
    labels: PathBuf,
}

impl Pair {
    fn find(dir: &Path, prefixes: &[&str]) -> Option<Self> {
        let mut names: Vec<String> =
            fs::read_dir(dir).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        // Sorted, so that an uncompressed file is preferred to its compressed copy.
        names.sort();
        let find = |kind: &str| {
            let is_it = |name: &&String| prefixes.iter().any(|p| name.contains(&format!("{p}-{kind}")));
            names.iter().find(is_it).map(|name| dir.join(name))
        };
        Some(Self { images: find("images")?, labels: find("labels")? })
    }

    fn load(&self) -> Result<(Vec<usize>, Split), DatasetError> {
        let (dims, pixels) = read_idx(&self.images)?;
        let labels = read_labels(&self.labels)?;
        if dims[0] != labels.len() {
            return Err(DatasetError::unusable(
                &self.images,
                format!(
                    "it holds {} images but {} holds {} labels",
                    dims[0],
                    self.labels.display(),
                    labels.len()
                ),
            ));
        }
        let shape = match dims[1..] {
            [height, width] => vec![1, height, width],
            _ => dims[1..].to_vec(),
        };
        let width = shape.iter().product();
        Ok((shape, Split::new(Features::U8(pixels), labels, width)))
    }
}

fn read_labels(path: &Path) -> Result<Vec<u32>, DatasetError> {
    let (dims, bytes) = read_idx(path)?;
    match dims.len() {
        1 => Ok(bytes.into_iter().map(u32::from).collect()),
        n => Err(DatasetError::damaged(path, format!("labels have one dimension, not {n}"))),
    }
}

/// Reads dimensions and values. The values are decoded straight into the vector that is returned.
pub(crate) fn read_idx(path: &Path) -> Result<(Vec<usize>, Vec<u8>), DatasetError> {
    let io = |error| DatasetError::reading(path, error);
    let file = File::open(path).map_err(io)?;
    let file_bytes = file.metadata().map_err(io)?.len();
    let compressed = path.extension().is_some_and(|ext| ext == "gz");
    let file = BufReader::with_capacity(1 << 16, file);
    let mut reader: Box<dyn Read> = match compressed {
        true => Box::new(GzDecoder::new(file)),
        false => Box::new(file),
    };
    let dims = read_header(&mut reader, path)?;
    let total = checked_size(&dims, path)?;
    let most = match compressed {
        true => file_bytes.saturating_mul(MAX_DEFLATE_RATIO),
        false => file_bytes,
    };
    if total as u64 > most {
        return Err(DatasetError::damaged(
            path,
            format!("it declares {total} bytes but is too short for them"),
        ));
    }
    let mut values = vec![0u8; total];
    reader.read_exact(&mut values).map_err(io)?;
    // Reading up to the end also checks gzip's checksum.
    match reader.read(&mut [0u8; 1]).map_err(io)? {
        0 => Ok((dims, values)),
        _ => Err(DatasetError::damaged(path, "it holds more than its header declares")),
    }
}

fn read_header(reader: &mut dyn Read, path: &Path) -> Result<Vec<usize>, DatasetError> {
    let mut word = [0u8; 4];
    let mut next = |reader: &mut dyn Read| -> Result<[u8; 4], DatasetError> {
        reader.read_exact(&mut word).map_err(|error| DatasetError::reading(path, error))?;
        Ok(word)
    };
    let count = match next(reader)? {
        [0, 0, 8, count @ 1..=4] => count,
        [0, 0, 8, count] => {
            return Err(DatasetError::damaged(path, format!("{count} dimensions are too many")));
        }
        [0, 0, kind, _] => {
            return Err(DatasetError::damaged(path, format!("values of type {kind} are not bytes (type 8)")));
        }
        _ => return Err(DatasetError::damaged(path, "it does not begin like an IDX file")),
    };
    (0..count).map(|_| Ok(u32::from_be_bytes(next(reader)?) as usize)).collect()
}

fn checked_size(dims: &[usize], path: &Path) -> Result<usize, DatasetError> {
    const _: () = assert!(MAX_CLASSES > u8::MAX as usize, "every byte is a valid label");
    let sample = dims[1..].iter().try_fold(1usize, |size, &dim| size.checked_mul(dim));
    let total = sample.and_then(|size| size.checked_mul(dims[0]));
    match (sample, total) {
        (_, Some(0)) => Err(DatasetError::unusable(path, "it holds no samples")),
        (Some(sample), Some(total))
            if dims[0] <= MAX_SAMPLES && sample <= MAX_SAMPLE_FEATURES && total <= MAX_FEATURE_BYTES =>
        {
            Ok(total)
        }
        _ => Err(DatasetError::too_large(
            path,
            format!("its dimensions {dims:?} are beyond {MAX_FEATURE_BYTES} bytes"),
        )),
    }
}
