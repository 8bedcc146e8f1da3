//! `GET /`: the dashboard. The page is complete as it is sent; a script keeps it up to date with the
//! events of `GET /events` and draws the charts.

mod format;

use super::{AppState, api::events::Snapshot};
use crate::assets::{self, ICON, STYLE};
use axum::{
    Router,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use fl_protocol::{HistoryRecord, LastEvaluation, Spread, WorkerStatus};
use format::{NONE, age, bytes, count, duration, escape, known, loss, median, percent, plural, row, three};
use std::{collections::BTreeMap, sync::LazyLock};

/// Finished rounds in the table.
const MAX_ROWS: usize = 20;
/// Missing workers of whom it is shown when they were heard from.
const MAX_MISSING: usize = 5;
/// Rounds whose median duration is shown.
const RECENT: usize = 100;

const PAGE: &str = include_str!("../../assets/index.html");
const SCRIPT: &str = include_str!("../../assets/app.js");

/// Allows the page to load and run its own files only, and forbids framing.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Part of the URLs of the page's files, so that they can be cached permanently and still change.
static BUILD: LazyLock<String> = LazyLock::new(|| {
    let mut hash = crc32fast::Hasher::new();
    for text in [PAGE, STYLE, SCRIPT, ICON, assets::COMMON_JS, assets::UPLOT_JS, assets::UPLOT_CSS] {
        hash.update(text.as_bytes());
    }
    format!("{:08x}", hash.finalize())
});

/// The dashboard's routes.
pub(super) fn routes() -> Router<AppState> {
    Router::new().route("/", get(get_page)).route("/assets/{name}", get(get_asset))
}

async fn get_page(State(app): State<AppState>, headers: HeaderMap) -> Response {
    let scheme = if app.job.config.tls.is_some() { "https" } else { "http" };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost:5000");
    let page = page(&Snapshot::take(&app), &app.job.history(), &format!("{scheme}://{host}"));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (HeaderName::from_static("referrer-policy"), HeaderValue::from_static("no-referrer")),
    ];
    (headers, page).into_response()
}

async fn get_asset(Path(name): Path<String>) -> Response {
    let (kind, body) = match name.as_str() {
        "app.js" => ("text/javascript; charset=utf-8", SCRIPT),
        "common.js" => ("text/javascript; charset=utf-8", assets::COMMON_JS),
        "style.css" => ("text/css; charset=utf-8", STYLE),
        "icon.svg" => ("image/svg+xml", ICON),
        "uplot.js" => ("text/javascript; charset=utf-8", assets::UPLOT_JS),
        "uplot.css" => ("text/css; charset=utf-8", assets::UPLOT_CSS),
        "uplot-license.txt" => ("text/plain; charset=utf-8", assets::UPLOT_LICENSE),
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (headers, body).into_response()
}

/// The page for a state. `origin` is how the reader reached the master.
fn page(view: &Snapshot, history: &[HistoryRecord], origin: &str) -> String {
    fill(PAGE, |name| match name {
        "build" => Some(BUILD.clone()),
        "workers" => Some(worker_rows(view)),
        "rounds" => Some(round_rows(view, history)),
        "origin" => Some(escape(origin)),
        name => {
            status_value(name, view).or_else(|| history_value(name, view, history)).map(|text| escape(&text))
        }
    })
}

/// Puts values into `{{name}}`. A name without a value stays as it is, and a test finds it.
fn fill(template: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(template.len() * 2);
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let Some((name, tail)) = after.split_once("}}") else {
            out.push_str("{{");
            rest = after;
            break;
        };
        match value(name) {
            Some(text) => out.push_str(&text),
            None => {
                out.push_str("{{");
                out.push_str(name);
                out.push_str("}}");
            }
        }
        rest = tail;
    }
    out.push_str(rest);
    out
}

