//! `fl compare`: several runs in one report, grouped by everything but their seeds.

mod verdict;
mod view;

pub use view::write;

use crate::{
    output,
    report::{Run, page::text_of},
};
use clap::Args;
use fl_app::exit::BadInput;
use fl_protocol::HistoryRecord;
use serde::Serialize;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Evaluated rounds at the end of a run over which its accuracy is averaged, because single rounds scatter. Of a short
/// run no more than half: its first rounds are no result.
const LAST: usize = 10;

/// Settings in which the runs of a group may differ: chance, places, and what does not change the result.
const OWN: [&str; 4] = ["seed", "out", "threads", "shuffle_start"];

/// Arguments of `fl compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Folders of runs, as --out of `fl run` and `fl simulate` made them.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,

    /// The report.
    #[arg(long, default_value = "compare.html", value_name = "FILE")]
    out: PathBuf,

    /// Accuracy for which rounds, bytes and time are compared [default: 95 % of the worst run's best]; of regressions
    /// the mean absolute error [default: the worst run's best and a twentieth].
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

/// What runs are compared by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Share of right terms: the more, the better.
    Accuracy,
    /// Mean absolute error of a regression: the less, the better.
    AbsoluteError,
}

impl Metric {
    /// The metric of regressions if all runs are some.
    fn of(runs: &[Run]) -> Self {
        let is_regression = |run: &Run| run.history.iter().any(|record| record.test_absolute_error.is_some());
        match !runs.is_empty() && runs.iter().all(is_regression) {
            true => Self::AbsoluteError,
            false => Self::Accuracy,
        }
    }

    /// The value of an evaluated round.
    fn value(self, record: &HistoryRecord) -> Option<f64> {
        match self {
            Self::Accuracy => record.test_accuracy,
            Self::AbsoluteError => record.test_absolute_error,
        }
    }

    /// By how much `a` is better than `b`; below zero if it is worse.
    fn lead(self, a: f64, b: f64) -> f64 {
        match self {
            Self::Accuracy => a - b,
            Self::AbsoluteError => b - a,
        }
    }

    /// Whether a round with `value` has reached `target`.
    fn reaches(self, value: f64, target: f64) -> bool {
        self.lead(value, target) >= 0.0
    }

    fn best(self, values: impl Iterator<Item = f64>) -> Option<f64> {
        values.reduce(|best, value| if self.lead(value, best) > 0.0 { value } else { best })
    }

    /// A value that every run has come near to.
    fn default_target(self, runs: &[Run]) -> f64 {
        let bests = runs.iter().filter_map(|run| self.best(values(run, self).map(|(_, value)| value)));
        match self {
            Self::Accuracy => 0.95 * bests.fold(1.0, f64::min),
            Self::AbsoluteError => 1.05 * bests.fold(0.0, f64::max),
        }
    }
}

/// The mean over a group's runs, round by round.
#[derive(Debug, Serialize)]
struct Curve {
    round: Vec<u64>,
    /// Accuracies, or mean absolute errors.
    #[serde(rename = "accuracy")]
    result: Vec<Option<f64>>,
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
    /// Their name, unlike that of any other group.
    pub name: String,
    /// Runs, each with a seed of its own.
    pub seeds: usize,
    /// Mean accuracy at the end, 0 to 1; none where no round has one.
    pub accuracy: Option<f64>,
    /// Standard deviation of the accuracy over the seeds; none with one seed.
    pub accuracy_sd: Option<f64>,
    /// In place of the accuracy of regressions: their mean absolute error at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absolute_error: Option<f64>,
    /// Its standard deviation over the seeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absolute_error_sd: Option<f64>,
    /// Rounds of the longest run.
    pub rounds: u64,
    /// Mean of all bytes sent up.
    pub bytes_up: f64,
    /// Mean of all bytes sent down.
    pub bytes_down: f64,
    /// Mean duration by the run's own clock, virtual for a simulation, in seconds.
    pub time_s: f64,
    /// Mean duration on this machine, in seconds.
    pub wall_s: f64,
    to_target: Option<ToTarget>,
    #[serde(skip)]
    curve: Curve,
    /// Evaluated rounds that the result is a mean over.
    #[serde(skip)]
    averaged: usize,
    /// The accuracy or the absolute error.
    #[serde(skip)]
    result: Option<f64>,
    /// Its standard deviation.
    #[serde(skip)]
    deviation: Option<f64>,
}

