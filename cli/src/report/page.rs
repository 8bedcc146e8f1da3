//! The HTML report: one file that needs nothing else, readable without JavaScript.

use super::{Run, Summary};
use crate::output::{human_bytes, human_seconds};
use fl_master::assets::{self, count, escape};
use fl_protocol::{HistoryRecord, Spread};
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeSet, fmt::Write as _};

const TEMPLATE: &str = include_str!("../../assets/report.html");
const STYLE: &str = include_str!("../../assets/report.css");
const SCRIPT: &str = include_str!("../../assets/report.js");

/// Stands for a value that is not known.
const NONE: &str = "–";

/// Settings that say where files go, not what is computed.
const PLACES: [&str; 1] = ["out"];

/// What the parts of a page are made of.
pub struct Page<'a, T: Serialize> {
    /// Its heading.
    pub title: &'a str,
    /// The line below the heading.
    pub subtitle: &'a str,
    /// HTML of the results, above the charts.
    pub results: &'a str,
    /// The runs, whose rounds and settings are listed, and what each is called.
    pub runs: &'a [(&'a Run, String)],
    /// What `script` reads from the element `data`.
    pub data: &'a T,
    /// Draws the charts.
    pub script: &'a str,
}

/// The report of one run.
///
/// # Errors
/// If the history cannot be written as JSON.
pub fn of_run(run: &Run) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Data<'a> {
        history: &'a [HistoryRecord],
    }
    Page {
        title: &format!("Federated run: {}", run.name),
        subtitle: &subtitle(run),
        results: &tiles(run),
        runs: &[(run, run.name.clone())],
        data: &Data { history: &run.history },
        script: SCRIPT,
    }
    .html()
}

impl<T: Serialize> Page<'_, T> {
    /// The page as text.
    ///
    /// # Errors
    /// If `data` cannot be written as JSON.
    pub fn html(&self) -> anyhow::Result<String> {
        // `</script>` inside the data would end the element: escape the only character that can start it.
        let data = serde_json::to_string(self.data)?.replace('<', "\\u003c");
        Ok(fill(&[
            ("title", &escape(self.title)),
            ("subtitle", &escape(self.subtitle)),
            ("results", self.results),
            ("history", &history_tables(self.runs)),
            ("settings", &settings(self.runs)),
            ("version", env!("CARGO_PKG_VERSION")),
            ("icon", assets::ICON),
            ("uplot_css", assets::UPLOT_CSS),
            ("style", assets::STYLE),
            ("report_style", STYLE),
            ("uplot_license", assets::UPLOT_LICENSE),
            ("uplot_js", assets::UPLOT_JS),
            ("common_js", assets::COMMON_JS),
            ("data", &data),
            ("script", self.script),
        ]))
    }
}

/// Replaces each `{{name}}` of the template once; inserted text is not scanned again.
fn fill(values: &[(&str, &str)]) -> String {
    let mut page = String::with_capacity(TEMPLATE.len() + values.iter().map(|(_, v)| v.len()).sum::<usize>());
    let mut rest = TEMPLATE;
    while let Some((before, after)) = rest.split_once("{{") {
        page += before;
        let Some((name, tail)) = after.split_once("}}") else { break };
        page += values.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value);
        rest = tail;
    }
    page + rest
}

/// A table in a region that scrolls when the screen is narrower. `rows` is HTML.
pub fn table(label: &str, head: &str, rows: &str) -> String {
    format!(
        "<div class=\"scroll\" role=\"region\" aria-label=\"{}\" tabindex=\"0\"><table><thead><tr>{head}</tr></thead>\
         <tbody>{rows}</tbody></table></div>",
        escape(label)
    )
}

