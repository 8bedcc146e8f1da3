//! One client: its name, its samples, and the state that it carries from round to round.

use crate::{error::SetupError, samples::own_samples, settings::Config};
use fl_datasets::Dataset;
use fl_protocol::WorkerId;
use fl_quant::Feedback;

/// The state that a client carries from round to round.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClientMemory {
    /// The quantization error of earlier updates.
    pub feedback: Feedback,
    /// SCAFFOLD's control variate `c_i`; empty stands for zero.
    pub control_variate: Vec<f32>,
    /// With lazy upload the update that the master has of this client.
    pub last_update: Option<LastUpdate>,
}

impl ClientMemory {
    /// Whether it holds nothing but zeros.
    pub fn is_empty(&self) -> bool {
        let zeros = |values: &[f32]| values.iter().all(|value| *value == 0.0);
        self.last_update.is_none() && zeros(self.feedback.residual()) && zeros(&self.control_variate)
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
