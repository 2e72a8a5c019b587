//! Telling systemd how we are: ready, stopping, status, and the watchdog, which is fed only while
//! every stage makes progress. Without systemd all of this does nothing.

use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use crate::metrics::Board;

/// A stage that has made no progress for this long counts as hanging, whatever the watchdog's own
/// period; stages beat once a second when idle.
const LONGEST_SILENCE: Duration = Duration::from_secs(20);

/// Asked for while the start goes on, in microseconds.
const MORE_TIME: u32 = 30_000_000;

/// The agent is up; `status` is shown by `systemctl status`.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The start takes long: so much more time is asked for, counted from now.
pub fn still_starting() {
    tell(&[NotifyState::ExtendTimeoutUsec(MORE_TIME), NotifyState::Status("replaying the journal")]);
}

/// The config is read again; [`ready`] ends that.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "the monotonic clock cannot be read"),
    }
}

/// The agent is going down.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Feeds the watchdog, if systemd asked for it, until `stop`. From a thread of its own: a stage that
/// blocks the runtime must not keep it from being named.
pub async fn watchdog(board: Arc<Board>, stop: CancellationToken) {
    let Some(period) = sd_notify::watchdog_enabled() else { return };
    let (running, end) = mpsc::channel::<()>();
    let feeding = thread::Builder::new().name("watchdog".into()).spawn(move || feed(&board, period, &end));
    if let Err(error) = feeding {
        tracing::error!(%error, "the watchdog's thread cannot be started; the watchdog is not fed");
    }
    stop.cancelled().await;
    drop(running);
}

/// Until the other end of `end` has gone.
fn feed(board: &Board, period: Duration, end: &mpsc::Receiver<()>) {
    let limit = period.min(LONGEST_SILENCE);
    let every = (period / 4).max(Duration::from_millis(50));
    loop {
        let silent = board.silent(limit);
        if silent.is_empty() {
            tell(&[NotifyState::Watchdog]);
        } else {
            tracing::error!(stages = silent.join(", "), "stages make no progress; the watchdog is not fed");
        }
        if end.recv_timeout(every) != Err(mpsc::RecvTimeoutError::Timeout) {
            return;
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd could not be told");
    }
}
