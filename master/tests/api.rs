//! The HTTP contract: what every endpoint answers, and that a refusal changes nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Fixture, body, body_of, client, config, delta, layout, refused};
use fl_master::{
    Config,
    settings::{NormAction, Secret},
};
use fl_protocol::{GlobalJson, HistoryRecord, StatusBody, TaskAction, TaskBody, UpdateAck};
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

async fn fixture_with(change: impl FnOnce(&mut Config)) -> (Fixture, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    change(&mut config);
    (Fixture::start(config).await, dir)
}

async fn fixture() -> (Fixture, tempfile::TempDir) {
    fixture_with(|_| ()).await
}

#[tokio::test]
async fn a_round_closes_and_its_average_is_the_new_model() {
    let (f, _dir) = fixture().await;
    let before: GlobalJson = weights(&f).await;
    assert_eq!((before.round, before.weights.len()), (0, layout().parameters()));
    let first = f.accepted(body(0, 0)).await;
    assert_eq!((first.aggregated, first.global_round, first.duplicate), (false, 0, false));
    let second = f.accepted(body(1, 0)).await;
    assert_eq!((second.aggregated, second.global_round), (true, 1));
    let after = weights(&f).await;
    assert_eq!(after.round, 1);
    for i in 0..after.weights.len() {
        let mean = (10.0 * f64::from(delta(0, 0)[i]) + 11.0 * f64::from(delta(1, 0)[i])) / 21.0;
        let expected = (f64::from(before.weights[i]) + mean) as f32;
        assert!((after.weights[i] - expected).abs() <= 1e-7, "{i}: {} {expected}", after.weights[i]);
    }
    let history: Vec<HistoryRecord> = f.json("/history").await;
    assert_eq!(
        (history.len(), history[0].round, history[0].participants, history[0].num_samples),
        (1, 1, 2, 21)
    );
    let status: StatusBody = f.json("/status").await;
    assert_eq!((status.global_round, status.pending_updates, status.workers["w1"].num_samples), (1, 0, 11));
    let metrics = f.get("/metrics").await.text().await.unwrap();
    for line in
        ["fl_global_round 1", "fl_worker_loss{worker=\"w0\"} 0.5", "fl_worker_num_samples{worker=\"w1\"} 11"]
    {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(metrics.contains("fl_worker_last_update{worker=\"w0\"}"));
    f.master.shutdown().await.unwrap();
}

async fn weights(f: &Fixture) -> GlobalJson {
    let request = f.client.get(format!("{}/global", f.url)).header("accept", "application/json");
    serde_json::from_slice(&request.send().await.unwrap().bytes().await.unwrap()).unwrap()
}

#[tokio::test]
async fn every_bad_update_is_refused_with_its_code_and_changes_nothing() {
    let (f, _dir) = fixture().await;
    f.accepted(body(0, 0)).await;
    let before = f.json::<StatusBody>("/status").await;
    let model = f.master.global();
    let flat = delta(5, 0);
    let with = |i: usize, value: f32| {
        let mut x = flat.clone();
        x[i] = value;
        body_of("w5", 0, 3, &x)
    };
    let good = body(5, 0);
    let replaced = |from: &str, to: &str| {
        let header = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
        let text = String::from_utf8(good[8..8 + header].to_vec()).unwrap();
        assert!(text.contains(from));
        let text = text.replace(from, to);
        let mut body = (text.len() as u64).to_le_bytes().to_vec();
        body.extend(text.as_bytes());
        body.extend(&good[8 + header..]);
        body
    };
    let cases: Vec<(Vec<u8>, u16, &str)> = vec![
        (vec![], 400, "malformed"),
        (b"hello".to_vec(), 400, "malformed"),
        (good[..good.len() - 1].to_vec(), 400, "malformed"),
        (good[..40].to_vec(), 400, "malformed"),
        (replaced("1.weight", "9.weight"), 422, "wrong_tensors"),
        (replaced("[10,64]", "[64,10]"), 422, "wrong_tensors"),
        (with(3, f32::NAN), 422, "non_finite"),
        (with(649, f32::INFINITY), 422, "non_finite"),
        (with(0, 1e6), 422, "norm_too_large"),
        (replaced("\"num_samples\":\"15\"", "\"num_samples\":\"0\""), 422, "bad_num_samples"),
        (replaced("\"num_samples\":\"15\"", "\"num_samples\":\"999999999999\""), 422, "bad_num_samples"),
        (replaced("\"worker_id\":\"w5\"", "\"worker_id\":\"../w\""), 400, "malformed"),
        (body(5, 1), 409, "future_round"),
    ];
    for (bad, status, code) in cases {
        refused(f.post(bad).await, status, code).await;
    }
    refused(f.post_as("text/plain", good.clone()).await, 415, "unsupported_media_type").await;
    refused(f.post(vec![0; 3 << 20]).await, 413, "too_large").await;
    refused(f.post_as("application/json", b"{\"worker_id\":1}".to_vec()).await, 400, "malformed").await;
    let after = f.json::<StatusBody>("/status").await;
    assert_eq!((after.pending_updates, &after.workers), (1, &before.workers));
    assert_eq!(after.rejected_updates.values().sum::<u64>(), 16);
    assert_eq!(f.master.global(), model);
    // The same worker is welcome once it sends what it should.
    assert!(f.accepted(good).await.aggregated);
}

#[tokio::test]
async fn a_retry_counts_once_and_a_late_update_is_stale() {
    let (f, _dir) = fixture().await;
    f.accepted(body(0, 0)).await;
    let again = f.accepted(body(0, 0)).await;
    assert_eq!((again.duplicate, again.aggregated), (true, false));
    assert_eq!(f.json::<StatusBody>("/status").await.pending_updates, 1);
    f.accepted(body(1, 0)).await;
    // The answer to the closing update may have been lost: its retry is no late update.
    let again = f.accepted(body(1, 0)).await;
    assert_eq!((again.duplicate, again.aggregated, again.global_round), (true, true, 1));
    assert_eq!(refused(f.post(body(2, 0)).await, 409, "stale_round").await.global_round, 1);
}

#[tokio::test]
async fn aggregated_says_that_the_update_is_part_of_a_model_that_is_out() {
    let (f, _dir) = fixture_with(|c| c.aggregation.strategy = "fedbuff:2".parse().unwrap()).await;
    assert!(!f.accepted(body(0, 0)).await.aggregated);
    assert!(f.accepted(body(1, 0)).await.aggregated, "it closed the round");
    let again = f.accepted(body(0, 0)).await;
    assert_eq!((again.duplicate, again.aggregated), (true, true), "its model is out");
    // A late update is in the open round; so is its retry.
    assert!(!f.accepted(body(2, 0)).await.aggregated);
    let again = f.accepted(body(2, 0)).await;
    assert_eq!((again.duplicate, again.aggregated, again.global_round), (true, false, 1));
    assert!(f.accepted(body(3, 1)).await.aggregated);
    let again = f.accepted(body(2, 0)).await;
    assert_eq!((again.duplicate, again.aggregated, again.global_round), (true, true, 2));
}

#[tokio::test]
async fn a_json_body_and_a_large_header_are_read_like_a_small_one() {
    let (f, _dir) = fixture().await;
    // Blanks after the header's JSON are allowed: beyond some kilobytes another thread reads it.
    let small = body(0, 0);
    let len = u64::from_le_bytes(small[..8].try_into().unwrap()) as usize;
    let mut large = ((len + 20_000) as u64).to_le_bytes().to_vec();
    large.extend(&small[8..8 + len]);
    large.extend([b' '; 20_000]);
    large.extend(&small[8 + len..]);
    assert!(!f.accepted(large.clone()).await.duplicate);
    assert!(f.accepted(small).await.duplicate);
    large.truncate(large.len() - 1);
    refused(f.post(large).await, 400, "malformed").await;
}

#[tokio::test]
async fn the_predecessors_json_takes_part_in_the_same_round() {
    let (f, _dir) = fixture().await;
    let json = serde_json::json!({
        "worker_id": "old-1", "round": 0, "num_samples": 10, "loss": 1.5, "delta": delta(0, 0), "compute_factor": 0.7
    });
    let response = f.post_as("application/json; charset=utf-8", json.to_string().into_bytes()).await;
    assert_eq!(response.status(), 200);
    assert!(f.accepted(body(1, 0)).await.aggregated);
    let mixed = f.master.global();
    let (g, _dir) = fixture().await;
    g.accepted(body(0, 0)).await;
    g.accepted(body(1, 0)).await;
    assert_eq!(g.master.global(), mixed, "the format does not change the model");
}

#[tokio::test]
async fn the_model_can_be_named_cached_cut_and_waited_for() {
    let (f, _dir) = fixture().await;
    let whole = f.get("/global").await;
    let header = |r: &reqwest::Response, name: &str| r.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header(&whole, "content-type"), "application/octet-stream");
    assert_eq!(header(&whole, "content-disposition"), "attachment; filename=\"global-round-0.safetensors\"");
    assert_eq!(header(&whole, "fl-round"), "0");
    let etag = header(&whole, "etag");
    let bytes = whole.bytes().await.unwrap();
    let url = format!("{}/global", f.url);
    let known = f.client.get(&url).header("if-none-match", &etag).send().await.unwrap();
    assert_eq!(known.status(), 304);
    let head = f.client.head(&url).send().await.unwrap();
    assert_eq!(header(&head, "content-length"), bytes.len().to_string());
    let part = f.client.get(&url).header("range", "bytes=8-15").send().await.unwrap();
    assert_eq!(
        (part.status().as_u16(), header(&part, "content-range")),
        (206, format!("bytes 8-15/{}", bytes.len()))
    );
    assert_eq!(part.bytes().await.unwrap(), bytes[8..16]);
    let beyond = f.client.get(&url).header("range", "bytes=99999999-").send().await.unwrap();
    refused(beyond, 416, "range_not_satisfiable").await;
    assert_eq!(f.get("/global?min_round=1&wait=0.05").await.status(), 304);
    let waiting = tokio::spawn({
        let (client, url) = (client(), format!("{}/global?min_round=1&wait=20", f.url));
        async move { client.get(url).send().await.unwrap() }
    });
    f.accepted(body(0, 0)).await;
    f.accepted(body(1, 0)).await;
    assert_eq!(header(&waiting.await.unwrap(), "fl-round"), "1");
    assert_eq!(f.get("/global?round=0").await.bytes().await.unwrap(), bytes, "round 0 is still kept");
    refused(f.get("/global?round=2").await, 404, "round_not_kept").await;
    refused(f.get("/global?round=minus").await, 400, "malformed").await;
    refused(f.get("/global?min_round=1&wait=1e9").await, 400, "malformed").await;
}

