//! What can be wrong with the stored state.

use std::{
    io,
    path::{Path, PathBuf},
};
use thiserror::Error;

/// What is wrong with the stored state.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The system refused a read or a write.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file that is not what was written.
    #[error("{path} is damaged ({reason}): restore it from a backup, or move it away to go on without it")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How it shows.
        reason: String,
    },
    /// The newest rounds cannot be restored, though files name them.
    #[error(
        "the state goes up to round {latest}, but only round {possible} can be restored: {problems}. {}. Restore these \
         files from a backup, or go back with `fl-master --rollback-to {possible}`, which moves everything newer into a \
         folder `archive-...` of the state",
        lost(*possible, *latest)
    )]
    Incomplete {
        /// The newest round that a file names.
        latest: u64,
        /// The newest round that can be restored: what `--rollback-to` can be given.
        possible: u64,
        /// What is damaged or missing.
        problems: String,
    },
    /// `--rollback-to` names a round that cannot be restored.
    #[error("round {round} cannot be restored: {}", choices(.possible))]
    NoSuchRound {
        /// The round that was asked for.
        round: u64,
        /// The rounds that can be restored, ascending.
        possible: Vec<u64>,
    },
    /// State of another model.
    #[error(
        "{0} belongs to a model with other layers: use another STATE_DIR, or the MODEL and DATASET it was made with"
    )]
    OtherModel(PathBuf),
    /// The open round cannot be finished with these settings.
    #[error(
        "round {round} is open, and an update in it does not fit STRATEGY any more ({reason}): finish the round with the \
         STRATEGY it was begun with"
    )]
    OtherStrategy {
        /// The round.
        round: u64,
        /// What does not fit.
        reason: String,
    },
    /// Another process has the folder.
    #[error("{0} is in use by another master: stop it, or use another STATE_DIR")]
    Locked(PathBuf),
}

impl StoreError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.into() }
    }

    /// File and reason without the advice, for a sentence that lists several problems.
    pub(super) fn in_brief(&self) -> String {
        match self {
            Self::Damaged { path, reason } => format!("{} is damaged ({reason})", path.display()),
            Self::Io { action, path, source } => format!("cannot {action} {} ({source})", path.display()),
            other => other.to_string(),
        }
    }
}

fn lost(possible: u64, latest: u64) -> String {
    match latest - possible {
        0 => format!("The updates that were accepted in round {latest} would be lost"),
        1 => format!("Round {latest} would be lost"),
        _ => format!("Rounds {} to {latest} would be lost", possible + 1),
    }
}

fn choices(possible: &[u64]) -> String {
    match possible {
        [] => "no checkpoint can be read".to_owned(),
        [one] => format!("only round {one} can"),
        several => {
            let list: Vec<String> = several.iter().map(u64::to_string).collect();
            format!("these can: {}", list.join(", "))
        }
    }
}
