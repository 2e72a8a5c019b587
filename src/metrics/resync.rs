//! The request for the present state of everything, by a receiver that has missed live events.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::lock;

/// The least time between two answers. An answer costs the engine time for every machine.
pub const RESYNC_PAUSE: Duration = Duration::from_secs(1);

/// Shared by all receivers of live events, which [`ask`](Resync::ask), and the engine's thread, which
/// [`take`](Resync::take)s the request and answers it with [`Live::Snapshot`](crate::types::Live::Snapshot).
#[derive(Clone, Debug, Default)]
pub struct Resync(Arc<Mutex<Requests>>);

#[derive(Debug, Default)]
struct Requests {
    asked: bool,
    answered: Option<Instant>,
}

impl Resync {
    /// Asks for a snapshot. Several requests before the answer count as one.
    pub fn ask(&self) {
        lock(&self.0).asked = true;
    }

    /// Whether a snapshot is to be sent at `now`. A request within [`RESYNC_PAUSE`] of the last answer waits.
    pub fn take(&self, now: Instant) -> bool {
        let mut requests = lock(&self.0);
        let resting = requests.answered.is_some_and(|at| now.duration_since(at) < RESYNC_PAUSE);
        if !requests.asked || resting {
            return false;
        }
        *requests = Requests { asked: false, answered: Some(now) };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_answered_once_and_not_too_often() {
        let resync = Resync::default();
        let start = Instant::now();
        assert!(!resync.take(start), "nobody has asked");
        resync.ask();
        resync.clone().ask();
        assert!(resync.take(start));
        assert!(!resync.take(start + RESYNC_PAUSE), "both requests are answered");
        resync.ask();
        assert!(!resync.take(start + RESYNC_PAUSE / 2), "too soon");
        assert!(resync.take(start + RESYNC_PAUSE), "the request has waited");
    }
}
