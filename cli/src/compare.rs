//! `fl compare`: several runs in one report, grouped by everything but their seeds.

use crate::{
    output::{self, human_bytes},
    report::{self, Run, escape},
};
use anyhow::Context;
use clap::Args;
use fl_app::exit::BadInput;
use fl_protocol::HistoryRecord;
use serde::Serialize;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

const SCRIPT: &str = include_str!("../assets/compare.js");

/// Evaluated rounds at a run's end whose mean counts as its accuracy: single rounds scatter.
const LAST: usize = 10;

/// Arguments of `fl compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Folders of runs, as --out of `fl run` and `fl simulate` made them.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,

    /// The report.
    #[arg(long, default_value = "compare.html", value_name = "FILE")]
    out: PathBuf,

    /// Accuracy for which rounds, bytes and time are compared [default: 95 % of the worst run's best].
    #[arg(long, value_name = "ACCURACY")]
    target: Option<f64>,
}

/// Runs `fl compare`.
pub fn run(args: &CompareArgs, json: bool) -> anyhow::Result<()> {
    let runs = args.runs.iter().map(|path| load(path)).collect::<anyhow::Result<Vec<_>>>()?;
    let comparison = Comparison::new(&runs, args.target);
    write(&args.out, "Runs compared", &comparison, &runs)?;
    if json {
        return output::json_line(&comparison);
    }
    print!("{}", comparison.markdown());
    println!("\n{}\nreport: {}", comparison.verdict, args.out.display());
    Ok(())
}

/// Reads the run of a folder.
///
/// # Errors
/// If there is none.
pub fn load(path: &Path) -> anyhow::Result<Run> {
    let file = if path.is_dir() { path.join("run.json") } else { path.to_owned() };
    let bytes = fs::read(&file).map_err(|error| {
        BadInput(format!("cannot read {}: {error}; give the --out folder of a run", file.display()))
    })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| BadInput(format!("{} is not a run's file: {error}", file.display())).into())
}

/// The mean over a group's runs, round by round.
#[derive(Debug, Serialize)]
struct Curve {
    round: Vec<u64>,
    accuracy: Vec<Option<f64>>,
    /// Sent up so far.
    bytes_up: Vec<f64>,
    /// Seconds since the start, of the run's own clock.
    time_s: Vec<f64>,
}

/// What reaching the target took, in the mean of the runs; only if all of them reached it.
#[derive(Debug, Clone, Copy, Serialize)]
struct ToTarget {
    rounds: f64,
    bytes_up: f64,
    time_s: f64,
}

/// Runs that differ in their seeds only.
#[derive(Debug, Serialize)]
pub struct Group {
    /// Their name.
    pub name: String,
    /// How many.
    pub seeds: usize,
    /// Mean accuracy at the end, 0 to 1.
    pub accuracy: f64,
    /// Its standard deviation over the runs.
    pub accuracy_sd: f64,
    /// Rounds of the longest run.
    pub rounds: u64,
    /// Mean of all bytes sent up.
    pub bytes_up: f64,
    /// Mean of all bytes sent down.
    pub bytes_down: f64,
    /// Mean seconds of the run's own clock: virtual ones for a simulation.
    pub time_s: f64,
    /// Mean seconds on this machine.
    pub wall_s: f64,
    to_target: Option<ToTarget>,
    #[serde(skip)]
    curve: Curve,
}

/// Several groups side by side. The first one is what the others are measured against.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Accuracy that is to be reached.
    pub target: f64,
    /// The groups, in the order of their first runs.
    pub groups: Vec<Group>,
    /// Which group beats the first one, and by how much.
    pub verdict: String,
}

impl Comparison {
    /// Compares runs.
    pub fn new(runs: &[Run], target: Option<f64>) -> Self {
        let best = |run: &Run| accuracies(run).map(|(_, accuracy)| accuracy).fold(0.0, f64::max);
        let target = target.unwrap_or_else(|| 0.95 * runs.iter().map(best).fold(1.0, f64::min));
        let mut sorted: Vec<(String, Vec<&Run>)> = Vec::new();
        for run in runs {
            let key = group_key(run);
            match sorted.iter_mut().find(|(known, _)| *known == key) {
                Some((_, group)) => group.push(run),
                None => sorted.push((key, vec![run])),
            }
        }
        let groups: Vec<Group> = sorted.into_iter().map(|(_, runs)| Group::new(&runs, target)).collect();
        let verdict = verdict(&groups);
        Self { target, groups, verdict }
    }

