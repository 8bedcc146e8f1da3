//! The master and the way to it.

use clap::Args;
use fl_app::{
    Secret, SettingError,
    setting::{filled, number},
};
use std::path::PathBuf;

/// As given.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Master")]
pub struct MasterArgs {
    /// Address of the master, http or https
    #[arg(long, env = "MASTER_ADDR", default_value = "http://master-service:5000", value_name = "URL")]
    pub master_addr: String,
    /// Bearer token of the master [default: none]
    #[arg(long, env = "FL_TOKEN", hide_env_values = true)]
    pub fl_token: Option<Secret>,
    /// Authorities in PEM that sign the master's certificate [default: the system's]
    #[arg(long, env = "CA_CERT")]
    pub ca_cert: Option<String>,
    /// Certificate and key of this worker in one PEM file, for mutual TLS [default: none]
    #[arg(long, env = "CLIENT_CERT")]
    pub client_cert: Option<String>,
    /// Seconds without a master after which the worker ends with code 69, 0 = never
    #[arg(long, env = "GIVE_UP_S", default_value_t = 0.0)]
    pub give_up_s: f64,
    /// Seconds that a shutdown waits for the update in flight, 0 to 3600
    #[arg(long, env = "DRAIN_S", default_value_t = 10.0)]
    pub drain_s: f64,
}

/// Checked.
#[derive(Debug, Clone)]
pub struct MasterSettings {
    /// `MASTER_ADDR`, without a slash at the end.
    pub addr: String,
    /// `FL_TOKEN`.
    pub token: Option<Secret>,
    /// `CA_CERT`.
    pub ca_cert: Option<PathBuf>,
    /// `CLIENT_CERT`.
    pub client_cert: Option<PathBuf>,
    /// `GIVE_UP_S`; none: never.
    pub give_up_s: Option<f64>,
    /// `DRAIN_S`.
    pub drain_s: f64,
}

impl MasterArgs {
    /// Checks them.
    ///
    /// # Errors
    /// The first bad setting.
    pub fn check(self) -> Result<MasterSettings, SettingError> {
        let addr = self.master_addr.trim_end_matches('/').to_owned();
        if !["http://", "https://"].iter().any(|scheme| addr.starts_with(scheme)) {
            let reason = "give an address that starts with http:// or https://";
            return Err(SettingError::new("MASTER_ADDR", addr, reason));
        }
        let token = self.fl_token.filter(|token| !token.0.is_empty());
        if token.as_ref().is_some_and(|token| !token.0.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(SettingError::new("FL_TOKEN", "(secret)", "use printable ASCII without spaces"));
        }
        let give_up_s = (self.give_up_s != 0.0).then_some(self.give_up_s);
        give_up_s.map_or(Ok(()), |s| number("GIVE_UP_S", s, 0.01, 1e9))?;
        number("DRAIN_S", self.drain_s, 0.0, 3600.0)?;
        Ok(MasterSettings {
            addr,
            token,
            ca_cert: filled(self.ca_cert).map(PathBuf::from),
            client_cert: filled(self.client_cert).map(PathBuf::from),
            give_up_s,
            drain_s: self.drain_s,
        })
    }
}
