//! The state on disk.

use clap::{ArgAction, Args, builder::BoolishValueParser};
use fl_app::{SettingError, setting::whole};
use std::path::PathBuf;

/// Where the state lives. What is typed and what is used are the same here.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "State")]
pub struct StoreConfig {
    /// Folder of checkpoints and journals
    #[arg(long, env, default_value = "./fl-state")]
    pub state_dir: PathBuf,
    /// Keep state on disk: an update survives a crash once it is acknowledged
    #[arg(long, env, default_value = "true", action = ArgAction::Set,
          value_parser = BoolishValueParser::new(), value_name = "BOOL")]
    pub durable: bool,
    /// Checkpoints that are kept, 1 to 10000
    #[arg(long, env, default_value_t = 5)]
    pub keep_rounds: usize,
}

impl StoreConfig {
    pub(super) fn check(&self) -> Result<(), SettingError> {
        whole("KEEP_ROUNDS", self.keep_rounds as u64, 1, 10_000)?;
        if self.durable && self.state_dir.as_os_str().is_empty() {
            return Err(SettingError::new("STATE_DIR", "", "give a folder, or set DURABLE=false"));
        }
        Ok(())
    }
}
