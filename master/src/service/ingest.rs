//! The way of an update: checked, admitted, added, made durable, acknowledged.
//!
//! It runs in a task of its own: a client that hangs up half-way cannot leave a half-done update.

use super::{handle::Admission, job::Job, pool::PoolError};
use crate::{
    federation::{Added, intake::Rejection, round::Refusal},
    http::server::body::Received,
    store::{Record, RecordMeta},
};
use bytes::Bytes;
use fl_protocol::{ErrorCode, UpdateAck, UpdateJson, UpdateMeta, WorkerStatus, update};
use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long an update waits for the outcome of others that may close the round without it.
const PATIENCE: Duration = Duration::from_secs(60);

/// The two formats of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An update container.
    Container,
    /// The predecessor's JSON.
    Json,
}

/// A refused update: by whom it was sent, if that could be read, and why it is refused.
#[derive(Debug)]
pub struct Refused {
    /// Who sent it.
    pub worker: Option<fl_protocol::WorkerId>,
    /// Why.
    pub rejection: Rejection,
}

/// Takes an update in.
///
/// # Errors
/// Why it is refused; nothing has changed then.
pub async fn ingest(job: Arc<Job>, format: Format, body: Received, ip: IpAddr) -> Result<UpdateAck, Refused> {
    let task = tokio::spawn(async move {
        let mut worker = None;
        let result = take_in(&job, format, &body.bytes, ip, &mut worker).await;
        // The memory's permit goes with the body, only now.
        drop(body);
        result.map_err(|rejection| Refused { worker, rejection })
    });
    task.await.unwrap_or_else(|_| {
        Err(Refused { worker: None, rejection: Rejection::new(ErrorCode::Internal, "an internal fault") })
    })
}

async fn take_in(
    job: &Arc<Job>,
    format: Format,
    body: &Bytes,
    ip: IpAddr,
    worker: &mut Option<fl_protocol::WorkerId>,
) -> Result<UpdateAck, Rejection> {
    let wire_bytes = body.len() as u64;
    let body = match format {
        Format::Container => body.clone(),
        Format::Json => container(job, body.clone()).await?,
    };
    let meta = update::peek_meta(&body)?;
    *worker = Some(meta.worker_id.clone());
    if job.limiter.is_exhausted(ip, &meta.worker_id) {
        return Err(Rejection::new(
            ErrorCode::RateLimited,
            format!("too many updates of {} were refused: wait before the next one", meta.worker_id),
        ));
    }
    if job.storage_is_failing() {
        return Err(storage_unavailable());
    }
    let offer = tokio::time::timeout(PATIENCE, job.actor.offer(meta.worker_id.clone(), meta.round));
    let place = match offer.await.map_err(|_| undecided())?.map_err(|_| draining())? {
        Admission::Admitted(place) => place,
        Admission::Refused(refusal, global_round) => return refuse(job, &meta, refusal, global_round),
    };
    let received =
        RecordMeta { ip: ip.to_string(), received_ts: job.clock.now(), wire_bytes, ..RecordMeta::default() };
    let added = admitted(job, body, &received, place.round).await?;
    let status = worker_status(&added.meta, &received);
    place.commit(added.contribution, status).await.map_err(|_| draining())
}

/// Adds an admitted update and makes it durable, or leaves no trace of it.
async fn admitted(
    job: &Arc<Job>,
    body: Bytes,
    received: &RecordMeta,
    round: u64,
) -> Result<Added, Rejection> {
    let (adding, bytes, wire_bytes) = (job.clone(), body.clone(), received.wire_bytes);
    let add = move || {
        let started = Instant::now();
        let result = adding.core.add(&bytes, wire_bytes);
        adding.metrics.decode_seconds.observe(started.elapsed().as_secs_f64());
        result
    };
    let added = job.pool.run(add).await.map_err(pool_rejection)??;
    if append(job, round, &added, received, &body).await {
        job.core.confirm(&added.meta, &body);
        return Ok(added);
    }
    let removing = job.clone();
    // The place is given back only after this: a round must not close with half an update in its sum.
    let _ = job.pool.run_always(move || removing.core.remove(&body)).await;
    Err(storage_unavailable())
}

/// Whether the update is on disk.
async fn append(job: &Job, round: u64, added: &Added, received: &RecordMeta, body: &Bytes) -> bool {
    let Some(durable) = &job.durable else { return true };
    let meta = received.clone().with_clip(added.clip);
    let record = Record::Update { meta, body: body.clone() };
    matches!(durable.journal.append(round, record).await, Ok(Ok(())))
}

/// The container of a JSON update: from here on both formats take one path.
async fn container(job: &Arc<Job>, json: Bytes) -> Result<Bytes, Rejection> {
    let converting = job.clone();
    let convert = move || -> Result<Bytes, Rejection> {
        let update: UpdateJson = serde_json::from_slice(&json).map_err(|error| {
            Rejection::new(ErrorCode::Malformed, format!("the body is not the JSON of an update: {error}"))
        })?;
        Ok(update::from_json(&update, converting.core.layout())?.into())
    };
    job.pool.run(convert).await.map_err(pool_rejection)?
}

fn refuse(job: &Job, meta: &UpdateMeta, refusal: Refusal, global_round: u64) -> Result<UpdateAck, Rejection> {
    let round = meta.round;
    match refusal {
        Refusal::Duplicate => {
            job.metrics.duplicates.inc();
            Ok(UpdateAck {
                status: "ok".to_owned(),
                aggregated: round < global_round,
                global_round,
                duplicate: true,
            })
        }
        Refusal::Stale if round == global_round => {
            Err(Rejection::new(ErrorCode::StaleRound, "the training is over: no update is needed any more"))
        }
        Refusal::Stale => Err(Rejection::new(
            ErrorCode::StaleRound,
            format!("round {round} is over: train from the model of round {global_round}"),
        )),
        Refusal::Future => Err(Rejection::new(
            ErrorCode::FutureRound,
            format!("round {round} has not begun: the model of round {global_round} is the newest"),
        )),
    }
}

/// What is shown of a worker after an accepted update.
pub(super) fn worker_status(meta: &UpdateMeta, received: &RecordMeta) -> WorkerStatus {
    WorkerStatus {
        ip: received.ip.clone(),
        round: meta.round,
        num_samples: meta.num_samples,
        loss: meta.loss,
        compute_factor: meta.compute_factor,
        last_update_ts: received.received_ts,
        bytes: received.wire_bytes,
    }
}

fn pool_rejection(error: PoolError) -> Rejection {
    match error {
        PoolError::Busy => {
            Rejection::new(ErrorCode::Overloaded, "too many updates are waiting: try again later")
        }
        PoolError::Panicked => Rejection::new(ErrorCode::Internal, "an internal fault"),
    }
}

fn storage_unavailable() -> Rejection {
    Rejection::new(ErrorCode::StorageUnavailable, "the update cannot be made durable now: try again later")
}

fn undecided() -> Rejection {
    Rejection::new(ErrorCode::Overloaded, "the round is still being closed: try again later")
}

fn draining() -> Rejection {
    Rejection::new(ErrorCode::Draining, "the master is shutting down: try again later")
}
