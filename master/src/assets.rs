//! What pages are made of, compiled into the binary: a page needs no network but the master. The reports of `fl` are
//! made of the same files, so these are public.

/// The chart library [uPlot](https://github.com/leeoniya/uPlot) 1.6.32 (MIT, Leon Sorokin), as it is
/// published on npm: a script that defines the global `uPlot`.
pub const UPLOT_JS: &str = include_str!("../assets/vendor/uPlot-1.6.32.min.js");

/// The style sheet of [`UPLOT_JS`].
pub const UPLOT_CSS: &str = include_str!("../assets/vendor/uPlot-1.6.32.min.css");

/// The licence of [`UPLOT_JS`] and [`UPLOT_CSS`]; it goes wherever they go.
pub const UPLOT_LICENSE: &str = include_str!("../assets/vendor/uPlot-LICENSE");

/// The style of every page: colours, cards, tables, charts.
pub const STYLE: &str = include_str!("../assets/style.css");

/// The script that every page shares: formats, charts, hints at wide tables. Needs [`UPLOT_JS`] before it.
pub const COMMON_JS: &str = include_str!("../assets/common.js");

/// The mark of the pages, an SVG.
pub const ICON: &str = include_str!("../assets/icon.svg");

/// Writes text so that it is text in HTML, in and out of attributes.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// `1234567` as `1,234,567`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
