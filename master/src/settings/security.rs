//! Who may talk to the master.

use clap::Args;
use fl_app::{Secret, SettingError, setting::filled};
use std::path::PathBuf;

/// The flags of this group, as typed.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Security")]
pub struct SecurityArgs {
    /// Bearer token that every call but the health probes needs [default: none]
    #[arg(long, env, hide_env_values = true)]
    pub fl_token: Option<Secret>,
    /// Certificate chain in PEM: turns TLS on
    #[arg(long, env)]
    pub tls_cert: Option<String>,
    /// Private key in PEM
    #[arg(long, env)]
    pub tls_key: Option<String>,
    /// Authorities in PEM whose client certificates are accepted: turns mutual TLS on
    #[arg(long, env)]
    pub tls_client_ca: Option<String>,
}

impl SecurityArgs {
    pub(super) fn resolve(self) -> Result<(Option<Secret>, Option<TlsConfig>), SettingError> {
        let token = self.fl_token.filter(|token| !token.0.is_empty());
        let client_ca = filled(self.tls_client_ca);
        let tls = match (filled(self.tls_cert), filled(self.tls_key), client_ca) {
            (Some(cert), Some(key), client_ca) => {
                TlsConfig { cert: cert.into(), key: key.into(), client_ca: client_ca.map(PathBuf::from) }
            }
            (Some(cert), None, _) => return Err(SettingError::new("TLS_CERT", cert, "set TLS_KEY too")),
            (None, Some(key), _) => return Err(SettingError::new("TLS_KEY", key, "set TLS_CERT too")),
            (None, None, Some(ca)) => {
                return Err(SettingError::new("TLS_CLIENT_CA", ca, "set TLS_CERT and TLS_KEY too"));
            }
            (None, None, None) => return Ok((token, None)),
        };
        Ok((token, Some(tls)))
    }
}

/// Files of TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// `TLS_CERT`: certificate chain, PEM.
    pub cert: PathBuf,
    /// `TLS_KEY`: private key, PEM.
    pub key: PathBuf,
    /// `TLS_CLIENT_CA`: authorities whose client certificates are accepted, PEM.
    pub client_ca: Option<PathBuf>,
}
