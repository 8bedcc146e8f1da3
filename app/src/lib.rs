//! What `fl-master`, `fl-worker` and `fl` share as programs.
//!
//! - [`exit`]: the exit codes, and which error gets which,
//! - [`health`]: `--health-check`, for containers without a shell,
//! - [`logging`]: log lines on stderr, as text or as JSON,
//! - [`secret`]: values that no log line shows,
//! - [`setting`]: how a bad setting is refused.
//!
//! None of it belongs to the wire protocol: a client in another program needs only `fl-protocol`.

pub mod exit;
pub mod health;
pub mod logging;
pub mod secret;
pub mod setting;

pub use exit::Exit;
pub use logging::LogFormat;
pub use secret::Secret;
pub use setting::SettingError;
