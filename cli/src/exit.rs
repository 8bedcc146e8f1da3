//! Exit codes, after BSD's `sysexits.h`, and the one place where errors become one.

use fl_datasets::DatasetError;
use fl_model::ModelError;
use fl_protocol::SettingError;
use fl_worker::WorkerError;
use std::{fmt, io, process::ExitCode};

const USAGE: u8 = 64;
const NO_INPUT: u8 = 66;
const INTERNAL: u8 = 70;
const IO: u8 = 74;

/// A setting whose value cannot be used.
#[derive(Debug)]
pub struct BadSetting {
    setting: &'static str,
    problem: String,
}

impl BadSetting {
    /// `setting` is the flag's name, `problem` a clause that says what to give instead.
    pub fn new(setting: &'static str, problem: impl Into<String>) -> Self {
        Self { setting, problem: problem.into() }
    }
}

impl fmt::Display for BadSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.setting, self.problem)
    }
}

impl std::error::Error for BadSetting {}

/// A file that is missing, damaged, or does not fit.
#[derive(Debug)]
pub struct BadInput(pub String);

impl fmt::Display for BadInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}

/// Prints what clap has to say; `--help` and `--version` are a success.
pub fn usage(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}

/// Prints the error as one line on stderr and gives its exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("fl: {error:#}");
    ExitCode::from(code(error))
}

fn code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(code_of).unwrap_or(INTERNAL)
}

fn code_of(cause: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if cause.is::<BadSetting>() || cause.is::<SettingError>() || cause.is::<clap::Error>() {
        Some(USAGE)
    } else if let Some(error) = cause.downcast_ref::<DatasetError>() {
        Some(error.exit_code())
    } else if let Some(error) = cause.downcast_ref::<WorkerError>() {
        Some(error.exit_code())
    } else if let Some(error) = cause.downcast_ref::<ModelError>() {
        Some(error.exit_code())
    } else if cause.is::<BadInput>() {
        Some(NO_INPUT)
    } else if cause.is::<io::Error>() {
        Some(IO)
    } else {
        None
    }
}
