//! `GET /global`: the model, as a file or as the predecessor's JSON.

use crate::http::{AppState, api::range, problem::Problem};
use crate::{federation::model::Compact, federation::model::Global, service::state::Shared};
use axum::{
    body::{Body, Bytes},
    extract::{Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use fl_protocol::{ErrorCode, GlobalJson, headers::FL_ROUND};
use fl_quant::Scheme;
use serde::Deserialize;
use std::{sync::Arc, time::Duration};

#[derive(Debug, Deserialize)]
pub(in crate::http) struct Params {
    round: Option<u64>,
    min_round: Option<u64>,
    wait: Option<f64>,
    quantizer: Option<String>,
    bits: Option<u8>,
}

/// What a model is sent as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The exact model, a safetensors file.
    Exact,
    /// The quantized model, a safetensors file.
    Compact(Compact),
    /// The predecessor's JSON.
    Json,
}

/// Bits of a quantized model unless the call says so.
const DEFAULT_BITS: u8 = 8;

impl Form {
    fn asked(shared: &Shared, params: &Params, headers: &HeaderMap) -> Result<Self, Problem> {
        let bad = |code, msg: String| Err(Problem::new(shared, code, msg));
        let wants_json =
            header_of(headers, header::ACCEPT).is_some_and(|accept| accept.contains("application/json"));
        let scheme = match &params.quantizer {
            None if params.bits.is_none() => return Ok(if wants_json { Self::Json } else { Self::Exact }),
            None => Scheme::Sdq,
            Some(name) => match name.parse::<Scheme>() {
                Ok(scheme) => scheme,
                Err(msg) => return bad(ErrorCode::UnknownQuantizer, msg),
            },
        };
        match params.bits.unwrap_or(DEFAULT_BITS) {
            _ if wants_json => bad(ErrorCode::Malformed, "a quantized model is a file, not JSON".to_owned()),
            _ if scheme == Scheme::None => Ok(Self::Exact),
            bits @ 1..=8 => Ok(Self::Compact(Compact { scheme, bits })),
            bits => bad(ErrorCode::Malformed, format!("bits must be 1 to 8, not {bits}")),
        }
    }

    /// Each representation has a tag of its own.
    fn etag(self, global: &Global) -> String {
        let plain = global.etag.trim_end_matches('"');
        match self {
            Self::Exact => global.etag.clone(),
            Self::Compact(compact) => format!("{plain}-{compact}\""),
            Self::Json => format!("{plain}-json\""),
        }
    }

    fn file_name(self, global: &Global) -> String {
        match self {
            Self::Compact(compact) => format!("global-round-{}-{compact}.safetensors", global.round),
            Self::Exact | Self::Json => format!("global-round-{}.safetensors", global.round),
        }
    }
}

pub(in crate::http) async fn get_global(
    State(shared): State<AppState>,
    params: Result<Query<Params>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Query(params) = params.map_err(|error| Problem::from_query(&shared, &error))?;
    let wait = wait(&shared, params.wait)?;
    let form = Form::asked(&shared, &params, &headers)?;
    let global = match (params.round, params.min_round) {
        (Some(round), _) => kept(&shared, round).await?,
        (None, None) => shared.global(),
        (None, Some(min)) => match newer(&shared, min, wait).await {
            Some(global) => global,
            None => return Ok(not_modified(&shared.global(), form)),
        },
    };
    if header_of(&headers, header::IF_NONE_MATCH)
        .is_some_and(|known| range::names(known, &form.etag(&global)))
    {
        return Ok(not_modified(&global, form));
    }
    match form {
        Form::Json => json(&shared, global).await,
        Form::Exact => file(&shared, &global, form, &global.bytes, &headers),
        Form::Compact(compact) => {
            let source = global.clone();
            let bytes = made(&shared, move || Ok(source.quantized(compact)?)).await?;
            file(&shared, &global, form, &bytes, &headers)
        }
    }
}

/// `GET /control`: the server's control variate, in a file like the model's.
pub(in crate::http) async fn get_control(State(shared): State<AppState>) -> Result<Response, Problem> {
    let global = shared.global();
    let Some(control) = global.control.clone() else {
        let msg = format!("{} has no control variate", shared.config.aggregation.strategy);
        return Err(Problem::new(&shared, ErrorCode::NotFound, msg));
    };
    shared.sent_model(control.len());
    let headers = [
        (header::CONTENT_TYPE.as_str(), "application/octet-stream".to_owned()),
        (FL_ROUND, global.round.to_string()),
    ];
    Ok((headers, control).into_response())
}

/// Checks `wait`.
pub(in crate::http) fn wait(shared: &Shared, seconds: Option<f64>) -> Result<Duration, Problem> {
    match seconds.unwrap_or(0.0) {
        s if (0.0..=crate::config::MAX_WAIT).contains(&s) => Ok(Duration::from_secs_f64(s)),
        _ => Err(Problem::new(
            shared,
            ErrorCode::Malformed,
            format!("wait must be 0 to {} seconds", crate::config::MAX_WAIT),
        )),
    }
}

/// The model of an earlier round.
async fn kept(shared: &Arc<Shared>, round: u64) -> Result<Arc<Global>, Problem> {
    let global = shared.global();
    if round == global.round {
        return Ok(global);
    }
    let not_kept = || {
        let msg = match round > global.round {
            true => format!("round {round} does not exist yet: the newest is {}", global.round),
            false => format!("the model of round {round} is no longer kept"),
        };
        Problem::new(shared, ErrorCode::RoundNotKept, msg)
    };
    if round > global.round {
        return Err(not_kept());
    }
    let job_shared = shared.clone();
    let job = move || job_shared.durable.as_ref().map_or(Ok(None), |durable| durable.model_of(round));
    match shared.pool.run(job).await {
        Ok(Ok(Some(bytes))) => Ok(Arc::new(Global::new(round, bytes))),
        Ok(Ok(None)) => Err(not_kept()),
        Ok(Err(error)) => {
            tracing::error!(%error, "an earlier round's model cannot be read");
            Err(not_kept())
        }
        Err(_) => {
            Err(Problem::new(shared, ErrorCode::Overloaded, "too many requests are waiting: try again later"))
        }
    }
}

/// The newest model once its round is `min` or later; `None` if it is not in time.
async fn newer(shared: &Shared, min: u64, wait: Duration) -> Option<Arc<Global>> {
    let mut published = shared.published.clone();
    let mut draining = shared.draining.subscribe();
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

fn common(response: &mut Response, global: &Global, form: Form) {
    let headers = response.headers_mut();
    if let Ok(etag) = HeaderValue::from_str(&form.etag(global)) {
        headers.insert(header::ETAG, etag);
    }
    headers.insert(FL_ROUND, HeaderValue::from(global.round));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
}

fn not_modified(global: &Global, form: Form) -> Response {
    let mut response = StatusCode::NOT_MODIFIED.into_response();
    common(&mut response, global, form);
    response
}

/// Makes a representation on a thread for CPU work.
async fn made<T: Send + 'static>(
    shared: &Arc<Shared>,
    job: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    match shared.pool.run(job).await {
        Ok(Ok(made)) => Ok(made),
        Ok(Err(error)) => {
            tracing::error!(%error, "the model cannot be written as it was asked for");
            Err(Problem::new(shared, ErrorCode::Internal, "an internal fault"))
        }
        Err(_) => {
            let msg = "too many requests are waiting: try again later";
            Err(Problem::new(shared, ErrorCode::Overloaded, msg))
        }
    }
}

async fn json(shared: &Arc<Shared>, global: Arc<Global>) -> Result<Response, Problem> {
    let source = global.clone();
    let body = made(shared, move || {
        Ok(serde_json::to_vec(&GlobalJson { round: source.round, weights: source.parameters()? })?)
    })
    .await?;
    shared.sent_model(body.len());
    let mut response = ([(header::CONTENT_TYPE, "application/json")], body).into_response();
    common(&mut response, &global, Form::Json);
    Ok(response)
}

fn file(
    shared: &Shared,
    global: &Global,
    form: Form,
    file: &Bytes,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let len = file.len();
    // A range of another version of the file is of no use: `If-Range` asks for the whole then.
    let is_same = header_of(headers, header::IF_RANGE).is_none_or(|tag| tag == form.etag(global));
    let asked = match header_of(headers, header::RANGE) {
        Some(range) if is_same => range::parse(range, len),
        _ => range::Asked::Whole,
    };
    let (status, bytes, content_range) = match asked {
        range::Asked::Whole => (StatusCode::OK, file.clone(), None),
        range::Asked::Part(part) => {
            let content_range = format!("bytes {}-{}/{len}", part.start, part.end - 1);
            (StatusCode::PARTIAL_CONTENT, file.slice(part), Some(content_range))
        }
        range::Asked::Unsatisfiable => {
            let msg = format!("the file has {len} bytes: that range is not in it");
            let mut response = Problem::new(shared, ErrorCode::RangeNotSatisfiable, msg).into_response();
            insert(&mut response, header::CONTENT_RANGE, &format!("bytes */{len}"));
            return Ok(response);
        }
    };
    shared.sent_model(bytes.len());
    let mut response = (status, Body::from(bytes)).into_response();
    common(&mut response, global, form);
    insert(&mut response, header::CONTENT_TYPE, "application/octet-stream");
    insert(&mut response, header::ACCEPT_RANGES, "bytes");
    let disposition = format!("attachment; filename=\"{}\"", form.file_name(global));
    insert(&mut response, header::CONTENT_DISPOSITION, &disposition);
    if let Some(content_range) = content_range {
        insert(&mut response, header::CONTENT_RANGE, &content_range);
    }
    Ok(response)
}

fn insert(response: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