/// Several groups side by side. The others are measured against the first one.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// Accuracy (0 to 1) or mean absolute error to be reached.
    pub target: f64,
    /// What is compared; accuracies unless all runs are regressions.
    #[serde(skip_serializing_if = "is_accuracy")]
    pub metric: Metric,
    /// The groups, in the order of their first runs.
    pub groups: Vec<Group>,
    /// Which group beats the first one, by how much, and whether that is more than chance.
    pub verdict: String,
}

fn is_accuracy(metric: &Metric) -> bool {
    *metric == Metric::Accuracy
}

impl Comparison {
    /// Compares runs. Of several runs with the same settings and seed, the first counts.
    pub fn new(runs: &[Run], target: Option<f64>) -> Self {
        let metric = Metric::of(runs);
        let target = target.unwrap_or_else(|| metric.default_target(runs));
        let mut sorted: Vec<(String, Vec<&Run>)> = Vec::new();
        for run in runs {
            let key = group_key(run);
            match sorted.iter_mut().find(|(known, _)| *known == key) {
                Some((_, group)) if group.iter().any(|other| seed(other) == seed(run)) => {}
                Some((_, group)) => group.push(run),
                None => sorted.push((key, vec![run])),
            }
        }
        let sorted: Vec<Vec<&Run>> = sorted.into_iter().map(|(_, group)| group).collect();
        let names = names(&sorted.iter().map(|group| group[0]).collect::<Vec<_>>());
        let groups: Vec<Group> = names
            .into_iter()
            .zip(&sorted)
            .map(|(name, runs)| Group::new(name, runs, metric, target))
            .collect();
        let verdict = verdict::verdict(metric, &groups);
        Self { target, metric, groups, verdict }
    }
}

impl Group {
    fn new(name: String, runs: &[&Run], metric: Metric, target: f64) -> Self {
        let count = runs.len() as f64;
        let mean = |f: &dyn Fn(&Run) -> f64| runs.iter().map(|run| f(run)).sum::<f64>() / count;
        let results: Option<Vec<f64>> = runs.iter().map(|run| final_result(run, metric)).collect();
        let result = results.as_ref().map(|results| results.iter().sum::<f64>() / count);
        let deviation = match (results, result) {
            (Some(results), Some(mean)) if results.len() > 1 => {
                let squares = results.iter().map(|result| (result - mean).powi(2)).sum::<f64>();
                Some((squares / (count - 1.0)).sqrt())
            }
            _ => None,
        };
        let of = |wanted: Metric, value: Option<f64>| value.filter(|_| metric == wanted);
        let reached: Option<Vec<ToTarget>> = runs.iter().map(|run| to_target(run, metric, target)).collect();
        let to_target = reached.map(|all| ToTarget {
            rounds: all.iter().map(|t| t.rounds).sum::<f64>() / count,
            bytes_up: all.iter().map(|t| t.bytes_up).sum::<f64>() / count,
            time_s: all.iter().map(|t| t.time_s).sum::<f64>() / count,
        });
        Self {
            name,
            seeds: runs.len(),
            accuracy: of(Metric::Accuracy, result),
            accuracy_sd: of(Metric::Accuracy, deviation),
            absolute_error: of(Metric::AbsoluteError, result),
            absolute_error_sd: of(Metric::AbsoluteError, deviation),
            rounds: runs.iter().filter_map(|run| run.history.last()).map(|r| r.round).max().unwrap_or(0),
            bytes_up: mean(&|run| run.history.iter().map(|r| r.bytes_up as f64).sum()),
            bytes_down: mean(&|run| run.history.iter().map(|r| r.bytes_down as f64).sum()),
            time_s: mean(&|run| run.history.last().map_or(0.0, |record| time_of(run, record))),
            wall_s: mean(&|run| run.summary.wall_s),
            to_target,
            curve: Curve::new(runs, metric),
            averaged: runs.iter().map(|run| averaged(run, metric)).max().unwrap_or(0),
            result,
            deviation,
        }
    }

