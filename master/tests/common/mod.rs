//! A master on a free port, and updates to send to it.
#![allow(dead_code, reason = "each test file uses its own part")]

use fl_master::{Config, Master};
use fl_model::ModelSpec;
use fl_protocol::{ErrorBody, ModelLayout, UpdateAck, UpdateMeta, update, update::Encoded};
use reqwest::{Client, Response, StatusCode};
use serde::de::DeserializeOwned;
use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

/// A small model, state in `dir`, two clients a round, no evaluation.
pub fn config(dir: &Path) -> Config {
    let mut config = Config { bind: ([127, 0, 0, 1], 0).into(), ..Config::default() };
    config.model.model = "softmax".into();
    config.model.eval_every = 0;
    config.store.state_dir = dir.to_owned();
    config.limits.refused_per_s = 0.0;
    config
}

/// The tensors of that model.
pub fn layout() -> ModelLayout {
    ModelSpec::classifier("softmax", &[1, 8, 8], 10, 0).unwrap().layout()
}

/// A delta that only worker and round determine.
pub fn delta(worker: usize, round: u64) -> Vec<f32> {
    let seed = (worker as u64 + 1) * 7919 + round * 104_729;
    (0..layout().parameters() as u64)
        .map(|i| ((seed.wrapping_mul(i + 1).wrapping_mul(2_654_435_761) >> 20) as f32 / 1e6).sin() * 0.01)
        .collect()
}

/// A container with that delta.
pub fn body(worker: usize, round: u64) -> Vec<u8> {
    body_of(&format!("w{worker}"), round, 10 + worker as u64, &delta(worker, round))
}

/// A container.
pub fn body_of(worker: &str, round: u64, num_samples: u64, delta: &[f32]) -> Vec<u8> {
    let meta = UpdateMeta {
        worker_id: worker.parse().unwrap(),
        round,
        num_samples,
        loss: Some(0.5),
        accuracy: None,
        compute_factor: None,
        local_steps: None,
        local_norm: None,
        reuse: None,
        metrics: Default::default(),
    };
    let layout = layout();
    let tensors: Vec<_> =
        layout.tensors().iter().map(|t| Encoded::F32(&delta[t.offset..t.offset + t.len])).collect();
    update::write(&meta, &layout, &tensors).unwrap()
}

/// A master and a client of it.
pub struct Fixture {
    pub master: Master,
    pub client: Client,
    pub url: String,
}

impl Fixture {
    pub async fn start(config: Config) -> Self {
        let master = Master::start(config, None).await.unwrap();
        let url = format!("http://{}", master.local_addr());
        Self { master, client: client(), url }
    }

    pub async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap()
    }

    pub async fn json<T: DeserializeOwned>(&self, path: &str) -> T {
        let response = self.get(path).await;
        assert_eq!(response.status(), 200, "{path}");
        serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
    }

    pub async fn post_as(&self, content_type: &str, body: Vec<u8>) -> Response {
        let request = self.client.post(format!("{}/update", self.url)).header("content-type", content_type);
        request.body(body).send().await.unwrap()
    }

    pub async fn post(&self, body: Vec<u8>) -> Response {
        self.post_as("application/octet-stream", body).await
    }

    pub async fn accepted(&self, body: Vec<u8>) -> UpdateAck {
        let response = self.post(body).await;
        let (status, bytes) = (response.status(), response.bytes().await.unwrap());
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&bytes));
        serde_json::from_slice(&bytes).unwrap()
    }
}

/// A client with its own connections.
pub fn client() -> Client {
    // Another test of this process may have done it before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().build().unwrap()
}

/// Checks status and code of a refusal.
pub async fn refused(response: Response, status: u16, code: &str) -> ErrorBody {
    let (found, bytes) = (response.status(), response.bytes().await.unwrap());
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert_eq!(found, StatusCode::from_u16(status).unwrap(), "{text}");
    let body: ErrorBody = serde_json::from_slice(&bytes).unwrap();
    assert_eq!((body.code.as_str(), body.status.as_str()), (code, "error"), "{text}");
    body
}

/// A number from the environment: tests that take a while run longer for a release.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A port that is free now, for a process that has to be told one.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The real binary with the settings of [`config`], to be changed and started.
pub fn command(port: u16, state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fl-master"));
    command
        .env_clear()
        .env("BIND", format!("127.0.0.1:{port}"))
        .env("STATE_DIR", state)
        .env("MODEL", "softmax")
        .env("EVAL_EVERY", "0")
        .env("RUST_LOG", "error")
        .stdout(Stdio::null());
    command
}

/// A master process that does not outlive its test.
pub struct Running(pub Child);

impl Running {
    pub fn spawn(port: u16, state: &Path, settings: &[(&str, &str)]) -> Self {
        Self(command(port, state).envs(settings.iter().copied()).spawn().unwrap())
    }

    /// SIGKILL: it gets no chance to tidy up.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// SIGTERM: it drains and ends by itself.
    pub fn terminate(&mut self) -> ExitStatus {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.0.wait().unwrap()
    }

    /// A field of `/proc/PID/status` in MB, as in `VmRSS`.
    pub fn memory_mb(&self, field: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
        line.trim().strip_suffix("kB").unwrap().trim().parse::<f64>().unwrap() * 1024.0 / 1e6
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a master that is starting answers.
pub async fn ready(url: &str) {
    for _ in 0..1000 {
        if client().get(format!("{url}/readyz")).send().await.is_ok_and(|r| r.status() == 200) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{url} does not get ready");
}
