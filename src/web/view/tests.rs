//! The dashboard's picture of machines and alarms, kept up to date and bounded.

use super::*;
use crate::types::{Alarm, AlarmState, Cause, Condition, Flood, MachineState, Quality, Reason, RecordId, Verdict};
use crate::web::alarm_list::MAX_ALARMS;
use crate::web::picture::{self, ENGINE_SILENT_AFTER, MAX_MACHINES, MAX_NAME_BYTES, MAX_RINGS, MAX_SIGNALS};
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
    let states: Vec<AlarmState> = p.alarms().iter().map(|a| a.alarm.state).collect();
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
    assert!(p.alarms().iter().any(|a| a.alarm.severity == 900), "the gravest stays");
    assert!(!p.alarms().iter().any(|a| a.alarm.message == "alarm 1000"), "the mildest and oldest went");
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
    view.clone().follow(rx, Shared::new()).await;
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
    view.clone().follow(rx, Shared::new()).await;
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
    view.clone().follow(rx, Shared::new()).await;
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

fn state(machine: &str, second: i64, light: MachineState) -> Live {
    Live::State { machine: machine.into(), at: at(second), light, why: format!("{light:?}") }
}

/// The frames sent so far: type, then the data.
fn frames(receiver: &mut broadcast::Receiver<Frame>) -> Vec<(String, Value)> {
    let mut out = Vec::new();
    while let Ok(frame) = receiver.try_recv() {
        let text = String::from_utf8(frame.text.to_vec()).unwrap();
        let (kind, data) = text.split_once("\ndata: ").unwrap();
        out.push((kind.trim_start_matches("event: ").to_owned(), serde_json::from_str(data.trim()).unwrap()));
    }
    out
}

#[test]
fn every_change_raises_the_version_and_each_part_keeps_that_of_its_last() {
    let mut p = Picture::default();
    p.apply(&state("a", 1, MachineState::Green), at(1));
    p.apply(&state("b", 1, MachineState::Green), at(1));
    p.apply(&step("a", 2, vec![good("t", 1.0)]), at(2));
    p.apply(&Live::Heartbeat(at(2)), at(2));
    p.apply(&alarm(1, AlarmState::Unacknowledged, 500), at(2));
    assert_eq!(p.version(), 4, "a heartbeat changes nothing");
    let versions = |p: &Picture, name: &str| (p.machines()[name].versions.state, p.machines()[name].versions.step);
    assert_eq!((versions(&p, "a"), versions(&p, "b"), p.alarms()[0].version), ((1, 3), (2, 0), 4));
    p.apply(&state("a", 5, MachineState::Green), at(5));
    assert_eq!(versions(&p, "a"), (1, 3), "the same state is no change");
    p.apply(&state("a", 6, MachineState::Red), at(6));
    assert_eq!((versions(&p, "a"), p.version()), ((6, 3), 6));
}

#[test]
fn an_earlier_alarm_that_a_new_one_ends_is_of_the_same_version_and_announced() {
    let view = View::new();
    let mut receiver = view.subscribe();
    let (_tx, mut rx) = broadcast::channel(8);
    let numbered = |n: u32, state| {
        let Live::Alarm(a, data) = alarm(n, state, 500) else { unreachable!() };
        Live::Alarm(Arc::new(Alarm { machine: "m".into(), ..Alarm::clone(&a) }), data)
    };
    view.take(numbered(1, AlarmState::ReturnedUnacknowledged), &mut rx, &Resync::default(), at(1));
    frames(&mut receiver);
    view.take(numbered(2, AlarmState::Unacknowledged), &mut rx, &Resync::default(), at(2));
    let told: Vec<_> =
        frames(&mut receiver).into_iter().map(|(_, d)| (d["state"].clone(), d["version"].clone())).collect();
    assert_eq!(told, [(json!("normal"), json!(2)), (json!("unacknowledged"), json!(2))]);
}

