//! A session against a master that plays a part: answers that a healthy one seldom gives. Nothing sleeps: pauses
//! are written down.

use super::*;
use crate::Args;
use clap::Parser;
use fl_datasets::{DatasetSpec, Part};
use fl_model::ModelSpec;
use fl_protocol::{ErrorBody, ErrorCode, EvaluationJson, Update};
use std::{collections::VecDeque, path::Path};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// An answer to `POST /update`.
#[derive(Clone)]
struct Answer {
    status: u16,
    body: String,
    retry_after: Option<u32>,
}

fn ack() -> Answer {
    let body = UpdateAck { status: "ok".into(), aggregated: true, global_round: 1, duplicate: false };
    Answer { status: 200, body: serde_json::to_string(&body).unwrap(), retry_after: None }
}

fn problem(code: ErrorCode) -> Answer {
    let body = ErrorBody { status: "error".into(), code, msg: "no".into(), global_round: 1 };
    Answer { status: code.http_status(), body: serde_json::to_string(&body).unwrap(), retry_after: None }
}

/// A master with a script: each answer is given once, the last one repeatedly.
struct Script {
    task: VecDeque<&'static str>,
    update: VecDeque<Answer>,
    /// Whether any upload after the first may be left out.
    lazy: bool,
    /// The round that is open: it closes with every accepted update.
    round: u64,
    /// Rounds whose model makes any training diverge.
    poisoned: std::ops::Range<u64>,
    /// Requests for work.
    asked: usize,
    /// Every body that was posted.
    posted: Vec<Vec<u8>>,
    /// Whether the workers evaluate models, and what the master answers to what they find.
    evaluated: Option<Answer>,
    /// What they found.
    found: Vec<EvaluationJson>,
    /// Models that were pulled.
    models: usize,
}

impl Script {
    fn new(task: &[&'static str], update: &[Answer]) -> Self {
        Self {
            task: task.iter().copied().collect(),
            update: update.iter().cloned().collect(),
            lazy: false,
            round: 0,
            poisoned: 0..0,
            asked: 0,
            posted: Vec::new(),
            evaluated: None,
            found: Vec::new(),
            models: 0,
        }
    }

    fn answer(&mut self, path: &str, body: &[u8]) -> (u16, Vec<u8>, Option<u32>) {
        match path {
            "/task" => {
                self.asked += 1;
                let (action, round) = (next(&mut self.task), self.round);
                let lazy = if self.lazy { ",\"lazy_below\":1e30" } else { "" };
                let every = if self.evaluated.is_some() { ",\"evaluate_every\":1" } else { "" };
                let task =
                    format!("{{\"action\":\"{action}\",\"round\":{round},\"etag\":\"x\"{lazy}{every}}}");
                (200, task.into_bytes(), None)
            }
            "/global" => {
                self.models += 1;
                let mut model = model(self.round);
                if self.poisoned.contains(&self.round) {
                    model.parameters.fill(f32::MAX);
                }
                (200, model.to_safetensors().unwrap(), None)
            }
            "/update" => {
                self.posted.push(body.to_vec());
                let answer = next(&mut self.update);
                self.round += u64::from(answer.status == 200);
                (answer.status, answer.body.into_bytes(), answer.retry_after)
            }
            "/evaluation" => {
                self.found.push(serde_json::from_slice(body).unwrap());
                let answer = self.evaluated.clone().unwrap();
                (answer.status, answer.body.into_bytes(), answer.retry_after)
            }
            other => panic!("{other} is asked for"),
        }
    }

    /// What was posted for each round, as the master decodes it.
    fn decoded(&self) -> Vec<Vec<f32>> {
        let layout = model(0).network.layout().into_owned();
        let decode = |body: &Vec<u8>| {
            let mut values = vec![0.0; layout.parameters()];
            Update::parse(body, &layout).unwrap().for_each_chunk(&mut |at, chunk: &[f32]| {
                values[at..at + chunk.len()].copy_from_slice(chunk);
            });
            values
        };
        self.posted.iter().map(decode).collect()
    }
}

fn next<T: Clone>(answers: &mut VecDeque<T>) -> T {
    let first = answers[0].clone();
    if answers.len() > 1 {
        answers.pop_front();
    }
    first
}

/// A small network that has learned nothing.
fn model(round: u64) -> GlobalModel {
    let data = digits();
    let spec = ModelSpec::classifier("softmax", data.input_shape(), data.num_classes(), 0).unwrap();
    let parameters = vec![0.0; spec.num_parameters()];
    GlobalModel {
        round,
        network: spec.into(),
        normalization: data.normalization.clone(),
        names: data.names.clone(),
        parameters,
        buffers: fl_model::Buffers::default(),
    }
}

fn digits() -> Arc<Dataset> {
    static DIGITS: LazyLock<Arc<Dataset>> =
        LazyLock::new(|| Arc::new(fl_datasets::load(&DatasetSpec::Digits, None, Part::Train).unwrap()));
    DIGITS.clone()
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
        let (head, body) = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8(bytes[..at].to_vec()).unwrap();
                let declared = head
                    .lines()
                    .find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
                let end = at + 4 + declared.unwrap_or(0usize);
                if bytes.len() >= end {
                    let body = bytes[at + 4..end].to_vec();
                    bytes.drain(..end);
                    break (head, body);
                }
            }
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let path = head.split(' ').nth(1).unwrap().split('?').next().unwrap().to_owned();
        if head.contains("min_round=") {
            // The next round's model, pulled ahead: this master does not do that.
            let _ = stream.write_all(b"HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n").await;
            continue;
        }
        let (status, body, retry_after) = script.lock().unwrap().answer(&path, &body);
        let retry = retry_after.map_or(String::new(), |s| format!("retry-after: {s}\r\n"));
        let answer = format!("HTTP/1.1 {status} x\r\n{retry}content-length: {}\r\n\r\n", body.len());
        if stream.write_all(&[answer.as_bytes(), &body].concat()).await.is_err() {
            return;
        }
    }
}

