//! The interface to the task that owns the round.

use crate::federation::{
    Global,
    round::{Contribution, Decision, Refusal},
};
use fl_protocol::{HistoryRecord, UpdateAck, WorkerId, WorkerStatus};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

/// Messages that may wait; senders wait beyond that.
const QUEUE: usize = 1024;

/// The outcome of an offer.
#[derive(Debug)]
pub enum Admission {
    /// Go on in this round.
    Admitted(Place),
    /// Not taken.
    Refused(Refused),
}

/// Why an offer is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// The reason.
    pub refusal: Refusal,
    /// The round that the master is in.
    pub global_round: u64,
    /// Of a duplicate: whether the update is part of a model that is out.
    pub is_out: bool,
}

/// A message to the owner of the round.
#[derive(Debug)]
pub(super) enum Message {
    Offer {
        worker: WorkerId,
        round: u64,
        reply: oneshot::Sender<Answer>,
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

/// How an offer was decided, and the round that the master is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Admitted(u64),
    Refused(Refused),
}

/// The actor is gone: the master has been shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// A way to talk to the actor.
#[derive(Debug, Clone)]
pub struct ActorHandle(mpsc::Sender<Message>);

/// An admitted update's place in the open round. Dropping it frees the place, so that a request that fails or
/// panics half-way does not block other workers.
#[derive(Debug)]
pub struct Place {
    handle: ActorHandle,
    /// `None` once the update is committed.
    worker: Option<WorkerId>,
    /// The open round.
    pub round: u64,
}

impl Place {
    /// Reports that the update is durable and in the sum.
    ///
    /// # Errors
    /// If the master has been shut down.
    pub async fn commit(
        mut self,
        contribution: Contribution,
        status: WorkerStatus,
    ) -> Result<UpdateAck, Gone> {
        let Some(worker) = self.worker.take() else { return Err(Gone) };
        self.handle.call(|reply| Message::Commit { worker, contribution, status, reply }).await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(worker) = self.worker.take() else { return };
        let queue = self.handle.0.clone();
        // An error says that the master is shut down: there is no round to hold up.
        if let Err(mpsc::error::TrySendError::Full(message)) = queue.try_send(Message::Abort { worker })
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move {
                let _ = queue.send(message).await;
            });
        }
    }
}

/// The actor's end of its queue, until it runs.
#[derive(Debug)]
pub struct Inbox(pub(super) mpsc::Receiver<Message>);

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
        let answer = self.call(|reply| Message::Offer { worker: worker.clone(), round, reply }).await?;
        Ok(match answer {
            Answer::Admitted(round) => {
                Admission::Admitted(Place { handle: self.clone(), worker: Some(worker), round })
            }
            Answer::Refused(refused) => Admission::Refused(refused),
        })
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
