//! Serves connections beyond the cap: probes are answered, any other request gets 503.
//!
//! It is short-lived and bounded, and the newest connection always gets in: the one that has waited
//! longest for its request gives way. So a probe is answered however many clients hold connections.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// Connections in the lane at a time.
const MAX: usize = 64;

/// The connections in the lane, by age.
#[derive(Debug, Default)]
pub struct Lane(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    by_age: BTreeMap<u64, Arc<Notify>>,
}

/// A connection's place in the lane; it is given back on drop.
#[derive(Debug)]
pub struct LanePlace {
    id: u64,
    home: Arc<Lane>,
    given_up: Arc<Notify>,
}

impl Lane {
    /// A place; the oldest connection in a full lane loses its own.
    pub fn enter(self: &Arc<Self>) -> LanePlace {
        let mut waiting = self.lock();
        if waiting.by_age.len() >= MAX
            && let Some((_, oldest)) = waiting.by_age.pop_first()
        {
            oldest.notify_one();
        }
        waiting.next += 1;
        let (id, given_up) = (waiting.next, Arc::<Notify>::default());
        waiting.by_age.insert(id, given_up.clone());
        LanePlace { id, home: self.clone(), given_up }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LanePlace {
    /// Resolves when the connection has to go.
    pub async fn given_up(&self) {
        self.given_up.notified().await;
    }
}

impl Drop for LanePlace {
    fn drop(&mut self) {
        self.home.lock().by_age.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn the_newest_always_gets_in_and_the_oldest_gives_way() {
        let lane = Arc::new(Lane::default());
        let places: Vec<_> = (0..MAX + 2).map(|_| lane.enter()).collect();
        assert_eq!(lane.lock().by_age.len(), MAX);
        let gone = places.iter().filter(|place| place.given_up().now_or_never().is_some()).count();
        assert_eq!(gone, 2);
        drop(places);
        assert!(lane.lock().by_age.is_empty());
    }
}
