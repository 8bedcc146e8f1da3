//! The HTTP contract, against a real master on a real port.

use clap::Parser;
use fl_master::{Args, Master};
use fl_protocol::{
    ErrorBody, ErrorCode, GlobalJson, ModelLayout, StatusBody, TaskAction, TaskBody, UpdateAck, UpdateMeta,
    update::{self, Encoded},
};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header};
use serde::de::DeserializeOwned;
use std::path::Path;
use tempfile::TempDir;

struct Rig {
    master: Master,
    http: Client,
    base: String,
    layout: ModelLayout,
    dir: TempDir,
}

async fn start_in(dir: TempDir, extra: &[&str]) -> Rig {
    let state = format!("--state-dir={}", dir.path().display());
    let base = ["fl-master", "--bind=127.0.0.1:0", "--model=softmax", "--eval-every=0", &state];
    let config = Args::parse_from(base.iter().chain(extra)).check().unwrap();
    let master = Master::start(config, None).await.unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = Client::builder().tls_certs_only([]).build().unwrap();
    let base = format!("http://{}", master.local_addr());
    let layout = ModelLayout::new([("1.weight".into(), vec![10, 64]), ("1.bias".into(), vec![10])]);
    Rig { master, http, base, layout, dir }
}

async fn start(extra: &[&str]) -> Rig {
    start_in(tempfile::tempdir().unwrap(), extra).await
}

impl Rig {
    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    async fn post(&self, content_type: &str, body: Vec<u8>) -> Response {
        let request = self.request(Method::POST, "/update").header(header::CONTENT_TYPE, content_type);
        request.body(body).send().await.unwrap()
    }

    async fn send(&self, body: Vec<u8>) -> Response {
        self.post("application/octet-stream", body).await
    }

    async fn status(&self) -> StatusBody {
        json(self.get("/status").await).await
    }

    fn container(&self, worker: &str, round: u64, num_samples: u64, value: f32) -> Vec<u8> {
        let values = vec![value; self.layout.parameters()];
        let meta = UpdateMeta {
            worker_id: worker.parse().unwrap(),
            round,
            num_samples,
            loss: Some(1.0),
            accuracy: None,
            compute_factor: None,
            local_steps: None,
        };
        update::write(&meta, &self.layout, &[Encoded::F32(&values[..640]), Encoded::F32(&values[640..])])
            .unwrap()
    }

    async fn weights(&self) -> GlobalJson {
        let request = self.request(Method::GET, "/global").header(header::ACCEPT, "application/json");
        json(request.send().await.unwrap()).await
    }
}

