//! Bodies that were answered before they were read.
//!
//! A client that writes its whole request before it reads the answer must not find the connection
//! reset, or the answer is lost with it. So what a handler leaves of a body is read and dropped, within
//! bounds, while the answer is already on its way.

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    runtime::Handle,
    time::{Instant, timeout_at},
};

/// Bytes that are read and dropped before the connection is closed.
const MAX_BYTES: usize = 32 << 20;
/// Time that it may take in any case, ...
const TIME: Duration = Duration::from_secs(2);
/// ... beyond that the rate in bytes per second that a client must keep, ...
const MIN_RATE: f64 = 65_536.0;
/// ... and the time that it may take at most.
const MAX_TIME: Duration = Duration::from_secs(30);

/// A request's body whose rest is read and dropped when the handler drops it.
pub struct Lingering {
    body: Option<Incoming>,
    is_read: bool,
    /// The client waits for `100 Continue` before it sends the body.
    awaits_continue: bool,
}

impl Lingering {
    /// Wraps the body of a request.
    pub fn wrap(body: Incoming, awaits_continue: bool) -> Body {
        match body.is_end_stream() {
            true => Body::empty(),
            false => Body::new(Self { body: Some(body), is_read: false, awaits_continue }),
        }
    }
}

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.is_read = true;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        // A client that waits for `100 Continue` has not sent its body: there is nothing to read.
        if self.awaits_continue && !self.is_read {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(discard(body));
        }
    }
}

async fn discard(mut body: impl HttpBody<Data = Bytes, Error = hyper::Error> + Unpin) {
    let start = Instant::now();
    let mut read = 0;
    while read < MAX_BYTES {
        let allowed = (TIME + Duration::from_secs_f64(read as f64 / MIN_RATE)).min(MAX_TIME);
        match timeout_at(start + allowed, body.frame()).await {
            Ok(Some(Ok(frame))) => read += frame.data_ref().map_or(0, Bytes::len),
            _ => return,
        }
    }
}
