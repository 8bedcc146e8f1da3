//! The task that owns the round. Handlers send it messages and wait for the answer; it does no I/O
//! and no work that takes time.

use crate::{
    federation::model::Global, federation::round::Contribution, federation::round::Decision,
    federation::round::Effect, federation::round::Event, federation::round::OfferId,
    federation::round::Refusal, federation::round::RoundState, service::closing,
    service::events::MasterEvent, service::state::Published, service::state::Shared,
};
use fl_protocol::{HistoryRecord, UpdateAck, WorkerId, WorkerStatus};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info};

/// Messages that may wait; senders wait beyond that.
const QUEUE: usize = 1024;

/// The answer to an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Go on in this round; [`ActorHandle::commit`] or [`ActorHandle::abort`] must follow.
    Admitted(u64),
    /// Not taken, and the round that the master is in.
    Refused(Refusal, u64),
}

#[derive(Debug)]
enum Message {
    Offer {
        worker: WorkerId,
        round: u64,
        reply: oneshot::Sender<Admission>,
    },
    Commit {
        worker: WorkerId,
        contribution: Contribution,
        status: WorkerStatus,
        reply: oneshot::Sender<UpdateAck>,
    },
    Abort {
        worker: WorkerId,
    },
    Ask {
        worker: WorkerId,
        reply: oneshot::Sender<(u64, Decision)>,
    },
    Closed {
        global: Arc<Global>,
        record: HistoryRecord,
    },
}

/// The actor is gone: the master has been shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// A way to talk to the actor.
#[derive(Debug, Clone)]
pub struct ActorHandle(mpsc::Sender<Message>);

/// The actor's end of its queue, until it runs.
#[derive(Debug)]
pub struct Inbox(mpsc::Receiver<Message>);

/// A queue for an actor.
pub fn channel() -> (ActorHandle, Inbox) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (ActorHandle(sender), Inbox(receiver))
}

impl ActorHandle {
    async fn call<T>(&self, message: impl FnOnce(oneshot::Sender<T>) -> Message) -> Result<T, Gone> {
        let (reply, answer) = oneshot::channel();
        self.0.send(message(reply)).await.map_err(|_| Gone)?;
        answer.await.map_err(|_| Gone)
    }

    /// Asks for a place in a round. The answer may take as long as another update's outcome is open.
    ///
    /// # Errors
    /// If the master has been shut down.
    pub async fn offer(&self, worker: WorkerId, round: u64) -> Result<Admission, Gone> {
        self.call(|reply| Message::Offer { worker, round, reply }).await
    }

    /// Reports that an admitted update is durable and in the sum.
    ///
    /// # Errors
    /// If the master has been shut down.
    pub async fn commit(
        &self,
        worker: WorkerId,
        contribution: Contribution,
        status: WorkerStatus,
    ) -> Result<UpdateAck, Gone> {
        self.call(|reply| Message::Commit { worker, contribution, status, reply }).await
    }

    /// Gives an admitted update's place back.
    pub async fn abort(&self, worker: WorkerId) {
        let _ = self.0.send(Message::Abort { worker }).await;
    }

    /// Asks for work.
    ///
    /// # Errors
    /// If the master has been shut down.
    pub async fn ask(&self, worker: WorkerId) -> Result<(u64, Decision), Gone> {
        self.call(|reply| Message::Ask { worker, reply }).await
    }

    /// Reports the next model.
    pub(crate) async fn closed(&self, global: Arc<Global>, record: HistoryRecord) {
        let _ = self.0.send(Message::Closed { global, record }).await;
    }
}

/// Owns the round.
pub(crate) struct Actor {
    pub(crate) state: RoundState,
    pub(crate) shared: Arc<Shared>,
    pub(crate) published: watch::Sender<Published>,
    next_offer: OfferId,
    offers: HashMap<OfferId, oneshot::Sender<Admission>>,
    /// The update that closed the round is answered once the next model is there.
    closer: Option<oneshot::Sender<UpdateAck>>,
}

impl Actor {
    pub(crate) fn new(state: RoundState, shared: Arc<Shared>, published: watch::Sender<Published>) -> Self {
        Self { state, shared, published, next_offer: 0, offers: HashMap::new(), closer: None }
    }

