//! Earlier rounds and other forms of the model: made once for all who ask, and bounded in memory.
//!
//! `FL_REPRESENTATION_DIM` makes the model larger (300000 for a release); then the growth counts.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Fixture, Running, body, client, config, free_port, ready, setting};
use std::collections::BTreeMap;

#[tokio::test]
async fn every_reader_of_a_form_gets_the_same_bytes_and_tag() {
    let dir = tempfile::tempdir().unwrap();
    let f = Fixture::start(config(dir.path())).await;
    for round in 0..3 {
        f.accepted(body(0, round)).await;
        f.accepted(body(1, round)).await;
    }
    let paths =
        ["/global?round=1", "/global?round=1&bits=4", "/global?bits=2", "/global?quantizer=f16&round=0"];
    let mut readers = Vec::new();
    for reader in 0..80 {
        let (client, url) = (client(), format!("{}{}", f.url, paths[reader % paths.len()]));
        readers
            .push((reader % paths.len(), tokio::spawn(async move { client.get(url).send().await.unwrap() })));
    }
    let mut seen = BTreeMap::new();
    for (path, reader) in readers {
        let response = reader.await.unwrap();
        assert_eq!(response.status(), 200, "{}", paths[path]);
        let tag = response.headers()["etag"].clone();
        let bytes = response.bytes().await.unwrap();
        let first = seen.entry(path).or_insert_with(|| (tag.clone(), bytes.clone()));
        assert_eq!(*first, (tag, bytes));
    }
    assert_eq!(seen.len(), paths.len());
    // JSON of an earlier round is a form like any other.
    let json = |path: &str| f.client.get(format!("{}{path}", f.url)).header("accept", "application/json");
    let old = json("/global?round=1").send().await.unwrap();
    let tag = old.headers()["etag"].clone();
    let old: fl_protocol::GlobalJson = serde_json::from_slice(&old.bytes().await.unwrap()).unwrap();
    let exact = fl_model::GlobalModel::from_safetensors(&seen[&0].1).unwrap();
    assert_eq!((old.round, &old.weights), (1, &exact.parameters));
    let again = json("/global?round=1").header("if-none-match", &tag).send().await.unwrap();
    assert_eq!(again.status(), 304);
    f.master.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_everything_are_served_or_refused_and_memory_is_bounded() {
    let parameters = setting("FL_REPRESENTATION_DIM", 60_000);
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}");
    let dim = parameters.to_string();
    let settings = [("MODEL", "mlp"), ("MODEL_DIM", dim.as_str()), ("AGG_MIN_CLIENTS", "1")];
    let mut master = Running::spawn(port, dir.path(), &settings);
    ready(&url).await;
    let quiet_mb = master.memory_mb("VmRSS");
    let schemes = ["StocQ", "MSQ_v2", "SDQ", "BetaQ"];
    let mut paths = vec!["/global".to_owned()];
    paths
        .extend(schemes.iter().flat_map(|s| (1..=8).map(move |b| format!("/global?quantizer={s}&bits={b}"))));
    paths.extend((0..100).map(|round| format!("/global?round={}", round + 1)));
    let mut readers = Vec::new();
    for reader in 0..12 {
        let (client, url, paths) = (client(), url.clone(), paths.clone());
        readers.push(tokio::spawn(async move {
            let (mut bytes, mut answers) = (0, BTreeMap::<u16, usize>::new());
            for i in 0..2 * paths.len() {
                let path = &paths[(i * 7 + reader * 11) % paths.len()];
                let json = i % 9 == 0 && !path.contains("quantizer");
                let accept = if json { "application/json" } else { "*/*" };
                let response =
                    client.get(format!("{url}{path}")).header("accept", accept).send().await.unwrap();
                let status = response.status().as_u16();
                assert_eq!(status == 503, response.headers().contains_key("retry-after"), "{path}");
                *answers.entry(status).or_default() += 1;
                bytes += response.bytes().await.unwrap().len();
            }
            (bytes, answers)
        }));
    }
    let (mut bytes, mut answers) = (0, BTreeMap::<u16, usize>::new());
    for reader in readers {
        let (more, counts) = reader.await.unwrap();
        bytes += more;
        counts.into_iter().for_each(|(status, n)| *answers.entry(status).or_default() += n);
    }
    let grown_mb = master.memory_mb("VmHWM") - quiet_mb;
    println!("{parameters} parameters: {bytes} bytes read, answers {answers:?}, grown by {grown_mb:.1} MB");
    assert!(answers.keys().all(|status| [200, 404, 503].contains(status)), "{answers:?}");
    assert!(answers[&200] > 100);
    // The cache, what is being made, and what twelve readers hold.
    let bound_mb = 25.0 + 12.0 * 4.0 * parameters as f64 / 1e6;
    assert!(grown_mb < bound_mb, "{grown_mb:.1} MB, {bound_mb:.1} are allowed");
    assert!(master.terminate().success());
}