/// The receiver misses nearly everything. The present state puts it right.
#[tokio::test]
async fn a_picture_that_has_missed_events_asks_for_the_present_state_and_is_right_again() {
    let (view, shared) = (View::new(), Shared::new());
    let mut receiver = view.subscribe();
    let (tx, rx) = broadcast::channel(8);
    let following = tokio::spawn(view.clone().follow(rx, shared.clone()));
    let until = async |what: &str, holds: &dyn Fn(&Picture) -> bool| {
        for _ in 0..1_000 {
            if view.read(holds) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("never came to it: {what}");
    };
    let flood = Flood { since: at(1), raised: 20, first: "m1".into() };
    for event in [state("m1", 1, MachineState::Red), state("gone", 1, MachineState::Green), Live::Flood(Some(flood))] {
        tx.send(event).unwrap();
    }
    tx.send(alarm(1, AlarmState::Unacknowledged, 500)).unwrap();
    until("one alarm", &|p| p.alarms().len() == 1).await;
    let before = view.read(|p| p.version());
    frames(&mut receiver);

    // The end of the alarm and the change of m2 are among the events that are missed.
    tx.send(alarm(1, AlarmState::Normal, 500)).unwrap();
    tx.send(state("m1", 2, MachineState::Green)).unwrap();
    tx.send(state("m2", 2, MachineState::Red)).unwrap();
    tx.send(alarm(2, AlarmState::Unacknowledged, 700)).unwrap();
    for n in 0..20 {
        tx.send(step("m1", n, vec![good("a", n as f64)])).unwrap();
    }
    until("a gap", &|p| p.lagged > 0).await;
    assert_eq!(view.read(|p| p.machines()["m1"].light), MachineState::Red, "the test makes it miss this");
    assert!(shared.resync.take(Instant::now()), "the present state is asked for");
    let present = [
        state("m1", 2, MachineState::Green),
        alarm(2, AlarmState::Unacknowledged, 700),
        state("m2", 2, MachineState::Red),
    ];
    tx.send(Live::Snapshot(present.into())).unwrap();
    until("m2", &|p| p.machines().contains_key("m2")).await;
    view.read(|p| {
        assert_eq!(p.lights(), picture::Lights { green: 1, red: 1, ..Default::default() });
        let alarms: Vec<_> = p.alarms().iter().map(|l| (l.alarm.message.as_str(), l.alarm.state)).collect();
        assert_eq!(alarms, [("alarm 1", AlarmState::Normal), ("alarm 2", AlarmState::Unacknowledged)]);
        assert!(p.flood.is_none() && !p.machines().contains_key("gone"));
        assert!(p.machines().values().all(|m| m.versions.state > before));
    });
    assert!(frames(&mut receiver).iter().any(|(kind, _)| kind == "reset"), "a machine is gone");

    // The same once more changes nothing, and no browser hears of it.
    let version = view.read(|p| p.machines()["m1"].versions);
    tx.send(Live::Snapshot(
        [
            state("m1", 3, MachineState::Green),
            alarm(2, AlarmState::Unacknowledged, 700),
            state("m2", 9, MachineState::Red),
        ]
        .into(),
    ))
    .unwrap();
    drop(tx);
    following.await.unwrap();
    assert_eq!(view.read(|p| (p.machines()["m1"].versions, p.machines()["m2"].since)), (version, at(2)));
    assert_eq!(frames(&mut receiver).into_iter().filter(|(kind, _)| kind != "step").count(), 0);
}

#[test]
fn while_the_engine_is_silent_nothing_is_green_and_red_stays_red() {
    let view = View::new();
    let mut receiver = view.subscribe();
    let mut picture = Picture::default();
    let start = Instant::now();
    assert!(!picture.watch_engine(start + ENGINE_SILENT_AFTER * 9), "before the first event there is nothing to show");
    picture.apply(&state("good", 1, MachineState::Green), at(1));
    picture.apply(&state("bad", 1, MachineState::Red), at(1));
    picture.apply(&state("resting", 1, MachineState::Off), at(1));
    assert!(!picture.hear_engine(at(10), start));
    *lock(&view.picture) = picture;
    let almost = start + ENGINE_SILENT_AFTER - Duration::from_millis(1);
    view.watch_engine(almost);
    assert_eq!(frames(&mut receiver), []);

    view.watch_engine(start + ENGINE_SILENT_AFTER);
    let silent = "the engine has not been heard since 1970-01-01T00:00:10.000Z";
    let told: Vec<_> = frames(&mut receiver).into_iter().map(|(_, d)| (d["light"].clone(), d["why"].clone())).collect();
    let amber = (json!("amber"), json!(silent));
    assert_eq!(told, [(json!("red"), json!(format!("Red; {silent}"))), amber.clone(), amber]);
    view.read(|p| {
        assert_eq!(p.lights(), picture::Lights { red: 1, amber: 2, ..Default::default() });
        assert!(p.machines().values().all(|m| m.versions.state == p.version()));
        assert_eq!((p.since(&p.machines()["good"]), p.since(&p.machines()["bad"])), (at(10), at(1)));
    });
    view.watch_engine(start + ENGINE_SILENT_AFTER * 2);
    assert_eq!(frames(&mut receiver), [], "told once");

    let (_tx, mut rx) = broadcast::channel(8);
    view.take(Live::Heartbeat(at(30)), &mut rx, &Resync::default(), at(30));
    let told: Vec<_> = frames(&mut receiver).into_iter().map(|(_, d)| d["light"].clone()).collect();
    assert_eq!(told, ["red", "green", "off"]);
    assert_eq!(view.read(|p| p.lights()), picture::Lights { red: 1, green: 1, off: 1, ..Default::default() });
}

#[test]
fn where_too_many_states_change_at_once_browsers_are_told_to_fetch_all() {
    let view = View::new();
    let mut receiver = view.subscribe();
    let (_tx, mut rx) = broadcast::channel(8);
    let present: Vec<Live> = (0..=MAX_STATE_FRAMES).map(|n| state(&format!("m{n}"), 1, MachineState::Green)).collect();
    view.take(Live::Snapshot(present.into()), &mut rx, &Resync::default(), at(1));
    assert_eq!(frames(&mut receiver), [("reset".to_owned(), json!({"version": 1}))]);
}

#[test]
fn active_alarms_come_first_and_of_these_the_most_severe() {
    let mut p = Picture::default();
    let events = [
        (1, AlarmState::ReturnedUnacknowledged, 900),
        (2, AlarmState::Acknowledged, 800),
        (3, AlarmState::Unacknowledged, 300),
        (4, AlarmState::Normal, 950),
        (5, AlarmState::Unacknowledged, 800),
    ];
    events.iter().for_each(|(n, state, severity)| p.apply(&alarm(*n, *state, *severity), at(1)));
    let order: Vec<_> = render::most_urgent_first(p.alarms()).map(|l| l.alarm.message.as_str()).collect();
    assert_eq!(order, ["alarm 5", "alarm 2", "alarm 3", "alarm 1", "alarm 4"]);
}
