//! The dashboard and the stream that keeps it up to date, over a real socket.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Fixture, body, config};
use fl_protocol::HistoryRecord;
use reqwest::Response;
use serde_json::Value;

/// Server-sent events as they arrive: a name and a JSON body.
struct Events {
    response: Response,
    text: String,
}

impl Events {
    async fn open(f: &Fixture) -> Self {
        let response = f.get("/events").await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, text: String::new() }
    }

    /// The next event; none at the end of the stream. Comments are passed over.
    async fn next(&mut self) -> Option<(String, Value)> {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let field =
                    |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
                let found = field("event:").map(str::to_owned).zip(field("data:").map(str::to_owned));
                self.text = rest.to_owned();
                if let Some((name, data)) = found {
                    return Some((name, serde_json::from_str(&data).unwrap()));
                }
            }
            let chunk = self.response.chunk().await.unwrap()?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The first event of that name which the condition holds for.
    async fn find(&mut self, name: &str, holds: impl Fn(&Value) -> bool) -> Value {
        loop {
            let (found, data) = self.next().await.expect("the stream has ended");
            if found == name && holds(&data) {
                return data;
            }
        }
    }
}

#[tokio::test]
async fn a_reader_sees_the_update_the_round_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let f = Fixture::start(config(dir.path())).await;
    let mut events = Events::open(&f).await;

    let first = events.next().await.unwrap();
    assert_eq!((first.0.as_str(), &first.1["global_round"]), ("status", &Value::from(0)));
    assert_eq!(first.1["num_workers"], 0);

    f.accepted(body(0, 0)).await;
    let status = events.find("status", |status| status["pending_updates"] == 1).await;
    assert_eq!((&status["num_workers"], &status["workers"]["w0"]["num_samples"]), (&1.into(), &10.into()));
    assert!(
        status["now_ts"].as_f64().unwrap() >= status["workers"]["w0"]["last_update_ts"].as_f64().unwrap()
    );

    f.accepted(body(1, 0)).await;
    let record = events.find("round", |record| record["round"] == 1).await;
    let record: HistoryRecord = serde_json::from_value(record).unwrap();
    assert_eq!((record.participants, record.num_samples), (2, 21));
    let status = events.find("status", |status| status["global_round"] == 1).await;
    assert_eq!((&status["pending_updates"], &status["num_workers"]), (&0.into(), &2.into()));

    // A shutdown does not wait for those who watch.
    let (stopped, rest) = tokio::join!(f.master.shutdown(), async { while events.next().await.is_some() {} });
    stopped.unwrap();
    let () = rest;
}

#[tokio::test]
async fn readers_have_a_cap_and_leave_their_place_when_they_go() {
    let dir = tempfile::tempdir().unwrap();
    let f = Fixture::start(config(dir.path())).await;
    let mut readers = Vec::new();
    for _ in 0..64 {
        readers.push(Events::open(&f).await);
    }
    common::refused(f.get("/events").await, 503, "overloaded").await;
    assert_eq!(f.get("/status").await.status(), 200);
    readers.pop();
    // The master notices the closed connection when it next writes or reads: not at once.
    while f.get("/events").await.status() != 200 {
        tokio::task::yield_now().await;
    }
    drop(readers);
    f.master.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_page_is_whole_and_loads_nothing_from_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let f = Fixture::start(config(dir.path())).await;
    f.accepted(body(0, 0)).await;
    f.accepted(body(1, 0)).await;
    let page = f.get("/").await;
    assert_eq!(page.headers()["cache-control"], "no-store");
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
    let page = page.text().await.unwrap();
    for text in ["Round 2 is open", "w0", "w1", &format!("curl -OJ {}/global", f.url)] {
        assert!(page.contains(text), "{text} is missing");
    }

    let mut bytes = page.len();
    let files: Vec<&str> = page
        .split('"')
        .filter(|value| value.starts_with("assets/"))
        .map(|v| v.split('?').next().unwrap())
        .collect();
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        let answer = f.get(&format!("/{file}")).await;
        assert_eq!(answer.status(), 200, "{file}");
        assert_eq!(answer.headers()["x-content-type-options"], "nosniff");
        bytes += answer.bytes().await.unwrap().len();
    }
    assert!(bytes <= 300_000, "the page weighs {bytes} bytes");
    assert_eq!(f.get("/assets/%2e%2e%2fCargo.toml").await.status(), 404);
    assert_eq!(f.get("/assets/nothing.js").await.status(), 404);
    f.master.shutdown().await.unwrap();
}
