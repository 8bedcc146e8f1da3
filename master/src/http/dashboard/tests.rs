use super::*;
use fl_protocol::{ClientEvaluation, LastClientEvaluation, MissingWorker, StatusBody, Waiting};
use std::collections::BTreeMap;

fn worker(round: u64, last_update_ts: f64) -> WorkerStatus {
    WorkerStatus {
        ip: "<script>".to_owned(),
        round,
        num_samples: 360,
        loss: Some(0.25),
        compute_factor: Some(0.012),
        last_update_ts,
        bytes: 5432,
    }
}

fn status(workers: BTreeMap<String, WorkerStatus>) -> StatusBody {
    StatusBody {
        global_round: 7,
        num_pending_rounds: 1,
        pending_updates: 1,
        min_clients: 2,
        waiting: None,
        workers,
        model: "<b>mlp</b>".to_owned(),
        num_parameters: 99_910,
        dataset: "digits".to_owned(),
        strategy: "fedavg".to_owned(),
        last_evaluation: Some(LastEvaluation {
            round: 7,
            accuracy: Some(0.9722),
            loss: 0.1123,
            absolute_error: None,
            samples: 360,
        }),
        client_evaluation: None,
        rejected_updates: BTreeMap::from([("stale_round".to_owned(), 2)]),
        reused_updates: 0,
        bytes_saved: 0,
        uptime_s: 75.0,
        finished: false,
        version: "0.1.0".to_owned(),
    }
}

fn view(status: StatusBody, now_ts: f64) -> Snapshot {
    Snapshot { num_workers: status.workers.len(), status, now_ts }
}

fn record(round: u64) -> HistoryRecord {
    HistoryRecord {
        round,
        started_ts: 90.0,
        finished_ts: 95.0,
        duration_s: 0.084,
        participants: 2,
        num_samples: 720,
        train_loss: Some(0.2),
        test_accuracy: Some(0.97),
        test_loss: Some(0.11),
        test_absolute_error: None,
        evaluation: None,
        update_metrics: Default::default(),
        bytes_up: 10_864,
        reused: 0,
        bytes_saved: 0,
        bytes_down: 800_000,
        bits_per_param: 0.43,
    }
}

fn sample() -> String {
    let workers =
        BTreeMap::from([("edge1".to_owned(), worker(7, 99.0)), ("edge2".to_owned(), worker(2, 10.0))]);
    page(&view(status(workers), 100.0), &[record(6), record(7)], "http://host:5000/\"><script>")
}

#[test]
fn every_place_of_the_template_is_filled() {
    let page = sample();
    assert!(!page.contains("{{"), "{page}");
    let empty = page_of_a_fresh_master();
    assert!(!empty.contains("{{"), "{empty}");
}

fn page_of_a_fresh_master() -> String {
    let status = StatusBody { last_evaluation: None, global_round: 0, ..status(BTreeMap::new()) };
    page(&view(status, 100.0), &[], "http://localhost:5000")
}

#[test]
fn the_numbers_are_there_without_a_script() {
    let page = sample();
    for text in [
        "Round 8 is open",
        "1 of 2 updates",
        "97.2%",
        "5.43 kB",
        "74.4× smaller",
        "84 ms",
        "edge1",
        "delivered",
        "4 rounds behind",
        "stale_round 2",
        "99,910",
    ] {
        assert!(page.contains(text), "{text} is missing");
    }
    let fresh = page_of_a_fresh_master();
    for text in ["No worker has delivered", "No round has finished", "not evaluated yet", "the initial model"]
    {
        assert!(fresh.contains(text), "{text} is missing");
    }
}

