//! When to try again, and how much to send at a time: pure, for every sink that speaks HTTP.

use std::time::Duration;

use jiff::fmt::rfc2822::DateTimeParser;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

use crate::backoff::Backoff;
use crate::types::Time;

/// The least and the most that a Retry-After is believed.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// Requests that have to be taken in a row before a larger one is tried again.
const STREAK_TO_GROW: u32 = 256;

/// Reads a Retry-After header, seconds or HTTP-date (all three forms of RFC 9110), held between
/// one second and one hour. `now` is best the other side's: a gateway's own clock may be off. `None`
/// when it is neither.
pub fn retry_after(value: &str, now: Time) -> Option<Duration> {
    let value = value.trim();
    let (least, most) = RETRY_AFTER;
    let wait = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit are simply very long.
        value.parse().map_or(most, Duration::from_secs)
    } else {
        http_date(value)?.since(now)
    };
    Some(wait.clamp(least, most))
}

/// Reads an HTTP-date in any of its three forms.
pub fn http_date(value: &str) -> Option<Time> {
    static PREFERRED: DateTimeParser = DateTimeParser::new().relaxed_weekday(true);
    let obsolete = |format| strtime::parse(format, value).ok()?.to_datetime().ok()?.to_zoned(TimeZone::UTC).ok();
    let instant = PREFERRED
        .parse_timestamp(value)
        .ok()
        .or_else(|| obsolete("%A, %d-%b-%y %H:%M:%S GMT").map(|z| z.timestamp()))
        .or_else(|| obsolete("%a %b %e %H:%M:%S %Y").map(|z| z.timestamp()))?;
    i64::try_from(instant.as_nanosecond()).ok().map(Time)
}

/// How long to wait after a failure.
#[derive(Clone, Debug)]
pub struct Pace(Backoff);

impl Pace {
    /// Growing from `first` to `cap`.
    pub fn new(first: Duration, cap: Duration) -> Pace {
        Pace(Backoff::new(first, cap))
    }

    /// It worked.
    pub fn reset(&mut self) {
        self.0.reset();
    }

    /// How often it failed since it last worked.
    pub fn failures(&self) -> u32 {
        self.0.failures()
    }

    /// It failed: the wait, never shorter than what the other side asked for and up to a tenth
    /// longer, so that a whole fleet does not come back in the same instant.
    pub fn after_failure(&mut self, asked: Option<Duration>, random: f64) -> Duration {
        let own = self.0.after_failure(random);
        match asked {
            Some(asked) => asked + asked.mul_f64(random.clamp(0.0, 1.0) / 10.0),
            None => own,
        }
    }
}

/// How many bytes a request may have, as learned from refusals.
#[derive(Clone, Debug)]
pub struct SizeLimit {
    configured: usize,
    now: usize,
    streak: u32,
}

impl SizeLimit {
    /// As configured, until told otherwise.
    pub fn new(configured: usize) -> SizeLimit {
        SizeLimit { configured, now: configured, streak: 0 }
    }

    /// The limit now.
    pub fn bytes(&self) -> usize {
        self.now
    }

    /// A request of this size was too large: stay below half of it.
    pub fn refused(&mut self, bytes: usize) {
        self.now = self.now.min(bytes / 2).max(1);
        self.streak = 0;
    }

    /// A request was taken. After a long row of them the limit grows by half, so that one odd
    /// refusal does not slow the sink down for ever.
    pub fn taken(&mut self) {
        if self.now >= self.configured {
            return;
        }
        self.streak += 1;
        if self.streak >= STREAK_TO_GROW {
            self.now = self.now.saturating_add(self.now / 2 + 1).min(self.configured);
            self.streak = 0;
        }
    }
}

/// How many requests may be under way, found out by trying: one more when answers come as fast as usual,
/// a tenth fewer when they come late or the other side holds us back.
#[derive(Clone, Debug)]
pub struct Concurrency {
    most: usize,
    limit: f64,
    /// Smoothed time to an answer and its variance, in seconds.
    usual: Option<(f64, f64)>,
}

/// Weight of a new answer in what is usual.
const USUAL_WEIGHT: f64 = 0.4;
/// So many standard deviations beyond the usual is late.
const LATE_DEVIATIONS: f64 = 2.5;
/// Differences below this are noise of this machine, in seconds.
const LATE_AT_LEAST: f64 = 0.005;
/// What is left of the limit after a late answer.
const DECREASE: f64 = 0.9;

impl Concurrency {
    /// Begins with one; `most` is at least one.
    pub fn new(most: usize) -> Concurrency {
        Concurrency { most: most.max(1), limit: 1.0, usual: None }
    }

    /// How many requests may be under way now.
    pub fn now(&self) -> usize {
        (self.limit as usize).clamp(1, self.most)
    }

    /// A request was answered after this time; when it was sent, so many were under way, itself included.
    pub fn answered(&mut self, after: Duration, under_way: usize) {
        let after = after.as_secs_f64();
        let Some((mean, variance)) = self.usual else {
            self.usual = Some((after, 0.0));
            self.limit = (self.limit + 1.0).min(self.most as f64);
            return;
        };
        if after > mean + (LATE_DEVIATIONS * variance.sqrt()).max(LATE_AT_LEAST) {
            self.held_back();
        } else if after <= mean + LATE_AT_LEAST && under_way >= self.now() {
            self.limit = (self.limit + 1.0).min(self.most as f64);
        }
        let off = after - mean;
        let mean = mean + USUAL_WEIGHT * off;
        self.usual = Some((mean, (1.0 - USUAL_WEIGHT) * (variance + USUAL_WEIGHT * off * off)));
    }

