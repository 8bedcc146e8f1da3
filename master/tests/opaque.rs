//! `MODEL=safetensors:FILE`: a model that the master does not understand.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Fixture, Running, free_port, ready};
use fl_master::{Args, Config};
use fl_protocol::{HistoryRecord, ModelLayout, TaskBody, UpdateMeta, update, update::Encoded};
use fl_quant::{Encoder, Scheme, Spec, encode_update};
use safetensors::{Dtype, SafeTensors, serialize, tensor::TensorView};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The parameters of the file, in the order of its data, and 13 values.
fn layout() -> ModelLayout {
    ModelLayout::new([
        ("bn.weight".into(), vec![3]),
        ("conv.weight".into(), vec![2, 3]),
        ("half".into(), vec![3]),
        ("scale".into(), vec![]),
    ])
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A network with batch normalisation as PyTorch writes it, in three types, with a counter and small integers.
fn file(dir: &Path) -> PathBuf {
    let half: Vec<u8> = [0x3c00u16, 0xc000, 0x3800].iter().flat_map(|bits| bits.to_le_bytes()).collect();
    let brain = 0x3fc0u16.to_le_bytes().to_vec();
    let counter = 41i64.to_le_bytes().to_vec();
    let data = [
        ("bn.num_batches_tracked", Dtype::I64, vec![], counter),
        ("bn.weight", Dtype::F32, vec![3], floats(&[1.0, 2.0, 3.0])),
        ("conv.weight", Dtype::F32, vec![2, 3], floats(&[0.1; 6])),
        ("half", Dtype::F16, vec![3], half),
        ("scale", Dtype::BF16, vec![], brain),
        ("flags", Dtype::U8, vec![2], vec![7, 8]),
    ];
    let views = data
        .iter()
        .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    let path = dir.join("init.safetensors");
    fs::write(&path, serialize(views, None).unwrap()).unwrap();
    path
}

fn config(dir: &Path, extra: &[&str]) -> Config {
    let (model, state) = (file(dir), dir.join("state"));
    let args = [
        "fl-master".to_owned(),
        "--bind=127.0.0.1:0".to_owned(),
        format!("--model=safetensors:{}", model.display()),
        format!("--state-dir={}", state.display()),
    ];
    let args = args.iter().map(String::as_str).chain(extra.iter().copied());
    <Args as clap::Parser>::try_parse_from(args).unwrap().check().unwrap()
}

/// A container of the delta `scale * (1, 2, 3, ...)`, plain or quantized.
fn body(worker: usize, round: u64, scheme: Option<Scheme>) -> Vec<u8> {
    with_control(worker, round, scheme, false)
}

/// The same, with SCAFFOLD's change of the control variate if `control`.
fn with_control(worker: usize, round: u64, scheme: Option<Scheme>, control: bool) -> Vec<u8> {
    let layout = layout();
    let delta: Vec<f32> = (1..=layout.parameters()).map(|i| i as f32 * 0.01 * (worker + 1) as f32).collect();
    let meta = UpdateMeta {
        worker_id: format!("w{worker}").parse().unwrap(),
        round,
        num_samples: 10,
        loss: Some(0.5),
        accuracy: None,
        compute_factor: None,
        local_steps: Some(5),
        local_norm: None,
        reuse: None,
        metrics: Default::default(),
    };
    let mut streams = Vec::new();
    if let Some(scheme) = scheme {
        let spec = Spec { entropy: scheme == Scheme::MsqV2, ..Spec::new(scheme, 8) };
        encode_update(&mut Encoder::default(), &delta, &layout.shapes(), &spec, &mut streams).unwrap();
    }
    let tensors: Vec<_> = match scheme {
        Some(_) => streams.iter().map(|stream| Encoded::Stream(stream)).collect(),
        None => layout.tensors().iter().map(|t| Encoded::F32(&delta[t.offset..t.offset + t.len])).collect(),
    };
    let copies = if control { [tensors.clone(), tensors].concat() } else { tensors };
    update::write(&meta, &layout, &copies).unwrap()
}

async fn global(f: &Fixture, query: &str) -> Vec<u8> {
    let response = f.get(&format!("/global{query}")).await;
    assert_eq!(response.status(), 200);
    response.bytes().await.unwrap().to_vec()
}

fn values(file: &[u8], name: &str) -> Vec<f32> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let view = tensors.tensor(name).unwrap();
    assert_eq!(view.dtype(), Dtype::F32, "{name}");
    view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The integers are those of the master's file, and every tensor lies where PyTorch can view it.
fn has_its_buffers(file: &[u8]) {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let view = |name: &str| tensors.tensor(name).unwrap();
    let counter = view("bn.num_batches_tracked");
    assert_eq!(
        (counter.dtype(), counter.shape(), counter.data()),
        (Dtype::I64, &[][..], &41i64.to_le_bytes()[..])
    );
    assert_eq!((view("flags").dtype(), view("flags").data()), (Dtype::U8, &[7u8, 8][..]));
    let (header, metadata) = SafeTensors::read_metadata(file).unwrap();
    assert_eq!((8 + header) % 8, 0);
    for (name, info) in metadata.tensors() {
        assert_eq!(info.data_offsets.0 % (info.dtype.bitsize() / 8), 0, "{name}");
    }
}

#[tokio::test]
async fn halves_become_parameters_and_integers_travel_along() {
    let dir = tempfile::tempdir().unwrap();
    let f = Fixture::start(config(dir.path(), &["--client-config={\"epochs\": 2}"])).await;
    let first = global(&f, "").await;
    has_its_buffers(&first);
    assert_eq!(values(&first, "half"), [1.0, -2.0, 0.5]);
    assert_eq!(values(&first, "scale"), [1.5]);
    assert_eq!(f.json::<serde_json::Value>("/status").await["num_parameters"], 13);
    let task: TaskBody = f.json("/task?worker_id=a").await;
    assert_eq!(task.config.unwrap()["epochs"], 2);
    for (round, scheme) in
        [None, Some(Scheme::MsqV2), Some(Scheme::StocQ), Some(Scheme::F16)].into_iter().enumerate()
    {
        for worker in 0..2 {
            f.accepted(body(worker, round as u64, scheme)).await;
        }
        has_its_buffers(&global(&f, "").await);
        has_its_buffers(&global(&f, "?bits=8").await);
    }
    // Four rounds with a mean delta of 0.015 times the place.
    let moved = values(&global(&f, "").await, "scale")[0] - 1.5;
    assert!((moved - 4.0 * 0.015 * 13.0).abs() < 0.01, "{moved}");
    let json: serde_json::Value = serde_json::from_slice(
        &f.client
            .get(format!("{}/global", f.url))
            .header("accept", "application/json")
            .send()
            .await
            .unwrap()
            .bytes()
            .await
            .unwrap(),
    )
    .unwrap();
    assert_eq!(json["weights"].as_array().unwrap().len(), 13);
    f.master.shutdown().await.unwrap();
}

#[tokio::test]
async fn every_strategy_takes_it_and_a_restart_goes_on() {
    for strategy in ["fedavgm", "fedadam", "fednova", "scaffold:2", "median", "krum:1", "fedbuff:2"] {
        let dir = tempfile::tempdir().unwrap();
        let flags = [format!("--strategy={strategy}"), "--max-buffer-mb=1".to_owned()];
        let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        if strategy.starts_with("krum") {
            flags.push("--agg-min-clients=5");
        }
        let clients = if strategy.starts_with("krum") { 5 } else { 2 };
        let control = strategy.starts_with("scaffold");
        let f = Fixture::start(config(dir.path(), &flags)).await;
        for worker in 0..clients {
            f.accepted(with_control(worker, 0, Some(Scheme::MsqV2), control)).await;
        }
        f.accepted(with_control(0, 1, None, control)).await;
        let model = global(&f, "").await;
        has_its_buffers(&model);
        if control {
            let control = f.get("/control").await.bytes().await.unwrap();
            assert_eq!(SafeTensors::deserialize(&control).unwrap().len(), 4, "the variate has no integers");
        }
        f.master.shutdown().await.unwrap();
        let f = Fixture::start(config(dir.path(), &flags)).await;
        assert!(global(&f, "").await == model, "{strategy}: another model after a restart");
        for worker in 1..clients {
            f.accepted(with_control(worker, 1, None, control)).await;
        }
        assert_eq!(f.json::<serde_json::Value>("/status").await["global_round"], 2, "{strategy}");
        has_its_buffers(&global(&f, "").await);
        f.master.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn lazy_upload_and_a_killed_master_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (model, port) = (file(dir.path()), free_port());
    let model = format!("safetensors:{}", model.display());
    let settings = [("MODEL", model.as_str()), ("LAZY", "1000000")];
    let url = format!("http://127.0.0.1:{port}");
    let mut running = Running::spawn(port, &dir.path().join("state"), &settings);
    ready(&url).await;
    let client = common::client();
    let post = async |body: Vec<u8>| {
        let request = client.post(format!("{url}/update")).header("content-type", "application/octet-stream");
        let response = request.body(body).send().await.unwrap();
        let status = response.status();
        assert_eq!(status, 200, "{}", response.text().await.unwrap());
    };
    for worker in 0..2 {
        post(body(worker, 0, Some(Scheme::MsqV2))).await;
    }
    post(body(0, 1, None)).await;
    running.kill();
    let mut running = Running::spawn(port, &dir.path().join("state"), &settings);
    ready(&url).await;
    let notice = UpdateMeta { reuse: Some(0), round: 1, ..update::peek_meta(&body(1, 0, None)).unwrap() };
    post(update::write_notice(&notice).unwrap()).await;
    let history = client.get(format!("{url}/history")).send().await.unwrap().bytes().await.unwrap();
    let history: Vec<HistoryRecord> = serde_json::from_slice(&history).unwrap();
    // The kill may have cost the line of the first round, which is a report and no state.
    let last = history.last().unwrap();
    assert_eq!((last.round, last.reused, last.participants), (2, 1, 2));
    let model = client.get(format!("{url}/global")).send().await.unwrap().bytes().await.unwrap();
    has_its_buffers(&model);
    running.kill();
}

#[tokio::test]
async fn other_types_are_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let double = [0u8; 8];
    let view = TensorView::new(Dtype::F64, vec![1], &double).unwrap();
    let path = dir.path().join("wide.safetensors");
    fs::write(&path, serialize([("wide", view)], None).unwrap()).unwrap();
    let mut config = config(dir.path(), &[]);
    config.model.model = format!("safetensors:{}", path.display());
    let error = fl_master::check(&config).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("`wide` is F64: convert it to F32"), "{text}");
}

#[test]
fn a_client_config_is_a_small_json_object() {
    let refused = |json: &str| {
        let args = ["fl-master".to_owned(), format!("--client-config={json}")];
        <Args as clap::Parser>::try_parse_from(args).unwrap().check().unwrap_err().to_string()
    };
    for bad in ["[1]", "1", "{", "{\"a\": NaN}"] {
        assert!(refused(bad).contains("not a JSON object"), "{bad}");
    }
    let long = format!("{{\"a\": \"{}\"}}", "x".repeat(17_000));
    let text = refused(&long);
    assert!(text.contains("16384") && text.len() < 300, "{text}");
}
