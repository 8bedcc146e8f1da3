//! Tables and tensors whose targets are numbers or several labels.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use fl_datasets::{Dataset, DatasetError, DatasetSpec, Features, Part, Samples, Task, load};
use fl_protocol::Targets;
use std::fs;
use tempfile::TempDir;

fn csv(target: &str, text: &str, part: Part) -> Result<Dataset, DatasetError> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("table.csv");
    fs::write(&path, text).unwrap();
    load(&DatasetSpec::csv(path).with_target(target).unwrap(), None, part)
}

fn told(target: &str, text: &str) -> String {
    csv(target, text, Part::Both).unwrap_err().to_string()
}

fn numbers<'a>(targets: Targets<'a>) -> &'a [f32] {
    match targets {
        Targets::Numbers(values) => values,
        other => panic!("numbers expected, not {other:?}"),
    }
}

fn rows(count: usize) -> String {
    let row = |i: usize| format!("{},{},{},{}\n", i, 10 * i, 0.5 * i as f32, -(i as f32));
    "rooms,price,area,age\n".to_owned() + &(1..=count).map(row).collect::<String>()
}

#[test]
fn a_column_is_predicted_as_it_stands() {
    let data = csv("price", &rows(10), Part::Both).unwrap();
    assert_eq!((&data.task, data.input_shape()), (&Task::Regression { outputs: 1 }, &[3][..]));
    assert_eq!(
        (data.names.labels.join(" "), data.names.features.join(" ")),
        ("price".into(), "rooms area age".into())
    );
    assert_eq!(numbers(data.train.targets()), [10.0, 20.0, 30.0, 40.0, 60.0, 70.0, 80.0, 90.0]);
    assert_eq!(numbers(data.test.targets()), [50.0, 100.0]);
    assert_eq!(data.test.features(), &Features::F32(vec![5.0, 2.5, -5.0, 10.0, 5.0, -10.0]));
    // Inputs are standardised by the training rows, targets are not.
    assert_eq!(data.normalization.mean, [5.0, 2.5, -5.0]);
    let mut samples = Samples::new();
    data.test.gather(&[1, 0], &data.normalization, &mut samples);
    assert_eq!(numbers(samples.targets()), [100.0, 50.0]);
    assert!(matches!(samples.targets(), fl_protocol::Targets::Numbers(_)));
    assert!(data.train.labels().is_empty() && data.test.num_features() == 3);
    assert_eq!(csv("price", &rows(10), Part::AllForTraining).unwrap().train.len(), 10);
}

#[test]
fn several_columns_in_the_order_that_is_asked_for() {
    let data = csv("age, rooms", &rows(3), Part::Train).unwrap();
    assert_eq!(data.task, Task::Regression { outputs: 2 });
    assert_eq!(numbers(data.train.targets()), [-1.0, 1.0, -2.0, 2.0, -3.0, 3.0]);
    assert_eq!(data.names.features, ["price", "area"]);
}

#[test]
fn several_labels_are_0_or_1() {
    let text = "sun,temperature,rain\n1,20.5,0\n0,11,1\n1,15,1\n";
    let data = csv("sun,rain?task=multilabel", text, Part::Train).unwrap();
    assert_eq!(data.task, Task::Multilabel { outputs: 2 });
    assert_eq!(numbers(data.train.targets()), [1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
    assert!(
        told("sun,rain?task=multilabel", "sun,x,rain\n1,2,0\n0,1,2\n")
            .contains("line 3, column 3: `2` is neither 0 nor 1")
    );
}

#[test]
fn a_label_column_by_name() {
    let text = "kind,a,label\nrose,1,2\niris,3,4\n";
    let data = csv("kind?task=classification", text, Part::Train).unwrap();
    assert_eq!((data.train.labels(), data.names.labels.join(" ")), (&[1, 0][..], "iris rose".to_owned()));
    assert_eq!(data.names.features, ["a", "label"]);
}

#[test]
fn targets_that_cannot_be_are_told() {
    let text = told("cost", &rows(2));
    assert!(text.contains("no column `cost`") && text.contains("rooms, price, area, age"), "{text}");
    assert!(told("price", "rooms,price\n1,2\n3,much\n").contains("line 3, column 2: `much` is not a number"));
    assert!(told("price", "rooms,price\n1,2\n3,\n").contains("line 3, column 2: `` is not a number"));
    assert!(told("price", "rooms,price\n1,inf\n").contains("not a number"));
    assert!(told("price", "price\n1\n").contains("other column"));
    assert!(told("price", "rooms,price\n").contains("no rows"));
    assert!(told("price", "").contains("empty"));
}

#[test]
fn outputs_are_compared_with_the_models() {
    let model = csv("price,age", &rows(5), Part::Test).unwrap().names;
    let own = csv("price,age", &rows(9), Part::Train).unwrap();
    assert_eq!(own.class_map(&model).unwrap(), None);
    let error = csv("age,price", &rows(9), Part::Train).unwrap().class_map(&model).unwrap_err().to_string();
    assert!(error.contains("targets age,price") && error.contains("TARGET=price,age"), "{error}");
    let error = own.clone().set_labels(vec!["x".into()]).unwrap_err().to_string();
    assert!(error.contains("task is regression: leave LABELS empty"), "{error}");
}

/// A safetensors file with `x` of four samples and two values, and this `y`.
fn tensors(dtype: &str, shape: &str, y: &[u8]) -> Result<Dataset, DatasetError> {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.safetensors");
    let header = format!(
        r#"{{"x":{{"dtype":"U8","shape":[4,2],"data_offsets":[0,8]}},"y":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[8,{}]}}}}"#,
        8 + y.len()
    );
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[1; 8], y].concat();
    fs::write(&path, bytes).unwrap();
    load(&DatasetSpec::Safetensors(path), None, Part::AllForTraining)
}

#[test]
fn tensors_of_two_dimensions_are_numbers_or_labels() {
    let floats: Vec<u8> = (0..8).flat_map(|v| (v as f32 / 2.0).to_le_bytes()).collect();
    let data = tensors("F32", "[4,2]", &floats).unwrap();
    assert_eq!(data.task, Task::Regression { outputs: 2 });
    assert_eq!(numbers(data.train.targets()), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]);
    let data = tensors("U8", "[4,3]", &[1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1]).unwrap();
    assert_eq!((&data.task, numbers(data.train.targets())[3]), (&Task::Multilabel { outputs: 3 }, 1.0));
    let told = |dtype, shape, y: &[u8]| tensors(dtype, shape, y).unwrap_err().to_string();
    assert!(told("U8", "[4,3]", &[2; 12]).contains("0 or 1"));
    assert!(told("I32", "[4,2]", &[0; 32]).contains("two dimensions"));
    assert!(told("F32", "[4,0]", &[]).contains("0 columns"));
    assert!(told("F32", "[2,4]", &floats).contains("`y` 2 labels"));
    assert!(told("F32", "[4]", &floats[..16]).contains("store labels as integers"));
    assert!(told("F32", "[4,1]", &[0xff; 16]).contains("not finite"));
}