    /// The other side asks for less, or does not answer.
    pub fn held_back(&mut self) {
        self.limit = (self.limit * DECREASE).max(1.0);
    }
}

/// What may be spent on trying again: with a service that fails every other time, tries would otherwise
/// become half of its load. Nothing is given up when it is spent; tries become rare.
#[derive(Clone, Debug)]
pub struct Quota(u32);

/// What is there at first and at most, and what a retry costs, and one after no answer at all.
const QUOTA: u32 = 500;
const RETRY_COST: u32 = 5;
const TIMEOUT_COST: u32 = 10;

impl Quota {
    /// Full.
    pub fn new() -> Quota {
        Quota(QUOTA)
    }

    /// A request was taken.
    pub fn earn(&mut self) {
        self.0 = (self.0 + 1).min(QUOTA);
    }

    /// A request has to be made again; `false` when there is nothing left to spend.
    pub fn spend(&mut self, unanswered: bool) -> bool {
        let cost = if unanswered { TIMEOUT_COST } else { RETRY_COST };
        let affordable = self.0 >= cost;
        self.0 = self.0.saturating_sub(cost);
        affordable
    }
}

impl Default for Quota {
    fn default() -> Quota {
        Quota::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-22T10:15:30Z";

    fn seconds(value: &str) -> Option<u64> {
        retry_after(value, NOW.parse().expect("a time")).map(|d| d.as_secs())
    }

    #[test]
    fn retry_after_in_seconds_is_held_within_bounds() {
        assert_eq!(seconds("7"), Some(7));
        assert_eq!(seconds(" 120 "), Some(120));
        assert_eq!(seconds("0"), Some(1));
        assert_eq!(seconds("86400"), Some(3600));
        assert_eq!(seconds("99999999999999999999999999"), Some(3600));
    }

    #[test]
    fn retry_after_as_date_in_all_three_forms() {
        assert_eq!(seconds("Sun, 22 Nov 2026 10:15:37 GMT"), Some(7));
        assert_eq!(seconds("Sunday, 22-Nov-26 10:15:37 GMT"), Some(7));
        assert_eq!(seconds("Sun Nov 22 10:15:37 2026"), Some(7));
        assert_eq!(seconds("Sun, 22 Nov 2026 09:00:00 GMT"), Some(1), "in the past");
        assert_eq!(seconds("Mon, 23 Nov 2026 10:15:30 GMT"), Some(3600), "a day away");
    }

    #[test]
    fn nonsense_is_no_retry_after() {
        for value in ["", "soon", "-5", "1.5", "Sun, 99 Nov 2026 10:15:37 GMT", "\u{0}"] {
            assert_eq!(seconds(value), None, "{value:?}");
        }
    }

    #[test]
    fn the_pace_never_undercuts_what_was_asked() {
        let mut pace = Pace::new(Duration::from_millis(500), Duration::from_secs(60));
        assert_eq!(pace.after_failure(Some(Duration::from_secs(7)), 0.0), Duration::from_secs(7));
        assert_eq!(pace.after_failure(Some(Duration::from_secs(10)), 1.0), Duration::from_secs(11));
        assert_eq!(pace.after_failure(None, 1.0), Duration::from_secs(2), "the failures before count");
    }

    #[test]
    fn the_size_is_remembered_and_grows_back_slowly() {
        let mut limit = SizeLimit::new(1000);
        limit.refused(1000);
        limit.refused(500);
        assert_eq!(limit.bytes(), 250);
        (1..STREAK_TO_GROW).for_each(|_| limit.taken());
        assert_eq!(limit.bytes(), 250);
        limit.taken();
        assert_eq!(limit.bytes(), 376);
        (0..10 * STREAK_TO_GROW).for_each(|_| limit.taken());
        assert_eq!(limit.bytes(), 1000);
    }

    fn answers(c: &mut Concurrency, ms: u64, times: usize) {
        (0..times).for_each(|_| c.answered(Duration::from_millis(ms), c.now()));
    }

    #[test]
    fn concurrency_grows_while_answers_are_quick_and_falls_when_they_are_late() {
        let mut c = Concurrency::new(8);
        assert_eq!(c.now(), 1);
        answers(&mut c, 20, 20);
        assert_eq!(c.now(), 8);
        // A ramp: each answer later than those before.
        for ms in [200, 600, 1_200, 2_400, 4_800, 9_600] {
            answers(&mut c, ms, 2);
        }
        assert!(c.now() < 6, "{}", c.now());
        (0..100).for_each(|_| c.held_back());
        assert_eq!(c.now(), 1);
    }

    #[test]
    fn concurrency_that_is_not_used_does_not_grow() {
        let mut c = Concurrency::new(8);
        (0..50).for_each(|_| c.answered(Duration::from_millis(20), 1));
        assert_eq!(c.now(), 2);
        let mut single = Concurrency::new(1);
        answers(&mut single, 20, 50);
        assert_eq!(single.now(), 1);
    }

    #[test]
    fn the_quota_is_spent_by_retries_and_earned_by_success() {
        let mut quota = Quota::new();
        assert_eq!((0..1_000).filter(|_| quota.spend(false)).count(), 100);
        (0..10).for_each(|_| quota.earn());
        assert!(quota.spend(true) && !quota.spend(false));
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_read_without_panic_and_within_bounds(value in ".*") {
            if let Some(wait) = retry_after(&value, Time(0)) {
                proptest::prop_assert!(wait >= RETRY_AFTER.0 && wait <= RETRY_AFTER.1);
            }
        }
    }
}
