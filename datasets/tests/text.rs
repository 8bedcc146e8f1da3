//! Texts: vocabulary, sequences, the part that tests, and texts that cannot be used.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use fl_datasets::{
    DEFAULT_SEQUENCE_LENGTH, DataNames, Dataset, DatasetError, DatasetSpec, Input, Part, Samples, Task, load,
};
use fl_protocol::{Inputs, Targets};
use proptest::prelude::*;
use std::{fs, sync::Arc};
use tempfile::TempDir;

fn file(content: &[u8]) -> (TempDir, std::path::PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.txt");
    fs::write(&path, content).unwrap();
    (dir, path)
}

fn text(content: impl AsRef<[u8]>, part: Part) -> Result<Dataset, DatasetError> {
    let (_dir, path) = file(content.as_ref());
    load(&DatasetSpec::Text(path), None, part)
}

fn bytes(content: &[u8], part: Part) -> Result<Dataset, DatasetError> {
    let (_dir, path) = file(content);
    load(&DatasetSpec::Bytes(path), None, part)
}

/// Inputs and targets of some samples.
fn gather(split: &fl_datasets::Split, data: &Dataset, indices: &[u32]) -> (Vec<u32>, Vec<u32>) {
    let mut samples = Samples::new();
    split.gather(indices, &data.normalization, &mut samples);
    match (samples.inputs(), samples.targets()) {
        (Inputs::Tokens(inputs), Targets::Classes(targets)) => (inputs.to_vec(), targets.to_vec()),
        other => panic!("tokens expected, not {other:?}"),
    }
}

fn spell(data: &Dataset, tokens: &[u32]) -> String {
    tokens.iter().map(|&token| data.names.labels[token as usize].as_str()).collect()
}

#[test]
fn a_sequence_and_what_follows_each_of_its_characters() {
    let content = "To be, or not: that is the question.\n".repeat(60);
    let data = text(&content, Part::AllForTraining).unwrap().with_sequence_length(7).unwrap();
    assert_eq!((data.input_shape(), &data.task), (&[7][..], &Task::LanguageModel));
    assert_eq!(data.num_classes(), data.names.labels.len());
    assert!(data.names.labels.is_sorted(), "{:?}", data.names.labels);
    assert_eq!(data.train.len(), (content.len() - 1) / 7);
    let (inputs, targets) = gather(&data.train, &data, &[1, 0]);
    assert_eq!(spell(&data, &inputs), [&content[7..14], &content[..7]].concat());
    assert_eq!(spell(&data, &targets), [&content[8..15], &content[1..8]].concat());
    let last = data.train.len() as u32 - 1;
    assert_eq!(gather(&data.train, &data, &[last]).1.len(), 7);
    // All samples in order are the text.
    let all: Vec<u32> = (0..=last).collect();
    assert!(content.starts_with(&spell(&data, &gather(&data.train, &data, &all).0)));
}

#[test]
fn the_last_tenth_tests_and_every_part_has_the_same_vocabulary() {
    // `z` occurs in the last tenth only.
    let content = format!("{}{}", "abcdefghi".repeat(1000), "z".repeat(1000));
    let load = |part| text(&content, part).unwrap().with_sequence_length(10).unwrap();
    let both = load(Part::Both);
    assert_eq!((both.train.len(), both.test.len(), both.num_classes()), (899, 99, 10));
    assert_eq!(gather(&both.test, &both, &[0, 98]).0, [9; 20]);
    assert_eq!(load(Part::Train).num_classes(), 10);
    assert_eq!((load(Part::Train).train, load(Part::Train).test.len()), (both.train, 0));
    assert_eq!((load(Part::Test).test, load(Part::Test).train.len()), (both.test, 0));
    assert_eq!(load(Part::AllForTraining).train.len(), 999);
}

