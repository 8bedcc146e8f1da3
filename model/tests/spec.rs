//! Layer lists: files, shapes, names, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use fl_model::{Layer, ModelError, ModelSpec};
use fl_protocol::{Input, Task};

fn with_layers(layers: &str) -> Result<ModelSpec, ModelError> {
    ModelSpec::from_json(&format!(
        r#"{{"name":"t","input_shape":[1,8,8],"num_classes":10,"layers":[{layers}]}}"#
    ))
}

fn load(path: &str, classes: usize) -> Result<ModelSpec, ModelError> {
    ModelSpec::load(path, &Input::numbers(&[1, 8, 8]), &Task::classes(classes), 0)
}

#[test]
fn keys_and_shapes_are_those_of_torch_nn_sequential() {
    let spec = ModelSpec::classifier("mcmahan_cnn", &[1, 28, 28], 10, 0).unwrap();
    let layout = spec.layout();
    let tensors: Vec<_> = layout.tensors().iter().map(|t| (t.name.as_str(), t.shape.clone())).collect();
    let expected = [
        ("0.weight", vec![32, 1, 5, 5]),
        ("0.bias", vec![32]),
        ("3.weight", vec![64, 32, 5, 5]),
        ("3.bias", vec![64]),
        ("7.weight", vec![512, 3136]),
        ("7.bias", vec![512]),
        ("9.weight", vec![10, 512]),
        ("9.bias", vec![10]),
    ];
    assert_eq!(tensors, expected);
}

#[test]
fn mlp_is_as_wide_as_its_budget_allows() {
    for (budget, hidden) in [(100_000, 125), (99_385, 125), (99_384, 124), (805, 1)] {
        let spec = ModelSpec::classifier("mlp", &[1, 28, 28], 10, budget).unwrap();
        assert_eq!(spec.layers[1], Layer::Linear { in_features: 784, out_features: hidden, bias: true });
        assert!(spec.num_parameters() <= budget);
    }
    assert!(ModelSpec::classifier("mlp", &[1, 28, 28], 10, 804).is_err());
}

#[test]
fn a_file_may_leave_out_what_the_data_gives() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.json");
    std::fs::write(
        &path,
        r#"{"layers":[{"type":"conv2d","out_channels":4,"kernel":3,"padding":1},{"type":"relu"},
        {"type":"group_norm","groups":2},{"type":"max_pool2d","kernel":2},{"type":"flatten"},
        {"type":"dropout","p":0.25},{"type":"linear","out_features":10}]}"#,
    )
    .unwrap();
    let path = path.to_str().unwrap();
    let spec = load(path, 10).unwrap();
    assert_eq!(spec.name, "small");
    assert_eq!(spec.num_parameters(), 4 * 9 + 4 + 8 + 640 + 10);
    assert_eq!(ModelSpec::from_json(&spec.to_json()).unwrap(), spec);
    assert!(load(path, 9).is_err(), "nine classes need nine logits");
}

#[test]
fn what_cannot_be_a_model_is_named() {
    for path in ["no/such.json", "such.json", "./such", "such.yaml", "no/such"] {
        let missing = load(path, 10).unwrap_err();
        assert!(missing.to_string().contains(path), "{missing}");
        assert!(
            matches!(missing, ModelError::BadSpecFile { .. }),
            "{path} is a file that is missing: {missing}"
        );
    }
    let unknown = load("rnn", 10).unwrap_err();
    assert!(matches!(unknown, ModelError::UnknownModel { .. }), "a name is a setting: {unknown}");
    for preset in fl_model::PRESETS {
        assert!(unknown.to_string().contains(preset), "it lists the presets: {unknown}");
    }
    assert!(ModelSpec::classifier("cnn", &[64], 10, 0).is_err(), "convolutions need images");
}

#[test]
fn layers_that_do_not_fit_are_errors() {
    let head = r#"{"type":"flatten"},{"type":"linear","in_features":64,"out_features":10}"#;
    assert!(with_layers(head).is_ok());
    for bad in [
        "",
        r#"{"type":"flatten"}"#,
        r#"{"type":"linear","in_features":64,"out_features":10}"#,
        r#"{"type":"flatten"},{"type":"linear","in_features":63,"out_features":10}"#,
        r#"{"type":"flatten"},{"type":"linear","in_features":64,"out_features":9}"#,
        r#"{"type":"flatten"},{"type":"relu"}"#,
    ] {
        assert!(with_layers(bad).is_err(), "{bad}");
    }
    for bad in [
        r#"{"type":"conv2d","in_channels":1,"out_channels":1,"kernel":0}"#,
        r#"{"type":"conv2d","in_channels":2,"out_channels":1,"kernel":1}"#,
        r#"{"type":"conv2d","in_channels":1,"out_channels":1,"kernel":1,"padding":1}"#,
        r#"{"type":"conv2d","in_channels":1,"out_channels":1,"kernel":9}"#,
        r#"{"type":"conv2d","in_channels":1,"out_channels":18446744073709551615,"kernel":1}"#,
        r#"{"type":"conv2d","in_channels":1,"out_channels":16777216,"kernel":1}"#,
        r#"{"type":"group_norm","groups":2,"channels":1}"#,
        r#"{"type":"dropout","p":1.0}"#,
        r#"{"type":"dropout","p":-0.1}"#,
        r#"{"type":"lstm","hidden_size":4}"#,
        r#"{"type":"max_pool2d","kernel":2,"stride":2,"padding":2}"#,
    ] {
        assert!(with_layers(&format!("{bad},{head}")).is_err(), "{bad}");
    }
}

