//! A run on an MLflow server, over its REST API (version 2.0).

use super::series::Point;
use anyhow::{Context, ensure};
use fl_app::SettingError;
use reqwest::{Client, Method, RequestBuilder, StatusCode, Url};
use serde::Serialize;
use serde_json::{Value, json};
use std::time::Duration;

/// The server refuses more metrics in one call.
const METRICS_A_CALL: usize = 1000;
/// The same of parameters.
const PARAMETERS_A_CALL: usize = 100;
/// It refuses longer values of parameters, in bytes.
const PARAMETER_BYTES: usize = 6000;
/// Longest call.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of an answer that are shown in an error.
const SHOWN: usize = 300;

/// A run that metrics are logged to.
pub struct Mlflow {
    http: Client,
    base: String,
    run_id: String,
}

#[derive(Serialize)]
struct Metric<'a> {
    key: &'a str,
    value: f64,
    /// Milliseconds since 1970.
    timestamp: i64,
    step: i64,
}

impl Mlflow {
    /// Prepares the client; connects to nothing yet.
    ///
    /// # Errors
    /// An address that is none.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        let bad = |reason: String| SettingError::new("--mlflow", url, reason);
        if !["http://", "https://"].iter().any(|scheme| url.starts_with(scheme)) {
            return Err(bad("give the address of a tracking server, http://HOST:5000".to_owned()).into());
        }
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = Client::builder()
            .timeout(TIMEOUT)
            .build()
            .map_err(|error| bad(format!("no client can be made for it: {error}")))?;
        Ok(Self { http, base: url.trim_end_matches('/').to_owned(), run_id: String::new() })
    }

    /// The run's id; empty before there is one.
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// Begins a run in the experiment of that name, which is made if there is none.
    ///
    /// # Errors
    /// If the server does not answer, or refuses.
    pub async fn create_run(
        &mut self,
        experiment: &str,
        name: &str,
        begin: f64,
        parameters: &[(String, String)],
    ) -> anyhow::Result<()> {
        let experiment_id = self.experiment(experiment).await?;
        let run =
            json!({"experiment_id": experiment_id, "run_name": name, "start_time": milliseconds(begin)});
        let answer = self.post("runs/create", &run).await?;
        self.run_id = text(&answer, "/run/info/run_id")?;
        for part in parameters.chunks(PARAMETERS_A_CALL) {
            let fitting = part.iter().filter(|(_, value)| value.len() <= PARAMETER_BYTES);
            let params: Vec<Value> =
                fitting.map(|(key, value)| json!({"key": key, "value": value})).collect();
            self.post("runs/log-batch", &json!({"run_id": self.run_id, "params": params})).await?;
        }
        Ok(())
    }

    /// Goes on with a run that exists.
    ///
    /// # Errors
    /// If the server does not answer, or has no such run.
    pub async fn resume(&mut self, run_id: &str) -> anyhow::Result<()> {
        let answer = self.post("runs/update", &json!({"run_id": run_id, "status": "RUNNING"})).await?;
        self.run_id = text(&answer, "/run_info/run_id")?;
        Ok(())
    }

    /// Logs points.
    ///
    /// # Errors
    /// If the server does not answer, or refuses.
    pub async fn log(&self, points: &[Point]) -> anyhow::Result<()> {
        for part in points.chunks(METRICS_A_CALL) {
            let metrics: Vec<Metric<'_>> = part
                .iter()
                .map(|point| Metric {
                    key: &point.series,
                    value: point.value,
                    timestamp: milliseconds(point.time),
                    step: point.step,
                })
                .collect();
            self.post("runs/log-batch", &json!({"run_id": self.run_id, "metrics": metrics})).await?;
        }
        Ok(())
    }

    /// Ends the run.
    ///
    /// # Errors
    /// If the server does not answer, or refuses.
    pub async fn finish(&self, end: f64) -> anyhow::Result<()> {
        let run = json!({"run_id": self.run_id, "status": "FINISHED", "end_time": milliseconds(end)});
        self.post("runs/update", &run).await.map(|_| ())
    }

    async fn experiment(&self, name: &str) -> anyhow::Result<String> {
        let query = [("experiment_name", name)];
        let query = Url::parse_with_params("http://query/", query)?.query().unwrap_or_default().to_owned();
        let request = self.request(Method::GET, &format!("experiments/get-by-name?{query}"));
        let (status, answer) = self.send(request).await?;
        if status == StatusCode::NOT_FOUND && answer["error_code"] == "RESOURCE_DOES_NOT_EXIST" {
            let made = self.post("experiments/create", &json!({"name": name})).await?;
            return text(&made, "/experiment_id");
        }
        self.accepted(status, &answer)?;
        text(&answer, "/experiment/experiment_id")
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let request = self.request(Method::POST, path).header("content-type", "application/json");
        let (status, answer) = self.send(request.body(body.to_string())).await?;
        self.accepted(status, &answer)?;
        Ok(answer)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}/api/2.0/mlflow/{path}", self.base));
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        match (set("MLFLOW_TRACKING_TOKEN"), set("MLFLOW_TRACKING_USERNAME")) {
            (Some(token), _) => request.bearer_auth(token),
            (None, Some(name)) => request.basic_auth(name, set("MLFLOW_TRACKING_PASSWORD")),
            (None, None) => request,
        }
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<(StatusCode, Value)> {
        let no_answer = || format!("the MLflow server {} does not answer", self.base);
        let response = request.send().await.with_context(no_answer)?;
        let status = response.status();
        let bytes = response.bytes().await.with_context(no_answer)?;
        let answer = serde_json::from_slice(&bytes).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(&bytes);
            Value::String(text.chars().take(SHOWN).collect())
        });
        Ok((status, answer))
    }

    fn accepted(&self, status: StatusCode, answer: &Value) -> anyhow::Result<()> {
        let said = answer["message"].as_str().or(answer.as_str()).unwrap_or("no reason");
        ensure!(status.is_success(), "the MLflow server {} answers {status}: {said}", self.base);
        Ok(())
    }
}

fn text(answer: &Value, pointer: &str) -> anyhow::Result<String> {
    let text = answer.pointer(pointer).and_then(Value::as_str);
    text.map(str::to_owned).with_context(|| format!("the answer has no {pointer}: is this an MLflow server?"))
}

fn milliseconds(seconds: f64) -> i64 {
    (seconds * 1e3) as i64
}
