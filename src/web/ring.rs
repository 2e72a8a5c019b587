//! The points of a plot, as small as they can be kept: a site with a thousand machines has a million.

use std::collections::VecDeque;

use crate::types::{Quality, Time};

/// Points kept in each plot.
pub const POINTS: usize = 600;
/// The first room of a plot; it doubles until all of them have room.
const FIRST_ROOM: usize = 32;

/// One step of one signal.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Point {
    /// The step's time.
    pub at: Time,
    /// `None` is a gap.
    pub value: Option<f64>,
    /// How far to trust it.
    pub quality: Quality,
}

/// One verdict, for the score plot.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct ScorePoint {
    /// The window's end.
    pub at: Time,
    /// The model's score.
    pub score: Option<f64>,
    /// The p-value.
    pub p_value: Option<f64>,
    /// The limit.
    pub threshold: f64,
    /// Whether it was judged an anomaly.
    pub anomaly: bool,
}

/// What a point is kept as.
pub trait Kept: Copy {
    /// The point.
    type Point;
    fn of(point: Self::Point) -> Self;
    fn point(self) -> Self::Point;
}

/// The last [`POINTS`] of something.
#[derive(Clone, Debug)]
pub struct Ring<T>(VecDeque<T>);

impl<T> Default for Ring<T> {
    fn default() -> Ring<T> {
        Ring(VecDeque::new())
    }
}

impl<T: Kept> Ring<T> {
    /// Adds one, forgetting the oldest when full.
    pub fn push(&mut self, point: T::Point) {
        if self.0.len() == POINTS {
            self.0.pop_front();
        } else if self.0.len() == self.0.capacity() {
            self.0.reserve_exact(self.0.len().max(FIRST_ROOM).min(POINTS - self.0.len()));
        }
        self.0.push_back(T::of(point));
    }

    /// All, oldest first.
    pub fn to_vec(&self) -> Vec<T::Point> {
        self.0.iter().map(|kept| kept.point()).collect()
    }
}

/// A [`Point`]; a gap is not a number.
#[derive(Copy, Clone, Debug)]
pub struct KeptPoint {
    at: Time,
    value: f64,
    quality: Quality,
}

impl Kept for KeptPoint {
    type Point = Point;

    fn of(p: Point) -> KeptPoint {
        KeptPoint { at: p.at, value: p.value.unwrap_or(f64::NAN), quality: p.quality }
    }

    fn point(self) -> Point {
        Point { at: self.at, value: Some(self.value).filter(|v| !v.is_nan()), quality: self.quality }
    }
}

/// A [`ScorePoint`] to seven digits, which is what a single-precision model has to say.
#[derive(Copy, Clone, Debug)]
pub struct KeptScore {
    at: Time,
    score: f32,
    p_value: f32,
    threshold: f32,
    anomaly: bool,
}

impl Kept for KeptScore {
    type Point = ScorePoint;

    fn of(p: ScorePoint) -> KeptScore {
        let single = |v: Option<f64>| v.map_or(f32::NAN, |v| v as f32);
        let (score, p_value, threshold) = (single(p.score), single(p.p_value), p.threshold as f32);
        KeptScore { at: p.at, score, p_value, threshold, anomaly: p.anomaly }
    }

    fn point(self) -> ScorePoint {
        let double = |v: f32| Some(f64::from(v)).filter(|v| v.is_finite());
        ScorePoint {
            at: self.at,
            score: double(self.score),
            p_value: double(self.p_value),
            threshold: f64::from(self.threshold),
            anomaly: self.anomaly,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_no_larger_than_its_points() {
        let mut ring = Ring::<KeptScore>::default();
        let point = |n: usize| ScorePoint {
            at: Time(n as i64),
            score: (!n.is_multiple_of(3)).then_some(n as f64 / 2.0),
            p_value: None,
            threshold: 0.5,
            anomaly: n.is_multiple_of(2),
        };
        for n in 0..POINTS + 7 {
            ring.push(point(n));
            let room = ring.0.capacity();
            assert!(room <= (2 * ring.0.len()).clamp(FIRST_ROOM, POINTS), "{room} for {n}");
        }
        assert_eq!(ring.to_vec(), (7..POINTS + 7).map(point).collect::<Vec<_>>());
        assert!(size_of::<KeptScore>() <= 24 && size_of::<KeptPoint>() <= 24);
    }

    #[test]
    fn gaps_stay_gaps_and_values_what_they_were() {
        let mut ring = Ring::<KeptPoint>::default();
        let values = [Some(123_456_789.012), None, Some(-0.1)];
        let points = values.map(|value| Point { at: Time(1), value, quality: Quality::Uncertain });
        points.into_iter().for_each(|p| ring.push(p));
        assert_eq!(ring.to_vec(), points);
    }
}
