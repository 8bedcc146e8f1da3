//! Places of updates that come to nothing, in a whole master whose only decoding thread is held: what was admitted
//! stays on its way for as long as the test needs.

use super::Master;
use crate::{
    federation::round::Decision,
    service::handle::{Admission, Place},
    settings::Config,
};
use fl_protocol::{TaskAction, TaskBody, UpdateAck, UpdateMeta, update, update::Encoded};
use futures_util::FutureExt;
use reqwest::Client;
use std::{sync::mpsc, time::Duration};
use tokio::{
    task::{JoinHandle, yield_now},
    time::timeout,
};

/// What would never happen has not happened after so long.
const PATIENCE: Duration = Duration::from_secs(50);

struct Held {
    master: Master,
    client: Client,
    url: String,
    /// Lets the decoding thread go.
    release: mpsc::Sender<()>,
}

impl Held {
    /// One update closes a round.
    async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = Config { bind: ([127, 0, 0, 1], 0).into(), ..Config::default() };
        config.model.model = "softmax".into();
        config.model.eval_every = 0;
        config.store.durable = false;
        config.round.min_clients = 1;
        config.limits.decode_threads = 1;
        let master = Master::start(config, None).await.unwrap();
        let url = format!("http://{}", master.local_addr());
        let (release, held) = mpsc::channel();
        let job = master.job.clone();
        tokio::spawn(async move { job.host.pool.run_always(move || held.recv().is_ok()).await.is_ok() });
        Self { master, client: Client::new(), url, release }
    }

    /// Sends an update of `worker` whose values are all `value`, and gives its status.
    fn post(&self, worker: &str, value: f32) -> JoinHandle<(u16, Option<UpdateAck>)> {
        let meta = UpdateMeta {
            worker_id: worker.parse().unwrap(),
            round: 0,
            num_samples: 1,
            loss: None,
            accuracy: None,
            compute_factor: None,
            local_steps: None,
            local_norm: None,
            reuse: None,
            metrics: Default::default(),
        };
        let layout = self.master.job.core.layout();
        let values = vec![value; layout.parameters()];
        let tensors: Vec<_> =
            layout.tensors().iter().map(|t| Encoded::F32(&values[t.offset..t.offset + t.len])).collect();
        let body = update::write(&meta, layout, &tensors).unwrap();
        let request = self.client.post(format!("{}/update", self.url));
        let sent = request.header("content-type", "application/octet-stream").body(body).send();
        tokio::spawn(async move {
            let answer = sent.await.unwrap();
            let (status, body) = (answer.status().as_u16(), answer.bytes().await.unwrap());
            (status, serde_json::from_slice(&body).ok())
        })
    }

    fn poll(&self, worker: &str) -> JoinHandle<TaskBody> {
        let sent = self.client.get(format!("{}/task?worker_id={worker}&wait=60", self.url)).send();
        tokio::spawn(
            async move { serde_json::from_slice(&sent.await.unwrap().bytes().await.unwrap()).unwrap() },
        )
    }

    /// Until the owner of the round has told `worker` to wait.
    async fn until_it_waits(&self, worker: &str) {
        let is_known = || {
            let later = self.master.job.host.clock.now() + 100.0;
            let waiting = self.master.job.view().waiting(later, 1, false).unwrap();
            waiting.missing.iter().any(|missing| missing.worker == worker)
        };
        while !is_known() {
            yield_now().await;
        }
    }

    async fn place(&self, worker: &str) -> Place {
        let offer = self.master.job.actor.offer(worker.parse().unwrap(), 0);
        match timeout(PATIENCE, offer).await.expect("there is a place").unwrap() {
            Admission::Admitted(place) => place,
            Admission::Refused(refused) => panic!("{refused:?}"),
        }
    }

    /// Until a worker that asks for work is told that nobody else is needed: the round's only place is taken.
    async fn until_taken(&self) {
        let ask = || self.master.job.actor.ask("watcher".parse().unwrap());
        while ask().await.unwrap().1 != Decision::Wait {
            yield_now().await;
        }
    }
}

#[tokio::test]
async fn an_update_that_turns_out_bad_wakes_who_waits_for_work() {
    let held = Held::start().await;
    let bad = held.post("bad", f32::NAN);
    held.until_taken().await;
    let waiting = held.poll("good");
    held.until_it_waits("good").await;
    held.release.send(()).unwrap();
    assert_eq!(bad.await.unwrap().0, 422);
    let task = timeout(PATIENCE, waiting).await.expect("it is woken").unwrap();
    assert_eq!(task.action, TaskAction::Train);
    assert_eq!(held.post("good", 0.01).await.unwrap().1.map(|ack| ack.aggregated), Some(true));
}

#[tokio::test]
async fn an_offer_whose_request_is_gone_while_it_waits_holds_up_nobody() {
    let held = Held::start().await;
    let bad = held.post("bad", f32::NAN);
    held.until_taken().await;
    let mut gone = Box::pin(held.master.job.actor.offer("gone".parse().unwrap(), 0));
    assert!(gone.as_mut().now_or_never().is_none(), "it waits for the outcome of the other");
    // The owner of the round has heard of it before it hears of anything later.
    held.until_taken().await;
    drop(gone);
    held.release.send(()).unwrap();
    assert_eq!(bad.await.unwrap().0, 422);
    drop(held.place("next").await);
    let ack = held.post("good", 0.01).await.unwrap().1.unwrap();
    assert!(ack.aggregated);
    held.master.shutdown().await.unwrap();
}