/// The values that the status alone gives.
fn status_value(name: &str, view: &Snapshot) -> Option<String> {
    let status = &view.status;
    let round = status.global_round;
    Some(match name {
        "round" => count(round),
        "file_name" => format!("global-round-{round}.safetensors"),
        "model" => status.model.clone(),
        "dataset" => status.dataset.clone(),
        "strategy" => status.strategy.clone(),
        "version" => status.version.clone(),
        "num_parameters" => count(status.num_parameters),
        "uptime" => duration(status.uptime_s.floor()),
        // The bar's two numbers are attributes: no separators.
        "min_clients" => status.min_clients.max(1).to_string(),
        "pending_updates" if status.finished => status.min_clients.max(1).to_string(),
        "pending_updates" => status.pending_updates.min(status.min_clients).to_string(),
        "open_title" if status.finished => "Training is finished".to_owned(),
        "open_title" => format!("Round {} is open", count(round + 1)),
        "open_text" if status.finished => "no more rounds".to_owned(),
        "open_text" => {
            format!(
                "{} of {}",
                count(status.pending_updates),
                plural(status.min_clients, "update", "updates")
            )
        }
        "waiting" => waiting(view),
        "refused" => refused(view),
        "num_workers" => count(view.num_workers as u64),
        "workers_note" if view.num_workers > status.workers.len() => "heard from so far".to_owned(),
        "workers_note" => {
            let fresh = status.workers.values().filter(|w| view.now_ts - w.last_update_ts < 60.0).count();
            format!("{fresh} in the last minute")
        }
        "workers_more" if view.num_workers > status.workers.len() => format!(
            "The {} heard from last of {}; all of them are in the status.",
            count(status.workers.len() as u64),
            count(view.num_workers as u64)
        ),
        "workers_more" => String::new(),
        _ => return None,
    })
}

/// The values that need the finished rounds.
fn history_value(name: &str, view: &Snapshot, history: &[HistoryRecord]) -> Option<String> {
    let last = history.last();
    Some(match name {
        "round_note" if view.status.finished => "training is finished".to_owned(),
        "round_note" => last.map_or_else(
            || "the initial model".to_owned(),
            |record| format!("finished {}", age(view.now_ts - record.finished_ts)),
        ),
        "accuracy_title" => match view.status.last_evaluation.and_then(|found| found.absolute_error) {
            Some(_) => "Mean absolute error".to_owned(),
            None => "Test accuracy".to_owned(),
        },
        "accuracy_column" => match view.status.last_evaluation.and_then(|found| found.absolute_error) {
            Some(_) => "Absolute error".to_owned(),
            None => "Accuracy".to_owned(),
        },
        "accuracy" => match view.status.last_evaluation {
            Some(LastEvaluation { absolute_error: error @ Some(_), .. }) => loss(error),
            evaluation => percent(evaluation.and_then(|evaluation| evaluation.accuracy)),
        },
        "accuracy_note" => accuracy_note(view, history),
        "clients_hidden" => match view.status.client_evaluation {
            Some(_) => String::new(),
            None => " hidden".to_owned(),
        },
        "clients_title" | "clients" | "clients_note" => clients(name, view),
        "update_size" => last.filter(|record| record.participants > 0).map_or_else(
            || NONE.to_owned(),
            |record| bytes(record.bytes_up as f64 / record.participants as f64),
        ),
        "update_note" => last.filter(|record| record.bits_per_param > 0.0).map_or_else(
            || "no update yet".to_owned(),
            |record| format!("{}× smaller than f32", three(32.0 / record.bits_per_param)),
        ),
        "round_time" => {
            let recent = history.iter().rev().take(RECENT).map(|record| record.duration_s).collect();
            known(median(recent), duration)
        }
        "round_time_note" => last.map_or_else(
            || "no round yet".to_owned(),
            |record| format!("median, last {}", duration(record.duration_s)),
        ),
        _ => return None,
    })
}

fn accuracy_note(view: &Snapshot, history: &[HistoryRecord]) -> String {
    let Some(evaluation) = view.status.last_evaluation else {
        return "not evaluated yet".to_owned();
    };
    let evaluated: Vec<f64> = history.iter().filter_map(|record| record.test_accuracy).collect();
    let last = loss(Some(evaluation.loss));
    let errors: Vec<f64> = history.iter().filter_map(|record| record.test_absolute_error).collect();
    let (least, best) = (errors.iter().copied().reduce(f64::min), evaluated.iter().copied().reduce(f64::max));
    match (least, best) {
        (least @ Some(_), _) if errors.len() > 1 => format!("squared error {last}, best {}", loss(least)),
        (Some(_), _) => format!("squared error {last}"),
        (None, best @ Some(_)) if evaluated.len() > 1 => format!("loss {last}, best {}", percent(best)),
        _ => format!("loss {last}"),
    }
}

