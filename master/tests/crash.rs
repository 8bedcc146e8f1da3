//! The real binary, killed with SIGKILL at random moments under load: nothing that was acknowledged
//! is lost or counted twice, and the model is that of a run without a crash, to the byte.
//!
//! `FL_CRASH_KILLS` and `FL_CRASH_ROUNDS` make it longer (200 and 100 for a release).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Fixture, Running, body, client, config, free_port, setting};
use fl_protocol::{ErrorBody, HistoryRecord, UpdateAck};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::time::{Instant, sleep};

const WORKERS: usize = 4;

fn spawn(port: u16, state: &std::path::Path) -> Running {
    Running::spawn(port, state, &[("AGG_MIN_CLIENTS", &WORKERS.to_string()), ("REFUSED_PER_S", "0")])
}

/// The model once its round is there; the master may still be starting.
async fn model_of(url: &str, round: u64) -> bytes::Bytes {
    for _ in 0..1000 {
        if let Ok(response) = client().get(format!("{url}/global?min_round={round}&wait=20")).send().await
            && response.status() == 200
        {
            return response.bytes().await.unwrap();
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("round {round} is not there");
}

/// Sends one worker's updates, each until it is acknowledged; gives the number of retries.
async fn work(worker: usize, url: String, rounds: u64, progress: Arc<AtomicU64>) -> u64 {
    let client = client();
    let mut retries = 0;
    for round in 0..rounds {
        loop {
            let request =
                client.post(format!("{url}/update")).header("content-type", "application/octet-stream");
            let sent = request.timeout(Duration::from_secs(20)).body(body(worker, round)).send().await;
            let answer = match sent {
                Ok(response) => (response.status().as_u16(), response.bytes().await),
                Err(_) => {
                    retries += 1;
                    sleep(Duration::from_millis(10)).await;
                    continue;
                }
            };
            match answer {
                (200, Ok(bytes)) => {
                    let ack: UpdateAck = serde_json::from_slice(&bytes).unwrap();
                    assert!(ack.global_round >= round);
                    progress.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                (409, Ok(bytes)) => {
                    // The others are not there yet; stale would mean that our update was lost.
                    let problem: ErrorBody = serde_json::from_slice(&bytes).unwrap();
                    assert_eq!(problem.code.as_str(), "future_round", "{}", problem.msg);
                    sleep(Duration::from_millis(2)).await;
                }
                _ => {
                    retries += 1;
                    sleep(Duration::from_millis(10)).await;
                }
            }
        }
    }
    retries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_moments_lose_nothing() {
    let kills = setting("FL_CRASH_KILLS", 10);
    let rounds = setting("FL_CRASH_ROUNDS", 20);
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let dir = tempfile::tempdir().unwrap();
    let progress = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> =
        (0..WORKERS).map(|w| tokio::spawn(work(w, url.clone(), rounds, progress.clone()))).collect();
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    println!("seed of the moments: {seed}");
    let mut random = u64::from(seed) | 1;
    let total = rounds * WORKERS as u64;
    let mut child = spawn(port, dir.path());
    let started = Instant::now();
    for kill in 0..kills {
        // Spread over the whole run: the next kill comes a random while after the run has got that far.
        let due = total * kill / kills;
        while progress.load(Ordering::Relaxed) < due {
            sleep(Duration::from_millis(1)).await;
            let nobody_is_done = progress.load(Ordering::Relaxed) + WORKERS as u64 <= total;
            let failed = nobody_is_done && workers.iter().any(|w| w.is_finished());
            assert!(!failed, "a worker failed");
            assert!(child.0.try_wait().unwrap().is_none(), "the master ended by itself");
            assert!(started.elapsed() < Duration::from_secs(120 + 5 * kills), "no progress");
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        sleep(Duration::from_micros((random >> 33) % 120_000)).await;
        child.kill();
        child = spawn(port, dir.path());
    }
    let mut retries = 0;
    for worker in workers {
        retries += worker.await.unwrap();
    }
    let crashed = model_of(&url, rounds).await;
    let history = client().get(format!("{url}/history")).send().await.unwrap().bytes().await.unwrap();
    let history: Vec<HistoryRecord> = serde_json::from_slice(&history).unwrap();
    let recorded: Vec<u64> = history.iter().map(|record| record.round).collect();
    assert_eq!(recorded, (1..=rounds).collect::<Vec<_>>(), "rounds of the history");
    child.kill();

    let quiet = tempfile::tempdir().unwrap();
    let mut settings = config(quiet.path());
    settings.round.min_clients = WORKERS;
    settings.store.durable = false;
    let f = Fixture::start(settings).await;
    for round in 0..rounds {
        for worker in (0..WORKERS).rev() {
            f.accepted(body(worker, round)).await;
        }
    }
    assert_eq!(f.master.global(), crashed, "the models differ");
    println!("{kills} kills, {rounds} rounds, {total} acknowledged updates, {retries} retries");
}
