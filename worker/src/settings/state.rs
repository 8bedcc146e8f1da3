//! What survives a restart.

use clap::Args;
use fl_app::setting::filled;
use std::path::PathBuf;

/// As given.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "State")]
pub struct StateArgs {
    /// Folder that keeps what this worker carries from round to round (residual of error feedback, SCAFFOLD's
    /// control variate, last update of LAZY, own tensors of LOCAL_LAYERS) over a restart; WORKER_ID must stay the same
    /// [default: none]
    #[arg(long, env = "WORKER_STATE_DIR", value_name = "DIR")]
    pub worker_state_dir: Option<String>,
}

/// Checked.
#[derive(Debug, Clone)]
pub struct StateSettings {
    /// `WORKER_STATE_DIR`.
    pub dir: Option<PathBuf>,
}

impl StateArgs {
    pub(super) fn check(self) -> StateSettings {
        StateSettings { dir: filled(self.worker_state_dir).map(PathBuf::from) }
    }
}
