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
        self.call(|reply| Message::Offer { worker, round, reply }).await
    }

    /// The place of `worker` in the open round, for the answer to its offer. An answer that nobody takes is
    /// dropped with it, even one that was sent before the request was gone.
    pub(super) fn place(&self, worker: WorkerId, round: u64) -> Place {
        Place { handle: self.clone(), worker: Some(worker), round }
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn worker() -> WorkerId {
        "w".parse().unwrap()
    }

    fn is_given_back(inbox: &mut Inbox) -> bool {
        matches!(inbox.0.try_recv(), Ok(Message::Abort { worker: of }) if of == worker())
    }

    #[tokio::test]
    async fn a_place_is_given_back_if_its_request_is_gone_before_or_after_the_answer() {
        for answered_first in [false, true] {
            let (handle, mut inbox) = channel();
            let mut offer = Box::pin(handle.offer(worker(), 0));
            assert!(offer.as_mut().now_or_never().is_none());
            let Ok(Message::Offer { reply, .. }) = inbox.0.try_recv() else { panic!("there is an offer") };
            let answer = Admission::Admitted(handle.place(worker(), 0));
            if answered_first {
                reply.send(answer).unwrap();
                assert!(inbox.0.try_recv().is_err(), "it is not lost yet");
                drop(offer);
            } else {
                drop(offer);
                drop(reply.send(answer));
            }
            assert!(is_given_back(&mut inbox), "answered first: {answered_first}");
        }
    }

    #[tokio::test]
    async fn a_place_is_given_back_even_if_the_queue_is_full() {
        let (handle, mut inbox) = channel();
        let place = handle.place(worker(), 0);
        for _ in 0..QUEUE {
            handle.0.try_send(Message::Abort { worker: "other".parse().unwrap() }).unwrap();
        }
        drop(place);
        for _ in 0..QUEUE {
            inbox.0.recv().await.unwrap();
        }
        assert!(matches!(inbox.0.recv().await, Some(Message::Abort { worker: of }) if of == worker()));
    }

    #[tokio::test]
    async fn a_committed_place_is_not_given_back() {
        let (handle, mut inbox) = channel();
        let contribution = Contribution {
            num_samples: 1,
            local_norm: 1.0,
            norm: 0.0,
            base: 0,
            loss: None,
            bytes: 1,
            reused_bytes: None,
            metrics: Default::default(),
        };
        let status = WorkerStatus {
            ip: "::1".into(),
            round: 0,
            num_samples: 1,
            loss: None,
            compute_factor: None,
            last_update_ts: 0.0,
            bytes: 1,
        };
        let mut commit = Box::pin(handle.place(worker(), 0).commit(contribution, status));
        assert!(commit.as_mut().now_or_never().is_none());
        drop(commit);
        assert!(matches!(inbox.0.try_recv(), Ok(Message::Commit { .. })));
        assert!(inbox.0.try_recv().is_err());
    }
}
