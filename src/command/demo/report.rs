//! What the demo came to: what was injected against what the cloud was told, and what was lost.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;

use crate::metrics::Metrics;
use crate::simulator::cloud::Cloud;
use crate::simulator::faults::Fault;
use crate::types::Time;

/// Plant seconds after a fault's end in which an alarm still belongs to it: a window has to pass.
const AFTERMATH: f64 = 6.0;

/// Label of the MQTT source's samples.
pub const SHOP: &str = "source=\"shop\"";

/// How the run went, as the plant's side knows it.
pub struct Course<'a> {
    /// Every event that the cloud took, a JSON object per line.
    pub log: &'a Path,
    /// Messages published.
    pub published: u64,
    /// Real time.
    pub seconds: f64,
    /// What was planned.
    pub faults: &'a [Fault],
    /// When the plant's time began.
    pub begin: Time,
    /// Plant time per real time.
    pub speed: f64,
}

/// The figures of the contract's JSON line.
pub struct Report {
    seconds: f64,
    readings: u64,
    windows: u64,
    stored: u64,
    verdicts: u64,
    alarms: u64,
    false_alarms: Vec<String>,
    injected: usize,
    missed: Vec<String>,
    forwarded: u64,
    lost: u64,
    duplicates: u64,
    p50_ms: f64,
    p99_ms: f64,
}

/// An alarm as the cloud was told of it.
struct Told {
    machine: String,
    raised: f64,
    over: f64,
    message: String,
}

#[derive(Deserialize)]
struct Event {
    data: AlarmData,
}

#[derive(Deserialize)]
struct AlarmData {
    machine: String,
    alarm: String,
    state: String,
    active: bool,
    since: String,
    timestamp: String,
    message: String,
}

impl Report {
    /// Joins the cloud's log with the schedule of faults and the agent's own counters.
    pub fn new(course: &Course<'_>, metrics: &Metrics, cloud: &Cloud) -> Result<Report> {
        let told = read_alarms(course)?;
        let end = course.seconds * course.speed;
        let begun: Vec<&Fault> = course.faults.iter().filter(|f| f.start < end).collect();
        let explains =
            |f: &Fault, t: &Told| *f.machine == *t.machine && t.raised < f.end() + AFTERMATH && t.over > f.start;
        let missed = begun.iter().filter(|f| !told.iter().any(|t| explains(f, t)));
        let missed = missed.map(|f| format!("{} on {} at {:.0} s", f.kind.as_str(), f.machine, f.start)).collect();
        let unexplained = told.iter().filter(|t| !begun.iter().any(|f| explains(f, t)));
        let false_alarms = unexplained.map(|t| format!("{} at {:.0} s: {}", t.machine, t.raised, t.message)).collect();
        let stats = cloud.stats();
        let stored = metrics.total("andon_store_records_total", "");
        let not_read = course.published.saturating_sub(metrics.total("andon_readings_total", SHOP));
        let (p50_ms, p99_ms) = cloud.delay_ms();
        Ok(Report {
            seconds: course.seconds,
            readings: metrics.total("andon_readings_total", ""),
            windows: metrics.total("andon_windows_total", ""),
            verdicts: stats.types.get("io.andon.verdict.v1").copied().unwrap_or(0),
            alarms: told.len() as u64,
            false_alarms,
            injected: begun.len(),
            missed,
            forwarded: stats.distinct,
            lost: not_read + stored.saturating_sub(stats.distinct),
            duplicates: stats.duplicates,
            stored,
            p50_ms,
            p99_ms,
        })
    }

    /// To stdout: for people, or as the contract's JSON line.
    pub fn print(&self, as_json: bool) {
        let detected = self.injected - self.missed.len();
        if as_json {
            let line = json!({
                "seconds": self.seconds, "readings": self.readings, "windows": self.windows,
                "verdicts": self.verdicts, "alarms": self.alarms, "false_alarms": self.false_alarms.len(),
                "faults_injected": self.injected, "faults_detected": detected, "faults_missed": self.missed,
                "records_stored": self.stored, "records_forwarded": self.forwarded,
                "lost": self.lost, "duplicates": self.duplicates, "p50_ms": self.p50_ms, "p99_ms": self.p99_ms,
            });
            println!("{line}");
            return;
        }
        println!();
        println!(
            "{:.0} s: {} readings, {} windows, {} verdicts at the cloud",
            self.seconds, self.readings, self.windows, self.verdicts
        );
        println!(
            "faults: {} injected, {detected} detected; {} alarms, {} of them false",
            self.injected,
            self.alarms,
            self.false_alarms.len()
        );
        self.missed.iter().for_each(|m| println!("  missed: {m}"));
        self.false_alarms.iter().for_each(|f| println!("  false: {f}"));
        println!(
            "records: {} stored, {} forwarded, {} lost, {} twice",
            self.stored, self.forwarded, self.lost, self.duplicates
        );
        println!(
            "from the end of a window to its verdict at the cloud: median {:.0} ms, p99 {:.0} ms",
            self.p50_ms, self.p99_ms
        );
    }
}

/// All alarms of the cloud's log, in plant seconds.
fn read_alarms(course: &Course<'_>) -> Result<Vec<Told>> {
    let file = File::open(course.log).with_context(|| format!("opening {}", course.log.display()))?;
    let plant = |text: &str| -> Result<f64> {
        let at: Time = text.parse().map_err(anyhow::Error::msg)?;
        Ok((at.0 - course.begin.0) as f64 / 1e9 * course.speed)
    };
    let mut by_id: BTreeMap<String, Told> = BTreeMap::new();
    for line in BufReader::new(file).lines() {
        let line = line?;
        if !line.contains("io.andon.alarm.v1") {
            continue;
        }
        let AlarmData { machine, alarm, state, active, since, timestamp, message } =
            serde_json::from_str::<Event>(&line).context("reading an alarm the cloud was sent")?.data;
        let told = by_id.entry(alarm).or_insert(Told { machine, raised: plant(&since)?, over: f64::INFINITY, message });
        if !active && state != "normal" {
            told.over = plant(&timestamp)?;
        }
    }
    let mut all: Vec<Told> = by_id.into_values().collect();
    all.sort_by(|a, b| a.raised.total_cmp(&b.raised));
    Ok(all)
}
