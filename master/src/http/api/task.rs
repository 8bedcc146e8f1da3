//! `GET /task`: a worker asks for work, and waits for it if there is none.

use crate::http::{AppState, api::global, problem::Problem};
use crate::{config::Config, federation::model::Global, federation::round::Decision};
use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use fl_protocol::{ErrorCode, TaskAction, TaskBody, WorkerId};
use fl_quant::Bits;
use serde::Deserialize;
use std::time::Duration;
use tokio::time::Instant;

/// A place may get free at any time when workers are sampled: ask again that often.
const ASK_AGAIN: Duration = Duration::from_secs(2);

#[derive(Debug, Deserialize)]
pub(in crate::http) struct Params {
    worker_id: String,
    wait: Option<f64>,
}

pub(in crate::http) async fn get_task(
    State(shared): State<AppState>,
    params: Result<Query<Params>, QueryRejection>,
) -> Result<Json<TaskBody>, Problem> {
    let Query(params) = params.map_err(|error| Problem::from_query(&shared, &error))?;
    let worker: WorkerId =
        params.worker_id.parse().map_err(|msg: String| Problem::new(&shared, ErrorCode::Malformed, msg))?;
    let until = Instant::now() + global::wait(&shared, params.wait)?;
    let mut published = shared.published.clone();
    let mut draining = shared.draining.subscribe();
    loop {
        if *draining.borrow_and_update() {
            return Err(Problem::new(
                &shared,
                ErrorCode::Draining,
                "the master is shutting down: try again later",
            ));
        }
        published.borrow_and_update();
        let (_, decision) = shared.actor.ask(worker.clone()).await.map_err(|_| {
            Problem::new(&shared, ErrorCode::Draining, "the master is shutting down: try again later")
        })?;
        if decision != Decision::Wait || Instant::now() >= until {
            let (config, global) = (&shared.config, shared.global());
            return Ok(Json(match decision {
                Decision::Train { deadline_s } => body(config, &global, TaskAction::Train, deadline_s),
                Decision::Wait => body(config, &global, TaskAction::Wait, None),
                Decision::Stop => body(config, &global, TaskAction::Stop, None),
            }));
        }
        let again = match shared.config.round.clients_per_round {
            Some(_) => until.min(Instant::now() + ASK_AGAIN),
            None => until,
        };
        tokio::select! {
            _ = published.changed() => {}
            _ = draining.changed() => {}
            () = tokio::time::sleep_until(again) => {}
        }
    }
}

/// What a worker is told about the round that starts from `global`.
pub(crate) fn body(
    config: &Config,
    global: &Global,
    action: TaskAction,
    deadline_s: Option<f64>,
) -> TaskBody {
    let hints = config.task.clone();
    let update_bytes = hints.update_bytes(config.round.min_clients);
    let (bits, target_nmse) = match hints.bits {
        Some(Bits::Width(bits)) => (Some(bits), None),
        Some(Bits::Auto) => (None, Some(hints.target_nmse)),
        None => (None, None),
    };
    TaskBody {
        action,
        round: global.round,
        etag: global.etag.clone(),
        local_steps: hints.local_steps,
        local_epochs: hints.local_epochs,
        batch_size: hints.batch_size,
        lr: hints.lr.map(|lr| hints.lr_schedule.at(lr, global.round)),
        mu: hints.mu,
        quantizer: hints.quantizer,
        bits,
        target_nmse,
        update_bytes,
        lazy_below: global.lazy_below,
        control: config.aggregation.strategy.uses_control(),
        deadline_s,
    }
}
