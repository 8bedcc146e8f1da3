//! A comparison as Markdown, for terminals and documents, and as a page. Both have the same cells and sentences.

use super::{Comparison, Curve, Group, Metric, names};
use crate::{
    output::{human_bytes, human_seconds},
    report::{
        Run,
        page::{Page, table},
    },
};
use anyhow::Context;
use fl_master::assets::escape;
use serde::Serialize;
use std::{fmt::Write as _, fs, path::Path};

const SCRIPT: &str = include_str!("../../assets/compare.js");

/// Colours of the lines in the charts, `--one` to `--eight` of the style; further lines repeat them, dashed.
const COLOURS: [&str; 8] = ["one", "two", "three", "four", "five", "six", "seven", "eight"];

const COLUMNS: usize = 10;

impl Comparison {
    /// The table as Markdown.
    pub fn markdown(&self) -> String {
        let line =
            |cells: [String; COLUMNS]| format!("| {} |\n", cells.map(|c| c.replace('|', "\\|")).join(" | "));
        let mut text = line(self.head()) + &format!("|{}|\n", [" --- "; COLUMNS].join("|"));
        for (index, group) in self.groups.iter().enumerate() {
            text += &line(self.cells(index, group));
        }
        text
    }

    fn head(&self) -> [String; COLUMNS] {
        let (metric, target) = match self.metric {
            Metric::Accuracy => ("accuracy (%)", format!("{:.1}%", 100.0 * self.target)),
            Metric::AbsoluteError => ("absolute error", format!("{:.4}", self.target)),
        };
        [
            "run".to_owned(),
            "seeds".to_owned(),
            metric.to_owned(),
            "against the first".to_owned(),
            "rounds".to_owned(),
            "sent up".to_owned(),
            "sent down".to_owned(),
            "time".to_owned(),
            format!("rounds, bytes, time to {target}"),
            "on this machine".to_owned(),
        ]
    }

    fn cells(&self, index: usize, group: &Group) -> [String; COLUMNS] {
        let number = |value: f64| match self.metric {
            Metric::Accuracy => format!("{:.2}", 100.0 * value),
            Metric::AbsoluteError => format!("{value:.4}"),
        };
        let first = self.groups.first().and_then(|first| first.result);
        let against = match (index, group.result, first) {
            (1.., Some(result), Some(first)) => self.signed(result - first),
            _ => "-".to_owned(),
        };
        [
            group.name.clone(),
            group.seeds.to_string(),
            match (group.result, group.deviation) {
                (Some(result), Some(deviation)) => format!("{} ± {}", number(result), number(deviation)),
                (Some(result), None) => number(result),
                (None, _) => "-".to_owned(),
            },
            against,
            group.rounds.to_string(),
            human_bytes(group.bytes_up),
            human_bytes(group.bytes_down),
            human_seconds(group.time_s),
            group.to_target.map_or("not reached".to_owned(), |t| {
                format!("{:.0}, {}, {}", t.rounds, human_bytes(t.bytes_up), human_seconds(t.time_s))
            }),
            human_seconds(group.wall_s),
        ]
    }

    /// A difference of results, without a sign where it rounds to zero.
    fn signed(&self, difference: f64) -> String {
        match self.metric {
            Metric::Accuracy => signed_points(difference),
            Metric::AbsoluteError => format!("{difference:+.4}"),
        }
    }

