//! `GET /global`: the model, as a file or as the predecessor's JSON.

mod cache;
mod downloads;
mod form;

use crate::{
    federation::model::Global,
    http::App,
    http::{AppState, api::range, problem::Problem, server::Place},
};
use axum::{
    Extension, Router,
    body::{Body, Bytes},
    extract::{FromRequestParts, Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
    routing::get,
};
use cache::{Failed, Representation, Representations};
use downloads::Downloads;
use fl_protocol::{ErrorCode, headers::FL_ROUND};
use form::Form;
use serde::Deserialize;
use std::{convert::Infallible, sync::Arc, time::Duration};

/// The routes of the model.
pub(in crate::http) fn routes(app: &App) -> Router<AppState> {
    let budget = cache::budget(app.job.core.num_parameters());
    let models = Models {
        representations: Arc::new(Representations::new(budget)),
        downloads: Arc::new(Downloads::new(budget)),
    };
    Router::new()
        .route("/global", get(get_global))
        .route("/control", get(get_control))
        .layer(Extension(models))
}

/// State shared by all requests for models.
#[derive(Clone)]
struct Models {
    representations: Arc<Representations>,
    downloads: Arc<Downloads>,
}

/// The place of the request's connection; none where there is no server, as in a test.
struct Seat(Option<Arc<Place>>);

impl<S: Sync> FromRequestParts<S> for Seat {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.extensions.get().cloned()))
    }
}

#[derive(Debug, Deserialize)]
struct Params {
    round: Option<u64>,
    min_round: Option<u64>,
    wait: Option<f64>,
    quantizer: Option<String>,
    bits: Option<u8>,
}

async fn get_global(
    State(app): State<AppState>,
    Extension(models): Extension<Models>,
    Seat(place): Seat,
    params: Result<Query<Params>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Query(params) = params.map_err(|error| Problem::from_query(&app, &error))?;
    let wait = wait(&app, params.wait)?;
    let form = Form::asked(&app, &params, &headers)?;
    let exact = match (params.round, params.min_round) {
        (Some(round), _) => models.kept(&app, round).await?,
        (None, None) => exact(&app.job.global()),
        (None, Some(min)) => match newer(&app, min, wait).await {
            Some(global) => exact(&global),
            None => return Ok(not_modified(&exact(&app.job.global()), form)),
        },
    };
    if header_of(&headers, header::IF_NONE_MATCH)
        .is_some_and(|known| range::names(known, &form.etag(&exact.etag)))
    {
        return Ok(not_modified(&exact, form));
    }
    let representation = models.representation(&app, exact, form).await?;
    let body = models.downloads.lease(&representation, &app.job.global().etag, place);
    match form {
        Form::Json => Ok(json(&app, &representation, body)),
        Form::Exact | Form::Compact(_) => Ok(file(&app, &representation, form, &body, &headers)),
    }
}

/// `GET /control`: the server's control variate, in a file like the model's.
async fn get_control(
    State(app): State<AppState>,
    Extension(models): Extension<Models>,
    Seat(place): Seat,
) -> Result<Response, Problem> {
    let global = app.job.global();
    let Some(control) = global.control.clone() else {
        let msg = format!("{} has no control variate", app.job.config.aggregation.strategy);
        return Err(Problem::new(&app, ErrorCode::NotFound, msg));
    };
    app.sent_model(control.len());
    let etag = format!("{}-control\"", global.etag.trim_end_matches('"'));
    let control = Representation { round: global.round, etag, bytes: control };
    let body = models.downloads.lease(&control, &global.etag, place);
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/octet-stream".to_owned()),
        (FL_ROUND, global.round.to_string()),
    ];
    Ok((headers, body).into_response())
}

/// Checks `wait`.
pub(in crate::http) fn wait(app: &App, seconds: Option<f64>) -> Result<Duration, Problem> {
    match seconds.unwrap_or(0.0) {
        s if (0.0..=crate::settings::MAX_WAIT).contains(&s) => Ok(Duration::from_secs_f64(s)),
        _ => Err(Problem::new(
            app,
            ErrorCode::Malformed,
            format!("wait must be 0 to {} seconds", crate::settings::MAX_WAIT),
        )),
    }
}

fn exact(global: &Global) -> Arc<Representation> {
    let (round, etag, bytes) = (global.round, global.etag.clone(), global.bytes.clone());
    Arc::new(Representation { round, etag, bytes })
}

impl Models {
    /// The exact model of an earlier round.
    async fn kept(&self, app: &AppState, round: u64) -> Result<Arc<Representation>, Problem> {
        let global = app.job.global();
        if round >= global.round {
            return match round == global.round {
                true => Ok(exact(&global)),
                false => Err(problem(app, round, Failed::NotKept)),
            };
        }
        let reading = app.clone();
        let read = move || {
            let durable = reading.job.durable.as_ref().ok_or(Failed::NotKept)?;
            match durable.model_of(round) {
                Ok(Some(bytes)) => {
                    let Global { round, etag, bytes, .. } = Global::new(round, bytes);
                    Ok(Representation { round, etag, bytes })
                }
                Ok(None) => Err(Failed::NotKept),
                Err(error) => {
                    tracing::error!(%error, round, "an earlier round's model cannot be read");
                    Err(Failed::NotKept)
                }
            }
        };
        let kept = self.representations.get(round, Form::Exact, read).await;
        kept.map_err(|failed| problem(app, round, failed))
    }

