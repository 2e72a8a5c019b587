//! What the poller tells of itself: metrics, the board and the log, each state once.

use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use tracing::{info, warn};

use super::config::Config;
use super::connection::Failure;
use crate::metrics::{Health, Pace, Shared};
use crate::types::{Cause, Name, Quality, Reading};

/// Signals named on the board when they are bad; the rest are counted.
const NAMED: usize = 5;

/// See the top of this file.
pub struct Report {
    shared: Shared,
    source: Name,
    part: String,
    url: String,
    said: Option<(Health, String)>,
    /// Of log lines that name bad signals. A signal may change from good to bad with every round.
    pace: Pace,
    /// The last such line was left out, and so is the one that says that all is well again.
    left_out: bool,
    trouble: String,
    connected: Gauge,
    connects: Counter,
    seconds: Histogram,
    good: Counter,
    bad: Counter,
}

impl Report {
    /// The board says `starting`.
    pub fn new(config: &Config, shared: Shared) -> Report {
        let source = config.name.to_string();
        let metrics = shared.metrics.clone();
        let readings = |q: Quality| {
            let labels = [("source", source.clone()), ("quality", q.as_str().to_owned())];
            metrics.readings.get_or_create_owned(&labels)
        };
        let mut report = Report {
            part: format!("source/{source}"),
            url: config.url.to_string(),
            said: None,
            pace: Pace::default(),
            left_out: false,
            trouble: String::new(),
            connected: metrics.source_connected.get_or_create_owned(&[("source", source.clone())]),
            connects: metrics.source_connects.get_or_create_owned(&[("source", source.clone())]),
            seconds: metrics.modbus_request.get_or_create_owned(&[("source", source.clone())]),
            good: readings(Quality::Good),
            bad: readings(Quality::Bad),
            source: config.name.clone(),
            shared,
        };
        report.say(Health::Starting, format!("connecting to {}", config.url));
        report
    }

    /// There is a connection.
    pub fn connected(&mut self) {
        self.connected.set(1);
        self.connects.inc();
    }

    /// There is none any more.
    pub fn disconnected(&mut self) {
        self.connected.set(0);
    }

    /// A connection could not be made.
    pub fn unreachable(&mut self, failure: &Failure) {
        self.trouble = format!("cannot connect to {}: {failure}", self.url);
        self.say(Health::Down, self.trouble.clone());
    }

    /// A connection was given up.
    pub fn lost(&mut self, failure: &Failure) {
        self.trouble = format!("{}: {failure}", self.url);
    }

    /// A request is over.
    pub fn request(&self, took: Duration, result: &Result<Vec<u16>, Failure>) {
        self.seconds.observe(took.as_secs_f64());
        let outcome = result.as_ref().map_or_else(Failure::outcome, |_| "ok");
        let labels = [("source", self.source.to_string()), ("outcome", outcome.to_owned())];
        self.shared.metrics.modbus_requests.get_or_create(&labels).inc();
    }

    /// A round is over. `up`: the device is there. `causes` are those of all signals.
    pub fn round(&mut self, up: bool, config: &Config, causes: &[Cause], readings: &[Reading]) {
        let good = readings.iter().filter(|r| r.quality == Quality::Good).count();
        self.good.inc_by(good as u64);
        self.bad.inc_by((readings.len() - good) as u64);
        let (health, detail) = if !up {
            (Health::Down, self.trouble.clone())
        } else if causes.iter().all(|c| *c == Cause::None) {
            (Health::Up, format!("{} signals from {}", config.signals.len(), self.url))
        } else {
            (Health::Degraded, bad_signals(config, causes))
        };
        self.say(health, detail);
        if good > 0 {
            self.shared.board.good(&self.part);
        }
    }

    fn say(&mut self, health: Health, detail: String) {
        if self.said.as_ref().is_some_and(|(h, d)| *h == health && *d == detail) {
            return;
        }
        let news = self.said.as_ref().is_none_or(|(h, _)| *h != health);
        match health {
            Health::Starting | Health::Up if news && !self.left_out => info!(source = %self.source, "{detail}"),
            Health::Down if news => warn!(source = %self.source, "{detail}"),
            Health::Degraded => self.log_bad_signals(&detail),
            _ => {}
        }
        self.left_out &= health == Health::Degraded;
        self.shared.board.set(&self.part, health, detail.clone());
        self.said = Some((health, detail));
    }

    /// One line when a signal turns bad, then at a bounded rate with the count of changes.
    fn log_bad_signals(&mut self, detail: &str) {
        let due = self.pace.due(1, Instant::now());
        self.left_out = due.is_none();
        if let Some(changes) = due {
            warn!(source = %self.source, changes, "{detail}");
        }
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.connected.set(0);
    }
}

/// "bad: press/pressure (exception), press/speed (not_finite) and 3 more"
fn bad_signals(config: &Config, causes: &[Cause]) -> String {
    let bad: Vec<String> = (config.signals.iter().zip(causes))
        .filter(|(_, cause)| **cause != Cause::None)
        .map(|(s, cause)| format!("{}/{} ({})", s.machine, s.name, cause.as_str()))
        .collect();
    let more = bad.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("bad: {}{more}", bad[..bad.len().min(NAMED)].join(", "))
}