#[tokio::test]
async fn old_rounds_are_pruned() {
    let (f, _dir) = fixture_with(|c| c.store.keep_rounds = 2).await;
    for round in 0..6 {
        f.accepted(body(0, round)).await;
        f.accepted(body(1, round)).await;
    }
    refused(f.get("/global?round=1").await, 404, "round_not_kept").await;
}

#[tokio::test]
async fn a_task_is_train_then_wait_then_stop() {
    let (f, _dir) = fixture_with(|c| {
        c.round.rounds = 1;
        c.task.local_steps = Some(7);
    })
    .await;
    let task: TaskBody = f.json("/task?worker_id=w0").await;
    assert_eq!((task.action, task.round, task.local_steps), (TaskAction::Train, 0, Some(7)));
    f.accepted(body(0, 0)).await;
    assert_eq!(f.json::<TaskBody>("/task?worker_id=w0").await.action, TaskAction::Wait);
    let finished = f.master.finished();
    let waiting = f.json::<TaskBody>("/task?worker_id=w0&wait=20");
    let (task, ack) = tokio::join!(waiting, f.accepted(body(1, 0)));
    assert_eq!((task.action, ack.aggregated), (TaskAction::Stop, true));
    finished.await;
    refused(f.post(body(0, 1)).await, 409, "stale_round").await;
    refused(f.get("/task?worker_id=a%20b").await, 400, "malformed").await;
    refused(f.get("/task").await, 400, "malformed").await;
}

