//! Durations and sizes as people write them.

use std::time::Duration;

/// Reads `500ms`, `1.5s`, `10 min`, `2h`, `7d`, `1w`. A bare `0` is zero.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let seconds = match unit {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" | "sec" | "second" | "seconds" => 1.0,
        "m" | "min" | "minute" | "minutes" => 60.0,
        "h" | "hour" | "hours" => 3600.0,
        "d" | "day" | "days" => 86_400.0,
        "w" | "week" | "weeks" => 604_800.0,
        "" if number == 0.0 => 1.0,
        _ => return None,
    };
    let nanos = (number * seconds * 1e9).round();
    (nanos <= 9e18).then(|| Duration::from_nanos(nanos as u64))
}

/// Reads how many in how long: `1 per week`, `0.5 per day`, `2 per 30d`, `1 per month`. Both are above zero.
pub fn parse_rate(text: &str) -> Option<(f64, Duration)> {
    let (count, period) = text.split_once(" per ")?;
    let count: f64 = count.trim().parse().ok()?;
    let period = period.trim();
    let period = match period {
        "month" => Duration::from_secs(30 * 86_400),
        "year" => Duration::from_secs(365 * 86_400),
        word => parse_duration(word).or_else(|| parse_duration(&format!("1{word}")))?,
    };
    (count > 0.0 && count.is_finite() && !period.is_zero()).then_some((count, period))
}

/// Reads `512`, `64KiB`, `2 GB` and so on, in bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let bytes = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1048576.0,
        "gib" => 1073741824.0,
        "tib" => 1099511627776.0,
        _ => return None,
    };
    let total = number * bytes;
    (total <= 9e18).then_some(total as u64)
}

/// A period without the noise of the clock that measured it: the nearest of three significant digits where that
/// is within 0.02 %, else the period itself.
pub fn plain_period(d: Duration) -> Duration {
    let nanos = d.as_nanos() as u64;
    let unit = 10u64.pow(nanos.checked_ilog10().unwrap_or(0).saturating_sub(2));
    let near = (nanos.saturating_add(unit / 2) / unit).saturating_mul(unit);
    if near.abs_diff(nanos).saturating_mul(5_000) <= nanos { Duration::from_nanos(near) } else { d }
}

fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok()?;
    Some((number, text[end..].trim()))
}
