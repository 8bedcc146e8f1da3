//! Workers against a master that plays a part: answers that a healthy one seldom gives.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use clap::Parser;
use fl_datasets::{DatasetSpec, Part};
use fl_master::{Config, Master};
use fl_protocol::{ErrorBody, ErrorCode, UpdateAck};
use fl_worker::{Args, Summary, WorkerError};
use std::{
    collections::VecDeque,
    future::pending,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Answers by path: each is given once, the last of a path for ever.
struct Script {
    task: VecDeque<&'static str>,
    update: VecDeque<(u16, String)>,
    model: bytes::Bytes,
    /// Whether any upload after the first may be left out.
    lazy: bool,
    /// Times at which work was asked for.
    asked: Vec<Instant>,
}

fn next<T: Clone>(answers: &mut VecDeque<T>) -> T {
    let first = answers[0].clone();
    if answers.len() > 1 {
        answers.pop_front();
    }
    first
}

impl Script {
    fn answer(&mut self, path: &str) -> (u16, Vec<u8>) {
        match path {
            "/task" => {
                self.asked.push(Instant::now());
                let action = next(&mut self.task);
                let lazy = if self.lazy { ",\"lazy_below\":1e30" } else { "" };
                (200, format!("{{\"action\":\"{action}\",\"round\":0,\"etag\":\"x\"{lazy}}}").into_bytes())
            }
            "/global" => (200, self.model.to_vec()),
            "/update" => {
                let (status, body) = next(&mut self.update);
                (status, body.into_bytes())
            }
            other => panic!("{other} is asked for"),
        }
    }
}

async fn serve(listener: TcpListener, script: Arc<Mutex<Script>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(talk(stream, script.clone()));
    }
}

async fn talk(mut stream: TcpStream, script: Arc<Mutex<Script>>) {
    let mut bytes = Vec::new();
    loop {
        let head = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8(bytes[..at].to_vec()).unwrap();
                let declared = head
                    .lines()
                    .find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
                let end = at + 4 + declared.unwrap_or(0usize);
                if bytes.len() >= end {
                    bytes.drain(..end);
                    break head;
                }
            }
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let path = head.split(' ').nth(1).unwrap().split('?').next().unwrap().to_owned();
        let (status, body) = script.lock().unwrap().answer(&path);
        let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\n\r\n", body.len());
        if stream.write_all(&[answer.as_bytes(), &body].concat()).await.is_err() {
            return;
        }
    }
}

/// The first model of a small network.
async fn model() -> bytes::Bytes {
    let mut config = Config { bind: ([127, 0, 0, 1], 0).into(), ..Config::default() };
    config.model.model = "softmax".into();
    config.store.durable = false;
    let master = Master::start(config, None).await.unwrap();
    let model = master.global();
    master.shutdown().await.unwrap();
    model
}

async fn play(
    task: &[&'static str],
    update: &[(u16, String)],
) -> (Result<Summary, WorkerError>, Vec<Instant>) {
    play_with(task, update, false).await
}

async fn play_with(
    task: &[&'static str],
    update: &[(u16, String)],
    lazy: bool,
) -> (Result<Summary, WorkerError>, Vec<Instant>) {
    let script = Arc::new(Mutex::new(Script {
        task: task.iter().copied().collect(),
        update: update.iter().cloned().collect(),
        model: model().await,
        lazy,
        asked: Vec::new(),
    }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve(listener, script.clone()));
    let args = ["fl-worker", "--worker-id=w", "--mem-mb=0", &format!("--master-addr=http://{address}")];
    let config = Args::parse_from(args).check().unwrap();
    let data = Arc::new(fl_datasets::load(&DatasetSpec::Digits, None, Part::Train).unwrap());
    let ended = timeout(PATIENCE, fl_worker::run(config, Some(data), pending(), None)).await.unwrap();
    server.abort();
    let asked = script.lock().unwrap().asked.clone();
    (ended, asked)
}

fn problem(code: ErrorCode) -> (u16, String) {
    let body = ErrorBody { status: "error".into(), code, msg: "no".into(), global_round: 1 };
    (code.http_status(), serde_json::to_string(&body).unwrap())
}

fn ack() -> (u16, String) {
    let body = UpdateAck { status: "ok".into(), aggregated: true, global_round: 1, duplicate: false };
    (200, serde_json::to_string(&body).unwrap())
}

#[tokio::test]
async fn an_update_of_the_wrong_round_is_dropped_and_the_next_one_made() {
    let answers = [problem(ErrorCode::StaleRound), problem(ErrorCode::FutureRound), ack()];
    let (ended, asked) = play(&["train", "train", "train", "stop"], &answers).await;
    let summary = ended.unwrap();
    assert_eq!((summary.rounds, summary.refused, asked.len()), (1, 2, 4));
}

#[tokio::test]
async fn an_update_is_sent_again_while_the_master_is_busy() {
    let answers = [problem(ErrorCode::Overloaded), problem(ErrorCode::StorageUnavailable), ack()];
    let (ended, asked) = play(&["train", "stop"], &answers).await;
    let summary = ended.unwrap();
    assert_eq!((summary.rounds, summary.refused, asked.len()), (1, 0, 2));
}

#[tokio::test]
async fn a_master_that_says_wait_at_once_is_not_asked_in_a_loop() {
    let (ended, asked) = play(&["wait", "wait", "stop"], &[ack()]).await;
    assert_eq!(ended.unwrap(), Summary::default());
    assert_eq!(asked.len(), 3);
    for pair in asked.windows(2) {
        assert!(pair[1] - pair[0] >= Duration::from_millis(400), "asked again after {:?}", pair[1] - pair[0]);
    }
}

#[tokio::test]
async fn a_master_that_has_lost_the_last_update_gets_the_new_one() {
    let bytes_of = |tasks: &'static [&'static str], answers: Vec<(u16, String)>| async move {
        let summary = play_with(tasks, &answers, true).await.0.unwrap();
        assert_eq!((summary.rounds, summary.refused), (tasks.len() as u64 - 1, 0));
        summary.bytes_up
    };
    let one = bytes_of(&["train", "stop"], vec![ack()]).await;
    let with_notice = bytes_of(&["train", "train", "stop"], vec![ack()]).await;
    assert!(with_notice < one + 400, "{with_notice} bytes: a notice is small");
    let lost = vec![ack(), problem(ErrorCode::NoLastUpdate), ack()];
    let sent = bytes_of(&["train", "train", "stop"], lost).await;
    assert!(sent > one + one / 2, "{sent} bytes: the update itself is needed");
}
