//! `GET /events`: server-sent events that drive the dashboard.
//!
//! - `status`: a [`Snapshot`], at most one per [`STATUS_EVERY`], whenever something happened;
//! - `round`: the [`fl_protocol::HistoryRecord`] of a round that closed or was evaluated;
//! - `reset`: the reader was too slow and has missed events: ask `/history` again.

use crate::http::{AppState, problem::Problem};
use crate::{http::App, service::events::MasterEvent};
use axum::{
    Extension, Router,
    extract::State,
    http::{HeaderName, HeaderValue, header},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use fl_protocol::{ErrorCode, StatusBody};
use futures_util::stream;
use serde::Serialize;
use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, broadcast::error::RecvError},
    time::Instant,
};

/// Readers at the same time; each holds a connection and a place in the broadcast.
const MAX_READERS: usize = 64;
/// Shortest time between two `status` events.
const STATUS_EVERY: Duration = Duration::from_millis(250);
/// Longest time between two `status` events: refusals and forgotten workers cause no event.
const STATUS_AT_LEAST: Duration = Duration::from_secs(10);
/// After a silence of this length a comment is sent, so that no proxy closes the stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// What a browser waits before it connects again.
const RETRY: Duration = Duration::from_secs(2);
/// Workers in a snapshot: those heard from last.
const MAX_WORKERS: usize = 200;

/// The streams that are open.
#[derive(Debug, Clone)]
struct Readers(Arc<Semaphore>);

/// The route of the stream.
pub(in crate::http) fn routes() -> Router<AppState> {
    Router::new()
        .route("/events", get(get_events))
        .layer(Extension(Readers(Arc::new(Semaphore::new(MAX_READERS)))))
}

/// The status as the dashboard shows it: with the time, and no more workers than a page can hold.
#[derive(Debug, Serialize)]
pub(in crate::http) struct Snapshot {
    /// The answer of `GET /status`, with at most [`MAX_WORKERS`] workers.
    #[serde(flatten)]
    pub status: StatusBody,
    /// Workers in all.
    pub num_workers: usize,
    /// The master's clock, in seconds since 1970: the one that every other time here is read from.
    pub now_ts: f64,
}

impl Snapshot {
    /// The state at this moment.
    pub(in crate::http) fn take(app: &App) -> Self {
        Self {
            status: app.job.status_with(MAX_WORKERS),
            num_workers: app.job.view().workers().len(),
            now_ts: app.job.host.clock.now(),
        }
    }
}

async fn get_events(State(app): State<AppState>, Extension(readers): Extension<Readers>) -> Response {
    if app.job.host.is_draining() {
        return Problem::new(&app, ErrorCode::Draining, "the master is shutting down").into_response();
    }
    let Ok(place) = readers.0.try_acquire_owned() else {
        let msg = format!("{MAX_READERS} readers follow the events already: try again later");
        return Problem::new(&app, ErrorCode::Overloaded, msg).into_response();
    };
    let events = stream::unfold(Reader::new(app, place), |mut reader| async move {
        reader.next().await.map(|event| (Ok::<_, Infallible>(event), reader))
    });
    let stream = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("still here"));
    let headers = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // nginx holds answers back unless it is told not to.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, stream).into_response()
}

/// One open stream.
struct Reader {
    app: AppState,
    events: tokio::sync::broadcast::Receiver<MasterEvent>,
    draining: tokio::sync::watch::Receiver<bool>,
    queue: VecDeque<Event>,
    /// When the next `status` is due.
    due: Instant,
    last_status: Instant,
    _place: OwnedSemaphorePermit,
}

impl Reader {
    fn new(app: AppState, place: OwnedSemaphorePermit) -> Self {
        let (events, draining, now) =
            (app.job.subscribe(), app.job.host.draining.subscribe(), Instant::now());
        // The first event goes out at once and tells the browser how to come back.
        let first = status_event(&app).retry(RETRY);
        Self {
            app,
            events,
            draining,
            queue: VecDeque::from([first]),
            due: now + STATUS_AT_LEAST,
            last_status: now,
            _place: place,
        }
    }

    /// The next event; none once the master shuts down, so that a shutdown does not wait for readers.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some(event);
            }
            let event = tokio::select! {
                () = drained(&mut self.draining) => return None,
                event = self.events.recv() => Some(event),
                () = tokio::time::sleep_until(self.due) => None,
            };
            match event {
                Some(event) => self.take(event)?,
                None => self.push_status(),
            }
        }
    }

    fn take(&mut self, event: Result<MasterEvent, RecvError>) -> Option<()> {
        match event {
            Ok(MasterEvent::RoundClosed { record } | MasterEvent::RoundRecorded { record }) => {
                self.queue.push_back(json_event("round", &record).id(record.round.to_string()));
            }
            Ok(MasterEvent::UpdateAccepted { .. }) => {}
            Err(RecvError::Lagged(_)) => self.queue.push_back(Event::default().event("reset").data("{}")),
            Err(RecvError::Closed) => return None,
        }
        self.due = self.due.min(self.last_status + STATUS_EVERY);
        Some(())
    }

    fn push_status(&mut self) {
        self.queue.push_back(status_event(&self.app));
        self.last_status = Instant::now();
        self.due = self.last_status + STATUS_AT_LEAST;
    }
}

async fn drained(draining: &mut tokio::sync::watch::Receiver<bool>) {
    // An error means that the master is gone: the stream ends as well.
    let _ = draining.wait_for(|draining| *draining).await;
}

fn status_event(app: &App) -> Event {
    json_event("status", &Snapshot::take(app))
}

fn json_event(name: &str, body: &impl Serialize) -> Event {
    // These bodies are structs of numbers and strings: they always become JSON.
    let data = serde_json::to_string(body).unwrap_or_default();
    Event::default().event(name).data(data)
}
