//! Request bodies within bounds: of size, of time, and of all bodies' memory together.

use super::buffers::{Buffer, Buffers};
use crate::{federation::intake::Rejection, settings::Limits};
use axum::body::Body;
use bytes::Bytes;
use fl_protocol::{ErrorCode, limits};
use http_body_util::BodyExt;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};

/// Bytes that a permit stands for.
const UNIT: usize = 1024;
/// A body may take its time-out plus its size at this rate, in bytes per second.
const MIN_RATE: f64 = 16_384.0;
/// How long a body waits for memory before it is turned away, ...
const PATIENCE: Duration = Duration::from_secs(5);
/// ... beyond its time at this rate, in bytes per second: others of its size go first.
const PATIENT_RATE: f64 = 1e6;
/// A body that declares more than this gets its memory at once. If every body took it as it arrives, many large
/// ones would wait for each other half-way.
const SMALL: usize = 64 << 10;

/// Memory of the bodies that are being received or handled.
#[derive(Debug)]
pub struct Budget {
    units: Arc<Semaphore>,
    all_units: usize,
    buffers: Arc<Buffers>,
    timeout: Duration,
}

/// A whole body; its memory counts until it is dropped.
#[derive(Debug)]
pub struct Received {
    /// The content.
    pub bytes: Bytes,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Budget {
    /// Room for what the settings allow, and for half of the largest container of a model of that size: some quantized
    /// updates at a time. A larger body, of plain floats or JSON, takes all of it and more, alone.
    pub fn new(config: &Limits, parameters: usize) -> Self {
        let half = limits::max_update_bytes(parameters) / 2;
        let units = ((config.max_inflight_mb << 20).max(half)).div_ceil(UNIT) + 1;
        let all_units = units.min(Semaphore::MAX_PERMITS);
        Self {
            units: Arc::new(Semaphore::new(all_units)),
            all_units,
            buffers: Arc::default(),
            timeout: Duration::from_secs_f64(config.body_timeout_s),
        }
    }

    /// The share of the memory that is taken, 0 to 1.
    pub fn load(&self) -> f64 {
        1.0 - self.units.available_permits() as f64 / self.all_units as f64
    }

    /// Reads a body of at most `limit` bytes. `declared` is its `Content-Length`.
    ///
    /// # Errors
    /// If it is larger, too slow, cut short, or if there is no memory for it.
    pub async fn read(
        &self,
        mut body: Body,
        declared: Option<u64>,
        limit: usize,
    ) -> Result<Received, Rejection> {
        if declared.is_some_and(|len| len > limit as u64) {
            return Err(too_large(limit));
        }
        let start = Instant::now();
        let declared = declared.unwrap_or(0) as usize;
        let mut bytes = self.buffers.take(declared.min(SMALL));
        let mut permit: Option<OwnedSemaphorePermit> = None;
        let mut paid = 0;
        // Time that was spent waiting for memory is not the client's.
        let mut waited = Duration::ZERO;
        loop {
            let allowed = self.timeout + waited + Duration::from_secs_f64(bytes.len() as f64 / MIN_RATE);
            let frame = timeout_at(start + allowed, body.frame()).await.map_err(|_| {
                Rejection::new(ErrorCode::RequestTimeout, "the body did not arrive in time: send it faster")
            })?;
            let data = match frame {
                None => break,
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(_)) => {
                    return Err(Rejection::new(ErrorCode::Malformed, "the body is cut short: send it again"));
                }
            };
            let len = bytes.len() + data.len();
            if len > limit {
                return Err(too_large(limit));
            }
            // Not before something has arrived: who only declares holds nothing.
            let owed = len.max(declared).div_ceil(UNIT).min(self.all_units);
            if owed > paid {
                let since = Instant::now();
                let more = self.take(owed - paid).await?;
                waited += since.elapsed();
                match &mut permit {
                    Some(permit) => permit.merge(more),
                    None => permit = Some(more),
                }
                paid = owed;
                bytes = self.grown(bytes, len.max(declared));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Received { bytes: Bytes::from_owner(bytes), _permit: permit })
    }

    /// The buffer with room for `len` bytes.
    fn grown(&self, bytes: Buffer, len: usize) -> Buffer {
        if bytes.capacity() >= len {
            return bytes;
        }
        // Doubled where the length is not known, so that bytes are copied a few times at most.
        let mut grown = self.buffers.take(len.max(2 * bytes.capacity()));
        grown.extend_from_slice(&bytes);
        grown
    }

    async fn take(&self, units: usize) -> Result<OwnedSemaphorePermit, Rejection> {
        let busy =
            || Rejection::new(ErrorCode::Overloaded, "too many updates are being received: try again later");
        let permits = self.units.clone().acquire_many_owned(units as u32);
        let patience = PATIENCE + Duration::from_secs_f64((units * UNIT) as f64 / PATIENT_RATE);
        timeout(patience, permits).await.map_err(|_| busy())?.map_err(|_| busy())
    }
}

fn too_large(limit: usize) -> Rejection {
    Rejection::new(
        ErrorCode::TooLarge,
        format!("the body is larger than {limit} bytes, which this model's updates cannot be"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    fn budget() -> Budget {
        let limits = Limits { body_timeout_s: 0.2, max_inflight_mb: 1, ..crate::Config::default().limits };
        Budget::new(&limits, 10)
    }

    fn chunks(chunks: Vec<Vec<u8>>) -> Body {
        Body::from_stream(stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>)))
    }

    async fn code(body: Body, declared: Option<u64>, limit: usize) -> ErrorCode {
        budget().read(body, declared, limit).await.unwrap_err().code
    }

    #[tokio::test]
    async fn reads_what_fits() {
        let budget = budget();
        let before = budget.units.available_permits();
        let received = budget.read(chunks(vec![vec![1; 3000], vec![2; 1000]]), None, 4000).await.unwrap();
        assert_eq!((received.bytes.len(), received.bytes[3999]), (4000, 2));
        assert_eq!(budget.units.available_permits(), before - 4);
        drop(received);
        assert_eq!(budget.units.available_permits(), before);
    }

    /// Together they are larger than the budget: those that have arrived in part must not wait for each other.
    #[tokio::test]
    async fn many_large_bodies_are_received_one_after_the_other() {
        let budget = Arc::new(budget());
        let len = 700 << 10;
        let bodies: Vec<_> = (0..8)
            .map(|k| {
                let budget = budget.clone();
                tokio::spawn(async move {
                    let body = stream::unfold(0, move |sent| async move {
                        tokio::task::yield_now().await;
                        let part = Ok::<_, std::io::Error>(vec![k; 10 << 10]);
                        (sent < len).then_some((part, sent + (10 << 10)))
                    });
                    let received = budget.read(Body::from_stream(body), Some(len as u64), len).await.unwrap();
                    (received.bytes.len(), received.bytes.iter().all(|byte| *byte == k))
                })
            })
            .collect();
        for body in bodies {
            assert_eq!(body.await.unwrap(), (len, true));
        }
        assert_eq!(budget.units.available_permits(), budget.all_units);
    }

    #[tokio::test]
    async fn a_body_larger_than_the_budget_is_received_alone() {
        let budget = budget();
        let len = 3 << 20;
        let received = budget.read(chunks(vec![vec![1; len]]), Some(len as u64), len).await.unwrap();
        assert_eq!((received.bytes.len(), budget.units.available_permits()), (len, 0));
    }

    #[tokio::test]
    async fn refuses_what_is_too_large_declared_or_not() {
        assert_eq!(code(chunks(vec![vec![0; 10]]), Some(10), 9).await, ErrorCode::TooLarge);
        assert_eq!(code(chunks(vec![vec![0; 5], vec![0; 5]]), None, 9).await, ErrorCode::TooLarge);
    }

    #[tokio::test]
    async fn refuses_what_does_not_arrive() {
        let never = Body::from_stream(stream::pending::<Result<Vec<u8>, std::io::Error>>());
        assert_eq!(code(never, Some(10), 10).await, ErrorCode::RequestTimeout);
        let broken = Body::from_stream(stream::iter([Ok(vec![1u8]), Err(std::io::Error::other("gone"))]));
        assert_eq!(code(broken, Some(10), 10).await, ErrorCode::Malformed);
    }
}
