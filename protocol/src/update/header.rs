//! The header of a container: read once, then carried beside the body.

use super::{Update, UpdateError, read_payloads};
use crate::{
    layout::ModelLayout,
    limits::{MAX_CONTAINER_HEADER_BYTES, MAX_NUM_SAMPLES},
    metrics::Metrics,
    worker_id::WorkerId,
};
use safetensors::{
    SafeTensors,
    tensor::{Metadata, TensorInfo},
};
use std::{collections::HashMap, str::FromStr};

/// Prefix of the names of tensors that hold the change of SCAFFOLD's control variate.
pub(super) const CONTROL_PREFIX: &str = "control.";

/// Size of the header's length field, in bytes.
const PREFIX_BYTES: usize = 8;

/// Sender and weight of an update.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateMeta {
    /// Name of the worker.
    pub worker_id: WorkerId,
    /// Round of the model that was trained from.
    pub round: u64,
    /// Weight in the average; at least 1.
    pub num_samples: u64,
    /// Mean training loss over the local steps.
    pub loss: Option<f64>,
    /// Training accuracy, 0 to 1.
    pub accuracy: Option<f64>,
    /// Seconds of local training, or another measure of speed.
    pub compute_factor: Option<f64>,
    /// SGD steps that were made.
    pub local_steps: Option<u32>,
    /// Effective number of plain SGD steps: `|a_k|_1` of FedNova (Wang et al. 2020, section 4).
    /// Omitted where it equals `local_steps`.
    pub local_norm: Option<f64>,
    /// Lazy upload: the round of this worker's last accepted update, which counts once more. The container
    /// is then a notice without tensors.
    pub reuse: Option<u64>,
    /// What the worker found of its training; displayed, not used.
    pub metrics: Metrics,
}

/// What a container asks the master to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The tensors that it carries.
    Update,
    /// The worker's accepted update of round `reuse` once more (lazy upload). It carries no tensors.
    Notice {
        /// Round of the update that counts again.
        reuse: u64,
    },
}

/// A container's checked header: sender, kind, and positions of the tensors.
///
/// It owns its data, so it can be passed along with the body from admission to the sum. The tensors
/// themselves are checked by [`Header::update`].
#[derive(Debug, Clone)]
pub struct Header {
    meta: UpdateMeta,
    kind: Kind,
    tensors: Metadata,
    /// Names of the tensors, in the order of their data.
    names: Vec<String>,
    /// Where the tensors' bytes begin.
    data_start: usize,
}

impl Header {
    /// Reads the header of `body`, and checks that its tensors cover the rest of `body` exactly.
    ///
    /// # Errors
    /// If it is cut short, is too large, lacks metadata, or is a notice with tensors.
    pub fn read(body: &[u8]) -> Result<Self, UpdateError> {
        let declared = declared_bytes(body)
            .ok_or_else(|| UpdateError::Malformed("it is shorter than a header".to_owned()))?;
        // The safetensors crate allows headers of 100 MB; an update names a few dozen tensors.
        if declared > MAX_CONTAINER_HEADER_BYTES as u64 {
            return Err(UpdateError::Malformed(format!(
                "its header declares {declared} bytes, at most {MAX_CONTAINER_HEADER_BYTES} are allowed"
            )));
        }
        let (len, tensors) =
            SafeTensors::read_metadata(body).map_err(|error| UpdateError::Malformed(error.to_string()))?;
        let map = tensors
            .metadata()
            .as_ref()
            .ok_or_else(|| UpdateError::Malformed("it has no __metadata__".to_owned()))?;
        let meta = read_meta(map)?;
        let names = tensors.offset_keys();
        let kind = match meta.reuse {
            None => Kind::Update,
            Some(reuse) if names.is_empty() => Kind::Notice { reuse },
            Some(_) => {
                return Err(UpdateError::WrongTensors(
                    "a container with `reuse` in its metadata is a notice: it carries no tensors".to_owned(),
                ));
            }
        };
        Ok(Self { meta, kind, tensors, names, data_start: PREFIX_BYTES + len })
    }

    /// Sender and weight.
    pub fn meta(&self) -> &UpdateMeta {
        &self.meta
    }

    /// Whether it is an update or a notice.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Checks the tensors of `body`, the container that this header was read from, against `layout`.
    ///
    /// Allocates in proportion to the model's number of tensors, whatever sizes the body declares.
    ///
    /// # Errors
    /// If names, shapes, values or streams do not match the layout.
    pub fn update<'a>(&self, body: &'a [u8], layout: &'a ModelLayout) -> Result<Update<'a>, UpdateError> {
        let has_control = self.names.iter().any(|name| name.starts_with(CONTROL_PREFIX));
        self.check_names(layout, has_control)?;
        let (payloads, max_abs) = read_payloads(body, self, layout, "")?;
        let (control, control_max_abs) = match has_control {
            true => read_payloads(body, self, layout, CONTROL_PREFIX)?,
            false => (Vec::new(), 0.0),
        };
        Ok(Update { meta: self.meta.clone(), payloads, max_abs, control, control_max_abs, layout })
    }

