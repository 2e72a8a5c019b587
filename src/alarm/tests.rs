//! The alarm state machine: delays, deadband, acknowledging, latch, re-alarm and chatter.

use proptest::prelude::*;

use super::*;

fn rule(on: u64, off: u64) -> Rule {
    Rule {
        machine: "press-1".into(),
        condition: Condition::Anomaly,
        severity: 700,
        on_delay: Duration::from_secs(on),
        off_delay: Duration::from_secs(off),
        deadband: 0.1,
        latch: false,
        re_alarm: None,
    }
}

fn act(action: Action, at: Time) -> Act {
    Act { action, who: "kim".into(), comment: None, at }
}

fn look(second: i64, strength: impl Into<Option<f64>>) -> Observation {
    let (strength, message) = (strength.into(), String::from("vibration is high"));
    Observation { at: Time(second * 1_000_000_000), strength, top_channel: Some("vib".into()), message }
}

fn states(rule: &Rule, looks: &[Observation]) -> Vec<(i64, AlarmState)> {
    let mut tracker = Tracker::default();
    let changes = looks.iter().filter_map(|l| tracker.observe(rule, l));
    changes.map(|a| (a.at.0 / 1_000_000_000, a.state)).collect()
}

#[test]
fn raised_after_the_on_delay_and_over_after_the_off_delay() {
    let looks: Vec<_> =
        [0.2, 1.5, 1.4, 1.2, 1.3, 0.3, 0.3, 0.3, 0.3].into_iter().zip(0..).map(|(s, t)| look(t, s)).collect();
    let found = states(&rule(3, 2), &looks);
    assert_eq!(found, [(4, AlarmState::Unacknowledged), (7, AlarmState::ReturnedUnacknowledged)]);
}

#[test]
fn a_short_excursion_is_no_alarm() {
    let looks: Vec<_> = [1.5, 1.5, 0.5, 1.5, 1.5, 0.5].into_iter().zip(0..).map(|(s, t)| look(t, s)).collect();
    assert_eq!(states(&rule(3, 2), &looks), []);
}

#[test]
fn hovering_within_the_deadband_does_not_end_it() {
    let looks: Vec<_> = [1.1, 0.95, 0.92, 0.91, 0.95, 0.99].into_iter().zip(0..).map(|(s, t)| look(t, s)).collect();
    assert_eq!(states(&rule(0, 0), &looks), [(0, AlarmState::Unacknowledged)]);
}

#[test]
fn nothing_said_changes_nothing() {
    let looks = [look(0, 1.5), look(1, None), look(2, None), look(3, 1.5)];
    assert_eq!(states(&rule(3, 0), &looks), [(3, AlarmState::Unacknowledged)]);
}

#[test]
fn acknowledged_and_over_is_normal() {
    let (mut t, rule) = (Tracker::default(), rule(0, 0));
    assert!(t.act(&rule, &act(Action::Acknowledge, Time(1))).is_err(), "there is none");
    t.observe(&rule, &look(0, 2.0)).expect("raised");
    let acked = t.act(&rule, &act(Action::Acknowledge, Time(1))).expect("acknowledged");
    assert_eq!((acked.state, acked.acknowledged_by.as_deref()), (AlarmState::Acknowledged, Some("kim")));
    assert_eq!((acked.care.change, acked.care.by.as_deref()), (Change::Acknowledged, Some("kim")));
    let again = t.act(&rule, &act(Action::Acknowledge, Time(2)));
    assert_eq!(again.expect_err("twice"), "kim has acknowledged it already");
    assert_eq!(t.observe(&rule, &look(3, 0.0)).expect("over").state, AlarmState::Normal);
    assert_eq!(t.alarm(), None);
}

#[test]
fn latched_stays_until_it_is_acknowledged_and_reset() {
    let latched = Rule { latch: true, ..rule(0, 0) };
    let mut t = Tracker::default();
    t.observe(&latched, &look(0, 2.0)).expect("raised");
    assert!(t.act(&latched, &act(Action::Reset, Time(1))).is_err(), "its condition holds");
    let gone = t.observe(&latched, &look(9, 0.0)).expect("the condition went");
    assert_eq!((gone.state, gone.state.is_active()), (AlarmState::LatchedUnacknowledged, true));
    assert_eq!(t.act(&latched, &act(Action::Reset, Time(10))).expect_err("too early"), "acknowledge it first");
    let acked = t.act(&latched, &act(Action::Acknowledge, Time(10))).expect("acknowledged");
    assert_eq!(acked.state, AlarmState::LatchedAcknowledged);
    assert_eq!(t.act(&latched, &act(Action::Reset, Time(11))).expect("reset").state, AlarmState::Normal);
    assert_eq!(t.alarm(), None);
}

#[test]
fn what_stands_too_long_is_announced_again() {
    let rule = Rule { re_alarm: Some(Duration::from_secs(60)), ..rule(0, 0) };
    let mut t = Tracker::default();
    t.observe(&rule, &look(0, 2.0)).expect("raised");
    t.act(&rule, &act(Action::Acknowledge, Time(10_000_000_000))).expect("acknowledged");
    assert_eq!(t.observe(&rule, &look(69, 2.0)), None, "counted from when it was acknowledged");
    let again = t.observe(&rule, &look(70, 2.0)).expect("announced again");
    assert_eq!((again.state, again.care.repeats), (AlarmState::Unacknowledged, 1));
    t.act(&rule, &act(Action::Shelve(600), Time(71_000_000_000))).expect("shelved");
    assert_eq!(t.observe(&rule, &look(500, 2.0)), None, "not while it is shelved");
}

