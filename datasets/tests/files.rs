//! Every file format, read from real files: well-formed, damaged and hostile.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use fl_datasets::{DataNames, Dataset, DatasetError, DatasetSpec, Features, Part, Samples, load};
use fl_protocol::{Inputs, Targets};
use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn idx(dims: &[u32], values: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, dims.len() as u8];
    dims.iter().for_each(|dim| bytes.extend(dim.to_be_bytes()));
    bytes.extend(values);
    bytes
}

/// A folder with 6 training and 2 test images of 2 x 3 pixels.
fn idx_folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    let images: Vec<u8> = (0..36).collect();
    fs::write(dir.path().join("train-images-idx3-ubyte"), idx(&[6, 2, 3], &images)).unwrap();
    fs::write(dir.path().join("train-labels-idx1-ubyte"), idx(&[6], &[0, 1, 2, 0, 1, 2])).unwrap();
    fs::write(dir.path().join("t10k-images-idx3-ubyte.gz"), gz(&idx(&[2, 2, 3], &images[..12]))).unwrap();
    fs::write(dir.path().join("t10k-labels-idx1-ubyte.gz"), gz(&idx(&[2], &[3, 1]))).unwrap();
    dir
}

fn load_idx(dir: &Path, part: Part) -> Result<Dataset, DatasetError> {
    load(&DatasetSpec::Idx(dir.to_owned()), None, part)
}

#[test]
fn idx_raw_and_compressed() {
    let dir = idx_folder();
    let data = load_idx(dir.path(), Part::Both).unwrap();
    assert_eq!((data.train.len(), data.test.len(), data.num_classes()), (6, 2, 4));
    assert_eq!(data.input_shape(), [1, 2, 3]);
    assert_eq!(data.train.features(), &Features::U8((0..36).collect()));
    assert_eq!(data.test.labels(), [3, 1]);
    // The number of classes does not depend on the part that is loaded.
    assert_eq!(load_idx(dir.path(), Part::Train).unwrap().num_classes(), 4);
    assert_eq!(load_idx(dir.path(), Part::Test).unwrap().num_classes(), 4);
}

#[test]
fn known_names_look_in_data_dir_first() {
    let dir = idx_folder();
    let data = load(&DatasetSpec::FashionMnist, Some(dir.path()), Part::Both).unwrap();
    assert_eq!((data.train.len(), data.num_classes()), (6, 10));
    assert_eq!(data.name, "fashion-mnist");
    let nested = TempDir::new().unwrap();
    fs::rename(dir.path(), nested.path().join("mnist")).unwrap();
    assert_eq!(load(&DatasetSpec::Mnist, Some(nested.path()), Part::Test).unwrap().test.len(), 2);
}

#[test]
fn a_missing_data_set_says_how_to_get_it() {
    let empty = TempDir::new().unwrap();
    let cases = [
        (DatasetSpec::Mnist, "DATA_DIR"),
        (DatasetSpec::Cifar10, "cifar-10-binary.tar.gz"),
        (DatasetSpec::Idx(empty.path().join("none")), "train-images"),
        (DatasetSpec::csv(empty.path().join("none.csv")), "CSV file"),
        (DatasetSpec::Safetensors(empty.path().join("none.safetensors")), "safetensors file"),
        (DatasetSpec::Text(empty.path().join("none.txt")), "path of a text"),
        (
            DatasetSpec::Images { dir: empty.path().join("none"), size: None },
            "one folder of PNG or JPEG images per class",
        ),
    ];
    for (spec, hint) in cases {
        let error = load(&spec, Some(empty.path()), Part::Train).unwrap_err();
        assert!(error.to_string().contains(hint), "{error}");
    }
    if !Path::new("/usr/share/datasets/fashion-mnist").exists() {
        let error = load(&DatasetSpec::FashionMnist, None, Part::Train).unwrap_err();
        assert!(error.to_string().contains("apt-get install dataset-fashion-mnist"), "{error}");
    }
}

