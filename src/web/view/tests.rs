//! The dashboard's picture of machines and alarms, kept up to date and bounded.

use super::*;
use crate::types::{Alarm, AlarmState, Cause, Condition, MachineState, Quality, Reason, RecordId, Verdict};
use crate::web::picture::{self, MAX_ALARMS, MAX_MACHINES, MAX_NAME_BYTES, MAX_RINGS, MAX_SIGNALS};
use crate::web::ring::POINTS;

type Values = Vec<(Name, Option<f64>, Quality, Cause)>;

fn at(second: i64) -> Time {
    Time(second * 1_000_000_000)
}

fn good(signal: &str, value: f64) -> (Name, Option<f64>, Quality, Cause) {
    (signal.into(), Some(value), Quality::Good, Cause::None)
}

fn step(machine: &str, second: i64, values: Values) -> Live {
    Live::Step { machine: machine.into(), at: at(second), values }
}

fn verdict(machine: &str, second: i64, score: f64, p_value: Option<f64>, reason: Reason) -> Live {
    let v = Verdict {
        machine: machine.into(),
        at: at(second),
        model: "ae".into(),
        model_version: "1".into(),
        model_digest: "00".into(),
        reason,
        score: Some(score),
        p_value,
        threshold: 0.5,
        health: None,
        rul: None,
        class: None,
        quality: Quality::Good,
        contributions: Vec::new(),
    };
    Live::Verdict(Arc::new(v), "{}".into())
}

fn alarm(n: u32, state: AlarmState, severity: u16) -> Live {
    let a = Alarm {
        id: RecordId::of(&[&n.to_le_bytes()]),
        machine: format!("m{n}").into(),
        condition: Condition::Anomaly,
        state,
        severity,
        since: at(i64::from(n)),
        at: at(i64::from(n)),
        message: format!("alarm {n}"),
        top_channel: None,
        acknowledged_by: None,
        care: Default::default(),
    };
    Live::Alarm(Arc::new(a), "{}".into())
}

#[test]
fn a_million_machines_take_the_room_of_the_first_ten_thousand() {
    let mut p = Picture::default();
    for n in 0..MAX_MACHINES + 500 {
        p.apply(&step(&format!("m{n}"), 1, vec![good("a", 1.0)]), at(1));
    }
    assert_eq!(p.machines().len(), MAX_MACHINES);
    assert_eq!(p.not_shown, 500);
    assert_eq!(p.rings(), MAX_RINGS);
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    p.apply(&Live::State { machine: long.into(), at: at(1), light: MachineState::Red, why: "".into() }, at(1));
    assert_eq!(p.not_shown, 501);
}

#[test]
fn signals_and_points_of_a_machine_are_bounded() {
    let mut p = Picture::default();
    let many: Values = (0..MAX_SIGNALS + 6).map(|n| good(&format!("s{n}"), 1.0)).collect();
    for second in 0..POINTS as i64 + 50 {
        p.apply(&step("m", second, many.clone()), at(second));
    }
    let m = &p.machines()["m"];
    assert_eq!(m.signals.len(), MAX_SIGNALS);
    assert_eq!(p.not_shown, 6 * (POINTS as u64 + 50));
    let points = m.signals["s3"].points.as_ref().unwrap().to_vec();
    assert_eq!((points.len(), points[0].at), (POINTS, at(50)));
    assert_eq!(p.rings(), MAX_SIGNALS + 1);
}

#[test]
fn looking_at_a_machine_takes_the_plots_of_the_one_looked_at_longest_ago() {
    let mut p = Picture::default();
    for n in 0..MAX_RINGS {
        p.apply(&step(&format!("m{n:05}"), 1, vec![good("a", 1.0), good("b", 1.0)]), at(1));
    }
    let plots = |p: &Picture, name: &str| p.machines()[name].scores.is_some();
    let (first, second, last) = ("m00000", "m00001", format!("m{:05}", MAX_RINGS - 1));
    assert!(plots(&p, first) && !plots(&p, &last));
    p.look_at(first);
    p.look_at(&last);
    assert!(plots(&p, first) && plots(&p, &last) && !plots(&p, second));
    assert!(p.rings() <= MAX_RINGS);
    p.apply(&step(&last, 2, vec![good("a", 2.0), good("b", 2.0)]), at(2));
    assert_eq!(p.machines()[last.as_str()].signals["b"].points.as_ref().unwrap().to_vec().len(), 1);
    let held: usize = p
        .machines()
        .values()
        .map(|m| usize::from(m.scores.is_some()) + m.signals.values().filter(|s| s.points.is_some()).count())
        .sum();
    assert_eq!(held, p.rings());
}

