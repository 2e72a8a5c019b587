//! What `andon learn` makes, whichever detector it is: one that holds channels against each other,
//! or for a machine with a single channel one that holds its course against what was learnt.

use super::calibration::Limit;
use super::course::{self, Course};
use super::drift::Bins;
use super::fit::{self, FitError, Fitted, Stretch};
use super::graph;

/// A detector that was learnt.
#[derive(Clone, Debug, PartialEq)]
pub enum Learnt {
    /// Window means against a baseline.
    Baseline(Fitted),
    /// A single channel's windows against those learnt from.
    Course(Course),
}

/// What both have.
#[derive(Clone, Copy, Debug)]
pub struct Common<'a> {
    /// Rows in a window.
    pub steps: usize,
    /// Of each channel.
    pub mean: &'a [f64],
    /// Of each channel, above zero.
    pub std: &'a [f64],
    /// Least and greatest value of each channel.
    pub range: &'a [(f64, f64)],
    /// How each channel was spread.
    pub spread: &'a [Option<Bins>],
    /// Scores of healthy windows.
    pub reference: &'a [f64],
    /// How many windows were learnt from.
    pub windows: usize,
    /// The score from which on it is in alarm.
    pub limit: f64,
    /// How much larger scores of new healthy windows are to be expected than of those learnt from.
    pub optimism: f64,
}

/// A state of the graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Kept {
    /// Its name, without `state_`.
    pub name: &'static str,
    /// Its shape without the batch axis.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f64>,
}

/// What a step gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Stepped {
    /// The score.
    pub score: f64,
    /// Each channel's part in it.
    pub parts: Vec<f64>,
    /// Whether the window itself is unlike the healthy ones, as far as the detector can tell that
    /// from its being flagged.
    pub strange: bool,
    /// The states after it.
    pub next: Vec<Kept>,
}

impl Learnt {
    /// Fits the detector that suits the channels, on stretches of healthy running.
    pub fn fit(stretches: &[Stretch], names: &[String], steps: usize, limit: &Limit) -> Result<Learnt, FitError> {
        match names {
            [name] => course::fit(stretches, name, steps, limit).map(Learnt::Course),
            _ => fit::fit(stretches, names, steps, limit).map(Learnt::Baseline),
        }
    }

    /// What both have.
    pub fn common(&self) -> Common<'_> {
        match self {
            Learnt::Baseline(f) => Common {
                steps: f.steps,
                mean: &f.mean,
                std: &f.std,
                range: &f.range,
                spread: &f.spread,
                reference: &f.reference,
                windows: f.windows,
                limit: f.limit,
                optimism: f.optimism,
            },
            Learnt::Course(c) => Common {
                steps: c.steps,
                mean: &c.mean,
                std: &c.std,
                range: &c.range,
                spread: &c.spread,
                reference: &c.reference,
                windows: c.windows,
                limit: c.limit,
                optimism: 1.0,
            },
        }
    }

    /// Independent windows that the reference is worth: neighbours overlap.
    pub fn independent(&self) -> usize {
        let common = self.common();
        common.windows / common.steps
    }

    /// The graph.
    pub fn onnx(&self) -> Vec<u8> {
        match self {
            Learnt::Baseline(f) => graph::onnx(f),
            Learnt::Course(c) => c.onnx(),
        }
    }

    /// The states at the start.
    pub fn start(&self) -> Vec<Kept> {
        match self {
            Learnt::Baseline(f) => of_baseline(f.start()),
            Learnt::Course(c) => of_course(c.start()),
        }
    }

    /// What the graph does with a flat window [steps × channels]; `states` as from `start`.
    pub fn step(&self, states: &[Kept], window: &[f64]) -> Stepped {
        let values = |i: usize| states.get(i).map_or_else(Vec::new, |s| s.values.clone());
        match self {
            Learnt::Baseline(f) => {
                let phase = values(2);
                let state = fit::State {
                    baseline: values(0),
                    fault: values(1),
                    alarm: phase[0],
                    settling: phase[1],
                    fresh: phase[2],
                    patience: phase[3],
                };
                let stepped = f.step(&state, &f.aspects_of(window));
                Stepped {
                    score: stepped.score,
                    parts: stepped.parts,
                    strange: stepped.strange,
                    next: of_baseline(stepped.next),
                }
            }
            Learnt::Course(c) => {
                let (score, next) =
                    c.step(&course::State { counts: values(0), alarm: values(1)[0], peak: values(2)[0] }, window);
                Stepped { score, parts: vec![score], strange: score >= c.limit, next: of_course(next) }
            }
        }
    }

    /// Whether single and double precision could take a window differently, so that it makes no
    /// golden case.
    pub fn borders(&self, window: &[f64]) -> bool {
        match self {
            Learnt::Baseline(_) => false,
            Learnt::Course(c) => c.borders(window),
        }
    }
}

fn of_baseline(state: fit::State) -> Vec<Kept> {
    let kept = |name, values: Vec<f64>| Kept { name, shape: vec![values.len()], values };
    vec![
        kept("baseline", state.baseline),
        kept("fault", state.fault),
        kept("phase", vec![state.alarm, state.settling, state.fresh, state.patience]),
    ]
}

fn of_course(state: course::State) -> Vec<Kept> {
    let values = [state.counts, vec![state.alarm], vec![state.peak]];
    Course::shapes().into_iter().zip(values).map(|((name, shape), values)| Kept { name, shape, values }).collect()
}
