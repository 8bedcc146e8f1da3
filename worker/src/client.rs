//! The HTTP side: one keep-alive client for the master's API.

use crate::settings::{Download, MasterSettings};
use bytes::Bytes;
use fl_app::{Secret, SettingError};
use fl_protocol::{
    ErrorBody, ErrorCode, EvaluationAck, EvaluationJson, TaskBody, UpdateAck, WorkerId, headers,
    limits::MAX_PARAMETERS,
};
use reqwest::{Certificate, Client, Identity, RequestBuilder, Response, StatusCode, header};
use serde::de::DeserializeOwned;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use thiserror::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A silent connection is probed that often, so that a vanished master is noticed in a transfer.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Longest wait for the answer to a request for work; the master is asked to hold it for less.
const TASK_TIMEOUT: Duration = Duration::from_secs(60);

/// Longest transfer of a model or an update: a slow uplink may take minutes, but a dead one must end.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(1800);

/// How long a request for work waits at the master, in seconds.
const WAIT_S: u64 = 25;

/// Largest JSON answer that is read, in bytes.
const MAX_JSON_BYTES: usize = 1 << 20;

/// Why a call to the master gave no result.
#[derive(Debug, Error)]
pub enum CallError {
    /// No answer: the master is down, or the network is.
    #[error("the master does not answer: {0}")]
    Unreachable(String),
    /// The master refuses.
    #[error("the master answers {status}: {msg}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The stable code, if the answer has one.
        code: Option<ErrorCode>,
        /// The master's sentence.
        msg: String,
        /// `Retry-After`, if the answer has one.
        retry_after: Option<Duration>,
    },
    /// An answer that contradicts the API.
    #[error("the answer cannot be used: {0}")]
    BadAnswer(String),
}

impl CallError {
    /// Whether the same call may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::BadAnswer(_) => true,
            Self::Refused { status, .. } => matches!(status, 408 | 425 | 429 | 500..=599),
        }
    }

    /// Whether the update was too late or too early for its round.
    pub fn is_wrong_round(&self) -> bool {
        matches!(self, Self::Refused { status: 409, .. })
    }

    /// Whether the update was refused for its norm: a later one may be accepted.
    pub fn is_norm_too_large(&self) -> bool {
        matches!(self, Self::Refused { code: Some(ErrorCode::NormTooLarge), .. })
    }

    /// Whether a notice named an update that the master does not have.
    pub fn is_no_last_update(&self) -> bool {
        matches!(self, Self::Refused { code: Some(ErrorCode::NoLastUpdate), .. })
    }

    /// The pause that the master asked for.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl From<reqwest::Error> for CallError {
    fn from(error: reqwest::Error) -> Self {
        // The outermost message names only the URL; the reason is further in.
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            reason = inner.to_string();
            source = inner.source();
        }
        Self::Unreachable(reason)
    }
}

/// A certificate file that cannot be used.
#[derive(Debug, Error)]
#[error("{setting}={}: {what}", path.display())]
pub struct CertificateError {
    setting: &'static str,
    path: PathBuf,
    what: String,
}

/// Why no client can be made.
#[derive(Debug, Error)]
pub enum ClientError {
    /// A certificate that cannot be used.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// An address that is none.
    #[error(transparent)]
    Setting(#[from] SettingError),
}

/// A model as the master serves it.
#[derive(Debug)]
pub struct ServedModel {
    /// Its round.
    pub round: u64,
    /// The safetensors file.
    pub file: Bytes,
}

/// A client of one master.
#[derive(Debug, Clone)]
pub struct MasterClient {
    http: Client,
    base: String,
    token: Option<Secret>,
    /// Asks for a quantized model; empty for the exact one.
    query: String,
}

impl MasterClient {
    /// Prepares the client; connects to nothing yet. `download` asks for a quantized model.
    ///
    /// # Errors
    /// Certificates that cannot be used, an address that is none.
    pub fn new(settings: &MasterSettings, download: Option<Download>) -> Result<Self, ClientError> {
        // A second worker of this process finds the provider installed: that is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(KEEPALIVE)
            .tcp_nodelay(true)
            .pool_max_idle_per_host(2)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("fl-worker/", env!("CARGO_PKG_VERSION")));
        builder = match &settings.ca_cert {
            Some(path) => builder.tls_certs_only(authorities(path)?),
            // Without TLS there is no reason to load the system's authorities.
            None if settings.addr.starts_with("http://") => builder.tls_certs_only([]),
            None => builder,
        };
        if let Some(path) = &settings.client_cert {
            builder = builder.identity(identity(path)?);
        }
        let http = builder.build().map_err(|error| {
            SettingError::new("MASTER_ADDR", &settings.addr, format!("no client can be made for it: {error}"))
        })?;
        let query =
            download.map_or(String::new(), |down| format!("quantizer={}&bits={}", down.scheme, down.bits));
        Ok(Self { http, base: settings.addr.clone(), token: settings.token.clone(), query })
    }

