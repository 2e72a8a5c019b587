//! Steps, windows, quality, silence and repeats of one machine.

use proptest::prelude::*;

use super::mode::Condition;
use super::*;

const MS: i64 = 1_000_000;

fn settings() -> Settings {
    Settings {
        rate: Some(Duration::from_millis(100)),
        stale_after: vec![("*".into(), Duration::from_secs(1))],
        lateness: None,
        running: None,
        ranges: vec![("temp".into(), [-40.0, 200.0])],
        stuck_after: None,
    }
}

fn layout(channels: &[&str], steps: usize) -> Layout {
    Layout::new(&settings(), channels.iter().map(|c| Name::from(*c)).collect(), steps, 1, Duration::from_secs(1))
}

fn machine(layout: Layout) -> Machine {
    Machine::new("m".into(), Arc::new(layout))
}

fn at(ms: i64, signal: &str, value: f64) -> Reading {
    Reading::good("m".into(), signal.into(), Time(ms * MS), value)
}

/// Feeds readings as if each had arrived at its own time.
fn feed(m: &mut Machine, readings: &[Reading]) -> Vec<Step> {
    let mut steps = Vec::new();
    for r in readings {
        m.push(r, r.at, false);
        steps.extend(std::iter::from_fn(|| m.pop()));
    }
    steps
}

fn windows(steps: &[Step]) -> Vec<(i64, Vec<f32>)> {
    let window = |s: &Step| match &s.due {
        Some(Due::Window(w)) => Some((w.end.0 / MS, w.data.clone())),
        _ => None,
    };
    steps.iter().filter_map(window).collect()
}

fn reasons(steps: &[Step]) -> Vec<Option<Reason>> {
    let reason = |s: &Step| match &s.due {
        Some(Due::NotScored { reason, .. }) => Some(*reason),
        _ => None,
    };
    steps.iter().map(reason).collect()
}

#[test]
fn a_step_closes_as_soon_as_every_channel_is_there() {
    let mut m = machine(layout(&["flow", "temp"], 2));
    let steps =
        feed(&mut m, &[at(100, "flow", 1.0), at(100, "temp", 20.0), at(200, "flow", 2.0), at(200, "temp", 21.0)]);
    assert_eq!(windows(&steps), [(200, vec![1.0, 20.0, 2.0, 21.0])]);
}

#[test]
fn several_readings_in_a_step_are_averaged_and_none_is_held() {
    let mut m = machine(layout(&["flow"], 1));
    let steps = feed(&mut m, &[at(110, "flow", 1.0), at(150, "flow", 3.0), at(200, "flow", 5.0), at(400, "flow", 7.0)]);
    assert_eq!(windows(&steps), [(200, vec![3.0]), (300, vec![5.0]), (400, vec![7.0])]);
}

#[test]
fn a_missing_channel_delays_a_step_by_the_lateness_only() {
    let mut m = machine(layout(&["flow", "temp"], 1));
    let first = [at(100, "flow", 1.0), at(100, "temp", 20.0)];
    assert_eq!(feed(&mut m, &first).len(), 1);
    assert_eq!(feed(&mut m, &[at(200, "flow", 2.0), at(300, "flow", 3.0)]).len(), 0);
    assert_eq!(windows(&feed(&mut m, &[at(400, "flow", 4.0)])), [(200, vec![2.0, 20.0])]);
}

#[test]
fn a_silent_channel_goes_stale_and_is_named() {
    let mut m = machine(layout(&["flow", "temp"], 1));
    let mut readings = vec![at(100, "flow", 1.0), at(100, "temp", 20.0)];
    readings.extend((2..30).map(|i| at(i * 100, "flow", i as f64)));
    let steps = feed(&mut m, &readings);
    let last = steps.last().and_then(|s| s.due.clone()).expect("a step");
    let stale = |channel: &str, others| {
        let (reason, quality) = (Reason::InputBad, Quality::Stale);
        Due::NotScored { reason, quality, channel: Some(channel.into()), others }
    };
    assert_eq!(last, stale("temp", 0));
}

#[test]
fn of_several_silent_channels_the_first_is_named_and_the_rest_counted() {
    let mut m = machine(layout(&["flow", "temp", "load"], 1));
    let mut readings = vec![at(100, "flow", 1.0), at(100, "temp", 20.0), at(100, "load", 3.0)];
    readings.extend((2..30).map(|i| at(i * 100, "flow", i as f64)));
    let steps = feed(&mut m, &readings);
    let Some(Some(Due::NotScored { channel, others, .. })) = steps.last().map(|s| s.due.clone()) else {
        panic!("a step that cannot be scored")
    };
    assert_eq!((channel.as_deref(), others), (Some("temp"), 1));
}

