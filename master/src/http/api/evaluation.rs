//! `POST /evaluation`: what a worker found when it evaluated a model on data of its own.

use crate::federation::intake::Rejection;
use crate::http::{AppState, Sender, problem::Problem};
use axum::{
    Json,
    extract::{Request, State},
    http::header,
};
use fl_protocol::{ErrorCode, EvaluationAck, EvaluationJson, WorkerId, limits::MAX_EVALUATION_BYTES};
use std::net::IpAddr;
use tracing::info;

pub(in crate::http) async fn post_evaluation(
    State(app): State<AppState>,
    Sender(ip): Sender,
    request: Request,
) -> Result<Json<EvaluationAck>, Problem> {
    let (worker, taken) = match read(&app, request, ip).await {
        Ok(report) => {
            let worker = report.worker_id.clone();
            let taken = match app.limiter.is_exhausted(ip, &worker) {
                true => Err(too_often()),
                false => app.job.take_evaluation(&report),
            };
            (Some(worker), taken)
        }
        Err(rejection) => (None, Err(rejection)),
    };
    taken.map(Json).map_err(|rejection| {
        let name = worker.as_ref().map_or("", WorkerId::as_str);
        info!(%ip, worker = name, code = rejection.code.as_str(), msg = rejection.msg, "evaluation refused");
        if rejection.code.http_status() < 500 && rejection.code != ErrorCode::RateLimited {
            app.limiter.refused(ip, worker);
        }
        Problem::from_rejection(&app, rejection)
    })
}

async fn read(app: &AppState, request: Request, ip: IpAddr) -> Result<EvaluationJson, Rejection> {
    if app.job.host.is_draining() {
        return Err(Rejection::new(ErrorCode::Draining, "the master is shutting down: try again later"));
    }
    if app.limiter.is_address_exhausted(ip) {
        return Err(too_often());
    }
    let (parts, body) = request.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    if !kind.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case("application/json") {
        return Err(Rejection::new(
            ErrorCode::UnsupportedMediaType,
            "send the evaluation as application/json",
        ));
    }
    let declared = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let body = app.budget.read(body, declared, MAX_EVALUATION_BYTES).await.map_err(|rejection| {
        match rejection.code {
            ErrorCode::TooLarge => Rejection::new(
                ErrorCode::TooLarge,
                format!("an evaluation has at most {MAX_EVALUATION_BYTES} bytes"),
            ),
            _ => rejection,
        }
    })?;
    serde_json::from_slice(&body.bytes).map_err(|error| {
        Rejection::new(ErrorCode::Malformed, format!("the body is not the JSON of an evaluation: {error}"))
    })
}

fn too_often() -> Rejection {
    let msg = "too many requests of this worker or its address were refused: wait before the next one";
    Rejection::new(ErrorCode::RateLimited, msg)
}
