//! `fl watch`: a running federation in the terminal.

use crate::{
    output::{self, human_bytes, human_seconds},
    remote::{self, RemoteArgs},
};
use anyhow::Context;
use clap::Args;
use fl_app::{SettingError, setting::number};
use fl_protocol::{HistoryRecord, StatusBody};
use serde_json::Value;
use std::{
    fmt::Write as _,
    io::{IsTerminal, Write as _},
    time::{Duration, SystemTime},
};

/// Workers that are shown.
const WORKERS: usize = 12;
/// Rounds of the curves.
const ROUNDS: usize = 60;
/// Heights of a curve, from low to high.
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Arguments of `fl watch`.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Address of the master.
    #[arg(value_name = "URL", default_value = "http://localhost:5000")]
    url: String,

    /// Seconds between two looks, 0.1 to 3600.
    #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
    every: f64,

    /// Look once and end.
    #[arg(long)]
    once: bool,

    #[command(flatten)]
    remote: RemoteArgs,
}

/// Runs `fl watch`: until the training is over, or Ctrl-C. On a terminal it draws one picture again and again; else it
/// prints a line for each round that ends. With `--json` that line is the round's record.
pub fn run(args: &WatchArgs, json: bool) -> anyhow::Result<()> {
    number("--every", args.every, 0.1, 3600.0)?;
    if !RemoteArgs::is_address(&args.url) {
        return Err(SettingError::new(
            "URL",
            &args.url,
            "give an address that starts with http:// or https://",
        )
        .into());
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        tokio::select! {
            result = watch(args, json) => result,
            stopped = tokio::signal::ctrl_c() => Ok(stopped?),
        }
    })
}

async fn watch(args: &WatchArgs, json: bool) -> anyhow::Result<()> {
    let client = args.remote.client(&args.url)?;
    let draws = !json && (args.once || std::io::stdout().is_terminal());
    let mut shown = 0;
    loop {
        let looked = async {
            let (status, _) = remote::status(&client).await?;
            anyhow::Ok((status, remote::history(&client).await?))
        };
        let (status, rounds) = match looked.await {
            Ok(found) => found,
            // A master that restarts comes back; one that was never there does not.
            Err(error) if shown > 0 && !args.once => {
                eprintln!("{error:#}: looking again");
                tokio::time::sleep(Duration::from_secs_f64(args.every)).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        if draws {
            let records: Vec<HistoryRecord> = rounds
                .iter()
                .map(|record| serde_json::from_value(Value::Object(record.clone())))
                .collect::<Result<_, _>>()
                .context("this is not the history of a master of this system")?;
            draw(&picture(&args.url, &status, &records), args.once)?;
            shown = 1;
        } else {
            // Tests come some time after their round: it is printed when the next one is there, or at the end.
            let settled = rounds.len().saturating_sub(usize::from(!status.finished && !args.once));
            for record in rounds.iter().take(settled) {
                let number = record.get("round").and_then(Value::as_u64).unwrap_or(0);
                if number > shown {
                    shown = number;
                    print_round(record, json)?;
                }
            }
        }
        if args.once || status.finished {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs_f64(args.every)).await;
    }
}

fn print_round(record: &serde_json::Map<String, Value>, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json_line(record);
    }
    let record: HistoryRecord = serde_json::from_value(Value::Object(record.clone()))?;
    println!("{}", line_of(&record));
    Ok(())
}

fn line_of(record: &HistoryRecord) -> String {
    let mut line = format!("round {}: {} workers", record.round, record.participants);
    for (name, value) in [("train loss", record.train_loss), ("test loss", record.test_loss)] {
        if let Some(value) = value {
            let _ = write!(line, ", {name} {value:.4}");
        }
    }
    if let Some(accuracy) = record.test_accuracy {
        let _ = write!(line, ", accuracy {:.2}%", 100.0 * accuracy);
    }
    let _ =
        write!(line, ", {} up, {}", human_bytes(record.bytes_up as f64), human_seconds(record.duration_s));
    line
}

fn draw(picture: &str, once: bool) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    // Nothing that the master says may steer the terminal.
    let picture = picture.replace(|c: char| c.is_control() && c != '\n', "?");
    if once {
        write!(out, "{picture}")?;
    } else {
        // Home, each line to its end, then what is left of the last picture: nothing flickers.
        write!(out, "\x1b[H{}\x1b[J", picture.replace('\n', "\x1b[K\n"))?;
    }
    Ok(out.flush()?)
}

