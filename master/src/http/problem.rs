//! The one place where an error becomes an HTTP answer.

use crate::{federation::intake::Rejection, service::state::Shared};
use axum::{
    Json,
    extract::rejection::QueryRejection,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use fl_protocol::{ErrorBody, ErrorCode};

/// Seconds after which a client may try again what failed for the moment.
const RETRY_AFTER_S: u64 = 1;

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) struct Problem {
    code: ErrorCode,
    msg: String,
    global_round: u64,
}

impl Problem {
    pub(crate) fn new(shared: &Shared, code: ErrorCode, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), global_round: shared.round() }
    }

    pub(crate) fn from_rejection(shared: &Shared, rejection: Rejection) -> Self {
        Self::new(shared, rejection.code, rejection.msg)
    }

    pub(crate) fn from_query(shared: &Shared, rejection: &QueryRejection) -> Self {
        Self::new(shared, ErrorCode::Malformed, rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = ErrorBody {
            status: "error".to_owned(),
            code: self.code,
            msg: self.msg,
            global_round: self.global_round,
        };
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        if matches!(self.code.http_status(), 429 | 503) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        match self.code {
            ErrorCode::Unauthorized => {
                // A browser asks for the token as a password when it is offered Basic.
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Bearer realm=\"fl-master\", Basic realm=\"fl-master\""),
                );
            }
            // What is left of the body is not worth reading.
            ErrorCode::TooLarge | ErrorCode::RequestTimeout => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}
