//! Telling systemd how the agent is (ready, stopping, status), and the watchdog: a thread of its own that
//! looks whether every stage makes progress. With systemd it feeds its watchdog only then. With and without,
//! a stage that hangs for long has failed, which ends the process, by force where the drain hangs too.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, process, thread};

use sd_notify::NotifyState;

use crate::metrics::Board;

/// systemd's watchdog is not fed while a stage has made no progress for this long, whatever the watchdog's
/// own period. Stages beat once a second when idle.
const LONGEST_SILENCE: Duration = Duration::from_secs(20);
/// A stage that has made no progress for this long has failed.
const HANGING: Duration = Duration::from_secs(60);
/// How long the agent may take to end after a stage has failed. More than [`Agent::finish`] allows itself.
///
/// [`Agent::finish`]: crate::agent::Agent::finish
const LONGEST_DRAIN: Duration = Duration::from_secs(50);
/// How often the thread looks where systemd asks for nothing.
const LOOK_EVERY: Duration = Duration::from_secs(2);

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

/// Starts the watchdog, which watches until the process ends. From a thread of its own: a stage that blocks
/// the runtime must not keep it from being named.
///
/// # Errors
/// The thread cannot be started.
pub fn watch(board: Arc<Board>) -> io::Result<()> {
    let period = sd_notify::watchdog_enabled();
    thread::Builder::new().name("watchdog".into()).spawn(move || keep_watch(&board, period)).map(drop)
}

fn keep_watch(board: &Board, period: Option<Duration>) {
    let limit = period.map_or(LONGEST_SILENCE, |p| p.min(LONGEST_SILENCE));
    let every = period.map_or(LOOK_EVERY, |p| (p / 4).clamp(Duration::from_millis(50), LOOK_EVERY));
    let mut watch = Watch::default();
    let mut named = Vec::new();
    let mut looked = Instant::now();
    loop {
        // A process that was stopped for a while has not hung: at most twice the pause counts.
        let passed = looked.elapsed().min(2 * every);
        looked = Instant::now();
        let seen = watch.look(board.beats(), !board.failures().is_empty(), passed);
        for stage in seen.longer_than(HANGING) {
            board.fail(stage, &format!("has made no progress for {} s", HANGING.as_secs()));
        }
        let silent = seen.longer_than(limit);
        if !silent.is_empty() && silent != named {
            let fed = if period.is_some() { "; the watchdog is not fed" } else { "" };
            tracing::error!(stages = silent.join(", "), "stages make no progress{fed}");
        }
        // Once a stage has failed the process ends by itself, within a bound that is kept here.
        if period.is_some() && (silent.is_empty() || seen.draining > Duration::ZERO) {
            tell(&[NotifyState::Watchdog]);
        }
        named = silent.into_iter().map(str::to_owned).collect();
        if seen.draining > LONGEST_DRAIN {
            tracing::error!(
                failed = board.failures().join("; "),
                "the agent does not end after a failure; it is ended now"
            );
            process::exit(1);
        }
        thread::sleep(every);
    }
}

/// How long each stage has been silent, by what was seen of it. Pure: time is told.
#[derive(Default)]
struct Watch {
    stages: HashMap<String, (i64, Duration)>,
    draining: Duration,
}

/// What one look brought.
struct Seen {
    /// Stages with the time since their last beat, by name.
    silent: Vec<(String, Duration)>,
    /// How long a failure has been known.
    draining: Duration,
}

impl Watch {
    /// The last beat of each stage, and whether one has failed; `passed` since the last look.
    fn look(&mut self, beats: Vec<(String, i64)>, failed: bool, passed: Duration) -> Seen {
        let mut stages = HashMap::new();
        for (stage, beat) in beats {
            let silent = match self.stages.get(&stage) {
                Some((last, silent)) if *last == beat => *silent + passed,
                _ => Duration::ZERO,
            };
            stages.insert(stage, (beat, silent));
        }
        self.stages = stages;
        self.draining = if failed { self.draining + passed } else { Duration::ZERO };
        let mut silent: Vec<_> = self.stages.iter().map(|(stage, (_, silent))| (stage.clone(), *silent)).collect();
        silent.sort();
        Seen { silent, draining: self.draining }
    }
}

impl Seen {
    fn longer_than(&self, limit: Duration) -> Vec<&str> {
        self.silent.iter().filter(|(_, silent)| *silent > limit).map(|(stage, _)| stage.as_str()).collect()
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn beats(engine: i64, store: i64) -> Vec<(String, i64)> {
        vec![("engine".into(), engine), ("store".into(), store)]
    }

    #[test]
    fn silence_is_the_time_seen_without_a_beat() {
        let mut watch = Watch::default();
        for second in 0..=60 {
            let seen = watch.look(beats(7, second), false, SECOND);
            assert_eq!(seen.longer_than(19 * SECOND).contains(&"engine"), second > 19, "after {second} s");
            assert!(seen.longer_than(HANGING).is_empty());
            assert_eq!(seen.draining, Duration::ZERO);
        }
        assert_eq!(watch.look(beats(7, 61), false, SECOND).longer_than(HANGING), ["engine"]);
        assert!(watch.look(beats(8, 62), false, SECOND).longer_than(SECOND).is_empty(), "it beats again");
        assert!(watch.look(Vec::new(), false, SECOND).silent.is_empty(), "what has ended is waited for no more");
    }

    #[test]
    fn the_time_of_a_drain_counts_from_the_first_failure() {
        let mut watch = Watch::default();
        watch.look(Vec::new(), false, SECOND);
        let seen: Vec<Seen> = (0..51).map(|_| watch.look(Vec::new(), true, SECOND)).collect();
        assert!(seen[49].draining <= LONGEST_DRAIN && seen[50].draining > LONGEST_DRAIN);
    }
}