#[test]
fn a_text_too_short_says_how_many_characters_it_needs() {
    for (part, needed) in
        [(Part::AllForTraining, 81), (Part::Train, 90), (Part::Test, 801), (Part::Both, 801)]
    {
        let content = |len| "é".repeat(len);
        let error = text(content(needed - 1), part).unwrap_err().to_string();
        let told =
            format!("holds {} characters, at least {needed} are needed for sequences of 80", needed - 1);
        assert!(error.contains(&told), "{error}");
        let data = text(content(needed), part).unwrap();
        assert!(data.train.len() + data.test.len() > 0);
        let error = data.with_sequence_length(DEFAULT_SEQUENCE_LENGTH + 1).unwrap_err().to_string();
        assert!(error.contains("sequences of 81"), "{error}");
    }
    assert!(text("", Part::Train).unwrap_err().to_string().contains("empty"));
    assert!(text("\u{feff}", Part::Train).unwrap_err().to_string().contains("empty"));
    assert!(bytes(&[1; 50], Part::Train).unwrap_err().to_string().contains("50 bytes"));
    let data = text("x".repeat(100), Part::Train).unwrap();
    for length in [0, usize::MAX, 1 << 30] {
        assert!(matches!(data.with_sequence_length(length), Err(DatasetError::SequenceLength { .. })));
    }
}

#[test]
fn data_are_cut_for_a_network_only_where_it_takes_tokens() {
    let data = Arc::new(text("abc".repeat(1000), Part::Both).unwrap());
    let input = |length| Input::Tokens { shape: vec![length], vocab: 3 };
    assert!(Arc::ptr_eq(&data.cut_for(&input(80)).unwrap(), &data));
    let short = data.cut_for(&input(16)).unwrap();
    assert_eq!((short.input_shape(), short.train.num_features()), (&[16][..], 16));
    assert_eq!(short.cut_for(&input(80)).unwrap().train, data.train, "the tokens are all still there");
    let digits = Arc::new(load(&DatasetSpec::Digits, None, Part::Test).unwrap());
    assert!(Arc::ptr_eq(&digits.cut_for(&input(16)).unwrap(), &digits));
    let error = digits.with_sequence_length(16).unwrap_err().to_string();
    assert!(error.contains("digits is no text"), "{error}");
}

#[test]
fn other_characters_come_to_the_models_numbering_or_are_named() {
    let model = text("a, b\n\"c\"\u{1F600}\u{0}".repeat(40), Part::Train).unwrap().names;
    // What the model file does with them.
    let json = serde_json::to_string(&model).unwrap();
    assert_eq!(serde_json::from_str::<DataNames>(&json).unwrap(), model);

    let own = text("b\u{1F600}a".repeat(40), Part::AllForTraining).unwrap().with_sequence_length(3).unwrap();
    let map = own.class_map(&model).unwrap().unwrap();
    let mut samples = Samples::new();
    own.train.gather(&[0], &own.normalization, &mut samples);
    samples.renumber(&map);
    let (Inputs::Tokens(inputs), Targets::Classes(targets)) = (samples.inputs(), samples.targets()) else {
        panic!("tokens expected")
    };
    let spell = |tokens: &[u32]| tokens.iter().map(|&t| model.labels[t as usize].clone()).collect::<String>();
    assert_eq!((spell(inputs), spell(targets)), ("b\u{1F600}a".to_owned(), "\u{1F600}ab".to_owned()));
    assert_eq!(own.class_map(&own.names).unwrap(), None, "the same characters need no map");

    let error = text("a\td b".repeat(40), Part::Train).unwrap().class_map(&model).unwrap_err();
    let told = error.to_string();
    assert!(told.contains("characters `\\t`, `d`, which the model does not know"), "{told}");
    assert!(told.contains("bytes:FILE") && !told.contains('\t'), "{told}");
    let raw = bytes(&[7; 200], Part::Train).unwrap();
    assert_eq!(raw.class_map(&raw.names).unwrap(), None);
    let told = raw.class_map(&model).unwrap_err().to_string();
    assert!(told.contains("is read as bytes, the model is of characters"), "{told}");
    let told = own.class_map(&raw.names).unwrap_err().to_string();
    assert!(told.contains("is read as characters, the model is of bytes"), "{told}");
    let error = own.clone().set_labels(vec!["a".into(), "b".into()]).unwrap_err().to_string();
    assert!(error.contains("task is language_model: leave LABELS empty"), "{error}");
}

