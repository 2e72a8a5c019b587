//! How well a run did: counts per row against labels, alarms per day, and how early events were seen.

use std::collections::HashMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::types::{Name, Time, Verdict};

/// Collects rows as they pass.
#[derive(Debug, Default)]
pub struct Score {
    rows: u64,
    windows: u64,
    scored: u64,
    /// By label and prediction: [normal, anomalous][quiet, predicted].
    counts: [[u64; 2]; 2],
    labelled: bool,
    alarms: u64,
    seconds: f64,
    machines: HashMap<Name, Machine>,
    delays: Vec<f64>,
    leads: Vec<f64>,
    events: u64,
}

/// What has to be remembered of a machine from row to row.
#[derive(Debug, Default)]
struct Machine {
    last: Option<Time>,
    alarm: bool,
    event: Option<Event>,
}

/// A labelled stretch under way.
#[derive(Debug)]
struct Event {
    start: Time,
    end: Time,
    seen: Option<Time>,
}

/// The figures; ratios are `None` where nothing was there to count.
#[derive(Debug)]
pub struct Figures {
    rows: u64,
    machines: usize,
    windows: u64,
    scored: u64,
    alarms: u64,
    alarms_per_day: f64,
    quality: Option<Quality>,
}

/// What labels allow to say.
#[derive(Debug)]
struct Quality {
    counts: [[u64; 2]; 2],
    events: u64,
    events_seen: u64,
    delay: Option<f64>,
    lead: Option<f64>,
}

impl Score {
    /// A verdict was made.
    pub fn verdict(&mut self, v: &Verdict) {
        self.windows += 1;
        self.scored += u64::from(v.score.is_some());
    }

    /// A row has passed.
    pub fn row(&mut self, machine: &Name, at: Time, predicted: bool, alarm: bool, label: Option<bool>) {
        self.rows += 1;
        let m = self.machines.entry(machine.clone()).or_default();
        self.seconds += m.last.map_or(0.0, |last| at.since(last).as_secs_f64());
        m.last = Some(at);
        self.alarms += u64::from(alarm && !m.alarm);
        m.alarm = alarm;
        let Some(label) = label else { return };
        self.labelled = true;
        self.counts[usize::from(label)][usize::from(predicted)] += 1;
        let over = if label {
            let event = m.event.get_or_insert(Event { start: at, end: at, seen: None });
            event.end = at;
            event.seen = event.seen.or(predicted.then_some(at));
            None
        } else {
            m.event.take()
        };
        self.close(over);
    }

    fn close(&mut self, event: Option<Event>) {
        let Some(event) = event else { return };
        self.events += 1;
        if let Some(seen) = event.seen {
            self.delays.push(seen.since(event.start).as_secs_f64());
            self.leads.push(event.end.since(seen).as_secs_f64());
        }
    }

    /// The end: what it all comes to.
    pub fn figures(mut self) -> Figures {
        let open: Vec<Event> = self.machines.values_mut().filter_map(|m| m.event.take()).collect();
        open.into_iter().for_each(|e| self.close(Some(e)));
        let quality = self.labelled.then(|| Quality {
            counts: self.counts,
            events: self.events,
            events_seen: self.delays.len() as u64,
            delay: median(&mut self.delays),
            lead: median(&mut self.leads),
        });
        Figures {
            rows: self.rows,
            machines: self.machines.len(),
            windows: self.windows,
            scored: self.scored,
            alarms: self.alarms,
            alarms_per_day: if self.seconds > 0.0 { self.alarms as f64 * 86_400.0 / self.seconds } else { 0.0 },
            quality,
        }
    }
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

impl Quality {
    fn precision(&self) -> Option<f64> {
        ratio(self.counts[1][1], self.counts[1][1] + self.counts[0][1])
    }

    fn recall(&self) -> Option<f64> {
        ratio(self.counts[1][1], self.counts[1][1] + self.counts[1][0])
    }

    fn f1(&self) -> Option<f64> {
        ratio(2 * self.counts[1][1], 2 * self.counts[1][1] + self.counts[0][1] + self.counts[1][0])
    }

    /// False-alarm rate: normal rows that were called anomalous.
    fn far(&self) -> Option<f64> {
        ratio(self.counts[0][1], self.counts[0][1] + self.counts[0][0])
    }

    /// Missed-alarm rate: anomalous rows that were called normal.
    fn mar(&self) -> Option<f64> {
        ratio(self.counts[1][0], self.counts[1][0] + self.counts[1][1])
    }
}

impl Figures {
    /// As one JSON object.
    pub fn json(&self) -> Value {
        let mut out = json!({
            "rows": self.rows, "machines": self.machines, "windows": self.windows, "scored": self.scored,
            "alarms": self.alarms, "alarms_per_day": self.alarms_per_day,
        });
        if let Some(q) = &self.quality {
            out["precision"] = json!(q.precision());
            out["recall"] = json!(q.recall());
            out["f1"] = json!(q.f1());
            out["far"] = json!(q.far());
            out["mar"] = json!(q.mar());
            out["events"] = json!(q.events);
            out["events_detected"] = json!(q.events_seen);
            out["median_delay_seconds"] = json!(q.delay);
            out["median_lead_seconds"] = json!(q.lead);
        }
        out
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{name:<22} {value}");
        };
        let share = |r: Option<f64>| r.map_or("-".into(), |r| format!("{r:.3}"));
        let percent = |r: Option<f64>| r.map_or("-".into(), |r| format!("{:.1} %", r * 100.0));
        let seconds = |s: Option<f64>| s.map_or("-".into(), |s| format!("{s:.1} s"));
        line("rows", self.rows.to_string());
        line("machines", self.machines.to_string());
        line("windows", format!("{} ({} scored)", self.windows, self.scored));
        line("alarms", format!("{} ({:.2} per day)", self.alarms, self.alarms_per_day));
        if let Some(q) = &self.quality {
            line("precision", share(q.precision()));
            line("recall", share(q.recall()));
            line("F1", share(q.f1()));
            line("false-alarm rate", percent(q.far()));
            line("missed-alarm rate", percent(q.mar()));
            line("events detected", format!("{} of {}", q.events_seen, q.events));
            line("median delay", seconds(q.delay));
            line("median lead time", seconds(q.lead));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_follow_their_definitions() {
        let mut s = Score::default();
        let m: Name = "m".into();
        let rows = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 1), (0, 0), (1, 0), (0, 0)];
        for (i, (label, predicted)) in rows.into_iter().enumerate() {
            s.row(&m, Time(i as i64 * 1_000_000_000), predicted == 1, predicted == 1, Some(label == 1));
        }
        let f = s.figures();
        let q = f.quality.as_ref().expect("labels");
        assert_eq!(q.counts, [[3, 1], [2, 2]]);
        assert_eq!((q.precision(), q.recall(), q.f1()), (Some(2.0 / 3.0), Some(0.5), Some(4.0 / 7.0)));
        assert_eq!((q.far(), q.mar()), (Some(0.25), Some(0.5)));
        assert_eq!((q.events, q.events_seen, q.delay, q.lead), (2, 1, Some(1.0), Some(1.0)));
        assert_eq!(f.alarms, 2);
        insta::assert_snapshot!(f.text());
    }

    #[test]
    fn without_labels_nothing_is_claimed() {
        let mut s = Score::default();
        s.row(&"m".into(), Time(0), true, true, None);
        assert!(s.figures().json().get("f1").is_none());
    }
}
