//! How a sink waits, and how it ends: until the agent stops it has all the time in the world, from
//! then on only its grace.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Outbox;

/// Once the agent stops, an outbox that stays empty for this long is taken to be at its end.
const STOP_IDLE: Duration = Duration::from_secs(1);

/// What a sink knows of its end.
pub struct Ending {
    stop: CancellationToken,
    grace: Duration,
    deadline: Option<Instant>,
}

impl Ending {
    /// After `stop` a sink may go on for `grace`.
    pub fn new(stop: CancellationToken, grace: Duration) -> Ending {
        Ending { stop, grace, deadline: None }
    }

    /// Set once the agent stops: nothing is begun after this.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The agent stops: from now on there is only so much time.
    pub fn begin(&mut self) {
        self.deadline.get_or_insert(Instant::now() + self.grace);
    }

    /// Resolves when the agent stops.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Waits for records; `false` when there will be none, or no time for them. Can be dropped and asked
    /// again.
    pub async fn waits<O: Outbox>(&mut self, outbox: &O) -> bool {
        if self.deadline.is_none() {
            tokio::select! {
                ready = outbox.ready() => return ready,
                () = self.stop.cancelled() => {}
            }
            self.begin();
        }
        let idle = Instant::now() + STOP_IDLE;
        let until = self.deadline.map_or(idle, |d| d.min(idle));
        timeout_at(until, outbox.ready()).await.unwrap_or(false)
    }

    /// Waits before going on; `false` when the agent stops and there is no time to. A wait that was not
    /// `asked` for is only our own patience: the end cuts it short, for one last try.
    pub async fn pause(&mut self, wait: Duration, asked: bool) -> bool {
        let until = Instant::now() + wait;
        if self.deadline.is_none() {
            tokio::select! {
                () = sleep_until(until) => return true,
                () = self.stop.cancelled() => {}
            }
            self.begin();
            if !asked {
                return true;
            }
        }
        let in_time = self.deadline.is_none_or(|deadline| until <= deadline);
        if in_time {
            sleep_until(until).await;
        }
        in_time
    }
}
