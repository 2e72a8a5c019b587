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
    }
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
    let mut t = Tracker::default();
    let id = t.observe(&rule(0, 0), &look(0, 2.0)).expect("raised").id;
    assert_eq!(t.acknowledge(RecordId::of(&[b"other"]), "kim", Time(1)), None);
    let acked = t.acknowledge(id, "kim", Time(1)).expect("acknowledged");
    assert_eq!((acked.state, acked.acknowledged_by.as_deref()), (AlarmState::Acknowledged, Some("kim")));
    assert_eq!(t.acknowledge(id, "kim", Time(2)), None, "twice changes nothing");
    assert_eq!(t.observe(&rule(0, 0), &look(3, 0.0)).expect("over").state, AlarmState::Normal);
    assert_eq!(t.alarm(), None);
}

#[test]
fn latched_stays_until_acknowledged() {
    let latched = Rule { latch: true, ..rule(0, 0) };
    let mut t = Tracker::default();
    let id = t.observe(&latched, &look(0, 2.0)).expect("raised").id;
    assert_eq!(t.observe(&latched, &look(9, 0.0)), None);
    t.acknowledge(id, "kim", Time(10)).expect("acknowledged");
    assert_eq!(t.observe(&latched, &look(11, 0.0)).expect("over").state, AlarmState::Normal);
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

#[derive(Debug, Clone)]
enum Event {
    See(Option<f64>),
    Acknowledge,
}

proptest! {
    /// Whatever happens, states follow each other only as ISA-18.2 allows, and an alarm is raised
    /// only while the condition holds.
    #[test]
    fn only_legal_transitions(
        events in prop::collection::vec(prop_oneof![
            4 => prop::option::of(0.0..2.0f64).prop_map(Event::See),
            1 => Just(Event::Acknowledge),
        ], 1..200),
        on in 0u64..4, off in 0u64..4, latch: bool,
    ) {
        let rule = Rule { latch, ..rule(on, off) };
        let mut t = Tracker::default();
        let mut before = AlarmState::Normal;
        for (second, event) in events.iter().enumerate() {
            let at = Time(second as i64 * 1_000_000_000);
            let change = match event {
                Event::See(strength) => t.observe(&rule, &look(second as i64, *strength)),
                Event::Acknowledge => t.alarm().map(|a| a.id).and_then(|id| t.acknowledge(id, "kim", at)),
            };
            let Some(alarm) = change else { continue };
            use AlarmState::{Acknowledged, Normal, ReturnedUnacknowledged, Unacknowledged};
            let legal = matches!(
                (before, alarm.state),
                (Normal | ReturnedUnacknowledged, Unacknowledged)
                    | (Unacknowledged, Acknowledged | ReturnedUnacknowledged)
                    | (Acknowledged | ReturnedUnacknowledged, Normal)
            );
            prop_assert!(legal, "{before:?} -> {:?}", alarm.state);
            if alarm.state == Unacknowledged {
                prop_assert!(matches!(event, Event::See(Some(s)) if *s >= 1.0));
            }
            before = alarm.state;
        }
    }

    /// A signal that hovers around the limit by less than the deadband raises one alarm at most.
    #[test]
    fn chatter_raises_one_alarm(wobble in prop::collection::vec(0.91..1.09f64, 1..200)) {
        let looks: Vec<_> = wobble.into_iter().zip(0..).map(|(s, t)| look(t, s)).collect();
        prop_assert!(states(&rule(0, 0), &looks).len() <= 1);
    }
}
