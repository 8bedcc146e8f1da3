//! One client: its name, its samples, and the state that it carries from round to round.

use crate::{error::SetupError, samples::own_samples, settings::Config};
use fl_datasets::Dataset;
use fl_model::TensorPattern;
use fl_protocol::{ModelLayout, WorkerId};
use fl_quant::Feedback;
use std::ops::Range;

/// The state that a client carries from round to round.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClientMemory {
    /// The quantization error of earlier updates.
    pub feedback: Feedback,
    /// SCAFFOLD's control variate `c_i`; empty stands for zero.
    pub control_variate: Vec<f32>,
    /// With lazy upload the update that the master has of this client.
    pub last_update: Option<LastUpdate>,
    /// With `LOCAL_LAYERS` the client's own tensors; none before its first update.
    pub personal: Option<Personal>,
}

impl ClientMemory {
    /// Whether it holds nothing but zeros.
    pub fn is_empty(&self) -> bool {
        let zeros = |values: &[f32]| values.iter().all(|value| *value == 0.0);
        self.last_update.is_none()
            && self.personal.is_none()
            && zeros(self.feedback.residual())
            && zeros(&self.control_variate)
    }
}

/// The last update that a client sent, for lazy upload.
#[derive(Debug, Clone, PartialEq)]
pub struct LastUpdate {
    /// The round that it was made for.
    pub round: u64,
    /// Its values as the master decodes them.
    pub values: Vec<f32>,
}

/// A client's own values of the tensors that `LOCAL_LAYERS` chooses.
#[derive(Debug, Clone, PartialEq)]
pub struct Personal {
    /// The pattern that chose them.
    pub pattern: String,
    /// Their values, one tensor after the other.
    pub values: Vec<f32>,
}

impl Personal {
    /// Puts the values over those of `parameters` that are in `local`, the parts of today's pattern. It may be
    /// another pattern than that of the values: then those that both choose are used.
    pub(crate) fn put_over(&self, layout: &ModelLayout, local: &[Range<usize>], parameters: &mut [f32]) {
        let Some(own) = personal_parts(&self.pattern, layout, self.values.len()) else { return };
        let mut values = self.values.as_slice();
        for part in own {
            let (head, tail) = values.split_at(part.len());
            for chosen in local {
                let (start, end) = (chosen.start.max(part.start), chosen.end.min(part.end));
                if start < end {
                    parameters[start..end].copy_from_slice(&head[start - part.start..end - part.start]);
                }
            }
            values = tail;
        }
    }
}

/// The parts that `pattern` chooses, if they hold `len` values.
pub(crate) fn personal_parts(pattern: &str, layout: &ModelLayout, len: usize) -> Option<Vec<Range<usize>>> {
    let parts = pattern.parse::<TensorPattern>().ok()?.ranges(layout).ok()?;
    (parts.iter().map(Range::len).sum::<usize>() == len).then_some(parts)
}

/// One client: its name, its samples, and its carried state.
#[derive(Debug, Clone)]
pub struct ClientState {
    /// Its name.
    pub worker_id: WorkerId,
    /// Seed of its batches and of its stochastic rounding.
    pub seed: u64,
    /// Its training samples.
    pub indices: Vec<u32>,
    /// Its samples that models are evaluated on; none unless the master asks for evaluations.
    pub held_out: Vec<u32>,
    /// The state that it carries from round to round.
    pub memory: ClientMemory,
}

impl ClientState {
    /// A client that has not trained yet, with the part of the data that the settings give it.
    ///
    /// # Errors
    /// If that part is empty.
    pub fn new(config: &Config, data: &Dataset) -> Result<Self, SetupError> {
        let indices = own_samples(config, data);
        if indices.is_empty() {
            return Err(SetupError::NoData);
        }
        let (worker_id, seed) = (config.worker_id.clone(), config.seed);
        Ok(Self { worker_id, seed, indices, held_out: Vec::new(), memory: ClientMemory::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn personal_values_are_used_where_both_patterns_choose() {
        let tensors =
            [("0.weight", vec![2]), ("0.bias", vec![1]), ("1.weight", vec![2]), ("1.bias", vec![1])];
        let layout = ModelLayout::new(tensors.map(|(name, shape)| (name.to_owned(), shape)).to_vec());
        let put = |pattern: &str, len: usize, local: &[Range<usize>]| {
            let values = (1..=len).map(|i| i as f32).collect();
            let mut parameters = [0.0; 6];
            Personal { pattern: pattern.to_owned(), values }.put_over(&layout, local, &mut parameters);
            parameters
        };
        let last = std::slice::from_ref(&(3..6));
        assert_eq!(put("^1", 3, last), [0.0, 0.0, 0.0, 1.0, 2.0, 3.0]);
        assert_eq!(put("bias", 2, last), [0.0, 0.0, 0.0, 0.0, 0.0, 2.0]);
        assert_eq!(put(".", 6, &[2..3, 5..6]), [0.0, 0.0, 3.0, 0.0, 0.0, 6.0]);
        assert_eq!(put("^1", 2, last), [0.0; 6], "values of another model");
        assert_eq!(put("^2", 3, last), [0.0; 6]);
    }
}