    /// Squared standard error of the mean result; none with one seed.
    fn squared_error(&self) -> Option<f64> {
        self.deviation.map(|sd| sd * sd / self.seeds as f64)
    }
}

impl Curve {
    fn new(runs: &[&Run], metric: Metric) -> Self {
        // A run that ended early ends the mean.
        let rounds = runs.iter().map(|run| run.history.len()).min().unwrap_or(0);
        let count = runs.len() as f64;
        let mut curve = Self {
            round: runs[0].history.iter().take(rounds).map(|record| record.round).collect(),
            result: Vec::with_capacity(rounds),
            bytes_up: Vec::with_capacity(rounds),
            time_s: Vec::with_capacity(rounds),
        };
        let mut sent = 0.0;
        for index in 0..rounds {
            let found: Option<Vec<f64>> = runs.iter().map(|run| metric.value(&run.history[index])).collect();
            curve.result.push(found.map(|found| found.iter().sum::<f64>() / count));
            sent += runs.iter().map(|run| run.history[index].bytes_up as f64).sum::<f64>() / count;
            curve.bytes_up.push(sent);
            curve.time_s.push(runs.iter().map(|run| time_of(run, &run.history[index])).sum::<f64>() / count);
        }
        curve
    }
}

fn seed(run: &Run) -> Option<&Value> {
    run.settings.get("seed")
}

/// Equal for runs of one group.
fn group_key(run: &Run) -> String {
    let mut settings = run.settings.clone();
    if let Some(settings) = settings.as_object_mut() {
        for own in OWN {
            settings.remove(own);
        }
    }
    format!("{} {settings}", run.name)
}

/// A name for each group, given a run of each: those that share a name get the settings in which they differ.
fn names(runs: &[&Run]) -> Vec<String> {
    let name = |run: &&Run| {
        let same: Vec<&&Run> = runs.iter().filter(|other| other.name == run.name).collect();
        let keys: BTreeSet<&str> = same
            .iter()
            .filter_map(|run| run.settings.as_object())
            .flat_map(|settings| settings.keys().map(String::as_str))
            .filter(|key| !OWN.contains(key))
            .collect();
        let own = |key: &&str| same.iter().any(|other| other.settings.get(*key) != run.settings.get(*key));
        let value = |key: &str| text_of(run.settings.get(key).unwrap_or(&Value::Null));
        let differing = keys.into_iter().filter(own).map(|key| format!("{key}={}", value(key)));
        std::iter::once(run.name.clone()).chain(differing).collect::<Vec<_>>().join(" ")
    };
    runs.iter().map(name).collect()
}

fn values(run: &Run, metric: Metric) -> impl DoubleEndedIterator<Item = (&HistoryRecord, f64)> {
    run.history.iter().filter_map(move |record| Some((record, metric.value(record)?)))
}

/// Evaluated rounds at the end of the run that its result is a mean over.
fn averaged(run: &Run, metric: Metric) -> usize {
    values(run, metric).count().div_ceil(2).min(LAST)
}

/// `None` if no round was evaluated.
fn final_result(run: &Run, metric: Metric) -> Option<f64> {
    let count = averaged(run, metric);
    let sum = values(run, metric).rev().take(count).map(|(_, value)| value).sum::<f64>();
    (count > 0).then(|| sum / count as f64)
}

/// Seconds from the run's start to the end of a round, by the run's own clock.
fn time_of(run: &Run, record: &HistoryRecord) -> f64 {
    record.finished_ts - run.history.first().map_or(0.0, |first| first.started_ts)
}

