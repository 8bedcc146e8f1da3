//! The federated-learning worker: pull, train, compress, push.
//!
//! - [`Args`] are the raw settings, [`Config`] the checked ones; with a master's task they make a [`Plan`].
//! - [`Engine`] trains and encodes, [`ClientState`] is what one client carries from round to round.
//! - [`LocalClient`] is both: a worker without a network. Global model in, update container out.
//! - [`run`] is the loop around it over HTTP.
//!
//! `fl run` starts several of them in one process over one shared data set.

mod backoff;
mod ballast;
mod calls;
mod client;
mod client_state;
mod engine;
mod error;
mod evaluation;
mod local_client;
mod metrics;
mod pauses;
mod plan;
mod prefetch;
mod report;
mod samples;
mod session;
pub mod settings;
mod state_file;
mod update;

pub use client::{CallError, CertificateError, ClientError, MasterClient};
pub use client_state::{ClientMemory, ClientState, LastUpdate, Personal};
pub use engine::{Engine, MakeLearner};
pub use error::{SetupError, WorkerError, exit_of};
pub use evaluation::metrics_of;
pub use local_client::LocalClient;
pub use plan::{Plan, StartingPoint, Work};
pub use report::{RoundReport, Summary};
pub use samples::hold_out;
pub use session::{run, run_with};
pub use settings::{Args, Config, Download, ErrorFeedback};
pub use update::{LocalUpdate, Sent};
