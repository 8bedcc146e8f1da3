//! The update container: round trips, and damaged ones are refused with a reason.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use fl_protocol::{
    Header, Kind, Metrics, ModelLayout, Update, UpdateError, UpdateJson, UpdateMeta,
    limits::{MAX_CONTAINER_HEADER_BYTES, MAX_DELTA_ABS, MAX_NUM_SAMPLES},
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
        num_samples: 600,
        loss: Some(0.25),
        accuracy: Some(0.5),
        compute_factor: Some(1.5),
        local_steps: Some(5),
        local_norm: None,
        reuse: None,
        metrics: Default::default(),
    }
}

fn delta() -> Vec<f32> {
    (0..15).map(|i| (i as f32 - 7.0) / 64.0).collect()
}

fn plain() -> Vec<u8> {
    let x = delta();
    update::write(&meta(), &layout(), &[Encoded::F32(&x[..12]), Encoded::F32(&x[12..])]).unwrap()
}

fn quantized(scheme: Scheme) -> Vec<u8> {
    let (layout, mut streams) = (layout(), Vec::new());
    let spec = Spec::new(scheme, 4);
    encode_update(&mut Encoder::default(), &delta(), &layout.shapes(), &spec, &mut streams).unwrap();
    let tensors: Vec<_> = streams.iter().map(|stream| Encoded::Stream(stream)).collect();
    update::write(&meta(), &layout, &tensors).unwrap()
}

/// A container of any tensors and metadata.
fn foreign(tensors: &[(&str, Dtype, Vec<usize>, &[u8])], changes: &[(&str, Option<&str>)]) -> Vec<u8> {
    let mut metadata: HashMap<String, String> =
        [("worker_id", "w"), ("round", "7"), ("num_samples", "3")].map(|(k, v)| (k.into(), v.into())).into();
    for (key, value) in changes {
        match value {
            Some(value) => drop(metadata.insert((*key).into(), (*value).into())),
            None => drop(metadata.remove(*key)),
        }
    }
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    safetensors::serialize(views, Some(metadata)).unwrap()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn with_weights(values: &[f32], changes: &[(&str, Option<&str>)]) -> Vec<u8> {
    let (weight, bias) = (bytes(values), bytes(&[0.0; 3]));
    foreign(&[("1.weight", Dtype::F32, vec![3, 4], &weight), ("1.bias", Dtype::F32, vec![3], &bias)], changes)
}

fn refusal(body: &[u8]) -> UpdateError {
    Update::parse(body, &layout()).expect_err("it must be refused")
}

#[test]
fn a_plain_update_reads_back() {
    let (body, layout) = (plain(), layout());
    let update = Update::parse(&body, &layout).unwrap();
    assert_eq!(update.meta, meta());
    assert_eq!(update.to_flat(), delta());
    assert_eq!(update.max_abs, 7.0 / 64.0);
    assert_eq!(update::peek_meta(&body).unwrap(), meta());
}

#[test]
fn half_precision_reads_back() {
    let weight: Vec<u8> = (0..12).flat_map(|i| half::f16::from_f32(i as f32 / 8.0).to_le_bytes()).collect();
    let bias: Vec<u8> = (0..3).flat_map(|i| half::bf16::from_f32(i as f32).to_le_bytes()).collect();
    let body = foreign(
        &[("1.weight", Dtype::F16, vec![3, 4], &weight), ("1.bias", Dtype::BF16, vec![3], &bias)],
        &[],
    );
    let layout = layout();
    let flat = Update::parse(&body, &layout).unwrap().to_flat();
    assert_eq!(flat[..3], [0.0, 0.125, 0.25]);
    assert_eq!(flat[12..], [0.0, 1.0, 2.0]);
}

#[test]
fn every_quantizer_travels_and_keeps_its_bound() {
    for scheme in Scheme::ALL {
        let (body, layout) = (quantized(scheme), layout());
        let update = Update::parse(&body, &layout).unwrap();
        let flat = update.to_flat();
        assert_eq!(flat.len(), 15);
        assert!(
            flat.iter().all(|v| v.abs() <= update.max_abs),
            "{scheme}: {flat:?} beyond {}",
            update.max_abs
        );
    }
}

#[test]
fn a_cut_at_any_byte_is_refused() {
    for body in [plain(), quantized(Scheme::MsqV2)] {
        for len in 0..body.len() {
            assert!(Update::parse(&body[..len], &layout()).is_err(), "cut at {len} of {}", body.len());
        }
    }
}

#[test]
fn a_flipped_byte_never_panics_and_never_brings_a_bad_value_in() {
    let layout = layout();
    for body in [plain(), quantized(Scheme::MsqV2), quantized(Scheme::StocQ)] {
        for i in 0..body.len() {
            for mask in [0x01, 0x80, 0xff] {
                let mut bad = body.clone();
                bad[i] ^= mask;
                if let Ok(update) = Update::parse(&bad, &layout) {
                    assert!(update.to_flat().iter().all(|v| v.is_finite() && v.abs() <= update.max_abs));
                }
            }
        }
    }
}

#[test]
fn other_tensors_are_refused() {
    let (weight, bias) = (bytes(&[0.0; 12]), bytes(&[0.0; 3]));
    let weight_of = |name, shape: Vec<usize>| (name, Dtype::F32, shape, &weight[..]);
    let bias_of = |name| (name, Dtype::F32, vec![3], &bias[..]);
    let cases = [
        foreign(&[weight_of("1.weight", vec![3, 4])], &[]),
        foreign(&[weight_of("1.weight", vec![4, 3]), bias_of("1.bias")], &[]),
        foreign(&[weight_of("0.weight", vec![3, 4]), bias_of("1.bias")], &[]),
        foreign(&[weight_of("1.weight", vec![3, 4]), bias_of("1.bias"), bias_of("2.bias")], &[]),
        foreign(&[("1.weight", Dtype::I32, vec![3, 4], &weight), bias_of("1.bias")], &[]),
    ];
    for body in cases {
        assert!(matches!(refusal(&body), UpdateError::WrongTensors(_)), "{:?}", refusal(&body));
    }
}

#[test]
fn values_that_are_not_finite_or_absurd_are_refused() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = [0.0; 12];
        values[11] = bad;
        assert!(matches!(refusal(&with_weights(&values, &[])), UpdateError::NonFinite(_)));
    }
    let mut values = [0.0; 12];
    values[0] = MAX_DELTA_ABS * 2.0;
    assert!(matches!(refusal(&with_weights(&values, &[])), UpdateError::TooLarge(_)));
}

