//! Numbers for people. `assets/common.js` formats the same way, so that the first live update changes only
//! what has changed.

pub(super) use crate::assets::{count, escape};
use std::fmt::Write;

/// What stands for a value that is not known.
pub(super) const NONE: &str = "–";

/// `1 round`, `2 rounds`.
pub(super) fn plural(value: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(value), if value == 1 { one } else { many })
}

/// Three significant digits of a value below 1000.
pub(super) fn three(value: f64) -> String {
    match value.abs() {
        v if v < 9.995 => format!("{value:.2}"),
        v if v < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A size in decimal units, as `5.43 kB`.
pub(super) fn bytes(value: f64) -> String {
    if value < 999.5 {
        return format!("{value:.0} B");
    }
    let mut value = value / 1000.0;
    for unit in ["kB", "MB", "GB"] {
        if value < 999.5 {
            return format!("{} {unit}", three(value));
        }
        value /= 1000.0;
    }
    format!("{} TB", three(value))
}

/// A share as `97.2%`.
pub(super) fn percent(value: Option<f64>) -> String {
    known(value, |v| format!("{:.1}%", 100.0 * v))
}

/// A loss, in nats.
pub(super) fn loss(value: Option<f64>) -> String {
    known(value, |v| format!("{v:.4}"))
}

/// A length of time, in seconds, as `84 ms`, `12 s`, `3 h 12 min`.
pub(super) fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0);
    let minutes = (s / 60.0).floor() as u64;
    match s {
        s if s < 0.01 => format!("{:.1} ms", 1000.0 * s),
        s if s < 0.9995 => format!("{:.0} ms", 1000.0 * s),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{} s", s.floor()),
        _ if minutes < 120 => format!("{minutes} min"),
        _ if minutes < 48 * 60 => format!("{} h {} min", minutes / 60, minutes % 60),
        _ => format!("{} days", minutes / (24 * 60)),
    }
}

/// How long ago something was.
pub(super) fn age(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => "now".to_owned(),
        s if s < 10.0 => format!("{} s ago", s.floor()),
        s => format!("{} ago", duration(s.floor())),
    }
}

/// The median; `None` without values.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// A value, or [`NONE`].
pub(super) fn known(value: Option<f64>, format: impl FnOnce(f64) -> String) -> String {
    value.filter(|v| v.is_finite()).map_or_else(|| NONE.to_owned(), format)
}

/// Appends a table row; the first cell heads it. A cell is its class and its text.
pub(super) fn row(out: &mut String, cells: &[(&str, String)]) {
    out.push_str("<tr>");
    for (i, (class, text)) in cells.iter().enumerate() {
        let (open, close) = if i == 0 { ("th scope=\"row\"", "th") } else { ("td", "td") };
        let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
        let _ = write!(out, "<{open}{class}>{}</{close}>", escape(text));
    }
    out.push_str("</tr>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(999), "999");
        assert_eq!(bytes(512.0), "512 B");
        assert_eq!(bytes(5432.0), "5.43 kB");
        assert_eq!(bytes(1_600_000.0), "1.60 MB");
        assert_eq!(bytes(999_600.0), "1.00 MB");
        assert_eq!(duration(0.0841), "84 ms");
        assert_eq!(duration(0.0042), "4.2 ms");
        assert_eq!(duration(3.21), "3.2 s");
        assert_eq!(duration(11_520.0), "3 h 12 min");
        assert_eq!(age(0.4), "now");
        assert_eq!(age(5.9), "5 s ago");
        assert_eq!(percent(Some(0.9722)), "97.2%");
        assert_eq!(loss(None), NONE);
        assert_eq!(loss(Some(f64::NAN)), NONE);
        assert_eq!(median(vec![3.0, 1.0, 2.0, 10.0]), Some(2.5));
    }

    #[test]
    fn markup_from_outside_stays_text() {
        let mut out = String::new();
        row(&mut out, &[("", "<img src=x onerror='a'>\"&".to_owned())]);
        assert_eq!(out, "<tr><th scope=\"row\">&lt;img src=x onerror=&#39;a&#39;&gt;&quot;&amp;</th></tr>");
    }
}
