//! Folders of images: classes, parts, sizes and colours, and files that cannot be used.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{grey, jpeg, png, write};
use fl_datasets::{Dataset, DatasetError, Features, Input, Part, Samples, load};
use fl_protocol::{Inputs, Targets};
use png::ColorType;
use proptest::prelude::*;
use std::{fs, path::Path};
use tempfile::TempDir;

fn images(dir: &Path, size: &str, part: Part) -> Result<Dataset, DatasetError> {
    load(&format!("images:{}{size}", dir.display()).parse().unwrap(), None, part)
}

fn pixels(features: &Features) -> &[u8] {
    match features {
        Features::U8(pixels) => pixels,
        other => panic!("bytes expected, not {other:?}"),
    }
}

/// Ten cats of shades 0 to 9 and five dogs of shades 100 to 104, 2 x 3 pixels.
fn cats_and_dogs() -> TempDir {
    let dir = TempDir::new().unwrap();
    (0..10).for_each(|i| write(dir.path(), &format!("cat/{i}.png"), grey(2, 3, i)));
    (0..5).for_each(|i| write(dir.path(), &format!("dog/{i}.PNG"), grey(2, 3, 100 + i)));
    dir
}

#[test]
fn a_folder_is_a_class_and_every_fifth_image_of_it_is_for_the_test() {
    let dir = cats_and_dogs();
    write(dir.path(), "cat/notes.txt", "no image");
    write(dir.path(), ".cache/x/1.png", "hidden");
    write(dir.path(), "readme.md", "beside the classes");
    let data = images(dir.path(), "", Part::Both).unwrap();
    assert_eq!(data.input, Input::Image { shape: vec![1, 3, 2] });
    assert_eq!((data.num_classes(), &data.names.labels), (2, &vec!["cat".to_owned(), "dog".to_owned()]));
    assert_eq!(
        (data.train.labels(), data.test.labels()),
        (&[[0; 8].as_slice(), &[1; 4]].concat()[..], &[0, 0, 1][..])
    );
    assert_eq!(pixels(data.test.features()), [[4; 6], [9; 6], [104; 6]].concat());
    // Of the training images: 0 to 3, 5 to 8 and 100 to 103.
    let values: Vec<f64> = (0..4).chain(5..9).chain(100..104).map(f64::from).collect();
    let mean = values.iter().sum::<f64>() / 12.0;
    let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 12.0).sqrt();
    assert_eq!((data.normalization.mean[0], data.normalization.std[0]), (mean as f32, std as f32));
    for part in [Part::Train, Part::Test] {
        let one = images(dir.path(), "", part).unwrap();
        assert_eq!((&one.normalization, &one.task), (&data.normalization, &data.task));
        let (train, test) = if part == Part::Train { (12, 0) } else { (0, 3) };
        assert_eq!((one.train.len(), one.test.len()), (train, test));
    }
    assert_eq!(images(dir.path(), "", Part::AllForTraining).unwrap().train.len(), 15);
    let mut samples = Samples::new();
    data.test.gather(&[2], &data.normalization, &mut samples);
    let (Inputs::Numbers(x), Targets::Classes(y)) = (samples.inputs(), samples.targets()) else {
        panic!("numbers and classes")
    };
    assert!(y == [1] && (x[0] - (104.0 - mean as f32) / std as f32).abs() < 1e-5);
}

#[test]
fn folders_named_train_and_test_say_what_is_for_the_test() {
    let dir = TempDir::new().unwrap();
    (0..5).for_each(|i| write(dir.path(), &format!("train/cat/{i}.png"), grey(2, 2, 10 * i)));
    write(dir.path(), "test/dog/1.png", grey(2, 2, 200));
    let data = images(dir.path(), "", Part::Both).unwrap();
    assert_eq!((data.train.labels(), data.test.labels()), (&[0; 5][..], &[1][..]));
    assert_eq!((data.num_classes(), data.normalization.mean[0]), (2, 20.0));
    assert_eq!(images(dir.path(), "", Part::AllForTraining).unwrap().train.len(), 5);
    // A worker's folder without a test part of its own, and a master's without a training part.
    fs::rename(dir.path().join("test"), dir.path().join("kept")).unwrap();
    let data = images(dir.path(), "", Part::Train).unwrap();
    assert_eq!((data.train.len(), data.num_classes()), (4, 1));
    fs::remove_dir_all(dir.path().join("train")).unwrap();
    fs::rename(dir.path().join("kept"), dir.path().join("test")).unwrap();
    let data = images(dir.path(), "", Part::Test).unwrap();
    assert_eq!((data.test.len(), data.normalization.mean[0], data.normalization.std[0]), (1, 200.0, 1.0));
    let error = images(dir.path(), "", Part::Train).unwrap_err().to_string();
    assert!(error.contains("folder `train` is missing or empty"), "{error}");
    // A class may be called train: it holds images and no folders.
    let dir = TempDir::new().unwrap();
    write(dir.path(), "train/1.png", grey(2, 2, 1));
    write(dir.path(), "plane/1.png", grey(2, 2, 1));
    assert_eq!(images(dir.path(), "", Part::Train).unwrap().names.labels, ["plane", "train"]);
}

