//! A hydraulic press: approach, press, hold, return, wait, about four seconds a cycle, with a recipe
//! that changes. Fault: an oil leak, which slows the ram and keeps the pump at work while holding.

use fastrand::Rng;

use super::noise::{Drift, Duty, Lag, between, gauss};
use super::plant::{DT, Now, Signal};

/// What a press measures, in the order of [`Press::step`].
pub const SIGNALS: [Signal; 5] = [
    Signal::new("position", "mm", 0.0, 420.0),
    Signal::new("force", "kN", 0.0, 600.0),
    Signal::new("oil_pressure", "bar", 0.0, 330.0),
    Signal::new("motor_current", "A", 0.0, 90.0),
    Signal::new("oil_temperature", "degC", 15.0, 75.0),
];

/// One standard deviation of each sensor's noise, in its own unit.
const NOISE: [f64; 5] = [1.0, 3.0, 1.5, 0.5, 0.1];

/// Where the tool meets the part, mm from the top.
const CONTACT: f64 = 300.0;
/// Ram speed downwards, while pressing and upwards, mm/s.
const APPROACH: f64 = 270.0;
const PRESSING: f64 = 45.0;
const RETURN: f64 = 310.0;
/// Ram area as kN per bar.
const AREA: f64 = 2.0;

#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Phase {
    Approach,
    Press,
    Hold,
    Return,
    Wait,
}

/// The state of one press.
#[derive(Clone, Debug)]
pub struct Press {
    duty: Duty,
    phase: Phase,
    /// Seconds left of holding or waiting.
    left: f64,
    position: f64,
    velocity: Lag,
    force: Lag,
    /// The recipe: force to reach (kN) and stiffness of the part (kN/mm).
    recipe: (f64, f64),
    /// Taken up when a cycle begins, as a stop is when one ends.
    next_recipe: (f64, f64),
    hall: Drift,
    heat: Lag,
    /// Zero when stopped, one when the hydraulic pump runs.
    running: Lag,
    unit: [f64; 2],
}

impl Press {
    /// A press about to begin a cycle.
    pub fn new(rng: &mut Rng) -> Press {
        let recipe = pick(rng);
        Press {
            duty: Duty::new(rng, (20.0, 50.0), 0.15),
            phase: Phase::Wait,
            left: 0.3,
            position: 0.0,
            velocity: Lag::new(0.0, 0.08),
            force: Lag::new(0.0, 0.08),
            recipe,
            next_recipe: recipe,
            hall: Drift::new(rng, 2.0, 500.0),
            heat: Lag::new(12.0, 60.0),
            running: Lag::new(1.0, 0.3),
            unit: [(); 2].map(|()| 1.0 + 0.006 * gauss(rng).clamp(-2.0, 2.0)),
        }
    }

    /// One time step: what the sensors say, in the order of [`SIGNALS`].
    pub fn step(&mut self, rng: &mut Rng, now: &Now) -> [f64; 5] {
        if self.duty.step(rng, now.may_stop) {
            self.next_recipe = pick(rng);
        }
        let leak = now.stress.oil_leak;
        let (velocity, force) = self.advance(rng, leak);
        let running = self.running.step(if self.duty.on || self.phase != Phase::Wait { 1.0 } else { 0.0 });

        let pressure = running * (12.0 + 0.05 * velocity.abs()) + force / AREA * (1.0 - 0.05 * leak) * self.unit[0];
        // The pump delivers what moves the ram and what leaks away under pressure.
        let delivery = 0.6 * velocity.abs() + leak * (20.0 + 0.2 * pressure);
        let power = pressure * delivery / 600.0;
        let current = self.unit[1] * running * (16.0 + 0.9 * power + 0.04 * pressure);
        let temperature = 28.0 + self.hall.step(rng) + self.heat.step(running * (11.0 + 0.1 * power + 6.0 * leak));

        let mut seen = [self.position, force, pressure, current, temperature];
        for (value, sd) in seen.iter_mut().zip(NOISE) {
            *value = (*value + sd * gauss(rng)).max(0.0);
        }
        seen
    }

    /// Moves the ram on by one time step: its velocity (mm/s, down is positive) and force (kN).
    fn advance(&mut self, rng: &mut Rng, leak: f64) -> (f64, f64) {
        // Drawn on every step: what one cycle takes does not shift the noise of the next.
        let (hold, wait) = (between(rng, 0.55, 0.65), between(rng, 0.4, 0.7));
        let slower = 1.0 - 0.3 * leak;
        let wanted = match self.phase {
            Phase::Approach => APPROACH * slower,
            Phase::Press => PRESSING * slower,
            Phase::Hold | Phase::Wait => 0.0,
            Phase::Return => -RETURN * slower,
        };
        let velocity = self.velocity.step(wanted);
        self.position = (self.position + velocity * DT).clamp(0.0, 420.0);
        self.left -= DT;
        let pushed = ((self.position - CONTACT).max(0.0) * self.recipe.1).min(self.recipe.0 * 1.05);
        let pressing = matches!(self.phase, Phase::Press | Phase::Hold);
        let force = self.force.step(if pressing { pushed * (1.0 - 0.12 * leak) } else { 0.0 });
        self.phase = match self.phase {
            Phase::Approach if self.position >= CONTACT - 15.0 => Phase::Press,
            Phase::Press if pushed >= self.recipe.0 => {
                self.left = hold;
                Phase::Hold
            }
            Phase::Hold if self.left <= 0.0 => Phase::Return,
            Phase::Return if self.position <= 12.0 => {
                self.left = wait;
                Phase::Wait
            }
            Phase::Wait if self.left <= 0.0 && self.duty.on => {
                self.recipe = self.next_recipe;
                Phase::Approach
            }
            other => other,
        };
        (velocity, force)
    }
}

fn pick(rng: &mut Rng) -> (f64, f64) {
    const RECIPES: [(f64, f64); 3] = [(480.0, 14.0), (400.0, 12.0), (320.0, 10.0)];
    let (force, stiffness) = RECIPES[rng.usize(..RECIPES.len())];
    (force * between(rng, 0.98, 1.02), stiffness * between(rng, 0.97, 1.03))
}
