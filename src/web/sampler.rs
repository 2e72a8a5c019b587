//! Once a second: how much waits, how much comes in, how much has gone out; for the data path's plot
//! and for the browsers that listen.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

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

/// The last [`SAMPLES`], oldest first.
#[derive(Default)]
pub struct Samples(Mutex<VecDeque<Sample>>);

impl Samples {
    /// The newest; zeros before there is one.
    pub fn last(&self) -> Sample {
        lock(&self.0).back().copied().unwrap_or_default()
    }

    /// All, oldest first.
    pub fn to_vec(&self) -> Vec<Sample> {
        lock(&self.0).iter().copied().collect()
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
