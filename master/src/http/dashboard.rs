//! `GET /`.

use super::AppState;
use axum::{Router, routing::get};

/// The dashboard's routes.
pub(super) fn routes() -> Router<AppState> {
    Router::new().route("/", get(|| async { "fl-master: see /status, /history, /metrics, /global\n" }))
}