    fn html(&self) -> String {
        let head = |(i, cell): (usize, &String)| {
            format!("<th scope=\"col\"{}>{}</th>", if i == 0 { "" } else { " class=\"n\"" }, escape(cell))
        };
        let head: String = self.head().iter().enumerate().map(head).collect();
        let mut rows = String::new();
        for (index, group) in self.groups.iter().enumerate() {
            let [name, figures @ ..] = self.cells(index, group);
            let dashed = if index < COLOURS.len() { "" } else { " dashed" };
            let colour = COLOURS[index % COLOURS.len()];
            let _ = write!(
                rows,
                "<tr><th scope=\"row\" class=\"name keyed\"><span class=\"key{dashed}\" style=\"color: var(--{colour})\"></span>{}</th>",
                escape(&name)
            );
            for figure in figures {
                let _ = write!(rows, "<td class=\"n\">{}</td>", escape(&figure));
            }
            rows += "</tr>";
        }
        let mut html = format!(
            "<section class=\"card\" aria-label=\"Result\"><p class=\"verdict\">{}</p></section>\
             <section class=\"card\" aria-label=\"Runs\"><h2>Runs</h2>{}",
            escape(&self.verdict),
            table("Runs compared", &head, &rows)
        );
        if self.groups.iter().any(|group| group.deviation.is_some()) {
            html += "<p class=\"note\">After ±: the standard deviation over the seeds.</p>";
        }
        html + "</section>"
    }
}

/// A difference of accuracies in points, without a sign where it rounds to zero.
fn signed_points(difference: f64) -> String {
    let points = format!("{:+.2}", 100.0 * difference);
    match points.as_str() {
        "+0.00" | "-0.00" => "0.00 points".to_owned(),
        points => format!("{points} points"),
    }
}

/// What the time axis shows: simulations have a clock of their own.
fn clock(runs: &[Run]) -> &'static str {
    let simulated = runs.iter().filter(|run| run.summary.virtual_s.is_some()).count();
    match simulated {
        0 => "Time since the start",
        n if n == runs.len() => "Virtual time of the simulated network",
        _ => "Time by each run's own clock: virtual for simulations",
    }
}

/// Writes the report of a comparison.
///
/// # Errors
/// If the file cannot be written.
pub fn write(out: &Path, title: &str, comparison: &Comparison, runs: &[Run]) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Data<'a> {
        clock: &'static str,
        metric: Metric,
        groups: Vec<Line<'a>>,
    }
    #[derive(Serialize)]
    struct Line<'a> {
        name: &'a str,
        seeds: usize,
        #[serde(flatten)]
        curve: &'a Curve,
    }
    let groups = comparison
        .groups
        .iter()
        .map(|group| Line { name: &group.name, seeds: group.seeds, curve: &group.curve })
        .collect();
    let count = |n: usize, one: &str| format!("{n} {one}{}", if n == 1 { "" } else { "s" });
    let page = Page {
        title,
        subtitle: &format!(
            "{} in {}; the runs of a group differ in their seeds only",
            count(runs.len(), "run"),
            count(comparison.groups.len(), "group")
        ),
        results: &comparison.html(),
        runs: &runs.iter().zip(names(&runs.iter().collect::<Vec<_>>())).collect::<Vec<_>>(),
        data: &Data { clock: clock(runs), metric: comparison.metric, groups },
        script: SCRIPT,
    };
    fs::write(out, page.html()?).with_context(|| format!("cannot write {}", out.display()))
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn one_seed_has_no_deviation() {
        let one = Comparison::new(&[run("a", 1, &[0.5]), run("b", 1, &[0.5])], None);
        assert!(!one.markdown().contains('±'), "{}", one.markdown());
        assert!(!one.html().contains('±'));
        assert!(one.markdown().contains("| 0.00 points |"), "{}", one.markdown());
        let two = Comparison::new(&[run("a", 1, &[0.5]), run("a", 2, &[0.6])], None);
        assert!(two.markdown().contains("55.00 ± 7.07") && two.html().contains("standard deviation"));
    }

    #[test]
    fn page_and_text_say_the_same() {
        let comparison = Comparison::new(&[run("a", 1, &[0.5]), run("b", 1, &[0.9])], None);
        let page = comparison.html();
        assert!(page.contains(&escape(&comparison.verdict)));
        for cell in comparison.cells(1, &comparison.groups[1]) {
            assert!(page.contains(&cell) && comparison.markdown().contains(&cell), "{cell}");
        }
    }

    #[test]
    fn a_bar_in_a_name_stays_in_its_cell() {
        let markdown = Comparison::new(&[run("a|b", 1, &[0.5])], None).markdown();
        assert!(markdown.contains("| a\\|b |"), "{markdown}");
    }
}