#[test]
fn debians_fashion_mnist_if_installed() {
    if !Path::new("/usr/share/datasets/fashion-mnist").exists() {
        eprintln!("skipped: run `apt-get install dataset-fashion-mnist` to include this test");
        return;
    }
    let data = load(&DatasetSpec::FashionMnist, None, Part::Both).unwrap();
    assert_eq!((data.train.len(), data.test.len(), data.num_classes()), (60_000, 10_000, 10));
    let Features::U8(pixels) = data.train.features() else { panic!("bytes expected") };
    let mean = pixels.iter().map(|&p| f64::from(p)).sum::<f64>() / pixels.len() as f64;
    let variance = pixels.iter().map(|&p| (f64::from(p) - mean).powi(2)).sum::<f64>() / pixels.len() as f64;
    assert!((mean - f64::from(data.normalization.mean[0])).abs() < 1e-3, "{mean}");
    assert!((variance.sqrt() - f64::from(data.normalization.std[0])).abs() < 1e-3, "{}", variance.sqrt());
}

#[test]
fn an_idx_file_cut_anywhere_is_refused() {
    for (name, bytes) in [
        ("train-images-idx3-ubyte", idx(&[6, 2, 3], &[7; 36])),
        ("train-images-idx3-ubyte.gz", gz(&idx(&[6, 2, 3], &[7; 36]))),
        ("train-labels-idx1-ubyte", idx(&[6], &[0; 6])),
    ] {
        let dir = idx_folder();
        fs::remove_file(dir.path().join(name.trim_end_matches(".gz"))).unwrap();
        for len in 0..bytes.len() {
            fs::write(dir.path().join(name), &bytes[..len]).unwrap();
            let error = load_idx(dir.path(), Part::Train).unwrap_err();
            assert!(matches!(error, DatasetError::Damaged { .. }), "{name} cut at {len}: {error}");
        }
        fs::write(dir.path().join(name), &bytes).unwrap();
        load_idx(dir.path(), Part::Train).unwrap();
        if !name.ends_with("gz") {
            fs::write(dir.path().join(name), [&bytes[..], &[0]].concat()).unwrap();
            assert!(load_idx(dir.path(), Part::Train).is_err(), "{name} with a byte too many");
        }
    }
}

#[test]
fn hostile_idx_headers_allocate_nothing() {
    let dir = idx_folder();
    let write = |bytes: Vec<u8>| {
        fs::write(dir.path().join("train-images-idx3-ubyte"), bytes).unwrap();
        load_idx(dir.path(), Part::Train).unwrap_err().to_string()
    };
    assert!(write(idx(&[u32::MAX, u32::MAX, u32::MAX], &[])).contains("too large"));
    assert!(write(idx(&[1 << 20, 28, 28], &[0; 9])).contains("too short"));
    assert!(write(idx(&[0, 28, 28], &[])).contains("no samples"));
    assert!(write(vec![0, 0, 8, 200]).contains("dimensions"));
    assert!(write(vec![0, 0, 0x0d, 1, 0, 0, 0, 1, 0, 0, 0, 0]).contains("type 13"));
    assert!(write(b"\x89PNG\r\n\x1a\n".to_vec()).contains("IDX"));
    assert!(write(idx(&[5, 2, 3], &[0; 30])).contains("6 labels"));
}

#[test]
fn a_gzip_bomb_is_not_unpacked() {
    let dir = idx_folder();
    fs::remove_file(dir.path().join("train-images-idx3-ubyte")).unwrap();
    let path = dir.path().join("train-images-idx3-ubyte.gz");
    // A small declared size with 64 MB behind it: reading stops at the declared size.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&idx(&[6, 2, 3], &[0; 36])).unwrap();
    (0..64).for_each(|_| encoder.write_all(&[0; 1 << 20]).unwrap());
    fs::write(&path, encoder.finish().unwrap()).unwrap();
    assert!(load_idx(dir.path(), Part::Train).unwrap_err().to_string().contains("more than its header"));
    // A declared size that no compression could reach from so few bytes.
    fs::write(&path, gz(&idx(&[1 << 20, 28, 28], &[0; 36]))).unwrap();
    assert!(load_idx(dir.path(), Part::Train).unwrap_err().to_string().contains("too short"));
    // A flipped bit in the checksum.
    let mut bytes = gz(&idx(&[6, 2, 3], &[3; 36]));
    let crc = bytes.len() - 8;
    bytes[crc] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(load_idx(dir.path(), Part::Train).unwrap_err().to_string().contains("corrupt"));
}