/// Everything at a glance.
fn picture(url: &str, status: &StatusBody, records: &[HistoryRecord]) -> String {
    let now =
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let mut text = String::new();
    let parameters = status.num_parameters;
    let _ = writeln!(
        text,
        "{url}  {} {} {}, {parameters} parameters",
        status.strategy, status.dataset, status.model
    );
    let state = match (&status.waiting, status.finished) {
        (_, true) => "finished".to_owned(),
        (Some(waiting), _) => waiting.reason.clone(),
        (None, _) => {
            format!("{} of {} updates of the open round", status.pending_updates, status.min_clients)
        }
    };
    let _ = writeln!(text, "round {}: {state}", status.global_round);
    if let Some(last) = records.last() {
        let _ = writeln!(text, "last {}", line_of(last));
    }
    let recent = &records[records.len().saturating_sub(ROUNDS)..];
    let curves = [
        ("accuracy", recent.iter().filter_map(|record| record.test_accuracy).collect()),
        ("test loss", recent.iter().filter_map(|record| record.test_loss).collect()),
        ("train loss", recent.iter().filter_map(|record| record.train_loss).collect::<Vec<_>>()),
    ];
    for (name, values) in curves {
        if let Some(curve) = curve(&values) {
            let _ = writeln!(text, "{name:>10} {curve}");
        }
    }
    let mut workers: Vec<_> = status.workers.iter().collect();
    workers.sort_by(|a, b| b.1.last_update_ts.total_cmp(&a.1.last_update_ts));
    if !workers.is_empty() {
        let _ = writeln!(
            text,
            "\n{:<24} {:>6} {:>9} {:>9} {:>9} {:>8}",
            "worker", "round", "samples", "loss", "bytes", "ago"
        );
    }
    for (id, worker) in workers.iter().take(WORKERS) {
        let _ = writeln!(
            text,
            "{:<24} {:>6} {:>9} {:>9} {:>9} {:>8}",
            id,
            worker.round,
            worker.num_samples,
            worker.loss.map_or("-".to_owned(), |loss| format!("{loss:.4}")),
            human_bytes(worker.bytes as f64),
            human_seconds((now - worker.last_update_ts).max(0.0)),
        );
    }
    if workers.len() > WORKERS {
        let _ = writeln!(text, "and {} more", workers.len() - WORKERS);
    }
    let refused: u64 = status.rejected_updates.values().sum();
    if refused > 0 {
        let reasons: Vec<String> =
            status.rejected_updates.iter().map(|(code, count)| format!("{code} {count}")).collect();
        let _ = writeln!(text, "\nrefused updates: {}", reasons.join(", "));
    }
    text
}

/// Values as a row of bars between their least and their greatest, which stand behind it; nothing for fewer than two.
fn curve(values: &[f64]) -> Option<String> {
    let (low, high) =
        values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(*v), high.max(*v)));
    if values.len() < 2 || !low.is_finite() || !high.is_finite() {
        return None;
    }
    let span = if high > low { high - low } else { 1.0 };
    let bars: String =
        values.iter().map(|v| LEVELS[(((v - low) / span) * 7.0).round() as usize % 8]).collect();
    Some(format!("{bars}  {low:.4} to {high:.4}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_goes_from_the_least_to_the_greatest() {
        assert_eq!(curve(&[0.0, 0.5, 1.0]).unwrap(), "▁▅█  0.0000 to 1.0000");
        assert_eq!(curve(&[2.0, 2.0]).unwrap(), "▁▁  2.0000 to 2.0000");
        assert!(curve(&[1.0]).is_none() && curve(&[1.0, f64::NAN, f64::INFINITY]).is_none());
    }
}
