//! The memory ballast.

use clap::Args;
use fl_app::{SettingError, setting::whole};

/// As given.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Ballast")]
pub struct BallastArgs {
    /// Memory ballast in MB that stays resident, 0 = none
    #[arg(long, env = "MEM_MB", default_value_t = 500)]
    pub mem_mb: usize,
    /// Bytes between two touched bytes of the ballast, 1 to 1073741824
    #[arg(long, env = "TOUCH_STRIDE_BYTES", default_value_t = 4096)]
    pub touch_stride_bytes: usize,
}

/// Checked.
#[derive(Debug, Clone)]
pub struct BallastSettings {
    /// `MEM_MB`: resident memory, in units of 2^20 bytes.
    pub mem_mb: usize,
    /// `TOUCH_STRIDE_BYTES`.
    pub touch_stride_bytes: usize,
}

impl BallastArgs {
    pub(super) fn check(self) -> Result<BallastSettings, SettingError> {
        whole("MEM_MB", self.mem_mb as u64, 0, 1 << 24)?;
        whole("TOUCH_STRIDE_BYTES", self.touch_stride_bytes as u64, 1, 1 << 30)?;
        Ok(BallastSettings { mem_mb: self.mem_mb, touch_stride_bytes: self.touch_stride_bytes })
    }
}
