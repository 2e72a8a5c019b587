//! The plant: machines stepped together at a fixed rate, with the faults that are due.
//! Pure and deterministic: the same seed, layout and faults give the same values.

use std::sync::Arc;

use fastrand::Rng;

use crate::types::Name;

use super::faults::Stress;
use super::motor::{self, Motor};
use super::press::{self, Press};
use super::pump::{self, Pump};

pub use super::faults::{Class, Fault, FaultKind};

/// Plant time between two steps, seconds.
pub const DT: f64 = 0.1;

/// A machine does not begin a stop this long (seconds) before a fault begins on it, so that every
/// fault finds it running: the longest stop and the run-up after it.
const NO_STOP_BEFORE: f64 = 22.0;
/// Nor this long after one ended.
const NO_STOP_AFTER: f64 = 4.0;

/// One signal of a kind of machine.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Signal {
    /// snake_case.
    pub name: &'static str,
    /// As written in model bundles.
    pub unit: &'static str,
    /// The lowest value the sensor gives, in `unit`.
    pub low: f64,
    /// The highest.
    pub high: f64,
}

impl Signal {
    /// A row of a signal table.
    pub const fn new(name: &'static str, unit: &'static str, low: f64, high: f64) -> Signal {
        Signal { name, unit, low, high }
    }
}

/// The kinds of machine there are.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum MachineKind {
    /// A centrifugal pump in a loop.
    Pump,
    /// An inverter-fed motor with a watched bearing.
    Motor,
    /// A hydraulic press.
    Press,
}

impl MachineKind {
    /// All of them.
    pub const ALL: [MachineKind; 3] = [MachineKind::Pump, MachineKind::Motor, MachineKind::Press];

    /// The word machine ids begin with.
    pub fn as_str(self) -> &'static str {
        match self {
            MachineKind::Pump => "pump",
            MachineKind::Motor => "motor",
            MachineKind::Press => "press",
        }
    }

    /// What such a machine measures, in the order of [`MachineStep::values`].
    pub fn signals(self) -> &'static [Signal] {
        match self {
            MachineKind::Pump => &pump::SIGNALS,
            MachineKind::Motor => &motor::SIGNALS,
            MachineKind::Press => &press::SIGNALS,
        }
    }

    /// The signal and the value above which such a machine counts as running.
    pub fn running(self) -> (&'static str, f64) {
        match self {
            MachineKind::Pump => ("speed", 1200.0),
            MachineKind::Motor => ("speed", 600.0),
            MachineKind::Press => ("motor_current", 12.0),
        }
    }
}

/// How a machine is connected: device faults strike only those behind a PLC.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    /// Publishes by itself.
    Mqtt,
    /// Read from a PLC's registers.
    Modbus,
}

/// One machine of a [`Layout`].
#[derive(Clone, Debug, PartialEq)]
pub struct MachineSpec {
    /// Its id, such as `pump-1`.
    pub name: Name,
    /// What it is.
    pub kind: MachineKind,
    /// How it is connected.
    pub link: Link,
}

/// Which machines the factory has.
#[derive(Clone, Debug, PartialEq)]
pub struct Layout {
    /// In the order of [`Step::machines`].
    pub machines: Vec<MachineSpec>,
}

impl Layout {
    /// `pump-1…` and `press-1…` on MQTT, `motor-1…` on Modbus.
    pub fn new(pumps: usize, motors: usize, presses: usize) -> Layout {
        let wanted = [
            (MachineKind::Pump, Link::Mqtt, pumps),
            (MachineKind::Motor, Link::Modbus, motors),
            (MachineKind::Press, Link::Mqtt, presses),
        ];
        let machines = wanted.into_iter().flat_map(|(kind, link, count)| {
            (1..=count).map(move |i| {
                let name: Name = Arc::from(format!("{}-{i}", kind.as_str()));
                MachineSpec { name, kind, link }
            })
        });
        Layout { machines: machines.collect() }
    }

    /// The demo's factory: three pumps, two motors, a press.
    pub fn demo() -> Layout {
        Layout::new(3, 2, 1)
    }
}

/// One machine at one step.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineStep {
    /// Its id.
    pub machine: Name,
    /// What it is.
    pub kind: MachineKind,
    /// A value per signal of the kind; `None` where none arrives.
    pub values: Vec<(&'static str, Option<f64>)>,
    /// The machine's device does not answer now.
    pub device_timeout: bool,
    /// The machine's device answers with an exception now.
    pub device_exception: bool,
}

