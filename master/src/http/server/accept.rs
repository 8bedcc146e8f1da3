//! The accept loop: places for connections, TLS, time-outs, and a shutdown that lets what is in flight
//! finish.

use super::{
    connections::{Busy, Connections, Place},
    lane::{Lane, LanePlace},
    linger::Lingering,
    stall::Stalling,
};
use crate::{
    http::AppState,
    http::{is_probe, problem::Problem, router},
    service::Peer,
};
use axum::{
    Router,
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use fl_protocol::ErrorCode;
use hyper::{
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{
    convert::Infallible,
    net::IpAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tracing::{debug, warn};

/// Memory of a connection's read buffer; also the bound of a request's head.
const BUFFER_BYTES: usize = 32 << 10;
/// Lines of a request's head.
const MAX_HEADERS: usize = 64;
/// Pause after `accept` fails, mostly for lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Time for an evicted connection to finish a response that has just begun.
const EVICTED_TIME: Duration = Duration::from_millis(250);
/// Read buffer of a connection without a place: the least that hyper takes.
const LANE_BUFFER_BYTES: usize = 8 << 10;
/// Time limit of a connection beyond the cap, handshake included.
const LANE_TIME: Duration = Duration::from_secs(2);

/// State shared by all connections.
struct Server {
    app: AppState,
    router: Router,
    http: http1::Builder,
    lane_http: http1::Builder,
    tls: Option<TlsAcceptor>,
    head_timeout: Duration,
    write_timeout: Duration,
    draining: watch::Receiver<bool>,
}

/// How a connection came in.
#[derive(Debug)]
enum Seat {
    /// As one of `MAX_CONNECTIONS`.
    Place(Arc<Place>),
    /// There was no place: only probes are answered.
    Lane(LanePlace),
}

/// Accepts connections until a shutdown begins, then waits for the open ones as long as `DRAIN_S`.
pub async fn serve(listener: TcpListener, app: AppState, tls: Option<TlsAcceptor>) {
    let limits = &app.job.config.limits;
    let head_timeout = Duration::from_secs_f64(limits.header_timeout_s);
    let per_address = limits.max_connections_per_ip.unwrap_or(limits.max_connections);
    let connections = Arc::new(Connections::new(limits.max_connections, per_address));
    let lane = Arc::new(Lane::default());
    let server = Arc::new(Server {
        router: router(app.clone()),
        http: http(head_timeout, BUFFER_BYTES, true),
        lane_http: http(LANE_TIME, LANE_BUFFER_BYTES, false),
        tls,
        head_timeout,
        write_timeout: Duration::from_secs_f64(limits.write_timeout_s),
        draining: app.job.host.draining.subscribe(),
        app: app.clone(),
    });
    let (alive, mut all_gone) = mpsc::channel::<()>(1);
    let mut draining = app.job.host.draining.subscribe();
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
        let seat = match connections.admit(address.ip()) {
            Some(place) => Seat::Place(place),
            None => Seat::Lane(lane.enter()),
        };
        let (server, alive) = (server.clone(), alive.clone());
        tokio::spawn(async move {
            server.app.metrics.connections.inc();
            server.handle(stream, address.ip(), seat).await;
            server.app.metrics.connections.dec();
            drop(alive);
        });
    }
    drop((listener, alive));
    let limit = Duration::from_secs_f64(app.job.config.limits.drain_s);
    if timeout(limit, all_gone.recv()).await.is_err() {
        warn!(drain_s = limit.as_secs_f64(), "some connections did not finish in time: they are cut");
    }
}

fn http(head_timeout: Duration, buffer_bytes: usize, keep_alive: bool) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(buffer_bytes)
        .max_headers(MAX_HEADERS)
        .keep_alive(keep_alive);
    http
}

impl Server {
    async fn handle(&self, stream: TcpStream, ip: IpAddr, seat: Seat) {
        // Answers are small and wanted at once.
        let _ = stream.set_nodelay(true);
        match seat {
            Seat::Place(place) => {
                let stream = Stalling::new(stream, self.write_timeout, Some(place.clone()));
                tokio::select! {
                    () = self.greet(stream, ip, Some(&place)) => {}
                    () = place.was_cut() => debug!(%ip, "cut: it keeps an old model in memory"),
                }
            }
            Seat::Lane(lane) => {
                let stream = Stalling::new(stream, LANE_TIME, None);
                tokio::select! {
                    _ = timeout(LANE_TIME, self.greet(stream, ip, None)) => {}
                    () = lane.given_up() => {}
                }
            }
        }
    }

    /// Shakes hands where there is TLS, and serves. Without a `place` only probes are answered.
    async fn greet(&self, stream: Stalling<TcpStream>, ip: IpAddr, place: Option<&Arc<Place>>) {
        let Some(tls) = &self.tls else {
            return self.talk(stream, Peer { ip, has_certificate: false }, place).await;
        };
        let evicted = async {
            match place {
                Some(place) => place.evicted().await,
                None => std::future::pending().await,
            }
        };
        let shaken = tokio::select! {
            shaken = timeout(self.head_timeout, tls.accept(stream)) => shaken,
            () = evicted => return debug!(%ip, "evicted before it was heard of"),
        };
        match shaken {
            Ok(Ok(stream)) => {
                let has_certificate =
                    stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
                self.talk(stream, Peer { ip, has_certificate }, place).await;
            }
            Ok(Err(error)) => debug!(%ip, %error, "the TLS handshake failed"),
            Err(_) => debug!(%ip, "the TLS handshake took too long"),
        }
    }

    async fn talk<S>(&self, stream: S, peer: Peer, place: Option<&Arc<Place>>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| async move {
            Ok::<_, Infallible>(match place {
                Some(place) => self.answer(request, peer, place).await,
                None => held(self.answer_probe(request, peer).await, None),
            })
        });
        let http = if place.is_some() { &self.http } else { &self.lane_http };
        let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
        let mut draining = self.draining.clone();
        let drained = async {
            let _ = draining.wait_for(|draining| *draining).await;
        };
        let evicted = async {
            match place {
                Some(place) => place.evicted().await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = drained => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = evicted => {
                connection.as_mut().graceful_shutdown();
                match timeout(EVICTED_TIME, connection).await {
                    Ok(ended) => ended,
                    Err(_) => return debug!(ip = %peer.ip, "evicted"),
                }
            }
        };
        if let Err(error) = ended {
            debug!(ip = %peer.ip, %error, "the connection ended");
        }
    }

    async fn answer(
        &self,
        request: hyper::Request<Incoming>,
        peer: Peer,
        place: &Arc<Place>,
    ) -> hyper::Response<Held> {
        let Some(busy) = place.begin() else {
            return held(self.overloaded(), None);
        };
        let mut request = lingering(request);
        request.extensions_mut().insert(peer);
        request.extensions_mut().insert(place.clone());
        held(self.route(request).await, Some(busy))
    }

    async fn answer_probe(&self, request: hyper::Request<Incoming>, peer: Peer) -> Response {
        let mut request = lingering(request);
        request.extensions_mut().insert(peer);
        match is_probe(request.uri().path()) {
            true => self.route(request).await,
            false => self.overloaded(),
        }
    }

    async fn route(&self, request: axum::extract::Request) -> Response {
        match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    fn overloaded(&self) -> Response {
        let msg = "too many connections: try again later";
        let mut response = Problem::new(&self.app, ErrorCode::Overloaded, msg).into_response();
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

fn lingering(request: hyper::Request<Incoming>) -> axum::extract::Request {
    let awaits_continue = request.headers().contains_key(header::EXPECT);
    request.map(|body| Lingering::wrap(body, awaits_continue))
}

fn held(response: Response, busy: Option<Busy>) -> hyper::Response<Held> {
    response.map(|body| Held { body, _busy: busy })
}

/// An answer's body; its connection is busy until it is dropped.
struct Held {
    body: Body,
    _busy: Option<Busy>,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