#[test]
fn bad_metadata_is_refused() {
    let refused = |key: &str, value: Option<&str>| refusal(&with_weights(&[0.0; 12], &[(key, value)]));
    for key in ["worker_id", "round", "num_samples"] {
        assert!(matches!(refused(key, None), UpdateError::Malformed(_)), "{key}");
    }
    assert!(matches!(refused("worker_id", Some("a b")), UpdateError::Malformed(_)));
    assert!(matches!(refused("round", Some("-1")), UpdateError::Malformed(_)));
    assert_eq!(refused("num_samples", Some("0")), UpdateError::BadNumSamples(0));
    let absurd = MAX_NUM_SAMPLES + 1;
    assert_eq!(refused("num_samples", Some(&absurd.to_string())), UpdateError::BadNumSamples(absurd));
    for key in ["loss", "accuracy", "compute_factor"] {
        assert!(matches!(refused(key, Some("NaN")), UpdateError::NonFinite(_)), "{key}");
    }
}

#[test]
fn a_header_beyond_the_cap_is_refused_before_it_is_read() {
    let mut body = (MAX_CONTAINER_HEADER_BYTES as u64 + 1).to_le_bytes().to_vec();
    body.resize(MAX_CONTAINER_HEADER_BYTES + 100, b' ');
    assert!(matches!(refusal(&body), UpdateError::Malformed(_)));
    assert!(matches!(refusal(&u64::MAX.to_le_bytes()), UpdateError::Malformed(_)));
}