#[test]
fn sizes_of_a_file_never_wrap() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("grows.json");
    // Every layer adds 1,023 pixels to each side.
    let layer = r#"{"type":"conv2d","out_channels":16777216,"kernel":1024,"padding":1023}"#;
    let layers = vec![layer; 200].join(",");
    std::fs::write(&path, format!(r#"{{"layers":[{layers},{{"type":"flatten"}}]}}"#)).unwrap();
    let error = load(path.to_str().unwrap(), 10).unwrap_err();
    assert!(error.to_string().contains("layer 0"), "the first layer is too large already: {error}");
}

#[test]
fn version_1_is_still_read() {
    let old = ModelSpec::from_json(
        r#"{"name":"old","input_shape":[1,8,8],"num_classes":10,"layers":[
        {"type":"conv2d","in_channels":1,"out_channels":4,"kernel":3,"padding":1,"stride":1},{"type":"relu"},
        {"type":"max_pool2d","kernel":2,"stride":2},{"type":"group_norm","groups":2,"channels":4},
        {"type":"dropout","p":0.5},{"type":"flatten"},{"type":"linear","in_features":64,"out_features":10}]}"#,
    )
    .unwrap();
    assert_eq!(old.input, Input::Image { shape: vec![1, 8, 8] });
    assert_eq!(old.task, Task::classes(10));
    let new = old.to_json();
    assert!(new.contains(r#""input":{"kind":"image","shape":[1,8,8]}"#), "{new}");
    assert_eq!(ModelSpec::from_json(&new).unwrap(), old);
    let vector = r#"{"name":"v","input_shape":[5],"num_classes":2,"layers":[{"type":"linear","in_features":5,"out_features":2}]}"#;
    assert_eq!(ModelSpec::from_json(vector).unwrap().input, Input::Vector { shape: vec![5] });
}

#[test]
fn keys_are_those_of_nested_modules() {
    let spec = with_layers(
        r#"{"type":"residual","body":[{"type":"conv2d","out_channels":1,"kernel":1,"bias":false}]},
        {"type":"branches","join":"concat","branches":[[],[{"type":"batch_norm"}]]},
        {"type":"sequential","layers":[{"type":"flatten"},{"type":"linear","out_features":10}]}"#,
    )
    .unwrap();
    let names: Vec<String> = spec.layout().tensors().iter().map(|tensor| tensor.name.clone()).collect();
    let expected = [
        "0.body.0.weight",
        "1.branches.1.0.weight",
        "1.branches.1.0.bias",
        "1.branches.1.0.running_mean",
        "1.branches.1.0.running_var",
        "2.1.weight",
        "2.1.bias",
    ];
    assert_eq!(names, expected);
    assert_eq!(spec.buffers(), [3..4, 4..5]);
}

#[test]
fn a_bad_spec_names_the_layer_and_both_shapes() {
    let message = |layers: &str| with_layers(layers).unwrap_err().to_string();
    let inner = message(
        r#"{"type":"relu"},{"type":"sequential","layers":[{"type":"flatten"},
        {"type":"linear","in_features":63,"out_features":10}]}"#,
    );
    assert!(inner.contains("layer 1.1") && inner.contains("63") && inner.contains("64"), "{inner}");
    let sum = message(r#"{"type":"residual","body":[{"type":"conv2d","out_channels":2,"kernel":1}]}"#);
    assert!(sum.contains("layer 0") && sum.contains("[2, 8, 8]") && sum.contains("[1, 8, 8]"), "{sum}");
    let join = message(
        r#"{"type":"residual","body":[{"type":"branches","join":"concat","branches":[[],[{"type":"max_pool2d","kernel":2}]]}]}"#,
    );
    assert!(
        join.contains("layer 0.body.0") && join.contains("[1, 8, 8]") && join.contains("[1, 4, 4]"),
        "{join}"
    );
    let end = message(r#"{"type":"flatten"},{"type":"linear","out_features":9}"#);
    assert!(end.contains("[9]") && end.contains("[10]"), "{end}");
}

#[test]
fn an_unknown_layer_lists_those_there_are() {
    let error = with_layers(r#"{"type":"capsule"}"#).unwrap_err().to_string();
    for kind in ["capsule", "conv2d", "batch_norm", "attention", "residual", "branches"] {
        assert!(error.contains(kind), "{kind}: {error}");
    }
}
