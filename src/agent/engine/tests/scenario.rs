//! Random faults of sources, clocks, rates, payloads, reloads and kills in virtual time, against a simulator that
//! knows the truth. Checked each second: green implies judged within the bound, of usable data, and normal.
//!
//! `ANDON_SCENARIO_HOURS` sets how many virtual hours are run, `ANDON_SCENARIO_SEED` repeats one scenario.

use super::*;
use crate::types::{Cause, Clock, Origin};

const S: i64 = 1_000_000_000;
const NOON: i64 = 1_795_341_600 * S;
/// Virtual seconds of one scenario.
const SECONDS: i64 = 3600;
const SOURCES: [&str; 2] = ["shop", "plc"];
/// Grids (ms) that machines have and reloads choose from.
const RATES: [i64; 5] = [1_000, 2_000, 1_000, 500, 5_000];

/// One machine as the plant knows it.
struct Device {
    name: Name,
    source: usize,
    /// Readings come this often (ms).
    pace: i64,
    speaks: bool,
    /// Channels that do not speak.
    mute: [bool; 8],
    /// Channels that are marked bad, or are out of range.
    bad: [bool; 8],
    offset: i64,
    frozen: Option<i64>,
    clock: Clock,
    /// Another device sends under the same names.
    rival: bool,
    anomalous: bool,
    /// When a usable value of each channel was last delivered.
    usable: [i64; 8],
    /// The last verdict: when, and whether it was normal.
    judged: Option<(i64, bool)>,
}

struct Scenario {
    rng: fastrand::Rng,
    engine: Engine,
    now: i64,
    /// Gateway time minus true time.
    set: i64,
    devices: Vec<Device>,
    up: [bool; 2],
    /// What a source that is down holds back, if it does.
    held: Vec<(usize, Vec<Reading>)>,
    keeps: bool,
    rate: i64,
    model: bool,
    /// For a kill: the last snapshot and the groups since.
    kept: Vec<u8>,
    since: Vec<Group>,
    greens: u64,
    seconds: u64,
}

fn blocks(rate_ms: i64, model: bool) -> Vec<Block> {
    let mut blocks = engine().blocks;
    let settings = Settings {
        rate: Some(Duration::from_millis(rate_ms as u64)),
        stale_after: Vec::new(),
        lateness: None,
        running: None,
        ranges: vec![("speed".into(), [-1e9, 1e9])],
        stuck_after: None,
    };
    let m = pump_model();
    let (channels, steps) = if model { (m.channel_names().to_vec(), m.manifest().steps) } else { (Vec::new(), 1) };
    let stride = if model { m.manifest().stride } else { 1 };
    blocks[0].layout = Arc::new(Layout::new(&settings, channels, steps, stride, Duration::from_secs(1)));
    blocks[0].model = model.then_some(m);
    blocks
}

impl Scenario {
    fn new(seed: u64) -> Scenario {
        let mut rng = fastrand::Rng::with_seed(seed);
        let rate = RATES[rng.usize(..RATES.len())];
        let device = |n: usize, rng: &mut fastrand::Rng| Device {
            name: format!("pump-{n}").as_str().into(),
            source: n % 2,
            pace: rate * [1, 1, 2][rng.usize(..3)],
            speaks: true,
            mute: [false; 8],
            bad: [false; 8],
            offset: 0,
            frozen: None,
            clock: [Clock::Follow, Clock::Follow, Clock::Device][rng.usize(..3)],
            rival: false,
            anomalous: false,
            usable: [i64::MIN / 2; 8],
            judged: None,
        };
        let devices = (0..3).map(|n| device(n, &mut rng)).collect();
        let mut s = Scenario {
            rng,
            engine: Engine::new(Recorder::new("site", "gw"), blocks(rate, true), 8),
            now: NOON,
            set: 0,
            devices,
            up: [true; 2],
            held: Vec::new(),
            keeps: false,
            rate,
            model: true,
            kept: Vec::new(),
            since: Vec::new(),
            greens: 0,
            seconds: 0,
        };
        s.kept = s.engine.snapshot();
        (0..2).for_each(|i| s.link(i));
        s
    }

    fn wall(&self) -> Time {
        Time(self.now + self.set)
    }

    fn step(&mut self, inputs: Vec<Input>) {
        let group = Group { inputs };
        let out = self.engine.step(&group);
        self.since.push(group);
        for live in out.live {
            let Live::Verdict(v, _) = live else { continue };
            let normal = matches!(v.reason, Reason::NoAnomalyDetected | Reason::Uncertain);
            let now = self.now;
            if let Some(d) = self.devices.iter_mut().find(|d| d.name == v.machine) {
                d.judged = Some((now, normal));
            }
        }
    }

