//! A load generator on loopback: clients over keep-alive connections that send prepared updates.

use super::updates::Template;
use anyhow::{Context, bail, ensure};
use fl_protocol::UpdateAck;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};

/// Pause after a 429 or 503.
const PAUSE: Duration = Duration::from_millis(5);
/// Largest head of a response, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// What all connections share.
#[derive(Debug)]
pub struct Load {
    /// Address of the master.
    pub address: SocketAddr,
    /// The updates that the clients send.
    pub templates: Vec<Template>,
    /// Number of clients.
    pub clients: usize,
    /// Connections that the clients share.
    pub connections: usize,
    /// The open round; raised by the answer to the update that closed one. `u64::MAX` ends the load.
    pub round: watch::Sender<u64>,
    /// Acknowledged updates.
    pub accepted: AtomicU64,
    /// Answers 429 and 503.
    pub turned_away: AtomicU64,
}

impl Load {
    /// Drives one connection: each of its clients sends an update in every round. Returns for each update
    /// when it was acknowledged, and the time from its first byte to the acknowledgement.
    ///
    /// # Errors
    /// If the master cannot be reached, or refuses an update.
    pub async fn run(self: Arc<Self>, index: usize) -> anyhow::Result<Vec<(Instant, Duration)>> {
        let mut connection = Connection::open(self.address).await?;
        let mut rounds = self.round.subscribe();
        let mut times = Vec::new();
        let (mut head, mut round) = (Vec::new(), *rounds.borrow());
        while round != u64::MAX {
            for client in (index..self.clients).step_by(self.connections) {
                let template = &self.templates[client % self.templates.len()];
                template.patch(&mut head, client, round);
                let started = Instant::now();
                let ack = self.send(&mut connection, &head, template).await?;
                times.push((Instant::now(), started.elapsed()));
                self.accepted.fetch_add(1, Ordering::Relaxed);
                ensure!(!ack.duplicate, "the master answered an update of client {client} as a duplicate");
                if ack.aggregated {
                    self.round.send_if_modified(|open| {
                        let raised = *open < ack.global_round;
                        *open = (*open).max(ack.global_round);
                        raised
                    });
                }
            }
            let next = rounds.wait_for(|open| *open > round).await.context("the load ended early")?;
            round = *next;
        }
        Ok(times)
    }

    /// Sends an update until it is acknowledged.
    async fn send(
        &self,
        connection: &mut Connection,
        head: &[u8],
        template: &Template,
    ) -> anyhow::Result<UpdateAck> {
        loop {
            let (status, body) = connection.post_update(head, template).await?;
            match status {
                200 => return Ok(serde_json::from_slice(body)?),
                429 | 503 => {
                    self.turned_away.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(PAUSE).await;
                }
                _ => bail!("the master answered {status}: {}", String::from_utf8_lossy(body)),
            }
        }
    }
}

/// A keep-alive connection with little overhead, because the generator shares the cores with the master.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// If the master does not accept the connection.
    pub async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.context("the master does not accept connections")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, request: Vec::new(), answer: Vec::new() })
    }

    async fn post_update(&mut self, head: &[u8], template: &Template) -> anyhow::Result<(u16, &[u8])> {
        self.request.clear();
        let length = template.len();
        let http = format!(
            "POST /update HTTP/1.1\r\nhost: bench\r\ncontent-type: application/octet-stream\r\ncontent-length: {length}\r\n\r\n"
        );
        self.request.extend_from_slice(http.as_bytes());
        self.request.extend_from_slice(head);
        self.stream.write_all(&self.request).await?;
        let mut sent = head.len();
        while sent < length {
            let rest = template.rest(sent - head.len(), &mut self.request)?;
            self.stream.write_all(rest).await?;
            sent += rest.len();
        }
        self.answer().await
    }

    /// Sends a `GET` request; returns status and body.
    ///
    /// # Errors
    /// If the connection ends.
    pub async fn get(&mut self, path: &str) -> anyhow::Result<(u16, &[u8])> {
        self.stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n").as_bytes()).await?;
        self.answer().await
    }

    /// Status and body of the next answer.
    async fn answer(&mut self) -> anyhow::Result<(u16, &[u8])> {
        self.answer.clear();
        let head_len = loop {
            if let Some(at) = self.answer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            ensure!(self.answer.len() < MAX_HEAD, "the response's head is longer than {MAX_HEAD} bytes");
            let read = self.stream.read_buf(&mut self.answer).await?;
            ensure!(read > 0, "the master closed the connection");
        };
        let head = std::str::from_utf8(&self.answer[..head_len])?.to_ascii_lowercase();
        let status =
            head.get(9..12).and_then(|text| text.parse().ok()).context("the answer has no status")?;
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
            .context("the answer has no length")?;
        while self.answer.len() < head_len + length {
            let read = self.stream.read_buf(&mut self.answer).await?;
            ensure!(read > 0, "the master closed the connection");
        }
        Ok((status, &self.answer[head_len..head_len + length]))
    }
}
