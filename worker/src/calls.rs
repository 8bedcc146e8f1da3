//! Calls to the master with patience: each is repeated until it has a result, a shutdown comes, or the master
//! has been silent for too long.

use crate::{
    backoff::Backoff,
    client::{CallError, MasterClient},
    error::WorkerError,
    metrics::Metrics,
    pauses::{Pauses, Stop},
    settings::MasterSettings,
};
use bytes::Bytes;
use fl_protocol::{EvaluationJson, TaskBody, UpdateAck, WorkerId};
use rand::rngs::ChaCha8Rng;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tracing::warn;

/// Why work ends without a result.
#[derive(Debug)]
pub(crate) enum Interrupt {
    /// Shutdown was requested.
    Stopped,
    /// The worker cannot go on.
    Failed(WorkerError),
}

impl<E: Into<WorkerError>> From<E> for Interrupt {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// The master's answer to an update.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It counts.
    Accepted(UpdateAck),
    /// It came for the wrong round.
    WrongRound(CallError),
    /// It is a notice, and the update that it names is not kept.
    NoLastUpdate,
    /// It is beyond `MAX_UPDATE_NORM`.
    NormTooLarge(CallError),
}

/// The master's API with retries.
pub(crate) struct Calls {
    client: MasterClient,
    addr: String,
    retry: Retry,
    stop: Stop,
    pauses: Pauses,
    metrics: Arc<Metrics>,
}

impl Calls {
    pub(crate) fn new(
        client: MasterClient,
        settings: &MasterSettings,
        jitter: ChaCha8Rng,
        stop: Stop,
        pauses: Pauses,
        metrics: Arc<Metrics>,
    ) -> Self {
        let give_up = settings.give_up_s.map(Duration::from_secs_f64);
        let retry = Retry { backoff: Backoff::for_calls(jitter), give_up, silent_since: None };
        Self { client, addr: settings.addr.clone(), retry, stop, pauses, metrics }
    }

    /// The client, for calls without patience.
    pub(crate) fn client(&self) -> &MasterClient {
        &self.client
    }

    /// Asks for the next task.
    pub(crate) async fn task(&mut self, worker: &WorkerId) -> Result<TaskBody, Interrupt> {
        let client = self.client.clone();
        self.until_stopped(|| client.task(worker)).await
    }

    /// The newest model.
    pub(crate) async fn global(&mut self) -> Result<Bytes, Interrupt> {
        let client = self.client.clone();
        self.until_stopped(|| client.global()).await
    }

    /// The server's control variate.
    pub(crate) async fn control(&mut self) -> Result<Bytes, Interrupt> {
        let client = self.client.clone();
        self.until_stopped(|| client.control()).await
    }

    /// Hands an update or a notice in. A shutdown lets an upload finish, and ends the waiting for another try.
    pub(crate) async fn update(&mut self, body: &Bytes) -> Result<Verdict, Interrupt> {
        let client = self.client.clone();
        self.repeat(|| async {
            match client.update(body.clone()).await {
                Ok(ack) => Ok(Verdict::Accepted(ack)),
                Err(error) if error.is_no_last_update() => Ok(Verdict::NoLastUpdate),
                Err(error) if error.is_norm_too_large() => Ok(Verdict::NormTooLarge(error)),
                Err(error) if error.is_wrong_round() => Ok(Verdict::WrongRound(error)),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// Hands an evaluation in; gives the error if the master has no use for it.
    pub(crate) async fn evaluation(
        &mut self,
        report: &EvaluationJson,
    ) -> Result<Option<CallError>, Interrupt> {
        let client = self.client.clone();
        self.repeat(|| async {
            match client.evaluation(report).await {
                Ok(_) => Ok(None),
                Err(error) if error.is_transient() => Err(error),
                Err(error) => Ok(Some(error)),
            }
        })
        .await
    }

    /// As [`Self::repeat`], but a shutdown ends it at any time.
    async fn until_stopped<T, F: Future<Output = Result<T, CallError>>>(
        &mut self,
        call: impl FnMut() -> F,
    ) -> Result<T, Interrupt> {
        let stop = self.stop.clone();
        tokio::select! {
            result = self.repeat(call) => result,
            () = stop.wait() => Err(Interrupt::Stopped),
        }
    }

    async fn repeat<T, F: Future<Output = Result<T, CallError>>>(
        &mut self,
        mut call: impl FnMut() -> F,
    ) -> Result<T, Interrupt> {
        loop {
            let error = match call().await {
                Ok(value) => {
                    self.retry.succeeded();
                    self.metrics.reached();
                    return Ok(value);
                }
                Err(error) => error,
            };
            if !error.is_transient() {
                return Err(WorkerError::Refused { error }.into());
            }
            let pause = match self.retry.failed(error.retry_after(), Instant::now()) {
                Next::Pause(pause) => pause,
                Next::GiveUp(silent) => {
                    let (addr, seconds) = (self.addr.clone(), silent.as_secs_f64());
                    return Err(WorkerError::GaveUp { addr, seconds, last: error }.into());
                }
            };
            self.metrics.retries.inc();
            warn!(%error, retry_ms = pause.as_millis() as u64, "trying again");
            self.pauses.wait(pause, &self.stop).await;
            if self.stop.is_set() {
                return Err(Interrupt::Stopped);
            }
        }
    }
}

/// When to try again after a failure.
#[derive(Debug)]
struct Retry {
    backoff: Backoff,
    /// `GIVE_UP_S`.
    give_up: Option<Duration>,
    /// Since when no call has had a result.
    silent_since: Option<Instant>,
}

#[derive(Debug, PartialEq)]
enum Next {
    /// Try again after a pause.
    Pause(Duration),
    /// No call has had a result for so long.
    GiveUp(Duration),
}

impl Retry {
    fn succeeded(&mut self) {
        self.backoff.reset();
        self.silent_since = None;
    }

    fn failed(&mut self, asked: Option<Duration>, now: Instant) -> Next {
        let silent = now.duration_since(*self.silent_since.get_or_insert(now));
        let pause = self.backoff.next(asked);
        match self.give_up {
            Some(limit) if silent >= limit => Next::GiveUp(silent),
            Some(limit) => Next::Pause(pause.min(limit - silent)),
            None => Next::Pause(pause),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn retry(give_up: Option<u64>) -> Retry {
        let backoff = Backoff::for_calls(ChaCha8Rng::seed_from_u64(1));
        Retry { backoff, give_up: give_up.map(Duration::from_secs), silent_since: None }
    }

    #[test]
    fn a_worker_gives_up_when_the_time_is_over_and_not_before() {
        let (start, mut retry) = (Instant::now(), retry(Some(30)));
        let mut now = start;
        let silent = loop {
            match retry.failed(None, now) {
                Next::Pause(pause) => now += pause.max(Duration::from_millis(1)),
                Next::GiveUp(silent) => break silent,
            }
            assert!(now.duration_since(start) < Duration::from_secs(31));
        };
        assert!(silent >= Duration::from_secs(30) && silent < Duration::from_secs(31), "{silent:?}");
    }

    #[test]
    fn an_answer_starts_the_time_anew() {
        let (start, mut retry) = (Instant::now(), retry(Some(30)));
        retry.failed(None, start);
        retry.succeeded();
        assert!(matches!(retry.failed(None, start + Duration::from_secs(60)), Next::Pause(_)));
    }

    #[test]
    fn without_a_limit_it_goes_on() {
        let (start, mut retry) = (Instant::now(), retry(None));
        retry.failed(None, start);
        assert!(matches!(retry.failed(None, start + Duration::from_secs(1_000_000)), Next::Pause(_)));
    }
}