/// The whole plant at one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Plant time, seconds since the start.
    pub time: f64,
    /// As in the layout.
    pub machines: Vec<MachineStep>,
    /// Indices into [`Plant::faults`] of the faults active now.
    pub active: Vec<usize>,
}

/// What a machine's physics is told at each step.
#[derive(Copy, Clone, Debug)]
pub(super) struct Now {
    /// It may begin a stop.
    pub may_stop: bool,
    /// How hard each process fault strikes.
    pub stress: Stress,
}

#[derive(Clone, Debug)]
enum Body {
    Pump(Pump),
    Motor(Motor),
    Press(Press),
}

#[derive(Clone, Debug)]
struct Machine {
    spec: MachineSpec,
    body: Body,
    rng: Rng,
    /// What each sensor showed last while it was well.
    last: Vec<f64>,
}

/// A factory in motion.
#[derive(Clone, Debug)]
pub struct Plant {
    ticks: u64,
    machines: Vec<Machine>,
    faults: Vec<Fault>,
}

impl Plant {
    /// A plant without faults. A machine's values depend on `seed` and its place in the layout only.
    pub fn new(seed: u64, layout: &Layout) -> Plant {
        Plant::with_faults(seed, layout, Vec::new())
    }

    /// A plant with faults, such as [`super::faults::schedule`] gives.
    pub fn with_faults(seed: u64, layout: &Layout, faults: Vec<Fault>) -> Plant {
        let machines = layout.machines.iter().enumerate().map(|(i, spec)| {
            let mut rng = Rng::with_seed(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(i as u64));
            // Neighbouring seeds give kindred first draws; a fork starts far off.
            let mut rng = rng.fork();
            let body = match spec.kind {
                MachineKind::Pump => Body::Pump(Pump::new(&mut rng)),
                MachineKind::Motor => Body::Motor(Motor::new(&mut rng)),
                MachineKind::Press => Body::Press(Press::new(&mut rng)),
            };
            Machine { spec: spec.clone(), body, rng, last: Vec::new() }
        });
        Plant { ticks: 0, machines: machines.collect(), faults }
    }

    /// What is scheduled to go wrong.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }

    /// Plant time of the next step, seconds.
    pub fn time(&self) -> f64 {
        // Counted in whole tenths: no error adds up over a long run.
        self.ticks as f64 / 10.0
    }

    /// What the plant shows now; then time moves on by [`DT`].
    pub fn step(&mut self) -> Step {
        let time = self.time();
        self.ticks += 1;
        let faults = &self.faults;
        let machines = self.machines.iter_mut().map(|machine| machine.step(time, faults)).collect();
        let active = (0..faults.len()).filter(|&i| faults[i].is_active(time)).collect();
        Step { time, machines, active }
    }
}

impl Machine {
    fn step(&mut self, time: f64, faults: &[Fault]) -> MachineStep {
        let mine = || faults.iter().filter(|fault| fault.machine == self.spec.name);
        let may_stop = mine().all(|f| time + NO_STOP_BEFORE < f.start || time > f.end() + NO_STOP_AFTER);
        let now = Now { may_stop, stress: Stress::of(mine(), time) };
        let seen: Vec<f64> = match &mut self.body {
            Body::Pump(pump) => pump.step(&mut self.rng, &now).to_vec(),
            Body::Motor(motor) => motor.step(&mut self.rng, &now).to_vec(),
            Body::Press(press) => press.step(&mut self.rng, &now).to_vec(),
        };
        let signals = self.spec.kind.signals();
        if self.last.is_empty() {
            self.last = seen.clone();
        }
        let mut step = MachineStep {
            machine: self.spec.name.clone(),
            kind: self.spec.kind,
            values: Vec::with_capacity(signals.len()),
            device_timeout: false,
            device_exception: false,
        };
        let active: Vec<&Fault> = faults.iter().filter(|f| f.machine == self.spec.name && f.is_active(time)).collect();
        for (i, signal) in signals.iter().enumerate() {
            let on_this = |kind| active.iter().any(|f| f.kind == kind && f.signal == Some(signal.name));
            if !on_this(FaultKind::SensorStuck) {
                self.last[i] = seen[i].clamp(signal.low, signal.high);
            }
            let value = (!on_this(FaultKind::SensorDropout)).then_some(self.last[i]);
            step.values.push((signal.name, value));
        }
        step.device_timeout = active.iter().any(|f| f.kind == FaultKind::DeviceTimeout);
        step.device_exception = active.iter().any(|f| f.kind == FaultKind::DeviceException);
        step
    }
}