    fn link(&mut self, i: usize) {
        let link = Link { source: SOURCES[i].into(), at: self.wall(), up: self.up[i], detail: "test".into() };
        self.step(vec![Input::Link(link)]);
    }

    fn readings(&mut self, i: usize) -> Vec<Reading> {
        let model = pump_model();
        let channels = &model.manifest().channels;
        let d = &self.devices[i];
        // Devices' clocks are true but for their faults; the gateway's own may be set.
        let at = Time(d.frozen.unwrap_or(self.now + d.offset));
        let mut out = Vec::new();
        for (c, channel) in channels.iter().enumerate().filter(|(c, _)| !d.mute[*c]) {
            let wobble = self.rng.f64() - 0.5;
            let value = channel.mean + channel.std * (0.05 * wobble + if d.anomalous && c == 3 { 8.0 } else { 0.0 });
            let signal: Name = channel.name.as_str().into();
            let own = Reading::good(d.name.clone(), signal, at, value).of(Origin(1), d.clock);
            if d.rival {
                out.push(Reading { value: value * 100.0, origin: Origin(2), ..own.clone() });
            }
            out.push(match (d.bad[c], c) {
                (false, _) => own,
                (true, 0) => Reading { value: 1e12, ..own },
                (true, 1) => Reading { value: f64::NAN, ..own },
                (true, _) => Reading { quality: Quality::Bad, cause: Cause::Timeout, ..own },
            });
        }
        out
    }

    fn deliver(&mut self, source: usize, readings: Vec<Reading>, again: bool) {
        let mut inputs = if again { vec![Input::Again] } else { Vec::new() };
        inputs.extend([Input::From(SOURCES[source].into()), Input::Readings(self.wall(), readings)]);
        self.step(inputs);
    }

    fn speak(&mut self, i: usize) {
        let readings = self.readings(i);
        let source = self.devices[i].source;
        if !self.up[source] {
            if self.keeps && self.held.len() < 5_000 {
                self.held.push((source, readings));
            }
            return;
        }
        self.note_usable(i, &readings);
        let again = self.rng.u8(..) < 3;
        let twice = (self.rng.u8(..) < 8).then(|| readings.clone());
        self.deliver(source, readings, again);
        if let Some(readings) = twice {
            self.deliver(source, readings, true);
        }
    }

    /// What of delivered readings is usable, as the plant knows it.
    fn note_usable(&mut self, i: usize, readings: &[Reading]) {
        let model = pump_model();
        let is_usable = |r: &&Reading| r.origin == Origin(1) && r.quality != Quality::Bad && r.value.abs() < 1e11;
        for r in readings.iter().filter(is_usable) {
            let place = model.manifest().channels.iter().position(|c| *c.name == *r.signal).expect("a channel");
            self.devices[i].usable[place] = self.now;
        }
    }

    fn kill(&mut self) {
        self.engine = Engine::new(Recorder::new("site", "gw"), blocks(self.rate, self.model), 8);
        self.engine.restore(&self.kept).expect("restored");
        for group in &self.since {
            self.engine.step(group);
        }
        for source in SOURCES {
            let link = Link { source: source.into(), at: self.wall(), up: false, detail: "started".into() };
            self.step(vec![Input::Link(link)]);
        }
        self.step(vec![Input::Tick(self.wall())]);
        (0..2).for_each(|i| self.link(i));
    }

    fn snapshot(&mut self) {
        (self.kept, self.since) = (self.engine.snapshot(), Vec::new());
    }

    /// One fault, or the end of one.
    fn fault(&mut self) {
        let i = self.rng.usize(..self.devices.len());
        let c = self.rng.usize(..8);
        let (kind, now) = (self.rng.u8(..24), self.now);
        let steps = [-3600 * S, -50 * S, 120 * S, 40 * S, 3600 * S, -3 * S, 0, 0, 0];
        let step = steps[self.rng.usize(..steps.len())];
        let d = &mut self.devices[i];
        match kind {
            0 => d.speaks = !d.speaks,
            1 => d.mute[c] = !d.mute[c],
            2 => d.bad[c] = !d.bad[c],
            3 | 4 => d.offset = step,
            5 => d.frozen = if d.frozen.is_some() { None } else { Some(now) },
            6 => d.rival = !d.rival,
            7 => d.anomalous = !d.anomalous,
            8 | 9 => self.toggle_source(c % 2),
            10 => self.reload(),
            11 => self.kill(),
            12 => self.snapshot(),
            13 => self.set_gateway(step),
            _ => {
                *d = Device {
                    speaks: true,
                    mute: [false; 8],
                    bad: [false; 8],
                    offset: 0,
                    frozen: None,
                    rival: false,
                    anomalous: false,
                    name: d.name.clone(),
                    judged: d.judged,
                    ..*d
                }
            }
        }
    }

