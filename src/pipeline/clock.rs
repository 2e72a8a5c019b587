//! A device's clock as its readings show it. Late data and a clock that has stepped look alike in one reading;
//! over several they do not: behind a stepped clock, time passes as fast as at the gateway.

use serde::{Deserialize, Serialize};

use crate::types::{Clock, Reading, Time};

/// A steady offset is adopted after so many refused readings over so long (ns) ...
const ADOPT: [(u32, i64); 2] = [(5, 2_000_000_000), (3, 10_000_000_000)];
/// ... in which the device's time passed as the gateway's did, within this (ns) and this share of the span.
const JITTER: i64 = 500_000_000;
const DRIFT: f64 = 0.02;
/// Smaller offsets (ns) are delay, not a wrong clock.
const NEGLIGIBLE: i64 = 1_000_000_000;
/// A steady offset (ns) from here on is told.
pub const TOLD_FROM: i64 = 10_000_000_000;
/// Readings in a row with the same offset after which it counts as steady.
const STEADY: u32 = 5;

/// What is known of the clock behind one signal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceClock {
    /// The adopted offset (ns): device time minus this is taken as the reading's time.
    offset: i64,
    /// A time at which the device's clock stands still; readings with it are taken at their arrival.
    stands_at: Option<Time>,
    /// Readings refused since the last that was taken.
    run: Option<Run>,
    /// The newest offset to the gateway (ns), and how many readings agree on it.
    seen: i64,
    agree: u32,
}

/// Refused readings in a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Run {
    first: Pair,
    last: Pair,
    /// Readings that arrived at different times.
    count: u32,
    /// Greatest device time minus arrival (ns): the one with the least delay.
    offset: i64,
    /// The last value, and how often it was another than the one before: a clock that stands still is told
    /// from a reading that is repeated.
    value: f64,
    changes: u32,
}

/// A device's time and the gateway's.
#[derive(Copy, Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pair {
    at: Time,
    arrived: Time,
}

/// What was found out about a clock.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// It is this far (ns) from the gateway's; below zero is behind.
    Offset(i64),
    /// It stands still.
    StandsStill,
}

impl DeviceClock {
    /// The time that a reading counts with.
    pub fn corrected(&self, r: &Reading, arrived: Time) -> Time {
        match r.clock {
            Clock::Follow if self.stands_at == Some(r.at) => arrived,
            Clock::Follow => Time(r.at.0.saturating_sub(self.offset)),
            Clock::Device | Clock::Arrival => r.at,
        }
    }

    /// Whether a clock that was behind shows the gateway's time again: then its offset is dropped. Delay cannot
    /// make a reading look like that.
    pub fn put_right(&mut self, r: &Reading, arrived: Time) -> Option<Step> {
        let shows = r.at.0.abs_diff(arrived.0) <= NEGLIGIBLE as u64;
        let right = self.offset < 0 && shows && r.clock == Clock::Follow;
        right.then(|| self.adopt(Step::Offset(0), r.at))
    }

    /// A reading was taken.
    pub fn taken(&mut self, r: &Reading, arrived: Time) {
        self.run = None;
        if self.stands_at.is_some_and(|at| at != r.at) {
            self.stands_at = None;
        }
        self.observe(r, arrived);
    }

    fn observe(&mut self, r: &Reading, arrived: Time) {
        if r.clock == Clock::Arrival {
            return;
        }
        let offset = r.at.0.saturating_sub(arrived.0);
        if offset.abs_diff(self.seen) <= NEGLIGIBLE as u64 {
            self.agree = self.agree.saturating_add(1);
        } else {
            self.agree = 1;
        }
        self.seen = offset;
    }

    /// A reading was refused for its time: what is adopted because of it, if anything. A repeat is refused for
    /// having the time of one before it.
    pub fn refused(&mut self, r: &Reading, arrived: Time) -> Option<Step> {
        self.observe(r, arrived);
        let offset = r.at.0.saturating_sub(arrived.0);
        let here = Pair { at: r.at, arrived };
        let fresh = Run { first: here, last: here, count: 1, offset, value: r.value, changes: 0 };
        let Some(run) = &mut self.run else {
            self.run = Some(fresh);
            return None;
        };
        // Of several that arrive together the first counts.
        if arrived <= run.last.arrived {
            return None;
        }
        if r.at < run.last.at {
            self.run = Some(fresh);
            return None;
        }
        run.count = run.count.saturating_add(1);
        run.offset = run.offset.max(offset);
        run.changes += u32::from(r.value.to_bits() != run.value.to_bits());
        (run.last, run.value) = (here, r.value);
        let span = arrived.0.saturating_sub(run.first.arrived.0);
        let passed = r.at.0.saturating_sub(run.first.at.0);
        let enough = ADOPT.iter().any(|(count, least)| run.count >= *count && span >= *least);
        if passed == 0 {
            let stands = enough && run.changes >= run.count / 2 && r.clock == Clock::Follow;
            return stands.then(|| self.adopt(Step::StandsStill, r.at));
        }
        if passed.abs_diff(span) as f64 > JITTER as f64 + DRIFT * span as f64 {
            self.run = Some(fresh);
            return None;
        }
        let other = run.offset.abs_diff(self.offset) > NEGLIGIBLE as u64;
        let step = Step::Offset(if run.offset.unsigned_abs() <= NEGLIGIBLE as u64 { 0 } else { run.offset });
        (enough && other && r.clock == Clock::Follow).then(|| self.adopt(step, r.at))
    }