async fn json<T: DeserializeOwned>(response: Response) -> T {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

async fn refused(response: Response, code: ErrorCode) {
    let status = response.status().as_u16();
    let body: ErrorBody = json(response).await;
    assert_eq!(
        (body.code, status, body.status.as_str()),
        (code, code.http_status(), "error"),
        "{}",
        body.msg
    );
}

#[tokio::test]
async fn a_round_averages_both_formats_by_their_samples() {
    let rig = start(&[]).await;
    let before = rig.weights().await;
    let ack: UpdateAck = json(rig.send(rig.container("a", 0, 100, 0.25)).await).await;
    assert_eq!((ack.aggregated, ack.global_round, ack.duplicate), (false, 0, false));
    let again: UpdateAck = json(rig.send(rig.container("a", 0, 100, 0.25)).await).await;
    assert!(again.duplicate, "a retry counts once");
    assert_eq!(rig.status().await.pending_updates, 1);
    let delta = vec!["-0.75"; 650].join(",");
    let body = format!(
        r#"{{"worker_id":"b","round":0,"num_samples":300,"loss":0.5,"delta":[{delta}],"compute_factor":1.5}}"#
    );
    let ack: UpdateAck = json(rig.post("application/json", body.into_bytes()).await).await;
    assert_eq!((ack.aggregated, ack.global_round), (true, 1));
    let after = rig.weights().await;
    assert_eq!(after.round, 1);
    for (new, old) in after.weights.iter().zip(&before.weights) {
        assert!((new - (old - 0.5)).abs() < 1e-6);
    }
    let status = rig.status().await;
    assert_eq!((status.global_round, status.pending_updates), (1, 0));
    assert_eq!(status.workers["b"].num_samples, 300);
    let metrics = rig.get("/metrics").await.text().await.unwrap();
    for line in
        ["fl_global_round 1", "fl_worker_num_samples{worker=\"a\"} 100", "fl_worker_loss{worker=\"b\"} 0.5"]
    {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    let late = rig.send(rig.container("c", 0, 100, 1.0)).await;
    refused(late, ErrorCode::StaleRound).await;
    rig.master.shutdown().await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_changes_nothing() {
    let rig = start(&[]).await;
    let before = rig.weights().await;
    let good = rig.container("a", 0, 100, 0.5);
    refused(rig.send(good[..good.len() - 5].to_vec()).await, ErrorCode::Malformed).await;
    refused(rig.send(Vec::new()).await, ErrorCode::Malformed).await;
    refused(rig.send(rig.container("a", 0, 100, f32::NAN)).await, ErrorCode::NonFinite).await;
    refused(rig.send(rig.container("a", 0, 0, 0.5)).await, ErrorCode::BadNumSamples).await;
    refused(rig.send(rig.container("a", 5, 100, 0.5)).await, ErrorCode::FutureRound).await;
    refused(rig.send(vec![0; 8 << 20]).await, ErrorCode::TooLarge).await;
    refused(rig.post("text/plain", good.clone()).await, ErrorCode::UnsupportedMediaType).await;
    refused(rig.post("application/json", b"{\"round\":".to_vec()).await, ErrorCode::Malformed).await;
    let short = br#"{"worker_id":"a","round":0,"num_samples":5,"delta":[1.0,2.0]}"#.to_vec();
    refused(rig.post("application/json", short).await, ErrorCode::WrongTensors).await;
    let other = ModelLayout::new([("9.weight".into(), vec![10, 64]), ("1.bias".into(), vec![10])]);
    let rig_other = Rig { layout: other, ..rig };
    refused(rig_other.send(rig_other.container("a", 0, 100, 0.5)).await, ErrorCode::WrongTensors).await;
    let rig = rig_other;
    refused(rig.get("/nowhere").await, ErrorCode::NotFound).await;
    refused(rig.request(Method::DELETE, "/global").send().await.unwrap(), ErrorCode::MethodNotAllowed).await;
    refused(rig.get("/global?round=99").await, ErrorCode::RoundNotKept).await;
    refused(rig.get("/global?round=x").await, ErrorCode::Malformed).await;
    refused(rig.get("/task?worker_id=a%2Fb").await, ErrorCode::Malformed).await;
    assert_eq!(rig.weights().await, before);
    let status = rig.status().await;
    assert_eq!((status.global_round, status.pending_updates), (0, 0));
    assert_eq!(status.rejected_updates["non_finite"], 1);
    rig.master.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_model_is_served_as_a_file() {
    let rig = start(&[]).await;
    let response = rig.get("/global").await;
    let head = response.headers().clone();
    assert_eq!(head["content-disposition"], "attachment; filename=\"global-round-0.safetensors\"");
    assert_eq!(
        (&head["fl-round"], &head["content-type"]),
        (&"0".parse().unwrap(), &"application/octet-stream".parse().unwrap())
    );
    let file = response.bytes().await.unwrap();
    assert!(fl_model::GlobalModel::from_safetensors(&file).is_ok());
    let etag = head["etag"].to_str().unwrap();
    let cached =
        rig.request(Method::GET, "/global").header(header::IF_NONE_MATCH, etag).send().await.unwrap();
    assert_eq!(cached.status(), StatusCode::NOT_MODIFIED);
    let part = rig.request(Method::GET, "/global").header(header::RANGE, "bytes=8-15").send().await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes().await.unwrap(), file.slice(8..16));
    let head = rig.request(Method::HEAD, "/global").send().await.unwrap();
    assert_eq!(head.headers()["content-length"].to_str().unwrap(), file.len().to_string());
    let waited = rig.get("/global?min_round=1&wait=0.05").await;
    assert_eq!(waited.status(), StatusCode::NOT_MODIFIED);
    rig.master.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_long_poll_ends_with_the_next_round() {
    let rig = start(&["--agg-min-clients=1", "--rounds=1"]).await;
    let task: TaskBody = json(rig.get("/task?worker_id=a").await).await;
    assert_eq!((task.action, task.round), (TaskAction::Train, 0));
    let waiting = rig.request(Method::GET, "/global?min_round=1&wait=30").send();
    let (waited, posted) = tokio::join!(waiting, rig.send(rig.container("a", 0, 1, 0.5)));
    assert!(json::<UpdateAck>(posted).await.aggregated);
    assert_eq!(waited.unwrap().headers()["fl-round"], "1");
    let task: TaskBody = json(rig.get("/task?worker_id=a").await).await;
    assert_eq!(task.action, TaskAction::Stop);
    rig.master.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_token_guards_everything_but_the_probes() {
    let rig = start(&["--fl-token=secret"]).await;
    for path in ["/global", "/status", "/history", "/metrics", "/task?worker_id=a"] {
        refused(rig.get(path).await, ErrorCode::Unauthorized).await;
    }
    for path in ["/healthz", "/readyz"] {
        assert_eq!(rig.get(path).await.status(), StatusCode::OK);
    }
    let allowed = rig.request(Method::GET, "/status").bearer_auth("secret").send().await.unwrap();
    assert_eq!(allowed.status(), StatusCode::OK);
    rig.master.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_restart_goes_on_with_the_same_round() {
    let rig = start(&[]).await;
    rig.send(rig.container("a", 0, 100, 0.25)).await;
    rig.send(rig.container("b", 0, 100, 0.75)).await;
    rig.send(rig.container("a", 1, 100, 0.125)).await;
    let expected = rig.weights().await;
    let Rig { master, dir, .. } = rig;
    master.shutdown().await.unwrap();
    let rig = start_in(dir, &[]).await;
    assert_eq!(rig.weights().await, expected);
    assert_eq!(rig.status().await.pending_updates, 1);
    let again: UpdateAck = json(rig.send(rig.container("a", 1, 100, 0.125)).await).await;
    assert!(again.duplicate);
    let ack: UpdateAck = json(rig.send(rig.container("b", 1, 100, 0.125)).await).await;
    assert_eq!((ack.aggregated, ack.global_round), (true, 2));
    rig.master.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_order_of_arrival_does_not_matter() {
    let mut models = Vec::new();
    for order in [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]] {
        let rig = start(&["--agg-min-clients=4"]).await;
        for i in order {
            let value = [0.1, -3.7e-5, 12.25, 1.0 / 3.0][i];
            rig.send(rig.container(&format!("w{i}"), 0, 17 * (i as u64 + 1), value)).await;
        }
        models.push(rig.get("/global").await.bytes().await.unwrap());
        rig.master.shutdown().await.unwrap();
    }
    assert!(models.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test]
async fn state_of_another_model_is_refused_by_name() {
    let rig = start(&[]).await;
    let Rig { master, dir, .. } = rig;
    master.shutdown().await.unwrap();
    let error = other_model(dir.path()).await;
    assert!(error.contains("STATE_DIR"), "{error}");
}

async fn other_model(dir: &Path) -> String {
    let state = format!("--state-dir={}", dir.display());
    let args = ["fl-master", "--bind=127.0.0.1:0", "--model=mlp", "--model-dim=2000", &state];
    let config = Args::parse_from(args).check().unwrap();
    format!("{:#}", Master::start(config, None).await.unwrap_err())
}
