//! What can go wrong in the plant, and the schedule by which it does.

use fastrand::Rng;

use crate::types::Name;

use super::noise::between;
use super::plant::{Layout, Link, MachineKind, MachineSpec};

/// Plant time without any fault at the start of a schedule, seconds.
pub const WARM_UP: f64 = 10.0;
/// Shortest time between two faults of one machine, seconds: a window and an alarm's off-delay.
pub const GAP: f64 = 6.0;
/// Plant time after the last fault, seconds, so that it is seen to clear.
pub const TAIL: f64 = 2.0;
/// A schedule holds every kind once per this many seconds.
const ROUND: f64 = 90.0;
/// Process faults reach their full severity in this time, seconds.
const ONSET: f64 = 1.0;

/// Where a fault sits.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// In the machine: a model should tell.
    Process,
    /// In a sensor: data quality should tell.
    Instrument,
    /// In the PLC or the line to it: the source should tell.
    Device,
}

/// What goes wrong.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// Pump: vapour at the inlet; less lift, low suction pressure, much vibration.
    Cavitation,
    /// Pump: the valve is shut further than it reports; little flow, high pressure.
    BlockedValve,
    /// Motor: a bearing pitting, worse by the second.
    BearingWear,
    /// Motor: vibration that goes with the square of speed.
    Imbalance,
    /// Press: slow ram, sagging force, a pump that works while holding.
    OilLeak,
    /// A sensor repeats its last value.
    SensorStuck,
    /// A sensor is silent.
    SensorDropout,
    /// The PLC does not answer.
    DeviceTimeout,
    /// The PLC answers with an exception.
    DeviceException,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [FaultKind; 9] = [
        FaultKind::Cavitation,
        FaultKind::BlockedValve,
        FaultKind::BearingWear,
        FaultKind::Imbalance,
        FaultKind::OilLeak,
        FaultKind::SensorStuck,
        FaultKind::SensorDropout,
        FaultKind::DeviceTimeout,
        FaultKind::DeviceException,
    ];

    /// The word used in files and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            FaultKind::Cavitation => "cavitation",
            FaultKind::BlockedValve => "blocked_valve",
            FaultKind::BearingWear => "bearing_wear",
            FaultKind::Imbalance => "imbalance",
            FaultKind::OilLeak => "oil_leak",
            FaultKind::SensorStuck => "sensor_stuck",
            FaultKind::SensorDropout => "sensor_dropout",
            FaultKind::DeviceTimeout => "device_timeout",
            FaultKind::DeviceException => "device_exception",
        }
    }

    /// Where it sits.
    pub fn class(self) -> Class {
        match self {
            FaultKind::Cavitation
            | FaultKind::BlockedValve
            | FaultKind::BearingWear
            | FaultKind::Imbalance
            | FaultKind::OilLeak => Class::Process,
            FaultKind::SensorStuck | FaultKind::SensorDropout => Class::Instrument,
            FaultKind::DeviceTimeout | FaultKind::DeviceException => Class::Device,
        }
    }

    /// Whether it can happen to this machine.
    pub fn fits(self, machine: &MachineSpec) -> bool {
        match self {
            FaultKind::Cavitation | FaultKind::BlockedValve => machine.kind == MachineKind::Pump,
            FaultKind::BearingWear | FaultKind::Imbalance => machine.kind == MachineKind::Motor,
            FaultKind::OilLeak => machine.kind == MachineKind::Press,
            FaultKind::SensorStuck | FaultKind::SensorDropout => true,
            FaultKind::DeviceTimeout | FaultKind::DeviceException => machine.link == Link::Modbus,
        }
    }

    /// How long it lasts, seconds: shortest and longest.
    fn lasts(self) -> (f64, f64) {
        match self {
            // It needs time to grow.
            FaultKind::BearingWear => (10.0, 12.0),
            _ => (7.0, 9.0),
        }
    }
}

/// One thing going wrong, once.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// On which machine.
    pub machine: Name,
    /// The signal it hits: instrument faults only.
    pub signal: Option<&'static str>,
    /// Plant time of its first step, seconds.
    pub start: f64,
    /// How long, seconds.
    pub duration: f64,
    /// How hard, 0 to 1.
    pub severity: f64,
}

impl Fault {
    /// Plant time of the first step after it, seconds.
    pub fn end(&self) -> f64 {
        self.start + self.duration
    }

    /// Whether it strikes at this plant time.
    pub fn is_active(&self, time: f64) -> bool {
        time >= self.start && time < self.end()
    }
}

