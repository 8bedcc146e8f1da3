//! Lazy upload over real HTTP: a notice makes the worker's last update count again, whatever happens to the
//! master in between.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Fixture, Running, body, body_of, client, config, delta, free_port, ready, refused};
use fl_protocol::{HistoryRecord, StatusBody, TaskBody, UpdateAck, UpdateMeta, update};
use std::path::Path;

const LAZY: f64 = 1e3;

/// Worker `worker` leaves its upload of `round` out: that of round `reuse` counts again.
fn notice(worker: usize, round: u64, reuse: u64) -> Vec<u8> {
    let meta = update::peek_meta(&body(worker, round)).unwrap();
    update::write_notice(&UpdateMeta { reuse: Some(reuse), ..meta }).unwrap()
}

/// The update of round `base`, sent for `round`.
fn repeated(worker: usize, base: u64, round: u64) -> Vec<u8> {
    body_of(&format!("w{worker}"), round, 10 + worker as u64, &delta(worker, base))
}

async fn lazy_master(dir: &Path) -> Fixture {
    let mut settings = config(dir);
    settings.aggregation.lazy = Some(LAZY);
    Fixture::start(settings).await
}

#[tokio::test]
async fn a_notice_counts_like_the_update_that_it_names() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (lazy, plain) = (lazy_master(dirs[0].path()).await, Fixture::start(config(dirs[1].path())).await);
    for f in [&lazy, &plain] {
        f.accepted(body(0, 0)).await;
        f.accepted(body(1, 0)).await;
    }
    let task: TaskBody = lazy.json("/task?worker_id=w0").await;
    let step =
        delta(0, 0).iter().zip(delta(1, 0)).map(|(a, b)| ((10.0 * a + 11.0 * b) / 21.0).powi(2)).sum::<f32>();
    let expected = LAZY as f32 / 10.0 * step;
    assert!((task.lazy_below.unwrap() / expected - 1.0).abs() < 1e-3, "{task:?} {expected}");
    assert_eq!(plain.json::<TaskBody>("/task?worker_id=w0").await.lazy_below, None);
    // Worker 1 leaves out two rounds in a row.
    for round in 1..3 {
        lazy.accepted(body(0, round)).await;
        let sent = notice(1, round, 0);
        assert!(lazy.accepted(sent.clone()).await.aggregated);
        assert!(lazy.accepted(sent).await.duplicate);
        plain.accepted(body(0, round)).await;
        plain.accepted(repeated(1, 0, round)).await;
    }
    assert!(lazy.master.global() == plain.master.global(), "the models differ");
    let history: Vec<HistoryRecord> = lazy.json("/history").await;
    let saved = (body(1, 0).len() - notice(1, 1, 0).len()) as u64;
    assert_eq!(history.iter().map(|r| r.reused).collect::<Vec<_>>(), [0, 1, 1]);
    assert_eq!(history[2].bytes_saved, saved);
    assert_eq!(history[2].bytes_up, (body(0, 2).len() + notice(1, 2, 0).len()) as u64);
    let status: StatusBody = lazy.json("/status").await;
    assert_eq!((status.reused_updates, status.bytes_saved), (2, 2 * saved));
    let metrics = lazy.get("/metrics").await.text().await.unwrap();
    for line in ["fl_reused_updates_total 2".to_owned(), format!("fl_saved_upload_bytes_total {}", 2 * saved)]
    {
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_notice_that_names_nothing_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let f = lazy_master(dir.path()).await;
    refused(f.post(notice(0, 0, 0)).await, 422, "no_last_update").await;
    f.accepted(body(0, 0)).await;
    f.accepted(body(1, 0)).await;
    let before = f.json::<StatusBody>("/status").await;
    refused(f.post(notice(0, 1, 1)).await, 422, "no_last_update").await;
    refused(f.post(notice(2, 1, 0)).await, 422, "no_last_update").await;
    let mut loaded = update::peek_meta(&body(0, 1)).unwrap();
    loaded.reuse = Some(0);
    let layout = common::layout();
    let values = delta(0, 1);
    let tensors: Vec<_> =
        layout.tensors().iter().map(|t| update::Encoded::F32(&values[t.offset..t.offset + t.len])).collect();
    let loaded = update::write(&loaded, &layout, &tensors).unwrap();
    refused(f.post(loaded).await, 422, "wrong_tensors").await;
    assert_eq!(f.json::<StatusBody>("/status").await.workers, before.workers);
    // Without LAZY nothing is kept.
    let other = tempfile::tempdir().unwrap();
    let plain = Fixture::start(config(other.path())).await;
    plain.accepted(body(0, 0)).await;
    plain.accepted(body(1, 0)).await;
    refused(plain.post(notice(0, 1, 0)).await, 422, "no_last_update").await;
}

/// What is handed in, round by round; notices reach over several rounds and over checkpoints.
fn rounds() -> Vec<[Vec<u8>; 3]> {
    vec![
        [body(0, 0), body(1, 0), body(2, 0)],
        [notice(0, 1, 0), body(1, 1), notice(2, 1, 0)],
        [notice(1, 2, 1), notice(2, 2, 0), body(0, 2)],
        [notice(2, 3, 0), notice(0, 3, 2), notice(1, 3, 1)],
    ]
}

async fn post(url: &str, body: Vec<u8>) -> UpdateAck {
    let request = client().post(format!("{url}/update")).header("content-type", "application/octet-stream");
    let response = request.body(body).send().await.unwrap();
    let (status, bytes) = (response.status(), response.bytes().await.unwrap());
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&bytes));
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_and_the_order_of_arrival_do_not_change_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = config(dir.path());
    settings.aggregation.lazy = Some(LAZY);
    settings.round.min_clients = 3;
    settings.store.durable = false;
    let quiet = Fixture::start(settings).await;
    for updates in rounds() {
        for update in updates.into_iter().rev() {
            quiet.accepted(update).await;
        }
    }
    let state = tempfile::tempdir().unwrap();
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let lazy = LAZY.to_string();
    let start = || Running::spawn(port, state.path(), &[("LAZY", &lazy), ("AGG_MIN_CLIENTS", "3")]);
    for updates in rounds() {
        let mut master = start();
        ready(&url).await;
        for update in &updates[..2] {
            assert!(!post(&url, update.clone()).await.duplicate);
        }
        master.kill();
        let mut master = start();
        ready(&url).await;
        assert!(post(&url, updates[0].clone()).await.duplicate, "it was accepted before");
        assert!(post(&url, updates[2].clone()).await.aggregated);
        master.kill();
    }
    let _master = start();
    ready(&url).await;
    let model = client().get(format!("{url}/global")).send().await.unwrap().bytes().await.unwrap();
    assert!(model == quiet.master.global(), "the models differ");
}
