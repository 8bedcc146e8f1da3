//! Bounds on input from outside, checked before anything is allocated.

/// Longest worker id, in bytes.
pub const MAX_WORKER_ID_BYTES: usize = 64;

/// Largest `num_samples` that one update may claim. Updates are averaged by their number of samples: a client
/// must not be able to outweigh all others by an absurd count.
pub const MAX_NUM_SAMPLES: u64 = 100_000_000;

/// Largest magnitude of one element of a delta. A model whose parameters move by more in one round
/// has diverged; the exact sum of the aggregator relies on this bound.
pub const MAX_DELTA_ABS: f32 = 65_536.0;

/// Largest JSON header of an update container, in bytes.
pub const MAX_CONTAINER_HEADER_BYTES: usize = 1 << 20;

/// Largest model, in parameters.
pub const MAX_PARAMETERS: usize = 1 << 28;

/// Largest JSON body of `POST /evaluation`, in bytes: more than [`MAX_METRICS`](crate::metrics::MAX_METRICS) metrics of
/// the longest names take.
pub const MAX_EVALUATION_BYTES: usize = 16 << 10;

/// Largest `CLIENT_CONFIG`, in bytes of JSON: it is part of every task.
pub const MAX_CLIENT_CONFIG_BYTES: usize = 16 << 10;

/// Longest long-poll that `wait` may ask for, in seconds.
pub const MAX_WAIT_S: u64 = 60;

/// Largest body of `POST /update` for a model of `parameters` parameters, in bytes: plain f32
/// with room for the header.
pub fn max_update_bytes(parameters: usize) -> usize {
    parameters.saturating_mul(4).saturating_add(MAX_CONTAINER_HEADER_BYTES)
}

/// Largest JSON body of `POST /update`, in bytes: a f32 printed in full takes up to 24 characters.
pub fn max_update_json_bytes(parameters: usize) -> usize {
    parameters.saturating_mul(26).saturating_add(1 << 16)
}
