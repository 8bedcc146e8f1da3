//! A socket that gives up on a client which does not read its answer.

use super::connections::Place;
use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// An answer may take its time-out plus its size at this rate, in bytes per second.
const MIN_RATE: f64 = 16_384.0;

/// Fails a write whose reader is too slow, and tells the connection's place while one waits.
#[derive(Debug)]
pub struct Stalling<S> {
    inner: S,
    timeout: Duration,
    place: Option<Arc<Place>>,
    wait: Option<Wait>,
}

/// From the moment that a write has to wait until everything is written.
#[derive(Debug)]
struct Wait {
    since: Instant,
    written: usize,
    timer: Pin<Box<Sleep>>,
}

impl<S> Stalling<S> {
    /// Wraps a socket. `place` is notified whether a response waits for its reader.
    pub fn new(inner: S, timeout: Duration, place: Option<Arc<Place>>) -> Self {
        Self { inner, timeout, place, wait: None }
    }

    /// Notes the result of a write, and fails one that has waited too long.
    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
        written: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        let timeout = self.timeout;
        match result {
            Poll::Ready(done) => {
                if let (Some(wait), Ok(done)) = (&mut self.wait, &done) {
                    wait.written += written(done);
                }
                Poll::Ready(done)
            }
            Poll::Pending => {
                self.tell(true);
                let wait = self.wait.get_or_insert_with(|| Wait {
                    since: Instant::now(),
                    written: 0,
                    timer: Box::pin(sleep(timeout)),
                });
                let deadline = wait.since + timeout + Duration::from_secs_f64(wait.written as f64 / MIN_RATE);
                if wait.timer.deadline() != deadline {
                    wait.timer.as_mut().reset(deadline);
                }
                wait.timer.as_mut().poll(cx).map(|()| {
                    Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answer"))
                })
            }
        }
    }

    fn tell(&mut self, is_writing: bool) {
        if self.wait.is_some() != is_writing
            && let Some(place) = &self.place
        {
            place.set_writing(is_writing);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.watch(cx, result, |n| *n)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.watch(cx, result, |n| *n)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// Called once everything has been written: no answer waits any more.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        if result.is_ready() {
            self.tell(false);
            self.wait = None;
        }
        self.watch(cx, result, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch(cx, result, |()| 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::server::connections::Connections;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn a_reader_that_stops_is_given_up() {
        let connections = Arc::new(Connections::new(1, 1));
        let place = connections.admit([127, 0, 0, 1].into()).unwrap();
        let (near, mut far) = tokio::io::duplex(64);
        let mut near = Stalling::new(near, Duration::from_millis(50), Some(place.clone()));
        // One that reads gets everything, however little at a time.
        let sent = async {
            near.write_all(&[1; 1000]).await.unwrap();
            near.flush().await.unwrap();
        };
        let mut received = [0; 1000];
        let (read, ()) = tokio::join!(far.read_exact(&mut received), sent);
        assert_eq!((read.unwrap(), received), (1000, [1; 1000]));
        assert!(near.wait.is_none());
        // One that stops is busy until it is given up.
        let error = near.write_all(&[0; 65]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(connections.admit([127, 0, 0, 2].into()).is_none(), "it counts as busy while it writes");
    }
}
