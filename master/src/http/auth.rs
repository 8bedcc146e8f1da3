//! Who may call: the bearer token and the client certificate.

use super::{AppState, is_probe, problem::Problem};
use crate::{service::Peer, settings::Secret};
use axum::{
    extract::{Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use fl_protocol::ErrorCode;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Passes probes, and requests with the token and the certificate that the settings demand.
pub(super) async fn require(State(app): State<AppState>, request: Request, next: Next) -> Response {
    if is_probe(request.uri().path()) {
        return next.run(request).await;
    }
    let needs_certificate = app.job.config.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let has_certificate = request.extensions().get::<Peer>().is_some_and(|peer| peer.has_certificate);
    if needs_certificate && !has_certificate {
        return refuse(&app, "a client certificate is needed");
    }
    match &app.job.config.token {
        Some(token) if !shows(request.headers(), token) => {
            refuse(&app, "the bearer token is missing or wrong")
        }
        _ => next.run(request).await,
    }
}

fn refuse(app: &AppState, msg: &str) -> Response {
    Problem::new(app, ErrorCode::Unauthorized, msg).into_response()
}

fn shows(headers: &HeaderMap, token: &Secret) -> bool {
    let Some((scheme, shown)) = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|v| v.split_once(' '))
    else {
        return false;
    };
    if scheme.eq_ignore_ascii_case("bearer") {
        return is_same(shown.trim().as_bytes(), token);
    }
    // `Basic base64(user:password)`: the password is the token, the user name is ignored.
    scheme.eq_ignore_ascii_case("basic")
        && decode_base64(shown.trim()).is_some_and(|pair| {
            pair.iter().position(|b| *b == b':').is_some_and(|colon| is_same(&pair[colon + 1..], token))
        })
}

/// Compares digests in constant time: neither content nor length leaks.
fn is_same(shown: &[u8], token: &Secret) -> bool {
    Sha256::digest(shown).ct_eq(&Sha256::digest(token.0.as_bytes())).into()
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let (mut bits, mut count, mut out) = (0u32, 0, Vec::new());
    for byte in text.trim_end_matches('=').bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        shows(&headers, &Secret("s3cret".into()))
    }

    #[test]
    fn only_the_token_itself_opens() {
        assert!(shown("Bearer s3cret"));
        assert!(shown("bearer s3cret"));
        for bad in ["Bearer s3cre", "Bearer s3crets", "Bearer ", "Bearer", "s3cret", "Digest s3cret"] {
            assert!(!shown(bad), "{bad}");
        }
    }

    #[test]
    fn a_browser_can_send_it_as_a_password() {
        assert!(shown("Basic YW55OnMzY3JldA=="));
        assert!(shown("Basic OnMzY3JldA=="));
        for bad in ["Basic YW55Ondyb25n", "Basic czNjcmV0", "Basic ***", "Basic "] {
            assert!(!shown(bad), "{bad}");
        }
    }
}