/// How hard each process fault strikes a machine at one moment, 0 to 1.
#[derive(Copy, Clone, Debug, Default, PartialEq)]
pub struct Stress {
    /// See [`FaultKind::Cavitation`].
    pub cavitation: f64,
    /// See [`FaultKind::BlockedValve`].
    pub blocked_valve: f64,
    /// See [`FaultKind::BearingWear`].
    pub bearing_wear: f64,
    /// See [`FaultKind::Imbalance`].
    pub imbalance: f64,
    /// See [`FaultKind::OilLeak`].
    pub oil_leak: f64,
}

impl Stress {
    /// The sum of one machine's faults at `time`.
    pub fn of<'a>(faults: impl Iterator<Item = &'a Fault>, time: f64) -> Stress {
        let mut stress = Stress::default();
        for fault in faults.filter(|fault| fault.is_active(time)) {
            let since = time - fault.start;
            let full = fault.severity * (since / ONSET).min(1.0);
            match fault.kind {
                FaultKind::Cavitation => stress.cavitation += full,
                FaultKind::BlockedValve => stress.blocked_valve += full,
                // Growing all the while.
                FaultKind::BearingWear => {
                    stress.bearing_wear += fault.severity * (0.2 + 0.8 * since / fault.duration);
                }
                FaultKind::Imbalance => stress.imbalance += full,
                FaultKind::OilLeak => stress.oil_leak += full,
                _ => {}
            }
        }
        stress
    }
}

/// Faults for a run of this many seconds, in order of their start.
///
/// None begins before [`WARM_UP`]; all end [`TAIL`] before the run does; two on one machine are at
/// least [`GAP`] apart. From 60 seconds on every kind that fits a machine of [`Layout::demo`] is in it.
pub fn schedule(seed: u64, layout: &Layout, seconds: f64) -> Vec<Fault> {
    let mut rng = Rng::with_seed(seed ^ 0xFA17);
    let room = seconds - WARM_UP - TAIL;
    let mut plans: Vec<Vec<Fault>> = vec![Vec::new(); layout.machines.len()];
    for _ in 0..((seconds / ROUND) as usize).max(1) {
        let mut kinds = FaultKind::ALL;
        rng.shuffle(&mut kinds);
        // The kinds with the least choice of machines first: the others fill up around them.
        kinds.sort_by_key(|kind| layout.machines.iter().filter(|m| kind.fits(m)).count());
        for kind in kinds {
            let duration = tenths(between(&mut rng, kind.lasts().0, kind.lasts().1));
            let fitting = (0..layout.machines.len()).filter(|&i| kind.fits(&layout.machines[i]));
            let Some(i) = fitting.min_by(|&a, &b| needed(&plans[a]).total_cmp(&needed(&plans[b]))) else { continue };
            let fault = draw(&mut rng, kind, &layout.machines[i], duration);
            if needed(&plans[i]) + duration + GAP <= room {
                plans[i].push(fault);
            }
        }
    }
    for plan in &mut plans {
        rng.shuffle(plan);
        place(&mut rng, plan, room);
    }
    let mut all: Vec<Fault> = plans.into_iter().flatten().collect();
    all.sort_by(|a, b| a.start.total_cmp(&b.start).then_with(|| a.machine.cmp(&b.machine)));
    all
}

/// Plant time these faults take up with the gap after each, seconds.
fn needed(plan: &[Fault]) -> f64 {
    plan.iter().map(|fault| fault.duration + GAP).sum()
}

fn draw(rng: &mut Rng, kind: FaultKind, machine: &MachineSpec, duration: f64) -> Fault {
    let signals = machine.kind.signals();
    let signal = signals[rng.usize(..signals.len())].name;
    let signal = (kind.class() == Class::Instrument).then_some(signal);
    let severity = between(rng, 0.7, 1.0);
    Fault { kind, machine: machine.name.clone(), signal, start: 0.0, duration, severity }
}

/// Spreads one machine's faults over the room there is, at random.
fn place(rng: &mut Rng, plan: &mut [Fault], room: f64) {
    let slack = (room - needed(plan)).max(0.0);
    let mut cuts: Vec<f64> = plan.iter().map(|_| between(rng, 0.0, slack)).collect();
    cuts.sort_by(f64::total_cmp);
    let mut before = WARM_UP;
    for (fault, cut) in plan.iter_mut().zip(cuts) {
        fault.start = tenths(before + cut);
        before += fault.duration + GAP;
    }
}

/// To whole time steps.
fn tenths(seconds: f64) -> f64 {
    (seconds * 10.0).floor() / 10.0
}