    /// The table as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "| {} |\n|{}|", self.head().join(" | "), [" --- "; 10].join("|"));
        for group in &self.groups {
            let _ = writeln!(text, "| {} |", self.cells(group).join(" | "));
        }
        text
    }

    fn head(&self) -> [String; 10] {
        let target = 100.0 * self.target;
        [
            "run".to_owned(),
            "seeds".to_owned(),
            "accuracy".to_owned(),
            "against the first".to_owned(),
            "rounds".to_owned(),
            "sent up".to_owned(),
            "sent down".to_owned(),
            "time".to_owned(),
            format!("rounds, bytes, time to {target:.1} %"),
            "on this machine".to_owned(),
        ]
    }

    fn cells(&self, group: &Group) -> [String; 10] {
        let against = match self.groups.first() {
            Some(first) if first.name != group.name => {
                format!("{:+.2} points", 100.0 * (group.accuracy - first.accuracy))
            }
            _ => "-".to_owned(),
        };
        [
            group.name.clone(),
            group.seeds.to_string(),
            format!("{:.2} ± {:.2} %", 100.0 * group.accuracy, 100.0 * group.accuracy_sd),
            against,
            group.rounds.to_string(),
            human_bytes(group.bytes_up),
            human_bytes(group.bytes_down),
            format!("{:.0} s", group.time_s),
            group.to_target.map_or("not reached".to_owned(), |t| {
                format!("{:.0}, {}, {:.0} s", t.rounds, human_bytes(t.bytes_up), t.time_s)
            }),
            format!("{:.1} s", group.wall_s),
        ]
    }

    fn html_table(&self) -> String {
        let row = |cells: &[String], tag: &str| {
            let cells =
                cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect::<String>();
            format!("<tr>{cells}</tr>")
        };
        let rows: String = self.groups.iter().map(|group| row(&self.cells(group), "td")).collect();
        let head = row(&self.head(), "th");
        format!("<table><thead>{head}</thead><tbody>{rows}</tbody></table><p>{}</p>", escape(&self.verdict))
    }
}

impl Group {
    fn new(runs: &[&Run], target: f64) -> Self {
        let count = runs.len() as f64;
        let mean = |f: &dyn Fn(&Run) -> f64| runs.iter().map(|run| f(run)).sum::<f64>() / count;
        let accuracy = mean(&final_accuracy);
        let squares = runs.iter().map(|run| (final_accuracy(run) - accuracy).powi(2)).sum::<f64>();
        let reached: Option<Vec<ToTarget>> = runs.iter().map(|run| to_target(run, target)).collect();
        let to_target = reached.map(|all| ToTarget {
            rounds: all.iter().map(|t| t.rounds).sum::<f64>() / count,
            bytes_up: all.iter().map(|t| t.bytes_up).sum::<f64>() / count,
            time_s: all.iter().map(|t| t.time_s).sum::<f64>() / count,
        });
        Self {
            name: runs[0].name.clone(),
            seeds: runs.len(),
            accuracy,
            accuracy_sd: if runs.len() > 1 { (squares / (count - 1.0)).sqrt() } else { 0.0 },
            rounds: runs.iter().filter_map(|run| run.history.last()).map(|r| r.round).max().unwrap_or(0),
            bytes_up: mean(&|run| run.history.iter().map(|r| r.bytes_up as f64).sum()),
            bytes_down: mean(&|run| run.history.iter().map(|r| r.bytes_down as f64).sum()),
            time_s: mean(&|run| run.history.last().map_or(0.0, |record| time_of(run, record))),
            wall_s: mean(&|run| run.summary.wall_s),
            to_target,
            curve: Curve::new(runs),
        }
    }
}

impl Curve {
    fn new(runs: &[&Run]) -> Self {
        // A run that ended early ends the mean.
        let rounds = runs.iter().map(|run| run.history.len()).min().unwrap_or(0);
        let count = runs.len() as f64;
        let mut curve = Self {
            round: runs[0].history.iter().take(rounds).map(|record| record.round).collect(),
            accuracy: Vec::with_capacity(rounds),
            bytes_up: Vec::with_capacity(rounds),
            time_s: Vec::with_capacity(rounds),
        };
        let mut sent = 0.0;
        for index in 0..rounds {
            let found: Option<Vec<f64>> = runs.iter().map(|run| run.history[index].test_accuracy).collect();
            curve.accuracy.push(found.map(|found| found.iter().sum::<f64>() / count));
            sent += runs.iter().map(|run| run.history[index].bytes_up as f64).sum::<f64>() / count;
            curve.bytes_up.push(sent);
            curve.time_s.push(runs.iter().map(|run| time_of(run, &run.history[index])).sum::<f64>() / count);
        }
        curve
    }
}

/// Runs with equal keys differ in seed and folder only.
fn group_key(run: &Run) -> String {
    let mut settings = run.settings.clone();
    if let Some(settings) = settings.as_object_mut() {
        for own in ["seed", "out", "threads", "shuffle_start"] {
            settings.remove(own);
        }
    }
    format!("{} {settings}", run.name)
}

fn accuracies(run: &Run) -> impl DoubleEndedIterator<Item = (&HistoryRecord, f64)> {
    run.history.iter().filter_map(|record| Some((record, record.test_accuracy?)))
}

fn final_accuracy(run: &Run) -> f64 {
    let last: Vec<f64> = accuracies(run).rev().take(LAST).map(|(_, accuracy)| accuracy).collect();
    last.iter().sum::<f64>() / last.len().max(1) as f64
}

