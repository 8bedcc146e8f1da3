//! CIFAR-10's binary version: records of one label and 3 x 32 x 32 pixels, channel after channel.

use crate::{DataNames, Dataset, DatasetError, DatasetSpec, Features, Normalization, Part, Split};
use fl_protocol::{Input, Task};
use std::{
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

const PIXELS: usize = 3 * 32 * 32;
const RECORD: usize = PIXELS + 1;
/// Records of one file as published; a file may hold fewer or somewhat more.
const MAX_RECORDS: u64 = 100_000;
const TRAIN: [&str; 5] =
    ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"];
const TEST: [&str; 1] = ["test_batch.bin"];
const HINT: &str = "download cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html, unpack it, \
                    and set DATA_DIR to the folder cifar-10-batches-bin";

pub(crate) fn load(data_dir: Option<&Path>, part: Part) -> Result<Dataset, DatasetError> {
    let mut folders: Vec<PathBuf> =
        data_dir.iter().flat_map(|dir| [dir.to_path_buf(), dir.join("cifar-10-batches-bin")]).collect();
    folders.push("/usr/share/datasets/cifar-10-batches-bin".into());
    let needed: Vec<&str> = [(part.has_train(), &TRAIN[..]), (part.has_test(), &TEST[..])]
        .into_iter()
        .filter_map(|(wanted, names)| wanted.then_some(names))
        .flatten()
        .copied()
        .collect();
    let Some(dir) = folders.iter().find(|dir| needed.iter().all(|name| dir.join(name).is_file())) else {
        let looked_in: Vec<_> = folders.iter().map(|dir| dir.display().to_string()).collect();
        return Err(DatasetError::Missing {
            dataset: "cifar10".to_owned(),
            looked_in: format!("looked for {} in {}", needed.join(", "), looked_in.join(", ")),
            hint: HINT.to_owned(),
        });
    };
    let read = |wanted: bool, names: &[&str]| match wanted {
        true => read_files(names.iter().map(|name| dir.join(name)).collect()),
        false => Ok(Split::empty(PIXELS)),
    };
    Ok(Dataset {
        name: DatasetSpec::Cifar10.to_string(),
        names: DataNames::default(),
        input: Input::Image { shape: vec![3, 32, 32] },
        task: Task::classes(10),
        // Per channel, of the training pixels, 0 to 255.
        normalization: Normalization {
            mean: vec![125.306_92, 122.950_15, 113.866],
            std: vec![62.993_22, 62.088_6, 66.704_9],
        },
        train: read(part.has_train(), &TRAIN)?,
        test: read(part.has_test(), &TEST)?,
    })
}

fn read_files(paths: Vec<PathBuf>) -> Result<Split, DatasetError> {
    let counts = paths.iter().map(|path| count_records(path)).collect::<Result<Vec<_>, _>>()?;
    let total: usize = counts.iter().sum();
    let mut pixels = vec![0u8; total * PIXELS];
    let mut labels = Vec::with_capacity(total);
    let mut images = pixels.chunks_exact_mut(PIXELS);
    for (path, count) in paths.iter().zip(counts) {
        let io = |error| DatasetError::reading(path, error);
        let mut reader = BufReader::with_capacity(1 << 16, File::open(path).map_err(io)?);
        for image in images.by_ref().take(count) {
            let mut label = [0u8];
            reader.read_exact(&mut label).map_err(io)?;
            if label[0] > 9 {
                return Err(DatasetError::damaged(path, format!("a label is {}, not 0 to 9", label[0])));
            }
            labels.push(u32::from(label[0]));
            reader.read_exact(image).map_err(io)?;
        }
    }
    Ok(Split::new(Features::U8(pixels), labels, PIXELS))
}

fn count_records(path: &Path) -> Result<usize, DatasetError> {
    let bytes = path.metadata().map_err(|error| DatasetError::reading(path, error))?.len();
    let records = bytes / RECORD as u64;
    if records == 0 || !bytes.is_multiple_of(RECORD as u64) {
        return Err(DatasetError::damaged(
            path,
            format!("its {bytes} bytes are not records of {RECORD} bytes"),
        ));
    }
    if records > MAX_RECORDS {
        return Err(DatasetError::too_large(
            path,
            format!("{records} records, at most {MAX_RECORDS} are read"),
        ));
    }
    Ok(records as usize)
}