#[test]
fn any_bytes_are_tokens_of_a_vocabulary_of_256() {
    let content: Vec<u8> = (0..=255).cycle().take(5000).collect();
    let data = bytes(&content, Part::Both).unwrap();
    assert_eq!(data.input, Input::Tokens { shape: vec![80], vocab: 256 });
    assert!(data.names.labels.is_empty());
    let (inputs, targets) = gather(&data.train, &data, &[2]);
    assert_eq!(inputs, content[160..240].iter().map(|&b| u32::from(b)).collect::<Vec<_>>());
    assert_eq!(targets, content[161..241].iter().map(|&b| u32::from(b)).collect::<Vec<_>>());
}

#[test]
fn more_characters_than_a_byte_can_tell_apart_and_far_too_many() {
    let many = |count: u32| -> String { (0x4e00..0x4e00 + count).filter_map(char::from_u32).collect() };
    let data = text(many(3000), Part::AllForTraining).unwrap();
    assert_eq!(data.num_classes(), 3000);
    let (inputs, targets) = gather(&data.train, &data, &[10]);
    assert_eq!((inputs[0], inputs[79], targets[79]), (800, 879, 880));
    let error = text(many(20_000), Part::Train).unwrap_err().to_string();
    assert!(error.contains("20000 different characters") && error.contains("bytes:FILE"), "{error}");
}

#[test]
fn line_ends_and_byte_order_marks_of_other_systems_are_no_characters() {
    let unix = text("one\ntwo\n".repeat(50), Part::Train).unwrap();
    let windows = text(format!("\u{feff}{}", "one\r\ntwo\r\n".repeat(50)), Part::Train).unwrap();
    assert_eq!((&unix.names, &unix.train), (&windows.names, &windows.train));
}

#[test]
fn what_is_no_text_is_refused_with_the_place() {
    let latin1 = [&b"abc".repeat(100)[..], b"\xe9t\xe9"].concat();
    let error = text(&latin1, Part::Train).unwrap_err().to_string();
    assert!(error.contains("byte 300 is not UTF-8") && error.contains("bytes:FILE"), "{error}");
    assert!(bytes(&latin1, Part::Train).is_ok());
    let dir = TempDir::new().unwrap();
    let error = load(&DatasetSpec::Text(dir.path().into()), None, Part::Train).unwrap_err().to_string();
    assert!(error.contains("not a file"), "{error}");
    #[cfg(unix)]
    {
        let error = load(&DatasetSpec::Bytes("/dev/zero".into()), None, Part::Train).unwrap_err().to_string();
        assert!(error.contains("not a file"), "{error}");
    }
    // A file that takes no space but claims two gigabytes.
    let path = dir.path().join("huge.txt");
    fs::File::create(&path).unwrap().set_len(2 << 30).unwrap();
    let error = load(&DatasetSpec::Text(path), None, Part::Train).unwrap_err().to_string();
    assert!(error.contains("too large"), "{error}");
}

#[test]
fn the_bundled_text() {
    let data = load(&DatasetSpec::Shakespeare, None, Part::Both).unwrap();
    assert_eq!((data.name.as_str(), data.num_classes()), ("shakespeare", 63));
    assert_eq!((data.train.len(), data.test.len()), (4505, 500));
    let (inputs, _) = gather(&data.train, &data, &[0]);
    assert!(spell(&data, &inputs).starts_with("First Citizen:\nBefore we proceed any further"));
    // Like the digits, it keeps its test part.
    let train = load(&DatasetSpec::Shakespeare, None, Part::AllForTraining).unwrap();
    assert_eq!((train.train.len(), train.test.len()), (4505, 0));
    assert_eq!(train.names, data.names);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn every_sample_of_every_length_can_be_gathered(
        content in "[a-zé\n]{1,300}",
        length in 1usize..120,
        all: bool,
    ) {
        let part = if all { Part::AllForTraining } else { Part::Both };
        let padded = content.clone() + &"x".repeat(900);
        let data = text(&padded, part).unwrap();
        if let Ok(data) = data.with_sequence_length(length) {
            for split in [&data.train, &data.test] {
                let indices: Vec<u32> = (0..split.len() as u32).collect();
                prop_assert!(all || !indices.is_empty());
                let (inputs, targets) = if indices.is_empty() { continue } else { gather(split, &data, &indices) };
                prop_assert_eq!(inputs.len(), indices.len() * length);
                prop_assert_eq!(&inputs[1..], &targets[..targets.len() - 1]);
                prop_assert!(targets.iter().all(|&token| (token as usize) < data.num_classes()));
            }
        }
    }
}