    fn toggle_source(&mut self, i: usize) {
        self.up[i] = !self.up[i];
        self.link(i);
        self.keeps = self.rng.bool();
        if self.up[i] {
            let (mine, others) = std::mem::take(&mut self.held).into_iter().partition(|(s, _)| *s == i);
            self.held = others;
            let mine: Vec<(usize, Vec<Reading>)> = mine;
            for (source, readings) in mine {
                let of = readings.first().map(|r| r.machine.clone());
                if let Some(i) = self.devices.iter().position(|d| Some(&d.name) == of.as_ref()) {
                    self.note_usable(i, &readings);
                }
                self.deliver(source, readings, false);
            }
        }
    }

    fn reload(&mut self) {
        self.rate = RATES[self.rng.usize(..RATES.len())];
        self.model = self.rng.u8(..4) > 0;
        self.engine.reconfigure(blocks(self.rate, self.model)).expect("taken over");
        self.snapshot();
        self.step(vec![Input::Tick(self.wall())]);
    }

    fn set_gateway(&mut self, by: i64) {
        if by.abs() > 200 * S {
            return;
        }
        let old = std::mem::replace(&mut self.set, by);
        if old != by {
            self.step(vec![Input::GatewayClock(self.wall(), by - old)]);
        }
    }

    fn run(&mut self) {
        let until = self.now + SECONDS * S;
        while self.now < until {
            self.now += 500 * MS;
            for i in 0..self.devices.len() {
                if self.devices[i].speaks && (self.now / MS) % self.devices[i].pace == 0 {
                    self.speak(i);
                }
            }
            let wall = self.wall();
            if self.engine.wants_tick(wall) {
                self.step(vec![Input::Tick(wall)]);
            }
            if self.rng.u16(..) < 200 {
                self.fault();
            }
            if self.now % S == 0 {
                self.check();
            }
        }
    }

    /// Green implies judged within the bound, of usable data of each channel, and normal.
    fn check(&mut self) {
        for d in &self.devices {
            self.seconds += 1;
            let Some(unit) = self.engine.units.iter().find(|u| u.pipe.name() == &d.name) else { continue };
            if unit.state.light != MachineState::Green {
                continue;
            }
            self.greens += 1;
            let at = |what: &str| {
                format!(
                    "{} (pace {} ms, grid {} ms) is green at {} s: {what}",
                    d.name,
                    d.pace,
                    self.rate,
                    (self.now - NOON) / S
                )
            };
            assert!(self.model, "{}", at("no model is bound"));
            assert!(!unit.state.anomaly.is_active(), "{}", at("an alarm is active"));
            let (judged, normal) = d.judged.expect("judged");
            assert!(normal, "{}", at("the last verdict is not normal"));
            // The documented bound, with the plant's own pace in place of what was learnt of it; a fault that
            // began within it may have slowed the pace by its clip.
            let stride = pump_model().manifest().stride as i64;
            let pace = (self.rate * stride).max(d.pace) * MS;
            let lateness = (2 * self.rate).max(200) * MS;
            let bound = lateness + 4 * pace + 2 * S;
            assert!(self.now - judged <= bound, "{}", at(&format!("judged {} ms ago", (self.now - judged) / MS)));
            let silence = (8 * d.pace * MS).max(5 * self.rate * MS).max(2 * S) * 2 + S;
            for (c, usable) in d.usable.iter().enumerate() {
                let age = self.now - usable;
                assert!(age <= silence, "{}", at(&format!("channel {c} usable {} s ago", age / S)));
            }
        }
    }
}

#[test]
fn green_implies_judged_just_now_and_normal() {
    let hours: u64 = std::env::var("ANDON_SCENARIO_HOURS").ok().and_then(|h| h.parse().ok()).unwrap_or(12);
    let only: Option<u64> = std::env::var("ANDON_SCENARIO_SEED").ok().and_then(|s| s.parse().ok());
    let first = only.unwrap_or(1);
    let last = only.unwrap_or(hours);
    let (mut greens, mut seconds) = (0, 0);
    for seed in first..=last {
        let mut scenario = Scenario::new(seed);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| scenario.run()));
        if let Err(cause) = run {
            eprintln!("ANDON_SCENARIO_SEED={seed}");
            std::panic::resume_unwind(cause);
        }
        greens += scenario.greens;
        seconds += scenario.seconds;
    }
    println!("seeds {first} to {last}: {seconds} machine seconds, {greens} of them green");
    assert!(only.is_some() || greens * 10 > seconds, "green is rare: {greens} of {seconds}; the test says little");
}
