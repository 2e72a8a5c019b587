//! The usual distance between a signal's readings, and from it how long a silence is tolerated.

use serde::{Deserialize, Serialize};

/// Distances after which the rhythm is known.
const KNOWN_AFTER: u32 = 3;
/// The mean is taken over so many distances.
const MEMORY: u32 = 8;
/// One distance counts as at most this many usual ones, so that an outage teaches little.
const CLIP: i64 = 4;
/// Silence of this many usual distances is tolerated.
const TOLERATED: i64 = 5;
/// Limits (ns) are rounded up to one of these, so that small differences in what was learnt change nothing. The
/// last one is the longest silence that is ever tolerated without being configured.
const LADDER: [i64; 14] = {
    const S: i64 = 1_000_000_000;
    [S, 2 * S, 3 * S, 5 * S, 10 * S, 20 * S, 30 * S, 60 * S, 120 * S, 300 * S, 600 * S, 1200 * S, 1800 * S, 3600 * S]
};

/// A running mean of distances in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rhythm {
    mean: i64,
    count: u32,
}

impl Rhythm {
    /// Learns from one distance (ns). Distances that are not above zero are no distances.
    pub fn learn(&mut self, distance: i64) {
        if distance <= 0 {
            return;
        }
        let distance = if self.count >= KNOWN_AFTER { distance.min(self.mean.saturating_mul(CLIP)) } else { distance };
        self.count = self.count.saturating_add(1);
        self.mean += (distance - self.mean) / i64::from(self.count.min(MEMORY));
    }

    /// The usual distance (ns), once it is known.
    pub fn usual(&self) -> Option<i64> {
        (self.count >= KNOWN_AFTER).then_some(self.mean)
    }

    /// The silence (ns) that is tolerated: five usual distances, but no less than `least` and, unless that is
    /// longer, no more than an hour. `least` while the rhythm is not known.
    pub fn limit(&self, least: i64) -> i64 {
        let wanted = self.usual().unwrap_or(0).saturating_mul(TOLERATED);
        if wanted <= least {
            return least;
        }
        let longest = LADDER[LADDER.len() - 1];
        LADDER.iter().copied().find(|step| *step >= wanted).unwrap_or(longest).max(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000_000;

    fn after(distances: &[i64]) -> Rhythm {
        let mut rhythm = Rhythm::default();
        distances.iter().for_each(|d| rhythm.learn(*d));
        rhythm
    }

    #[test]
    fn the_limit_is_five_usual_distances_rounded_up() {
        assert_eq!(after(&[60 * S; 10]).limit(5 * S), 300 * S);
        assert_eq!(after(&[S / 10; 10]).limit(5 * S), 5 * S, "never below the least");
        assert_eq!(after(&[60 * S; 2]).limit(5 * S), 5 * S, "not known yet");
        assert_eq!(after(&[86_400 * S; 10]).limit(5 * S), 3600 * S, "bounded");
        assert_eq!(after(&[S; 10]).limit(7200 * S), 7200 * S);
    }

    #[test]
    fn one_outage_teaches_little_and_another_pace_is_learnt() {
        let mut distances = vec![S; 20];
        distances.push(3600 * S);
        let after_outage = after(&distances).limit(S);
        assert!(after_outage <= 10 * S, "{after_outage}");
        distances.extend([60 * S; 30]);
        assert_eq!(after(&distances).limit(S), 300 * S);
    }

    #[test]
    fn nothing_overflows() {
        let rhythm = after(&[i64::MAX, i64::MAX, i64::MAX, i64::MAX, -1, 0]);
        assert_eq!(rhythm.limit(1), 3600 * S);
    }
}
