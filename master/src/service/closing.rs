//! From the last update of a round to the next model, off the async threads.

use super::job::Job;
use crate::{
    federation::{ClosedOutcome, round::ClosedRound},
    store::{Closed, Record},
};
use bytes::Bytes;
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use tracing::{error, info};

/// Between two tries of what must succeed for the training to go on.
const RETRY: Duration = Duration::from_secs(1);

/// Makes the next model and reports it to the actor. Does not give up: without it no round goes on.
///
/// That the round is closed is on disk before anyone sees its model: a crash would reopen it otherwise. The
/// record is written while the model is computed.
pub(super) async fn close(job: Arc<Job>, closed: ClosedRound) {
    let marked = mark_closed(&job, &closed);
    let closed = Arc::new(closed);
    if let Some(durable) = &job.durable {
        durable.writer.caught_up().await;
    }
    let outcome = loop {
        let (closing_job, closing) = (job.clone(), closed.clone());
        let made = job.host.pool.run_always(move || make(&closing_job, &closing)).await;
        match made {
            Ok(Ok(outcome)) => break outcome,
            Ok(Err(error)) => error!("the next model cannot be made: {error:#}"),
            Err(_) => error!("making the next model panicked"),
        }
        tokio::time::sleep(RETRY).await;
    };
    ensure_marked(&job, &closed, marked).await;
    let ClosedOutcome { global, snapshot, record } = outcome;
    if let Some(durable) = &job.durable {
        durable.journal.open(global.round, settings_json(&job));
        durable.writer.checkpoint(snapshot, record.clone()).await;
    }
    job.actor.closed(global, record).await;
}

/// What the journal of the open round begins with.
pub(crate) fn settings_json(job: &Job) -> Bytes {
    // Numbers and names always become JSON.
    serde_json::to_vec(&job.core.settings()).unwrap_or_default().into()
}

type Marked = Option<oneshot::Receiver<Result<(), String>>>;

fn mark_closed(job: &Job, closed: &ClosedRound) -> Marked {
    let record = Record::Closed(Closed {
        updates: closed.num_updates() as u64,
        opened_ts: closed.opened_ts,
        closed_ts: closed.closed_ts,
        bytes_down: closed.bytes_down,
    });
    job.durable.as_ref().map(|durable| durable.journal.append(closed.round, record))
}

async fn ensure_marked(job: &Job, closed: &ClosedRound, mut marked: Marked) {
    while let Some(done) = marked {
        match done.await {
            // A journal that is gone has been shut down: what is not marked is closed again by the next start.
            Ok(Ok(())) | Err(_) => break,
            Ok(Err(reason)) => {
                if !job.close_is_stuck.swap(true, Ordering::AcqRel) {
                    error!(
                        round = closed.round,
                        "the round cannot be closed: {reason}; updates are refused until it can"
                    );
                }
                tokio::time::sleep(RETRY).await;
            }
        }
        marked = mark_closed(job, closed);
    }
    if job.close_is_stuck.swap(false, Ordering::AcqRel) {
        info!(round = closed.round, "the round is closed on disk");
    }
}

fn make(job: &Job, closed: &ClosedRound) -> anyhow::Result<ClosedOutcome> {
    let started = Instant::now();
    let outcome = job.core.close(closed)?;
    job.metrics.aggregate_seconds.observe(started.elapsed().as_secs_f64());
    Ok(outcome)
}