/// Seconds from the run's start to the end of a round, by the run's own clock.
fn time_of(run: &Run, record: &HistoryRecord) -> f64 {
    record.finished_ts - run.history.first().map_or(0.0, |first| first.started_ts)
}

fn to_target(run: &Run, target: f64) -> Option<ToTarget> {
    let (reached, _) = accuracies(run).find(|(_, accuracy)| *accuracy >= target)?;
    let before = run.history.iter().take_while(|record| record.round <= reached.round);
    Some(ToTarget {
        rounds: reached.round as f64,
        bytes_up: before.map(|record| record.bytes_up as f64).sum(),
        time_s: time_of(run, reached),
    })
}

/// Names the best group if its lead is clear: beyond twice the standard error of the difference.
fn verdict(groups: &[Group]) -> String {
    let Some((first, others)) = groups.split_first() else { return String::new() };
    let Some(best) = others.iter().max_by(|a, b| a.accuracy.total_cmp(&b.accuracy)) else {
        return format!("{} alone.", first.name);
    };
    let lead = 100.0 * (best.accuracy - first.accuracy);
    let error = |group: &Group| (100.0 * group.accuracy_sd).powi(2) / group.seeds as f64;
    let error = (error(best) + error(first)).sqrt();
    if lead <= 0.0 {
        return format!("None beats {}; {} comes nearest, {:.2} points below.", first.name, best.name, -lead);
    }
    let clear =
        if first.seeds > 1 && best.seeds > 1 && lead > 2.0 * error { "clearly" } else { "not clearly" };
    format!(
        "{} beats {} by {lead:.2} points of accuracy, {clear}: the standard error of the difference is {error:.2} \
         points. Accuracies are means over the last {LAST} evaluated rounds.",
        best.name, first.name
    )
}

/// Writes the report of a comparison.
///
/// # Errors
/// If the file cannot be written.
pub fn write(out: &Path, title: &str, comparison: &Comparison, runs: &[Run]) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Drawn<'a> {
        name: &'a str,
        #[serde(flatten)]
        curve: &'a Curve,
    }
    let drawn: Vec<_> =
        comparison.groups.iter().map(|group| Drawn { name: &group.name, curve: &group.curve }).collect();
    let subtitle = format!("{} runs in {} groups, means over seeds", runs.len(), comparison.groups.len());
    let page = report::page(
        title,
        &subtitle,
        &comparison.html_table(),
        runs,
        &serde_json::json!({ "groups": drawn }),
        SCRIPT,
    )?;
    fs::write(out, page).with_context(|| format!("cannot write {}", out.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Summary;

    fn run(name: &str, seed: u64, accuracies: &[f64]) -> Run {
        let history: Vec<_> = accuracies
            .iter()
            .enumerate()
            .map(|(index, accuracy)| HistoryRecord {
                round: index as u64 + 1,
                started_ts: index as f64,
                finished_ts: index as f64 + 1.0,
                duration_s: 0.1,
                participants: 1,
                num_samples: 1,
                train_loss: None,
                test_accuracy: Some(*accuracy),
                test_loss: None,
                bytes_up: 100,
                reused: 0,
                bytes_saved: 0,
                bytes_down: 0,
                bits_per_param: 4.0,
            })
            .collect();
        let settings = serde_json::json!({ "seed": seed, "strategy": name });
        Run { name: name.into(), summary: Summary::new(&history, 10, 1.0, "g".into()), settings, history }
    }

    #[test]
    fn seeds_are_grouped_and_a_clear_lead_is_named() {
        let runs = [
            run("fedavg", 1, &[0.5, 0.70]),
            run("scaffold", 1, &[0.6, 0.80]),
            run("fedavg", 2, &[0.5, 0.72]),
            run("scaffold", 2, &[0.6, 0.82]),
        ];
        let comparison = Comparison::new(&runs, Some(0.71));
        assert_eq!(comparison.groups.iter().map(|g| g.seeds).collect::<Vec<_>>(), [2, 2]);
        assert!((comparison.groups[0].accuracy - 0.605).abs() < 1e-12);
        assert!(comparison.groups[0].to_target.is_none(), "one of them does not reach it");
        let reached = comparison.groups[1].to_target.unwrap();
        assert_eq!((reached.rounds, reached.bytes_up, reached.time_s), (2.0, 200.0, 2.0));
        assert!(
            comparison.verdict.starts_with("scaffold beats fedavg by 10.00 points"),
            "{}",
            comparison.verdict
        );
        assert!(comparison.verdict.contains(", clearly"), "{}", comparison.verdict);
        assert!(comparison.markdown().contains("+10.00 points"));
    }

    #[test]
    fn one_seed_is_never_clear_and_a_loser_is_no_winner() {
        let better = Comparison::new(&[run("a", 1, &[0.5]), run("b", 1, &[0.9])], None);
        assert!(better.verdict.contains("not clearly"));
        let worse = Comparison::new(&[run("a", 1, &[0.9]), run("b", 1, &[0.5])], None);
        assert!(worse.verdict.starts_with("None beats a"), "{}", worse.verdict);
    }
}
