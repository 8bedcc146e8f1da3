//! Read-only endpoints: status, history, metrics, probes.

use crate::http::{AppState, problem::Problem};
use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use fl_protocol::{ErrorCode, HistoryRecord, StatusBody};
use serde_json::{Value, json};

pub(in crate::http) async fn get_status(State(app): State<AppState>) -> Json<StatusBody> {
    Json(app.job.status())
}

pub(in crate::http) async fn get_history(State(app): State<AppState>) -> Json<Vec<HistoryRecord>> {
    Json(app.job.history())
}

pub(in crate::http) async fn get_metrics(State(app): State<AppState>) -> Response {
    app.job.show_evaluations();
    match app.series.render() {
        Ok(page) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be rendered");
            Problem::new(&app, ErrorCode::Internal, "an internal fault").into_response()
        }
    }
}

/// Liveness: the process answers.
pub(in crate::http) async fn get_healthz() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Ready from the loaded state until a shutdown is asked for; the port stays open a little longer.
pub(in crate::http) async fn get_readyz(State(app): State<AppState>) -> Response {
    match app.job.host.is_ready() {
        true => Json(json!({"status": "ok"})).into_response(),
        false => Problem::new(&app, ErrorCode::Draining, "the master is shutting down").into_response(),
    }
}
