//! The HTTP side: routes, and what holds for all of them.

pub(crate) mod api;
mod auth;
mod dashboard;
mod problem;
pub mod server;

use crate::service::state::Shared;
use api::{events, global, openapi, status, task, update};
use axum::{
    Router,
    extract::State,
    http::{Method, Uri},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use fl_protocol::ErrorCode;
use problem::Problem;
use std::sync::Arc;
use tower_http::catch_panic::CatchPanicLayer;

/// What every handler gets.
pub(crate) type AppState = Arc<Shared>;

/// All routes over a master's state.
pub fn router(shared: Arc<Shared>) -> Router {
    let panicked = shared.clone();
    Router::new()
        .route("/global", get(global::get_global))
        .route("/control", get(global::get_control))
        .route("/update", post(update::post_update))
        .route("/task", get(task::get_task))
        .route("/status", get(status::get_status))
        .route("/history", get(status::get_history))
        .route("/metrics", get(status::get_metrics))
        .route("/healthz", get(status::get_healthz))
        .route("/readyz", get(status::get_readyz))
        .route("/openapi.json", get(openapi::get_openapi))
        .merge(dashboard::routes())
        .merge(events::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(shared.clone(), auth::require))
        .layer(CatchPanicLayer::custom(move |_: Box<dyn std::any::Any + Send>| {
            Problem::new(&panicked, ErrorCode::Internal, "an internal fault").into_response()
        }))
        .with_state(shared)
}

async fn not_found(State(shared): State<AppState>, uri: Uri) -> Response {
    let path: String = uri.path().chars().take(100).collect();
    Problem::new(&shared, ErrorCode::NotFound, format!("there is no {path} here")).into_response()
}

async fn method_not_allowed(State(shared): State<AppState>, method: Method, uri: Uri) -> Response {
    let path: String = uri.path().chars().take(100).collect();
    Problem::new(&shared, ErrorCode::MethodNotAllowed, format!("{path} does not take {method}"))
        .into_response()
}
