//! The real binary on state that is damaged, of an older version, or on a volume that is full.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Fixture, Running, body, client, command, config, free_port, ready, refused};
use fl_model::ModelSpec;
use fl_protocol::{ModelLayout, StatusBody, UpdateMeta, update, update::Encoded};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// Runs it to its end.
fn ends(state: &Path, args: &[&str]) -> Output {
    command(free_port(), state).args(args).output().unwrap()
}

fn fails(output: &Output, code: i32, texts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    for text in texts {
        assert!(stderr.contains(text), "{text}: {stderr}");
    }
}

async fn post(url: &str, body: Vec<u8>) -> reqwest::Response {
    let request = client().post(format!("{url}/update")).header("content-type", "application/octet-stream");
    request.body(body).send().await.unwrap()
}

async fn get(url: &str, path: &str) -> bytes::Bytes {
    let response = client().get(format!("{url}{path}")).send().await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    response.bytes().await.unwrap()
}

async fn status(url: &str) -> StatusBody {
    serde_json::from_slice(&get(url, "/status").await).unwrap()
}

/// All files below a folder.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
        } else {
            files.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    files
}

fn damage(dir: &Path, round: u64) {
    let path = dir.join(format!("checkpoint-{round:010}.fl"));
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Six finished rounds and an update for the seventh; gives the models of all rounds.
async fn used(dir: &Path) -> Vec<bytes::Bytes> {
    let f = Fixture::start(config(dir)).await;
    let mut models = vec![f.master.global()];
    for round in 0..6 {
        f.accepted(body(0, round)).await;
        f.accepted(body(1, round)).await;
        models.push(f.master.global());
    }
    f.accepted(body(0, 6)).await;
    f.master.shutdown().await.unwrap();
    models
}

#[tokio::test]
async fn two_damaged_checkpoints_are_refused_and_going_back_must_be_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let models = used(dir.path()).await;
    damage(dir.path(), 6);
    damage(dir.path(), 5);
    let before = contents(dir.path());
    let texts = [
        "checkpoint-0000000006.fl is damaged",
        "checkpoint-0000000005.fl is damaged",
        "journal-0000000004.fl is missing",
        "Rounds 5 to 6 would be lost",
        "fl-master --rollback-to 4",
    ];
    fails(&ends(dir.path(), &[]), 66, &texts);
    fails(&ends(dir.path(), &["--check"]), 66, &texts);
    fails(&ends(dir.path(), &["--rollback-to", "5"]), 66, &["round 5 cannot be restored"]);
    assert_eq!(contents(dir.path()), before, "a refusal changes nothing");

    assert!(ends(dir.path(), &["--rollback-to", "4"]).status.success());
    let archive = dir.path().join("archive-1");
    for (path, content) in &before {
        let name = path.file_name().unwrap();
        let kept =
            [dir.path().join(name), archive.join(name)].into_iter().filter_map(|path| fs::read(path).ok());
        assert!(kept.into_iter().any(|kept| kept == *content), "{} is lost", path.display());
    }
    assert!(ends(dir.path(), &["--check"]).status.success());
    let f = Fixture::start(config(dir.path())).await;
    assert_eq!(f.master.global(), models[4]);
    f.accepted(body(0, 4)).await;
    f.accepted(body(1, 4)).await;
    assert_eq!(f.master.global(), models[5]);
}

#[tokio::test]
async fn one_damaged_checkpoint_is_made_again_exactly() {
    let dir = tempfile::tempdir().unwrap();
    let models = used(dir.path()).await;
    damage(dir.path(), 6);
    let f = Fixture::start(config(dir.path())).await;
    assert_eq!(f.master.global(), models[6]);
    assert_eq!(f.json::<StatusBody>("/status").await.pending_updates, 1);
}

#[tokio::test]
async fn a_damaged_journal_of_the_open_round_is_refused_and_can_be_given_up() {
    let dir = tempfile::tempdir().unwrap();
    used(dir.path()).await;
    let path = dir.path().join("journal-0000000006.fl");
    // A second update knows that the first was on disk.
    let f = Fixture::start({
        let mut config = config(dir.path());
        config.round.min_clients = 3;
        config
    })
    .await;
    f.accepted(body(1, 6)).await;
    f.master.shutdown().await.unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[600] ^= 1;
    fs::write(&path, bytes).unwrap();
    let texts = ["journal-0000000006.fl is damaged", "accepted in round 6 would be lost", "--rollback-to 6"];
    fails(&ends(dir.path(), &["--check"]), 66, &texts);
    assert!(ends(dir.path(), &["--rollback-to", "6"]).status.success());
    let f = Fixture::start(config(dir.path())).await;
    let found: StatusBody = f.json("/status").await;
    assert_eq!((found.global_round, found.pending_updates), (6, 0));
}

