//! The way to a master that runs elsewhere, for commands that look at it.

use anyhow::Context;
use clap::{Args, Parser};
use fl_protocol::StatusBody;
use fl_worker::{MasterClient, settings::MasterArgs};
use serde_json::{Map, Value};

/// Largest answer of `GET /history` that is read: some kB for each of its 10,000 rounds.
const MAX_HISTORY_BYTES: usize = 64 << 20;
/// The same of `GET /status`, in bytes.
const MAX_STATUS_BYTES: usize = 16 << 20;

/// Flags of commands that ask a master.
#[derive(Debug, Args)]
#[command(next_help_heading = "Master")]
pub struct RemoteArgs {
    /// Bearer token of the master.
    #[arg(long, env = "FL_TOKEN", hide_env_values = true)]
    fl_token: Option<String>,
    /// Authorities in PEM that sign the master's certificate [default: the system's].
    #[arg(long, env = "CA_CERT")]
    ca_cert: Option<String>,
    /// Certificate and key in one PEM file, for mutual TLS.
    #[arg(long, env = "CLIENT_CERT")]
    client_cert: Option<String>,
}

/// The worker's flags that say how to reach a master.
#[derive(Parser)]
struct Way {
    #[command(flatten)]
    master: MasterArgs,
}

impl RemoteArgs {
    /// Whether `source` is an address and not a path.
    pub fn is_address(source: &str) -> bool {
        source.starts_with("http://") || source.starts_with("https://")
    }

    /// A client of the master at `address`; connects to nothing yet.
    ///
    /// # Errors
    /// An address that is none, certificates that cannot be used.
    pub fn client(&self, address: &str) -> anyhow::Result<MasterClient> {
        let mut args = vec!["fl".to_owned(), format!("--master-addr={address}")];
        args.extend(self.fl_token.iter().map(|token| format!("--fl-token={token}")));
        args.extend(self.ca_cert.iter().map(|path| format!("--ca-cert={path}")));
        args.extend(self.client_cert.iter().map(|path| format!("--client-cert={path}")));
        let settings = Way::try_parse_from(args)?.master.check()?;
        Ok(MasterClient::new(&settings, None).map_err(fl_worker::WorkerError::Client)?)
    }
}

/// The answer of `GET /status`, as it is sent.
///
/// # Errors
/// If the master does not answer, or with something else.
pub async fn status(client: &MasterClient) -> anyhow::Result<(StatusBody, Map<String, Value>)> {
    let fields: Map<String, Value> = client.get("status", MAX_STATUS_BYTES).await?;
    let known = serde_json::from_value(Value::Object(fields.clone()));
    Ok((known.context("this is not the status of a master of this system")?, fields))
}

/// The finished rounds of a master, as it sends them: fields that this program does not know are kept.
///
/// # Errors
/// If the master does not answer, or with something else.
pub async fn history(client: &MasterClient) -> anyhow::Result<Vec<Map<String, Value>>> {
    Ok(client.get("history", MAX_HISTORY_BYTES).await?)
}
