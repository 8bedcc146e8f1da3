//! `GET /task`: a worker asks for work, and waits for it if there is none.

use crate::http::{AppState, Sender, api::global, problem::Problem};
use crate::{federation::round::Decision, setup};
use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use fl_protocol::{ErrorCode, TaskAction, TaskBody, WorkerId};
use serde::Deserialize;
use std::time::Duration;
use tokio::time::Instant;

/// With sampling a place may become free at any time: the round's owner is asked again at this interval.
const ASK_AGAIN: Duration = Duration::from_secs(2);

#[derive(Debug, Deserialize)]
pub(in crate::http) struct Params {
    worker_id: String,
    wait: Option<f64>,
}

pub(in crate::http) async fn get_task(
    State(app): State<AppState>,
    Sender(ip): Sender,
    params: Result<Query<Params>, QueryRejection>,
) -> Result<Json<TaskBody>, Problem> {
    let Query(params) = params.map_err(|error| Problem::from_query(&app, &error))?;
    let worker: WorkerId =
        params.worker_id.parse().map_err(|msg: String| Problem::new(&app, ErrorCode::Malformed, msg))?;
    if !app.limiter.may_ask(ip, &worker) {
        let msg = "this address asks for too many workers: try again in some minutes";
        return Err(Problem::new(&app, ErrorCode::RateLimited, msg));
    }
    let until = Instant::now() + global::wait(&app, params.wait)?;
    let mut published = app.job.published.clone();
    let mut draining = app.job.host.draining.subscribe();
    let mut invitations = app.job.invitations.subscribe();
    loop {
        if *draining.borrow_and_update() {
            return Err(Problem::new(
                &app,
                ErrorCode::Draining,
                "the master is shutting down: try again later",
            ));
        }
        published.borrow_and_update();
        invitations.borrow_and_update();
        if let Some(global) = app.job.asks_to_evaluate(&worker) {
            return Ok(Json(setup::evaluation_task(&app.job.config, &global)));
        }
        let (_, decision) = app.job.actor.ask(worker.clone()).await.map_err(|_| {
            Problem::new(&app, ErrorCode::Draining, "the master is shutting down: try again later")
        })?;
        if decision != Decision::Wait || Instant::now() >= until {
            let (config, global) = (&app.job.config, app.job.global());
            return Ok(Json(match decision {
                Decision::Train { deadline_s } => setup::task(config, &global, TaskAction::Train, deadline_s),
                Decision::Wait => setup::task(config, &global, TaskAction::Wait, None),
                Decision::Stop => setup::task(config, &global, TaskAction::Stop, None),
            }));
        }
        let again = match app.job.config.round.clients_per_round {
            Some(_) => until.min(Instant::now() + ASK_AGAIN),
            None => until,
        };
        tokio::select! {
            _ = published.changed() => {}
            _ = invitations.changed() => {}
            _ = draining.changed() => {}
            () = tokio::time::sleep_until(again) => {}
        }
    }
}
