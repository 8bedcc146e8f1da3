//! Reused buffers for request bodies.
//!
//! Bodies are large and short-lived; what an accepted update leaves is small and stays. Allocated from one
//! heap, the small objects settle in the holes that bodies leave and fragment it: memory would grow with
//! the number of clients.

use crate::memory;
use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

/// Most bytes that idle buffers hold.
const MAX_IDLE_BYTES: usize = 4 << 20;

/// A pool of idle buffers.
#[derive(Debug, Default)]
pub struct Buffers(Mutex<Idle>);

#[derive(Debug, Default)]
struct Idle {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// A borrowed buffer; it returns to the pool on drop.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    home: Arc<Buffers>,
}

impl Buffers {
    /// An empty buffer, with room for `capacity` bytes or to be grown.
    pub fn take(self: &Arc<Self>, capacity: usize) -> Buffer {
        let idle = {
            let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let buffer = idle.buffers.pop();
            idle.bytes -= buffer.as_ref().map_or(0, Vec::capacity);
            buffer
        };
        let mut bytes = idle.unwrap_or_default();
        // Nothing is to be copied, and a large buffer goes back to the system when it is dropped.
        if bytes.capacity() < capacity {
            bytes = Vec::with_capacity(memory::capacity::<u8>(capacity));
        }
        Buffer { bytes, home: self.clone() }
    }
}

impl Deref for Buffer {
    type Target = Vec<u8>;

    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut idle = self.home.0.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes.capacity() > 0 && idle.bytes + bytes.capacity() <= MAX_IDLE_BYTES {
            idle.bytes += bytes.capacity();
            idle.buffers.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_empty_and_not_too_many_lie_idle() {
        let buffers = Arc::new(Buffers::default());
        let mut first = buffers.take(1000);
        first.extend_from_slice(&[7; 1000]);
        let at = first.as_ptr();
        drop(bytes::Bytes::from_owner(first));
        let again = buffers.take(10);
        assert!(again.is_empty() && again.capacity() >= 1000 && again.as_ptr() == at);
        drop([again, buffers.take(MAX_IDLE_BYTES), buffers.take(2000)]);
        let idle = buffers.0.lock().unwrap();
        assert!(idle.bytes <= MAX_IDLE_BYTES);
        assert_eq!(idle.bytes, idle.buffers.iter().map(Vec::capacity).sum::<usize>());
        assert_eq!(idle.buffers.len(), 2);
    }
}
