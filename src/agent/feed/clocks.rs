//! Clocks that are not to be trusted: those of devices, which are told, and the gateway's own, when it is set.

use std::time::{Duration, Instant};

use super::Feed;
use crate::agent::input::{Group, Input};
use crate::metrics::Health;
use crate::pipeline::ClockChange;
use crate::pipeline::evidence::Span;
use crate::types::{Name, Time};

/// The board's name for devices' clocks.
const PART: &str = "clocks";
/// How often they are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Machines that are named; the rest is counted.
const NAMED: usize = 5;
/// A wall clock that has moved against the time that passed by more than this (ns) was set.
const SET_BY: i64 = 1_000_000_000;

/// What was told of devices' clocks.
#[derive(Default)]
pub struct Clocks {
    looked: Option<Instant>,
    told: bool,
}

/// The gateway's wall clock beside the time that passes.
pub struct GatewayClock {
    wall: Time,
    passed: Instant,
}

impl GatewayClock {
    pub fn new(wall: Time, passed: Instant) -> GatewayClock {
        GatewayClock { wall, passed }
    }

    /// By how much (ns) the wall clock was set since the last look, if it was.
    fn look(&mut self, wall: Time, passed: Instant) -> Option<i64> {
        let elapsed = passed.saturating_duration_since(self.passed).as_nanos() as i64;
        let by = wall.0.saturating_sub(self.wall.0).saturating_sub(elapsed);
        (self.wall, self.passed) = (wall, passed);
        (by.unsigned_abs() > SET_BY as u64).then_some(by)
    }
}

impl Feed {
    /// The engine is told when the gateway's clock was set.
    pub(super) async fn watch_gateway_clock(&mut self) {
        let now = Time::now();
        if let Some(by) = self.gateway_clock.look(now, Instant::now()) {
            tracing::warn!("the gateway's clock was set by {:.1} s", by as f64 / 1e9);
            self.step(Group { inputs: vec![Input::GatewayClock(now, by)] }, Vec::new(), Vec::new()).await;
        }
    }

    pub(super) fn tell_clock_changes(&self, changes: &[(Name, ClockChange)]) {
        for (machine, change) in changes {
            tracing::warn!(machine = &**machine, "the clock of a device has stepped: {change}");
        }
    }

    /// Names machines behind whose readings a clock is steadily wrong.
    pub(super) fn show_clocks(&mut self) {
        if self.clocks.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
            return;
        }
        self.clocks.looked = Some(Instant::now());
        let mut wrong = self.engine.wrong_clocks();
        let say = |(machine, signal, by): (&Name, &Name, i64)| {
            let way = if by < 0 { "behind" } else { "ahead" };
            format!("{machine} is {} {way} (by {signal})", Span(by))
        };
        let named: Vec<String> = wrong.by_ref().take(NAMED).map(say).collect();
        let more = wrong.count();
        drop_to(&mut self.clocks.told, !named.is_empty(), || {
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            (Health::Degraded, format!("clocks of devices differ from the gateway's: {}{more}", named.join(", ")))
        })
        .into_iter()
        .for_each(|(health, detail)| self.shared.board.set(PART, health, detail));
    }
}

/// What the board is to say: what is wrong, once that all is right again, and else nothing.
fn drop_to(told: &mut bool, wrong: bool, say: impl FnOnce() -> (Health, String)) -> Option<(Health, String)> {
    let before = std::mem::replace(told, wrong);
    match (wrong, before) {
        (true, _) => Some(say()),
        (false, true) => Some((Health::Up, "devices' clocks agree with the gateway's".to_owned())),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_told_from_time_that_passes() {
        let (start, s) = (Instant::now(), |n: i64| Time(n * 1_000_000_000));
        let mut clock = GatewayClock::new(s(1000), start);
        let after = |n: u64| start + Duration::from_secs(n);
        assert_eq!(clock.look(s(1010), after(10)), None);
        assert_eq!(clock.look(s(4620), after(20)), Some(3_600_000_000_000));
        assert_eq!(clock.look(s(4630), after(30)), None, "once");
        assert_eq!(clock.look(s(4580), after(40)), Some(-60_000_000_000));
    }
}
