//! Once a second: how much waits, how much comes in, how much has gone out; for the data path's plot
//! and for the browsers that listen.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::{App, api};
use crate::metrics::lock;
use crate::types::Time;

/// Samples kept: ten minutes.
const SAMPLES: usize = 600;
const EVERY: Duration = Duration::from_secs(1);

/// The data path at one moment.
#[derive(Copy, Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// When.
    pub at: Time,
    /// Records waiting for the slowest sink, over all lanes.
    pub waiting: f64,
    /// Readings taken in since the start.
    pub readings: f64,
    /// Records accepted by sinks since the start.
    pub forwarded: f64,
    /// Readings per second since the sample before.
    pub readings_rate: f64,
    /// Accepted records per second since the sample before.
    pub forwarded_rate: f64,
}

/// The last [`SAMPLES`], oldest first, and what was counted by the last of them.
#[derive(Default)]
pub struct Samples(Mutex<VecDeque<Sample>>, Mutex<Vec<Value>>);

/// What the pages on data path and models count, by the names it is scraped under.
const COUNTED: &[&str] = &[
    "andon_readings_total",
    "andon_readings_dropped_total",
    "andon_rejected_payloads_total",
    "andon_modbus_requests_total",
    "andon_modbus_request_seconds_sum",
    "andon_source_connects_total",
    "andon_windows_total",
    "andon_inference_errors_total",
    "andon_inference_seconds_sum",
    "andon_inference_seconds_count",
    "andon_store_dropped_total",
    "andon_outbox_records",
    "andon_forward_records_total",
    "andon_forward_requests_total",
    "andon_forward_dead_letters_total",
    "andon_publish_dropped_messages_total",
];
/// Counts shown: labels come from the config, so there are few.
const MAX_COUNTS: usize = 400;

impl Samples {
    /// The newest; zeros before there is one.
    pub fn last(&self) -> Sample {
        lock(&self.0).back().copied().unwrap_or_default()
    }

    /// All, oldest first.
    pub fn to_vec(&self) -> Vec<Sample> {
        lock(&self.0).iter().copied().collect()
    }

    /// What was counted, each `{"name", "labels", "value"}`.
    pub fn counts(&self) -> Vec<Value> {
        lock(&self.1).clone()
    }

    fn push(&self, mut new: Sample) {
        let mut samples = lock(&self.0);
        if let Some(last) = samples.back() {
            let seconds = new.at.since(last.at).as_secs_f64().max(0.001);
            new.readings_rate = (new.readings - last.readings).max(0.0) / seconds;
            new.forwarded_rate = (new.forwarded - last.forwarded).max(0.0) / seconds;
        }
        if samples.len() == SAMPLES {
            samples.pop_front();
        }
        samples.push_back(new);
    }
}

/// Samples until `stop`.
pub async fn run(app: Arc<App>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let text = app.shared.metrics.render();
        app.samples.push(sample(&text, Time::now()));
        *lock(&app.samples.1) = counts(&text);
        if app.state.view.listeners() > 0 {
            app.state.view.send("status", &api::status_of(&app));
        }
    }
}

/// Reads a sample from the text that Prometheus scrapes: the metric families cannot be walked otherwise.
fn sample(text: &str, at: Time) -> Sample {
    let mut sample = Sample { at, ..Sample::default() };
    for line in text.lines() {
        let Some((name, value)) = line.rsplit_once(' ') else { continue };
        let name = name.split('{').next().unwrap_or(name);
        let total = match name {
            "andon_outbox_records" => &mut sample.waiting,
            "andon_readings_total" => &mut sample.readings,
            "andon_forward_records_total" => &mut sample.forwarded,
            _ => continue,
        };
        *total += value.parse::<f64>().unwrap_or(0.0);
    }
    sample
}

fn counts(text: &str) -> Vec<Value> {
    let count = |line: &str| {
        let (sample, value) = line.rsplit_once(' ')?;
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let value: f64 = value.parse().ok().filter(|v: &f64| v.is_finite() && *v != 0.0)?;
        let known = COUNTED.contains(&name);
        known.then(|| json!({"name": name, "labels": labels_of(labels.trim_end_matches('}')), "value": value}))
    };
    text.lines().filter(|l| !l.starts_with('#')).filter_map(count).take(MAX_COUNTS).collect()
}

/// Reads `a="x",b="y\"z"`.
fn labels_of(text: &str) -> Value {
    let mut out = Map::new();
    let mut rest = text;
    while let Some((name, more)) = rest.split_once("=\"") {
        let (mut value, mut escaped, mut end) = (String::new(), false, more.len());
        for (i, c) in more.char_indices() {
            match (escaped, c) {
                (false, '\\') => escaped = true,
                (false, '"') => {
                    end = i;
                    break;
                }
                (true, 'n') => (value, escaped) = (value + "\n", false),
                (_, c) => {
                    value.push(c);
                    escaped = false;
                }
            }
        }
        out.insert(name.trim_start_matches(',').to_owned(), value.into());
        rest = more.get(end + 1..).unwrap_or("");
    }
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn totals_are_summed_over_labels() {
        let m = Metrics::new();
        m.readings.get_or_create(&[("source", "a b".into()), ("quality", "good".into())]).inc_by(40);
        m.readings.get_or_create(&[("source", "c\"}".into()), ("quality", "bad".into())]).inc_by(2);
        m.outbox_records.get_or_create(&[("lane", "alarm".into())]).set(3);
        m.outbox_records.get_or_create(&[("lane", "verdict".into())]).set(4);
        let s = sample(&m.render(), Time(1));
        assert_eq!((s.readings, s.waiting, s.forwarded), (42.0, 7.0, 0.0));
        let counted = counts(&m.render());
        let odd = json!({"name": "andon_readings_total", "labels": {"source": "c\"}", "quality": "bad"}, "value": 2.0});
        assert!(counted.contains(&odd), "{counted:?}");
    }

    #[test]
    fn rates_come_from_neighbours_and_never_go_below_zero() {
        let samples = Samples::default();
        for (second, readings) in [(0, 100.0), (1, 350.0), (3, 350.0), (4, 10.0)] {
            samples.push(Sample { at: Time(second * 1_000_000_000), readings, ..Sample::default() });
        }
        let rates: Vec<f64> = samples.to_vec().iter().map(|s| s.readings_rate).collect();
        assert_eq!(rates, [0.0, 250.0, 0.0, 0.0]);
        for n in 0..2 * SAMPLES as i64 {
            samples.push(Sample { at: Time(n), ..Sample::default() });
        }
        assert_eq!(samples.to_vec().len(), SAMPLES);
    }
}
