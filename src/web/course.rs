//! Health and useful life of a machine over all the time it has been watched. The longer that is the
//! coarser it gets: neighbours are merged, so that it never grows beyond its bound.

use crate::types::{Rul, Time};

/// Points kept for one machine, 40 bytes each.
pub const POINTS: usize = 360;
/// What one point stands for at first.
const FIRST_WIDTH: i64 = 1_000_000_000;

/// The mean of what was said within one stretch of time.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Stretch {
    /// The last verdict in it.
    pub at: Time,
    /// 1 is well, 0 is at the alarm limit.
    pub health: Option<f64>,
    /// Useful life left: lower end, estimate, upper end.
    pub rul: Option<[f64; 3]>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Course {
    width: i64,
    stretches: Vec<Sum>,
}

#[derive(Copy, Clone, Debug, PartialEq)]
struct Sum {
    at: Time,
    healths: u32,
    ruls: u32,
    health: f32,
    rul: [f32; 3],
}

impl Default for Course {
    fn default() -> Course {
        Course { width: FIRST_WIDTH, stretches: Vec::new() }
    }
}

impl Course {
    /// Takes in one verdict. What comes late counts to the newest stretch.
    pub fn push(&mut self, at: Time, health: Option<f64>, rul: Option<Rul>) {
        let health = health.filter(|h| h.is_finite());
        let rul = rul.map(|r| [r.low, r.median, r.high]).filter(|r| r.iter().all(|v| v.is_finite()));
        if health.is_none() && rul.is_none() {
            return;
        }
        let new = Sum {
            at,
            healths: u32::from(health.is_some()),
            ruls: u32::from(rul.is_some()),
            health: health.unwrap_or(0.0) as f32,
            rul: rul.unwrap_or_default().map(|v| v as f32),
        };
        let width = self.width;
        match self.stretches.last_mut() {
            Some(last) if at.0.div_euclid(width) <= last.at.0.div_euclid(width) => last.add(&new),
            _ => self.stretches.push(new),
        }
        while self.stretches.len() > POINTS {
            self.coarsen();
        }
    }

    fn coarsen(&mut self) {
        self.width = self.width.saturating_mul(2);
        let mut merged: Vec<Sum> = Vec::with_capacity(POINTS);
        for sum in &self.stretches {
            match merged.last_mut() {
                Some(last) if sum.at.0.div_euclid(self.width) <= last.at.0.div_euclid(self.width) => last.add(sum),
                _ => merged.push(*sum),
            }
        }
        self.stretches = merged;
    }

    /// All, oldest first.
    pub fn to_vec(&self) -> Vec<Stretch> {
        self.stretches.iter().map(Sum::mean).collect()
    }
}

impl Sum {
    fn add(&mut self, other: &Sum) {
        self.at = self.at.max(other.at);
        self.healths = self.healths.saturating_add(other.healths);
        self.ruls = self.ruls.saturating_add(other.ruls);
        self.health += other.health;
        self.rul.iter_mut().zip(other.rul).for_each(|(sum, v)| *sum += v);
    }

    fn mean(&self) -> Stretch {
        let of = |sum: f32, n: u32| f64::from(sum) / f64::from(n);
        Stretch {
            at: self.at,
            health: (self.healths > 0).then(|| of(self.health, self.healths)),
            rul: (self.ruls > 0).then(|| self.rul.map(|sum| of(sum, self.ruls))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rul(median: f64) -> Option<Rul> {
        Some(Rul { low: median - 5.0, median, high: median + 9.0 })
    }

    #[test]
    fn a_year_takes_the_room_of_six_minutes_and_still_shows_the_way_down() {
        let mut course = Course::default();
        for hour in 0..8_760i64 {
            let left = 8_760.0 - hour as f64;
            course.push(Time(hour * 3_600_000_000_000), Some(left / 8_760.0), rul(left));
        }
        let kept = course.to_vec();
        assert!((POINTS / 2..=POINTS).contains(&kept.len()), "{}", kept.len());
        assert_eq!(kept.last().map(|s| s.at), Some(Time(8_759 * 3_600_000_000_000)));
        assert!(kept.windows(2).all(|w| w[0].health > w[1].health && w[0].at < w[1].at));
        let [low, median, high] = kept[0].rul.expect("a useful life");
        assert!(low < median && median < high && median > 8_000.0, "{:?}", kept[0]);
    }

    #[test]
    fn what_is_not_said_or_no_number_is_no_point() {
        let mut course = Course::default();
        course.push(Time(0), None, None);
        course.push(Time(1), Some(f64::NAN), Some(Rul { low: 0.0, median: f64::INFINITY, high: 1.0 }));
        assert_eq!(course.to_vec(), []);
        course.push(Time(2), Some(0.5), None);
        assert_eq!(course.to_vec(), [Stretch { at: Time(2), health: Some(0.5), rul: None }]);
    }

    proptest! {
        #[test]
        fn any_times_in_any_order_stay_within_the_bound(times in prop::collection::vec(any::<i64>(), 0..2_000)) {
            let mut course = Course::default();
            for at in times {
                course.push(Time(at), Some(0.25), rul(4.0));
                prop_assert!(course.stretches.len() <= POINTS);
            }
            prop_assert!(course.to_vec().iter().all(|s| s.health == Some(0.25)));
        }
    }
}
