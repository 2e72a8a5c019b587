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

    proptest::proptest! {
        #[test]
        fn any_header_is_read_without_panic_and_within_bounds(value in ".*") {
            if let Some(wait) = retry_after(&value, Time(0)) {
                proptest::prop_assert!(wait >= RETRY_AFTER.0 && wait <= RETRY_AFTER.1);
            }
        }
    }
}
