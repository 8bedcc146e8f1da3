//! `--rollback-to N`.

use crate::Config;

/// Goes back to round `round`: archives the state of all later rounds.
///
/// # Errors
/// Always: this version cannot do it.
pub fn rollback(_config: &Config, round: u64) -> anyhow::Result<()> {
    anyhow::bail!("--rollback-to {round}: this version cannot go back, nothing was touched")
}
