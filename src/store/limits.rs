//! What to give up when there is too much, or it is too old. Pure.

use std::time::{Duration, Instant};

use crate::types::Time;

use super::lane::Shape;
use super::segment::Summary;
use super::view::{LANES, LaneId};

/// The journal's share of all: one in this many.
const JOURNAL_SHARE: u64 = 4;
/// A segment of the journal and of the routine lane takes at most one in this many of all bytes.
const SEGMENTS: u64 = 64;
/// Below this, most of a segment would be sled's own.
const SEGMENT_MIN: u64 = 2 << 20;

/// 2020: what is dated earlier was written before the clock was set, as happens on gateways without
/// a battery. Its age is not known, and it is not given up for it.
const CLOCK_SET: Time = Time(1_577_836_800 * 1_000_000_000);

/// Why a segment is given up.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    MaxBytes,
    MaxAge,
}

impl Why {
    /// The word used in gap records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Why::MaxBytes => "max_bytes",
            Why::MaxAge => "max_age",
        }
    }
}

/// The limits that apply.
#[derive(Copy, Clone, Debug)]
pub(super) struct Limits {
    pub max_bytes: u64,
    pub max_age: Duration,
    /// What payloads that could not be read may take, in bytes; beyond it the oldest go.
    pub dead_letter_bytes: u64,
    /// The same for records that a sink has refused.
    pub refused_bytes: u64,
}

/// A lane as the limits see it.
#[derive(Clone, Debug)]
pub(super) struct Usage {
    /// Bytes on disk.
    pub disk: u64,
    /// The oldest segment, if it may be given up at all.
    pub oldest: Option<Summary>,
}

impl Limits {
    /// How large the journal may grow.
    pub fn journal_bytes(&self) -> u64 {
        self.max_bytes / JOURNAL_SHARE
    }

    /// The next segment to give up, lanes in the order of [`LaneId::ALL`].
    pub fn next_eviction(&self, lanes: &[Usage; LANES], now: Time) -> Option<(LaneId, Why)> {
        let [journal, priority, routine, dead, refused] = lanes;
        let order = [(LaneId::Journal, journal), (LaneId::Routine, routine), (LaneId::Priority, priority)];
        let too_old = |s: &Summary| s.written >= CLOCK_SET && s.written < now.minus(self.max_age);
        for (id, lane) in order {
            if lane.oldest.as_ref().is_some_and(too_old) {
                return Some((id, Why::MaxAge));
            }
        }
        let own_limits = [
            (LaneId::Journal, journal, self.journal_bytes()),
            (LaneId::Dead, dead, self.dead_letter_bytes),
            (LaneId::Refused, refused, self.refused_bytes),
        ];
        for (id, lane, limit) in own_limits {
            if lane.disk > limit && lane.oldest.is_some() {
                return Some((id, Why::MaxBytes));
            }
        }
        if lanes.iter().map(|l| l.disk).sum::<u64>() <= self.max_bytes {
            return None;
        }
        let order = [(LaneId::Routine, routine), (LaneId::Priority, priority), (LaneId::Journal, journal)];
        order.into_iter().find(|(_, lane)| lane.oldest.is_some()).map(|(id, _)| (id, Why::MaxBytes))
    }
}

/// A wall clock that moves by this much more than time has passed was set.
const CLOCK_STEP: i64 = 3_600 * 1_000_000_000;
/// A clock that is nearer than this to what somebody else says is right, for ages of days.
pub(super) const CLOCK_TOLERANCE: Duration = Duration::from_hours(1);

/// The clock by which ages are counted. Where the wall clock is set ahead, by a first answer of NTP or
/// a glitch, what was just written would look old: such leaps are left out while the process lives.
#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Ageing {
    last: Option<(Instant, Time)>,
    ahead: i64,
}

