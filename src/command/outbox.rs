//! `andon outbox`: what waits in a data directory, and what was set aside. All but `requeue` only
//! read, and may be used while an agent runs there.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::ConfigFile;
use crate::agent::input::{Group, Input};
use crate::config::{Config, Needs};
use crate::forward::cloud_events::{Encoded, Encoder};
use crate::forward::privacy::Privacy;
use crate::metrics::Shared;
use crate::store::{self, DeadLetter, Entries, Offline, Store, StoreStatus};
use crate::types::{Reading, Stored, Time};

/// See `andon outbox --help`.
#[derive(Subcommand)]
pub enum Action {
    /// How much waits, for whom, and since when
    Stat {
        #[command(flatten)]
        place: Place,
        /// Print it as JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the next records, each as one line of JSON
    Peek {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        what: What,
        /// How many
        #[arg(short = 'n', long, default_value_t = 10)]
        lines: usize,
    },
    /// Write all of it to a file: records and dead letters as lines of JSON, readings as CSV
    Export {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        what: What,
        /// The readings in the journal instead of the records
        #[arg(long, conflicts_with_all = ["dead", "sink"])]
        readings: bool,
        /// What can still be read of damaged segments that were set aside
        #[arg(long, conflicts_with = "sink")]
        damaged: bool,
        /// Where to; standard output if absent
        #[arg(short, long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Send the records among the dead letters once more; the agent has to be stopped
    Requeue {
        #[command(flatten)]
        place: Place,
    },
}

/// Where the store is.
#[derive(Args)]
pub struct Place {
    /// The data directory; absent: the one of the config
    dir: Option<PathBuf>,
    #[command(flatten)]
    file: ConfigFile,
}

/// Which records.
#[derive(Args, Clone)]
pub struct What {
    /// Only what this sink has not delivered; absent: all that is on disk
    #[arg(long, value_name = "NAME", conflicts_with = "dead")]
    sink: Option<String>,
    /// The dead letters: what a sink refused, and payloads that could not be read
    #[arg(long)]
    dead: bool,
}

/// A store that was named, and the config if there is one.
struct Found {
    dir: PathBuf,
    config: Option<Config>,
}

impl Place {
    /// Reads the config, once.
    fn find(&self) -> Result<Found> {
        let config = match &self.dir {
            Some(_) if !self.file.config.exists() => None,
            _ => Some(self.file.load(Needs::default())?),
        };
        match (&self.dir, &config) {
            (Some(dir), _) => Ok(Found { dir: dir.clone(), config }),
            (None, Some(c)) => Ok(Found { dir: c.agent.data_dir.clone(), config }),
            (None, None) => bail!("name the data directory, or a config with -c"),
        }
    }
}

impl Found {
    /// Writes records as the cloud gets them, but with all fields and names.
    fn encoder(&self) -> Encoder {
        let (site, id) = self.config.as_ref().map_or(("", ""), |c| (&c.agent.site, &c.agent.id));
        Encoder::new(site, id, Privacy::default())
    }
}

/// Does what was asked.
pub fn run(action: &Action) -> Result<()> {
    let done = match action {
        Action::Stat { place, json } => stat(&place.find()?.dir, *json),
        Action::Peek { place, what, lines } => {
            let found = place.find()?;
            let offline = Offline::look(&found.dir)?;
            let mut out = io::stdout().lock();
            write_records(&offline, what, &found.encoder(), *lines, &mut out).map(drop)
        }
        Action::Export { place, what, readings, damaged, out } => {
            export(place, what, *readings, *damaged, out.as_deref())
        }
        Action::Requeue { place } => requeue(place),
    };
    match done {
        // Whoever reads from us has seen enough.
        Err(e) if e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) => Ok(()),
        done => done,
    }
}

fn stat(dir: &Path, json: bool) -> Result<()> {
    let offline = Offline::look(dir)?;
    let status = offline.status();
    let salvage = Offline::look_at_damaged(dir)?.records(None).count();
    let waiting = |sink: &String| (sink.clone(), offline.waiting(sink).unwrap_or_default());
    let sinks: Vec<(String, [u64; 2])> = offline.sinks().iter().map(waiting).collect();
    if json {
        let sinks = sinks.into_iter().map(|(sink, [p, r])| (sink, json!({"priority": p, "routine": r})));
        let sinks: serde_json::Map<String, Value> = sinks.collect();
        println!("{}", json!({"dir": dir, "lanes": status.lanes, "sinks": sinks, "damaged": salvage}));
        return Ok(());
    }
    print(dir, &status);
    for (sink, [priority, routine]) in sinks {
        println!("sink {sink}: {priority} alarms and the like, {routine} verdicts to deliver");
    }
    if salvage > 0 {
        println!("damaged segments: {salvage} records can still be read (andon outbox export --damaged)");
    }
    Ok(())
}

fn print(dir: &Path, status: &StoreStatus) {
    println!("{}", dir.display());
    println!("  {:10} {:>12} {:>14} {:>14}  oldest", "lane", "items", "bytes", "on disk");
    for (name, lane) in &status.lanes {
        let oldest = lane.oldest.map_or_else(|| "-".to_owned(), |t| t.to_string());
        println!("  {name:10} {:>12} {:>14} {:>14}  {oldest}", lane.records, lane.bytes, lane.disk_bytes);
    }
}

fn export(place: &Place, what: &What, readings: bool, damaged: bool, out: Option<&Path>) -> Result<()> {
    let found = place.find()?;
    let offline = if damaged { Offline::look_at_damaged(&found.dir)? } else { Offline::look(&found.dir)? };
    let mut to: Box<dyn Write> = match out {
        Some(path) => Box::new(BufWriter::new(File::create(path).with_context(|| path.display().to_string())?)),
        None => Box::new(BufWriter::new(io::stdout().lock())),
    };
    let written = if readings {
        write_readings(offline.journal_since(Time(i64::MIN)), &mut to)?
    } else {
        write_records(&offline, what, &found.encoder(), usize::MAX, &mut to)?
    };
    to.flush()?;
    if let Some(path) = out {
        println!("{written} lines in {}", path.display());
    }
    Ok(())
}

fn write_records(offline: &Offline, what: &What, encoder: &Encoder, most: usize, to: &mut dyn Write) -> Result<u64> {
    let mut written = 0;
    if what.dead {
        for letter in offline.dead_letters().take(most) {
            let (number, letter) = letter?;
            writeln!(to, "{}", dead_letter(number, &letter, encoder))?;
            written += 1;
        }
        return Ok(written);
    }
    if let Some(sink) = &what.sink
        && !offline.sinks().contains(sink)
    {
        let sinks = offline.sinks();
        let there = if sinks.is_empty() { "has none".to_owned() } else { format!("has {}", sinks.join(", ")) };
        bail!("there is no sink {sink:?}; this store {there}");
    }
    for stored in offline.records(what.sink.as_deref()).take(most) {
        writeln!(to, "{}", event(&stored?, encoder))?;
        written += 1;
    }
    Ok(written)
}

/// As the cloud gets it; what is no event any more is shown as text.
fn event(stored: &Stored, encoder: &Encoder) -> String {
    let mut encoded = Encoded::default();
    match encoder.add(stored, &mut encoded) {
        Ok(()) => String::from_utf8_lossy(encoded.event(0)).into_owned(),
        Err(_) => json!({"id": stored.record.id.to_string(), "sequence": stored.sequence, "data": stored.record.data})
            .to_string(),
    }
}

fn dead_letter(number: u64, letter: &DeadLetter, encoder: &Encoder) -> Value {
    match letter {
        DeadLetter::Payload(reject) => json!({
            "number": number, "at": reject.at.to_string(), "source": &*reject.source, "origin": reject.origin,
            "reason": reject.reason, "payload": String::from_utf8_lossy(&reject.payload),
        }),
        DeadLetter::Record { at, sink, reason, sequence, record } => {
            let stored = Stored { sequence: *sequence, record: record.clone() };
            let event: Value = serde_json::from_str(&event(&stored, encoder)).unwrap_or_default();
            json!({"number": number, "at": at.to_string(), "sink": &**sink, "reason": reason, "record": event})
        }
    }
}

/// The journal as it was taken in: a row for each reading.
fn write_readings(entries: Entries, to: &mut dyn Write) -> Result<u64> {
    let mut rows = csv::Writer::from_writer(to);
    rows.write_record(["timestamp", "machine", "signal", "value", "quality"])?;
    let mut written = 0;
    for entry in entries {
        let entry = entry?;
        let group = match Group::decode(&entry.data) {
            Ok(group) => group,
            Err(e) => {
                eprintln!("andon: entry {} is left out: {e}", entry.index);
                continue;
            }
        };
        let readings = group.inputs.iter().filter_map(|i| if let Input::Readings(_, r) = i { Some(r) } else { None });
        for Reading { machine, signal, at, value, quality, .. } in readings.flatten() {
            rows.write_record([&at.to_string(), &**machine, &**signal, &value.to_string(), quality.as_str()])?;
            written += 1;
        }
    }
    rows.flush()?;
    Ok(written)
}

fn requeue(place: &Place) -> Result<()> {
    let Found { dir, config } = place.find()?;
    let sinks = Offline::look(&dir)?.sinks();
    let sinks: Vec<&str> = sinks.iter().map(String::as_str).collect();
    let config = match config {
        Some(config) => config.store,
        // Without its limits, nothing may be given up here.
        None => store::Config {
            max_bytes: 1 << 50,
            dead_letter_max_bytes: 1 << 50,
            refused_max_bytes: 1 << 50,
            max_age: Duration::from_hours(24 * 36_500),
            ..Default::default()
        },
    };
    let (store, recovered) =
        Store::open(&config, &dir, &sinks, Shared::new()).context("stop the agent first, then try again")?;
    drop(recovered);
    let sent = store.requeue()?;
    store.close()?;
    println!("{sent} records wait to be sent once more");
    Ok(())
}
