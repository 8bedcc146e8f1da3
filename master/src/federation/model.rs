//! The global model in memory: the file that `GET /global` sends, and how the next one is made.

use super::{
    AggregationSettings,
    aggregate::Collector,
    intake::lazy,
    step::{FileValues, NotFinite, ServerState, UpdateWeight, next_parameters},
};
use crate::memory;
use bytes::Bytes;
use fl_model::{Buffers, GlobalModel, ModelError, ModelView};
use fl_quant::{Scheme, Spec};
use sha2::{Digest, Sha256};
use std::{fmt, ops::Range};

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
            // The buffers are the model's alone.
            let model = GlobalModel { buffers: Buffers::default(), ..ModelView::read(&self.bytes)?.model };
            let mut file = new_file(&model)?;
            for (value, control) in file.values().iter_mut().zip(server.control().unwrap_or_default()) {
                *value = control.to_le_bytes();
            }
            self.control = Some(file.bytes.into());
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
    Ok(ModelView::read(file)?.to_quantized(&spec)?.into())
}

/// The model after `global`, from its round's updates, which are read for the last time; `server` becomes the state
/// after it. If the result is not finite both stay as they were: a round must not ruin the model.
///
/// # Errors
/// If `global` is no model. Nothing has changed then.
pub fn next(
    global: &Global,
    settings: &AggregationSettings,
    server: &mut ServerState,
    collected: &mut Collector,
    updates: &[UpdateWeight],
) -> Result<Global, ModelError> {
    let file = canonical(&global.bytes)?;
    let view = ModelView::read(&file)?;
    let before = view.parameters.unwrap_or_default();
    let mut next = new_file(&GlobalModel { round: global.round + 1, ..view.model })?;
    match next_parameters(settings, server, collected, updates, before, next.values()) {
        Ok(()) if settings.lazy.is_some() => {
            lazy::push_step(&mut server.squared_steps, before, next.values());
        }
        Ok(()) => {}
        Err(NotFinite) => {
            tracing::error!(round = global.round, "the average is not finite: the model stays as it was");
            next.values().copy_from_slice(before);
        }
    }
    Ok(Global::new(global.round + 1, next.bytes.into()))
}

/// The file with its parameters in canonical order, as all files of ours have them.
fn canonical(file: &Bytes) -> Result<Bytes, ModelError> {
    let view = ModelView::read(file)?;
    match view.parameters {
        Some(_) => Ok(file.clone()),
        None => Ok(view.into_model()?.to_safetensors()?.into()),
    }
}

/// A model file whose parameters are being written.
struct NewFile {
    bytes: Vec<u8>,
    /// Where the parameters are.
    parameters: Range<usize>,
}

/// The file of `model` with parameters of zero. A large one takes memory as they are written.
fn new_file(model: &GlobalModel) -> Result<NewFile, ModelError> {
    let (header, after) = (model.exact_header()?, model.buffers.after());
    let end = header.len() + size_of::<f32>() * model.network.layout().parameters();
    let mut bytes = memory::zeros(end + after.len());
    bytes[..header.len()].copy_from_slice(&header);
    bytes[end..].copy_from_slice(&after);
    Ok(NewFile { bytes, parameters: header.len()..end })
}

impl NewFile {
    fn values(&mut self) -> &mut FileValues {
        self.bytes[self.parameters.clone()].as_chunks_mut().0
    }
}

/// Bytes as text: two digits each.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
