//! The light of a machine against everything that can go wrong with what it rests on: each kind of fault that
//! once left it green, and how long it takes until it is not.

use super::*;
use crate::pipeline::GapReason;
use crate::types::{Clock, Origin};

const S: i64 = 1_000_000_000;
/// 2026-11-22T10:00:00Z: from a set clock on, readings from the future are refused.
const NOON: i64 = 1_795_341_600 * S;

/// A plant of one machine beside the engine, in virtual time: 10 readings a second of each channel, and a tick
/// each half second as the feed gives it.
struct Plant {
    engine: Engine,
    now: i64,
    /// Device time minus the gateway's.
    offset: i64,
    /// The device's clock stands here.
    frozen: Option<i64>,
    source: &'static str,
    speaks: bool,
    fault: bool,
    records: Vec<Record>,
    tally: BTreeMap<&'static str, u64>,
}

impl Plant {
    fn new() -> Plant {
        Plant::with(engine())
    }

    fn with(engine: Engine) -> Plant {
        let mut plant = Plant {
            engine,
            now: NOON,
            offset: 0,
            frozen: None,
            source: "shop",
            speaks: true,
            fault: false,
            records: Vec::new(),
            tally: BTreeMap::new(),
        };
        plant.link("shop", true);
        plant
    }

    fn step(&mut self, inputs: Vec<Input>) -> Outcome {
        let out = self.engine.step(&Group { inputs });
        self.records.extend(out.records.iter().cloned());
        out.tally.dropped.iter().for_each(|(reason, n)| *self.tally.entry(reason).or_default() += n);
        out
    }

    fn link(&mut self, source: &str, up: bool) {
        let link = Link { source: source.into(), at: Time(self.now), up, detail: "for the test".into() };
        self.step(vec![Input::Link(link)]);
    }

    fn readings(&self) -> Vec<Reading> {
        let at = Time(self.frozen.unwrap_or(self.now + self.offset));
        let value = |i: usize, c: &crate::model::bundle::Channel| {
            let wobble = ((self.now / (100 * MS) * 7 + i as i64) % 13) as f64 / 13.0 - 0.5;
            c.mean + c.std * (0.05 * wobble + if self.fault && i == 3 { 6.0 } else { 0.0 })
        };
        let channels = pump_model().manifest().channels.clone();
        let reading = |(i, c)| Reading::good("pump-1".into(), Name::from(c_name(c)), at, value(i, c));
        channels.iter().enumerate().map(reading).collect()
    }

    /// So many seconds go by.
    fn run(&mut self, seconds: f64) {
        let until = self.now + (seconds * 1e9) as i64;
        while self.now < until {
            self.now += 100 * MS;
            if self.speaks {
                let readings = self.readings();
                self.step(vec![Input::From(self.source.into()), Input::Readings(Time(self.now), readings)]);
            }
            if self.now % (500 * MS) == 0 && self.engine.wants_tick(Time(self.now)) {
                self.step(vec![Input::Tick(Time(self.now))]);
                assert!(!self.engine.wants_tick(Time(self.now)), "told once, it knows");
            }
        }
    }

    /// Seconds until the light is of this state; it must come within a minute.
    fn until(&mut self, state: MachineState) -> f64 {
        let from = self.now;
        while self.light() != state {
            assert!(self.now < from + 60 * S, "not {state:?} after a minute: {:?} {}", self.light(), self.why());
            self.run(0.1);
        }
        (self.now - from) as f64 / 1e9
    }

    fn unit(&self) -> &Unit {
        self.engine.units.iter().find(|u| &**u.pipe.name() == "pump-1").expect("the pump")
    }

    fn light(&self) -> MachineState {
        self.unit().state.light
    }

    fn why(&self) -> &str {
        &self.unit().state.why
    }

    fn gaps(&self, reason: GapReason) -> usize {
        let word = format!("\"reason\":\"{}\"", reason.as_str());
        self.records.iter().filter(|r| r.kind == crate::types::Kind::Gap && r.data.contains(&word)).count()
    }

    fn input_alarms(&self) -> usize {
        let is = |r: &&Record| r.kind == crate::types::Kind::Alarm && r.data.contains("\"condition\":\"input\"");
        self.records.iter().filter(is).filter(|r| r.data.contains("\"transition\":\"raised\"")).count()
    }
}

fn c_name(c: &crate::model::bundle::Channel) -> &str {
    c.name.as_str()
}

#[test]
fn a_machine_warms_up_white_and_is_green_once_judged() {
    let mut plant = Plant::new();
    plant.run(0.1);
    assert_eq!((plant.light(), plant.why()), (MachineState::White, "warming up"));
    plant.until(MachineState::Green);
    plant.run(60.0);
    assert_eq!((plant.light(), plant.why()), (MachineState::Green, "normal"));
}

