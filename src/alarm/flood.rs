//! Alarm floods (ISA-18.2, EEMUA 191): more than ten announced alarms in ten minutes begin one, fewer
//! than five end it. While it lasts alarms are announced together; every one of them is recorded.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{Alarm, CRITICAL_SEVERITY, Flood, Name, Time};

/// What alarms are counted over.
pub const WITHIN: Duration = Duration::from_secs(600);
/// More than so many begin a flood ...
pub const BEGINS_ABOVE: usize = 10;
/// ... and fewer than so many end it.
pub const ENDS_BELOW: usize = 5;
/// Times remembered: what is beyond changes nothing before these are old.
const KEPT: usize = BEGINS_ABOVE + 1;

/// Counts alarms as they are announced.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// The newest raises, oldest first, with the machine.
    raised: VecDeque<(Time, Name)>,
    flood: Option<Flood>,
}

impl Watch {
    /// The flood, while there is one.
    pub fn flood(&self) -> Option<&Flood> {
        self.flood.as_ref()
    }

    /// An alarm is about to be announced, at this time of the wall clock. Whether it goes with the
    /// others, and whether a flood began with it.
    pub fn raised(&mut self, alarm: &Alarm, now: Time) -> (bool, bool) {
        self.forget(now);
        self.raised.push_back((now, alarm.machine.clone()));
        if self.raised.len() > KEPT {
            self.raised.pop_front();
        }
        let mut begins = false;
        match &mut self.flood {
            Some(flood) => flood.raised = flood.raised.saturating_add(1),
            None if self.raised.len() > BEGINS_ABOVE => {
                begins = true;
                let first = self.raised.front().map_or_else(|| alarm.machine.clone(), |(_, m)| m.clone());
                self.flood = Some(Flood { since: now, raised: self.raised.len() as u32, first });
            }
            None => {}
        }
        (self.flood.is_some() && alarm.severity < CRITICAL_SEVERITY, begins)
    }

    /// It is `now`: whether the flood ended with that.
    pub fn clock(&mut self, now: Time) -> bool {
        self.forget(now);
        let over = self.flood.is_some() && self.raised.len() < ENDS_BELOW;
        if over {
            self.flood = None;
        }
        over
    }

    /// When [`Watch::clock`] will end the flood unless more comes; `None` without one.
    pub fn ends(&self) -> Option<Time> {
        self.flood.as_ref()?;
        let last = self.raised.len().checked_sub(ENDS_BELOW).and_then(|i| self.raised.get(i));
        Some(last.map_or(Time(i64::MIN), |(t, _)| t.plus(WITHIN).plus(Duration::from_nanos(1))))
    }

    fn forget(&mut self, now: Time) {
        while self.raised.front().is_some_and(|(t, _)| now.since(*t) > WITHIN) {
            self.raised.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{AlarmState, Care, Condition, RecordId};

    fn alarm(severity: u16) -> Alarm {
        Alarm {
            id: RecordId([0; 16]),
            machine: "press-1".into(),
            condition: Condition::Anomaly,
            state: AlarmState::Unacknowledged,
            severity,
            since: Time(0),
            at: Time(0),
            message: String::new(),
            top_channel: None,
            acknowledged_by: None,
            care: Care::default(),
        }
    }

    fn second(s: i64) -> Time {
        Time(s * 1_000_000_000)
    }

    #[test]
    fn the_eleventh_in_ten_minutes_begins_it_and_the_fifth_last_ends_it() {
        let mut watch = Watch::default();
        for s in 0..10 {
            assert_eq!(watch.raised(&alarm(500), second(s * 60)), (false, false), "{s}");
        }
        assert_eq!(watch.raised(&alarm(500), second(595)), (true, true));
        assert_eq!(watch.raised(&alarm(500), second(596)), (true, false));
        assert_eq!(watch.raised(&alarm(CRITICAL_SEVERITY), second(597)), (false, false), "it is never grouped");
        assert_eq!(watch.flood().map(|f| f.raised), Some(13));
        let end = watch.ends().expect("an end");
        assert!(!watch.clock(Time(end.0 - 1)));
        assert!(watch.clock(end));
        assert_eq!(watch.flood(), None);
        assert!(!watch.clock(end), "once");
    }

    proptest! {
        /// Held against the plain rule over all raises ever.
        #[test]
        fn as_the_plain_rule_says(gaps in prop::collection::vec(0i64..200, 1..120)) {
            let mut watch = Watch::default();
            let (mut all, mut now, mut flooding): (Vec<i64>, i64, bool) = (Vec::new(), 0, false);
            for gap in gaps {
                // The clock is looked at every second, as the agent does.
                for _ in 0..gap {
                    now += 1;
                    let recent = all.iter().filter(|t| now - **t <= 600).count();
                    let over = flooding && recent < ENDS_BELOW;
                    prop_assert_eq!(watch.ends().is_some_and(|e| e <= second(now)), over);
                    prop_assert_eq!(watch.clock(second(now)), over);
                    flooding &= !over;
                }
                all.push(now);
                let recent = all.iter().filter(|t| now - **t <= 600).count();
                let begins = !flooding && recent > BEGINS_ABOVE;
                flooding |= begins;
                prop_assert_eq!(watch.raised(&alarm(500), second(now)), (flooding, begins));
            }
        }
    }
}
