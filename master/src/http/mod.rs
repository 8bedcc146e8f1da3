//! The HTTP side: routes and the layers around them.

pub(crate) mod api;
mod auth;
mod dashboard;
pub(crate) mod metrics;
mod problem;
pub mod server;

use crate::{
    metrics::Series,
    service::{Peer, job::Job},
};
use api::{evaluation, events, global, openapi, status, task, update};
use axum::{
    Router,
    extract::{FromRequestParts, State},
    http::{Method, Uri, request::Parts},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use fl_protocol::ErrorCode;
use metrics::HttpMetrics;
use problem::Problem;
use server::{body::Budget, limiter::Limiter};
use std::{
    convert::Infallible,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};
use tower_http::catch_panic::CatchPanicLayer;

/// What every handler gets: the federation, and what bounds its clients.
pub struct App {
    /// The federation.
    pub(crate) job: Arc<Job>,
    /// Memory of bodies being received.
    budget: Budget,
    /// Refusals per worker and address.
    limiter: Limiter,
    /// The series of the process.
    series: Series,
    metrics: HttpMetrics,
}

impl App {
    /// The HTTP side of a federation.
    ///
    /// # Errors
    /// If a metric has the name of another one.
    pub fn new(job: Arc<Job>, series: Series) -> prometheus::Result<Self> {
        let limits = &job.config.limits;
        let budget = Budget::new(limits, job.core.num_parameters());
        let limiter = Limiter::new(limits.refused_per_s);
        let metrics = HttpMetrics::new(&series)?;
        Ok(Self { budget, limiter, series, metrics, job })
    }

    /// Counts a model that was sent.
    fn sent_model(&self, bytes: usize) {
        self.job.sent_model(bytes);
        self.metrics.sent_model(bytes);
    }
}

/// State handed to every handler.
pub(crate) type AppState = Arc<App>;

/// All routes over a master's state.
pub fn router(app: AppState) -> Router {
    let panicked = app.clone();
    Router::new()
        .route("/update", post(update::post_update))
        .route("/evaluation", post(evaluation::post_evaluation))
        .route("/task", get(task::get_task))
        .route("/status", get(status::get_status))
        .route("/history", get(status::get_history))
        .route("/metrics", get(status::get_metrics))
        .route("/healthz", get(status::get_healthz))
        .route("/readyz", get(status::get_readyz))
        .route("/openapi.json", get(openapi::get_openapi))
        .merge(global::routes(&app))
        .merge(dashboard::routes())
        .merge(events::routes())
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(app.clone(), auth::require))
        .layer(CatchPanicLayer::custom(move |_: Box<dyn std::any::Any + Send>| {
            Problem::new(&panicked, ErrorCode::Internal, "an internal fault").into_response()
        }))
        .with_state(app)
}

/// The address that a request comes from.
pub(crate) struct Sender(pub(crate) IpAddr);

impl<S: Sync> FromRequestParts<S> for Sender {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<Peer>();
        Ok(Self(peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip)))
    }
}

/// The paths that are answered whatever clients do: without a token, and without a place.
pub(crate) fn is_probe(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz")
}

async fn not_found(State(app): State<AppState>, uri: Uri) -> Response {
    let path: String = uri.path().chars().take(100).collect();
    Problem::new(&app, ErrorCode::NotFound, format!("there is no {path} here")).into_response()
}

async fn method_not_allowed(State(app): State<AppState>, method: Method, uri: Uri) -> Response {
    let path: String = uri.path().chars().take(100).collect();
    Problem::new(&app, ErrorCode::MethodNotAllowed, format!("{path} does not take {method}")).into_response()
}
