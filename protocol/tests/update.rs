//! The update container: what is written can be read, and nothing else can.

use fl_protocol::{
    ModelLayout, Update, UpdateError, UpdateJson, UpdateMeta,
    update::{self, Encoded},
};
use fl_quant::{Encoder, Scheme, Spec, encode_update};
use safetensors::{Dtype, tensor::TensorView};
use std::collections::HashMap;

fn layout() -> ModelLayout {
    ModelLayout::new([("1.weight".into(), vec![3, 4]), ("1.bias".into(), vec![3])])
}

fn meta() -> UpdateMeta {
    UpdateMeta {
        worker_id: "edge-1".parse().unwrap(),
        round: 7,
        num_samples: 100,
        loss: Some(0.5),
        accuracy: None,
        compute_factor: Some(1.25),
        local_steps: Some(5),
    }
}

fn values() -> Vec<f32> {
    (0..15).map(|i| i as f32 / 8.0 - 1.0).collect()
}

fn plain() -> Vec<u8> {
    let values = values();
    update::write(&meta(), &layout(), &[Encoded::F32(&values[..12]), Encoded::F32(&values[12..])]).unwrap()
}

fn quantized() -> Vec<u8> {
    let mut streams = Vec::new();
    let spec = Spec::new(Scheme::MsqV2, 8);
    encode_update(&mut Encoder::default(), &values(), &layout().shapes(), &spec, &mut streams).unwrap();
    let tensors: Vec<_> = streams.iter().map(|s| Encoded::Stream(s)).collect();
    update::write(&meta(), &layout(), &tensors).unwrap()
}

/// A container with the given tensors and metadata, right or wrong.
fn container(tensors: &[(&str, Dtype, &[usize], &[u8])], metadata: &[(&str, &str)]) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.to_vec(), data).unwrap()));
    let metadata: HashMap<_, _> = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    safetensors::serialize(views, Some(metadata)).unwrap()
}

const META: &[(&str, &str)] = &[("worker_id", "w"), ("round", "0"), ("num_samples", "5")];

fn refused(body: &[u8]) -> UpdateError {
    Update::parse(body, &layout()).unwrap_err()
}

#[test]
fn both_kinds_come_back() {
    let layout = layout();
    let body = plain();
    let update = Update::parse(&body, &layout).unwrap();
    assert_eq!(update.meta, meta());
    assert_eq!(update.to_flat(), values());
    assert_eq!(update.max_abs, 1.0);
    let body = quantized();
    let decoded = Update::parse(&body, &layout).unwrap().to_flat();
    for (x, y) in values().iter().zip(decoded) {
        assert!((x - y).abs() < 0.02, "{x} became {y}");
    }
}

#[test]
fn a_container_that_is_cut_anywhere_is_refused() {
    for body in [plain(), quantized()] {
        for len in 0..body.len() {
            assert!(Update::parse(&body[..len], &layout()).is_err(), "cut to {len}");
        }
    }
}

#[test]
fn wrong_tensors_are_named() {
    let (weight, bias) = ([0u8; 48], [0u8; 12]);
    let good: (&str, Dtype, &[usize], &[u8]) = ("1.weight", Dtype::F32, &[3, 4], &weight);
    let cases: [&[(&str, Dtype, &[usize], &[u8])]; 4] = [
        &[good],
        &[good, ("2.bias", Dtype::F32, &[3], &bias)],
        &[("1.weight", Dtype::F32, &[4, 3], &weight), ("1.bias", Dtype::F32, &[3], &bias)],
        &[good, ("1.bias", Dtype::I32, &[3], &bias)],
    ];
    for tensors in cases {
        assert!(matches!(refused(&container(tensors, META)), UpdateError::WrongTensors(_)));
    }
}

#[test]
fn values_that_are_not_finite_or_absurd_are_refused() {
    let with = |value: f32| {
        let mut values = values();
        values[13] = value;
        update::write(&meta(), &layout(), &[Encoded::F32(&values[..12]), Encoded::F32(&values[12..])])
            .unwrap()
    };
    assert!(matches!(refused(&with(f32::NAN)), UpdateError::NonFinite(_)));
    assert!(matches!(refused(&with(f32::NEG_INFINITY)), UpdateError::NonFinite(_)));
    assert!(matches!(refused(&with(1e9)), UpdateError::TooLarge(_)));
}

#[test]
fn metadata_is_checked() {
    let (weight, bias) = ([0u8; 48], [0u8; 12]);
    let tensors: [(&str, Dtype, &[usize], &[u8]); 2] =
        [("1.weight", Dtype::F32, &[3, 4], &weight), ("1.bias", Dtype::F32, &[3], &bias)];
    let with = |key: &str, value: &str| {
        let mut metadata: Vec<_> = META.iter().copied().filter(|(k, _)| *k != key).collect();
        metadata.push((key, value));
        refused(&container(&tensors, &metadata))
    };
    assert_eq!(with("num_samples", "0"), UpdateError::BadNumSamples(0));
    assert_eq!(with("num_samples", "999999999999"), UpdateError::BadNumSamples(999_999_999_999));
    assert!(matches!(with("num_samples", "-1"), UpdateError::Malformed(_)));
    assert!(matches!(with("round", "one"), UpdateError::Malformed(_)));
    assert!(matches!(with("worker_id", "a/b"), UpdateError::Malformed(_)));
    assert!(matches!(with("loss", "NaN"), UpdateError::NonFinite(_)));
    assert!(matches!(refused(&container(&tensors, &META[..1])), UpdateError::Malformed(_)));
    assert!(Update::parse(&container(&tensors, META), &layout()).is_ok());
}

#[test]
fn a_header_beyond_the_cap_is_refused_before_it_is_read() {
    let mut body = plain();
    body[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    assert!(matches!(refused(&body), UpdateError::Malformed(_)));
}

#[test]
fn json_becomes_the_same_container() {
    let layout = layout();
    let json = UpdateJson {
        worker_id: "edge-1".parse().unwrap(),
        round: 7,
        num_samples: 100,
        loss: None,
        delta: values(),
        compute_factor: None,
    };
    let body = update::from_json(&json, &layout).unwrap();
    assert_eq!(Update::parse(&body, &layout).unwrap().to_flat(), values());
    let short = UpdateJson { delta: vec![0.0; 3], ..json.clone() };
    assert!(matches!(update::from_json(&short, &layout), Err(UpdateError::WrongTensors(_))));
    let empty = UpdateJson { num_samples: 0, ..json };
    assert!(matches!(update::from_json(&empty, &layout), Err(UpdateError::BadNumSamples(0))));
}