#[test]
fn folders_that_are_numbers_are_classes_as_they_stand() {
    let dir = TempDir::new().unwrap();
    ["0", "2", "10"].iter().for_each(|n| write(dir.path(), &format!("{n}/1.png"), grey(2, 2, 1)));
    let data = images(dir.path(), "", Part::Train).unwrap();
    assert_eq!((data.num_classes(), data.train.labels()), (11, &[0, 10, 2][..]));
    assert!(data.names.labels.is_empty());
}

#[test]
fn one_colour_image_makes_all_of_them_colours() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "a/1.png", grey(1, 2, 7));
    write(dir.path(), "a/2.png", png(1, 2, ColorType::GrayscaleAlpha, &[50, 0, 60, 255]));
    assert_eq!(images(dir.path(), "", Part::Train).unwrap().input_shape(), [1, 2, 1]);
    write(dir.path(), "b/1.png", png(1, 2, ColorType::Rgba, &[1, 2, 3, 0, 4, 5, 6, 255]));
    let data = images(dir.path(), "", Part::Train).unwrap();
    assert_eq!((data.input_shape(), data.normalization.mean.len()), (&[3, 2, 1][..], 3));
    let expected = [[7, 7, 7, 7, 7, 7], [50, 60, 50, 60, 50, 60], [1, 4, 2, 5, 3, 6]].concat();
    assert_eq!(pixels(data.train.features()), expected);
    // Or the name of the data set says it.
    let grey = images(dir.path(), "@1x2x1", Part::Train).unwrap();
    assert_eq!(pixels(grey.train.features()), [7, 7, 50, 60, 2, 5]);
    fs::remove_dir_all(dir.path().join("b")).unwrap();
    assert_eq!(images(dir.path(), "@1x2x3", Part::Train).unwrap().input_shape(), [3, 2, 1]);
}

#[test]
fn jpegs_and_16_bits_and_palettes() {
    let dir = TempDir::new().unwrap();
    write(dir.path(), "a/1.jpg", jpeg(16, 8, &[vec![10], vec![200]]));
    let mut deep = Vec::new();
    let mut encoder = png::Encoder::new(&mut deep, 16, 8);
    encoder.set_color(ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Sixteen);
    encoder.write_header().unwrap().write_image_data(&[0x12, 0x34].repeat(128)).unwrap();
    write(dir.path(), "a/2.png", deep);
    let data = images(dir.path(), "", Part::Train).unwrap();
    assert_eq!(data.input_shape(), [1, 8, 16]);
    let shades = pixels(data.train.features());
    assert_eq!(
        (&shades[..8], &shades[8..16], &shades[128..]),
        (&[10; 8][..], &[200; 8][..], &[0x12; 128][..])
    );
    // Y, Cb, Cr of a red.
    write(dir.path(), "b/1.jpeg", jpeg(16, 8, &[vec![76, 85, 255], vec![76, 85, 255]]));
    let mut palette = Vec::new();
    let mut encoder = png::Encoder::new(&mut palette, 16, 8);
    encoder.set_color(ColorType::Indexed);
    encoder.set_palette(vec![0, 0, 0, 9, 8, 7]);
    encoder.write_header().unwrap().write_image_data(&[1; 128]).unwrap();
    write(dir.path(), "b/2.png", palette);
    let data = images(dir.path(), "", Part::Train).unwrap();
    let all = pixels(data.train.features());
    let mean = |image: usize, channel: usize| {
        let plane = &all[(image * 3 + channel) * 128..][..128];
        plane.iter().map(|&v| f64::from(v)).sum::<f64>() / 128.0
    };
    assert_eq!([mean(0, 0), mean(0, 2)], [105.0; 2], "grey becomes grey");
    assert!(mean(2, 0) > 250.0 && mean(2, 1) < 5.0 && mean(2, 2) < 5.0);
    assert_eq!([0, 1, 2].map(|channel| mean(3, channel)), [9.0, 8.0, 7.0]);
}

