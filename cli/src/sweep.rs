//! `fl sweep`: many simulations from a TOML file, resumable, in one report.

use crate::{
    compare::{self, Comparison},
    output, progress,
    report::Run,
    simulate::{self, SimulateArgs},
};
use anyhow::Context;
use clap::{Args, Parser};
use fl_app::exit::BadInput;
use serde::Deserialize;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};
use toml::{Table, Value};

/// Arguments of `fl sweep`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLE)]
pub struct SweepArgs {
    /// Files that describe the runs.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// Folder for the runs and the reports, with a subfolder for each file.
    #[arg(long, default_value = "fl-out/sweeps", value_name = "DIR")]
    out: PathBuf,

    /// Also write the tables of all files to this Markdown file.
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
}

const EXAMPLE: &str = r#"A file has a title, flags of `fl simulate` that all runs share, a grid of values whose combinations
are all run, and the runs. A run that exists already, with the same settings, is not repeated.

  title = "Momentum"
  about = "Does it help?"
  target = 0.8            # accuracy for which rounds, bytes and time are compared; optional
  [base]
  dataset = "fashion-mnist"
  rounds = 100
  [grid]
  seed = [1, 2, 3]
  [[run]]
  name = "fedavg"
  [[run]]
  name = "fedavgm"
  strategy = "fedavgm"
"#;

/// The content of a sweep's file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sweep {
    title: String,
    #[serde(default)]
    about: String,
    target: Option<f64>,
    #[serde(default)]
    base: Table,
    #[serde(default)]
    grid: Table,
    run: Vec<Table>,
}

/// Arguments of one run, parsed like a command line.
#[derive(Debug, Parser)]
struct Typed {
    #[command(flatten)]
    args: SimulateArgs,
}

/// One run of a sweep.
struct Planned {
    name: String,
    args: SimulateArgs,
}

/// Runs `fl sweep`.
pub fn run(args: &SweepArgs, json: bool) -> anyhow::Result<()> {
    let sweeps = args.files.iter().map(|file| read(file)).collect::<anyhow::Result<Vec<_>>>()?;
    // All are planned before the first one runs, so that a bad setting in the last is reported at once.
    let mut plans = Vec::new();
    for (file, sweep) in args.files.iter().zip(&sweeps) {
        plans.push(plan(file, sweep, &folder(args, file)).with_context(|| format!("{}", file.display()))?);
    }
    let mut results = String::new();
    for ((file, sweep), planned) in args.files.iter().zip(&sweeps).zip(plans) {
        let count = planned.len();
        let mut runs = Vec::with_capacity(count);
        for (index, planned) in planned.into_iter().enumerate() {
            eprintln!("{} {}/{count}: {}", sweep.title, index + 1, planned.args.federation.out.display());
            runs.push(done(&planned).map_or_else(|| execute(&planned), Ok)?);
        }
        let comparison = Comparison::new(&runs, sweep.target);
        let report = folder(args, file).join("compare.html");
        compare::write(&report, &sweep.title, &comparison, &runs)?;
        section(&mut results, file, sweep, &comparison);
        if json {
            output::json_line(&comparison)?;
        } else {
            println!("{}\n{}\n\nreport: {}\n", comparison.markdown(), comparison.verdict, report.display());
        }
    }
    match &args.results {
        Some(path) => write_results(path, &args.files, &results),
        None => Ok(()),
    }
}

fn folder(args: &SweepArgs, file: &Path) -> PathBuf {
    args.out.join(file.file_stem().unwrap_or_default())
}

fn read(file: &Path) -> anyhow::Result<Sweep> {
    let text = fs::read_to_string(file)
        .map_err(|error| BadInput(format!("cannot read {}: {error}", file.display())))?;
    toml::from_str(&text).map_err(|error| BadInput(format!("{}: {error}", file.display())).into())
}

