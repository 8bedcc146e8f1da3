//! The one place where an error becomes an HTTP answer.

use crate::{federation::intake::Rejection, http::App};
use axum::{
    Json,
    extract::rejection::QueryRejection,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use fl_protocol::{ErrorBody, ErrorCode};
use std::sync::atomic::{AtomicU64, Ordering};

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) struct Problem {
    code: ErrorCode,
    msg: String,
    global_round: u64,
    retry_after_s: Option<u64>,
}

impl Problem {
    pub(crate) fn new(app: &App, code: ErrorCode, msg: impl Into<String>) -> Self {
        Self {
            code,
            msg: msg.into(),
            global_round: app.job.round(),
            retry_after_s: retry_after_s(code, load(app)),
        }
    }

    pub(crate) fn from_rejection(app: &App, rejection: Rejection) -> Self {
        Self::new(app, rejection.code, rejection.msg)
    }

    pub(crate) fn from_query(app: &App, rejection: &QueryRejection) -> Self {
        Self::new(app, ErrorCode::Malformed, rejection.body_text())
    }
}

/// Load of the scarcest resource, connections or memory for bodies; 0 to 1.
fn load(app: &App) -> f64 {
    let connections = app.metrics.connections.get() as f64 / app.job.config.limits.max_connections as f64;
    connections.max(app.budget.load()).clamp(0.0, 1.0)
}

/// Seconds after which a client should try again what failed for the moment, if it did.
///
/// Clients that were refused together must not come back together: each answer draws its own delay.
fn retry_after_s(code: ErrorCode, load: f64) -> Option<u64> {
    let (least, most) = match code {
        ErrorCode::RateLimited => (1, 3),
        ErrorCode::Overloaded => (1, 2 + (3.0 * load).round() as u64),
        // A restart takes seconds, and so does making room on a disk.
        ErrorCode::Draining => (2, 5),
        ErrorCode::StorageUnavailable => (3, 5),
        _ => return None,
    };
    static ANSWERS: AtomicU64 = AtomicU64::new(0);
    // The golden ratio spreads successive answers evenly.
    let answer = ANSWERS.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Some(least + (answer >> 32) % (most - least + 1))
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
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        match self.code {
            ErrorCode::Unauthorized => {
                // A browser asks for the token as a password when it is offered Basic.
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static("Bearer realm=\"fl-master\", Basic realm=\"fl-master\""),
                );
            }
            // What is left of the body is dropped, and the connection with it.
            ErrorCode::TooLarge | ErrorCode::RequestTimeout => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_delay_varies_stays_within_its_bounds_and_grows_with_the_load() {
        let delays =
            |code, load| -> BTreeSet<u64> { (0..200).filter_map(|_| retry_after_s(code, load)).collect() };
        assert_eq!(delays(ErrorCode::Overloaded, 0.0), BTreeSet::from([1, 2]));
        assert_eq!(delays(ErrorCode::Overloaded, 1.0), BTreeSet::from([1, 2, 3, 4, 5]));
        assert_eq!(delays(ErrorCode::StorageUnavailable, 0.5), BTreeSet::from([3, 4, 5]));
        for code in ErrorCode::ALL {
            assert_eq!(
                retry_after_s(code, 0.5).is_some(),
                matches!(code.http_status(), 429 | 503),
                "{code:?}"
            );
        }
    }
}
