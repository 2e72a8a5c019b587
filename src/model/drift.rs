//! What models meet in service, held against what they were made from: each channel's values against
//! the reference (population stability index, Kolmogorov-Smirnov), p-values against the uniform
//! distribution they have while nothing has changed, and alarms against their budget. Pure and of fixed
//! size: counts in bins, never values.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{Name, Reason, Time};

/// Bins that a reference made here has: deciles.
const BINS: usize = 10;
/// More bins than this a reference need not have.
pub const MAX_BINS: usize = 64;
/// Bins of p-values: 0.05 wide each.
pub const P_BINS: usize = 20;
/// No share is taken to be less: an empty bin says "seldom", not "never".
const LEAST_SHARE: f64 = 1e-4;
/// A stability index from here on is a warning: the usual rule has 0.1 for a small and 0.25 for a large shift.
pub const WARN_PSI: f64 = 0.25;
/// Low p-values more frequent than they should be, by so much of all windows, are a warning.
pub const WARN_LOW_P: f64 = 0.25;
/// Rows that a report needs: ten bins of fewer differ by chance alone.
pub const MIN_ROWS: u64 = 300;
/// How long alarms count for the measured rate, in seconds: after 30 days 1/e of their weight is left.
const ALARM_MEMORY: f64 = 30.0 * 86_400.0;
/// Seconds in a day.
const DAY: f64 = 86_400.0;

/// How a channel's values were spread when the model was made. Bin `i` holds values above edge `i - 1` up to
/// and including edge `i`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bins {
    /// Rising.
    pub edges: Vec<f64>,
    /// One more than edges; they sum to 1.
    pub shares: Vec<f64>,
}

/// How `reference.json` says that a channel was spread.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Spread {
    /// As bins.
    Bins(Bins),
    /// As quantiles by name: `q05` is what 5 % of the values are not above.
    Quantiles(BTreeMap<String, f64>),
}

impl Spread {
    /// As bins; `None` where all quantiles are the same. `Err` says what is wrong.
    pub fn bins(&self) -> Result<Option<Bins>, String> {
        let quantiles = match self {
            Spread::Bins(bins) => return bins.check().map(|()| Some(bins.clone())),
            Spread::Quantiles(quantiles) => quantiles,
        };
        let mut points = Vec::new();
        for (name, value) in quantiles {
            let share = name.strip_prefix('q').and_then(|n| n.parse::<u8>().ok()).filter(|n| (1..=99).contains(n));
            let share = share.ok_or_else(|| format!("{name:?} is not `edges`, `shares` or a quantile such as q05"))?;
            points.push((f64::from(share) / 100.0, *value));
        }
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (mut bins, mut below) = (Bins::default(), 0.0);
        for (i, (share, value)) in points.iter().enumerate() {
            // Of quantiles on one value the highest says how much is not above it.
            if points.get(i + 1).is_some_and(|(_, next)| next == value) {
                continue;
            }
            bins.edges.push(*value);
            bins.shares.push(share - below);
            below = *share;
        }
        bins.shares.push(1.0 - below);
        if bins.edges.len() < 2 {
            return Ok(None);
        }
        bins.check().map(|()| Some(bins))
    }
}

impl Bins {
    /// Deciles of finite values; `None` when they are all the same or too few to tell.
    pub fn learn(mut values: Vec<f64>) -> Option<Bins> {
        values.retain(|v| v.is_finite());
        values.sort_by(f64::total_cmp);
        let (first, last) = (*values.first()?, *values.last()?);
        if first == last || values.len() < 2 * BINS {
            return None;
        }
        let mut edges: Vec<f64> = (1..BINS).map(|i| values[i * values.len() / BINS]).collect();
        // The last bin would be empty with an edge on the greatest value.
        edges.dedup();
        edges.retain(|e| *e < last);
        if edges.is_empty() {
            edges.push(first);
        }
        let mut bins = Bins { shares: vec![0.0; edges.len() + 1], edges };
        for v in &values {
            let place = bins.place(*v);
            bins.shares[place] += 1.0;
        }
        bins.shares.iter_mut().for_each(|n| *n /= values.len() as f64);
        Some(bins)
    }