#[test]
fn cifar_records() {
    let dir = TempDir::new().unwrap();
    let record = |label: u8, pixel: u8| [vec![label], vec![pixel; 3072]].concat();
    for batch in 1..=5u8 {
        let bytes = [record(batch, 10 * batch), record(9, 1)].concat();
        fs::write(dir.path().join(format!("data_batch_{batch}.bin")), bytes).unwrap();
    }
    let test = dir.path().join("test_batch.bin");
    fs::write(&test, record(3, 200)).unwrap();
    let data = load(&DatasetSpec::Cifar10, Some(dir.path()), Part::Both).unwrap();
    assert_eq!(data.input_shape(), [3, 32, 32]);
    assert_eq!(data.train.labels(), [1, 9, 2, 9, 3, 9, 4, 9, 5, 9]);
    let mut samples = Samples::new();
    data.test.gather(&[0], &data.normalization, &mut samples);
    let (Inputs::Numbers(x), Targets::Classes(y)) = (samples.inputs(), samples.targets()) else {
        panic!("numbers and classes")
    };
    assert_eq!((x.len(), y[0]), (3072, 3));
    assert!(x[0] < x[1024], "channels have their own statistics");
    for (bytes, what) in
        [(vec![], "not records"), (vec![0; 3000], "not records"), (record(10, 0), "label is 10")]
    {
        fs::write(&test, bytes).unwrap();
        let error = load(&DatasetSpec::Cifar10, Some(dir.path()), Part::Test).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
}

fn csv(dir: &TempDir, text: &str) -> Result<Dataset, DatasetError> {
    let path = dir.path().join("table.csv");
    fs::write(&path, text).unwrap();
    load(&DatasetSpec::csv(path), None, Part::Both)
}

#[test]
fn csv_with_and_without_a_header() {
    let dir = TempDir::new().unwrap();
    let rows = "1,10,0\n2,20,1\n3,30,0\n4,40,1\n5,50,0\n6,60,1\n7,70,0\n8,80,1\n9,90,0\n10,100,1\n";
    let bare = csv(&dir, rows).unwrap();
    assert_eq!((bare.train.len(), bare.test.len(), bare.num_classes()), (8, 2, 2));
    assert_eq!(bare.input_shape(), [2]);
    let named = csv(&dir, &format!("a,b,what\n{rows}")).unwrap();
    assert_eq!((named.train.labels(), named.test.labels()), (bare.train.labels(), bare.test.labels()));
    // Standardised by the training rows: 1 to 8.
    assert_eq!(bare.normalization.mean, [4.5, 45.0]);
    assert!((bare.normalization.std[0] - 5.25f32.sqrt()).abs() < 1e-6);
}

#[test]
fn csv_labels_by_column_name_and_by_text() {
    let dir = TempDir::new().unwrap();
    let data = csv(&dir, "Label,width\nrose,1.5\niris,2.5\nrose,3.5\n").unwrap();
    assert_eq!((data.num_classes(), data.train.labels()), (2, &[1, 0, 1][..]));
    assert_eq!(data.train.features(), &Features::F32(vec![1.5, 2.5, 3.5]));
    // Numbers are classes as they stand, so that nodes with different classes agree.
    assert_eq!(csv(&dir, "x,y\n1,2\n2,5\n").unwrap().num_classes(), 6);
}

#[test]
fn names_of_classes_and_columns_are_kept() {
    let dir = TempDir::new().unwrap();
    let data = csv(&dir, "width,label,height\n1,rose,2\n3,iris,4\n").unwrap();
    assert_eq!(
        (data.names.labels.clone(), data.names.features.clone()),
        (names("iris rose"), names("width height"))
    );
    let bare = csv(&dir, "1,rose\n3,iris\n").unwrap();
    assert_eq!((bare.names.labels, bare.names.features), (names("iris rose"), vec![]));
    assert!(
        csv(&dir, "x,y\n1,2\n2,5\n").unwrap().names.labels.is_empty(),
        "numbers are classes as they stand"
    );
    let long = "x".repeat(70_000);
    let data = csv(&dir, &format!("{long}a,{long}b,label\n1,2,0\n")).unwrap();
    assert!(data.names.features.is_empty(), "too long to travel with every model");
    let error = csv(&dir, &format!("1,{long}a\n2,{long}b\n")).unwrap_err();
    assert!(error.to_string().contains("shorten"), "{error}");
}

fn names(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn model(labels: &str, features: &str) -> DataNames {
    DataNames {
        labels: if labels.is_empty() { Vec::new() } else { names(labels) },
        features: if features.is_empty() { Vec::new() } else { names(features) },
    }
}

#[test]
fn tables_with_other_labels_come_to_one_numbering() {
    let dir = TempDir::new().unwrap();
    let [a, b] = ["cat dog", "dog fox"].map(|labels| {
        let (first, second) = labels.split_once(' ').unwrap();
        csv(&dir, &format!("x,label\n1,{first}\n2,{second}\n")).unwrap()
    });
    assert_eq!(a.train.labels(), b.train.labels(), "the premise: alone, both number their labels 0 and 1");
    let all = model("cat dog fox", "");
    assert_eq!(a.class_map(&all).unwrap(), Some(vec![0, 1]));
    assert_eq!(b.class_map(&all).unwrap(), Some(vec![1, 2]));
    assert_eq!(a.class_map(&a.names).unwrap(), None, "the same names need no map");
    let error = b.class_map(&model("cat dog", "")).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("labels fox") && text.contains("cat, dog") && text.contains("LABELS=cat,dog,fox"),
        "{text}"
    );
    let text = a.class_map(&model("", "")).unwrap_err().to_string();
    assert!(text.contains("only numbers") && text.contains("LABELS=cat,dog"), "{text}");
    // Numbers are looked up like names: 1 is no class of this model.
    let numbered = csv(&dir, "x,label\n1,1\n2,1\n").unwrap();
    assert!(numbered.class_map(&all).unwrap_err().to_string().contains("labels 1"));
    assert_eq!(numbered.class_map(&model("one 1", "")).unwrap(), Some(vec![0, 1]));
    assert_eq!(numbered.class_map(&model("", "")).unwrap(), None);
}

#[test]
fn columns_must_be_the_models() {
    let dir = TempDir::new().unwrap();
    let data = csv(&dir, "width,height,label\n1,2,cat\n3,4,dog\n").unwrap();
    assert!(data.class_map(&model("cat dog", "width height")).is_ok());
    assert!(data.class_map(&model("cat dog", "")).is_ok(), "a model without column names cannot be compared");
    let text = data.class_map(&model("cat dog", "height width")).unwrap_err().to_string();
    assert!(text.contains("column 1") && text.contains("`width`") && text.contains("`height`"), "{text}");
}

#[test]
fn a_list_of_labels_sets_the_order_and_the_number() {
    let dir = TempDir::new().unwrap();
    let rows: String = (0..10).map(|i| format!("{i},{}\n", if i % 2 == 0 { "dog" } else { "fox" })).collect();
    let mut data = csv(&dir, &rows).unwrap();
    let before = (data.train.labels().to_vec(), data.test.labels().to_vec());
    data.set_labels(names("fox cat dog")).unwrap();
    assert_eq!((data.num_classes(), &data.names.labels), (3, &names("fox cat dog")));
    let expected = |labels: &[u32]| labels.iter().map(|l| [2, 0][*l as usize]).collect::<Vec<u32>>();
    assert_eq!(data.train.labels(), expected(&before.0));
    assert_eq!(data.test.labels(), expected(&before.1));
    assert!(data.set_labels(names("fox cat")).unwrap_err().to_string().contains("dog"));
    let mut numbered = csv(&dir, "x,label\n1,0\n2,1\n").unwrap();
    numbered.set_labels(names("0 1 2")).unwrap();
    assert_eq!((numbered.num_classes(), numbered.names.labels.len()), (3, 0));
}

#[test]
fn all_rows_of_a_table_can_train() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("table.csv");
    let rows: String = (0..10).map(|i| format!("{i},0\n")).collect();
    fs::write(&path, rows).unwrap();
    let spec = DatasetSpec::csv(path);
    let sizes = |part| load(&spec, None, part).map(|data| (data.train.len(), data.test.len())).unwrap();
    assert_eq!(sizes(Part::Train), (8, 0));
    assert_eq!(sizes(Part::AllForTraining), (10, 0));
    // A set with a test part of its own keeps it.
    let digits = load(&DatasetSpec::Digits, None, Part::AllForTraining).unwrap();
    assert_eq!((digits.train.len(), digits.test.len()), (1442, 0));
    let folder = idx_folder();
    assert_eq!(load_idx(folder.path(), Part::AllForTraining).unwrap().train.len(), 6);
}

