//! A client that writes its whole request before it reads finds the answer, whatever it is: the master
//! reads and drops what it does not want, within bounds.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Fixture, body, config};
use fl_master::{Config, settings::Secret};
use fl_protocol::ErrorBody;
use std::net::SocketAddr;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Beyond what the sockets' buffers take, beyond what the model's updates may be, within what is dropped.
const LARGE: usize = 12 << 20;

async fn fixture(change: impl FnOnce(&mut Config)) -> (Fixture, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    change(&mut config);
    (Fixture::start(config).await, dir)
}

fn head(path: &str, more: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: x\r\n{more}\r\n\r\n")
}

fn octets(len: usize) -> String {
    format!("content-type: application/octet-stream\r\ncontent-length: {len}")
}

/// A body in chunks.
fn chunked(bytes: &[u8]) -> Vec<u8> {
    let chunks = bytes
        .chunks(10_000)
        .flat_map(|chunk| [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
    chunks.chain(*b"0\r\n\r\n").collect()
}

/// Status and body of the next answer on the connection.
async fn answer(stream: &mut TcpStream) -> (u16, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..at]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.map_or(0, |text| text.trim().parse().unwrap());
            if bytes.len() >= at + 4 + length {
                return (head[9..12].parse().unwrap(), bytes[at + 4..at + 4 + length].to_vec());
            }
        }
        let read = stream.read_buf(&mut bytes).await.expect("the connection is not reset");
        assert!(read > 0, "the connection is closed without an answer");
    }
}

/// Writes everything, then reads.
async fn send(to: SocketAddr, head: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.expect("the master reads on");
    let (status, body) = answer(&mut stream).await;
    let problem: ErrorBody = serde_json::from_slice(&body).unwrap();
    (status, problem.code.as_str().to_owned())
}

#[tokio::test]
async fn a_body_that_is_too_large_is_read_before_the_connection_ends() {
    let (f, _dir) = fixture(|_| ()).await;
    let to = f.master.local_addr();
    let large = vec![0; LARGE];
    let refused = (413, "too_large".to_owned());
    assert_eq!(send(to, &head("/update", &octets(LARGE)), &large).await, refused);
    let kind = "content-type: application/octet-stream\r\ntransfer-encoding: chunked";
    assert_eq!(send(to, &head("/update", kind), &chunked(&large)).await, refused);
    let json = format!("content-type: application/json\r\ncontent-length: {LARGE}");
    assert_eq!(send(to, &head("/update", &json), &large).await, refused);
    assert_eq!(f.json::<fl_protocol::StatusBody>("/status").await.pending_updates, 0);
}

#[tokio::test]
async fn answers_that_do_not_wait_for_the_body_arrive_too() {
    let (f, _dir) = fixture(|c| c.token = Some(Secret("s3cret".into()))).await;
    let (to, large) = (f.master.local_addr(), vec![0; LARGE]);
    assert_eq!(send(to, &head("/update", &octets(LARGE)), &large).await, (401, "unauthorized".into()));

    let (f, _dir) = fixture(|c| c.limits.refused_per_s = 0.001).await;
    let to = f.master.local_addr();
    let text = format!("content-type: text/plain\r\ncontent-length: {LARGE}");
    assert_eq!(send(to, &head("/nothing", &text), &large).await, (404, "not_found".into()));
    assert_eq!(send(to, &head("/global", &text), &large).await, (405, "method_not_allowed".into()));
    assert_eq!(send(to, &head("/update", &text), &large).await, (415, "unsupported_media_type".into()));
    // That was this address's one refusal.
    assert_eq!(send(to, &head("/update", &octets(LARGE)), &large).await, (429, "rate_limited".into()));
}

#[tokio::test]
async fn a_connection_goes_on_after_a_body_that_was_not_wanted() {
    let (f, _dir) = fixture(|_| ()).await;
    let mut stream = TcpStream::connect(f.master.local_addr()).await.unwrap();
    for _ in 0..3 {
        let request = head("/update", "content-type: text/plain\r\ncontent-length: 100000");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.write_all(&[b'x'; 100_000]).await.unwrap();
        assert_eq!(answer(&mut stream).await.0, 415);
    }
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(answer(&mut stream).await.0, 200);
}

#[tokio::test]
async fn who_waits_for_continue_is_not_asked_for_what_is_refused() {
    let (f, _dir) = fixture(|_| ()).await;
    let mut stream = TcpStream::connect(f.master.local_addr()).await.unwrap();
    let request = head("/update", &format!("expect: 100-continue\r\n{}", octets(LARGE)));
    stream.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(answer(&mut stream).await.0, 413, "not 100");
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "the connection ends without the body");

    let mut stream = TcpStream::connect(f.master.local_addr()).await.unwrap();
    let update = body(0, 0);
    let request = head("/update", &format!("expect: 100-continue\r\n{}", octets(update.len())));
    stream.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(answer(&mut stream).await.0, 100);
    stream.write_all(&update).await.unwrap();
    assert_eq!(answer(&mut stream).await.0, 200);
}

#[tokio::test]
async fn what_is_read_and_dropped_has_a_bound() {
    let (f, _dir) = fixture(|_| ()).await;
    let mut stream = TcpStream::connect(f.master.local_addr()).await.unwrap();
    stream.write_all(head("/update", &octets(1 << 40)).as_bytes()).await.unwrap();
    let part = vec![0; 1 << 20];
    let sent = async {
        for sent in 0.. {
            if stream.write_all(&part).await.is_err() {
                return sent;
            }
        }
        0
    };
    let sent = sent.await;
    assert!((32..80).contains(&sent), "the connection ended after {sent} MiB");
}
