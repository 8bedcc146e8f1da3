//! Exit codes, after BSD's `sysexits.h`, and the one place where errors become one.

use crate::SettingError;
use clap::Parser;
use fl_datasets::DatasetError;
use fl_model::ModelError;
use std::{error::Error, io, process::ExitCode};
use thiserror::Error;

/// Why a program ends other than by success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// A bad setting. Nothing was touched.
    Usage = 64,
    /// A file is missing, damaged or does not fit: data, model, state, certificate.
    NoInput = 66,
    /// The other side cannot be reached, or refuses permanently.
    Unreachable = 69,
    /// An internal error, or a training that diverged.
    Internal = 70,
    /// The system refuses memory.
    Memory = 71,
    /// The system refuses a read, a write or a port.
    Io = 74,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A file that is missing, damaged, or does not fit: a sentence that says what to do.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{0}")]
pub struct BadInput(pub String);

/// Gives the exit code of a crate's own error types, `None` for any other error.
pub type Judge = fn(&(dyn Error + 'static)) -> Option<Exit>;

/// The exit code for an error: that of the outermost cause that has one, else [`Exit::Internal`].
///
/// `judges` know the error types of the crates above this one.
pub fn of(error: &(dyn Error + 'static), judges: &[Judge]) -> Exit {
    causes(error)
        .find_map(|cause| judges.iter().find_map(|judge| judge(cause)).or_else(|| own(cause)))
        .unwrap_or(Exit::Internal)
}

/// The error and its causes as one sentence, `outer: inner`.
///
/// Some error types print their cause and also return it as their source, others do only one of these: a
/// cause that the text already contains is left out.
pub fn sentence(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in causes(error).map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Reads the command line and the environment.
///
/// # Errors
/// The code to end with after printing what clap says; `--help` and `--version` are a success.
pub fn parse_args<P: Parser>() -> Result<P, ExitCode> {
    P::try_parse().map_err(|error| {
        // Without a stderr the message has nowhere to go.
        let _ = error.print();
        if error.use_stderr() { Exit::Usage.into() } else { ExitCode::SUCCESS }
    })
}

/// Prints `program: message` on stderr and gives the exit code.
pub fn fail(program: &str, exit: Exit, message: &str) -> ExitCode {
    eprintln!("{program}: {message}");
    exit.into()
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&cause: &&'a (dyn Error + 'static)| cause.source())
}

/// The error types of this crate and of those below it.
fn own(cause: &(dyn Error + 'static)) -> Option<Exit> {
    if cause.is::<SettingError>() || cause.is::<clap::Error>() {
        Some(Exit::Usage)
    } else if let Some(error) = cause.downcast_ref::<DatasetError>() {
        Some(dataset(error))
    } else if let Some(error) = cause.downcast_ref::<ModelError>() {
        Some(model(error))
    } else if cause.is::<BadInput>() {
        Some(Exit::NoInput)
    } else if cause.is::<io::Error>() {
        Some(Exit::Io)
    } else {
        None
    }
}

fn dataset(error: &DatasetError) -> Exit {
    match error {
        DatasetError::Io { source, .. } if source.kind() != io::ErrorKind::NotFound => Exit::Io,
        _ => Exit::NoInput,
    }
}

fn model(error: &ModelError) -> Exit {
    match error {
        ModelError::UnknownModel { .. }
        | ModelError::BudgetTooSmall { .. }
        | ModelError::UnknownBackend(_)
        | ModelError::BackendNotBuilt(_)
        | ModelError::NotFused(_) => Exit::Usage,
        ModelError::BadSpec(_)
        | ModelError::BadSpecFile { .. }
        | ModelError::BadFile(_)
        | ModelError::NoNetwork => Exit::NoInput,
        ModelError::BackendFailed(_) | ModelError::BadBatch(_) | ModelError::Diverged => Exit::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt;

    /// An error with a cause; its text is what is given.
    #[derive(Debug)]
    struct Outer(String, io::Error);

    impl fmt::Display for Outer {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.0)
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.1)
        }
    }

    fn outer(text: &str) -> Outer {
        Outer(text.to_owned(), io::Error::other("disk on fire"))
    }

    #[test]
    fn a_cause_is_told_once() {
        assert_eq!(sentence(&outer("cannot write x")), "cannot write x: disk on fire");
        assert_eq!(sentence(&outer("cannot write x: disk on fire")), "cannot write x: disk on fire");
        assert_eq!(
            sentence(&outer("cannot write x (disk on fire): free some space")),
            "cannot write x (disk on fire): free some space"
        );
    }

    #[test]
    fn the_outermost_cause_with_a_code_decides() {
        let judge: Judge = |cause| cause.is::<Outer>().then_some(Exit::Unreachable);
        assert_eq!(of(&outer("x"), &[]), Exit::Io);
        assert_eq!(of(&outer("x"), &[judge]), Exit::Unreachable);
        assert_eq!(of(&fmt::Error, &[judge]), Exit::Internal);
    }

    #[test]
    fn errors_have_the_documented_codes() {
        let setting = SettingError::new("LR", 0, "use more");
        let missing = |kind: io::ErrorKind| DatasetError::Io { path: "x".into(), source: kind.into() };
        let cases: [(&(dyn Error + 'static), u8); 9] = [
            (&setting, 64),
            (&ModelError::UnknownModel { name: "lstm".into(), known: String::new() }, 64),
            (&ModelError::BackendNotBuilt("wgpu"), 64),
            (&ModelError::BadFile("short".into()), 66),
            (&BadInput("x is damaged".into()), 66),
            (&missing(io::ErrorKind::NotFound), 66),
            (&missing(io::ErrorKind::PermissionDenied), 74),
            (&ModelError::Diverged, 70),
            (&fmt::Error, 70),
        ];
        for (error, code) in cases {
            assert_eq!(of(error, &[]) as u8, code, "{error:?}");
        }
    }
}
