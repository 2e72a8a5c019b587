//! How fast the log may grow, whatever goes on: for each place in the source that writes, and for all together.
//! Pure: time is an argument.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Lines that one place may write at once ...
pub const PLACE_BURST: u32 = 100;
/// ... and how long it then waits for each further one.
pub const PLACE_PAUSE: Duration = Duration::from_secs(5);
/// The same for all places together.
pub const TOTAL_BURST: u32 = 2_000;
/// The same for all places together.
pub const TOTAL_PAUSE: Duration = Duration::from_millis(100);

/// Lines that may be written now, refilled with time.
#[derive(Debug)]
struct Bucket {
    left: f64,
    filled: Instant,
    /// Lines left out since the last one that was written.
    left_out: u64,
}

impl Bucket {
    fn new(burst: u32, now: Instant) -> Bucket {
        Bucket { left: f64::from(burst), filled: now, left_out: 0 }
    }

    fn fill(&mut self, burst: u32, pause: Duration, now: Instant) {
        let since = now.saturating_duration_since(self.filled);
        self.left = (self.left + since.as_secs_f64() / pause.as_secs_f64()).min(f64::from(burst));
        self.filled = now;
    }
}

/// What becomes of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It is written, after so many of the same place that were not.
    Written {
        /// How many were left out before it.
        left_out: u64,
    },
    /// It is left out.
    LeftOut,
}

/// Limits by place in the source; there are as many as the program has.
pub struct Limit<P> {
    places: HashMap<P, Bucket>,
    total: Bucket,
}

impl<P: Eq + Hash> Limit<P> {
    /// Nothing was written yet.
    pub fn new(now: Instant) -> Limit<P> {
        Limit { places: HashMap::new(), total: Bucket::new(TOTAL_BURST, now) }
    }

    /// A place has a line to write.
    pub fn line(&mut self, place: P, now: Instant) -> Line {
        self.total.fill(TOTAL_BURST, TOTAL_PAUSE, now);
        let bucket = self.places.entry(place).or_insert_with(|| Bucket::new(PLACE_BURST, now));
        bucket.fill(PLACE_BURST, PLACE_PAUSE, now);
        if bucket.left < 1.0 || self.total.left < 1.0 {
            bucket.left_out += 1;
            return Line::LeftOut;
        }
        bucket.left -= 1.0;
        self.total.left -= 1.0;
        Line::Written { left_out: std::mem::take(&mut bucket.left_out) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(limit: &mut Limit<u32>, place: u32, at: Instant) -> bool {
        limit.line(place, at) != Line::LeftOut
    }

    #[test]
    fn a_storm_of_one_place_is_bounded_told_and_no_harm_to_others() {
        let begin = Instant::now();
        let mut limit = Limit::new(begin);
        let at = |n: u32| begin + Duration::from_millis(u64::from(n));
        // 1,000 lines a second for a minute.
        let lines = (0..60_000).filter(|n| written(&mut limit, 1, at(*n))).count();
        assert_eq!(lines, PLACE_BURST as usize + 11);
        assert!(written(&mut limit, 2, at(60_000)));
        let after = at(60_000) + PLACE_PAUSE;
        let Line::Written { left_out } = limit.line(1, after) else { panic!("written") };
        assert!(left_out > 1_000, "{left_out}");
    }

    #[test]
    fn many_places_together_are_bounded_too() {
        let begin = Instant::now();
        let mut limit = Limit::new(begin);
        let at = |n: u32| begin + Duration::from_millis(u64::from(n));
        let lines = (0..60_000).filter(|n| written(&mut limit, n % 500, at(*n))).count();
        assert!(lines <= TOTAL_BURST as usize + 601, "{lines}");
    }
}