#[test]
fn the_json_format_becomes_a_container_or_is_refused() {
    let json = UpdateJson {
        metrics: Default::default(),
        worker_id: "old-1".parse().unwrap(),
        round: 7,
        num_samples: 3,
        loss: Some(1.0),
        delta: delta(),
        compute_factor: None,
    };
    let layout = layout();
    let body = update::from_json(&json, &layout).unwrap();
    let update = Update::parse(&body, &layout).unwrap();
    assert_eq!((update.to_flat(), update.meta.worker_id.as_str()), (delta(), "old-1"));
    let refused = |json: UpdateJson| update::from_json(&json, &layout).unwrap_err();
    let short = UpdateJson { delta: vec![0.0; 14], ..json.clone() };
    assert!(matches!(refused(short), UpdateError::WrongTensors(_)));
    let nan = UpdateJson { delta: vec![f32::NAN; 15], ..json.clone() };
    assert!(matches!(refused(nan), UpdateError::NonFinite(_)));
    assert_eq!(refused(UpdateJson { num_samples: 0, ..json }), UpdateError::BadNumSamples(0));
}

#[test]
fn writing_what_does_not_fit_the_layout_is_an_error() {
    let x = delta();
    assert!(update::write(&meta(), &layout(), &[Encoded::F32(&x)]).is_err());
    assert!(update::write(&meta(), &layout(), &[Encoded::F32(&x[..3]), Encoded::F32(&x[3..])]).is_err());
}

#[test]
fn a_header_is_read_once_and_carried() {
    let (body, layout) = (plain(), layout());
    let header = Header::read(&body).unwrap();
    assert_eq!((header.meta(), header.kind()), (&meta(), Kind::Update));
    assert_eq!(header.update(&body, &layout).unwrap().to_flat(), delta());
    // A header beside another body finds its tensors missing; it does not panic.
    assert!(matches!(header.update(&body[..40], &layout), Err(UpdateError::WrongTensors(_))));

    let notice = UpdateMeta { reuse: Some(6), ..meta() };
    let header = Header::read(&update::write_notice(&notice).unwrap()).unwrap();
    assert_eq!((header.meta(), header.kind()), (&notice, Kind::Notice { reuse: 6 }));
    let both = with_weights(&[0.0; 12], &[("reuse", Some("6"))]);
    assert!(matches!(Header::read(&both), Err(UpdateError::WrongTensors(_))), "a notice carries no tensors");
}

#[test]
fn metrics_travel_in_the_metadata_and_are_checked() {
    let metrics = Metrics::new([("accuracy", 0.5), ("val.loss", 0.1 + 0.2)]).unwrap();
    let meta = UpdateMeta { metrics: metrics.clone(), ..meta() };
    let body = update::write_notice(&UpdateMeta { reuse: Some(6), ..meta.clone() }).unwrap();
    assert_eq!(update::peek_meta(&body).unwrap().metrics, metrics);
    let json = UpdateJson {
        metrics: metrics.clone(),
        ..serde_json::from_str(r#"{"worker_id":"w","round":3,"num_samples":5,"delta":[]}"#).unwrap()
    };
    assert_eq!(json.metrics, metrics);
    for bad in [r#"{"A": 1}"#, r#"{"a": null}"#, "[1]", "x"] {
        let text = serde_json::json!({ "__metadata__": {
            "worker_id": "w", "round": "3", "num_samples": "5", "metrics": bad
        }});
        let header = text.to_string();
        let mut body = (header.len() as u64).to_le_bytes().to_vec();
        body.extend_from_slice(header.as_bytes());
        let error = update::peek_meta(&body).unwrap_err();
        assert!(
            matches!(&error, UpdateError::Malformed(text) if text.contains("`metrics`")),
            "{bad}: {error}"
        );
        let json = format!(r#"{{"worker_id":"w","round":3,"num_samples":5,"delta":[],"metrics":{bad}}}"#);
        assert!(serde_json::from_str::<UpdateJson>(&json).is_err(), "{bad}");
    }
}