    /// `GET /task`: what to do next; waits at the master while there is nothing to do.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn task(&self, worker: &WorkerId) -> Result<TaskBody, CallError> {
        let url = format!("{}/task?worker_id={worker}&wait={WAIT_S}", self.base);
        json(self.send(self.http.get(url).timeout(TASK_TIMEOUT)).await?).await
    }

    /// `GET /global`: the newest model as a safetensors file, quantized if the settings say so.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn global(&self) -> Result<Bytes, CallError> {
        self.model(&format!("global?{}", self.query)).await
    }

    /// `GET /control`: the server's control variate, in a file like the model's.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn control(&self) -> Result<Bytes, CallError> {
        self.model("control").await
    }

    /// `GET path`, an answer in JSON of at most `limit` bytes.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str, limit: usize) -> Result<T, CallError> {
        let url = format!("{}/{path}", self.base);
        let bytes = body(self.send(self.http.get(url).timeout(TASK_TIMEOUT)).await?, limit).await?;
        serde_json::from_slice(&bytes).map_err(|error| CallError::BadAnswer(error.to_string()))
    }

    async fn model(&self, path: &str) -> Result<Bytes, CallError> {
        let request = self.http.get(format!("{}/{path}", self.base)).timeout(TRANSFER_TIMEOUT);
        let response = self.send(request).await?;
        body(response, MAX_PARAMETERS * 4 + MAX_JSON_BYTES).await
    }

    /// `GET /global?min_round=N`: the model of round `min_round` or of a later one; waits at the master
    /// until there is one.
    ///
    /// # Errors
    /// See [`CallError`]; that it did not come in time, too.
    pub async fn next_global(&self, min_round: u64) -> Result<ServedModel, CallError> {
        let url = format!("{}/global?min_round={min_round}&wait={WAIT_S}&{}", self.base, self.query);
        let response = self.send(self.http.get(url).timeout(TRANSFER_TIMEOUT)).await?;
        let round =
            response.headers().get(headers::FL_ROUND).and_then(|value| value.to_str().ok()?.parse().ok());
        let round = round.ok_or_else(|| CallError::BadAnswer("it does not name the model's round".into()))?;
        Ok(ServedModel { round, file: body(response, MAX_PARAMETERS * 4 + MAX_JSON_BYTES).await? })
    }

    /// `POST /update`: hands in an update container.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn update(&self, container: Bytes) -> Result<UpdateAck, CallError> {
        let request = self
            .http
            .post(format!("{}/update", self.base))
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .timeout(TRANSFER_TIMEOUT)
            .body(container);
        json(self.send(request).await?).await
    }

    /// `POST /evaluation`: hands in what was found of a model.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn evaluation(&self, report: &EvaluationJson) -> Result<EvaluationAck, CallError> {
        // Names and finite numbers always become JSON.
        let body = serde_json::to_vec(report).map_err(|error| CallError::BadAnswer(error.to_string()))?;
        let request = self
            .http
            .post(format!("{}/evaluation", self.base))
            .header(header::CONTENT_TYPE, "application/json")
            .timeout(TASK_TIMEOUT)
            .body(body);
        json(self.send(request).await?).await
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, CallError> {
        let request = match &self.token {
            Some(token) => request.bearer_auth(&token.0),
            None => request,
        };
        let response = request.send().await?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(response).await)
    }
}

async fn refusal(response: Response) -> CallError {
    let status: StatusCode = response.status();
    let retry_after = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .map(Duration::from_secs);
    let problem: Option<ErrorBody> = json(response).await.ok();
    let msg = problem.as_ref().map_or_else(|| status.to_string(), |problem| problem.msg.clone());
    CallError::Refused {
        status: status.as_u16(),
        code: problem.map(|problem| problem.code),
        msg,
        retry_after,
    }
}

async fn json<T: DeserializeOwned>(response: Response) -> Result<T, CallError> {
    let bytes = body(response, MAX_JSON_BYTES).await?;
    serde_json::from_slice(&bytes).map_err(|error| CallError::BadAnswer(error.to_string()))
}

/// Reads a body of at most `limit` bytes.
async fn body(mut response: Response, limit: usize) -> Result<Bytes, CallError> {
    let too_large = || CallError::BadAnswer(format!("it is larger than {limit} bytes"));
    let declared = response.content_length().unwrap_or(0);
    if declared > limit as u64 {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(declared as usize);
    while let Some(chunk) = response.chunk().await? {
        if bytes.len() + chunk.len() > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

fn authorities(path: &Path) -> Result<Vec<Certificate>, CertificateError> {
    const SETTING: &str = "CA_CERT";
    Certificate::from_pem_bundle(&read(SETTING, path)?)
        .map_err(|error| certificate_error(SETTING, path, format!("not certificates in PEM: {error}")))
}

fn identity(path: &Path) -> Result<Identity, CertificateError> {
    const SETTING: &str = "CLIENT_CERT";
    Identity::from_pem(&read(SETTING, path)?).map_err(|error| {
        certificate_error(SETTING, path, format!("not a certificate and key in PEM: {error}"))
    })
}

fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, CertificateError> {
    std::fs::read(path)
        .map_err(|error| certificate_error(setting, path, format!("the file cannot be read: {error}")))
}

fn certificate_error(setting: &'static str, path: &Path, what: String) -> CertificateError {
    CertificateError { setting, path: path.to_owned(), what }
}
