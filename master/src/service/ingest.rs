//! The way of an update: checked, admitted, added, made durable, acknowledged.
//!
//! It runs in a task of its own: a client that hangs up half-way cannot leave a half-done update.

use super::{
    handle::{self, Admission},
    job::Job,
    pool::PoolError,
};
use crate::{
    federation::{Added, intake::Rejection, round::Refusal},
    store::{Record, RecordMeta},
};
use bytes::Bytes;
use fl_protocol::{ErrorCode, Header, UpdateAck, UpdateJson, UpdateMeta, WorkerId, WorkerStatus, update};
use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long an update waits for the outcome of others that may close the round without it.
const PATIENCE: Duration = Duration::from_secs(60);

/// A header up to this size is read on the async thread: handing it to another one costs more.
const SMALL_HEADER_BYTES: u64 = 4 << 10;

/// The two formats of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// An update container.
    Container,
    /// The predecessor's JSON.
    Json,
}

/// Takes an update in whose header has been read. `held` is given back once the body is not needed any more.
///
/// # Errors
/// Why it is refused; nothing has changed then.
pub async fn ingest(
    job: Arc<Job>,
    incoming: Incoming,
    ip: IpAddr,
    held: impl Send + 'static,
) -> Result<UpdateAck, Rejection> {
    // In a task of its own: a client that hangs up half-way cannot leave a half-done update.
    let task = tokio::spawn(async move {
        let result = take_in(&job, incoming, ip).await;
        drop(held);
        result
    });
    task.await.unwrap_or_else(|_| Err(Rejection::new(ErrorCode::Internal, "an internal fault")))
}

async fn take_in(job: &Arc<Job>, incoming: Incoming, ip: IpAddr) -> Result<UpdateAck, Rejection> {
    let wire_bytes = incoming.wire_bytes;
    let meta = incoming.header.meta().clone();
    if job.storage_is_failing() {
        return Err(storage_unavailable());
    }
    let offer = tokio::time::timeout(PATIENCE, job.actor.offer(meta.worker_id.clone(), meta.round));
    let place = match offer.await.map_err(|_| undecided())?.map_err(|_| draining())? {
        Admission::Admitted(place) => place,
        Admission::Refused(refused) => return refuse(job, &meta, refused),
    };
    let received = RecordMeta {
        ip: ip.to_string(),
        received_ts: job.host.clock.now(),
        wire_bytes,
        ..RecordMeta::default()
    };
    let added = admitted(job, incoming, &received, place.round).await?;
    let status = worker_status(&added.meta, &received);
    place.commit(added.contribution, status).await.map_err(|_| draining())
}

/// Adds an admitted update and makes it durable, or leaves no trace of it.
async fn admitted(
    job: &Arc<Job>,
    Incoming { header, body, .. }: Incoming,
    received: &RecordMeta,
    round: u64,
) -> Result<Added, Rejection> {
    let (adding, wire_bytes) = (job.clone(), received.wire_bytes);
    let (its_header, its_body) = (header.clone(), body.clone());
    let add = move || {
        let started = Instant::now();
        let result = adding.core.add_read(&its_header, &its_body, wire_bytes);
        adding.metrics.decode_seconds.observe(started.elapsed().as_secs_f64());
        result
    };
    let added = job.host.pool.run(add).await.map_err(pool_rejection)??;
    if append(job, round, &added, received, &body).await {
        job.core.confirm(&added.meta, &body);
        return Ok(added);
    }
    let removing = job.clone();
    // The place is given back only after this: a round must not close with half an update in its sum.
    let _ = job.host.pool.run_always(move || removing.core.remove(&header, &body)).await;
    Err(storage_unavailable())
}

/// Whether the update is on disk.
async fn append(job: &Job, round: u64, added: &Added, received: &RecordMeta, body: &Bytes) -> bool {
    let Some(durable) = &job.durable else { return true };
    let meta = received.clone().with_clip(added.clip);
    let record = Record::Update { meta, body: body.clone() };
    matches!(durable.journal.append(round, record).await, Ok(Ok(())))
}

/// A container whose header has been read.
pub struct Incoming {
    header: Arc<Header>,
    body: Bytes,
    /// Size of the request's body, which was JSON perhaps.
    wire_bytes: u64,
}

impl Incoming {
    fn read(body: Bytes, wire_bytes: u64) -> Result<Self, Rejection> {
        Ok(Self { header: Arc::new(Header::read(&body)?), body, wire_bytes })
    }

    /// Who says to have sent it.
    pub fn worker_id(&self) -> &WorkerId {
        &self.header.meta().worker_id
    }
}

/// Reads the header. A JSON update becomes a container first: from here on both formats take one path.
///
/// # Errors
/// What is wrong with the header.
pub async fn parse(job: &Arc<Job>, format: Format, body: Bytes) -> Result<Incoming, Rejection> {
    let wire_bytes = body.len() as u64;
    let is_small = update::declared_bytes(&body).is_none_or(|len| len <= SMALL_HEADER_BYTES);
    if format == Format::Container && is_small {
        return Incoming::read(body, wire_bytes);
    }
    let parsing = job.clone();
    let parse = move || match format {
        Format::Container => Incoming::read(body, wire_bytes),
        Format::Json => Incoming::read(container(&body, &parsing)?, wire_bytes),
    };
    job.host.pool.run(parse).await.map_err(pool_rejection)?
}

fn container(json: &[u8], job: &Job) -> Result<Bytes, Rejection> {
    let update: UpdateJson = serde_json::from_slice(json).map_err(|error| {
        Rejection::new(ErrorCode::Malformed, format!("the body is not the JSON of an update: {error}"))
    })?;
    Ok(update::from_json(&update, job.core.layout())?.into())
}

fn refuse(job: &Job, meta: &UpdateMeta, refused: handle::Refused) -> Result<UpdateAck, Rejection> {
    let handle::Refused { refusal, global_round, is_out } = refused;
    let round = meta.round;
    match refusal {
        Refusal::Duplicate => {
            job.metrics.duplicates.inc();
            Ok(UpdateAck { status: "ok".to_owned(), aggregated: is_out, global_round, duplicate: true })
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
