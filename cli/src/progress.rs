//! Progress of a run on the terminal, and its summary.

use crate::{
    output::{self, human_bytes},
    report::Summary,
};
use fl_protocol::HistoryRecord;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::path::Path;

/// A progress bar with a line per round above it, or JSON lines.
pub struct Progress {
    bar: Option<ProgressBar>,
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
            return Self { bar: None };
        }
        println!("{headline}");
        println!(
            "{:>6} {:>9} {:>9} {:>10} {:>11} {:>10} {:>9}",
            "round", "accuracy", "loss", "train loss", "up", "bits/param", "ms"
        );
        Self { bar: Some(bar(rounds)) }
    }

    /// Shows a finished round.
    pub fn round(&self, record: &HistoryRecord) -> anyhow::Result<()> {
        let Some(bar) = &self.bar else {
            return output::json_line(&RoundLine { event: "round", record });
        };
        bar.suspend(|| {
            let known = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.4}"));
            println!(
                "{:>6} {:>9} {:>9} {:>10} {:>11} {:>10.2} {:>9.1}",
                record.round,
                record.test_accuracy.map_or("-".to_owned(), |value| format!("{:.2}%", 100.0 * value)),
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
        summary.accuracy.map_or(String::new(), |accuracy| format!("accuracy {:.2} %   ", 100.0 * accuracy)),
        summary.loss,
        summary.rounds,
        summary.wall_s,
        summary.round_ms_median
    );
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