    /// Refuses a tensor that the model does not have.
    fn check_names(&self, layout: &ModelLayout, has_control: bool) -> Result<(), UpdateError> {
        // With the right number of names, an unknown one means that another is missing, which
        // `read_payloads` reports.
        if self.names.len() == layout.tensors().len() * (1 + usize::from(has_control)) {
            return Ok(());
        }
        let known = |name: &str| {
            let name = name.strip_prefix(CONTROL_PREFIX).unwrap_or(name);
            layout.tensors().iter().any(|tensor| tensor.name == name)
        };
        match self.names.iter().find(|name| !known(name)) {
            Some(name) => {
                Err(UpdateError::WrongTensors(format!("the model has no tensor `{}`", shorten(name))))
            }
            None => Ok(()),
        }
    }

    /// Type, shape and bytes of a tensor of `body`.
    pub(super) fn tensor<'a>(&self, body: &'a [u8], name: &str) -> Option<(&TensorInfo, &'a [u8])> {
        let info = self.tensors.info(name)?;
        let (start, end) = info.data_offsets;
        let bytes = body.get(self.data_start.checked_add(start)?..self.data_start.checked_add(end)?)?;
        Some((info, bytes))
    }
}

/// The metadata of a container; its tensors are not checked.
///
/// # Errors
/// Those of [`Header::read`].
pub fn peek_meta(body: &[u8]) -> Result<UpdateMeta, UpdateError> {
    Header::read(body).map(|header| header.meta)
}

/// The length of the header as the body declares it; `None` if the body is shorter than that number.
pub fn declared_bytes(body: &[u8]) -> Option<u64> {
    body.first_chunk::<PREFIX_BYTES>().map(|bytes| u64::from_le_bytes(*bytes))
}

fn read_meta(map: &HashMap<String, String>) -> Result<UpdateMeta, UpdateError> {
    let num_samples: u64 = required(map, "num_samples")?;
    check_num_samples(num_samples)?;
    let meta = UpdateMeta {
        worker_id: required(map, "worker_id")?,
        round: required(map, "round")?,
        num_samples,
        loss: optional(map, "loss")?,
        accuracy: optional(map, "accuracy")?,
        compute_factor: optional(map, "compute_factor")?,
        local_steps: optional(map, "local_steps")?,
        local_norm: optional(map, "local_norm")?,
        reuse: optional(map, "reuse")?,
        metrics: read_metrics(map)?,
    };
    for (key, value) in [
        ("loss", meta.loss),
        ("accuracy", meta.accuracy),
        ("compute_factor", meta.compute_factor),
        ("local_norm", meta.local_norm),
    ] {
        if value.is_some_and(|v| !v.is_finite()) {
            return Err(UpdateError::NonFinite(format!("`{key}`")));
        }
    }
    Ok(meta)
}

/// Checks a claimed number of samples.
pub fn check_num_samples(num_samples: u64) -> Result<(), UpdateError> {
    if num_samples == 0 || num_samples > MAX_NUM_SAMPLES {
        return Err(UpdateError::BadNumSamples(num_samples));
    }
    Ok(())
}

/// The metadata `metrics`: a JSON object.
fn read_metrics(map: &HashMap<String, String>) -> Result<Metrics, UpdateError> {
    let bad = |error| UpdateError::Malformed(format!("its metadata `metrics` cannot be read: {error}"));
    map.get("metrics").map_or(Ok(Metrics::default()), |text| text.parse().map_err(bad))
}

fn required<T: FromStr>(map: &HashMap<String, String>, key: &str) -> Result<T, UpdateError> {
    optional(map, key)?.ok_or_else(|| UpdateError::Malformed(format!("its metadata lacks `{key}`")))
}

fn optional<T: FromStr>(map: &HashMap<String, String>, key: &str) -> Result<Option<T>, UpdateError> {
    map.get(key)
        .map(|text| {
            text.trim()
                .parse()
                .map_err(|_| UpdateError::Malformed(format!("its metadata `{key}` cannot be read")))
        })
        .transpose()
}

/// A foreign name, cut to a length that fits a log line.
fn shorten(name: &str) -> &str {
    &name[..name.floor_char_boundary(64)]
}
