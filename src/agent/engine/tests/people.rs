//! What people do to alarms, through the engine: records, the audit log, and a kill after each deed.

use super::*;
use crate::agent::audit;
use crate::types::{Action, AlarmState, Kind, RecordId, Target};

fn act(action: Action, at: Time) -> Act {
    Act { action, who: "Ana".into(), comment: None, at }
}

fn do_to(engine: &mut Engine, target: Target, action: Action, at: Time) -> Outcome {
    let act = act(action, at);
    assert_eq!(engine.may_act(&target, &act), Ok(()), "{action:?}");
    engine.step(&Group { inputs: vec![Input::Act(target, act)] })
}

fn alarms(records: &[Record]) -> Vec<serde_json::Value> {
    let mine = records.iter().filter(|r| r.kind == Kind::Alarm);
    mine.map(|r| serde_json::from_str(&r.data).expect("JSON")).collect()
}

/// An engine whose second pump is in alarm, and that alarm's id.
fn in_alarm() -> (Engine, RecordId, Time) {
    let mut engine = engine();
    feed(&mut engine, &course(12, &[]), &[16]);
    let alarm = engine.units.iter().find_map(|u| u.state.anomaly.alarm()).expect("an alarm").clone();
    (engine, alarm.id, Time(12_000 * MS))
}

#[test]
fn an_alarm_says_why_and_what_to_check() {
    let (engine, ..) = in_alarm();
    let alarm = engine.units.iter().find_map(|u| u.state.anomaly.alarm()).expect("an alarm");
    let why = alarm.care.explanation.as_ref().expect("an explanation");
    let first = &why.channels[0];
    assert_eq!((&*first.name, first.unit.as_str()), ("suction_pressure", "bar"));
    let [low, high] = first.normal.expect("a band");
    assert!(first.value.expect("a value") > high && low < high, "{first:?}");
    assert_eq!(first.trace.len(), 32);
    assert_eq!(first.trace.last().copied().map(f64::from), first.value);
    assert!(alarm.care.first_out);
    assert!(why.advice["en"].iter().any(|a| a.contains("suction")), "{:?}", why.advice);
    assert_eq!(why.advice["en"].len(), why.advice["zh"].len(), "the same in both languages");
}

#[test]
fn shelved_it_comes_back_by_itself_and_calls_again() {
    let (mut engine, id, now) = in_alarm();
    do_to(&mut engine, Target::Alarm(id), Action::Acknowledge, now);
    let out = do_to(&mut engine, Target::Alarm(id), Action::Shelve(60), now);
    let said = &alarms(&out.records)[0];
    assert_eq!((said["transition"].as_str(), said["shown_state"].as_str()), (Some("shelved"), Some("shelved")));
    assert_eq!((said["by"].as_str(), said["shelved_by"].as_str()), (Some("Ana"), Some("Ana")));
    let light = |live: &[Live]| {
        live.iter().rev().find_map(|l| if let Live::State { light, .. } = l { Some(*light) } else { None })
    };
    assert_eq!(light(&out.live), Some(MachineState::Amber), "a shelved alarm does not call");
    assert!(!engine.wants_clock(now.plus(Duration::from_secs(59))));
    let later = now.plus(Duration::from_secs(61));
    assert!(engine.wants_clock(later));
    let out = engine.step(&Group { inputs: vec![Input::Clock(later)] });
    let said = &alarms(&out.records)[0];
    assert_eq!((said["transition"].as_str(), said["state"].as_str()), (Some("shelf_expired"), Some("unacknowledged")));
    assert_eq!(
        said["timestamp"],
        now.plus(Duration::from_secs(60)).to_string(),
        "when it was due, not when it was seen"
    );
    assert_eq!(light(&out.live), Some(MachineState::Red));
    assert!(!engine.wants_clock(later), "once");
}

#[test]
fn a_machine_is_taken_out_of_service_before_anything_happens() {
    let mut engine = engine();
    feed(&mut engine, &course(2, &[]), &[16]);
    let machine = || Target::Machine("pump-2".into());
    assert_eq!(engine.may_act(&Target::Machine("nobody".into()), &act(Action::OutOfService, Time(0))), Err(None));
    let out = do_to(&mut engine, machine(), Action::OutOfService, Time(2_000 * MS));
    assert_eq!(alarms(&out.records).len(), 2, "its anomaly and its input alarm");
    let records = feed(&mut engine, &course(20, &[])[2 * 2 * 10 * 8..], &[16]);
    let raised = alarms(&records);
    assert_eq!(raised[0]["shown_state"], "out_of_service");
    let unit = engine.units.iter().find(|u| &**u.pipe.name() == "pump-2").expect("the pump");
    assert_eq!(
        (unit.state.light, unit.state.why.starts_with("out of service (Ana)")),
        (MachineState::Amber, true),
        "{}",
        unit.state.why
    );
    do_to(&mut engine, machine(), Action::InService, Time(21_000 * MS));
    let unit = engine.units.iter().find(|u| &**u.pipe.name() == "pump-2").expect("the pump");
    assert_eq!(unit.state.light, MachineState::Red, "{}", unit.state.why);
}