#[test]
fn silence_is_amber_and_calls_somebody_and_ends_when_it_speaks() {
    let mut plant = Plant::new();
    plant.run(20.0);
    plant.speaks = false;
    let took = plant.until(MachineState::Amber);
    assert!(took <= 4.0, "{took} s");
    plant.run(60.0);
    assert_eq!(plant.light(), MachineState::Amber);
    assert!(plant.why().starts_with("no value of speed, the last usable value came at 2026-"), "{}", plant.why());
    assert_eq!(plant.input_alarms(), 1);
    plant.speaks = true;
    plant.until(MachineState::Green);
}

#[test]
fn a_source_that_is_down_is_named_and_calls_nobody_for_each_machine() {
    let mut plant = Plant::new();
    plant.run(20.0);
    (plant.speaks, plant.now) = (false, plant.now + 100 * MS);
    plant.link("shop", false);
    let took = plant.until(MachineState::Amber);
    assert!(took <= 4.0, "{took} s");
    plant.run(60.0);
    assert!(plant.why().starts_with("source shop is down since"), "{}", plant.why());
    assert_eq!(plant.input_alarms(), 0, "what a broken link holds back will still come");
    plant.link("shop", true);
    plant.run(1.0);
    assert_eq!(plant.input_alarms(), 0, "it has just come back");
    plant.run(5.0);
    assert_eq!(plant.input_alarms(), 1);
}

#[test]
fn another_source_that_is_down_hides_no_silence() {
    let mut plant = Plant::new();
    plant.link("old", false);
    plant.run(20.0);
    plant.speaks = false;
    assert!(plant.until(MachineState::Amber) <= 4.0);
    plant.run(5.0);
    assert_eq!(plant.input_alarms(), 1);
}

#[test]
fn red_stays_red_when_data_stop_and_says_so() {
    let mut plant = Plant::new();
    plant.run(20.0);
    plant.fault = true;
    plant.until(MachineState::Red);
    plant.speaks = false;
    plant.run(120.0);
    assert_eq!(plant.light(), MachineState::Red);
    assert!(plant.why().contains("; no value of speed, the last usable value came at"), "{}", plant.why());
}

/// Each way in which a device's clock can step.
#[test]
fn a_clock_that_steps_is_not_green_while_refused_and_is_followed() {
    for (offset, reason) in [(-3600 * S, "late"), (-50 * S, "late"), (120 * S, "future"), (3600 * S, "future")] {
        let mut plant = Plant::new();
        plant.run(20.0);
        plant.offset = offset;
        let took = plant.until(MachineState::White);
        assert!(took <= 4.0, "{offset}: cut after {took} s");
        assert!(plant.tally[reason] > 0, "{:?}", plant.tally);
        assert_eq!(plant.gaps(GapReason::Clock), 1, "told once for all its signals");
        plant.until(MachineState::Green);
        plant.run(60.0);
        assert_eq!(plant.light(), MachineState::Green);
        plant.fault = true;
        plant.until(MachineState::Red);
        plant.fault = false;
        plant.until(MachineState::Amber);
        plant.offset = 0;
        plant.run(60.0);
        assert_eq!(plant.gaps(GapReason::Clock), 2, "and put right again");
    }
}

#[test]
fn a_clock_that_stands_still_is_replaced_by_arrival() {
    let mut plant = Plant::new();
    plant.run(20.0);
    plant.frozen = Some(plant.now);
    plant.run(4.0);
    assert!(plant.tally["duplicate"] > 0, "{:?}", plant.tally);
    assert_eq!(plant.gaps(GapReason::Clock), 1, "told once for all its signals");
    plant.fault = true;
    plant.until(MachineState::Red);
}

#[test]
fn where_the_clock_is_not_followed_the_machine_is_amber_and_says_by_how_much() {
    let mut plant = Plant::new();
    plant.run(20.0);
    plant.speaks = false;
    for _ in 0..300 {
        plant.now += 100 * MS;
        plant.offset = -3600 * S;
        let readings = plant.readings().into_iter().map(|r| r.of(Origin::default(), Clock::Device)).collect();
        plant.step(vec![Input::From("shop".into()), Input::Readings(Time(plant.now), readings)]);
        plant.run(0.0);
        if plant.now % (500 * MS) == 0 && plant.engine.wants_tick(Time(plant.now)) {
            plant.step(vec![Input::Tick(Time(plant.now))]);
        }
    }
    assert_eq!(plant.light(), MachineState::Amber);
    assert!(plant.why().contains("the device's clock is 1 h 0 min behind"), "{}", plant.why());
    assert_eq!(plant.input_alarms(), 1);
    assert_eq!(plant.engine.wrong_clocks().next().map(|(m, _, by)| (&**m, by)), Some(("pump-1", -3600 * S)));
}

