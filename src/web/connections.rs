//! Which connections are served when there are too many: those of each caller are bounded, some are kept for
//! this host and for probes, and the oldest idle one makes room. Pure: sockets are elsewhere.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;

use super::limits::peer_of;
use crate::metrics::lock;

/// Connections of other hosts that are served at a time.
pub const MAX_CONNECTIONS: usize = 256;
/// Connections of one peer that are served at a time. More than the event streams that may be open.
pub const MAX_CONNECTIONS_PER_PEER: usize = 96;
/// Connections beyond [`MAX_CONNECTIONS`] that may ask for `/health/…` and `/metrics` only.
pub const MAX_PROBE_CONNECTIONS: usize = 16;

/// All connections that are open.
#[derive(Default)]
pub struct Connections {
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    next: u64,
    by_id: BTreeMap<u64, Entry>,
}

struct Entry {
    peer: IpAddr,
    probe: bool,
    /// Requests that are being answered; an event stream is one that does not end.
    busy: usize,
    /// Since when it is idle, as a count of changes.
    idle_since: u64,
    close: CancellationToken,
}

/// A connection's place among those that are served. Dropping it gives the place back.
pub struct Place {
    all: Arc<Connections>,
    id: u64,
    /// Cancelled when the connection has to make room for another.
    pub close: CancellationToken,
    /// Whether it may ask for health and metrics only.
    pub probe: bool,
}

/// A request that is being answered.
pub struct Busy {
    all: Arc<Connections>,
    id: u64,
}

impl Connections {
    /// A place for one more, or `None`. An idle connection of the same peer, or of the peer that has the most,
    /// is closed where there is no room.
    pub fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let (peer, mut open) = (peer_of(address), lock(&self.open));
        if open.count(|e| e.peer == peer) >= MAX_CONNECTIONS_PER_PEER {
            open.close_idle(|e| e.peer == peer).then_some(())?;
        }
        // Others never take the places of this host.
        let remote = |e: &Entry| !e.peer.is_loopback() && !e.probe;
        let mut probe = false;
        if !peer.is_loopback() && open.count(remote) >= MAX_CONNECTIONS {
            let greedy = open.greediest(remote);
            if !open.close_idle(|e| remote(e) && Some(e.peer) == greedy) {
                probe = true;
                if open.count(|e| e.probe) >= MAX_PROBE_CONNECTIONS {
                    open.close_idle(|e| e.probe).then_some(())?;
                }
            }
        }
        open.next += 1;
        let (id, close) = (open.next, CancellationToken::new());
        open.by_id.insert(id, Entry { peer, probe, busy: 0, idle_since: id, close: close.clone() });
        Some(Place { all: self.clone(), id, close, probe })
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.open).by_id.len()
    }
}

impl Open {
    fn count(&self, which: impl Fn(&Entry) -> bool) -> usize {
        self.by_id.values().filter(|e| which(e)).count()
    }

    /// The peer with the most of these.
    fn greediest(&self, which: impl Fn(&Entry) -> bool) -> Option<IpAddr> {
        let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for entry in self.by_id.values().filter(|e| which(e) && e.busy == 0) {
            *counts.entry(entry.peer).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, n)| *n).map(|(peer, _)| peer)
    }

    /// Closes the one that has been idle for the longest; whether there was one.
    fn close_idle(&mut self, which: impl Fn(&Entry) -> bool) -> bool {
        let idle = self.by_id.iter().filter(|(_, e)| e.busy == 0 && which(e));
        let Some(id) = idle.min_by_key(|(_, e)| e.idle_since).map(|(id, _)| *id) else { return false };
        if let Some(entry) = self.by_id.remove(&id) {
            entry.close.cancel();
        }
        true
    }
}

impl Place {
    /// A request has come.
    pub fn busy(&self) -> Busy {
        if let Some(entry) = lock(&self.all.open).by_id.get_mut(&self.id) {
            entry.busy += 1;
        }
        Busy { all: self.all.clone(), id: self.id }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.all.open).by_id.remove(&self.id);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut open = lock(&self.all.open);
        open.next += 1;
        let now = open.next;
        if let Some(entry) = open.by_id.get_mut(&self.id) {
            entry.busy = entry.busy.saturating_sub(1);
            entry.idle_since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[test]
    fn an_idle_connection_makes_room_and_a_busy_one_does_not() {
        let all = Arc::new(Connections::default());
        let places: Vec<Place> = (0..MAX_CONNECTIONS_PER_PEER).map(|_| all.admit(host(1)).expect("a place")).collect();
        let busy = places[0].busy();
        let _new = all.admit(host(1)).expect("a place");
        assert!(!places[0].close.is_cancelled() && places[1].close.is_cancelled());
        assert_eq!(all.len(), MAX_CONNECTIONS_PER_PEER);
        let all_busy: Vec<Busy> = places.iter().chain([&_new]).map(Place::busy).collect();
        assert!(all.admit(host(1)).is_none());
        assert!(all.admit(host(2)).is_some());
        drop((busy, all_busy));
        drop(places);
        assert_eq!(all.len(), 1);
    }

    #[test]
    fn other_hosts_never_take_the_places_of_this_host_and_of_probes() {
        let all = Arc::new(Connections::default());
        let places: Vec<Place> =
            (0..MAX_CONNECTIONS).map(|n| all.admit(host((n / 60) as u8)).expect("a place")).collect();
        let busy: Vec<Busy> = places.iter().map(Place::busy).collect();
        let probe = all.admit(host(99)).expect("a place");
        assert!(probe.probe);
        let own = all.admit(IpAddr::from([127, 0, 0, 1])).expect("a place");
        assert!(!own.probe);
        drop(busy);
        assert!(!all.admit(host(98)).expect("a place").probe, "an idle one makes room");
    }

    #[test]
    fn so_many_connections_as_are_tried_leave_a_bounded_number() {
        let all = Arc::new(Connections::default());
        let places: Vec<_> = (0..3000).map(|n| all.admit(host((n % 200) as u8))).collect();
        assert!(all.len() <= MAX_CONNECTIONS + MAX_PROBE_CONNECTIONS, "{}", all.len());
        drop(places);
        assert_eq!(all.len(), 0);
    }
}
