//! The global model in memory: the file that `GET /global` sends, and how the next one is made.

use super::{
    AggregationSettings,
    aggregate::Collector,
    intake::lazy,
    step::{ServerState, UpdateWeight, next_parameters},
};
use bytes::Bytes;
use fl_model::{GlobalModel, ModelError};
use fl_quant::{Scheme, Spec};
use sha2::{Digest, Sha256};
use std::fmt;

/// A round's model, ready to be sent.
#[derive(Debug, Clone)]
pub struct Global {
    /// Its round.
    pub round: u64,
    /// The safetensors file.
    pub bytes: Bytes,
    /// Names the content: quoted, as HTTP wants it.
    pub etag: String,
    /// The server's control variate as a file like the model's, if the strategy has one.
    pub control: Option<Bytes>,
    /// With lazy upload: the squared change below which an update need not be sent.
    pub lazy_below: Option<f32>,
}

/// How a model is quantized for the download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compact {
    /// The quantizer.
    pub scheme: Scheme,
    /// Bits per code.
    pub bits: u8,
}

impl fmt::Display for Compact {
    /// As in an `ETag` and in a file's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.scheme, self.bits)
    }
}

impl Global {
    /// Names a file.
    pub fn new(round: u64, bytes: Bytes) -> Self {
        let digest = hex(&Sha256::digest(&bytes)[..16]);
        Self { round, bytes, etag: format!("\"{digest}\""), control: None, lazy_below: None }
    }

    /// Adds the fields that depend on the settings and the strategy's state.
    ///
    /// # Errors
    /// If the file is no model.
    pub fn completed(
        mut self,
        settings: &AggregationSettings,
        server: &ServerState,
    ) -> Result<Self, ModelError> {
        self.lazy_below = settings.lazy.map(|factor| lazy::threshold(factor, &server.squared_steps));
        if settings.strategy.uses_control() {
            let mut model = GlobalModel::from_safetensors(&self.bytes)?;
            match server.control() {
                Some(control) => model.parameters.copy_from_slice(control),
                None => model.parameters.fill(0.0),
            }
            self.control = Some(model.to_safetensors()?.into());
        }
        Ok(self)
    }

    /// The quantized file. It takes a while: call it off the async threads.
    ///
    /// It is made of the exact model every time, so that no round inherits an error from the one before.
    ///
    /// # Errors
    /// If the file is no model.
    pub fn quantized(&self, compact: Compact) -> Result<Bytes, ModelError> {
        quantize(&self.bytes, self.round, compact)
    }

    /// All parameters in canonical order.
    ///
    /// # Errors
    /// If the file is no model.
    pub fn parameters(&self) -> Result<Vec<f32>, ModelError> {
        GlobalModel::from_safetensors(&self.bytes).map(|model| model.parameters)
    }
}

/// The quantized form of a round's model file. It takes a while: call it off the async threads.
///
/// # Errors
/// If the file is no model.
pub fn quantize(file: &[u8], round: u64, compact: Compact) -> Result<Bytes, ModelError> {
    let spec = Spec { entropy: true, seed: round, ..Spec::new(compact.scheme, compact.bits) };
    Ok(GlobalModel::from_safetensors(file)?.to_quantized(&spec)?.into())
}

/// The model after `global`, from its round's updates, and the server's state after it. If the result is
/// not finite both stay as they were: a round must not ruin the model.
///
/// # Errors
/// If `global` is no model.
pub fn next(
    global: &Global,
    settings: &AggregationSettings,
    server: &ServerState,
    collected: &Collector,
    updates: &[UpdateWeight],
) -> Result<(Global, ServerState), ModelError> {
    let mut model = GlobalModel::from_safetensors(&global.bytes)?;
    let mut next_server = server.clone();
    let before = settings.lazy.map(|_| model.parameters.clone());
    next_parameters(settings, &mut next_server, collected, updates, &mut model.parameters);
    let state = next_server.to_vectors();
    let vectors = std::iter::once(&model.parameters[..]).chain(state.iter().map(|(_, vector)| *vector));
    if vectors.flatten().all(|value| value.is_finite()) {
        if let Some(before) = before {
            lazy::push_step(&mut next_server.squared_steps, &before, &model.parameters);
        }
    } else {
        tracing::error!(round = global.round, "the average is not finite: the model stays as it was");
        model = GlobalModel::from_safetensors(&global.bytes)?;
        next_server = server.clone();
    }
    model.round = global.round + 1;
    Ok((Global::new(model.round, model.to_safetensors()?.into()), next_server))
}

/// Bytes as text: two digits each.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
