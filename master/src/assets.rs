//! The dashboard's files, compiled into the binary: the page works with no network but the master.
//!
//! `fl run` puts the same chart library into its report, so it is public.

/// The chart library [uPlot](https://github.com/leeoniya/uPlot) 1.6.32 (MIT, Leon Sorokin), as it is
/// published on npm: a script that defines the global `uPlot`.
pub const UPLOT_JS: &str = include_str!("../assets/vendor/uPlot-1.6.32.min.js");

/// The style sheet of [`UPLOT_JS`].
pub const UPLOT_CSS: &str = include_str!("../assets/vendor/uPlot-1.6.32.min.css");

/// The licence of [`UPLOT_JS`] and [`UPLOT_CSS`]; it goes wherever they go.
pub const UPLOT_LICENSE: &str = include_str!("../assets/vendor/uPlot-LICENSE");