/// What the workers found of the newest model that they evaluated: `assets/app.js` says the same.
fn clients(name: &str, view: &Snapshot) -> String {
    let shown = view.status.client_evaluation.as_ref().and_then(|last| {
        let (metric, spread) = main_metric(&last.found.metrics)?;
        Some((last, metric, spread))
    });
    let Some((last, metric, spread)) = shown else { return NONE.to_owned() };
    let number = |value| if metric == "accuracy" { percent(Some(value)) } else { loss(Some(value)) };
    match name {
        "clients_title" => format!("{} on the workers' data", title_of(metric)),
        "clients" => number(spread.mean),
        _ => format!(
            "round {}, {}, worst {} ({})",
            count(last.round),
            plural(spread.clients, "worker", "workers"),
            number(spread.worst),
            spread.worst_client
        ),
    }
}

/// The metric that is shown of several.
fn main_metric(metrics: &BTreeMap<String, Spread>) -> Option<(&str, &Spread)> {
    let named = |name: &str| metrics.get_key_value(name);
    let first = || metrics.first_key_value();
    let (name, spread) =
        named("accuracy").or_else(|| named("absolute_error")).or_else(|| named("loss")).or_else(first)?;
    Some((name, spread))
}

/// A metric's name as the head of a figure.
fn title_of(metric: &str) -> String {
    let text = metric.replace('_', " ");
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// The accuracy of a round, or the mean absolute error of a regression.
fn accuracy_or_error(record: &HistoryRecord) -> String {
    match record.test_absolute_error {
        error @ Some(_) => loss(error),
        None => percent(record.test_accuracy),
    }
}

/// Why a round waits, for how long, and when those that are missing were heard from.
fn waiting(view: &Snapshot) -> String {
    let Some(waiting) = &view.status.waiting else { return String::new() };
    let missing: Vec<String> = waiting
        .missing
        .iter()
        .take(MAX_MISSING)
        .map(|missing| format!("{} heard from {}", missing.worker, age(view.now_ts - missing.last_seen_ts)))
        .collect();
    let missing = if missing.is_empty() { String::new() } else { format!(": {}", missing.join(", ")) };
    format!("{}; the round opened {}{missing}", waiting.reason, age(view.now_ts - waiting.since_ts))
}

fn refused(view: &Snapshot) -> String {
    let rejected = &view.status.rejected_updates;
    let total: u64 = rejected.values().sum();
    if total == 0 {
        return String::new();
    }
    let reasons: Vec<String> = rejected.iter().map(|(code, n)| format!("{code} {}", count(*n))).collect();
    format!("{} refused since the start: {}", plural(total, "update", "updates"), reasons.join(", "))
}

fn worker_rows(view: &Snapshot) -> String {
    let mut out = String::new();
    for (id, worker) in &view.status.workers {
        let (class, state) = worker_state(view, worker);
        let cells = [
            ("", id.clone()),
            (class, state),
            ("", age(view.now_ts - worker.last_update_ts)),
            ("n", count(worker.round)),
            ("n", loss(worker.loss)),
            ("n", count(worker.num_samples)),
            ("n", known(worker.compute_factor, duration)),
            ("n", bytes(worker.bytes as f64)),
            ("", worker.ip.clone()),
        ];
        row(&mut out, &cells);
    }
    if out.is_empty() {
        out.push_str(
            "<tr><td class=\"empty\" colspan=\"9\">No worker has delivered an update yet.</td></tr>",
        );
    }
    out
}

/// Where a worker stands towards the open round: a class and a word.
fn worker_state(view: &Snapshot, worker: &WorkerStatus) -> (&'static str, String) {
    if view.status.finished {
        return ("", "done".to_owned());
    }
    match view.status.global_round.saturating_sub(worker.round) {
        0 => ("state-in", "delivered".to_owned()),
        1 => ("", "training".to_owned()),
        behind => ("state-late", format!("{} behind", plural(behind - 1, "round", "rounds"))),
    }
}

fn round_rows(view: &Snapshot, history: &[HistoryRecord]) -> String {
    let mut out = String::new();
    for record in history.iter().rev().take(MAX_ROWS) {
        let cells = [
            ("n", count(record.round)),
            ("", age(view.now_ts - record.finished_ts)),
            ("n", accuracy_or_error(record)),
            ("n", loss(record.test_loss)),
            ("n", loss(record.train_loss)),
            ("n", count(record.participants)),
            ("n", count(record.num_samples)),
            ("n", bytes(record.bytes_up as f64)),
            ("n", bytes(record.bytes_down as f64)),
            ("n", known(Some(record.bits_per_param), |bits| format!("{bits:.2}"))),
            ("n", duration(record.duration_s)),
        ];
        row(&mut out, &cells);
    }
    if out.is_empty() {
        out.push_str("<tr><td class=\"empty\" colspan=\"11\">No round has finished yet.</td></tr>");
    }
    out
}

#[cfg(test)]
mod tests;