#[test]
fn a_regression_shows_its_absolute_error_and_no_accuracy() {
    let last_evaluation =
        LastEvaluation { round: 7, accuracy: None, loss: 0.25, absolute_error: Some(0.4217), samples: 9 };
    let status = StatusBody { last_evaluation: Some(last_evaluation), ..status(BTreeMap::new()) };
    let record = |round, error| HistoryRecord {
        test_accuracy: None,
        test_loss: Some(0.25),
        test_absolute_error: Some(error),
        ..record(round)
    };
    let page = page(&view(status, 100.0), &[record(6, 0.5), record(7, 0.4217)], "http://localhost:5000");
    for text in ["Mean absolute error", ">0.4217<", "squared error 0.2500, best 0.4217"] {
        assert!(page.contains(text), "{text} is missing");
    }
    assert!(!page.contains("0.0%"), "there is no accuracy");
}

#[test]
fn what_workers_found_is_shown_with_the_worst_of_them() {
    let spread = Spread {
        mean: 0.951,
        p10: 0.9,
        median: 0.96,
        worst: 0.88,
        worst_client: "edge3".parse().unwrap(),
        clients: 4,
    };
    let metrics = BTreeMap::from([("accuracy".to_owned(), spread.clone()), ("a_b".to_owned(), spread)]);
    let found = ClientEvaluation { clients: 4, num_samples: 90, metrics };
    let client_evaluation = Some(LastClientEvaluation { round: 7, found });
    let status = StatusBody { client_evaluation, ..status(BTreeMap::new()) };
    let shown = page(&view(status, 100.0), &[], "http://localhost:5000");
    for text in ["Accuracy on the workers&#39; data", "95.1%", "round 7, 4 workers, worst 88.0% (edge3)"] {
        assert!(shown.contains(text), "{text} is missing");
    }
    assert!(shown.contains("id=\"clients-tile\">") && sample().contains("id=\"clients-tile\" hidden>"));
    assert_eq!(title_of("a_b"), "A b");
}

#[test]
fn what_comes_from_outside_is_escaped() {
    let page = sample();
    assert!(!page.contains("<script>") && !page.contains("<b>mlp"), "{page}");
    assert!(page.contains("&lt;script&gt;") && page.contains("&lt;b&gt;mlp"));
}

#[test]
fn the_page_obeys_its_own_policy() {
    for banned in ["style=\"", "onclick", "javascript:", "<style", "http://", "https://", "//cdn"] {
        assert!(!PAGE.contains(banned), "{banned}");
    }
    assert!(!PAGE.contains("<script>"));
}

#[test]
fn the_whole_page_is_light() {
    let total = PAGE.len()
        + STYLE.len()
        + SCRIPT.len()
        + ICON.len()
        + assets::COMMON_JS.len()
        + assets::UPLOT_JS.len()
        + assets::UPLOT_CSS.len();
    assert!(total <= 150_000, "{total} bytes");
}

#[test]
fn workers_that_are_left_out_are_mentioned() {
    let workers = (0..200).map(|i| (format!("w{i:04}"), worker(1, 99.0))).collect();
    let view = Snapshot { num_workers: 1000, ..view(status(workers), 100.0) };
    let page = page(&view, &[], "http://localhost:5000");
    assert!(page.contains("The 200 heard from last of 1,000"));
}

#[test]
fn a_round_that_waits_says_for_whom_and_why() {
    let missing =
        (0..7).map(|i| MissingWorker { worker: format!("<edge{i}>"), last_seen_ts: 40.0 }).collect();
    let reason = "waiting for 7 more updates of 9".to_owned();
    let waiting = Waiting { needed: 9, accepted: 2, since_ts: 70.0, reason, missing };
    let status = StatusBody { waiting: Some(waiting), ..status(BTreeMap::new()) };
    let page = page(&view(status, 100.0), &[], "http://localhost:5000");
    let found = page.split("<noscript><p class=\"waiting\">").nth(1).unwrap().split("</p>").next().unwrap();
    let text =
        "waiting for 7 more updates of 9; the round opened 30 s ago: &lt;edge0&gt; heard from 60 s ago, ";
    assert!(found.starts_with(text), "{found}");
    assert_eq!(found.matches("heard from").count(), MAX_MISSING);
    assert!(sample().contains("<noscript><p class=\"waiting\"></p>"), "nothing is shown while nothing waits");
}
