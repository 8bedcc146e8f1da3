//! Which connections may stay: a cap on all of them, a cap per address, and who gives way.
//!
//! A connection is *busy* from the first byte of a request's handling to the last byte of its answer,
//! and *idle* otherwise. At a cap, the connection that has been idle longest makes room for the next
//! one: connections that never sent a request first. If all are busy, the newcomer is not admitted.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::Notify;

/// All open connections.
#[derive(Debug)]
pub struct Connections {
    max: usize,
    max_per_address: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts events; numbers connections and orders idle times.
    clock: u64,
    open: HashMap<u64, Entry>,
    idle: BTreeSet<Rank>,
    addresses: HashMap<IpAddr, Address>,
}

#[derive(Debug)]
struct Entry {
    address: IpAddr,
    /// Its place in `idle`; none while it is busy.
    rank: Option<Rank>,
    has_served: bool,
    /// Requests whose answer is not complete.
    requests: usize,
    /// Whether bytes of an answer wait for the client to read.
    is_writing: bool,
    signals: Arc<Signals>,
}

/// The connections of one address.
#[derive(Debug, Default)]
struct Address {
    open: usize,
    idle: BTreeSet<Rank>,
}

/// Order of eviction: those that never sent a request, then by the time since they are idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    has_served: bool,
    since: u64,
    id: u64,
}

#[derive(Debug, Default)]
struct Signals {
    evicted: Notify,
    cut: Notify,
}

/// A connection's place; it is given back on drop.
#[derive(Debug)]
pub struct Place {
    id: u64,
    home: Arc<Connections>,
    signals: Arc<Signals>,
}

/// A request in progress; its connection is busy until this is dropped.
#[derive(Debug)]
pub struct Busy(Arc<Place>);

impl Connections {
    /// At most `max` connections, and at most `max_per_address` of one address.
    pub fn new(max: usize, max_per_address: usize) -> Self {
        Self { max, max_per_address, state: Mutex::default() }
    }

