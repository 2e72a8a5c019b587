//! What the demo came to: what was injected against what the cloud was told, and what was lost.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;

use crate::simulator::cloud::Cloud;
use crate::simulator::faults::Fault;
use crate::types::Time;

/// Plant seconds after a fault's end in which an alarm still belongs to it: a window has to pass.
const AFTERMATH: f64 = 6.0;

/// What the agent had counted when it ended.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// Readings taken in, over all sources.
    pub readings: u64,
    /// Readings of the MQTT source.
    pub mqtt_readings: u64,
    /// Windows judged, for whatever reason not scored ones included.
    pub windows: u64,
    /// Records on disk.
    pub stored: u64,
}

/// The figures of the contract's JSON line.
pub struct Report {
    seconds: f64,
    counted: Counted,
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
    /// Joins the cloud's log with the schedule of faults. `begin` is when the plant's time began.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        log: &Path,
        counted: &Counted,
        cloud: &Cloud,
        published: u64,
        elapsed: Duration,
        faults: &[Fault],
        begin: Time,
        speed: f64,
    ) -> Result<Report> {
        let told = read_alarms(log, begin, speed)?;
        let end = elapsed.as_secs_f64() * speed;
        let begun: Vec<&Fault> = faults.iter().filter(|f| f.start < end).collect();
        let explains = |f: &Fault, t: &Told| *f.machine == *t.machine && t.raised < f.end() + AFTERMATH && t.over > f.start;
        let missed = begun.iter().filter(|f| !told.iter().any(|t| explains(f, t)));
        let missed = missed.map(|f| format!("{} on {} at {:.0} s", f.kind.as_str(), f.machine, f.start)).collect();
        let unexplained = told.iter().filter(|t| !begun.iter().any(|f| explains(f, t)));
        let false_alarms = unexplained.map(|t| format!("{} at {:.0} s: {}", t.machine, t.raised, t.message)).collect();
        let stats = cloud.stats();
        let (p50_ms, p99_ms) = cloud.delay_ms();
        Ok(Report {
            seconds: elapsed.as_secs_f64(),
            verdicts: stats.types.get("io.andon.verdict.v1").copied().unwrap_or(0),
            alarms: told.len() as u64,
            false_alarms,
            injected: begun.len(),
            missed,
            forwarded: stats.distinct,
            lost: published.saturating_sub(counted.mqtt_readings) + counted.stored.saturating_sub(stats.distinct),
            duplicates: stats.duplicates,
            counted: counted.clone(),
            p50_ms,
            p99_ms,
        })
    }

    /// To stdout: for people, or as the contract's JSON line.
    pub fn print(&self, as_json: bool) {
        let detected = self.injected - self.missed.len();
        if as_json {
            let line = json!({
                "seconds": self.seconds, "readings": self.counted.readings, "windows": self.counted.windows,
                "verdicts": self.verdicts, "alarms": self.alarms, "false_alarms": self.false_alarms.len(),
                "faults_injected": self.injected, "faults_detected": detected, "faults_missed": self.missed,
                "records_stored": self.counted.stored, "records_forwarded": self.forwarded,
                "lost": self.lost, "duplicates": self.duplicates, "p50_ms": self.p50_ms, "p99_ms": self.p99_ms,
            });
            println!("{line}");
            return;
        }
        println!();
        println!("{:.0} s: {} readings, {} windows, {} verdicts at the cloud", self.seconds, self.counted.readings, self.counted.windows, self.verdicts);
        println!("faults: {} injected, {detected} detected; {} alarms, {} of them false", self.injected, self.alarms, self.false_alarms.len());
        self.missed.iter().for_each(|m| println!("  missed: {m}"));
        self.false_alarms.iter().for_each(|f| println!("  false: {f}"));
        println!("records: {} stored, {} forwarded, {} lost, {} twice", self.counted.stored, self.forwarded, self.lost, self.duplicates);
        println!("from the end of a window to its verdict at the cloud: median {:.0} ms, p99 {:.0} ms", self.p50_ms, self.p99_ms);
    }
}

/// All alarms of the cloud's log, in plant seconds.
fn read_alarms(log: &Path, begin: Time, speed: f64) -> Result<Vec<Told>> {
    let file = File::open(log).with_context(|| format!("opening {}", log.display()))?;
    let plant = |text: &str| -> Result<f64> {
        let at: Time = text.parse().map_err(anyhow::Error::msg)?;
        Ok((at.0 - begin.0) as f64 / 1e9 * speed)
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
