//! `andon backtest`: the very pipeline, models and alarms of `run` on recorded data, and how well
//! they did where labels are known. Nothing looks ahead: a row shows what was known by its time.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::ConfigFile;
use super::table::Table;
use crate::agent::blocks;
use crate::agent::engine::{Block, Engine};
use crate::agent::input::{Group, Input};
use crate::agent::records::Recorder;
use crate::config::{Config, Invalid, Needs};
use crate::logging;
use crate::types::{Condition, Live, Name, Reading, Time};

mod score;
use score::Score;

/// See `andon backtest --help`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// The recorded data, one row per time, one column per signal
    #[arg(long, value_name = "CSV")]
    input: PathBuf,
    /// The machine the rows are of, when no column says so
    #[arg(long, value_name = "ID")]
    machine: Option<String>,
    /// The column with the time
    #[arg(long, value_name = "COL")]
    time: Option<String>,
    /// The column that names the machine
    #[arg(long, value_name = "COL")]
    machine_column: Option<String>,
    /// The column that says what is true: 0 is normal, anything else an anomaly; never shown to the model
    #[arg(long, value_name = "COL")]
    label: Option<String>,
    /// Leave the first rows out of the figures, e.g. those a model was fitted on
    #[arg(long, value_name = "ROWS", default_value_t = 0)]
    skip: u64,
    /// Write a row per input row
    #[arg(long, value_name = "CSV")]
    out: Option<PathBuf>,
    /// Print the figures as one JSON object
    #[arg(long)]
    json: bool,
}

/// What is known of a machine at some moment.
#[derive(Clone, Debug, Default)]
struct Known {
    score: Option<f64>,
    p_value: Option<f64>,
    rul: Option<f64>,
    anomaly: bool,
    alarm: bool,
    top_channel: Option<Name>,
}

/// Columns and what they are.
struct Columns {
    machine: Option<usize>,
    label: Option<usize>,
    /// Column and signal.
    signals: Vec<(usize, Name)>,
}

/// Runs the whole file and prints the figures.
pub fn run(options: &Options) -> Result<()> {
    let config = options.file.load(Needs::default())?;
    logging::start(&config.log)?;
    let path = options.file.config.clone();
    let (blocks, _) = blocks::build(&config).map_err(|problems| Invalid { path, problems })?;
    let mut table = Table::open(&options.input, options.time.as_deref())?;
    let columns = Columns::find(&table, options)?;
    let machine = only_machine(options, &config);
    warn_of_missing(&blocks, &columns);
    let has_rul = blocks.iter().filter_map(|b| b.model.as_ref()).any(|m| m.manifest().task == crate::model::Task::Rul);
    let mut out = Output::open(options, has_rul, columns.label.is_some())?;
    let engine = Engine::new(Recorder::new(&config.agent.site, &config.agent.id), blocks, config.agent.max_machines);
    let mut replay = Replay { engine, known: HashMap::new(), score: Score::default() };
    let mut names: HashMap<String, Name> = HashMap::new();
    let mut progress = Progress::new(table.size);
    let (mut row, time) = (0, table.time);
    loop {
        progress.show(table.position());
        let Some((_, at, record)) = table.next_row()? else { break };
        let id = columns.machine.and_then(|c| record.get(c)).unwrap_or(&machine);
        let name = names.entry(id.to_owned()).or_insert_with(|| id.into()).clone();
        let known = replay.feed(&name, at, &columns, record);
        let label = columns.label.and_then(|c| record.get(c)).map(is_anomaly);
        row += 1;
        if row > options.skip {
            replay.score.row(&name, at, known.anomaly, known.alarm, label);
        }
        out.row(record.get(time).unwrap_or(""), &name, &known, label)?;
    }
    progress.done();
    ensure!(row > 0, "{} has no rows", options.input.display());
    out.finish()?;
    let figures = replay.score.figures();
    if options.json {
        println!("{}", figures.json())
    } else {
        print!("{}", figures.text())
    }
    Ok(())
}

struct Replay {
    engine: Engine,
    known: HashMap<Name, Known>,
    score: Score,
}