#[test]
fn out_of_range_and_not_finite_are_bad() {
    let mut m = machine(layout(&["temp"], 1));
    let steps = feed(&mut m, &[at(100, "temp", 20.0), at(200, "temp", 900.0), at(300, "temp", f64::NAN)]);
    let causes: Vec<(Quality, Cause)> = steps.iter().map(|s| (s.values[0].2, s.values[0].3)).collect();
    let (good, bad) = ((Quality::Good, Cause::None), Quality::Bad);
    assert_eq!(causes, [good, (bad, Cause::OutOfRange), (bad, Cause::NotFinite)]);
    assert_eq!(reasons(&steps), [None, Some(Reason::InputBad), Some(Reason::InputBad)]);
}

/// A thousand readings an hour apart arrive within a second, as after an outage; then the agent is
/// away for a day.
#[test]
fn a_repeat_is_known_however_old_the_reading_is() {
    const HOUR: i64 = 3_600_000;
    let mut m = machine(Layout { rate: HOUR * MS, ..layout(&["flow"], 1) });
    let backlog: Vec<Reading> = (1..=1000).map(|i| at(i * HOUR, "flow", i as f64)).collect();
    let arrival = |i: usize| Time((2000 * HOUR + i as i64) * MS);
    for (i, r) in backlog.iter().enumerate() {
        assert_eq!(m.push(r, arrival(i), false), Taken::Yes);
        while m.pop().is_some() {}
    }
    let (state, tomorrow) = (m.state().clone(), Time((2024 * HOUR) * MS));
    let mut m = Machine::restore("m".into(), Arc::new(m.layout().clone()), state);
    let again: Vec<Taken> = backlog.iter().map(|r| m.push(r, tomorrow, false)).collect();
    assert!(again.iter().all(|t| *t == Taken::Duplicate), "{again:?}");
    assert_eq!(m.push(&at(HOUR + 1, "flow", 1.0), tomorrow, false), Taken::Late, "a straggler is not a repeat");
}

/// What was acked long ago is forgotten, or state would grow with every machine.
#[test]
fn times_are_remembered_for_seconds_of_arrivals() {
    let mut m = machine(layout(&["flow"], 1));
    for i in 1..=1000 {
        let r = at(i * 100, "flow", i as f64);
        assert_eq!(m.push(&r, r.at, false), Taken::Yes);
        while m.pop().is_some() {}
    }
    let now = Time(100_000 * MS);
    assert_eq!(m.push(&at(95_000, "flow", 950.0), now, false), Taken::Duplicate);
    assert_eq!(m.push(&at(85_000, "flow", 850.0), now, false), Taken::Late);
}

/// What a broker sends again can reach back further than any memory.
#[test]
fn a_repeat_beyond_memory_is_known_by_the_brokers_word() {
    let mut m = machine(layout(&["flow"], 1));
    for i in (1..=1000).filter(|i| *i != 950) {
        m.push(&at(i * 100, "flow", i as f64), Time(i * 100 * MS), false);
        while m.pop().is_some() {}
    }
    let now = Time(100_000 * MS);
    assert_eq!(m.push(&at(100, "flow", 1.0), now, true), Taken::Duplicate);
    assert_eq!(m.push(&at(95_000, "flow", 950.0), now, true), Taken::Late, "this one is known not to have come");
}

#[test]
fn a_resting_value_is_stuck() {
    let mut m = machine(Layout { stuck_after: Some(1000 * MS), ..layout(&["flow"], 1) });
    let readings: Vec<_> = (1..20).map(|i| at(i * 100, "flow", if i < 3 { i as f64 } else { 5.0 })).collect();
    let steps = feed(&mut m, &readings);
    assert_eq!(steps[12].values[0].3, Cause::None);
    assert_eq!((steps[14].values[0].2, steps[14].values[0].3), (Quality::Bad, Cause::Stuck));
}

#[test]
fn a_machine_that_is_off_is_not_scored_and_warms_up_again() {
    let running = Condition::parse("speed > 10").expect("a condition");
    let mut m = machine(Layout { running: Some(running), ..layout(&["flow"], 2) });
    let mut readings = Vec::new();
    for i in 1..=6 {
        readings.push(at(i * 100, "speed", if (3..=4).contains(&i) { 0.0 } else { 50.0 }));
        readings.push(at(i * 100, "flow", i as f64));
    }
    let steps = feed(&mut m, &readings);
    let (off, warm) = (Some(Reason::MachineOff), Some(Reason::WarmingUp));
    assert_eq!(reasons(&steps), [warm, None, off, off, warm, None]);
}

