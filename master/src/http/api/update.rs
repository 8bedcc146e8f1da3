//! `POST /update`: one worker's result for one round.

use crate::http::{AppState, Sender, problem::Problem};
use crate::{
    federation::intake::Rejection,
    service::ingest::{self, Format},
};
use axum::{
    Json,
    extract::{Request, State},
    http::{HeaderMap, header},
};
use fl_protocol::{ErrorCode, UpdateAck, WorkerId, limits};
use std::net::IpAddr;
use tracing::info;

pub(in crate::http) async fn post_update(
    State(app): State<AppState>,
    Sender(ip): Sender,
    request: Request,
) -> Result<Json<UpdateAck>, Problem> {
    match take(&app, request, ip).await {
        Ok(ack) => Ok(Json(ack)),
        Err((worker, rejection)) => {
            app.metrics.refused(rejection.code);
            app.job.view().refused(rejection.code);
            let worker_name = worker.as_ref().map_or("", WorkerId::as_str);
            info!(%ip, worker = worker_name, code = rejection.code.as_str(), msg = rejection.msg, "update refused");
            if rejection.code.http_status() < 500 && rejection.code != ErrorCode::RateLimited {
                app.limiter.refused(ip, worker);
            }
            Err(Problem::from_rejection(&app, rejection))
        }
    }
}

async fn take(
    app: &AppState,
    request: Request,
    ip: IpAddr,
) -> Result<UpdateAck, (Option<WorkerId>, Rejection)> {
    if app.job.host.is_draining() {
        return Err((
            None,
            Rejection::new(ErrorCode::Draining, "the master is shutting down: try again later"),
        ));
    }
    if app.limiter.is_address_exhausted(ip) {
        let msg = "too many updates from this address were refused: wait before the next one";
        return Err((None, Rejection::new(ErrorCode::RateLimited, msg)));
    }
    let (parts, body) = request.into_parts();
    let format = format(&parts.headers).map_err(|rejection| (None, rejection))?;
    let parameters = app.job.most_parameters();
    let limit = match format {
        Format::Container => limits::max_update_bytes(parameters),
        Format::Json => limits::max_update_json_bytes(parameters),
    };
    let declared = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    let body = app.budget.read(body, declared, limit).await.map_err(|rejection| (None, rejection))?;
    let incoming =
        ingest::parse(&app.job, format, body.bytes.clone()).await.map_err(|rejection| (None, rejection))?;
    let worker = incoming.worker_id().clone();
    if app.limiter.is_exhausted(ip, &worker) {
        let msg = format!("too many updates of {worker} were refused: wait before the next one");
        return Err((Some(worker), Rejection::new(ErrorCode::RateLimited, msg)));
    }
    match ingest::ingest(app.job.clone(), incoming, ip, body).await {
        Ok(ack) => {
            app.limiter.accepted(ip, &worker);
            Ok(ack)
        }
        Err(rejection) => Err((Some(worker), rejection)),
    }
}

fn format(headers: &HeaderMap) -> Result<Format, Rejection> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
    match essence.as_str() {
        "application/octet-stream" => Ok(Format::Container),
        "application/json" => Ok(Format::Json),
        _ => Err(Rejection::new(
            ErrorCode::UnsupportedMediaType,
            "send an update container as application/octet-stream, or application/json",
        )),
    }
}
