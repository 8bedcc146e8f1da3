//! Writes the containers that a worker sends.

use super::{UpdateError, UpdateMeta, check_flat_delta, header::CONTROL_PREFIX, header::check_num_samples};
use crate::layout::ModelLayout;
use safetensors::{Dtype, tensor::TensorView};
use std::collections::HashMap;

/// One tensor of a container that is being written.
#[derive(Debug, Clone)]
pub enum Encoded<'a> {
    /// The plain delta.
    F32(&'a [f32]),
    /// An fl-quant stream.
    Stream(&'a [u8]),
}

/// Writes a container. `tensors` are in the order of `layout`; twice as many carry the change of the
/// worker's control variate in their second half.
///
/// # Errors
/// If the lengths do not fit the layout. Infallible for tensors encoded by this layout.
pub fn write(
    meta: &UpdateMeta,
    layout: &ModelLayout,
    tensors: &[Encoded<'_>],
) -> Result<Vec<u8>, UpdateError> {
    let own = layout.tensors().len();
    if tensors.len() != own && tensors.len() != 2 * own {
        return Err(UpdateError::WrongTensors(format!(
            "{} tensors given, the model has {}",
            tensors.len(),
            layout.tensors().len()
        )));
    }
    let named = layout.tensors().iter().chain(layout.tensors()).zip(tensors).enumerate();
    let views = named.map(|(index, (tensor, encoded))| {
        let prefix = if index < own { "" } else { CONTROL_PREFIX };
        let (dtype, shape, data): (_, _, &[u8]) = match encoded {
            Encoded::F32(values) => (Dtype::F32, tensor.shape.clone(), bytemuck::cast_slice(values)),
            Encoded::Stream(bytes) => (Dtype::U8, vec![bytes.len()], bytes),
        };
        TensorView::new(dtype, shape, data)
            .map(|view| (format!("{prefix}{}", tensor.name), view))
            .map_err(|error| UpdateError::WrongTensors(format!("tensor `{}`: {error}", tensor.name)))
    });
    let views = views.collect::<Result<Vec<_>, _>>()?;
    safetensors::serialize(views, Some(meta_to_map(meta)))
        .map_err(|error| UpdateError::Malformed(error.to_string()))
}

fn meta_to_map(meta: &UpdateMeta) -> HashMap<String, String> {
    let mut map = HashMap::from([
        ("worker_id".to_owned(), meta.worker_id.to_string()),
        ("round".to_owned(), meta.round.to_string()),
        ("num_samples".to_owned(), meta.num_samples.to_string()),
    ]);
    let mut put = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            map.insert(key.to_owned(), value);
        }
    };
    put("loss", meta.loss.map(|v| v.to_string()));
    put("accuracy", meta.accuracy.map(|v| v.to_string()));
    put("compute_factor", meta.compute_factor.map(|v| v.to_string()));
    put("local_steps", meta.local_steps.map(|v| v.to_string()));
    put("local_norm", meta.local_norm.map(|v| v.to_string()));
    put("reuse", meta.reuse.map(|v| v.to_string()));
    // Names and finite numbers always become JSON.
    put(
        "metrics",
        (!meta.metrics.is_empty()).then(|| serde_json::to_string(&meta.metrics).unwrap_or_default()),
    );
    map
}

/// Writes a notice: a container whose `meta.reuse` names the update that counts once more.
///
/// # Errors
/// Infallible for metadata made by this crate.
pub fn write_notice(meta: &UpdateMeta) -> Result<Vec<u8>, UpdateError> {
    safetensors::serialize(Vec::<(String, TensorView<'_>)>::new(), Some(meta_to_map(meta)))
        .map_err(|error| UpdateError::Malformed(error.to_string()))
}

/// Converts a JSON update to a container, so that both formats share one path from there on.
pub fn from_json(update: &crate::UpdateJson, layout: &ModelLayout) -> Result<Vec<u8>, UpdateError> {
    check_num_samples(update.num_samples)?;
    check_flat_delta(&update.delta, layout)?;
    let meta = UpdateMeta {
        worker_id: update.worker_id.clone(),
        round: update.round,
        num_samples: update.num_samples,
        loss: update.loss,
        accuracy: None,
        compute_factor: update.compute_factor,
        local_steps: None,
        local_norm: None,
        reuse: None,
        metrics: update.metrics.clone(),
    };
    let tensors: Vec<_> = layout
        .tensors()
        .iter()
        .map(|tensor| Encoded::F32(&update.delta[tensor.offset..tensor.offset + tensor.len]))
        .collect();
    write(&meta, layout, &tensors)
}