#[test]
fn a_long_silence_is_one_gap_not_a_thousand_steps() {
    let mut m = machine(layout(&["flow"], 2));
    let day = 86_400_000;
    let readings = [at(100, "flow", 1.0), at(200, "flow", 2.0), at(day, "flow", 3.0), at(day + 100, "flow", 4.0)];
    let steps = feed(&mut m, &readings);
    assert!(steps.len() < 30, "{} steps", steps.len());
    let gaps: Vec<&Gap> = steps.iter().filter_map(|s| s.gap.as_ref()).collect();
    let expected = Gap { reason: GapReason::NoData, from: Time(200 * MS), to: Time(day * MS), readings: 0 };
    assert_eq!(gaps, [&expected]);
    assert_eq!(windows(&steps).last(), Some(&(day + 100, vec![3.0, 4.0])));
}

#[test]
fn one_wild_clock_makes_nobody_late() {
    let mut m = machine(layout(&["flow", "temp"], 1));
    let mut readings = Vec::new();
    for i in 1..=10 {
        readings.push(at(i * 100, "flow", i as f64));
        readings.push(at(i * 100, "temp", 20.0));
        if i == 5 {
            readings.push(at(45_000, "flow", 99.0));
        }
    }
    let mut m2 = machine(layout(&["flow", "temp"], 1));
    let sane: Vec<_> = readings.iter().filter(|r| r.at < Time(10_000 * MS)).cloned().collect();
    assert_eq!(windows(&feed(&mut m, &readings)), windows(&feed(&mut m2, &sane)));
}

#[test]
fn a_signal_slower_than_the_grid_moves_the_steps_on() {
    let slow = Settings { stale_after: vec![("*".into(), Duration::from_secs(600))], ..settings() };
    let layout = Layout::new(&slow, vec!["flow".into()], 2, 1, Duration::from_secs(1));
    let mut m = machine(layout);
    let each_minute: Vec<Reading> = (1..=6).map(|n| at(n * 60_000, "flow", n as f64)).collect();
    let steps = feed(&mut m, &each_minute);
    let last = windows(&steps).last().cloned();
    assert_eq!(last, Some((360_000, vec![5.0, 6.0])), "judged when it came, not a minute later");
}

#[test]
fn a_wild_clock_is_forgotten_when_the_right_time_goes_on() {
    let mut m = machine(layout(&["flow"], 1));
    feed(&mut m, &[at(100, "flow", 1.0), at(900_000, "flow", 9.0), at(200, "flow", 2.0)]);
    let steps = feed(&mut m, &[at(901_000, "flow", 9.0), at(300, "flow", 3.0)]);
    assert_eq!(windows(&steps), [(300, vec![3.0])], "two wild ones with right ones between them agree on nothing");
}

#[test]
fn far_future_is_refused_but_an_unset_clock_judges_nobody() {
    let mut m = machine(layout(&["flow"], 1));
    let now: Time = "2026-11-22T10:00:00Z".parse().expect("a time");
    let tomorrow = Reading { at: now.plus(Duration::from_secs(86_400)), ..at(0, "flow", 1.0) };
    assert_eq!(m.push(&tomorrow, now, false), Taken::Future);
    assert_eq!(m.push(&tomorrow, Time(0), false), Taken::Yes);
}

#[test]
fn late_readings_are_told_as_a_gap() {
    let mut m = machine(layout(&["flow", "temp"], 1));
    let mut readings: Vec<_> = (1..=4).flat_map(|i| [at(i * 100, "flow", 1.0), at(i * 100, "temp", 1.0)]).collect();
    readings.extend((5..150).map(|i| at(i * 100, "flow", 1.0)));
    readings.insert(20, at(500, "temp", 7.0));
    let steps = feed(&mut m, &readings);
    let gap = steps.iter().find_map(|s| s.gap.clone()).expect("a gap");
    assert_eq!(gap, Gap { reason: GapReason::Late, from: Time(500 * MS), to: Time(500 * MS), readings: 1 });
}

#[test]
fn too_many_signals_are_refused() {
    let mut m = machine(layout(&["flow"], 1));
    let taken = (0..1000).filter(|i| m.push(&at(100, &format!("s{i}"), 1.0), Time(0), false) == Taken::Yes).count();
    assert_eq!(taken, MAX_SIGNALS - 1);
}

