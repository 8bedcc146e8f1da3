//! TLS and mutual TLS between the real master and the real worker, with authorities made here.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use clap::Parser;
use fl_datasets::{DatasetSpec, Part};
use fl_master::Master;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use reqwest::{Certificate, Client, Identity, StatusCode};
use std::{
    fs,
    future::pending,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);
const CALLS: [&str; 7] = ["/", "/global", "/task?worker_id=w", "/status", "/history", "/metrics", "/nothing"];
const PROBES: [&str; 2] = ["/healthz", "/readyz"];

/// An authority that signs certificates.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path
}

/// A master whose certificate is for 127.0.0.1 and signed by `servers`.
async fn master(dir: &Path, servers: &Authority, clients: Option<&Authority>, token: Option<&str>) -> Master {
    let (cert, key) = servers.sign("127.0.0.1");
    let mut args = vec![
        "fl-master".to_owned(),
        "--bind=127.0.0.1:0".to_owned(),
        "--rounds=2".to_owned(),
        "--agg-min-clients=1".to_owned(),
        "--model-dim=2000".to_owned(),
        format!("--state-dir={}", dir.join("state").display()),
        format!("--tls-cert={}", write(dir, "cert.pem", &cert).display()),
        format!("--tls-key={}", write(dir, "key.pem", &key).display()),
    ];
    if let Some(clients) = clients {
        args.push(format!("--tls-client-ca={}", write(dir, "client-ca.pem", &clients.pem).display()));
    }
    args.extend(token.map(|token| format!("--fl-token={token}")));
    Master::start(fl_master::Args::parse_from(args).check().unwrap(), None).await.unwrap()
}

/// A client that trusts `servers` and shows a certificate of `own`.
fn client(servers: &Authority, own: Option<&Authority>) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let trusted = Certificate::from_pem(servers.pem.as_bytes()).unwrap();
    let mut builder = Client::builder().tls_certs_only([trusted]);
    if let Some(own) = own {
        let (cert, key) = own.sign("worker");
        builder = builder.identity(Identity::from_pem(format!("{cert}{key}").as_bytes()).unwrap());
    }
    builder.build().unwrap()
}

async fn status(client: &Client, master: &Master, path: &str) -> Result<StatusCode, reqwest::Error> {
    let response = client.get(format!("https://{}{path}", master.local_addr())).send().await?;
    Ok(response.status())
}

/// Runs a worker until the training is over, and gives its rounds.
async fn train(master: &Master, dir: &Path, servers: &Authority, extra: &[String]) -> Result<u64, String> {
    let ca = write(dir, "ca.pem", &servers.pem);
    let args = [
        "fl-worker".to_owned(),
        format!("--master-addr=https://{}", master.local_addr()),
        "--worker-id=w".to_owned(),
        "--mem-mb=0".to_owned(),
        "--give-up-s=0.5".to_owned(),
        format!("--ca-cert={}", ca.display()),
    ];
    let config = fl_worker::Args::parse_from(args.iter().chain(extra)).check().unwrap();
    let data = Arc::new(fl_datasets::load(&DatasetSpec::Digits, None, Part::Train).unwrap());
    let ended = timeout(PATIENCE, fl_worker::run(config, Some(data), pending(), None)).await.unwrap();
    ended.map(|summary| summary.rounds).map_err(|error| error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_over_tls_opens_and_its_lack_is_401() {
    let dir = tempfile::tempdir().unwrap();
    let servers = Authority::new("servers");
    let master = master(dir.path(), &servers, None, Some("s3cret")).await;
    let plain = client(&servers, None);
    for path in CALLS {
        assert_eq!(status(&plain, &master, path).await.unwrap(), 401, "{path}");
    }
    for path in PROBES {
        assert_eq!(status(&plain, &master, path).await.unwrap(), 200, "{path}");
    }
    let unknown = client(&Authority::new("somebody else"), None);
    assert!(status(&unknown, &master, "/healthz").await.is_err(), "the client does not trust this master");
    let untrusted = train(&master, dir.path(), &Authority::new("somebody else"), &[]).await.unwrap_err();
    assert!(untrusted.contains("certificate"), "{untrusted}");
    let wrong = train(&master, dir.path(), &servers, &["--fl-token=guess".to_owned()]).await.unwrap_err();
    assert!(wrong.contains("FL_TOKEN"), "{wrong}");
    let rounds = train(&master, dir.path(), &servers, &["--fl-token=s3cret".to_owned()]).await;
    assert_eq!(rounds, Ok(2));
    master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_of_another_authority_ends_the_handshake() {
    let dir = tempfile::tempdir().unwrap();
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let other = Authority::new("clients");
    let master = master(dir.path(), &servers, Some(&clients), None).await;
    let (good, bad, none) =
        (client(&servers, Some(&clients)), client(&servers, Some(&other)), client(&servers, None));
    for path in CALLS {
        assert!(status(&bad, &master, path).await.is_err(), "{path}");
        assert_eq!(status(&none, &master, path).await.unwrap(), 401, "{path}");
    }
    assert_eq!(status(&good, &master, "/status").await.unwrap(), 200);
    // A kubelet has no certificate; one of another authority is refused before any request is read.
    for path in PROBES {
        assert_eq!(status(&none, &master, path).await.unwrap(), 200, "{path}");
        assert!(status(&bad, &master, path).await.is_err(), "{path}");
    }
    let own = |authority: &Authority, name: &str| {
        let (cert, key) = authority.sign("worker");
        vec![format!("--client-cert={}", write(dir.path(), name, &format!("{cert}{key}")).display())]
    };
    let refused = train(&master, dir.path(), &servers, &own(&other, "other.pem")).await.unwrap_err();
    assert!(refused.contains("does not answer"), "{refused}");
    assert_eq!(train(&master, dir.path(), &servers, &own(&clients, "own.pem")).await, Ok(2));
    master.shutdown().await.unwrap();
}