    fn adopt(&mut self, step: Step, at: Time) -> Step {
        self.run = None;
        match step {
            Step::Offset(offset) => (self.offset, self.stands_at) = (offset, None),
            Step::StandsStill => self.stands_at = Some(at),
        }
        step
    }

    /// Takes the offset of another signal of the same device in place of one that is nearly the same.
    pub fn align(&mut self, offset: i64) {
        self.offset = offset;
    }

    /// The adopted offset (ns).
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// The offset to the gateway's clock (ns) as the newest readings agree on it, where it is large enough to be
    /// told. Below zero the device is behind.
    pub fn wrong_by(&self) -> Option<i64> {
        (self.agree >= STEADY && self.seen.unsigned_abs() >= TOLD_FROM as u64).then_some(self.seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000_000;
    const HOUR: i64 = 3600 * S;

    fn reading(at: i64, value: f64) -> Reading {
        Reading::good("m".into(), "s".into(), Time(at), value)
    }

    /// The first step adopted of readings refused one after the other, each (device time, arrival), and after
    /// how many.
    fn adopted(readings: impl Iterator<Item = (i64, i64)>) -> Option<(usize, Step)> {
        let mut clock = DeviceClock::default();
        let refuse = |(i, (at, arrived)): (usize, (i64, i64))| {
            clock.refused(&reading(at, i as f64), Time(arrived)).map(|step| (i + 1, step))
        };
        readings.enumerate().find_map(refuse)
    }

    #[test]
    fn a_steady_offset_is_adopted_after_a_few_readings() {
        let (n, step) = adopted((0..100).map(|i| (i * S - HOUR, i * S))).expect("adopted");
        assert_eq!((n, step), (5, Step::Offset(-HOUR)));
        let (n, step) = adopted((0..100).map(|i| (i * 60 * S + 120 * S, i * 60 * S))).expect("adopted");
        assert_eq!((n, step), (3, Step::Offset(120 * S)));
        let fast = adopted((0..100).map(|i| (i * S / 10 - 50 * S, i * S / 10))).expect("adopted");
        assert_eq!(fast, (21, Step::Offset(-50 * S)), "not before two seconds have passed");
    }

    #[test]
    fn a_backlog_is_no_clock() {
        assert_eq!(adopted((0..1000).map(|i| (i * S - HOUR, i * S / 100))), None, "a hundred times as fast");
        assert_eq!(adopted((0..1000).map(|i| (i * S - HOUR, i * S * 2 / 3))), None, "half as fast again");
    }

    #[test]
    fn delay_that_varies_gives_the_offset_of_the_least() {
        let delays = [0, 300, 100, 20, 400, 30, 200];
        let late = (0..7i64).map(|i| (i * S - HOUR, i * S + delays[i as usize] * S / 1000));
        assert_eq!(adopted(late), Some((5, Step::Offset(-HOUR))));
    }

    #[test]
    fn a_clock_that_stands_still_is_told_from_a_reading_that_is_repeated() {
        assert_eq!(adopted((0..100).map(|i| (HOUR, i * S))), Some((5, Step::StandsStill)));
        let mut clock = DeviceClock::default();
        assert!((0..100).all(|i| clock.refused(&reading(HOUR, 7.0), Time(i * S)).is_none()));
        assert_eq!(clock.corrected(&reading(HOUR, 7.0), Time(5)), Time(HOUR));
    }

    #[test]
    fn a_clock_that_is_put_right_is_followed_back() {
        let mut clock = DeviceClock::default();
        let mut refuse = |i: i64, offset: i64| clock.refused(&reading(i * S + offset, i as f64), Time(i * S));
        assert!((0..5).filter_map(|i| refuse(i, -HOUR)).eq([Step::Offset(-HOUR)]));
        assert!((10..15).filter_map(|i| refuse(i, -S / 100)).eq([Step::Offset(0)]));
    }

    #[test]
    fn where_the_config_says_so_nothing_is_followed() {
        let mut clock = DeviceClock::default();
        let device = |i: i64| Reading { clock: Clock::Device, ..reading(i * S - HOUR, i as f64) };
        assert!((0..100).all(|i| clock.refused(&device(i), Time(i * S)).is_none()));
        assert_eq!(clock.wrong_by(), Some(-HOUR), "but told");
    }

    #[test]
    fn the_ends_of_time_do_no_harm() {
        let mut clock = DeviceClock::default();
        for at in [i64::MIN, 0, i64::MAX, i64::MAX - 1, i64::MIN] {
            for arrived in [i64::MIN, 0, i64::MAX] {
                clock.refused(&reading(at, 1.0), Time(arrived));
                clock.taken(&reading(at, 1.0), Time(arrived));
                clock.corrected(&reading(at, 1.0), Time(arrived));
            }
        }
    }
}