    /// Whether they can be used; `Err` says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        let n = self.edges.len();
        if n == 0 || n >= MAX_BINS || self.shares.len() != n + 1 {
            return Err(format!(
                "{n} edges and {} shares are not 1 to {} edges and one share more",
                self.shares.len(),
                MAX_BINS - 1
            ));
        }
        if self.edges.iter().any(|e| !e.is_finite()) || self.edges.windows(2).any(|e| e[0] >= e[1]) {
            return Err("its edges do not rise".into());
        }
        let sum: f64 = self.shares.iter().sum();
        if self.shares.iter().any(|s| !(0.0..=1.0).contains(s)) || (sum - 1.0).abs() > 1e-3 {
            return Err(format!("its shares sum to {sum}, not to 1"));
        }
        Ok(())
    }

    /// The bin of a value.
    pub fn place(&self, value: f64) -> usize {
        self.edges.partition_point(|e| *e < value)
    }
}

/// The population stability index of counts against expected shares: 0 where they agree.
pub fn psi(expected: &[f64], counts: &[u64]) -> f64 {
    let n = counts.iter().sum::<u64>();
    if n == 0 {
        return 0.0;
    }
    let term = |(e, c): (&f64, &u64)| {
        let (e, a) = (e.max(LEAST_SHARE), (*c as f64 / n as f64).max(LEAST_SHARE));
        (a - e) * (a / e).ln()
    };
    expected.iter().zip(counts).map(term).sum()
}

/// The greatest distance between the two distributions at the bins' edges, 0..1 (Kolmogorov-Smirnov).
pub fn ks(expected: &[f64], counts: &[u64]) -> f64 {
    distances(expected, counts).map(f64::abs).fold(0.0, f64::max)
}

/// How much more of the counts lies at the lower end than expected, 0..1: the one-sided distance.
pub fn low_excess(expected: &[f64], counts: &[u64]) -> f64 {
    distances(expected, counts).fold(0.0, f64::max)
}

/// Of the cumulated shares at each edge, found less expected.
fn distances(expected: &[f64], counts: &[u64]) -> impl Iterator<Item = f64> {
    let n = counts.iter().sum::<u64>().max(1) as f64;
    expected.iter().zip(counts).scan((0.0, 0.0), move |(e, c), (share, count)| {
        *e += share;
        *c += *count as f64 / n;
        Some(*c - *e)
    })
}

/// Counts of p-values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PValues {
    counts: [u64; P_BINS],
}

impl PValues {
    /// Counts one, 0..1.
    pub fn add(&mut self, p: f64) {
        // A cast of a float stays within the integer's range.
        self.counts[((p * P_BINS as f64) as usize).min(P_BINS - 1)] += 1;
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Distance from uniform, 0..1.
    pub fn ks(&self) -> f64 {
        ks(&[1.0 / P_BINS as f64; P_BINS], &self.counts)
    }

    /// How many more low ones than uniform has, 0..1.
    pub fn low_excess(&self) -> f64 {
        low_excess(&[1.0 / P_BINS as f64; P_BINS], &self.counts)
    }
}

/// Windows by what became of them.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes {
    /// Judged.
    pub scored: u64,
    /// Of these, beyond the limit.
    pub anomalies: u64,
    /// The machine was off.
    pub off: u64,
    /// Data was missing before.
    pub warming_up: u64,
    /// A channel was bad or stale.
    pub input_bad: u64,
    /// The model gave nothing of use.
    pub unavailable: u64,
}

impl Outcomes {
    fn count(&mut self, reason: Reason) {
        *match reason {
            Reason::AnomalyDetected | Reason::NoAnomalyDetected | Reason::Uncertain => &mut self.scored,
            Reason::MachineOff => &mut self.off,
            Reason::WarmingUp => &mut self.warming_up,
            Reason::InputBad => &mut self.input_bad,
            Reason::ModelUnavailable => &mut self.unavailable,
        } += 1;
        self.anomalies += u64::from(reason == Reason::AnomalyDetected);
    }