#[test]
fn a_machines_new_alarm_takes_the_place_of_the_one_before() {
    let mut p = Picture::default();
    let numbered = |n: u32, state| {
        let Live::Alarm(a, data) = alarm(n, state, 500) else { unreachable!() };
        let mut a = Alarm::clone(&a);
        a.machine = "m".into();
        Live::Alarm(Arc::new(a), data)
    };
    p.apply(&numbered(1, AlarmState::ReturnedUnacknowledged), at(0));
    p.apply(&numbered(2, AlarmState::Unacknowledged), at(1));
    let states: Vec<AlarmState> = p.alarms().iter().map(|a| a.state).collect();
    assert_eq!(states, [AlarmState::Normal, AlarmState::Unacknowledged], "nobody can acknowledge the first any more");
}

#[test]
fn alarms_that_are_over_make_room_first_and_active_ones_last() {
    let mut p = Picture::default();
    p.apply(&alarm(0, AlarmState::Unacknowledged, 900), at(0));
    for n in 1..MAX_ALARMS as u32 {
        p.apply(&alarm(n, AlarmState::Normal, 900), at(0));
    }
    for n in 1000..1000 + MAX_ALARMS as u32 - 1 {
        p.apply(&alarm(n, AlarmState::Acknowledged, 500), at(0));
    }
    assert_eq!((p.alarms().len(), p.not_shown), (MAX_ALARMS, 0));
    p.apply(&alarm(5000, AlarmState::Unacknowledged, 500), at(0));
    assert_eq!((p.alarms().len(), p.not_shown), (MAX_ALARMS, 1));
    assert!(p.alarms().iter().any(|a| a.severity == 900), "the gravest stays");
    assert!(!p.alarms().iter().any(|a| a.message == "alarm 1000"), "the mildest and oldest went");
    p.apply(&alarm(5000, AlarmState::Normal, 500), at(0));
    assert_eq!(p.alarms().len(), MAX_ALARMS, "a transition replaces what is listed");
}

#[test]
fn unchanged_is_not_the_same_as_not_heard() {
    let mut p = Picture::default();
    p.apply(&step("m", 1, vec![good("t", 20.0)]), at(1));
    p.apply(&step("m", 2, vec![good("t", 20.0)]), at(2));
    let s = |p: &Picture| p.machines()["m"].signals["t"].clone();
    assert_eq!((s(&p).heard, s(&p).changed), (Some(at(2)), Some(at(1))));
    for (second, cause) in [(3, Cause::Held), (4, Cause::Timeout), (5, Cause::Disconnected)] {
        p.apply(&step("m", second, vec![("t".into(), None, Quality::Stale, cause)]), at(second));
    }
    assert_eq!((s(&p).heard, s(&p).changed, s(&p).value), (Some(at(2)), Some(at(1)), Some(20.0)));
    p.apply(&step("m", 6, vec![("t".into(), Some(f64::NAN), Quality::Bad, Cause::NotFinite)]), at(6));
    assert_eq!((s(&p).heard, s(&p).changed, s(&p).value), (Some(at(6)), Some(at(1)), Some(20.0)));
    p.apply(&step("m", 7, vec![("t".into(), Some(20.0), Quality::Bad, Cause::Stuck)]), at(7));
    assert_eq!((s(&p).heard, s(&p).changed), (Some(at(7)), Some(at(1))));
}

#[test]
fn since_moves_only_with_the_light() {
    let mut p = Picture::default();
    let state = |second, light| Live::State { machine: "m".into(), at: at(second), light, why: format!("w{second}") };
    p.apply(&state(1, MachineState::Red), at(9));
    p.apply(&state(2, MachineState::Red), at(9));
    assert_eq!((p.machines()["m"].since, p.machines()["m"].why.as_str()), (at(1), "w2"));
    p.apply(&state(3, MachineState::Green), at(9));
    assert_eq!(p.machines()["m"].since, at(3));
    assert_eq!(p.lights(), picture::Lights { green: 1, ..Default::default() });
}

#[test]
fn what_the_limit_is_held_against_is_told_from_what_was_decided() {
    let held = |events: &[Live]| {
        let mut p = Picture::default();
        events.iter().for_each(|e| p.apply(e, at(1)));
        p.machines()["m"].held
    };
    use Reason::{AnomalyDetected as Bad, NoAnomalyDetected as Fine};
    assert_eq!(held(&[verdict("m", 1, 0.9, Some(0.001), Bad)]), Held::PValue);
    assert_eq!(held(&[verdict("m", 1, 0.9, None, Bad)]), Held::Score);
    assert_eq!(held(&[verdict("m", 1, 0.9, Some(0.6), Bad)]), Held::Score);
    assert_eq!(held(&[verdict("m", 1, 0.4, Some(0.1), Fine), verdict("m", 2, 0.4, Some(0.9), Fine)]), Held::Score);
    assert_eq!(held(&[verdict("m", 1, 7.0, Some(0.9), Fine)]), Held::PValue);
}