/// Who trained, from which seed, as far as the settings say.
fn subtitle(run: &Run) -> String {
    let setting = |key: &str| run.settings.get(key).filter(|value| !value.is_null()).map(text_of);
    let parts = [
        setting("workers").map(|n| format!("{n} workers")),
        setting("clients").map(|n| format!("{n} simulated clients")),
        setting("partition").map(|partition| format!("data spread by {partition}")),
        setting("seed").map(|seed| format!("seed {seed}")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" · ")
}

fn tiles(run: &Run) -> String {
    let s = &run.summary;
    let best = run.history.iter().filter_map(|record| record.test_accuracy).reduce(f64::max);
    let loss = if s.loss.is_finite() { format!("{:.4}", s.loss) } else { "not a number".to_owned() };
    let least = run.history.iter().filter_map(|record| record.test_absolute_error).reduce(f64::min);
    let accuracy_note = match (best, least) {
        (Some(best), _) => format!("loss {loss}, best {:.2}%", 100.0 * best),
        (None, Some(least)) => format!("squared error {loss}, best {least:.4}"),
        (None, None) if s.loss.is_finite() => format!("loss {loss}"),
        (None, None) => "not evaluated".to_owned(),
    };
    let smaller = if s.bits_per_param > 0.0 {
        format!("{:.1}× smaller than f32", 32.0 / s.bits_per_param)
    } else {
        "no update".to_owned()
    };
    let tiles = [
        match (s.accuracy, s.absolute_error) {
            (None, Some(error)) => ("Mean absolute error", format!("{error:.4}"), accuracy_note),
            (accuracy, _) => ("Test accuracy", accuracy.map_or(NONE.to_owned(), percent), accuracy_note),
        },
        ("Rounds", s.rounds.to_string(), times(s)),
        ("Update on the wire", human_bytes(s.bytes_up_per_update), smaller),
        ("Round time", human_seconds(s.round_ms_median / 1e3), "median".to_owned()),
        ("Parameters", count(s.params), format!("{:.2} bits each in an update", s.bits_per_param)),
        client_tile(s),
    ];
    let mut html = String::from("<dl class=\"tiles\">");
    for (name, value, note) in tiles.into_iter().filter(|(name, ..)| !name.is_empty()) {
        let _ = write!(
            html,
            "<div class=\"card\"><dt>{name}</dt><dd>{value}</dd><dd class=\"note\">{}</dd></div>",
            escape(&note)
        );
    }
    html + "</dl>"
}

/// What the clients found on their own data; without a name if there is nothing.
fn client_tile(s: &Summary) -> (&'static str, String, String) {
    let (spread, name, number): (_, _, fn(f64) -> String) =
        match (&s.client_accuracy, &s.client_absolute_error) {
            (Some(spread), _) => (spread, "Accuracy on the clients' data", percent),
            (None, Some(spread)) => {
                (spread, "Absolute error on the clients' data", |error| format!("{error:.4}"))
            }
            (None, None) => return ("", String::new(), String::new()),
        };
    let (median, worst) = (number(spread.median), number(spread.worst));
    let note = format!("worst {worst} ({}), median {median}", spread.worst_client);
    (name, number(spread.mean), note)
}

fn percent(share: f64) -> String {
    format!("{:.2}%", 100.0 * share)
}

fn times(summary: &Summary) -> String {
    match summary.virtual_s {
        Some(virtual_s) => {
            format!("{} virtual, {} real", human_seconds(virtual_s), human_seconds(summary.wall_s))
        }
        None => format!("in {}", human_seconds(summary.wall_s)),
    }
}

fn history_tables(runs: &[(&Run, String)]) -> String {
    let regressions = runs.iter().filter(|(run, _)| run.summary.absolute_error.is_some()).count();
    let head: String = [
        "Round",
        match regressions {
            0 => "Accuracy",
            n if n == runs.len() => "Absolute error",
            _ => "Accuracy or absolute error",
        },
        "Test loss",
        "Clients' mean",
        "Clients' worst",
        "Train loss",
        "Updates",
        "Samples",
        "Up",
        "Down",
        "Bits per parameter",
        "Left out",
        "Duration",
    ]
    .iter()
    .map(|name| format!("<th scope=\"col\" class=\"n\">{name}</th>"))
    .collect();
    let mut html = String::new();
    for (run, name) in runs {
        let rows: String = run.history.iter().map(row).collect();
        if runs.len() > 1 {
            let _ = write!(html, "<h3>{}</h3>", escape(&titled(run, name)));
        }
        html += &table(&format!("Rounds of {}", titled(run, name)), &head, &rows);
    }
    html + "<p class=\"note\">With all digits and the times of day: history.csv and history.json of the run.</p>"
}

/// The name of a run with its seed, which tells the runs of a group apart.
fn titled(run: &Run, name: &str) -> String {
    match run.settings.get("seed") {
        Some(seed) => format!("{name}, seed {}", text_of(seed)),
        None => name.to_owned(),
    }
}

fn row(r: &HistoryRecord) -> String {
    let loss = |value: Option<f64>| value.map_or(NONE.to_owned(), |v| format!("{v:.4}"));
    let found = r.evaluation.as_ref().map(|evaluation| &evaluation.metrics);
    let clients = |value: fn(&Spread) -> f64| {
        let of = |name: &str| found.and_then(|metrics| metrics.get(name)).map(value);
        of("accuracy").map(percent).unwrap_or_else(|| loss(of("absolute_error")))
    };
    let cells = [
        match r.test_absolute_error {
            Some(error) => format!("{error:.4}"),
            None => r.test_accuracy.map_or(NONE.to_owned(), percent),
        },
        loss(r.test_loss),
        clients(|spread| spread.mean),
        clients(|spread| spread.worst),
        loss(r.train_loss),
        r.participants.to_string(),
        r.num_samples.to_string(),
        human_bytes(r.bytes_up as f64),
        human_bytes(r.bytes_down as f64),
        format!("{:.2}", r.bits_per_param),
        r.reused.to_string(),
        human_seconds(r.duration_s),
    ];
    let cells: String = cells.iter().map(|cell| format!("<td class=\"n\">{cell}</td>")).collect();
    format!("<tr><th scope=\"row\" class=\"n\">{}</th>{cells}</tr>", r.round)
}

/// The settings that all runs share as a list, those that differ as a table.
fn settings(runs: &[(&Run, String)]) -> String {
    let keys: BTreeSet<&str> = runs
        .iter()
        .filter_map(|(run, _)| run.settings.as_object())
        .flat_map(|settings| settings.keys().map(String::as_str))
        .filter(|key| !PLACES.contains(key))
        .collect();
    let value = |run: &Run, key: &str| run.settings.get(key).map_or(NONE.to_owned(), text_of);
    let differs = |key: &&str| runs.windows(2).any(|pair| value(pair[0].0, key) != value(pair[1].0, key));
    let (differing, shared): (Vec<&str>, Vec<&str>) = keys.into_iter().partition(differs);
    let mut html = String::new();
    if !differing.is_empty() {
        let head = |name: &&str| format!("<th scope=\"col\">{}</th>", escape(name));
        let head = format!("<th scope=\"col\">Run</th>{}", differing.iter().map(head).collect::<String>());
        let rows: String = runs
            .iter()
            .map(|(run, name)| {
                let cells = differing.iter().map(|key| format!("<td>{}</td>", escape(&value(run, key))));
                format!(
                    "<tr><th scope=\"row\" class=\"name\">{}</th>{}</tr>",
                    escape(name),
                    cells.collect::<String>()
                )
            })
            .collect();
        html += &table("Settings in which the runs differ", &head, &rows);
        html += "<h3>Shared by all runs</h3>";
    }
    html += "<dl class=\"settings\">";
    for key in shared {
        let shown = runs.first().map_or(String::new(), |(run, _)| value(run, key));
        let _ = write!(html, "<div><dt>{}</dt><dd>{}</dd></div>", escape(key), escape(&shown));
    }
    html + "</dl>"
}

/// A setting's value as it would be typed.
pub fn text_of(value: &Value) -> String {
    match value {
        Value::Null => NONE.to_owned(),
        Value::String(text) => text.clone(),
        // A 32-bit setting: as many digits as tell it from its neighbours.
        Value::Number(number) => match number.as_f64() {
            Some(x) if number.is_f64() && f64::from(x as f32) == x => (x as f32).to_string(),
            _ => number.to_string(),
        },
        Value::Array(values) if values.is_empty() => NONE.to_owned(),
        Value::Array(values) => values.iter().map(text_of).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::run;

    #[test]
    fn a_hostile_name_stays_text() {
        let page = of_run(&run("</script><b>")).unwrap();
        assert!(!page.contains("</script><b>"));
        assert!(!page.contains("{{"), "every place of the template is filled");
    }

    #[test]
    fn the_numbers_are_there_without_javascript() {
        let page = of_run(&run("a")).unwrap();
        let before_scripts = page.split("<script").next().unwrap();
        for text in ["<dd>50.00%</dd>", "<th scope=\"row\" class=\"n\">3</th>", "<dt>bits</dt><dd>4</dd>"] {
            assert!(before_scripts.contains(text), "{text} is missing");
        }
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        let page = of_run(&run("a")).unwrap();
        for banned in ["src=\"", "<link", "url(", "@import"] {
            assert!(!page.contains(banned), "{banned}");
        }
    }

    #[test]
    fn settings_that_differ_are_told_from_those_that_do_not() {
        let mut other = run("b");
        other.settings["bits"] = 2.into();
        other.settings["seed"] = run("a").settings["seed"].clone();
        let html = settings(&[(&run("a"), "a".to_owned()), (&other, "b".to_owned())]);
        let (differing, shared) = html.split_once("Shared by all runs").unwrap();
        assert!(differing.contains(">bits</th>") && !differing.contains("seed"));
        assert!(shared.contains("<dt>seed</dt>") && !shared.contains("bits"));
    }

    #[test]
    fn settings_look_as_they_are_typed() {
        let shown = |value: Value| text_of(&value);
        assert_eq!(shown(f64::from(0.05f32).into()), "0.05");
        assert_eq!(shown(0.0095.into()), "0.0095");
        assert_eq!(shown(64.into()), "64");
        assert_eq!(shown(serde_json::json!(["scale:1:10", "sign_flip:1"])), "scale:1:10, sign_flip:1");
        assert_eq!(shown(Value::Null), NONE);
    }
}