    /// A form of an exact model.
    async fn representation(
        &self,
        app: &App,
        exact: Arc<Representation>,
        form: Form,
    ) -> Result<Arc<Representation>, Problem> {
        if form == Form::Exact {
            return Ok(exact);
        }
        let round = exact.round;
        let make = move || match form.make(round, &exact.bytes) {
            Ok(bytes) => Ok(Representation { round, etag: form.etag(&exact.etag), bytes }),
            Err(error) => {
                tracing::error!(%error, round, "the model cannot be written as it was asked for");
                Err(Failed::Internal)
            }
        };
        let made = self.representations.get(round, form, make).await;
        made.map_err(|failed| problem(app, round, failed))
    }
}

fn problem(app: &App, round: u64, failed: Failed) -> Problem {
    let newest = app.job.round();
    let (code, msg) = match failed {
        Failed::Busy => {
            (ErrorCode::Overloaded, "too many models are being prepared: try again later".to_owned())
        }
        Failed::NotKept if round > newest => {
            (ErrorCode::RoundNotKept, format!("round {round} does not exist yet: the newest is {newest}"))
        }
        Failed::NotKept => (ErrorCode::RoundNotKept, format!("the model of round {round} is no longer kept")),
        Failed::Internal => (ErrorCode::Internal, "an internal fault".to_owned()),
    };
    Problem::new(app, code, msg)
}

/// The newest model once its round is `min` or later; `None` if it is not in time.
async fn newer(app: &App, min: u64, wait: Duration) -> Option<Arc<Global>> {
    let mut published = app.job.published.clone();
    let mut draining = app.job.host.draining.subscribe();
    let reached = async {
        let state = published.wait_for(|state| state.global.round >= min || state.finished).await;
        state.ok().map(|state| state.global.clone())
    };
    let global = tokio::select! {
        biased;
        global = reached => global,
        _ = draining.wait_for(|draining| *draining) => None,
        () = tokio::time::sleep(wait) => None,
    };
    global.filter(|global| global.round >= min)
}

fn header_of(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn common(response: &mut Response, round: u64, etag: &str) {
    let headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(etag) {
        headers.insert(header::ETAG, etag);
    }
    headers.insert(FL_ROUND, HeaderValue::from(round));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
}

fn not_modified(exact: &Representation, form: Form) -> Response {
    let mut response = StatusCode::NOT_MODIFIED.into_response();
    common(&mut response, exact.round, &form.etag(&exact.etag));
    response
}

fn json(app: &App, json: &Representation, body: Bytes) -> Response {
    app.sent_model(body.len());
    let mut response = ([(header::CONTENT_TYPE, "application/json")], body).into_response();
    common(&mut response, json.round, &json.etag);
    response
}

fn file(app: &App, file: &Representation, form: Form, body: &Bytes, headers: &HeaderMap) -> Response {
    let len = body.len();
    // `If-Range`: a client with another version of the file gets the whole file instead of a range.
    let is_same = header_of(headers, header::IF_RANGE).is_none_or(|tag| tag == file.etag);
    let asked = match header_of(headers, header::RANGE) {
        Some(range) if is_same => range::parse(range, len),
        _ => range::Asked::Whole,
    };
    let (status, bytes, content_range) = match asked {
        range::Asked::Whole => (StatusCode::OK, body.clone(), None),
        range::Asked::Part(part) => {
            let content_range = format!("bytes {}-{}/{len}", part.start, part.end - 1);
            (StatusCode::PARTIAL_CONTENT, body.slice(part), Some(content_range))
        }
        range::Asked::Unsatisfiable => {
            let msg = format!("the file has {len} bytes: that range is not in it");
            let mut response = Problem::new(app, ErrorCode::RangeNotSatisfiable, msg).into_response();
            insert(&mut response, header::CONTENT_RANGE, &format!("bytes */{len}"));
            return response;
        }
    };
    app.sent_model(bytes.len());
    let mut response = (status, Body::from(bytes)).into_response();
    common(&mut response, file.round, &file.etag);
    insert(&mut response, header::CONTENT_TYPE, "application/octet-stream");
    insert(&mut response, header::ACCEPT_RANGES, "bytes");
    let disposition = format!("attachment; filename=\"{}\"", form.file_name(file.round));
    insert(&mut response, header::CONTENT_DISPOSITION, &disposition);
    if let Some(content_range) = content_range {
        insert(&mut response, header::CONTENT_RANGE, &content_range);
    }
    response
}

fn insert(response: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
