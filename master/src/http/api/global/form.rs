//! Representations of a model, and how a request selects one.

use super::{Params, header_of};
use crate::{
    federation::model::{self, Compact},
    http::App,
    http::problem::Problem,
};
use anyhow::Context;
use axum::{
    body::Bytes,
    http::{HeaderMap, header},
};
use fl_model::ModelView;
use fl_protocol::ErrorCode;
use fl_quant::Scheme;
use serde::Serialize;

/// Bits of a quantized model unless the call says so.
const DEFAULT_BITS: u8 = 8;

/// [`fl_protocol::GlobalJson`] of parameters that lie elsewhere.
#[derive(Serialize)]
struct BorrowedJson<'a> {
    round: u64,
    weights: &'a [f32],
}

/// A representation of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The exact model, a safetensors file.
    Exact,
    /// The quantized model, a safetensors file.
    Compact(Compact),
    /// The predecessor's JSON.
    Json,
}

impl Form {
    /// The form that a request asks for.
    pub(super) fn asked(app: &App, params: &Params, headers: &HeaderMap) -> Result<Self, Problem> {
        let bad = |code, msg: String| Err(Problem::new(app, code, msg));
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

    /// The tag of this form of the model whose exact file has the tag `exact`.
    pub(super) fn etag(self, exact: &str) -> String {
        let plain = exact.trim_end_matches('"');
        match self {
            Self::Exact => exact.to_owned(),
            Self::Compact(compact) => format!("{plain}-{compact}\""),
            Self::Json => format!("{plain}-json\""),
        }
    }

    /// Under which name the file is saved.
    pub(super) fn file_name(self, round: u64) -> String {
        match self {
            Self::Compact(compact) => format!("global-round-{round}-{compact}.safetensors"),
            Self::Exact | Self::Json => format!("global-round-{round}.safetensors"),
        }
    }

    /// Makes this form of the exact file of `round`. Takes a while: not on an async thread.
    ///
    /// # Errors
    /// If the file is not a model.
    pub(super) fn make(self, round: u64, exact: &Bytes) -> anyhow::Result<Bytes> {
        match self {
            Self::Exact => Ok(exact.clone()),
            Self::Compact(compact) => Ok(model::quantize(exact, round, compact)?),
            Self::Json => {
                let weights = ModelView::read(exact)?.values()?;
                let json =
                    serde_json::to_vec(&BorrowedJson { round, weights: &weights }).context("as JSON")?;
                Ok(json.into())
            }
        }
    }
}
