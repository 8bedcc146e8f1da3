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

pub(in crate::http) async fn get_status(State(shared): State<AppState>) -> Json<StatusBody> {
    Json(shared.status())
}

pub(in crate::http) async fn get_history(State(shared): State<AppState>) -> Json<Vec<HistoryRecord>> {
    Json(shared.history())
}

pub(in crate::http) async fn get_metrics(State(shared): State<AppState>) -> Response {
    match shared.metrics.render() {
        Ok(page) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be rendered");
            Problem::new(&shared, ErrorCode::Internal, "an internal fault").into_response()
        }
    }
}

/// Liveness: the process answers.
pub(in crate::http) async fn get_healthz() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

/// Ready from the loaded state until a shutdown is asked for; the port stays open a little longer.
pub(in crate::http) async fn get_readyz(State(shared): State<AppState>) -> Response {
    match shared.is_ready() {
        true => Json(json!({"status": "ok"})).into_response(),
        false => Problem::new(&shared, ErrorCode::Draining, "the master is shutting down").into_response(),
    }
}
