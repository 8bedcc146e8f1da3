//! The accept loop: caps, time-outs, TLS, and a shutdown that lets what is in flight finish.

use crate::http::router;
use crate::{service::state::Peer, service::state::Shared};
use axum::Router;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use std::{net::IpAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tracing::{debug, warn};

/// Memory of a connection's read buffer; also the bound of a request's head.
const BUFFER_BYTES: usize = 32 << 10;
/// Lines of a request's head.
const MAX_HEADERS: usize = 64;
/// Pause after the system refuses a connection, mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is sent to a connection beyond the cap: a 503 as any other.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
content-type: application/json\r\ncontent-length: 101\r\n\r\n\
{\"status\":\"error\",\"code\":\"overloaded\",\"msg\":\"too many connections: try again later\",\"global_round\":0}";

struct Connections {
    shared: Arc<Shared>,
    router: Router,
    http: http1::Builder,
    tls: Option<TlsAcceptor>,
    head_timeout: Duration,
}

/// Accepts connections until a shutdown begins, then waits for the open ones as long as `DRAIN_S`.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, tls: Option<TlsAcceptor>) {
    let head_timeout = Duration::from_secs_f64(shared.config.limits.header_timeout_s);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(BUFFER_BYTES)
        .max_headers(MAX_HEADERS);
    let connections = Arc::new(Connections {
        router: router(shared.clone()),
        http,
        tls,
        head_timeout,
        shared: shared.clone(),
    });
    let places = Arc::new(Semaphore::new(shared.config.limits.max_connections));
    let graceful = GracefulShutdown::new();
    let mut draining = shared.draining.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = draining.wait_for(|draining| *draining) => break,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            turn_away(stream);
            continue;
        };
        let (connections, watcher) = (connections.clone(), graceful.watcher());
        tokio::spawn(async move {
            connections.shared.metrics.connections.inc();
            connections.handle(stream, address.ip(), watcher).await;
            connections.shared.metrics.connections.dec();
            drop(place);
        });
    }
    drop(listener);
    let limit = Duration::from_secs_f64(shared.config.limits.drain_s);
    if tokio::time::timeout(limit, graceful.shutdown()).await.is_err() {
        warn!(drain_s = limit.as_secs_f64(), "some connections did not finish in time: they are cut");
    }
}

/// Answers without waiting for the request: the client reads it or not.
fn turn_away(stream: TcpStream) {
    let mut stream = stream;
    tokio::spawn(async move {
        let _ = tokio::time::timeout(Duration::from_secs(1), async {
            let _ = stream.write_all(TOO_MANY).await;
            let _ = stream.shutdown().await;
        })
        .await;
    });
}

impl Connections {
    async fn handle(&self, stream: TcpStream, ip: IpAddr, watcher: Watcher) {
        // Answers are small and wanted at once.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            return self.talk(stream, Peer { ip, has_certificate: false }, watcher).await;
        };
        match tokio::time::timeout(self.head_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => {
                let has_certificate =
                    stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
                self.talk(stream, Peer { ip, has_certificate }, watcher).await;
            }
            Ok(Err(error)) => debug!(%ip, %error, "the TLS handshake failed"),
            Err(_) => debug!(%ip, "the TLS handshake took too long"),
        }
    }

    async fn talk<S>(&self, stream: S, peer: Peer, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = self.router.clone();
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(peer);
            router.clone().oneshot(request)
        });
        let connection = self.http.serve_connection(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection).await {
            debug!(ip = %peer.ip, %error, "the connection ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fl_protocol::{ErrorBody, ErrorCode};

    #[test]
    fn the_answer_beyond_the_cap_is_well_formed() {
        let text = std::str::from_utf8(TOO_MANY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}\r\n", body.len()))
                || head.ends_with(&format!("content-length: {}", body.len()))
        );
        let body: ErrorBody = serde_json::from_str(body).unwrap();
        assert_eq!(body.code, ErrorCode::Overloaded);
    }
}