fn to_target(run: &Run, metric: Metric, target: f64) -> Option<ToTarget> {
    let (reached, _) = values(run, metric).find(|(_, value)| metric.reaches(*value, target))?;
    let before = run.history.iter().take_while(|record| record.round <= reached.round);
    Some(ToTarget {
        rounds: reached.round as f64,
        bytes_up: before.map(|record| record.bytes_up as f64).sum(),
        time_s: time_of(run, reached),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::report::Summary;

    pub fn group(runs: &[Run]) -> Group {
        Comparison::new(runs, None).groups.remove(0)
    }

    pub fn run(name: &str, seed: u64, accuracies: &[f64]) -> Run {
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
                test_absolute_error: None,
                evaluation: None,
                update_metrics: Default::default(),
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
    fn seeds_are_grouped_and_measured_against_the_first() {
        let runs = [
            run("fedavg", 1, &[0.5, 0.70]),
            run("scaffold", 1, &[0.6, 0.80]),
            run("fedavg", 2, &[0.5, 0.72]),
            run("scaffold", 2, &[0.6, 0.82]),
        ];
        let comparison = Comparison::new(&runs, Some(0.71));
        assert_eq!(comparison.groups.iter().map(|g| g.seeds).collect::<Vec<_>>(), [2, 2]);
        assert!(
            (comparison.groups[0].accuracy.unwrap() - 0.71).abs() < 1e-12,
            "the last half of a short run"
        );
        assert!(comparison.groups[0].to_target.is_none(), "one of them does not reach it");
        let reached = comparison.groups[1].to_target.unwrap();
        assert_eq!((reached.rounds, reached.bytes_up, reached.time_s), (2.0, 200.0, 2.0));
        assert!(comparison.markdown().contains("+10.00 points"));
    }

    #[test]
    fn regressions_are_compared_by_their_absolute_error_and_have_no_accuracy() {
        let regression = |name: &str, errors: &[f64]| {
            let mut run = run(name, 1, errors);
            for record in &mut run.history {
                record.test_absolute_error = record.test_accuracy.take();
            }
            run
        };
        let runs = [regression("a", &[2.0, 0.5]), regression("b", &[2.0, 0.25])];
        let comparison = Comparison::new(&runs, None);
        let json = serde_json::to_value(&comparison).unwrap();
        assert_eq!((&json["metric"], &json["target"]), (&"absolute_error".into(), &0.525.into()));
        let group = &json["groups"][1];
        assert_eq!((&group["accuracy"], &group["absolute_error"]), (&Value::Null, &0.25.into()));
        assert!(
            comparison.verdict.starts_with("b beats a by 0.2500 of mean absolute error"),
            "{}",
            comparison.verdict
        );
        let text = comparison.markdown();
        assert!(text.contains("| absolute error |") && text.contains("| 0.2500 | -0.2500 |"), "{text}");
        let mixed = Comparison::new(&[run("a", 1, &[0.5]), regression("b", &[0.5])], None);
        assert!(mixed.verdict.contains("b has no accuracy"), "{}", mixed.verdict);
    }

    #[test]
    fn a_seed_counts_once() {
        let runs = [run("a", 1, &[0.5]), run("a", 1, &[0.5]), run("b", 1, &[0.9]), run("b", 1, &[0.9])];
        let comparison = Comparison::new(&runs, None);
        assert_eq!(comparison.groups.iter().map(|g| g.seeds).collect::<Vec<_>>(), [1, 1]);
        assert!(comparison.groups.iter().all(|g| g.accuracy_sd.is_none()));
    }

    #[test]
    fn groups_of_one_name_are_told_apart_by_their_settings() {
        let mut runs = [run("a", 1, &[0.5]), run("a", 1, &[0.6]), run("b", 1, &[0.7])];
        runs[0].settings["bits"] = 2.into();
        runs[1].settings["bits"] = 4.into();
        let comparison = Comparison::new(&runs, None);
        let names: Vec<_> = comparison.groups.iter().map(|group| group.name.as_str()).collect();
        assert_eq!(names, ["a bits=2", "a bits=4", "b"]);
        assert!(comparison.markdown().contains("+10.00 points"), "{}", comparison.markdown());
    }
}