#[test]
fn a_constant_column_keeps_its_scale() {
    let dir = TempDir::new().unwrap();
    let data = csv(&dir, "7,1,0\n7,2,1\n7,3,0\n").unwrap();
    assert_eq!(data.normalization.std[0], 1.0);
    assert_eq!(data.normalization.mean[0], 7.0);
}

#[test]
fn bad_tables_name_the_place() {
    let dir = TempDir::new().unwrap();
    for (text, what) in [
        ("", "empty"),
        ("a,b,label\n", "no rows"),
        ("label\n1\n", "other column"),
        ("x,label\n1,0\noops,1\n", "line 3, column 1: `oops`"),
        ("x,label\n1,0\nNaN,1\n", "not a number"),
        ("x,label\n1,0\n1,2,3\n", "damaged"),
        ("x,label\n1,70000\n", "beyond 65535"),
    ] {
        let error = csv(&dir, text).unwrap_err();
        assert!(error.to_string().contains(what), "{text:?}: {error}");
    }
}

/// A safetensors file, written by hand so that it can be wrong.
fn tensors(dir: &TempDir, header: &str, data: &[u8]) -> PathBuf {
    let path = dir.path().join("data.safetensors");
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn safetensors_with_and_without_test_tensors() {
    let dir = TempDir::new().unwrap();
    let header = r#"{"x":{"dtype":"U8","shape":[5,2,2],"data_offsets":[0,20]},"y":{"dtype":"U8","shape":[5],"data_offsets":[20,25]}}"#;
    let data: Vec<u8> = (0..20).chain([1; 5]).collect();
    let spec = DatasetSpec::Safetensors(tensors(&dir, header, &data));
    let loaded = load(&spec, None, Part::Both).unwrap();
    assert_eq!((loaded.train.len(), loaded.test.len()), (4, 1));
    assert_eq!(loaded.input_shape(), [1, 2, 2]);

    let header = r#"{"x":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},"x_test":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]},"y":{"dtype":"I16","shape":[1],"data_offsets":[8,10]},"y_test":{"dtype":"I16","shape":[1],"data_offsets":[10,12]}}"#;
    let good: Vec<u8> =
        [&1.5f32.to_le_bytes()[..], &2.5f32.to_le_bytes(), &1i16.to_le_bytes(), &0i16.to_le_bytes()].concat();
    let spec = DatasetSpec::Safetensors(tensors(&dir, header, &good));
    let loaded = load(&spec, None, Part::Both).unwrap();
    assert_eq!((loaded.train.labels(), loaded.test.labels()), (&[1][..], &[0][..]));
    assert_eq!(loaded.test.features(), &Features::F32(vec![2.5]));
    for (at, bytes, what) in
        [(0, f32::NAN.to_le_bytes().to_vec(), "not finite"), (8, (-1i16).to_le_bytes().to_vec(), "label -1")]
    {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(&bytes);
        let spec = DatasetSpec::Safetensors(tensors(&dir, header, &bad));
        assert!(load(&spec, None, Part::Both).unwrap_err().to_string().contains(what));
    }
}

#[test]
fn safetensors_that_do_not_fit() {
    let dir = TempDir::new().unwrap();
    for (header, what) in [
        (r#"{}"#, "lacks the tensor `y`"),
        (
            r#"{"x":{"dtype":"U8","shape":[2,1],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#,
            "1 labels",
        ),
        (
            r#"{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#,
            "[samples, ...]",
        ),
        (
            r#"{"x":{"dtype":"I8","shape":[2,1],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#,
            "1 labels",
        ),
        (
            r#"{"x":{"dtype":"U8","shape":[1,9999999999999],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}"#,
            "damaged",
        ),
    ] {
        let data = vec![0; if header == "{}" { 0 } else { 3 }];
        let spec = DatasetSpec::Safetensors(tensors(&dir, header, &data));
        let error = load(&spec, None, Part::Train).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let dir = idx_folder();
        fs::write(dir.path().join("train-images-idx3-ubyte"), &bytes).unwrap();
        let _ = load_idx(dir.path(), Part::Train);
        for (kind, name) in
            [("csv", "a.csv"), ("safetensors", "a.safetensors"), ("text", "a.txt"), ("bytes", "a.bin")]
        {
            let path = dir.path().join(name);
            fs::write(&path, &bytes).unwrap();
            let _ = load(&format!("{kind}:{}", path.display()).parse().unwrap(), None, Part::Both);
        }
    }
}