/// Every run with every combination of the grid's values.
fn plan(file: &Path, sweep: &Sweep, folder: &Path) -> anyhow::Result<Vec<Planned>> {
    let mut planned = Vec::new();
    for run in &sweep.run {
        let mut run = run.clone();
        let Some(Value::String(name)) = run.remove("name") else {
            return Err(BadInput(format!("{}: a [[run]] has no name", file.display())).into());
        };
        for point in combinations(&sweep.grid)? {
            let mut flags = sweep.base.clone();
            flags.extend(point.clone());
            flags.extend(run.clone());
            let place = point.iter().fold(slug(&name), |place, (key, value)| {
                format!("{place}-{}{}", slug(key), slug(&text(value)))
            });
            let mut typed = vec!["fl simulate".to_owned(), format!("--out={}", folder.join(place).display())];
            for (key, value) in &flags {
                match value {
                    Value::Array(values) => {
                        typed.extend(values.iter().map(|v| format!("--{key}={}", text(v))))
                    }
                    value => typed.push(format!("--{key}={}", text(value))),
                }
            }
            let mut args = Typed::try_parse_from(typed)?.args;
            args.federation.fill();
            let varied: Vec<String> = point
                .iter()
                .filter(|(key, _)| key.as_str() != "seed")
                .map(|(key, value)| format!("{key}={}", text(value)))
                .collect();
            let name = std::iter::once(name.clone()).chain(varied).collect::<Vec<_>>().join(" ");
            planned.push(Planned { name, args });
        }
    }
    Ok(planned)
}

/// All combinations of one value of each key.
fn combinations(grid: &Table) -> anyhow::Result<Vec<Table>> {
    let mut all = vec![Table::new()];
    for (key, values) in grid {
        let Value::Array(values) = values else {
            return Err(BadInput(format!("[grid] {key} is not a list of values")).into());
        };
        all = values
            .iter()
            .flat_map(|value| {
                all.iter().map(|point| {
                    let mut point = point.clone();
                    point.insert(key.clone(), value.clone());
                    point
                })
            })
            .collect();
    }
    Ok(all)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Keeps letters, digits and dots; replaces other characters by dashes.
fn slug(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect()
}

/// The finished run, if it exists with the same settings.
fn done(planned: &Planned) -> Option<Run> {
    let run = compare::load(&planned.args.federation.out).ok()?;
    // Through text, like the stored settings, because numbers may not survive that to the last bit.
    let settings: serde_json::Value =
        serde_json::from_str(&serde_json::to_string_pretty(&serde_json::to_value(&planned.args).ok()?).ok()?)
            .ok()?;
    (settings == run.settings && run.name == planned.name).then_some(run)
}

fn execute(planned: &Planned) -> anyhow::Result<Run> {
    progress::with_bar(planned.args.federation.rounds, |advance| {
        simulate::simulate(&planned.args, Some(&planned.name), |_| {
            advance();
            Ok(())
        })
    })
}

fn section(results: &mut String, file: &Path, sweep: &Sweep, comparison: &Comparison) {
    let _ = write!(results, "\n## {}\n", sweep.title);
    if !sweep.about.is_empty() {
        let _ = write!(results, "{}\n\n", sweep.about.trim());
    }
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let _ = write!(results, "{}\n{}\n\nFrom `{name}`.\n", comparison.markdown(), comparison.verdict);
}

fn write_results(path: &Path, files: &[PathBuf], sections: &str) -> anyhow::Result<()> {
    let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    let head = format!(
        "# Results\nWritten by `fl sweep {} --results {}`; do not edit. Times are virtual seconds of the simulated \
         network; the last column is wall time on a machine that also did other work.\n",
        files.join(" "),
        path.display()
    );
    fs::write(path, head + sections).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
title = "t"
[base]
clients = 20
"per-round" = 3
[grid]
seed = [1, 2]
bits = [2, 4]
[[run]]
name = "plain"
[[run]]
name = "with attackers"
attack = ["sign_flip:1", "scale:1:10"]
bits = 8
"#;

    #[test]
    fn every_run_meets_every_combination_and_its_own_settings_win() {
        let sweep: Sweep = toml::from_str(FILE).unwrap();
        let planned = plan(Path::new("f.toml"), &sweep, Path::new("out/f")).unwrap();
        assert_eq!(planned.len(), 8);
        let wide = planned.iter().filter(|p| p.args.federation.bits == fl_quant::Bits::Width(8));
        assert_eq!(wide.count(), 4);
        assert!(planned.iter().all(|p| p.args.clients == 20 && p.args.per_round == Some(3)));
        assert_eq!(planned[7].args.attack.len(), 2);
        let mut folders: Vec<_> = planned.iter().map(|p| p.args.federation.out.clone()).collect();
        folders.sort();
        folders.dedup();
        assert_eq!(folders.len(), 8, "each has a folder of its own");
    }

    #[test]
    fn a_misspelt_setting_is_refused() {
        let file = FILE.replace("clients", "client");
        let sweep: Sweep = toml::from_str(&file).unwrap();
        assert!(plan(Path::new("f.toml"), &sweep, Path::new("out")).is_err());
        assert!(toml::from_str::<Sweep>("title = 't'\nrnu = []").is_err());
    }
}
