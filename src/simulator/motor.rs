//! An inverter-fed motor and its bearing: speed, load, current, vibration figures as a condition
//! monitor gives them, bearing temperature. Faults: a bearing that wears, an imbalance.

use fastrand::Rng;

use super::noise::{Drift, Duty, Follow, Lag, between, gauss};
use super::plant::{Now, Signal};

/// What a motor measures, in the order of [`Motor::step`].
pub const SIGNALS: [Signal; 7] = [
    Signal::new("speed", "rpm", 0.0, 1600.0),
    Signal::new("load", "%", 0.0, 120.0),
    Signal::new("motor_current", "A", 0.0, 40.0),
    Signal::new("vibration_rms", "mm/s", 0.0, 6.0),
    Signal::new("vibration_kurtosis", "1", 2.0, 12.0),
    Signal::new("bearing_band", "g", 0.0, 1.0),
    Signal::new("bearing_temperature", "degC", 15.0, 100.0),
];

const RATED_SPEED: f64 = 1480.0;

/// Speed (share of rated) and torque (share of rated) of the usual duty points.
const DUTIES: [(f64, f64); 5] = [(0.98, 0.75), (0.9, 0.55), (0.75, 0.8), (0.6, 0.45), (0.85, 0.95)];

/// The state of one motor.
#[derive(Clone, Debug)]
pub struct Motor {
    duty: Duty,
    target: (f64, f64),
    speed: Follow,
    torque: Follow,
    torque_wander: Drift,
    speed_wander: Drift,
    hall: Drift,
    heat: Lag,
    friction: Lag,
    /// Unit-to-unit differences of motor, balance and bearing.
    unit: [f64; 3],
}

impl Motor {
    /// A motor already warm and running at one of its duty points.
    pub fn new(rng: &mut Rng) -> Motor {
        let target = pick(rng);
        Motor {
            duty: Duty::new(rng, (10.0, 30.0), 0.12),
            target,
            speed: Follow::new(target.0, 1.2),
            torque: Follow::new(target.1, 0.9),
            torque_wander: Drift::new(rng, 0.02, 2.5),
            speed_wander: Drift::new(rng, 0.003, 4.0),
            hall: Drift::new(rng, 2.5, 500.0),
            heat: Lag::new(heating(target.0, target.1), 45.0),
            friction: Lag::new(0.0, 6.0),
            unit: [0.01, 0.04, 0.05].map(|spread| 1.0 + spread * gauss(rng).clamp(-2.0, 2.0)),
        }
    }

    /// One time step: what the sensors say, in the order of [`SIGNALS`].
    pub fn step(&mut self, rng: &mut Rng, now: &Now) -> [f64; 7] {
        if self.duty.step(rng, now.may_stop) {
            self.target = pick(rng);
        }
        let (run, pull) = if self.duty.on { self.target } else { (0.0, 0.0) };
        let wander = self.speed_wander.step(rng) * run.min(1.0);
        let n = (self.speed.step(run) + wander).max(0.0);
        let torque_wander = self.torque_wander.step(rng) * (n / 0.5).min(1.0);
        let torque = (self.torque.step(pull) + torque_wander).max(0.0);
        let (wear, imbalance) = (now.stress.bearing_wear, now.stress.imbalance);

        let magnetising = 7.0 * (n / 0.3).min(1.0);
        let current = self.unit[0] * magnetising.hypot(24.0 * torque);
        let shaking = self.unit[1] * (0.12 + 0.9 * n * n + 0.2 * torque * n);
        let vibration = shaking + 1.8 * imbalance * n * n + 0.9 * wear * n;
        // Pitting makes each roll-over a blow: spikes first, energy later.
        let kurtosis = 3.0 + 0.15 * torque + 3.0 * wear * n.min(1.0) - 0.2 * imbalance * n;
        let band = self.unit[2] * (0.01 + 0.06 * n * (0.6 + 0.4 * torque)) * (1.0 + 3.5 * wear);
        let warmth = self.heat.step(heating(n, torque)) + self.friction.step(4.0 * wear * n);
        let temperature = 26.0 + self.hall.step(rng) + warmth;

        [
            (n * RATED_SPEED + 3.0 * gauss(rng)).max(0.0),
            (torque * 100.0 + 0.8 * gauss(rng)).max(0.0),
            (current + 0.15 * gauss(rng)).max(0.0),
            (vibration * (1.0 + 0.06 * gauss(rng)) + 0.01 * gauss(rng)).max(0.0),
            (kurtosis + 0.18 * gauss(rng)).max(1.5),
            (band * (1.0 + 0.08 * gauss(rng)) + 0.001 * gauss(rng)).max(0.0),
            temperature + 0.15 * gauss(rng),
        ]
    }
}

/// How far the bearing ends up above the hall, degC.
fn heating(n: f64, torque: f64) -> f64 {
    12.0 * n + 14.0 * torque * torque
}

fn pick(rng: &mut Rng) -> (f64, f64) {
    let (speed, torque) = DUTIES[rng.usize(..DUTIES.len())];
    (speed + between(rng, -0.03, 0.03), torque + between(rng, -0.08, 0.08))
}