impl Replay {
    /// Feeds one row as if it arrived at its own time; says what is known of its machine then.
    fn feed(&mut self, machine: &Name, at: Time, columns: &Columns, record: &csv::StringRecord) -> Known {
        let reading = |(column, signal): &(usize, Name)| {
            let text = record.get(*column).filter(|t| !t.is_empty())?;
            // What cannot be read as a number is a bad value, as from a broken sensor.
            let value = text.parse().unwrap_or(f64::NAN);
            Some(Reading::good(machine.clone(), signal.clone(), at, value))
        };
        let readings = columns.signals.iter().filter_map(reading).collect();
        let outcome = self.engine.step(&Group { inputs: vec![Input::Readings(at, readings)] });
        for event in outcome.live {
            match event {
                Live::Verdict(v, _) => {
                    self.score.verdict(&v);
                    let known = self.known.entry(v.machine.clone()).or_default();
                    known.score = v.score;
                    known.p_value = v.p_value;
                    known.rul = v.rul.map(|r| r.median);
                    known.anomaly = v.reason == crate::types::Reason::AnomalyDetected;
                    known.top_channel = v.contributions.first().map(|c| c.name.clone());
                }
                Live::Alarm(a, _) if a.condition == Condition::Anomaly => {
                    self.known.entry(a.machine.clone()).or_default().alarm = a.state.is_active();
                }
                _ => {}
            }
        }
        self.known.get(machine).cloned().unwrap_or_default()
    }
}

impl Columns {
    fn find(table: &Table, options: &Options) -> Result<Columns> {
        let place = |name: &Option<String>| name.as_deref().map(|n| table.column(n)).transpose();
        let (machine, label) = (place(&options.machine_column)?, place(&options.label)?);
        let taken = |i: &usize| *i == table.time || Some(*i) == machine || Some(*i) == label;
        let signals = (0..table.headers.len()).filter(|i| !taken(i)).map(|i| (i, table.headers[i].as_str().into()));
        Ok(Columns { machine, label, signals: signals.collect() })
    }
}

/// The machine meant when neither option nor column names one: the first block's.
fn only_machine(options: &Options, config: &Config) -> String {
    let named = options.machine.clone();
    named.unwrap_or_else(|| config.machines.first().map_or("machine".into(), |m| m.matcher.replace(['*', '?'], "1")))
}

fn warn_of_missing(blocks: &[Block], columns: &Columns) {
    for block in blocks {
        let there = |c: &&Name| !columns.signals.iter().any(|(_, s)| s == *c);
        let missing: Vec<&str> = block.layout.channels.iter().filter(there).map(|c| &**c).collect();
        if !missing.is_empty() && !block.layout.channels.is_empty() {
            let list = missing.join(", ");
            tracing::warn!("the data has no columns {list}, which the model of a [[machine]] needs");
        }
    }
}

fn is_anomaly(label: &str) -> bool {
    !matches!(label.trim(), "" | "0" | "0.0" | "false" | "False" | "normal")
}

/// The `--out` file.
struct Output {
    file: Option<csv::Writer<std::fs::File>>,
    rul: bool,
    label: bool,
}

impl Output {
    fn open(options: &Options, rul: bool, label: bool) -> Result<Output> {
        let Some(path) = &options.out else { return Ok(Output { file: None, rul, label }) };
        let mut file = csv::Writer::from_path(path).with_context(|| format!("writing {}", path.display()))?;
        let mut head = vec!["timestamp", "machine", "score", "p_value", "pred", "alarm", "top_channel"];
        head.extend(rul.then_some("rul"));
        head.extend(label.then_some("label"));
        file.write_record(head)?;
        Ok(Output { file: Some(file), rul, label })
    }

    fn row(&mut self, time: &str, machine: &str, known: &Known, label: Option<bool>) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let number = |n: Option<f64>| n.map_or(String::new(), |n| n.to_string());
        let flag = |b: bool| String::from(if b { "1" } else { "0" });
        let mut row = vec![time.to_owned(), machine.to_owned(), number(known.score), number(known.p_value)];
        row.extend([flag(known.anomaly), flag(known.alarm), known.top_channel.as_deref().unwrap_or("").to_owned()]);
        row.extend(self.rul.then(|| number(known.rul)));
        row.extend(self.label.then(|| flag(label.unwrap_or(false))));
        Ok(file.write_record(row)?)
    }

    fn finish(self) -> Result<()> {
        self.file.map_or(Ok(()), |mut f| f.flush().context("writing the results"))
    }
}

/// A line on the terminal, if stderr is one.
struct Progress {
    size: u64,
    percent: Option<u64>,
}

impl Progress {
    fn new(size: u64) -> Progress {
        Progress { size, percent: std::io::stderr().is_terminal().then_some(101) }
    }

    fn show(&mut self, position: u64) {
        let now = position * 100 / self.size.max(1);
        if self.percent.is_some_and(|p| p != now) {
            self.percent = Some(now);
            let done = "#".repeat(now as usize / 2);
            eprint!("\r[{done:50}] {now:3} %");
            let _ = std::io::stderr().flush();
        }
    }

    fn done(&self) {
        if self.percent.is_some() {
            eprintln!();
        }
    }
}