#[tokio::test]
async fn falling_behind_is_counted_and_the_feed_goes_on() {
    let view = View::new();
    let (tx, rx) = broadcast::channel(8);
    for n in 0..20 {
        tx.send(step("m", n, vec![good("a", n as f64)])).unwrap();
    }
    drop(tx);
    view.clone().follow(rx, CancellationToken::new()).await;
    assert_eq!(view.read(|p| p.lagged), 12);
    assert_eq!(view.read(|p| p.machines()["m"].signals["a"].value), Some(19.0));
}

#[tokio::test]
async fn steps_are_thinned_to_the_newest_and_alarms_never_are() {
    let view = View::new();
    let mut frames = view.subscribe();
    let (tx, rx) = broadcast::channel(4_096);
    for n in 0..1_500 {
        tx.send(step("m", n, vec![good("a", n as f64)])).unwrap();
    }
    for n in 0..3 {
        tx.send(alarm(n, AlarmState::Unacknowledged, 500)).unwrap();
    }
    drop(tx);
    view.clone().follow(rx, CancellationToken::new()).await;
    let mut kinds = Vec::new();
    let mut last_step = String::new();
    while let Ok(frame) = frames.try_recv() {
        let text = String::from_utf8(frame.text.to_vec()).unwrap();
        kinds.push(text.lines().next().unwrap().to_owned());
        if text.starts_with("event: step") {
            last_step = text;
        }
    }
    assert_eq!(kinds.iter().filter(|k| *k == "event: alarm").count(), 3);
    assert!(kinds.iter().filter(|k| *k == "event: step").count() < 20, "{kinds:?}");
    assert!(last_step.contains("\"value\":1499.0"), "{last_step}");
}

#[tokio::test]
async fn a_browser_hears_of_the_machines_it_shows_and_of_all_alarms() {
    let view = View::new();
    let (mut frames, watch) = view.subscribe_watching();
    assert!(view.watch(watch.id, [Name::from("m7")].into()));
    assert!(!view.watch(watch.id ^ 1, HashSet::new()), "nobody has that id");
    let (tx, rx) = broadcast::channel(4_096);
    for n in 0..1_000 {
        tx.send(step(&format!("m{n}"), 1, vec![good("a", n as f64)])).unwrap();
    }
    tx.send(Live::State { machine: "m3".into(), at: at(2), light: MachineState::Red, why: "anomaly".into() }).unwrap();
    tx.send(alarm(3, AlarmState::Unacknowledged, 500)).unwrap();
    drop(tx);
    view.clone().follow(rx, CancellationToken::new()).await;
    let mut told = Vec::new();
    while let Ok(frame) = frames.try_recv() {
        if let Some(text) = frame.text_for(Some(&watch)) {
            let text = String::from_utf8(text.to_vec()).unwrap();
            told.push(text.lines().next().unwrap().to_owned());
            assert!(!text.contains("event: step") || text.contains("\"m7\""), "{text}");
            assert!(!text.contains("event: alarm") || text.contains("\"explanation\":null"), "{text}");
        }
    }
    assert_eq!(told, ["event: state", "event: alarm", "event: step"], "the step of one machine of a thousand");
    // Nobody listens any more: nothing is rendered, and nothing is kept for later.
    drop((frames, watch));
    assert!(matches!(view.wanted(), Wanted::These(names) if names.is_empty()));
}

#[test]
fn courses_are_bounded_and_go_to_those_who_are_looked_at() {
    let mut p = Picture::default();
    let health = |n: usize| {
        let Live::Verdict(v, data) = verdict(&format!("m{n:05}"), 1, 0.1, None, Reason::NoAnomalyDetected) else {
            unreachable!()
        };
        Live::Verdict(Arc::new(Verdict { health: Some(0.5), ..Verdict::clone(&v) }), data)
    };
    for n in 0..picture::MAX_COURSES + 10 {
        p.apply(&health(n), at(1));
    }
    let with = |p: &Picture| p.machines().values().filter(|m| m.course.is_some()).count();
    assert_eq!(with(&p), picture::MAX_COURSES);
    let last = picture::MAX_COURSES + 9;
    p.look_at(&format!("m{last:05}"));
    p.apply(&health(last), at(2));
    assert!(p.machines()[format!("m{last:05}").as_str()].course.is_some());
    assert_eq!(with(&p), picture::MAX_COURSES);
}