#[test]
fn a_rule_of_the_config_suppresses() {
    let mut engine = engine();
    engine.blocks[0].suppress = Some(pipeline::mode::Condition::parse("speed > 0").expect("a condition"));
    let records = feed(&mut engine, &course(12, &[]), &[16]);
    let raised = alarms(&records);
    assert_eq!((raised.len(), &raised[0]["suppressed"]), (1, &true.into()));
    engine.blocks[0].suppress = Some(pipeline::mode::Condition::parse("speed < 0").expect("a condition"));
    let records = feed(&mut engine, &course(20, &[])[12 * 2 * 10 * 8..], &[16]);
    assert_eq!(alarms(&records)[0]["transition"], "unsuppressed");
}

#[test]
fn other_blocks_are_taken_over_with_what_stands() {
    let (mut engine, id, now) = in_alarm();
    do_to(&mut engine, Target::Alarm(id), Action::Shelve(600), now);
    let mut other = self::engine();
    other.blocks[0].alarm.severity = 650;
    engine.reconfigure(other.blocks).expect("taken over");
    let alarm = engine.units.iter().find_map(|u| u.state.anomaly.alarm()).expect("the alarm stands");
    assert_eq!((alarm.id, alarm.state, alarm.shown_state()), (id, AlarmState::Unacknowledged, "shelved"));
    assert_eq!(engine.rule(0, Condition::Anomaly).severity, 650);
}

#[test]
fn what_runs_is_audited_only_when_it_changes() {
    let mut engine = engine();
    let running = |config: &str, at| Running {
        at: Time(at),
        who: "start".into(),
        version: "1".into(),
        config: config.into(),
        models: [("pump-anomaly".to_owned(), "version 1".to_owned())].into(),
    };
    let mut tell = |r: Running| {
        assert!(engine.is_news(&r));
        engine.step(&Group { inputs: vec![Input::Running(r)] }).records
    };
    let first = tell(running("a", 1));
    let second = tell(running("b", 2));
    assert_eq!((first.len(), second.len()), (3, 1));
    assert!(second[0].data.contains("a to b"), "{}", second[0].data);
    assert!(!engine.is_news(&running("b", 3)));
    let lines = [first, second].concat().into_iter().map(|r| r.data);
    assert_eq!(audit::verify(lines).expect("a whole chain").entries, 4);
}

#[derive(Clone, Debug)]
enum Deed {
    Readings(usize),
    Act(usize, Action),
    Clock(u64),
}

fn deed() -> impl Strategy<Value = Deed> {
    let action = prop_oneof![
        Just(Action::Acknowledge),
        (1u32..20).prop_map(Action::Shelve),
        Just(Action::Unshelve),
        Just(Action::OutOfService),
        Just(Action::InService),
        Just(Action::Reset),
    ];
    prop_oneof![
        3 => (1usize..600).prop_map(Deed::Readings),
        3 => (0usize..4, action).prop_map(|(i, a)| Deed::Act(i, a)),
        1 => (0u64..30).prop_map(Deed::Clock),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    /// Whatever people do, a kill after any of it changes nothing: the snapshot, or the journal from
    /// the beginning, brings the very same engine back, and the audit log is one whole chain.
    #[test]
    fn a_kill_at_any_transition_changes_nothing(deeds in prop::collection::vec(deed(), 1..40), latch: bool) {
        let readings = course(15, &[]);
        let fresh = || {
            let mut e = engine();
            e.blocks[0].alarm.latch = latch;
            e
        };
        let (mut plain, mut killed, mut journal, mut from) = (fresh(), fresh(), Vec::new(), 0);
        let (mut records, mut now) = (Vec::new(), Time(0));
        for deed in deeds {
            let input = match deed {
                Deed::Readings(n) => {
                    let some = readings[from..(from + n).min(readings.len())].to_vec();
                    from = (from + n).min(readings.len());
                    now = some.last().map_or(now, |r| now.max(r.at));
                    Input::Readings(now, some)
                }
                Deed::Act(i, action) => {
                    let ids = plain.units.iter().flat_map(|u| CONDITIONS.map(|c| u.tracker(c).alarm().map(|a| a.id)));
                    let id = ids.flatten().nth(i);
                    let target = id.map_or(Target::Machine("pump-2".into()), Target::Alarm);
                    Input::Act(target, act(action, now))
                }
                Deed::Clock(seconds) => {
                    now = now.plus(Duration::from_secs(seconds));
                    Input::Clock(now)
                }
            };
            let group = Group { inputs: vec![input] };
            let entry = group.encode();
            let made = plain.step(&group).records;
            prop_assert_eq!(&killed.step(&Group::decode(&entry).expect("decoded")).records, &made);
            records.extend(made);
            journal.push(entry);
            let kept = killed.snapshot();
            prop_assert_eq!(&kept, &plain.snapshot());
            killed = fresh();
            killed.restore(&kept).expect("restored");
        }
        let mut replayed = fresh();
        let mut again = Vec::new();
        for entry in &journal {
            again.extend(replayed.step(&Group::decode(entry).expect("decoded")).records);
        }
        prop_assert_eq!(&again, &records);
        prop_assert_eq!(replayed.snapshot(), plain.snapshot());
        let ids: std::collections::HashSet<RecordId> = records.iter().map(|r| r.id).collect();
        prop_assert_eq!(ids.len(), records.len(), "no two records have the same id");
        let audit = records.into_iter().filter(|r| r.kind == Kind::Audit).map(|r| r.data);
        prop_assert!(audit::verify(audit).is_ok());
    }
}