#[tokio::test]
async fn a_deadline_closes_the_round_without_the_one_who_vanished() {
    let (f, _dir) = fixture_with(|c| {
        c.round.min_clients = 3;
        c.round.deadline_s = Some(0.3);
        c.round.min_at_deadline = 2;
    })
    .await;
    f.accepted(body(0, 0)).await;
    f.accepted(body(1, 0)).await;
    let response = f.get("/global?min_round=1&wait=20").await;
    assert_eq!(response.headers()["fl-round"], "1");
    refused(f.post(body(2, 0)).await, 409, "stale_round").await;
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems_too() {
    let (f, _dir) = fixture().await;
    refused(f.get("/nothing").await, 404, "not_found").await;
    refused(f.get("/update").await, 405, "method_not_allowed").await;
    let delete = f.client.delete(format!("{}/global", f.url)).send().await.unwrap();
    refused(delete, 405, "method_not_allowed").await;
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        f.json::<serde_json::Value>(path).await;
    }
}

#[tokio::test]
async fn without_the_token_only_the_probes_answer() {
    let (f, _dir) = fixture_with(|c| c.token = Some(Secret("s3cret".into()))).await;
    for path in
        ["/", "/global", "/task?worker_id=w", "/status", "/history", "/metrics", "/openapi.json", "/nothing"]
    {
        refused(f.get(path).await, 401, "unauthorized").await;
        let wrong = f.client.get(format!("{}{path}", f.url)).bearer_auth("s3cre").send().await.unwrap();
        refused(wrong, 401, "unauthorized").await;
    }
    refused(f.post(body(0, 0)).await, 401, "unauthorized").await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(f.get(path).await.status(), 200);
    }
    let right = f.client.get(format!("{}/status", f.url)).bearer_auth("s3cret").send().await.unwrap();
    assert_eq!(right.status(), 200);
}

