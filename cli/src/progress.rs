//! Progress of a run on the terminal, and its summary.

use crate::{
    output::{self, human_bytes},
    report::Summary,
};
use fl_protocol::HistoryRecord;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::{cell::Cell, path::Path};

/// A progress bar with a line per round above it, or JSON lines.
pub struct Progress {
    bar: Option<ProgressBar>,
    /// Whether the heads of the columns are written: they depend on the metric of the first round.
    has_head: Cell<bool>,
}

fn bar(rounds: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(rounds), ProgressDrawTarget::stderr());
    let style =
        ProgressStyle::with_template("{bar:40.cyan} round {pos}/{len}  {elapsed} elapsed, {eta} left");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Calls `work` with a function to be called after each of `rounds` rounds, which advances a bar on stderr.
pub fn with_bar<T>(rounds: u64, work: impl FnOnce(&dyn Fn()) -> T) -> T {
    let bar = bar(rounds);
    let result = work(&|| bar.inc(1));
    bar.finish_and_clear();
    result
}

impl Progress {
    /// Starts with a line that describes the run.
    pub fn new(rounds: u64, headline: &str, json: bool) -> Self {
        if json {
            return Self { bar: None, has_head: Cell::new(true) };
        }
        println!("{headline}");
        Self { bar: Some(bar(rounds)), has_head: Cell::new(false) }
    }

    /// Shows a finished round.
    pub fn round(&self, record: &HistoryRecord) -> anyhow::Result<()> {
        let Some(bar) = &self.bar else {
            return output::json_line(&RoundLine { event: "round", record });
        };
        bar.suspend(|| {
            if !self.has_head.replace(true) {
                let metric = if record.test_absolute_error.is_some() { "abs error" } else { "accuracy" };
                println!(
                    "{:>6} {metric:>9} {:>9} {:>10} {:>11} {:>10} {:>9}",
                    "round", "loss", "train loss", "up", "bits/param", "ms"
                );
            }
            let known = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
            println!(
                "{:>6} {:>9} {:>9} {:>10} {:>11} {:>10.2} {:>9.1}",
                record.round,
                match record.test_accuracy {
                    Some(accuracy) => format!("{:.2}%", 100.0 * accuracy),
                    None => known(record.test_absolute_error),
                },
                known(record.test_loss),
                known(record.train_loss),
                human_bytes(record.bytes_up as f64),
                record.bits_per_param,
                1e3 * record.duration_s
            );
        });
        bar.inc(1);
        Ok(())
    }

    /// Removes the bar.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[derive(Serialize)]
struct RoundLine<'a> {
    event: &'static str,
    #[serde(flatten)]
    record: &'a HistoryRecord,
}

/// Prints the summary of a run.
pub fn print_summary(summary: &Summary, out: &Path) {
    println!(
        "\n{}loss {:.4}   {} rounds in {:.1} s (median {:.1} ms)",
        match (summary.accuracy, summary.absolute_error) {
            (Some(accuracy), _) => format!("accuracy {:.2} %   ", 100.0 * accuracy),
            (None, Some(error)) => format!("mean absolute error {error:.4}   "),
            (None, None) => String::new(),
        },
        summary.loss,
        summary.rounds,
        summary.wall_s,
        summary.round_ms_median
    );
    let percent = |value: f64| format!("{:.2} %", 100.0 * value);
    let clients = [
        (&summary.client_accuracy, "accuracy", percent as fn(f64) -> String),
        (&summary.client_absolute_error, "mean absolute error", |value| format!("{value:.4}")),
    ];
    for (spread, name, number) in clients {
        if let Some(spread) = spread {
            println!(
                "clients' own data: {name} {} (median {}, 10th percentile {}, worst {} at {})",
                number(spread.mean),
                number(spread.median),
                number(spread.p10),
                number(spread.worst),
                spread.worst_client
            );
        }
    }
    println!(
        "one update: {} of {} as f32 ({:.2} bits per parameter)",
        human_bytes(summary.bytes_up_per_update),
        human_bytes(4.0 * summary.params as f64),
        summary.bits_per_param
    );
    if summary.reused > 0 {
        println!(
            "left out: {} uploads, which saved {}",
            summary.reused,
            human_bytes(summary.bytes_saved as f64)
        );
    }
    if let Some(virtual_s) = summary.virtual_s {
        println!("virtual time: {virtual_s:.1} s");
    }
    println!("model:   {}\nreport:  {}", summary.global, out.join("report.html").display());
}
