//! The closed set of error codes.

use serde::{Deserialize, Serialize};

/// Why a request was refused. The names are stable: clients match on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The body or the query cannot be read.
    Malformed,
    /// The bearer token is missing or wrong.
    Unauthorized,
    /// No such path.
    NotFound,
    /// The path does not take this method.
    MethodNotAllowed,
    /// The round's model has been pruned, or does not exist yet.
    RoundNotKept,
    /// The update belongs to a round that is over.
    StaleRound,
    /// The update belongs to a round that has not begun.
    FutureRound,
    /// The body is larger than this model's updates can be.
    TooLarge,
    /// The client took too long to send its request.
    RequestTimeout,
    /// The content type is not one that the endpoint reads.
    UnsupportedMediaType,
    /// A byte range that the file does not have.
    RangeNotSatisfiable,
    /// The tensors' names, shapes or types are not the model's.
    WrongTensors,
    /// A value is NaN or infinite.
    NonFinite,
    /// `num_samples` is zero or absurd.
    BadNumSamples,
    /// A quantized tensor cannot be decoded.
    BadStream,
    /// The quantizer is not known.
    UnknownQuantizer,
    /// An update's magnitude is beyond the limit.
    NormTooLarge,
    /// A notice of lazy upload names an update that the server no longer keeps: send the update itself.
    NoLastUpdate,
    /// This worker exceeds its rate limit.
    RateLimited,
    /// The server is at its limit.
    Overloaded,
    /// The server cannot make the update durable now.
    StorageUnavailable,
    /// The server is shutting down.
    Draining,
    /// An internal error of the server.
    Internal,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [ErrorCode; 23] = [
        Self::Malformed,
        Self::Unauthorized,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RoundNotKept,
        Self::StaleRound,
        Self::FutureRound,
        Self::TooLarge,
        Self::RequestTimeout,
        Self::UnsupportedMediaType,
        Self::RangeNotSatisfiable,
        Self::WrongTensors,
        Self::NonFinite,
        Self::BadNumSamples,
        Self::BadStream,
        Self::UnknownQuantizer,
        Self::NormTooLarge,
        Self::NoLastUpdate,
        Self::RateLimited,
        Self::Overloaded,
        Self::StorageUnavailable,
        Self::Draining,
        Self::Internal,
    ];

    /// The name on the wire and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::RoundNotKept => "round_not_kept",
            Self::StaleRound => "stale_round",
            Self::FutureRound => "future_round",
            Self::TooLarge => "too_large",
            Self::RequestTimeout => "request_timeout",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::RangeNotSatisfiable => "range_not_satisfiable",
            Self::WrongTensors => "wrong_tensors",
            Self::NonFinite => "non_finite",
            Self::BadNumSamples => "bad_num_samples",
            Self::BadStream => "bad_stream",
            Self::UnknownQuantizer => "unknown_quantizer",
            Self::NormTooLarge => "norm_too_large",
            Self::NoLastUpdate => "no_last_update",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::StorageUnavailable => "storage_unavailable",
            Self::Draining => "draining",
            Self::Internal => "internal",
        }
    }

    /// The HTTP status that carries it.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Malformed => 400,
            Self::Unauthorized => 401,
            Self::NotFound | Self::RoundNotKept => 404,
            Self::MethodNotAllowed => 405,
            Self::RequestTimeout => 408,
            Self::StaleRound | Self::FutureRound => 409,
            Self::TooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::RangeNotSatisfiable => 416,
            Self::WrongTensors
            | Self::NonFinite
            | Self::BadNumSamples
            | Self::BadStream
            | Self::UnknownQuantizer
            | Self::NormTooLarge
            | Self::NoLastUpdate => 422,
            Self::RateLimited => 429,
            Self::Internal => 500,
            Self::Overloaded | Self::StorageUnavailable | Self::Draining => 503,
        }
    }

    /// Whether the same request may succeed later.
    pub const fn is_transient(self) -> bool {
        matches!(self.http_status(), 408 | 429 | 500 | 503)
    }
}

/// The body of every response that is not a success: the predecessor's keys and a stable code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Always `"error"`.
    pub status: String,
    /// Stable, for programs.
    pub code: ErrorCode,
    /// A sentence, for people.
    pub msg: String,
    /// The round that the master is in.
    pub global_round: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_wire_are_the_names_in_code() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{}\"", code.as_str()));
            assert!((400..600).contains(&code.http_status()));
        }
    }
}
