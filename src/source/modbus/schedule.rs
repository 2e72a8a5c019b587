//! When each signal is due: a fixed cadence per poll period, without drift. Pure.
//! Ticks that could not be kept are skipped, never made up for in a bunch.

use std::time::Duration;

use tokio::time::Instant;

/// Due times of numbered things with a period each.
#[derive(Clone, Debug)]
pub struct Schedule {
    beats: Vec<Beat>,
}

/// All things of one period, so that those which can share a request fall due together.
#[derive(Clone, Debug)]
struct Beat {
    period: Duration,
    next: Instant,
    members: Vec<usize>,
}

impl Schedule {
    /// Everything is due at `start` and every period (not zero) from then on.
    pub fn new(periods: impl IntoIterator<Item = Duration>, start: Instant) -> Schedule {
        let mut beats: Vec<Beat> = Vec::new();
        for (i, period) in periods.into_iter().enumerate() {
            match beats.iter_mut().find(|b| b.period == period) {
                Some(beat) => beat.members.push(i),
                None => beats.push(Beat { period, next: start, members: vec![i] }),
            }
        }
        Schedule { beats }
    }

    /// When something is due next; `None` when there is nothing at all.
    pub fn next(&self) -> Option<Instant> {
        self.beats.iter().map(|b| b.next).min()
    }

    /// What is due by now, in order; each moves on to its first tick after now.
    pub fn take_due(&mut self, now: Instant) -> Vec<usize> {
        let mut due = Vec::new();
        for beat in self.beats.iter_mut().filter(|b| b.next <= now) {
            due.extend_from_slice(&beat.members);
            let period = beat.period.as_nanos().max(1);
            let into = (now - beat.next).as_nanos() % period;
            beat.next = now + Duration::from_nanos(u64::try_from(period - into).unwrap_or(u64::MAX));
        }
        due.sort_unstable();
        due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn equal_periods_fall_due_together() {
        let start = Instant::now();
        let mut schedule = Schedule::new([MS * 100, MS * 500, MS * 100], start);
        assert_eq!(schedule.take_due(start), [0, 1, 2]);
        assert_eq!(schedule.next(), Some(start + MS * 100));
        assert_eq!(schedule.take_due(start + MS * 99), [] as [usize; 0]);
        assert_eq!(schedule.take_due(start + MS * 100), [0, 2]);
        assert_eq!(schedule.take_due(start + MS * 500), [0, 1, 2]);
    }

    #[test]
    fn missed_ticks_are_skipped_and_the_cadence_is_kept() {
        let start = Instant::now();
        let mut schedule = Schedule::new([MS * 100], start);
        schedule.take_due(start);
        assert_eq!(schedule.take_due(start + MS * 1234), [0]);
        assert_eq!(schedule.take_due(start + MS * 1234), [] as [usize; 0]);
        assert_eq!(schedule.next(), Some(start + MS * 1300));
    }

    #[test]
    fn nothing_is_never_due() {
        assert_eq!(Schedule::new([], Instant::now()).next(), None);
    }

    proptest! {
        #[test]
        fn ticks_stay_on_the_grid_and_come_at_most_once_a_period(
            period in 1..10_000_u32, steps in prop::collection::vec(0..50_000_u32, 1..50),
        ) {
            let start = Instant::now();
            let mut schedule = Schedule::new([MS * period], start);
            let mut now = start;
            let mut last = None;
            for step in steps {
                now += MS * step;
                let tick = (now - start).as_millis() / u128::from(period);
                let due = !schedule.take_due(now).is_empty();
                prop_assert_eq!(due, last != Some(tick));
                last = Some(tick);
                let next = schedule.next().expect("a tick");
                prop_assert!(next > now && next <= now + MS * period);
                prop_assert_eq!((next - start).as_millis() % u128::from(period), 0);
            }
        }
    }
}