impl Ageing {
    /// The time to count ages to, given that `steady` never leaps and `wall` may.
    pub fn now(&mut self, steady: Instant, wall: Time) -> Time {
        if let Some((then, was)) = self.last.replace((steady, wall)) {
            let passed = i64::try_from(steady.saturating_duration_since(then).as_nanos()).unwrap_or(i64::MAX);
            let leap = wall.0.saturating_sub(was.0).saturating_sub(passed);
            if leap.saturating_abs() > CLOCK_STEP {
                self.ahead = self.ahead.saturating_add(leap).max(0);
            }
        }
        Time(wall.0.saturating_sub(self.ahead))
    }

    /// Goes on from the time to which the last run counted. How long it was switched off is not known
    /// until the clock is confirmed.
    pub fn after(steady: Instant, last: Time) -> Ageing {
        Ageing { last: (last >= CLOCK_SET).then_some((steady, last)), ahead: 0 }
    }

    /// Whether leaps of the clock are left out.
    pub fn is_held(&self) -> bool {
        self.ahead > 0
    }

    /// Somebody who knows says that the clock is right.
    pub fn confirm(&mut self) {
        self.ahead = 0;
    }
}

/// How large the segments of a lane are, given what all lanes may take. `largest` and `slots` are
/// the figures for the journal and the routine lane.
pub(super) fn shape(lane: LaneId, max_bytes: u64, largest: u64, slots: u32) -> Shape {
    let base = (max_bytes / SEGMENTS).clamp(SEGMENT_MIN, largest.max(SEGMENT_MIN)).min(largest);
    match lane {
        LaneId::Journal | LaneId::Routine => Shape { slots, bytes: base, spare: true },
        LaneId::Priority => Shape { slots, bytes: (base / 4).max(SEGMENT_MIN).min(base), spare: true },
        LaneId::Dead | LaneId::Refused => Shape { slots: slots.min(512), bytes: SEGMENT_MIN.min(base), spare: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn usage(disk: u64, written: Option<i64>) -> Usage {
        Usage { disk, oldest: written.map(|w| Summary { written: since_set(w), ..Summary::default() }) }
    }

    fn since_set(nanos: i64) -> Time {
        Time(CLOCK_SET.0 + nanos)
    }

    #[test]
    fn what_was_written_before_the_clock_was_set_has_no_age() {
        let lanes = [usage(0, None), usage(10, Some(-5)), usage(10, Some(-1)), usage(0, None), usage(0, None)];
        assert_eq!(LIMITS.next_eviction(&lanes, since_set(1 << 60)), None);
    }

    #[test]
    fn nothing_ages_by_a_clock_that_is_set() {
        const HOUR: i64 = 3_600_000_000_000;
        let start = Instant::now();
        let mut ageing = Ageing::default();
        let mut at = |seconds: u64, wall: i64| ageing.now(start + Duration::from_secs(seconds), since_set(wall)).0;
        assert_eq!(at(0, 0), CLOCK_SET.0);
        assert_eq!(at(60, 60_000_000_000), CLOCK_SET.0 + 60_000_000_000, "as time goes by");
        assert_eq!(at(60, 9_000 * HOUR), CLOCK_SET.0 + 60_000_000_000, "a year ahead at once");
        assert_eq!(at(3660, 9_001 * HOUR), CLOCK_SET.0 + 60_000_000_000 + HOUR, "an hour later");
        assert_eq!(at(3660, HOUR), CLOCK_SET.0 + HOUR, "and set right again");
    }

    const LIMITS: Limits = Limits {
        max_bytes: 1000,
        max_age: Duration::from_nanos(100),
        dead_letter_bytes: 16 << 20,
        refused_bytes: 16 << 20,
    };

    #[test]
    fn verdicts_go_before_alarms_and_the_journal_keeps_its_quarter() {
        let lanes =
            [usage(200, Some(950)), usage(400, Some(950)), usage(500, Some(950)), usage(0, None), usage(0, None)];
        assert_eq!(LIMITS.next_eviction(&lanes, since_set(1000)), Some((LaneId::Routine, Why::MaxBytes)));
        let lanes = [usage(200, Some(950)), usage(801, Some(950)), usage(0, None), usage(0, None), usage(0, None)];
        assert_eq!(LIMITS.next_eviction(&lanes, since_set(1000)), Some((LaneId::Priority, Why::MaxBytes)));
        let lanes = [usage(251, Some(950)), usage(1, Some(950)), usage(1, Some(950)), usage(0, None), usage(0, None)];
        assert_eq!(LIMITS.next_eviction(&lanes, since_set(1000)), Some((LaneId::Journal, Why::MaxBytes)));
        let lanes =
            [usage(250, Some(950)), usage(250, Some(950)), usage(500, Some(950)), usage(0, None), usage(0, None)];
        assert_eq!(LIMITS.next_eviction(&lanes, since_set(1000)), None);
        assert_eq!(LIMITS.next_eviction(&lanes, since_set(1050)), None);
        assert_eq!(LIMITS.next_eviction(&lanes, since_set(1051)), Some((LaneId::Journal, Why::MaxAge)));
    }

    proptest! {
        #[test]
        fn giving_up_ends_and_then_the_limits_hold(
            mut segments in proptest::array::uniform5(proptest::collection::vec((1u64..300, 0i64..2000), 0..20))
        ) {
            let total = |s: &[Vec<(u64, i64)>; LANES]| s.iter().flatten().map(|(disk, _)| disk).sum::<u64>();
            let mut steps = 0;
            loop {
                let lanes = segments.each_ref().map(|s| Usage {
                    disk: s.iter().map(|(disk, _)| disk).sum(),
                    oldest: s.first().map(|(_, w)| Summary { written: since_set(*w), ..Summary::default() }),
                });
                let Some((lane, _)) = LIMITS.next_eviction(&lanes, since_set(1500)) else { break };
                segments[lane as usize].remove(0);
                steps += 1;
                prop_assert!(steps <= 100);
            }
            let dead: u64 = segments[3..].iter().flatten().map(|(disk, _)| disk).sum();
            prop_assert!(total(&segments) <= 1000.max(dead));
            prop_assert!(segments[0].iter().map(|(disk, _)| disk).sum::<u64>() <= 250);
            for lane in &segments[..3] {
                prop_assert!(lane.first().is_none_or(|(_, written)| *written >= 1400));
            }
        }
    }

    /// The undelivered backlog is not given up for a clock that nobody has confirmed.
    #[test]
    fn a_start_with_a_clock_far_ahead_ages_nothing_until_it_is_confirmed() {
        const DAY: i64 = 86_400_000_000_000;
        let start = Instant::now();
        let mut ageing = Ageing::after(start, since_set(0));
        assert_eq!(ageing.now(start, since_set(30 * DAY)), since_set(0));
        let counted = ageing.now(start + Duration::from_secs(5), since_set(30 * DAY + 5_000_000_000));
        assert_eq!(counted, since_set(5_000_000_000));
        // Another start with the same clock goes on from what was counted.
        let mut ageing = Ageing::after(start, counted);
        assert_eq!(ageing.now(start, since_set(30 * DAY)), counted);
        assert!(ageing.is_held());
        ageing.confirm();
        assert_eq!(ageing.now(start, since_set(30 * DAY)), since_set(30 * DAY));
        // A short time switched off counts at once, and a first start has nothing to hold.
        assert_eq!(Ageing::after(start, since_set(0)).now(start, since_set(DAY / 48)), since_set(DAY / 48));
        assert_eq!(Ageing::after(start, Time(0)).now(start, since_set(DAY)), since_set(DAY));
    }

    #[test]
    fn segments_shrink_with_the_whole() {
        let bytes = |lane, max| shape(lane, max, 8 << 20, 2048).bytes;
        assert_eq!(bytes(LaneId::Routine, 2 << 30), 8 << 20);
        assert_eq!(bytes(LaneId::Priority, 2 << 30), 2 << 20);
        assert_eq!(bytes(LaneId::Routine, 256 << 20), 4 << 20);
        assert_eq!(bytes(LaneId::Dead, 2 << 30), 2 << 20);
        assert_eq!(shape(LaneId::Routine, 2 << 30, 64 << 10, 8), Shape { slots: 8, bytes: 64 << 10, spare: true });
    }
}
