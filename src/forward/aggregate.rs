//! Aggregates in place of records, for a sink by which nothing raw may leave: an outbox around another. What
//! waits there is summed up by machine and interval, in a state that is on disk before the records are
//! acked; a summary is given to the sink once its interval is over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sketches_ddsketch::{Config as SketchConfig, DDSketch};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Outbox;
use crate::metrics::lock;
use crate::settings::Section;
use crate::types::{Kind, Name, Record, RecordId, Stored, Time};

/// Fewer verdicts than this tell too much of each.
const AT_LEAST: i64 = 10;
/// Relative error of a sketch's quantiles, and how many bins it may have: with 1 % these reach over 17
/// decades.
const SKETCH_ERROR: f64 = 0.01;
const SKETCH_BINS: u32 = 2048;
/// Numbers closer to zero count as zero.
const SKETCH_ZERO: f64 = 1e-12;
/// Records taken from the outbox at a time.
const BATCH_RECORDS: usize = 4096;
const BATCH_BYTES: usize = 4 << 20;
/// The state is written at most so often, since all of it is written each time.
const SAVE_EVERY: Duration = Duration::from_secs(2);
/// Machines and intervals that are open at once; beyond, the oldest is closed early. Each takes some 20 KiB.
const MAX_OPEN: usize = 4096;
/// Things measured of one machine.
const MAX_MEASURES: usize = 64;
/// The members of a verdict that are numbers.
const NUMBERS: [&str; 4] = ["anomaly_score", "p_value", "health", "rul"];

/// What is summed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Over how long.
    pub every: Duration,
    /// From how many verdicts on.
    pub at_least: u64,
}

impl Settings {
    /// Reads `aggregate` and `aggregate_min`.
    pub fn read(s: &Section<'_>) -> Option<Settings> {
        let every = s.duration("aggregate");
        let at_least = s.integer("aggregate_min", 1..=1_000_000);
        if every.is_none() && at_least.is_some() && !s.has("aggregate") {
            s.problem("aggregate_min", "needs `aggregate`");
        }
        let every = every?;
        if !(Duration::from_secs(1)..=Duration::from_hours(24)).contains(&every) {
            s.problem("aggregate", "is not between 1s and 24h");
        }
        Some(Settings { every, at_least: at_least.unwrap_or(AT_LEAST) as u64 })
    }
}

/// One thing measured, over one interval.
#[derive(Clone, Serialize, Deserialize)]
struct Measure {
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
    sketch: DDSketch,
}

impl Measure {
    fn new() -> Measure {
        let sketch = DDSketch::new(SketchConfig::new(SKETCH_ERROR, SKETCH_BINS, SKETCH_ZERO));
        Measure { count: 0, sum: 0.0, min: f64::MAX, max: f64::MIN, sketch }
    }

    fn add(&mut self, x: f64) {
        self.count += 1;
        self.sum += x;
        self.min = self.min.min(x);
        self.max = self.max.max(x);
        self.sketch.add(x);
    }

