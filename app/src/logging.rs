//! Log lines on stderr, as text or as JSON.

use crate::SettingError;
use clap::ValueEnum;
use std::io::{self, IsTerminal};
use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging to stderr. `filter` is what the setting `name` says, as in `info` or `fl_master=debug`.
///
/// Colours are used on a terminal only, and not if `NO_COLOR` is set.
///
/// # Errors
/// If `filter` is no filter.
///
/// # Panics
/// If the process logs already.
pub fn init(name: &'static str, filter: &str, format: LogFormat) -> Result<(), SettingError> {
    let parsed = EnvFilter::try_new(filter)
        .map_err(|error| SettingError::new(name, filter, format!("not a log filter ({error})")))?;
    let mut builder =
        tracing_subscriber::fmt().with_env_filter(parsed).with_writer(io::stderr).with_target(false);
    if !io::stderr().is_terminal() {
        builder = builder.with_ansi(false);
    }
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_filter_is_refused_by_the_name_of_its_setting() {
        let error = init("RUST_LOG", "fl_master=loud", LogFormat::Text).unwrap_err();
        assert_eq!((error.name, error.value.as_str()), ("RUST_LOG", "fl_master=loud"));
    }
}
