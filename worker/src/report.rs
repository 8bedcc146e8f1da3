//! A worker's reports about its rounds, and how often it logs them.

use std::time::{Duration, Instant};
use tracing::{debug, info};

/// Rounds that are logged in full at the level `info`; later ones only in summaries.
const FULL_LINES: u64 = 3;

/// Least time between two summaries of rounds.
const SUMMARY_EVERY: Duration = Duration::from_secs(10);

/// Time between two lines about waiting.
const WAITING_EVERY: Duration = Duration::from_secs(60);

/// Waiting is not mentioned before.
const WAITING_AFTER: Duration = Duration::from_secs(10);

/// One round as the worker saw it.
#[derive(Debug, Clone, PartialEq)]
pub struct RoundReport {
    /// The round.
    pub round: u64,
    /// Mean training loss.
    pub loss: f64,
    /// Local samples.
    pub num_samples: u64,
    /// SGD steps.
    pub steps: u32,
    /// Time of the training, in milliseconds.
    pub train_ms: f64,
    /// Time of the encoding, in milliseconds.
    pub encode_ms: f64,
    /// Time of the upload, until the update was acknowledged, in milliseconds.
    pub upload_ms: f64,
    /// Size of the sent body, in bytes.
    pub bytes: u64,
    /// Whether it was a notice, so that the last update counts again (lazy upload).
    pub reused: bool,
    /// Size by the number of parameters.
    pub bits_per_param: f64,
    /// Whether the master had the update already.
    pub duplicate: bool,
}

/// What a worker did until it ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Updates that the master accepted.
    pub rounds: u64,
    /// Updates that came for the wrong round.
    pub refused: u64,
    /// Updates that were not sent, or not taken, since the training diverged or their norm was too large.
    pub dropped: u64,
    /// Bytes of accepted updates.
    pub bytes_up: u64,
}

/// Rounds since the last line.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Tally {
    rounds: u64,
    loss_sum: f64,
    train_ms: f64,
    bytes: u64,
}

/// What of a round goes to the log at the level `info`.
#[derive(Debug, PartialEq)]
enum Line {
    Full,
    Summary(Tally),
    None,
}

/// Logs rounds: the first ones in full, then a summary every ten seconds; at the level `debug` all of them.
#[derive(Debug, Default)]
pub(crate) struct RoundLog {
    logged: u64,
    since: Tally,
    last_line: Option<Instant>,
}

impl RoundLog {
    pub(crate) fn log(&mut self, report: &RoundReport, now: Instant) {
        macro_rules! line {
            ($level:ident) => {
                $level!(
                    round = report.round, loss = %format_args!("{:.4}", report.loss), samples = report.num_samples,
                    steps = report.steps, train_ms = report.train_ms, encode_ms = report.encode_ms,
                    upload_ms = report.upload_ms, size_bytes = report.bytes,
                    bits_per_param = %format_args!("{:.3}", report.bits_per_param), duplicate = report.duplicate,
                    reused = report.reused,
                    "round done"
                )
            };
        }
        match self.next(report, now) {
            Line::Full => line!(info),
            Line::Summary(tally) => {
                line!(debug);
                info!(
                    round = report.round, rounds = tally.rounds,
                    loss = %format_args!("{:.4}", tally.loss_sum / tally.rounds as f64),
                    train_ms = (tally.train_ms / tally.rounds as f64).round(), size_bytes = tally.bytes,
                    "rounds done since the last line"
                );
            }
            Line::None => line!(debug),
        }
    }

    fn next(&mut self, report: &RoundReport, now: Instant) -> Line {
        self.logged += 1;
        if self.logged <= FULL_LINES {
            self.last_line = Some(now);
            return Line::Full;
        }
        self.since.rounds += 1;
        self.since.loss_sum += report.loss;
        self.since.train_ms += report.train_ms;
        self.since.bytes += report.bytes;
        match self.last_line {
            Some(last) if now.duration_since(last) < SUMMARY_EVERY => Line::None,
            _ => {
                self.last_line = Some(now);
                Line::Summary(std::mem::take(&mut self.since))
            }
        }
    }
}

/// Says once in a while that, and for what, the worker waits.
#[derive(Debug, Default)]
pub(crate) struct WaitLog {
    /// Since when, and when it was last said.
    waiting: Option<(Instant, Option<Instant>)>,
}

impl WaitLog {
    /// The worker has something to do.
    pub(crate) fn reset(&mut self) {
        self.waiting = None;
    }

    /// The master had no work at `now`, for a request that was made at `asked`; how long the worker has waited
    /// if a line is due.
    pub(crate) fn due(&mut self, asked: Instant, now: Instant) -> Option<Duration> {
        let (since, last_line) = self.waiting.get_or_insert((asked, None));
        let waited = now.duration_since(*since);
        let due = match last_line {
            Some(last) => now.duration_since(*last) >= WAITING_EVERY,
            None => waited >= WAITING_AFTER,
        };
        due.then(|| {
            *last_line = Some(now);
            waited
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(round: u64) -> RoundReport {
        RoundReport {
            round,
            loss: round as f64,
            num_samples: 10,
            steps: 5,
            train_ms: 2.0,
            encode_ms: 1.0,
            upload_ms: 1.0,
            bytes: 100,
            reused: false,
            bits_per_param: 1.0,
            duplicate: false,
        }
    }

    #[test]
    fn a_fast_worker_writes_a_line_in_ten_seconds() {
        let (start, mut log) = (Instant::now(), RoundLog::default());
        // A round every 10 ms for a minute.
        let lines: Vec<Line> =
            (0..6000).map(|i| log.next(&report(i), start + Duration::from_millis(10 * i))).collect();
        assert!(lines[..3].iter().all(|line| *line == Line::Full));
        let summaries: Vec<&Tally> = lines[3..]
            .iter()
            .filter_map(|line| if let Line::Summary(tally) = line { Some(tally) } else { None })
            .collect();
        assert_eq!(summaries.len(), 5);
        assert_eq!((summaries[0].rounds, summaries[0].bytes), (1000, 100_000));
        assert!((summaries[1].loss_sum / 1000.0 - 1502.5).abs() < 1.0, "{:?}", summaries[1]);
    }

    #[test]
    fn a_slow_worker_writes_every_round() {
        let (start, mut log) = (Instant::now(), RoundLog::default());
        for i in 0..10 {
            let line = log.next(&report(i), start + Duration::from_secs(30 * i));
            assert_ne!(line, Line::None, "round {i}");
        }
    }

    #[test]
    fn waiting_is_mentioned_now_and_then() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut log = WaitLog::default();
        assert_eq!(log.due(at(0), at(5)), None);
        assert_eq!(log.due(at(5), at(30)), Some(Duration::from_secs(30)));
        assert_eq!(log.due(at(30), at(55)), None);
        assert_eq!(log.due(at(55), at(95)), Some(Duration::from_secs(95)));
        log.reset();
        assert_eq!(log.due(at(100), at(105)), None, "it has worked meanwhile");
    }
}