#[test]
fn a_machine_without_a_model_is_white_and_amber_when_it_cannot_be_read() {
    let mut bare = engine();
    bare.blocks[0].model = None;
    bare.blocks[0].layout = Arc::new(Layout { channels: Vec::new(), ..(*bare.blocks[0].layout).clone() });
    let mut plant = Plant::with(bare);
    plant.run(20.0);
    assert_eq!((plant.light(), plant.why()), (MachineState::White, "watched, no model is bound"));
    plant.speaks = false;
    assert!(plant.until(MachineState::Amber) <= 4.0);
    plant.speaks = true;
    plant.until(MachineState::White);
    let bad = |n: Name, at| Reading::bad("pump-1".into(), n, at, crate::types::Cause::Timeout);
    plant.speaks = false;
    for _ in 0..20 {
        plant.now += 100 * MS;
        let readings = plant.readings().into_iter().map(|r| bad(r.signal, r.at)).collect();
        plant.step(vec![Input::From("shop".into()), Input::Readings(Time(plant.now), readings)]);
    }
    assert_eq!(plant.light(), MachineState::Amber, "{}", plant.why());
}

#[test]
fn a_machine_is_off_only_as_long_as_fresh_data_say_so() {
    let mut stopped = engine();
    let running = pipeline::mode::Condition::parse("speed > 100000").expect("a condition");
    stopped.blocks[0].layout = Arc::new(Layout { running: Some(running), ..(*stopped.blocks[0].layout).clone() });
    let mut plant = Plant::with(stopped);
    plant.run(20.0);
    assert_eq!((plant.light(), plant.why()), (MachineState::Off, "off"));
    plant.speaks = false;
    assert!(plant.until(MachineState::Amber) <= 4.0);
    assert!(plant.why().starts_with("not known whether it runs: no value of"), "{}", plant.why());
}

#[test]
fn the_gateways_own_clock_set_back_or_ahead_makes_nothing_green_and_no_alarm() {
    for by in [-3600 * S, 3600 * S] {
        let mut plant = Plant::new();
        plant.run(20.0);
        plant.speaks = false;
        plant.now += by;
        plant.step(vec![Input::GatewayClock(Time(plant.now), by)]);
        assert_eq!(plant.input_alarms(), 0);
        assert!(plant.until(MachineState::Amber) <= 4.0, "ages stay what they are");
        plant.run(60.0);
        assert_eq!(plant.light(), MachineState::Amber);
        assert_eq!(plant.input_alarms(), 1);
    }
}

#[test]
fn one_signal_has_one_origin_until_that_is_silent() {
    let mut plant = Plant::new();
    plant.run(20.0);
    let value = |plant: &Plant| {
        let values: Vec<f64> = plant.unit().pipe.values(Time(plant.now)).filter_map(|(_, v, _)| v).collect();
        values[0]
    };
    let of = |n: u32, plant: &Plant, value: f64| -> Vec<Reading> {
        let mine = |r: Reading| Reading { origin: Origin(n), value: r.value + value, ..r };
        plant.readings().into_iter().map(mine).collect()
    };
    plant.speaks = false;
    for _ in 0..50 {
        plant.now += 100 * MS;
        for (n, more) in [(1, 0.0), (2, 1e6)] {
            let readings = of(n, &plant, more);
            plant.step(vec![Input::From("shop".into()), Input::Readings(Time(plant.now), readings)]);
        }
    }
    assert_eq!(plant.tally["other_origin"], 50 * 8);
    assert!(value(&plant) < 1e5, "the first origin's");
    for _ in 0..60 {
        plant.now += 100 * MS;
        let readings = of(2, &plant, 1e6);
        plant.step(vec![Input::From("shop".into()), Input::Readings(Time(plant.now), readings)]);
    }
    assert!(value(&plant) > 1e5, "the second takes over once the first is silent");
}

#[test]
fn another_grid_goes_on_after_the_last_step_and_never_loops() {
    for rate in [1, 7, 50, 100, 333, 500, 1000, 60_000] {
        let mut plant = Plant::new();
        plant.run(20.0);
        let mut other = engine();
        other.blocks[0].layout = Arc::new(Layout { rate: rate * MS, ..(*other.blocks[0].layout).clone() });
        plant.engine.reconfigure(other.blocks).expect("taken over");
        let before = plant.records.len();
        plant.run(if rate > 1000 { 10.0 } else { 60.0 });
        let ends: Vec<Time> = plant.records[before..].iter().map(|r| r.at).collect();
        assert!(ends.windows(2).all(|w| w[0] <= w[1]), "{rate}");
        assert!(plant.tally.get("late").is_none_or(|n| *n == 0), "{rate}: {:?}", plant.tally);
        assert_ne!(plant.light(), MachineState::Amber, "{rate}: {}", plant.why());
    }
}