    /// Runs until the shared state's handle is dropped or `stop` resolves.
    pub(crate) async fn run(mut self, inbox: Inbox, stop: impl Future<Output = ()>) {
        let mut inbox = inbox.0;
        tokio::pin!(stop);
        // What a replay left may already suffice to close.
        self.step(Event::Tick);
        loop {
            let now = self.shared.clock.now();
            let wake = self.state.next_wake(now).map(|at| at - now);
            let tick = async {
                match wake {
                    Some(seconds) => tokio::time::sleep(Duration::from_secs_f64(seconds.min(3600.0))).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = &mut stop => return,
                message = inbox.recv() => match message {
                    Some(message) => self.handle(message),
                    None => return,
                },
                () = tick => {
                    self.step(Event::Tick);
                },
            }
        }
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Offer { worker, round, reply } => {
                self.next_offer += 1;
                self.offers.insert(self.next_offer, reply);
                self.step(Event::Offer { id: self.next_offer, worker, round });
            }
            Message::Abort { worker } => {
                self.step(Event::Abort { worker });
            }
            Message::Commit { worker, contribution, status, reply } => {
                self.accept(worker, contribution, status, reply);
            }
            Message::Ask { worker, reply } => {
                let decision = self.state.ask(&worker, self.shared.clock.now());
                let _ = reply.send((self.state.round(), decision));
            }
            Message::Closed { global, record } => self.announce(global, record),
        }
    }

    fn accept(
        &mut self,
        worker: WorkerId,
        contribution: Contribution,
        status: WorkerStatus,
        reply: oneshot::Sender<UpdateAck>,
    ) {
        let round = self.state.round();
        self.shared.metrics.accepted(&worker, &status);
        if let Some(reused) = contribution.reused_bytes {
            self.shared.metrics.reused(reused.saturating_sub(contribution.bytes));
        }
        self.shared.board().saw(worker.clone(), status);
        let closes = self.step(Event::Commit { worker: worker.clone(), contribution });
        let pending_updates = self.state.accepted() as u64;
        self.shared.board().pending_updates = pending_updates;
        self.shared.metrics.pending_updates.set(pending_updates as i64);
        debug!(round, %worker, pending_updates, "update accepted");
        self.shared.tell(MasterEvent::UpdateAccepted { round, worker, pending_updates });
        if closes {
            self.closer = Some(reply);
        } else {
            let _ = reply.send(ack(round, false));
        }
    }

    /// Moves the round on; true if that closes it.
    fn step(&mut self, event: Event) -> bool {
        let now = self.shared.clock.now();
        let mut closes = false;
        for effect in self.state.step(event, now) {
            match effect {
                Effect::Admit(id) => self.answer(id, Admission::Admitted(self.state.round())),
                Effect::Refuse(id, refusal) => {
                    self.answer(id, Admission::Refused(refusal, self.state.round()));
                }
                Effect::Close => {
                    closes = true;
                    tokio::spawn(closing::close(self.shared.clone(), closing::Batch::of(&self.state, now)));
                }
            }
        }
        closes
    }

    fn answer(&mut self, id: OfferId, admission: Admission) {
        if let Some(reply) = self.offers.remove(&id) {
            let _ = reply.send(admission);
        }
    }

    /// The next model is there: shows it, opens its round, answers who waited for it.
    fn announce(&mut self, global: Arc<Global>, record: HistoryRecord) {
        let shared = self.shared.clone();
        let round = global.round;
        info!(
            round,
            participants = record.participants,
            duration_ms = (record.duration_s * 1e3) as u64,
            update_bytes = record.bytes_up,
            "round closed"
        );
        {
            let mut board = shared.board();
            board.pending_updates = 0;
            board.record(record.clone());
        }
        shared.metrics.pending_updates.set(0);
        shared.metrics.global_round.set(round as i64);
        shared.metrics.round_seconds.observe(record.duration_s);
        // The new model is seen before the answers that speak of it.
        let finished = self.state.finishes_with(round);
        self.published.send_replace(Published { global: global.clone(), finished });
        self.step(Event::ModelReady);
        if let Some(closer) = self.closer.take() {
            let _ = closer.send(ack(round, true));
        }
        shared.tell(MasterEvent::RoundClosed { record: record.clone() });
        if let Some(evaluator) = shared.evaluator.get() {
            evaluator.submit(record, &global, finished);
        }
    }
}

fn ack(global_round: u64, aggregated: bool) -> UpdateAck {
    UpdateAck { status: "ok".to_owned(), aggregated, global_round, duplicate: false }
}
