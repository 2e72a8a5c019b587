//! A centrifugal pump in a loop: affinity laws, system curve with a control valve, motor power,
//! fluid temperature that drifts. Faults: cavitation, a valve that is shut although it reports open.

use fastrand::Rng;

use super::noise::{Drift, Duty, Follow, Lag, between, gauss};
use super::plant::{Now, Signal};

/// What a pump measures, in the order of [`Pump::step`].
pub const SIGNALS: [Signal; 8] = [
    Signal::new("speed", "rpm", 0.0, 3000.0),
    Signal::new("valve_position", "%", 0.0, 100.0),
    Signal::new("flow", "m3/h", 0.0, 90.0),
    Signal::new("suction_pressure", "bar", 0.5, 1.5),
    Signal::new("discharge_pressure", "bar", 0.5, 6.5),
    Signal::new("motor_current", "A", 0.0, 25.0),
    Signal::new("fluid_temperature", "degC", 15.0, 70.0),
    Signal::new("vibration_rms", "mm/s", 0.0, 5.0),
];

/// One standard deviation of each sensor's noise, in its own unit.
const NOISE: [f64; 8] = [6.0, 0.4, 0.5, 0.008, 0.03, 0.12, 0.1, 0.03];

const RATED_SPEED: f64 = 2900.0;
/// Pressure rise at rated speed against a closed valve, bar.
const SHUT_OFF: f64 = 5.2;
/// Fall of the pump curve, bar per (m3/h)².
const CURVE: f64 = 4.4e-4;
/// Height the loop must be lifted over, bar.
const STATIC: f64 = 0.2;
/// Pipe and fully open valve, bar per (m3/h)².
const PIPE: f64 = 4.0e-4;
const VALVE: f64 = 2.6e-4;
/// Flow of best efficiency at rated speed, m3/h.
const BEST_FLOW: f64 = 60.0;

/// Speed (share of rated) and valve opening of the usual duty points.
const DUTIES: [(f64, f64); 5] = [(0.95, 0.75), (0.85, 0.6), (0.75, 0.7), (0.9, 0.5), (0.65, 0.85)];

/// The state of one pump.
#[derive(Clone, Debug)]
pub struct Pump {
    duty: Duty,
    target: (f64, f64),
    speed: Follow,
    valve: Follow,
    speed_wander: Drift,
    valve_wander: Drift,
    tank: Drift,
    tank_level: Drift,
    heat: Lag,
    /// Unit-to-unit differences of curve, motor and vibration.
    unit: [f64; 3],
    flutter: f64,
}

impl Pump {
    /// A pump already running at one of its duty points.
    pub fn new(rng: &mut Rng) -> Pump {
        let target = pick(rng);
        Pump {
            duty: Duty::new(rng, (9.0, 26.0), 0.12),
            target,
            speed: Follow::new(target.0, 1.3),
            valve: Follow::new(target.1, 1.0),
            speed_wander: Drift::new(rng, 0.004, 4.0),
            valve_wander: Drift::new(rng, 0.006, 5.0),
            tank: Drift::new(rng, 3.0, 400.0),
            tank_level: Drift::new(rng, 0.02, 90.0),
            heat: Lag::new(2.0, 40.0),
            unit: [(); 3].map(|()| 1.0 + 0.008 * gauss(rng).clamp(-2.0, 2.0)),
            flutter: 0.0,
        }
    }

    /// One time step: what the sensors say, in the order of [`SIGNALS`].
    pub fn step(&mut self, rng: &mut Rng, now: &Now) -> [f64; 8] {
        if self.duty.step(rng, now.may_stop) {
            self.target = pick(rng);
        }
        let run = if self.duty.on { self.target.0 } else { 0.0 };
        let wander = self.speed_wander.step(rng) * run.min(1.0);
        let n = (self.speed.step(run) + wander).max(0.0);
        let valve = (self.valve.step(self.target.1) + self.valve_wander.step(rng)).clamp(0.05, 1.0);
        // Vapour bubbles collapse irregularly: noise that lasts a few tenths of a second.
        self.flutter = 0.6 * self.flutter + 0.8 * gauss(rng);
        let bubbles = now.stress.cavitation * (n / 0.6).min(1.0);

        let temperature = 42.0 + self.tank.step(rng) + self.heat.value;
        let tank = 1.05 + self.tank_level.step(rng);
        let pipe = PIPE * (1.0 - 0.004 * (temperature - 42.0));
        let opening = valve * (1.0 - 0.6 * now.stress.blocked_valve);
        let resistance = pipe + VALVE / (opening * opening);
        let lift = self.unit[0] * SHUT_OFF * n * n * (1.0 - bubbles * (0.10 + 0.03 * self.flutter));
        let flow = ((lift - STATIC).max(0.0) / (CURVE + resistance)).sqrt();
        let suction = tank - 6.0e-5 * flow * flow - bubbles * (0.14 + 0.03 * self.flutter);
        let rise = (lift - CURVE * flow * flow).max(0.0);
        let discharge = suction + rise;

        let load = flow / (BEST_FLOW * n.max(0.05));
        let efficiency = (0.76 - 0.4 * (load - 1.0).powi(2)).max(0.3);
        let power = flow * rise / 36.0 / efficiency + 0.5 * n.powi(3);
        self.heat.step(0.35 * power);
        let magnetising = 4.0 * (n / 0.3).min(1.0);
        let current = self.unit[1] * magnetising.hypot(1.9 * power * (1.0 + 0.02 * bubbles * self.flutter));
        let shaking = 0.15 + 1.3 * n * n + 0.7 * n * (load - 1.0).powi(2);
        let vibration =
            self.unit[2] * shaking + bubbles * (1.6 + 0.3 * self.flutter) + 0.25 * now.stress.blocked_valve * n;

        let truth = [
            n * RATED_SPEED,
            valve * 100.0,
            flow,
            suction,
            discharge,
            current,
            temperature,
            vibration.max(0.05) * (1.0 + 0.03 * gauss(rng)),
        ];
        let mut seen = truth;
        for ((value, sd), signal) in seen.iter_mut().zip(NOISE).zip(SIGNALS) {
            // A transmitter does not read below its zero.
            *value = (*value + sd * gauss(rng)).max(signal.low.min(0.0));
        }
        seen
    }
}

fn pick(rng: &mut Rng) -> (f64, f64) {
    let (speed, valve) = DUTIES[rng.usize(..DUTIES.len())];
    (speed + between(rng, -0.03, 0.03), valve + between(rng, -0.06, 0.06))
}