    /// Share of the windows of running machines that could not be judged for their inputs, 0..1.
    pub fn bad_ratio(&self) -> f64 {
        let of = self.scored + self.unavailable + self.input_bad + self.warming_up;
        if of == 0 { 0.0 } else { (self.input_bad + self.warming_up) as f64 / of as f64 }
    }
}

/// Alarms beside what was promised, with older ones fading.
#[derive(Copy, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AlarmRate {
    alarms: f64,
    promised: f64,
    /// Seconds that machines were watched, of those with a promise.
    watched: f64,
    at: Time,
}

impl AlarmRate {
    /// A machine was watched for so many seconds, with so many false alarms a day promised.
    pub fn watched(&mut self, now: Time, seconds: f64, promised_per_day: f64) {
        let fade = (-now.since(self.at).as_secs_f64() / ALARM_MEMORY).exp();
        let fade = if self.at == Time::default() { 1.0 } else { fade };
        self.alarms *= fade;
        self.promised = self.promised * fade + promised_per_day * seconds / DAY;
        self.watched = self.watched * fade + seconds;
        self.at = self.at.max(now);
    }

    /// One was raised.
    pub fn raised(&mut self) {
        self.alarms += 1.0;
    }

    /// Promised and measured, per machine and day, and the machine-days that this rests on; `None` before
    /// any.
    pub fn per_day(&self) -> Option<(f64, f64, f64)> {
        let days = self.watched / DAY;
        (days > 0.0).then(|| (self.promised / days, self.alarms / days, days))
    }
}

/// A model's course since the last report, over all its machines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Monitor {
    digest: Option<Name>,
    since: Time,
    rows: u64,
    /// By channel and bin; empty where there is no reference.
    channels: Vec<Vec<u64>>,
    /// Windows not judged for this channel.
    blamed: Vec<u64>,
    p_values: PValues,
    outcomes: Outcomes,
    alarms: AlarmRate,
    last: Option<Report>,
}

/// What is held against what.
pub struct Yardstick<'a> {
    /// SHA-256 of the graph.
    pub digest: &'a Name,
    /// How each channel was spread; empty where the bundle does not say.
    pub reference: &'a [Option<Bins>],
    /// The channels' names.
    pub channels: &'a [Name],
}

/// What a monitor found in an interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Since when.
    pub from: Time,
    /// Until when.
    pub to: Time,
    /// Rows of readings held against the reference.
    pub rows: u64,
    /// By channel, in the model's order.
    pub channels: Vec<Channel>,
    /// Distance of the p-values from uniform, 0..1; `None` where the model has no reference scores.
    pub p_ks: Option<f64>,
    /// How many more low p-values there were than there should be, 0..1.
    pub p_low_excess: Option<f64>,
    /// Windows by outcome.
    pub outcomes: Outcomes,
    /// False alarms promised, alarms measured (per machine and day), and machine-days watched.
    pub alarms: Option<(f64, f64, f64)>,
}

/// One channel of a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Channel {
    /// The model's name for it.
    pub name: Name,
    /// Stability index; `None` without a reference.
    pub psi: Option<f64>,
    /// Distance, 0..1; `None` without a reference.
    pub ks: Option<f64>,
    /// Windows that could not be judged for it.
    pub blamed: u64,
}

impl Report {
    /// The channel that has moved most.
    pub fn worst(&self) -> Option<&Channel> {
        self.channels
            .iter()
            .filter(|c| c.psi.is_some())
            .max_by(|a, b| a.psi.unwrap_or(0.0).total_cmp(&b.psi.unwrap_or(0.0)))
    }

