//! What the log of a round consists of.

use crate::federation::intake::Clip;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// One record of a round's log.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// The first record: the aggregation settings of the round as JSON, which the store does not read.
    Opened(Bytes),
    /// An accepted update.
    Update {
        /// What is kept of the request beside its body.
        meta: RecordMeta,
        /// The update container.
        body: Bytes,
    },
    /// The round was closed with the updates before this record. It is the last record.
    Closed(Closed),
}

impl Record {
    /// Length of what it carries.
    pub(super) fn body_len(&self) -> usize {
        match self {
            Self::Opened(body) | Self::Update { body, .. } => body.len(),
            Self::Closed(_) => 0,
        }
    }
}

/// What is kept of a request beside its body.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RecordMeta {
    /// Address of the sender.
    pub ip: String,
    /// When it came, in seconds since 1970.
    pub received_ts: f64,
    /// Bytes of the request's body, which was JSON perhaps.
    pub wire_bytes: u64,
    /// The factor that its norm was clipped by when it was accepted, as bits (decimal numbers may be rounded
    /// when they are read). Journals of older versions lack it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_bits: Option<u64>,
    /// The same for the change of the control variate; left out where that was not clipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_clip_bits: Option<u64>,
}

impl RecordMeta {
    /// Adds what the update was clipped by.
    #[must_use]
    pub fn with_clip(self, clip: Clip) -> Self {
        let control = (clip.control != 1.0).then_some(clip.control.to_bits());
        Self { clip_bits: Some(clip.update.to_bits()), control_clip_bits: control, ..self }
    }

    /// What the update was clipped by, if that is known.
    pub fn clip(&self) -> Option<Clip> {
        let control = self.control_clip_bits.map_or(1.0, f64::from_bits);
        self.clip_bits.map(|bits| Clip { update: f64::from_bits(bits), control })
    }
}

/// How a round was closed: with the updates, all that its record in the history is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Closed {
    /// Updates in the round.
    pub updates: u64,
    /// When the round was opened, in seconds since 1970.
    #[serde(rename = "opened_ts_bits", with = "bits")]
    pub opened_ts: f64,
    /// When it was closed, in seconds since 1970.
    #[serde(rename = "closed_ts_bits", with = "bits")]
    pub closed_ts: f64,
    /// Bytes of models sent while it was open.
    pub bytes_down: u64,
}

/// An update that a test tells from others by `number`.
#[cfg(test)]
pub(super) fn sample_update(number: u64) -> Record {
    let body = Bytes::from(format!("update {number}"));
    let wire_bytes = body.len() as u64;
    Record::Update {
        meta: RecordMeta {
            ip: "::1".into(),
            received_ts: number as f64,
            wire_bytes,
            ..RecordMeta::default()
        },
        body,
    }
}

/// The history's record of a round.
#[cfg(test)]
pub(crate) fn sample_history(round: u64) -> fl_protocol::HistoryRecord {
    fl_protocol::HistoryRecord {
        round,
        started_ts: 1.0,
        finished_ts: 2.0,
        duration_s: 1.0,
        participants: 2,
        num_samples: 3,
        train_loss: None,
        test_accuracy: None,
        test_loss: None,
        test_absolute_error: None,
        evaluation: None,
        update_metrics: Default::default(),
        bytes_up: 4,
        reused: 0,
        bytes_saved: 0,
        bytes_down: 5,
        bits_per_param: 6.0,
    }
}

/// Decimal numbers may be rounded when they are read, so they are written as their 64 bits.
mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(value.to_bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        u64::deserialize(deserializer).map(f64::from_bits)
    }
}

/// What a replay found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Replayed {
    /// The aggregation settings of the round, if the log begins with them.
    pub settings: Option<Bytes>,
    /// Updates in the log.
    pub updates: u64,
    /// How the round was closed; `None` while it is open.
    pub closed: Option<Closed>,
    /// Version of the log's format. Version 1 did not wait for the record that closes a round: a later log or
    /// snapshot then says that it was closed.
    pub version: u8,
    /// Earliest and latest arrival of an update.
    pub(super) received: Option<(f64, f64)>,
}

impl Replayed {
    /// Whether the log has no record.
    pub(super) fn is_empty(&self) -> bool {
        self.settings.is_none() && self.updates == 0 && self.closed.is_none()
    }

    /// Takes note of a record.
    ///
    /// # Errors
    /// If it cannot come here.
    pub(super) fn note(&mut self, record: &Record) -> Result<(), String> {
        if self.closed.is_some() {
            return Err("a record follows the one that closes the round".to_owned());
        }
        match record {
            Record::Opened(_) if self.settings.is_some() || self.updates > 0 => {
                return Err("the round is opened twice".to_owned());
            }
            Record::Opened(settings) => self.settings = Some(settings.clone()),
            Record::Update { meta, .. } => {
                self.updates += 1;
                let (first, last) = self.received.unwrap_or((f64::INFINITY, f64::NEG_INFINITY));
                self.received = Some((first.min(meta.received_ts), last.max(meta.received_ts)));
            }
            Record::Closed(closed) if closed.updates != self.updates => {
                return Err(format!(
                    "the round was closed with {} updates and has {}",
                    closed.updates, self.updates
                ));
            }
            Record::Closed(closed) => self.closed = Some(*closed),
        }
        Ok(())
    }

    /// What a log of version 1 leaves to be inferred about a closed round.
    pub(super) fn inferred_close(&self) -> Closed {
        let (opened_ts, closed_ts) = self.received.unwrap_or_default();
        Closed { updates: self.updates, opened_ts, closed_ts, bytes_down: 0 }
    }
}