/// What came of a session.
struct Played {
    ended: Result<Summary, WorkerError>,
    script: Script,
    pauses: Vec<Duration>,
    touches: usize,
    metrics: String,
}

async fn play(script: Script, args: &[&str]) -> Played {
    let script = Arc::new(Mutex::new(script));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("--master-addr=http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(serve(listener, script.clone()));
    let name = args.iter().any(|arg| arg.starts_with("--worker-id"));
    let own = ["fl-worker", &address, "--mem-mb=0", if name { "--seed=42" } else { "--worker-id=w" }];
    let config = Args::parse_from(own.iter().chain(args)).check().unwrap();
    let (_sender, stop) = Stop::channel();
    let (metrics, pauses) = (Arc::new(Metrics::new()), Arc::<Mutex<Vec<Duration>>>::default());
    let record = Pauses::Record(pauses.clone());
    let mut session =
        Session::start(config, Some(digits()), stop, record, metrics.clone(), None).await.unwrap();
    let result = timeout(PATIENCE, session.work()).await.unwrap();
    server.abort();
    let _ = server.await;
    let (summary, touches) = (*lock(&session.summary), session.trainee.ballast.touches());
    drop(session);
    let pauses = pauses.lock().unwrap().clone();
    let script = std::mem::replace(&mut *script.lock().unwrap(), Script::new(&["stop"], &[ack()]));
    Played { ended: result.map(|()| summary), script, pauses, touches, metrics: metrics.text() }
}

#[tokio::test]
async fn an_update_of_the_wrong_round_is_dropped_and_the_next_one_made() {
    let answers = [problem(ErrorCode::StaleRound), problem(ErrorCode::FutureRound), ack()];
    let played = play(Script::new(&["train", "train", "train", "stop"], &answers), &[]).await;
    let summary = played.ended.unwrap();
    assert_eq!((summary.rounds, summary.refused, played.script.asked), (1, 2, 4));
    assert!(played.pauses.is_empty());
}

#[tokio::test]
async fn a_model_is_pulled_once_to_be_evaluated_and_trained_from() {
    let taken = r#"{"status":"ok","global_round":0,"duplicate":false}"#;
    let taken = Answer { status: 200, body: taken.into(), retry_after: None };
    for answer in [taken, problem(ErrorCode::StaleRound), problem(ErrorCode::Malformed)] {
        let evaluated = Some(answer);
        let script = Script { evaluated, ..Script::new(&["evaluate", "train", "stop"], &[ack()]) };
        let played = play(script, &["--partition-id=0", "--num-partitions=10"]).await;
        assert_eq!(played.ended.unwrap().rounds, 1, "whatever the master thinks of the evaluation");
        let script = played.script;
        assert_eq!((script.models, script.found.len()), (1, 1));
        let found = &script.found[0];
        assert_eq!((found.round, found.worker_id.as_str()), (0, "w"));
        // A network of zeros finds all classes equally likely.
        assert!((found.metrics.get("loss").unwrap() - 10f64.ln()).abs() < 1e-5, "{found:?}");
        let layout = model(0).network.layout().into_owned();
        let trained = Update::parse(&script.posted[0], &layout).unwrap().meta.num_samples;
        assert!(found.num_samples == 14 && trained + found.num_samples > 140, "{trained} and {found:?}");
    }
    let evaluated = Some(ack());
    let script = Script { evaluated, ..Script::new(&["evaluate", "train", "stop"], &[ack()]) };
    let played = play(script, &["--local-test=0"]).await;
    assert_eq!((played.ended.unwrap().rounds, played.script.found.len()), (1, 0), "it takes no part");
}

#[tokio::test]
async fn an_update_is_sent_again_while_the_master_is_busy() {
    let answers = [problem(ErrorCode::Overloaded), problem(ErrorCode::StorageUnavailable), ack()];
    let played = play(Script::new(&["train", "stop"], &answers), &[]).await;
    let summary = played.ended.unwrap();
    assert_eq!((summary.rounds, summary.refused, played.script.asked), (1, 0, 2));
    let posted = &played.script.posted;
    assert_eq!(posted.len(), 3);
    assert!(posted.iter().all(|body| *body == posted[0]), "it is the same update");
}

#[tokio::test]
async fn workers_that_are_told_to_come_back_in_a_second_do_not_come_together() {
    let mut courses = Vec::new();
    for name in ["--worker-id=a", "--worker-id=b"] {
        let busy = Answer { retry_after: Some(1), ..problem(ErrorCode::Overloaded) };
        let answers: Vec<Answer> = std::iter::repeat_n(busy, 6).chain([ack()]).collect();
        let played = play(Script::new(&["train", "stop"], &answers), &[name]).await;
        assert_eq!(played.ended.unwrap().rounds, 1);
        assert_eq!(played.pauses.len(), 6);
        assert!(played.pauses.iter().all(|pause| *pause >= Duration::from_secs(1)), "{:?}", played.pauses);
        // Beyond the second that all wait there is a part that grows.
        let beyond = |pauses: &[Duration]| pauses.iter().sum::<Duration>() - Duration::from_secs(3);
        assert!(beyond(&played.pauses[3..]) > beyond(&played.pauses[..3]), "{:?}", played.pauses);
        courses.push(played.pauses);
    }
    assert!(courses[0].iter().zip(&courses[1]).all(|(a, b)| a.abs_diff(*b) > Duration::from_millis(1)));
}

#[tokio::test]
async fn a_master_that_says_wait_at_once_is_not_asked_in_a_loop() {
    let played = play(Script::new(&["wait", "wait", "stop"], &[ack()]), &[]).await;
    assert_eq!(played.ended.unwrap(), Summary::default());
    assert_eq!((played.script.asked, played.pauses.len()), (3, 2));
    assert!(played.metrics.contains("fl_worker_last_contact_timestamp_seconds"));
}

#[tokio::test]
async fn a_master_that_has_lost_the_last_update_gets_the_new_one() {
    let bytes_of = |tasks: &'static [&'static str], answers: Vec<Answer>| async move {
        let played = play(Script { lazy: true, ..Script::new(tasks, &answers) }, &[]).await;
        let summary = played.ended.unwrap();
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

#[tokio::test]
async fn an_update_that_is_too_large_is_dropped_and_the_worker_goes_on() {
    let large = problem(ErrorCode::NormTooLarge);
    let answers = [large.clone(), large.clone(), large, ack()];
    let tasks = ["train", "train", "train", "train", "stop"];
    let played = play(Script::new(&tasks, &answers), &[]).await;
    let summary = played.ended.unwrap();
    assert_eq!((summary.rounds, summary.dropped, summary.refused), (1, 3, 0));
    assert_eq!(played.pauses.len(), 2, "after the second and the third in a row: {:?}", played.pauses);
    assert!(played.metrics.contains("fl_worker_dropped_updates_total{reason=\"norm_too_large\"} 3"));
}

#[tokio::test]
async fn a_training_that_diverges_sends_nothing_and_goes_on() {
    // The master stays in the poisoned round for four requests.
    let tasks = ["train", "train", "train", "train", "stop"];
    let played = play(Script { poisoned: 0..1, ..Script::new(&tasks, &[ack()]) }, &[]).await;
    let summary = played.ended.unwrap();
    assert_eq!((summary.rounds, summary.dropped, played.script.posted.len()), (0, 4, 0));
    assert_eq!(played.pauses.len(), 3, "{:?}", played.pauses);
    assert!(played.metrics.contains("fl_worker_dropped_updates_total{reason=\"diverged\"} 4"));
    // Round 0 is fine, round 1 is not: what was learned of round 0 is not lost.
    let tasks = ["train", "train", "stop"];
    let played = play(Script { poisoned: 1..2, ..Script::new(&tasks, &[ack()]) }, &[]).await;
    assert_eq!((played.ended.unwrap().rounds, played.pauses.len()), (1, 0));
}

#[tokio::test]
async fn a_refusal_that_no_retry_mends_ends_the_worker() {
    let played = play(Script::new(&["train"], &[problem(ErrorCode::WrongTensors)]), &[]).await;
    let error = played.ended.unwrap_err();
    assert_eq!(error.exit() as u8, 69);
    assert!(error.to_string().contains("versions"), "{error}");
}

#[tokio::test]
async fn the_ballast_is_touched_once_a_round() {
    let tasks = ["train", "train", "train", "stop"];
    let played = play(Script::new(&tasks, &[ack()]), &["--local-steps=20"]).await;
    assert_eq!((played.ended.unwrap().rounds, played.touches), (3, 3));
}

/// Six rounds at 2 bits; with a restart after the third if `restart`.
async fn course(dir: Option<&Path>, restart: bool) -> Vec<Vec<f32>> {
    let dir = dir.map(|dir| format!("--worker-state-dir={}", dir.display()));
    let args: Vec<&str> = ["--bits=2"].into_iter().chain(dir.as_deref()).collect();
    if !restart {
        return play(
            Script::new(&["train"; 6].iter().copied().chain(["stop"]).collect::<Vec<_>>(), &[ack()]),
            &args,
        )
        .await
        .script
        .decoded();
    }
    let half = ["train", "train", "train", "stop"];
    let first = play(Script::new(&half, &[ack()]), &args).await;
    let second = play(Script { round: 3, ..Script::new(&half, &[ack()]) }, &args).await;
    [first.script.decoded(), second.script.decoded()].concat()
}

#[tokio::test]
async fn a_residual_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let whole = course(None, false).await;
    assert_eq!(whole.len(), 6);
    let forgetful = course(None, true).await;
    assert_eq!(forgetful[..3], whole[..3]);
    assert_ne!(forgetful[3], whole[3], "the premise: without a folder the residual is lost");
    assert_eq!(course(Some(dir.path()), true).await, whole);
}

#[tokio::test]
async fn a_damaged_state_is_ignored_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let arg = format!("--worker-state-dir={}", dir.path().display());
    let args = ["--bits=2", arg.as_str()];
    play(Script::new(&["train", "stop"], &[ack()]), &args).await.ended.unwrap();
    let path = dir.path().join("w.state");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let file = StateFile::open(dir.path(), &"w".parse().unwrap()).unwrap();
    assert!(restore(&file, &model(1)).is_none());
    let played = play(Script { round: 1, ..Script::new(&["train", "stop"], &[ack()]) }, &args).await;
    assert_eq!(played.ended.unwrap().rounds, 1);
    assert!(restore(&file, &model(2)).is_some(), "the next acknowledged update replaces it");
    assert!(restore(&file, &model(0)).is_none(), "the master began anew: the state is of its future");
}

#[tokio::test]
async fn a_worker_that_carries_nothing_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let arg = format!("--worker-state-dir={}", dir.path().display());
    play(Script::new(&["train", "stop"], &[ack()]), &["--quantizer=none", &arg]).await.ended.unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