#[test]
fn conditions() {
    let value = |s: &str| [("speed", 50.0), ("load", 5.0)].into_iter().find(|(n, _)| *n == s).map(|(_, v)| v);
    let holds = |text: &str| Condition::parse(text).expect(text).holds(&value);
    assert_eq!(holds("speed > 10"), Some(true));
    assert_eq!(holds("speed > 10 and load >= 6"), Some(false));
    assert_eq!(holds("speed < 10 or load == 5 and speed != 3"), Some(true));
    assert_eq!(holds("not (speed < 10 or load > 4)"), Some(false));
    assert_eq!(holds("missing > 1"), None);
    assert_eq!(holds("missing > 1 or speed > 1"), Some(true));
    assert_eq!(holds("speed>-1e3"), Some(true));
    for bad in ["", "speed", "speed >", "speed > x", "speed > 1 load > 2", "(speed > 1", "speed ~ 1", "> 1", "not"] {
        assert!(Condition::parse(bad).is_err(), "{bad}");
    }
    assert!(Condition::parse(&"(".repeat(100_000)).is_err());
    assert_eq!(Condition::parse("a > 1 and b < 2").expect("ok").signals().into_iter().collect::<Vec<_>>(), ["a", "b"]);
}

/// A run of one machine with two channels of different pace.
fn run() -> impl Strategy<Value = Vec<Reading>> {
    prop::collection::vec((0i64..30, -5.0..5.0f64, any::<bool>()), 20..150).prop_map(|points| {
        let mut now = 0;
        let reading = |(gap, value, flow): (i64, f64, bool)| {
            now += gap * 7 + 1;
            at(now, if flow { "flow" } else { "temp" }, value)
        };
        points.into_iter().map(reading).collect()
    })
}

proptest! {
    /// Redelivery repeats messages and swaps neighbours; with a lateness that covers the disorder
    /// the steps are the same.
    #[test]
    fn disorder_within_the_lateness_changes_nothing(readings in run(), swaps in prop::collection::vec(0usize..1000, 0..60)) {
        let patient = Layout { lateness: 3000 * MS, eager: false, stale_after: StaleAfter::new(&[("*".into(), Duration::from_secs(60))], 1), ..layout(&["flow", "temp"], 3) };
        let plain = feed(&mut machine(patient.clone()), &readings);
        let mut shuffled = readings.clone();
        for s in swaps {
            let i = 1 + s % (shuffled.len() - 1);
            // The first reading fixes where the grid begins.
            if i > 1 && (shuffled[i].at.0 - shuffled[i - 1].at.0).abs() < 500 * MS {
                shuffled.swap(i, i - 1);
            }
            let again = shuffled[i].clone();
            shuffled.insert(i + 1, again);
        }
        let found = feed(&mut machine(patient), &shuffled);
        prop_assert_eq!(windows(&plain), windows(&found));
    }

    /// A restart between any two readings, with the state kept, changes nothing.
    #[test]
    fn a_restart_changes_nothing(readings in run(), cut in 0usize..1000) {
        let plain = feed(&mut machine(layout(&["flow", "temp"], 3)), &readings);
        let (before, after) = readings.split_at(cut % readings.len());
        let mut m = machine(layout(&["flow", "temp"], 3));
        let mut steps = feed(&mut m, before);
        let kept = postcard::to_stdvec(m.state()).expect("encoded");
        let state = postcard::from_bytes(&kept).expect("decoded");
        let mut m = Machine::restore("m".into(), Arc::new(layout(&["flow", "temp"], 3)), state);
        steps.extend(feed(&mut m, after));
        prop_assert_eq!(plain, steps);
    }

    /// Whatever comes, a step's time only rises and values are finite.
    #[test]
    fn steps_only_rise(readings in prop::collection::vec((-1_000_000i64..1_000_000, any::<f64>(), 0u8..4), 0..100)) {
        let mut m = machine(layout(&["a", "b"], 2));
        let mut last = Time(i64::MIN);
        for (ms, value, signal) in readings {
            m.push(&at(ms, ["a", "b", "c", "d"][signal as usize], value), Time(ms * MS), false);
            for _ in 0..50 {
                let Some(step) = m.pop() else { break };
                prop_assert!(step.at > last);
                last = step.at;
                prop_assert!(step.values.iter().all(|v| v.1.is_none_or(f64::is_finite)));
            }
        }
    }
}
