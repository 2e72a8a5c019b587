//! The usual distance between a signal's readings, and from it how long a silence is tolerated.

use serde::{Deserialize, Serialize};

/// Distances after which the rhythm is known.
const KNOWN_AFTER: usize = 3;
/// The median is taken over so many distances: outages are few among them.
const MEMORY: usize = 7;
const MILLISECOND: i64 = 1_000_000;
/// Silence of this many usual distances is tolerated.
const TOLERATED: i64 = 5;
/// Limits (ns) are rounded up to one of these, so that small differences in what was learnt change nothing. The
/// last one is the longest silence that is ever tolerated without being configured.
const LADDER: [i64; 14] = {
    const S: i64 = 1_000_000_000;
    [S, 2 * S, 3 * S, 5 * S, 10 * S, 20 * S, 30 * S, 60 * S, 120 * S, 300 * S, 600 * S, 1200 * S, 1800 * S, 3600 * S]
};

/// The last distances between readings, as far as they are out of the ordinary.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rhythm {
    /// Distances in milliseconds, the oldest at the place of the next one.
    last: [u32; MEMORY],
    count: u32,
    /// Their median (ns); 0 while it is not known.
    usual: i64,
    /// All of them are near the median: another such distance would change nothing.
    settled: bool,
}

impl Rhythm {
    /// Learns from one distance (ns). Distances that are not above zero are no distances.
    pub fn learn(&mut self, distance: i64) {
        if distance <= 0 || self.settled && is_near(distance, self.usual) {
            return;
        }
        let place = self.count as usize % MEMORY;
        self.last[place] = u32::try_from(distance / MILLISECOND).unwrap_or(u32::MAX).max(1);
        // Wraps to a multiple of the memory, so that the next place stays right.
        self.count = if self.count as usize >= 1000 * MEMORY { MEMORY as u32 + 1 } else { self.count + 1 };
        let n = MEMORY.min(self.count as usize);
        if n >= KNOWN_AFTER {
            let mut sorted = self.last;
            let known = &mut sorted[..n];
            known.sort_unstable();
            self.usual = i64::from(known[n / 2]) * MILLISECOND;
            let near = |d: &u32| is_near(i64::from(*d) * MILLISECOND, self.usual);
            self.settled = n == MEMORY && known.iter().all(near);
        }
    }

    /// The usual distance (ns), once it is known.
    pub fn usual(&self) -> Option<i64> {
        (self.usual > 0).then_some(self.usual)
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

/// Whether a distance is within a factor of two of the usual one. Those below a millisecond are all alike.
fn is_near(distance: i64, usual: i64) -> bool {
    distance.saturating_mul(2) >= usual && distance <= usual.saturating_mul(2).max(MILLISECOND)
        || distance < MILLISECOND && usual <= MILLISECOND
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
    fn outages_teach_nothing_and_another_pace_is_learnt() {
        let mut distances = vec![S; 20];
        distances.extend([3600 * S; 3]);
        assert_eq!(after(&distances).limit(S), 5 * S);
        distances.extend([60 * S; 7]);
        assert_eq!(after(&distances).limit(S), 300 * S);
        assert_eq!(after(&[S; 10_000]).limit(S), 5 * S);
    }

    #[test]
    fn nothing_overflows() {
        let rhythm = after(&[i64::MAX, i64::MAX, i64::MAX, i64::MAX, -1, 0]);
        assert_eq!(rhythm.limit(1), 3600 * S);
    }
}