    /// What a person has to know, if anything.
    pub fn warning(&self) -> Option<String> {
        let moved = self.worst().filter(|c| c.psi.is_some_and(|psi| psi >= WARN_PSI));
        let moved = moved.map(|c| {
            format!("{} is not spread as in the data the model was made from (PSI {:.2})", c.name, c.psi.unwrap_or(0.0))
        });
        let scores = self.p_low_excess.filter(|x| *x >= WARN_LOW_P);
        moved.or_else(|| {
            scores.map(|x| format!("scores are higher than the model's reference says ({:.0} % too many)", x * 100.0))
        })
    }
}

impl Monitor {
    /// Makes ready for a model; another than before starts anew, but for its alarms.
    pub fn meet(&mut self, stick: &Yardstick<'_>, now: Time) {
        if self.digest.as_ref() == Some(stick.digest) && self.blamed.len() == stick.channels.len() {
            return;
        }
        let empty = |bins: &Option<Bins>| bins.as_ref().map_or_else(Vec::new, |b| vec![0; b.shares.len()]);
        *self = Monitor {
            digest: Some(stick.digest.clone()),
            since: now,
            channels: stick.reference.iter().map(empty).collect(),
            blamed: vec![0; stick.channels.len()],
            alarms: self.alarms,
            ..Monitor::default()
        };
    }

    /// Starts anew with what it meets next, but for alarms.
    pub fn restart(&mut self) {
        self.digest = None;
    }

    /// Counts rows [n × channels] that are new in a window.
    pub fn rows(&mut self, stick: &Yardstick<'_>, rows: &[f32]) {
        let width = stick.channels.len().max(1);
        for row in rows.chunks_exact(width) {
            self.rows += 1;
            for ((value, bins), counts) in row.iter().zip(stick.reference).zip(&mut self.channels) {
                if let Some(count) = bins.as_ref().and_then(|b| counts.get_mut(b.place(f64::from(*value)))) {
                    *count += 1;
                }
            }
        }
    }

    /// Counts a verdict.
    pub fn verdict(&mut self, reason: Reason, p_value: Option<f64>) {
        self.outcomes.count(reason);
        p_value.into_iter().for_each(|p| self.p_values.add(p));
    }

    /// Nothing was judged because of this channel.
    pub fn blame(&mut self, channel: usize) {
        self.blamed.get_mut(channel).into_iter().for_each(|n| *n += 1);
    }

    /// Alarms beside their budget.
    pub fn alarms(&mut self) -> &mut AlarmRate {
        &mut self.alarms
    }

    /// The last report.
    pub fn last(&self) -> Option<&Report> {
        self.last.as_ref()
    }

    /// A report, once in so long and when there are rows enough to tell; then counting starts anew.
    pub fn report(&mut self, stick: &Yardstick<'_>, every: Duration, now: Time) -> Option<Report> {
        if now.since(self.since) < every || self.rows < MIN_ROWS {
            return None;
        }
        let channel = |(i, name): (usize, &Name)| {
            let counts = self.channels.get(i).filter(|c| !c.is_empty());
            let bins = stick.reference.get(i).and_then(Option::as_ref);
            let both = counts.zip(bins);
            Channel {
                name: name.clone(),
                psi: both.map(|(c, b)| psi(&b.shares, c)),
                ks: both.map(|(c, b)| ks(&b.shares, c)),
                blamed: self.blamed.get(i).copied().unwrap_or(0),
            }
        };
        let p_values = Some(&self.p_values).filter(|p| !p.is_empty());
        let report = Report {
            from: self.since,
            to: now,
            rows: self.rows,
            channels: stick.channels.iter().enumerate().map(channel).collect(),
            p_ks: p_values.map(PValues::ks),
            p_low_excess: p_values.map(PValues::low_excess),
            outcomes: self.outcomes,
            alarms: self.alarms.per_day(),
        };
        (self.since, self.rows) = (now, 0);
        self.channels.iter_mut().for_each(|c| c.fill(0));
        self.blamed.fill(0);
        (self.p_values, self.outcomes) = (PValues::default(), Outcomes::default());
        self.last = Some(report.clone());
        Some(report)
    }
}

#[cfg(test)]
mod tests;