#[tokio::test]
async fn a_norm_beyond_the_limit_is_rejected_or_clipped() {
    let (f, _dir) = fixture_with(|c| c.aggregation.max_update_norm = Some(1e-3)).await;
    refused(f.post(body(0, 0)).await, 422, "norm_too_large").await;
    let (f, _dir) = fixture_with(|c| {
        c.aggregation.max_update_norm = Some(1e-3);
        c.aggregation.norm_action = NormAction::Clip;
        c.round.min_clients = 1;
    })
    .await;
    let before = weights(&f).await.weights;
    f.accepted(body(0, 0)).await;
    let after = weights(&f).await.weights;
    let norm: f64 = before.iter().zip(&after).map(|(a, b)| f64::from(b - a).powi(2)).sum::<f64>().sqrt();
    assert!((norm - 1e-3).abs() < 1e-5, "{norm}");
}

#[tokio::test]
async fn who_sends_only_rubbish_is_slowed_down_and_nobody_else_is() {
    let (f, _dir) = fixture_with(|c| c.limits.refused_per_s = 1.0).await;
    for _ in 0..2 {
        refused(f.post(body(0, 9)).await, 409, "future_round").await;
    }
    let response = f.post(body(0, 9)).await;
    assert!(response.headers().contains_key("retry-after"));
    refused(response, 429, "rate_limited").await;
    f.accepted(body(1, 0)).await;
}