    /// A place for a new connection; the longest idle one may have to go. `None` if there is no room.
    pub fn admit(self: &Arc<Self>, ip: IpAddr) -> Option<Arc<Place>> {
        let address = network_of(ip);
        let mut state = self.lock();
        let known = state.addresses.get(&address);
        let evicted = match known {
            Some(known) if known.open >= self.max_per_address => Some(*known.idle.first()?),
            _ if state.open.len() >= self.max => Some(*state.idle.first()?),
            _ => None,
        };
        if let Some(entry) = evicted.and_then(|rank| state.remove(rank.id)) {
            entry.signals.evicted.notify_one();
        }
        state.clock += 1;
        let id = state.clock;
        let signals = Arc::<Signals>::default();
        let entry = Entry {
            address,
            rank: None,
            has_served: false,
            requests: 0,
            is_writing: false,
            signals: signals.clone(),
        };
        state.open.insert(id, entry);
        state.addresses.entry(address).or_default().open += 1;
        state.update(id, |_| ());
        Some(Arc::new(Place { id, home: self.clone(), signals }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Changes an entry and files it under busy or idle. False if it was evicted.
    fn update(&mut self, id: u64, change: impl FnOnce(&mut Entry)) -> bool {
        let Some(entry) = self.open.get_mut(&id) else { return false };
        change(entry);
        let is_idle = entry.requests == 0 && !entry.is_writing;
        if is_idle == entry.rank.is_some() {
            return true;
        }
        let address = self.addresses.entry(entry.address).or_default();
        match entry.rank.take() {
            Some(rank) => {
                self.idle.remove(&rank);
                address.idle.remove(&rank);
            }
            None => {
                self.clock += 1;
                let rank = Rank { has_served: entry.has_served, since: self.clock, id };
                self.idle.insert(rank);
                address.idle.insert(rank);
                entry.rank = Some(rank);
            }
        }
        true
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        let entry = self.open.remove(&id)?;
        if let Some(address) = self.addresses.get_mut(&entry.address) {
            address.open -= 1;
            if let Some(rank) = &entry.rank {
                self.idle.remove(rank);
                address.idle.remove(rank);
            }
            if address.open == 0 {
                self.addresses.remove(&entry.address);
            }
        }
        Some(entry)
    }
}

impl Place {
    /// Begins a request; `None` if the connection has just been evicted.
    pub fn begin(self: &Arc<Self>) -> Option<Busy> {
        let begun = self.home.lock().update(self.id, |entry| {
            entry.requests += 1;
            entry.has_served = true;
        });
        begun.then(|| Busy(self.clone()))
    }

    /// Notes whether bytes of an answer wait for the client to read.
    pub fn set_writing(&self, is_writing: bool) {
        self.home.lock().update(self.id, |entry| entry.is_writing = is_writing);
    }

    /// Ends the connection now, in the middle of an answer.
    pub fn cut(&self) {
        self.signals.cut.notify_one();
    }

    /// Resolves when the connection has to make room for another.
    pub async fn evicted(&self) {
        self.signals.evicted.notified().await;
    }

    /// Resolves when the connection has to end at once.
    pub async fn was_cut(&self) {
        self.signals.cut.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.home.lock().remove(self.id);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.home.lock().update(self.0.id, |entry| entry.requests -= 1);
    }
}

/// What counts as one address: IPv4 as it is, also inside of IPv6; of IPv6 the /64 network, since one
/// host has all of it.
pub fn network_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    fn is_open(connections: &Connections, place: &Place) -> bool {
        connections.lock().open.contains_key(&place.id)
    }

    #[test]
    fn the_longest_idle_connection_makes_room_and_one_that_served_goes_last() {
        let connections = Arc::new(Connections::new(3, 3));
        let worker = connections.admit(ip(1)).unwrap();
        drop(worker.begin());
        let (first, second) = (connections.admit(ip(2)).unwrap(), connections.admit(ip(2)).unwrap());
        let third = connections.admit(ip(2)).unwrap();
        assert!(!is_open(&connections, &first), "the longest idle one went");
        assert!(first.begin().is_none(), "it takes no request any more");
        assert!(is_open(&connections, &worker) && is_open(&connections, &second));
        assert_eq!(connections.lock().open.len(), 3);
        drop((first, second, third));
        assert_eq!(connections.lock().open.len(), 1);
    }

    #[test]
    fn a_busy_connection_stays_and_a_newcomer_has_to_go() {
        let connections = Arc::new(Connections::new(2, 2));
        let places = [connections.admit(ip(1)).unwrap(), connections.admit(ip(1)).unwrap()];
        let request = places[0].begin().unwrap();
        places[1].set_writing(true);
        assert!(connections.admit(ip(2)).is_none());
        drop(request);
        assert!(connections.admit(ip(2)).is_some());
        assert!(!is_open(&connections, &places[0]));
    }

    #[test]
    fn an_address_has_a_cap_of_its_own_and_evicts_its_own() {
        let connections = Arc::new(Connections::new(100, 2));
        let other = connections.admit(ip(9)).unwrap();
        let mine: Vec<_> = (0..2).map(|_| connections.admit(ip(1)).unwrap()).collect();
        let third = connections.admit(ip(1)).unwrap();
        assert!(!is_open(&connections, &mine[0]) && is_open(&connections, &other));
        let _requests = (third.begin(), mine[1].begin());
        assert!(connections.admit(ip(1)).is_none(), "all of that address are busy");
        assert!(connections.admit(ip(2)).is_some(), "another address has room");
    }

    #[test]
    fn nothing_is_left_of_closed_connections() {
        let connections = Arc::new(Connections::new(4, 2));
        for n in 0..200 {
            let place = connections.admit(ip(n)).unwrap();
            drop(place.begin());
        }
        let state = connections.lock();
        assert!(state.open.is_empty() && state.idle.is_empty() && state.addresses.is_empty());
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:1"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:10.0.0.1"), ip(1));
    }
}
