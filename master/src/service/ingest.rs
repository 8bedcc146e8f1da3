//! The way of an update: checked, admitted, added, made durable, acknowledged.
//!
//! It runs in a task of its own: a client that hangs up half-way cannot leave a half-done update.

use crate::{
    federation::intake::Rejection, federation::intake::Term, federation::round::Contribution,
    federation::round::Refusal, http::server::body::Received, service::actor::Admission,
    service::pool::PoolError, service::state::Shared, store::Record, store::RecordKind,
    store::journal::RecordMeta,
};
use bytes::Bytes;
use fl_protocol::{ErrorCode, UpdateAck, UpdateJson, UpdateMeta, WorkerStatus, update};
use std::{net::IpAddr, sync::Arc, time::Instant};

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
pub async fn ingest(
    shared: Arc<Shared>,
    format: Format,
    body: Received,
    ip: IpAddr,
) -> Result<UpdateAck, Refused> {
    let task = tokio::spawn(async move {
        let mut worker = None;
        let result = take_in(&shared, format, &body.bytes, ip, &mut worker).await;
        // The memory's permit goes with the body, only now.
        drop(body);
        result.map_err(|rejection| Refused { worker, rejection })
    });
    task.await.unwrap_or_else(|_| {
        Err(Refused { worker: None, rejection: Rejection::new(ErrorCode::Internal, "an internal fault") })
    })
}

async fn take_in(
    shared: &Arc<Shared>,
    format: Format,
    body: &Bytes,
    ip: IpAddr,
    worker: &mut Option<fl_protocol::WorkerId>,
) -> Result<UpdateAck, Rejection> {
    let wire_bytes = body.len() as u64;
    let body = match format {
        Format::Container => body.clone(),
        Format::Json => container(shared, body.clone()).await?,
    };
    let meta = update::peek_meta(&body)?;
    *worker = Some(meta.worker_id.clone());
    if shared.limiter.is_exhausted(ip, &meta.worker_id) {
        return Err(Rejection::new(
            ErrorCode::RateLimited,
            format!("too many updates of {} were refused: wait before the next one", meta.worker_id),
        ));
    }
    if shared.durable.as_ref().is_some_and(|durable| durable.writer.is_failing()) {
        return Err(storage_unavailable());
    }
    let round = match shared.actor.offer(meta.worker_id.clone(), meta.round).await.map_err(|_| draining())? {
        Admission::Admitted(round) => round,
        Admission::Refused(refusal, global_round) => return refuse(shared, &meta, refusal, global_round),
    };
    let record =
        RecordMeta { ip: ip.to_string(), received_ts: shared.clock.now(), wire_bytes, clip_bits: None };
    match admitted(shared, body, record, round).await {
        Ok((contribution, status)) => {
            shared.actor.commit(meta.worker_id, contribution, status).await.map_err(|_| draining())
        }
        Err(rejection) => {
            shared.actor.abort(meta.worker_id).await;
            Err(rejection)
        }
    }
}

/// Adds an admitted update and makes it durable, or leaves no trace of it.
async fn admitted(
    shared: &Arc<Shared>,
    body: Bytes,
    received: RecordMeta,
    round: u64,
) -> Result<(Contribution, WorkerStatus), Rejection> {
    let add = move |term: &Term<'_>, shared: &Shared| {
        term.add_to(&shared.collector)?;
        let accounted = account(term, &received);
        Ok((accounted, RecordMeta { clip_bits: Some(term.clip.to_bits()), ..received }, term.meta.clone()))
    };
    let (accounted, received, meta) = on_pool(shared, body.clone(), round, add).await?;
    let record = Record { kind: RecordKind::Update, meta: received, body: body.clone() };
    let durable = match &shared.durable {
        Some(durable) => matches!(durable.journal.append(round, record).await, Ok(Ok(()))),
        None => true,
    };
    if durable {
        shared.lasts.keep(&meta, &body);
        return Ok(accounted);
    }
    let job_shared = shared.clone();
    let removed = shared.pool.run_always(move || {
        job_shared.intake().with_term(&body, round, |term| {
            term.take_from(&job_shared.collector);
            Ok(())
        })
    });
    let _ = removed.await;
    Err(storage_unavailable())
}

async fn on_pool<T: Send + 'static>(
    shared: &Arc<Shared>,
    body: Bytes,
    round: u64,
    f: impl FnOnce(&Term<'_>, &Shared) -> Result<T, Rejection> + Send + 'static,
) -> Result<T, Rejection> {
    let job_shared = shared.clone();
    let job = move || {
        let started = Instant::now();
        let result = job_shared.intake().with_term(&body, round, |term| f(term, &job_shared));
        job_shared.metrics.decode_seconds.observe(started.elapsed().as_secs_f64());
        result
    };
    shared.pool.run(job).await.map_err(pool_rejection)?
}

/// The container of a JSON update: from here on both formats take one path.
async fn container(shared: &Arc<Shared>, json: Bytes) -> Result<Bytes, Rejection> {
    let job_shared = shared.clone();
    let job = move || -> Result<Bytes, Rejection> {
        let update: UpdateJson = serde_json::from_slice(&json).map_err(|error| {
            Rejection::new(ErrorCode::Malformed, format!("the body is not the JSON of an update: {error}"))
        })?;
        Ok(update::from_json(&update, &job_shared.layout)?.into())
    };
    shared.pool.run(job).await.map_err(pool_rejection)?
}

fn refuse(
    shared: &Shared,
    meta: &UpdateMeta,
    refusal: Refusal,
    global_round: u64,
) -> Result<UpdateAck, Rejection> {
    let round = meta.round;
    match refusal {
        Refusal::Duplicate => {
            shared.metrics.duplicates.inc();
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

/// What an accepted update counts for, and what is shown of it.
pub(crate) fn account(term: &Term<'_>, record: &RecordMeta) -> (Contribution, WorkerStatus) {
    let meta = &term.meta;
    let contribution = Contribution {
        num_samples: meta.num_samples,
        local_norm: term.local_norm,
        base: meta.round,
        loss: meta.loss,
        bytes: record.wire_bytes,
        reused_bytes: term.reused_bytes,
    };
    let status = WorkerStatus {
        ip: record.ip.clone(),
        round: meta.round,
        num_samples: meta.num_samples,
        loss: meta.loss,
        compute_factor: meta.compute_factor,
        last_update_ts: record.received_ts,
        bytes: record.wire_bytes,
    };
    (contribution, status)
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

fn draining() -> Rejection {
    Rejection::new(ErrorCode::Draining, "the master is shutting down: try again later")
}