#[tokio::test]
async fn a_slow_body_is_cut_off() {
    let (f, _dir) = fixture_with(|c| c.limits.body_timeout_s = 0.2).await;
    let mut stream = TcpStream::connect(f.master.local_addr()).await.unwrap();
    let head = "POST /update HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\ncontent-length: 900\r\n\r\nab";
    stream.write_all(head.as_bytes()).await.unwrap();
    let started = Instant::now();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"), "{answer}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_restart_goes_on_with_the_open_round() {
    let dir = tempfile::tempdir().unwrap();
    let f = Fixture::start(config(dir.path())).await;
    for round in 0..3 {
        f.accepted(body(0, round)).await;
        f.accepted(body(1, round)).await;
    }
    f.accepted(body(0, 3)).await;
    let model = f.master.global();
    f.master.shutdown().await.unwrap();
    let f = Fixture::start(config(dir.path())).await;
    assert_eq!(f.master.global(), model);
    let status: StatusBody = f.json("/status").await;
    assert_eq!((status.global_round, status.pending_updates), (3, 1));
    assert_eq!(f.json::<Vec<HistoryRecord>>("/history").await.len(), 3);
    assert!(f.accepted(body(0, 3)).await.duplicate);
    assert!(f.accepted(body(1, 2)).await.duplicate, "a retry of a finished round is known after a restart");
    assert_eq!(
        f.accepted(body(1, 3)).await,
        UpdateAck { status: "ok".into(), aggregated: true, global_round: 4, duplicate: false }
    );
}

#[tokio::test]
async fn a_shutdown_turns_readiness_off_and_ends_long_polls() {
    let (f, _dir) = fixture().await;
    f.accepted(body(0, 0)).await;
    let url = format!("{}/task?worker_id=w0&wait=30", f.url);
    let polling = tokio::spawn({
        let client = f.client.clone();
        async move { client.get(url).send().await.unwrap() }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    f.master.shutdown().await.unwrap();
    refused(polling.await.unwrap(), 503, "draining").await;
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_quantized_model_is_a_representation_of_its_own() {
    let (f, _dir) = fixture().await;
    let exact = f.get("/global").await;
    let exact_tag = exact.headers()["etag"].clone();
    let exact = fl_model::GlobalModel::from_safetensors(&exact.bytes().await.unwrap()).unwrap();
    let path = "/global?quantizer=SDQ&bits=8";
    let first = f.get(path).await;
    let tag = first.headers()["etag"].clone();
    assert_ne!(tag, exact_tag);
    assert_eq!(first.headers()["fl-round"], "0");
    let disposition = first.headers()["content-disposition"].to_str().unwrap();
    assert!(disposition.contains("global-round-0-SDQ-8.safetensors"), "{disposition}");
    let file = first.bytes().await.unwrap();
    assert_eq!(file, f.get("/global?quantizer=sdq").await.bytes().await.unwrap(), "8 bits are the default");
    assert_eq!(file, f.get("/global?bits=8").await.bytes().await.unwrap(), "and SDQ the default quantizer");
    let read = fl_model::GlobalModel::from_safetensors(&file).unwrap();
    assert_ne!(read.parameters, exact.parameters);
    let furthest =
        read.parameters.iter().zip(&exact.parameters).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(furthest < 0.01, "{furthest}");
    let known = f.client.get(format!("{}{path}", f.url)).header("if-none-match", &tag).send().await.unwrap();
    assert_eq!((known.status().as_u16(), &known.headers()["etag"]), (304, &tag));
    let other = f.client.get(format!("{}{path}", f.url)).header("if-none-match", &exact_tag);
    assert_eq!(other.send().await.unwrap().status(), 200);
    let part = f.client.get(format!("{}{path}", f.url)).header("range", "bytes=8-15").send().await.unwrap();
    assert_eq!((part.status().as_u16(), &part.bytes().await.unwrap()[..]), (206, &file[8..16]));
    assert_eq!(f.get("/global?quantizer=none").await.headers()["etag"], exact_tag);
    // An earlier round, and a later one.
    f.accepted(body(0, 0)).await;
    f.accepted(body(1, 0)).await;
    let later = f.get(&format!("{path}&min_round=1&wait=5")).await;
    assert_eq!((later.headers()["fl-round"].to_str().unwrap(), later.headers()["etag"] == tag), ("1", false));
    assert_eq!(f.get(&format!("{path}&round=0")).await.bytes().await.unwrap(), file);
    let history: Vec<HistoryRecord> = f.json("/history").await;
    let sent = file.len() as u64 * 4 + 8;
    assert!(
        history[0].bytes_down > sent,
        "{} bytes are counted, {sent} went down quantized",
        history[0].bytes_down
    );
    refused(f.get("/global?quantizer=zip").await, 422, "unknown_quantizer").await;
    refused(f.get("/global?quantizer=SDQ&bits=9").await, 400, "malformed").await;
    refused(f.get("/global?bits=0").await, 400, "malformed").await;
    let json = f.client.get(format!("{}{path}", f.url)).header("accept", "application/json");
    refused(json.send().await.unwrap(), 400, "malformed").await;
}
