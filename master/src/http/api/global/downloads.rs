//! Tracks which connections read which model.
//!
//! Readers share the bytes of a representation. A reader that stalls keeps them in memory after newer
//! rounds have replaced them, until its connection times out; many of them, each on another round,
//! would keep as many models. So the memory of models that only readers hold has a bound: beyond it,
//! the connections that read the oldest one are cut.

use super::cache::Representation;
use crate::http::server::Place;
use axum::body::Bytes;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The representations that are being read, the oldest first.
#[derive(Debug)]
pub(super) struct Downloads {
    max_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    readers: u64,
    read: BTreeMap<Key, Read>,
}

/// Round and `ETag`.
type Key = (u64, String);

#[derive(Debug, Default)]
struct Read {
    bytes: usize,
    connections: HashMap<u64, Arc<Place>>,
}

/// A reader's hold on a representation.
struct Lease {
    bytes: Bytes,
    key: Key,
    reader: u64,
    home: Arc<Downloads>,
}

impl Downloads {
    /// At most `max_bytes` beside the newest model.
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, state: Mutex::default() }
    }

    /// The bytes for one reader on the connection of `place`. `newest` is the tag of the newest model,
    /// which is in memory anyway.
    pub(super) fn lease(
        self: &Arc<Self>,
        representation: &Representation,
        newest: &str,
        place: Option<Arc<Place>>,
    ) -> Bytes {
        let bytes = representation.bytes.clone();
        let Some(place) = place else { return bytes };
        let key = (representation.round, representation.etag.clone());
        let mut state = self.lock();
        state.readers += 1;
        let reader = state.readers;
        let read = state.read.entry(key.clone()).or_default();
        read.bytes = bytes.len();
        read.connections.insert(reader, place);
        let cut = state.beyond(self.max_bytes, &key, newest);
        drop(state);
        cut.iter().flat_map(|read| read.connections.values()).for_each(|place| place.cut());
        Bytes::from_owner(Lease { bytes, key, reader, home: self.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes out what has to go: the oldest first, never what has just been asked for.
    fn beyond(&mut self, max_bytes: usize, asked: &Key, newest: &str) -> Vec<Read> {
        let mut cut = Vec::new();
        let held = |read: &BTreeMap<Key, Read>| -> usize {
            read.iter().filter(|(key, _)| key.1 != newest).map(|(_, read)| read.bytes).sum()
        };
        while held(&self.read) > max_bytes {
            let oldest = self.read.keys().find(|key| *key != asked && key.1 != newest).cloned();
            let Some(read) = oldest.and_then(|key| self.read.remove(&key)) else { break };
            cut.push(read);
        }
        cut
    }
}

impl AsRef<[u8]> for Lease {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.home.lock();
        if let Some(read) = state.read.get_mut(&self.key) {
            read.connections.remove(&self.reader);
            if read.connections.is_empty() {
                state.read.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::server::Connections;
    use futures_util::FutureExt;

    #[test]
    fn stalled_readers_of_many_rounds_hold_no_more_than_the_bound() {
        let downloads = Arc::new(Downloads::new(250));
        let connections = Arc::new(Connections::new(100, 100));
        let mut stalled = Vec::new();
        for round in 0..20 {
            let etag = format!("\"{round}\"");
            let model = Representation { round, etag: etag.clone(), bytes: vec![7; 100].into() };
            for _ in 0..3 {
                let place = connections.admit([127, 0, 0, 1].into()).unwrap();
                let bytes = downloads.lease(&model, &etag, Some(place.clone()));
                stalled.push((place, bytes));
            }
        }
        let is_cut = |place: &Arc<Place>| place.was_cut().now_or_never().is_some();
        let cut = stalled.iter().filter(|(place, _)| is_cut(place)).count();
        // The newest round and two before it stay.
        assert_eq!(cut, 17 * 3);
        assert!(!is_cut(&stalled[59].0) && stalled[59].1.iter().all(|byte| *byte == 7));
        drop(stalled);
        assert!(downloads.lock().read.is_empty(), "nothing is left of readers that have gone");
    }
}