#[test]
fn the_third_raise_in_a_minute_is_chatter() {
    let (mut t, rule) = (Tracker::default(), rule(0, 0));
    let mut raised = |s: i64| {
        let alarm = t.observe(&rule, &look(s, 2.0)).expect("raised");
        t.observe(&rule, &look(s + 1, 0.0)).expect("over");
        alarm.care.chattering
    };
    assert_eq!([0, 10, 20, 30, 85, 200].map(&mut raised), [false, false, true, true, false, false]);
}

#[test]
fn critical_alarms_are_neither_shelved_nor_suppressed() {
    let critical = Rule { severity: CRITICAL_SEVERITY, ..rule(0, 0) };
    let mut t = Tracker::default();
    assert_eq!(t.suppress(&critical, true, Time(0)), None);
    let raised = t.observe(&critical, &look(0, 2.0)).expect("raised");
    assert!(raised.is_announced());
    let why = t.act(&critical, &act(Action::Shelve(60), Time(1))).expect_err("refused");
    assert!(why.contains("never shelved"), "{why}");
    assert_eq!(t.act(&critical, &act(Action::OutOfService, Time(1))).expect("done").shown_state(), "out_of_service");
}

#[test]
fn budgets() {
    let week = Duration::from_secs(604_800);
    assert_eq!(parse_budget("1 per week"), Some(LimitConfig::Budget { alarms: 1.0, period: week }));
    let ten = Duration::from_secs(10 * 86_400);
    assert_eq!(parse_budget("0.5 per 10d"), Some(LimitConfig::Budget { alarms: 0.5, period: ten }));
    for bad in ["1", "per week", "0 per week", "-1 per day", "1 per fortnight", "nan per day"] {
        assert_eq!(parse_budget(bad), None, "{bad}");
    }
}

proptest! {
    /// A signal that hovers around the limit by less than the deadband raises one alarm at most.
    #[test]
    fn chatter_raises_one_alarm(wobble in prop::collection::vec(0.91..1.09f64, 1..200)) {
        let looks: Vec<_> = wobble.into_iter().zip(0..).map(|(s, t)| look(t, s)).collect();
        prop_assert!(states(&rule(0, 0), &looks).len() <= 1);
    }
}

mod isa;

mod second {
    //! What a larger model's word does to an alarm.

    use super::super::second::Word;
    use super::*;
    use crate::types::{May, SecondOpinion};

    fn opinion(at: i64, anomaly: bool) -> SecondOpinion {
        SecondOpinion {
            record: RecordId([0; 16]),
            model: "large".into(),
            version: None,
            at: Time(at * 1_000_000_000),
            anomaly,
            score: f64::from(u8::from(anomaly)),
            threshold: 0.5,
        }
    }

    fn hear(tracker: &mut Tracker, rule: &Rule, may: May, at: i64, anomaly: bool) -> Option<(AlarmState, Change)> {
        let word = Word { opinion: &opinion(at, anomaly), strength: 1.2, look: look(at, 1.2) };
        tracker.hear(rule, may, &word).map(|a| (a.state, a.care.change))
    }

    const ALL: May = May { confirm: true, raise: true, clear: true };
    const CONFIRM: May = May { confirm: true, raise: false, clear: false };

    #[test]
    fn it_confirms_once_and_doubts_when_it_changes_its_mind() {
        let (mut t, rule) = (Tracker::default(), rule(0, 10));
        assert_eq!(hear(&mut t, &rule, CONFIRM, 1, true), None, "no alarm stands");
        t.observe(&rule, &look(10, 1.2)).expect("raised");
        assert_eq!(hear(&mut t, &rule, CONFIRM, 9, true), None, "of a window before the alarm");
        let unacknowledged = AlarmState::Unacknowledged;
        assert_eq!(hear(&mut t, &rule, CONFIRM, 10, true), Some((unacknowledged, Change::Confirmed)));
        assert_eq!(hear(&mut t, &rule, CONFIRM, 11, true), None, "it has said so");
        assert_eq!(hear(&mut t, &rule, CONFIRM, 13, false), Some((unacknowledged, Change::Doubted)));
        assert_eq!(hear(&mut t, &rule, CONFIRM, 12, true), None, "overtaken");
        assert_eq!(hear(&mut t, &rule, May::default(), 14, true), None, "only noted");
        assert!(t.alarm().and_then(|a| a.care.opinion.as_ref()).is_some_and(|o| o.anomaly));
    }

    #[test]
    fn what_it_ended_comes_back_when_it_is_worse_or_has_lasted() {
        for (at, strength, comes) in [(20, 1.2, false), (20, 1.9, true), (700, 1.2, true), (20, 0.5, false)] {
            let (mut t, rule) = (Tracker::default(), rule(0, 10));
            t.observe(&rule, &look(10, 1.2)).expect("raised");
            let ended = hear(&mut t, &rule, ALL, 10, false);
            assert_eq!(ended, Some((AlarmState::ReturnedUnacknowledged, Change::Overruled)));
            assert_eq!(t.observe(&rule, &look(at, strength)).is_some(), comes, "{strength} at {at} s");
        }
    }

    #[test]
    fn it_ends_no_critical_alarm_and_raises_none_that_is_turned_off() {
        let critical = Rule { severity: CRITICAL_SEVERITY, ..rule(0, 10) };
        let mut t = Tracker::default();
        t.observe(&critical, &look(10, 1.2)).expect("raised");
        assert_eq!(hear(&mut t, &critical, ALL, 10, false), Some((AlarmState::Unacknowledged, Change::Doubted)));
        let off = Rule { severity: 0, ..rule(0, 10) };
        assert_eq!(hear(&mut Tracker::default(), &off, ALL, 10, true), None);
        assert_eq!(
            hear(&mut Tracker::default(), &rule(0, 10), ALL, 10, true),
            Some((AlarmState::Unacknowledged, Change::Raised))
        );
    }
}
