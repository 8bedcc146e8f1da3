//! Events for subscribers of a running master: the dashboard's stream, a caller in the process.

use fl_protocol::{HistoryRecord, WorkerId};
use serde::Serialize;

/// Something happened. The dashboard's stream sends these.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MasterEvent {
    /// An update was accepted for the open round.
    UpdateAccepted {
        /// The open round.
        round: u64,
        /// Whose update.
        worker: WorkerId,
        /// Updates of the round so far.
        pending_updates: u64,
    },
    /// A round was closed; its model is there.
    RoundClosed {
        /// Its record, without an evaluation yet.
        record: HistoryRecord,
    },
    /// A round's record is complete: evaluated, or known not to be.
    RoundRecorded {
        /// Its record.
        record: HistoryRecord,
    },
}