#[test]
fn images_of_several_sizes_need_a_size() {
    let dir = cats_and_dogs();
    write(dir.path(), "dog/big.png", grey(6, 4, 50));
    let error = images(dir.path(), "", Part::Train).unwrap_err().to_string();
    assert!(error.contains("dog/big.png has 6x4 pixels") && error.contains("has 2x3"), "{error}");
    assert!(error.contains(&format!("DATASET=images:{}@2x3", dir.path().display())), "{error}");
    let data = images(dir.path(), "@4x5", Part::AllForTraining).unwrap();
    assert_eq!((data.input_shape(), data.train.len()), (&[1, 5, 4][..], 16));
    assert_eq!(pixels(data.train.features())[15 * 20..], [50; 20]);
}

#[test]
fn an_image_that_cannot_be_decoded_is_named() {
    let dir = cats_and_dogs();
    let bad = |bytes: &[u8]| {
        write(dir.path(), "cat/3.png", bytes);
        let error = images(dir.path(), "", Part::Train).unwrap_err();
        assert!(matches!(error, DatasetError::Image { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("cat/3.png cannot be decoded") && !text.contains('\n'), "{text}");
        text
    };
    let good = grey(2, 3, 1);
    assert!(bad(b"").contains("neither"));
    assert!(bad(b"GIF89a").contains("neither"));
    (0..good.len() - 12).for_each(|len| drop(bad(&good[..len])));
    let good = jpeg(2, 3, &[vec![9]]);
    (0..good.len() - 4).for_each(|len| drop(bad(&good[..len])));
    // Declares more than its bytes can hold.
    let mut huge = jpeg(8, 8, &[vec![9]]);
    let size = huge.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap() + 5;
    huge[size..size + 4].copy_from_slice(&[0x10, 0, 0x20, 0]);
    assert!(bad(&huge).contains("8192x4096 pixels but is too short"));
}

#[test]
fn sizes_beyond_the_limits_allocate_nothing() {
    let dir = cats_and_dogs();
    let mut header = grey(2, 3, 1);
    for (width, height) in [(u32::MAX, u32::MAX), (1 << 31, 1), (20_000, 1), (16_000, 16_000), (0, 4)] {
        header[16..20].copy_from_slice(&width.to_be_bytes());
        header[20..24].copy_from_slice(&height.to_be_bytes());
        let sum = crc(&header[12..29]);
        header[29..33].copy_from_slice(&sum.to_be_bytes());
        write(dir.path(), "cat/3.png", &header);
        let error = images(dir.path(), "", Part::Train).unwrap_err();
        let refused = matches!(error, DatasetError::TooLarge { .. } | DatasetError::Image { .. });
        assert!(refused && error.to_string().contains("cat/3.png"), "{error}");
    }
    let mut bomb = jpeg(8, 8, &[vec![9]]);
    let size = bomb.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap() + 5;
    bomb[size..size + 4].copy_from_slice(&[0xff; 4]);
    write(dir.path(), "cat/3.png", bomb);
    assert!(images(dir.path(), "", Part::Train).unwrap_err().to_string().contains("cat/3.png"));
    fs::File::create(dir.path().join("cat/3.png")).unwrap().set_len(65 << 20).unwrap();
    assert!(images(dir.path(), "", Part::Train).unwrap_err().to_string().contains("too large"));
    fs::remove_file(dir.path().join("cat/3.png")).unwrap();
    assert!(images(dir.path(), "@8192x8192", Part::Train).unwrap_err().to_string().contains("@32x32"));
    assert!(images(dir.path(), "@4096x4096x3", Part::Train).is_err());
}

/// The checksum of a PNG's chunk.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    })
}

#[test]
fn folders_that_hold_something_else_are_refused() {
    let empty = TempDir::new().unwrap();
    let told = |dir: &Path| images(dir, "", Part::Train).unwrap_err().to_string();
    assert!(told(empty.path()).contains("no folders"));
    fs::create_dir(empty.path().join("cat")).unwrap();
    assert!(told(empty.path()).contains("no images"));
    assert!(told(&empty.path().join("none")).contains("was not found"));
    write(empty.path(), "1.png", grey(1, 1, 1));
    assert!(told(empty.path()).contains("1.png beside the folders of classes"));

    let dir = cats_and_dogs();
    write(dir.path(), "cat/more/1.png", grey(2, 3, 1));
    assert!(told(dir.path()).contains("cat/more is a folder inside of a class"));
    fs::remove_dir_all(dir.path().join("cat/more")).unwrap();
    write(dir.path(), "cat/x.webp", "RIFF");
    assert!(told(dir.path()).contains("`.webp` is not read"));
}

#[cfg(unix)]
#[test]
fn links_are_followed_as_far_as_they_lead_to_files() {
    use std::os::unix::{ffi::OsStrExt, fs::symlink};
    let dir = cats_and_dogs();
    let linked = TempDir::new().unwrap();
    symlink(dir.path().join("cat"), linked.path().join("cat")).unwrap();
    fs::create_dir(linked.path().join("dog")).unwrap();
    symlink(dir.path().join("dog/1.PNG"), linked.path().join("dog/1.png")).unwrap();
    assert_eq!(images(linked.path(), "", Part::AllForTraining).unwrap().train.len(), 11);
    let told = || images(linked.path(), "", Part::AllForTraining).unwrap_err().to_string();
    // A device without an end, a link to nowhere, one to itself, and a folder that holds itself.
    let bad = linked.path().join("dog/2.png");
    for target in [Path::new("/dev/zero"), Path::new("/nowhere"), &bad] {
        symlink(target, &bad).unwrap();
        assert!(told().contains("dog/2.png"), "{}", told());
        fs::remove_file(&bad).unwrap();
    }
    symlink(linked.path(), linked.path().join("loop")).unwrap();
    assert!(told().contains("folder inside of a class"), "{}", told());
    fs::remove_file(linked.path().join("loop")).unwrap();
    fs::create_dir(linked.path().join(std::ffi::OsStr::from_bytes(b"\xff"))).unwrap();
    assert!(told().contains("not UTF-8"), "{}", told());
}

#[test]
fn other_folders_come_to_the_models_classes() {
    let model = images(cats_and_dogs().path(), "", Part::Test).unwrap().names;
    let dir = TempDir::new().unwrap();
    write(dir.path(), "dog/1.png", grey(2, 3, 1));
    let own = images(dir.path(), "", Part::Train).unwrap();
    assert_eq!(own.class_map(&model).unwrap(), Some(vec![1]));
    write(dir.path(), "fox/1.png", grey(2, 3, 1));
    let error = images(dir.path(), "", Part::Train).unwrap().class_map(&model).unwrap_err().to_string();
    assert!(error.contains("labels fox") && error.contains("LABELS=cat,dog,fox"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn changed_files_never_panic(
        kind in 0usize..4,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        fix_sum: bool,
    ) {
        let mut bytes = match kind {
            0 => grey(5, 4, 77),
            1 => png(3, 3, ColorType::Rgba, &(0..36).collect::<Vec<u8>>()),
            2 => jpeg(16, 8, &[vec![10], vec![240]]),
            _ => jpeg(8, 16, &[vec![10, 20, 30], vec![240, 90, 9]]),
        };
        for (at, value) in changes {
            // Half of the changes fall into the headers.
            let range = if value % 2 == 0 { bytes.len() } else { bytes.len().min(60) };
            let at = at.index(range);
            bytes[at] = value;
        }
        if fix_sum && kind < 2 {
            let sum = crc(&bytes[12..29]);
            bytes[29..33].copy_from_slice(&sum.to_be_bytes());
        }
        if !fix_sum {
            bytes.truncate(cut.index(bytes.len()) + 1);
        }
        let dir = TempDir::new().unwrap();
        write(dir.path(), "a/1.png", bytes);
        for size in ["", "@4x4"] {
            if let Ok(data) = images(dir.path(), size, Part::AllForTraining) {
                prop_assert_eq!(data.train.len(), 1);
                prop_assert_eq!(pixels(data.train.features()).len(), data.input.len());
            }
        }
    }
}
