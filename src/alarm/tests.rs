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