    fn json(&self) -> Value {
        let quantile = |q| self.sketch.quantile(q).ok().flatten();
        json!({
            "count": self.count, "min": self.min, "mean": self.sum / self.count as f64, "max": self.max,
            "p50": quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99),
            "sketch": hex(&self.sketch.to_java_bytes()),
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// One machine over one interval.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Group {
    verdicts: u64,
    /// Records by kind and reason, such as `verdict/ANOMALY_DETECTED` and `alarm/raised`.
    counts: BTreeMap<String, u64>,
    measures: BTreeMap<String, Measure>,
}

/// What has been summed up; a function of the records and of when intervals were closed.
#[derive(Clone, Default, Serialize, Deserialize)]
struct State {
    /// Sequences up to these are in it, of urgent and of routine records.
    applied: [u64; 2],
    next_sequence: u64,
    /// By the interval's begin and machine.
    open: BTreeMap<(i64, Name), Group>,
    /// Summaries that are not delivered yet.
    ready: VecDeque<Summary>,
    /// By machine: records of groups that were too small to be told.
    withheld: BTreeMap<Name, u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Summary {
    sequence: u64,
    record: Record,
}

/// How it is summed up.
struct Rules {
    sink: String,
    settings: Settings,
    /// Members of a verdict that may leave, summed up; `None`: all.
    fields: Option<BTreeSet<String>>,
}

impl State {
    /// Adds a record unless it is in there.
    fn add(&mut self, stored: &Stored, rules: &Rules) {
        let lane = usize::from(stored.record.kind.is_routine());
        if stored.sequence <= self.applied[lane] {
            return;
        }
        self.applied[lane] = stored.sequence;
        let record = &stored.record;
        if !matches!(record.kind, Kind::Verdict | Kind::Alarm | Kind::Gap) {
            // What people did and what runs is not about a machine's running: it stays here.
            return;
        }
        let data: Value = serde_json::from_str(&record.data).unwrap_or_default();
        let every = nanos(rules.settings.every);
        let begin = record.at.0.div_euclid(every) * every;
        let machine = data["machine"].as_str().map_or_else(|| record.subject.clone(), Name::from);
        let group = self.open.entry((begin, machine)).or_default();
        let what = ["prediction_reason", "transition", "reason"].iter().find_map(|k| data[*k].as_str()).unwrap_or("");
        if group.counts.len() < MAX_MEASURES {
            *group.counts.entry(format!("{}/{what}", record.kind.as_str())).or_default() += 1;
        }
        if record.kind == Kind::Verdict {
            group.verdicts += 1;
            group.measure(&data, rules);
        }
    }

    /// Closes what was over at this time, and what there is no room for.
    fn close(&mut self, now: Time, rules: &Rules) {
        let every = nanos(rules.settings.every);
        // Records may be some time on their way, also from a broker that was away.
        let over = |begin: i64| begin.saturating_add(every).saturating_add(every / 4) <= now.0;
        while let Some(first) = self.open.first_entry() {
            if !over(first.key().0) && self.open.len() <= MAX_OPEN {
                return;
            }
            if let Some(((begin, machine), group)) = self.open.pop_first() {
                self.finish(begin, machine, &group, rules);
            }
        }
    }

    fn finish(&mut self, begin: i64, machine: Name, group: &Group, rules: &Rules) {
        if group.verdicts < rules.settings.at_least {
            *self.withheld.entry(machine).or_default() += group.counts.values().sum::<u64>();
            return;
        }
        let end = Time(begin.saturating_add(nanos(rules.settings.every)));
        let measures: BTreeMap<&String, Value> = group.measures.iter().map(|(name, m)| (name, m.json())).collect();
        let data = json!({
            "timestamp": end.to_string(), "machine": &*machine, "from": Time(begin).to_string(), "to": end.to_string(),
            "verdicts": group.verdicts, "counts": group.counts, "measures": measures,
            "withheld": self.withheld.remove(&machine).unwrap_or(0),
        });
        self.next_sequence += 1;
        // Late records make a second summary of the same interval, to be merged with the first.
        let parts: [&[u8]; 4] =
            [rules.sink.as_bytes(), machine.as_bytes(), &begin.to_le_bytes(), &self.next_sequence.to_le_bytes()];
        let record =
            Record { id: RecordId::of(&parts), kind: Kind::Summary, subject: machine, at: end, data: data.to_string() };
        self.ready.push_back(Summary { sequence: self.next_sequence, record });
    }
}

impl Group {
    fn measure(&mut self, data: &Value, rules: &Rules) {
        let allowed = |name: &str| rules.fields.as_ref().is_none_or(|f| f.contains(name));
        for name in NUMBERS.into_iter().filter(|n| allowed(n)) {
            if let Some(x) = data[name].as_f64() {
                self.add(name.to_owned(), x);
            }
        }
        let shares = data["diagnostics"].as_array().filter(|_| allowed("diagnostics"));
        for share in shares.into_iter().flatten() {
            if let (Some(name), Some(x)) = (share["name"].as_str(), share["value"].as_f64()) {
                self.add(format!("share/{name}"), x);
            }
        }
    }

    fn add(&mut self, name: String, x: f64) {
        if self.measures.len() < MAX_MEASURES || self.measures.contains_key(&name) {
            self.measures.entry(name).or_insert_with(Measure::new).add(x);
        }
    }
}

fn nanos(d: Duration) -> i64 {
    i64::try_from(d.as_nanos()).unwrap_or(i64::MAX).max(1)
}

/// An outbox of summaries.
pub struct Aggregated<O> {
    inner: O,
    rules: Rules,
    path: PathBuf,
    state: Mutex<State>,
    saved: Mutex<Option<Instant>>,
}

impl<O: Outbox> Aggregated<O> {
    /// Around `inner`, for the sink of this name; its state is kept in `dir`. `fields` are the members of a
    /// verdict that may leave.
    ///
    /// # Errors
    /// When the state cannot be read. One that is damaged begins anew.
    pub fn open(
        inner: O,
        sink: &str,
        settings: Settings,
        fields: Option<BTreeSet<String>>,
        dir: &Path,
    ) -> Result<Self> {
        let path = dir.join(format!("{sink}.aggregates"));
        let state = match std::fs::read(&path) {
            Ok(bytes) => read(&bytes).unwrap_or_else(|| {
                tracing::warn!(path = %path.display(), "sums of a sink are damaged and begin anew");
                State::default()
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => State::default(),
            Err(e) => return Err(e).with_context(|| format!("reading {}", path.display())),
        };
        let rules = Rules { sink: sink.to_owned(), settings, fields };
        Ok(Aggregated { inner, rules, path, state: Mutex::new(state), saved: Mutex::new(None) })
    }

    /// Whether a summary waits.
    pub fn is_ready(&self) -> bool {
        !lock(&self.state).ready.is_empty()
    }

    /// Takes in what waits. Nothing of it counts before it is on disk.
    async fn take_in(&self) -> Result<()> {
        let records = self.inner.next(BATCH_RECORDS, BATCH_BYTES).await?;
        let mut state = lock(&self.state).clone();
        records.iter().for_each(|r| state.add(r, &self.rules));
        state.close(Time::now(), &self.rules);
        let (path, bytes) = (self.path.clone(), write(&state)?);
        tokio::task::spawn_blocking(move || save(&path, &bytes)).await?.context("saving the sums")?;
        *lock(&self.saved) = Some(Instant::now());
        *lock(&self.state) = state;
        self.inner.ack(&records).await
    }
}

impl<O: Outbox> Outbox for Aggregated<O> {
    async fn ready(&self) -> bool {
        loop {
            if self.is_ready() {
                return true;
            }
            let saved = *lock(&self.saved);
            if let Some(at) = saved {
                sleep_until(at + SAVE_EVERY).await;
            }
            // Intervals end also where nothing comes.
            let until = Instant::now() + SAVE_EVERY.max(self.rules.settings.every / 4);
            if timeout_at(until, self.inner.ready()).await == Ok(false) {
                return self.is_ready();
            }
            if let Err(e) = self.take_in().await {
                tracing::warn!("cannot sum up what waits: {e:#}; trying again");
                *lock(&self.saved) = Some(Instant::now());
            }
        }
    }

    async fn next(&self, max_records: usize, max_bytes: usize) -> Result<Vec<Stored>> {
        let state = lock(&self.state);
        let mut bytes = 0;
        let fits = |s: &&Summary| {
            let first = bytes == 0;
            bytes += s.record.data.len().max(1);
            first || bytes <= max_bytes
        };
        let waiting = state.ready.iter().take(max_records.max(1)).take_while(fits);
        Ok(waiting.map(|s| Stored { sequence: s.sequence, record: s.record.clone() }).collect())
    }

    async fn ack(&self, records: &[Stored]) -> Result<()> {
        // Saved with the next batch: after a crash they come again, under the same ids.
        let mut state = lock(&self.state);
        for record in records {
            if state.ready.front().is_some_and(|s| s.sequence == record.sequence) {
                state.ready.pop_front();
            }
        }
        Ok(())
    }

    async fn dead_letter(&self, record: &Stored, _: &str) -> Result<()> {
        // The records it was made of are where they were; the sink has told of it.
        self.ack(std::slice::from_ref(record)).await
    }

    fn heard_time(&self, at: Time) {
        self.inner.heard_time(at);
    }
}

/// A checksum and the state.
fn write(state: &State) -> Result<Vec<u8>> {
    let state = postcard::to_stdvec(state)?;
    let mut bytes = crc32fast::hash(&state).to_le_bytes().to_vec();
    bytes.extend(state);
    Ok(bytes)
}

fn read(bytes: &[u8]) -> Option<State> {
    let (crc, state) = bytes.split_first_chunk::<4>()?;
    (crc32fast::hash(state) == u32::from_le_bytes(*crc)).then(|| postcard::from_bytes(state).ok()).flatten()
}

/// Whole or not at all.
fn save(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir)?;
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::memory::MemoryOutbox;
    use std::sync::Arc;

    const MINUTE: i64 = 60_000_000_000;

    fn verdict(n: u64, machine: &str, at: i64, score: f64) -> Record {
        let data = format!(
            r#"{{"machine":"{machine}","prediction_reason":"NO_ANOMALY_DETECTED","anomaly_score":{score},
            "health":0.5,"diagnostics":[{{"name":"flow","value":0.25}}]}}"#
        );
        let id = RecordId::of(&[&n.to_le_bytes()]);
        Record { id, kind: Kind::Verdict, subject: machine.into(), at: Time(at), data }
    }

    fn settings(at_least: u64) -> Settings {
        Settings { every: Duration::from_secs(60), at_least }
    }

    async fn summaries<O: Outbox>(outbox: &Aggregated<O>) -> Vec<(RecordId, Value)> {
        outbox.take_in().await.expect("taken in");
        let records = outbox.next(1_000, 1 << 20).await.expect("summaries");
        outbox.ack(&records).await.expect("acked");
        records.iter().map(|s| (s.record.id, serde_json::from_str(&s.record.data).expect("JSON"))).collect()
    }

    #[tokio::test]
    async fn each_record_counts_once_over_restarts() {
        let dir = tempfile::tempdir().expect("a directory");
        let inner = Arc::new(MemoryOutbox::new(10_000));
        let open = || Aggregated::open(inner.clone(), "s", settings(10), None, dir.path()).expect("opened");
        // What was delivered before a crash comes again under the same id.
        let mut told = BTreeMap::new();
        for n in 0..300 {
            inner.push(verdict(n, "press", n as i64 * MINUTE / 100, (n % 100) as f64)).expect("room");
            if n % 50 == 49 {
                // A new life each time; the state on disk is all there is.
                told.extend(summaries(&open()).await);
            }
        }
        assert_eq!(inner.waiting(), 0);
        // Long ago, so that each batch of fifty is closed at once.
        let told: Vec<Value> = told.into_values().collect();
        assert_eq!(told.iter().map(|s| s["verdicts"].as_u64().unwrap_or(0)).sum::<u64>(), 300);
        let first = told.iter().find(|s| s["measures"]["anomaly_score"]["min"] == 0.0).expect("the first");
        let score = &first["measures"]["anomaly_score"];
        assert_eq!(
            (&score["count"], &score["min"], &score["mean"], &score["max"]),
            (&50.into(), &0.0.into(), &24.5.into(), &49.0.into())
        );
        let p50 = score["p50"].as_f64().expect("a quantile");
        assert!((p50 - 24.5).abs() < 1.0, "{p50}");
        assert_eq!(first["measures"]["share/flow"]["count"], 50);
        assert_eq!(first["counts"]["verdict/NO_ANOMALY_DETECTED"], 50);
    }

    #[tokio::test]
    async fn what_was_taken_in_before_a_crash_is_not_taken_in_again() {
        let dir = tempfile::tempdir().expect("a directory");
        for _ in 0..3 {
            // The store's cursor was never saved: the same records with the same sequences.
            let inner = MemoryOutbox::new(100);
            (0..20).for_each(|n| drop(inner.push(verdict(n, "press", Time::now().0, 1.0))));
            let outbox = Aggregated::open(inner, "s", settings(10), None, dir.path()).expect("opened");
            outbox.take_in().await.expect("taken in");
            let open: Vec<u64> = lock(&outbox.state).open.values().map(|g| g.verdicts).collect();
            assert_eq!(open.iter().sum::<u64>(), 20);
        }
    }

    #[tokio::test]
    async fn small_groups_are_withheld_and_fields_keep_to_the_list() {
        let dir = tempfile::tempdir().expect("a directory");
        let inner = MemoryOutbox::new(100);
        (0..9).for_each(|n| drop(inner.push(verdict(n, "press", 0, 1.0))));
        (9..30).for_each(|n| drop(inner.push(verdict(n, "press", 5 * MINUTE, 1.0))));
        let fields = BTreeSet::from(["health".to_owned()]);
        let outbox = Aggregated::open(inner, "s", settings(10), Some(fields), dir.path()).expect("opened");
        let told: Vec<Value> = summaries(&outbox).await.into_iter().map(|(_, data)| data).collect();
        assert_eq!(told.len(), 1);
        assert_eq!((&told[0]["verdicts"], &told[0]["withheld"]), (&21.into(), &9.into()));
        let measures: Vec<&String> = told[0]["measures"].as_object().expect("measures").keys().collect();
        assert_eq!(measures, ["health"]);
    }

    #[test]
    fn sketches_can_be_merged_by_those_who_get_them() {
        let (mut a, mut b) = (Measure::new(), Measure::new());
        (0..1_000).for_each(|n| a.add(f64::from(n)));
        (1_000..2_000).for_each(|n| b.add(f64::from(n)));
        let sent = |m: &Measure| DDSketch::from_java_bytes(&m.sketch.to_java_bytes()).expect("a sketch");
        let mut merged = sent(&a);
        merged.merge(&sent(&b)).expect("merged");
        let p50 = merged.quantile(0.5).expect("a quantile").expect("not empty");
        assert!((p50 / 1_000.0 - 1.0).abs() < 0.03, "{p50}");
    }

    #[test]
    fn a_damaged_state_is_noticed() {
        let bytes = write(&State::default()).expect("written");
        assert!(read(&bytes).is_some());
        for i in 0..bytes.len() {
            let mut torn = bytes.clone();
            torn[i] ^= 1;
            assert!(read(&torn).is_none());
        }
        assert!(read(&[]).is_none());
    }
}