/// The model file with its network written as version 1 of specs wrote it.
fn as_version_1(file: &[u8]) -> Vec<u8> {
    let (len, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    let new = r#"\"input\":{\"kind\":\"image\",\"shape\":[1,8,8]},\"task\":{\"type\":\"classification\",\"classes\":10}"#;
    let old = r#"\"input_shape\":[1,8,8],\"num_classes\":10"#;
    let mut header = std::str::from_utf8(header).unwrap().replace(new, old).trim_end().to_owned();
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()
}

/// Files of version 1 are never made again: `tests/fixtures/state-v1`.
#[tokio::test]
async fn state_of_version_1_goes_on_to_the_model_that_version_1_made() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/state-v1");
    let dir = tempfile::tempdir().unwrap();
    for name in fs::read_dir(&fixture).unwrap().map(|entry| entry.unwrap().file_name()) {
        fs::copy(fixture.join(&name), dir.path().join(&name)).unwrap();
    }
    assert!(ends(dir.path(), &["--check"]).status.success());
    let f = Fixture::start(config(dir.path())).await;
    let found: StatusBody = f.json("/status").await;
    assert_eq!((found.global_round, found.pending_updates), (1, 1));
    assert!(f.accepted(fs::read(fixture.join("second-update-of-round-1.bin")).unwrap()).await.aggregated);
    let digest: String =
        Sha256::digest(as_version_1(&f.master.global())).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, fs::read_to_string(fixture.join("model-2.sha256")).unwrap().trim());
    // The newer of two checkpoints is damaged: the journal says that its round was closed.
    f.master.shutdown().await.unwrap();
    damage(dir.path(), 2);
    let f = Fixture::start(config(dir.path())).await;
    assert_eq!(f.json::<StatusBody>("/status").await.global_round, 2);
}

/// A volume of a few megabytes, unmounted at the end.
struct Volume(tempfile::TempDir);

impl Volume {
    /// `None` where mounting is not allowed.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(dir.path());
        mount.output().is_ok_and(|output| output.status.success()).then_some(Self(dir))
    }

    fn grow(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-o", "remount,size=64m"]).arg(self.0.path());
        assert!(mount.status().unwrap().success());
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

const LARGE: [(&str, &str); 2] = [("MODEL", "mlp"), ("MODEL_DIM", "120000")];

fn large_layout() -> ModelLayout {
    ModelSpec::classifier("mlp", &[1, 8, 8], 10, 120_000).unwrap().layout()
}

fn large_body(worker: usize, round: u64) -> Vec<u8> {
    let meta = UpdateMeta {
        worker_id: format!("w{worker}").parse().unwrap(),
        round,
        num_samples: 10,
        loss: None,
        accuracy: None,
        compute_factor: None,
        local_steps: None,
        local_norm: None,
        reuse: None,
        metrics: Default::default(),
    };
    let layout = large_layout();
    let delta = vec![(worker as f32 - 0.7) / (round + 1) as f32 / 1e3; layout.parameters()];
    let tensors: Vec<_> =
        layout.tensors().iter().map(|t| Encoded::F32(&delta[t.offset..t.offset + t.len])).collect();
    update::write(&meta, &layout, &tensors).unwrap()
}

/// Sends a worker's update until it is taken; gives up after a refusal if that is what is waited for.
async fn send(url: &str, worker: usize, round: u64, until_refused: bool) -> bool {
    for _ in 0..1000 {
        let response = post(url, large_body(worker, round)).await;
        match response.status().as_u16() {
            200 => return true,
            503 if until_refused => return false,
            503 => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            other => panic!("{other}: {:?}", response.bytes().await.unwrap()),
        }
    }
    panic!("the update of worker {worker} in round {round} is not taken");
}

#[tokio::test]
async fn a_small_volume_runs_full_restarts_serves_reads_and_goes_on_with_room() {
    let Some(volume) = Volume::mount() else {
        println!("no volume can be mounted here: not tested");
        return;
    };
    let state = volume.0.path().join("state");
    let (port, mut sent) = (free_port(), Vec::new());
    let url = url(port);
    let mut master = Running::spawn(port, &state, &LARGE);
    ready(&url).await;
    'full: for round in 0.. {
        assert!(round < 40, "4 MB do not suffice for that");
        for worker in 0..2 {
            if !send(&url, worker, round, true).await {
                break 'full;
            }
            sent.push((worker, round));
        }
    }
    assert!(sent.len() > 4, "{sent:?}");
    get(&url, "/global").await;
    // A stop on a full disk ends, and a start on one serves what there is.
    assert!(master.terminate().success());
    fs::write(state.join("checkpoint-0000000099.tmp"), b"left by a crash").unwrap();
    let mut master = Running::spawn(port, &state, &LARGE);
    ready(&url).await;
    assert!(!state.join("checkpoint-0000000099.tmp").exists());
    for path in ["/global", "/history", "/metrics", "/healthz", "/readyz"] {
        get(&url, path).await;
    }
    let found = status(&url).await;
    let pending = sent.iter().filter(|(_, round)| *round == found.global_round).count();
    assert_eq!(found.pending_updates, pending as u64, "{sent:?}");
    let next = (pending, found.global_round);
    if post(&url, large_body(next.0, next.1)).await.status() != 200 {
        refused(post(&url, large_body(next.0, next.1)).await, 503, "storage_unavailable").await;
    }
    volume.grow();
    let rounds = found.global_round + 3;
    for round in found.global_round..rounds {
        for worker in 0..2 {
            send(&url, worker, round, false).await;
        }
    }
    let model = get(&url, &format!("/global?min_round={rounds}&wait=20")).await;
    assert!(master.terminate().success());

    let quiet = tempfile::tempdir().unwrap();
    let mut settings = config(quiet.path());
    (settings.model.model, settings.model.model_dim) = ("mlp".into(), 120_000);
    settings.store.durable = false;
    let f = Fixture::start(settings).await;
    for round in 0..rounds {
        f.accepted(large_body(1, round)).await;
        f.accepted(large_body(0, round)).await;
    }
    assert!(f.master.global() == model, "the models differ");
}
