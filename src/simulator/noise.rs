//! The random and lagging building blocks of the plant: noise, slow drift, smooth set-point changes.

use fastrand::Rng;

use super::plant::DT;

/// A standard normal draw (Box–Muller). Always takes two numbers from `rng`, so that a fault never
/// shifts the noise of what comes after it.
pub fn gauss(rng: &mut Rng) -> f64 {
    // 1 - u is in (0, 1]: its logarithm is finite.
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}

/// A uniform draw from `low..high`.
pub fn between(rng: &mut Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * rng.f64()
}

/// Drift that wanders about zero and always comes back (Ornstein–Uhlenbeck).
#[derive(Clone, Debug)]
pub struct Drift {
    value: f64,
    keep: f64,
    kick: f64,
}

impl Drift {
    /// Wanders with standard deviation `sd`, forgetting over `tau` seconds; starts somewhere typical.
    pub fn new(rng: &mut Rng, sd: f64, tau: f64) -> Drift {
        let keep = (-DT / tau).exp();
        Drift { value: sd * gauss(rng), keep, kick: sd * (1.0 - keep * keep).sqrt() }
    }

    /// The value one time step later.
    pub fn step(&mut self, rng: &mut Rng) -> f64 {
        self.value = self.value * self.keep + self.kick * gauss(rng);
        self.value
    }
}

/// First-order lag: heat, mostly.
#[derive(Clone, Debug)]
pub struct Lag {
    /// Where it is now.
    pub value: f64,
    gain: f64,
}

impl Lag {
    /// Starts at `value` and closes 63 % of any difference in `tau` seconds.
    pub fn new(value: f64, tau: f64) -> Lag {
        Lag { value, gain: 1.0 - (-DT / tau).exp() }
    }

    /// The value one time step later, drawn towards `target`.
    pub fn step(&mut self, target: f64) -> f64 {
        self.value += self.gain * (target - self.value);
        self.value
    }
}

/// A drive following its set-point without a jolt and without overshoot (two equal lags in series).
#[derive(Clone, Debug)]
pub struct Follow(Lag, Lag);

impl Follow {
    /// Starts at rest at `value`.
    pub fn new(value: f64, tau: f64) -> Follow {
        Follow(Lag::new(value, tau), Lag::new(value, tau))
    }

    /// The value one time step later.
    pub fn step(&mut self, target: f64) -> f64 {
        let inner = self.0.step(target);
        self.1.step(inner)
    }
}

/// What a machine is asked to do: a duty point that changes every so often, with stops in between.
#[derive(Clone, Debug)]
pub struct Duty {
    left: f64,
    hold: (f64, f64),
    stop_chance: f64,
    /// False while the machine is stopped.
    pub on: bool,
}

impl Duty {
    /// Each duty point lasts a time drawn from `hold` seconds; a change is a stop with `stop_chance`.
    pub fn new(rng: &mut Rng, hold: (f64, f64), stop_chance: f64) -> Duty {
        Duty { left: between(rng, hold.0, hold.1), hold, stop_chance, on: true }
    }

    /// One time step; true when a new duty point is due. It always draws the same count of numbers
    /// at a change, whether or not it `may_stop`.
    pub fn step(&mut self, rng: &mut Rng, may_stop: bool) -> bool {
        self.left -= DT;
        if self.left > 0.0 {
            return false;
        }
        let stop = rng.f64() < self.stop_chance;
        let hold = between(rng, self.hold.0, self.hold.1);
        self.on = !(self.on && stop && may_stop);
        self.left = if self.on { hold } else { hold.clamp(STOP.0, STOP.1) };
        true
    }
}

/// Shortest and longest stop, seconds.
pub const STOP: (f64, f64) = (6.0, 12.0);
