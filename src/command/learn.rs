//! `andon learn`: from recorded healthy running to a bundle, on the gateway, without Python.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::json;
use wildmatch::WildMatch;

use super::ConfigFile;
use super::table::Table;
use crate::agent::blocks;
use crate::config::{Config, Machine, Needs};
use crate::logging;
use crate::model::fit::{self, Stretch};
use crate::model::learnt::Learnt;
use crate::model::{Model, signature, write};
use crate::pipeline::{self, Due, Layout};
use crate::settings::{parse_duration, plain_period};
use crate::types::{Name, Reading, Time};

mod journal;

/// Share of the data that is held back to judge what was learnt.
const HELD_BACK: f64 = 0.2;
/// More flagged windows than this on held-back healthy data, and the data was not alike throughout.
const RESTLESS: f64 = 0.2;
/// Windows' lengths before the data held back that the detector is run over first.
const WARM: usize = 40;
/// A channel that is doubted more than this is named; less changes little.
const DOUBTFUL: f64 = 1.5;

/// See `andon learn --help`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// Recorded healthy running, one row per time, one column per signal
    #[arg(long, value_name = "CSV", required_unless_present = "from_journal")]
    input: Option<PathBuf>,
    /// What the agent itself took in during this time until now, as far as its journal still has
    /// it; the agent may be running
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with_all = ["input", "time", "machine_column", "rows"])]
    from_journal: Option<Duration>,
    /// The machine it is of: finds its [[machine]] block
    #[arg(long, value_name = "ID")]
    machine: String,
    /// Where the bundle goes; its last part is the model's name
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The column with the time
    #[arg(long, value_name = "COL")]
    time: Option<String>,
    /// The column that names the machine; other machines' rows are left out
    #[arg(long, value_name = "COL")]
    machine_column: Option<String>,
    /// Columns or signals to leave out, such as labels
    #[arg(long, value_name = "COL,…", value_delimiter = ',')]
    ignore: Vec<String>,
    /// Only the first rows
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// Steps in a window
    #[arg(long, value_name = "STEPS", default_value_t = 30, value_parser = clap::value_parser!(u16).range(1..=4096))]
    window: u16,
    /// Write the bundle even if the data held back looks different
    #[arg(long)]
    force: bool,
}

/// What was read.
struct Recorded {
    channels: Vec<String>,
    readings: Vec<Reading>,
    rate: Duration,
}

/// Learns, judges, writes, loads what was written, and says how far to trust it.
pub fn run(options: &Options) -> Result<()> {
    let config = options.file.load(Needs::default())?;
    logging::start(&config.log)?;
    let matches = |m: &&Machine| WildMatch::new(&m.matcher).matches(&options.machine);
    let block = config.machines.iter().find(matches);
    let block = block.with_context(|| format!("no [[machine]] of the config matches {:?}", options.machine))?;
    let mut recorded = match (&options.input, options.from_journal) {
        (Some(csv), _) => read(csv, options, block)?,
        (None, Some(span)) => from_journal(&config.agent.data_dir, span, options, block)?,
        (None, None) => bail!("give --input or --from-journal"),
    };
    let steps = usize::from(options.window);
    let (stretches, left_out) = learnable(&config, block, &mut recorded, steps)?;
    let limit = blocks::limit(&block.alarm.limit, recorded.rate.as_nanos() as i64, steps);
    let fitted = Learnt::fit(&stretches, &recorded.channels, steps, &limit)?;
    let (train, held) = split(&stretches, steps);
    let flagged = flagged(&Learnt::fit(&train, &recorded.channels, steps, &limit)?, &train, &held);
    let (flagged, share) = (flagged.iter().filter(|f| **f).count(), share(&flagged));
    // Windows that all share a row are one piece of evidence, which is too little to refuse all data for.
    if share > RESTLESS && flagged > steps && !options.force {
        bail!(
            "{:.0} % of the last windows look unlike those before them, so this is not one steady, healthy state; give \
             data of healthy running only, or more of it (--force learns all the same)",
            share * 100.0
        );
    }
    let name = options.out.file_name().and_then(|n| n.to_str()).context("--out has to name a directory")?;
    let rows: usize = stretches.iter().map(Vec::len).sum();
    let about = write::About {
        name: name.to_owned(),
        version: "1".into(),
        channels: recorded.channels.clone(),
        rate: recorded.rate,
        source: source(options),
        at: Time(Time::now().0 / 1_000_000_000 * 1_000_000_000),
        left_out,
        metrics: json!({ "rows": rows, "held_back_windows_flagged": share }),
    };
    write::bundle(&options.out, &about, &fitted, &samples(&stretches, steps))
        .with_context(|| format!("writing {}", options.out.display()))?;
    if let Some(key) = &config.trust.own {
        signature::sign(&options.out, key)?;
    }
    let model = Model::load(&options.out)?;
    tell(&options.out, &about, &fitted, &model, share);
    Ok(())
}

/// Takes the machine's readings from the agent's own journal.
fn from_journal(data_dir: &Path, span: Duration, options: &Options, block: &Machine) -> Result<Recorded> {
    let since = Time(Time::now().0.saturating_sub(i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)));
    let mut readings = journal::readings(data_dir, since, &options.machine)?;
    readings.retain(|r| !options.ignore.iter().any(|i| **i == *r.signal));
    ensure!(
        !readings.is_empty(),
        "the journal in {} has no readings of {} in that time",
        data_dir.display(),
        options.machine
    );
    let (signals, times) = journal::signals(&readings);
    let rate = block.pipeline.rate.unwrap_or_else(|| usual_step(&times));
    let columns: Vec<(usize, Name)> = signals.into_iter().enumerate().collect();
    Ok(Recorded { channels: channels(&columns, block), readings, rate })
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| format!("{text:?} is not a duration such as \"8h\" or \"7d\""))
}

fn read(input: &Path, options: &Options, block: &Machine) -> Result<Recorded> {
    let mut table = Table::open(input, options.time.as_deref())?;
    let machine = options.machine_column.as_deref().map(|c| table.column(c)).transpose()?;
    let ignored: Vec<usize> = options.ignore.iter().map(|c| table.column(c)).collect::<Result<_>>()?;
    let signal = |i: &usize| *i != table.time && Some(*i) != machine && !ignored.contains(i);
    let columns: Vec<(usize, Name)> =
        (0..table.headers.len()).filter(signal).map(|i| (i, table.headers[i].as_str().into())).collect();
    let name: Name = options.machine.as_str().into();
    let (mut readings, mut times) = (Vec::new(), Vec::new());
    while let Some((line, at, record)) = table.next_row()? {
        if machine.is_some_and(|c| record.get(c) != Some(&options.machine)) {
            continue;
        }
        if options.rows.is_some_and(|n| times.len() >= n) {
            break;
        }
        times.push(at);
        for (column, signal) in &columns {
            let Some(text) = record.get(*column).filter(|t| !t.is_empty()) else { continue };
            let value = text.parse();
            let value = value.with_context(|| {
                format!("line {line}: {signal} is {text:?}, not a number; leave the column out with --ignore {signal}")
            })?;
            readings.push(Reading::good(name.clone(), signal.clone(), at, value));
        }
    }
    ensure!(times.len() > 1, "{} has no rows of {}", input.display(), options.machine);
    let rate = block.pipeline.rate.unwrap_or_else(|| usual_step(&times));
    let channels = channels(&columns, block);
    Ok(Recorded { channels, readings, rate })
}

/// The signals to learn: those that `[machine.channels]` names, else all columns but those that
/// only tell whether the machine runs.
fn channels(columns: &[(usize, Name)], block: &Machine) -> Vec<String> {
    if !block.channels.is_empty() {
        return block.channels.iter().map(|(_, signal)| signal.clone()).collect();
    }
    columns.iter().map(|(_, name)| name.to_string()).collect()
}

/// Where the data came from, for the card.
fn source(options: &Options) -> String {
    let file = options.input.as_deref().and_then(Path::file_name);
    file.map_or("the agent's journal".into(), |n| n.to_string_lossy().into_owned())
}

fn usual_step(times: &[Time]) -> Duration {
    let mut gaps: Vec<Duration> = times.windows(2).map(|w| w[1].since(w[0])).filter(|d| !d.is_zero()).collect();
    gaps.sort_unstable();
    gaps.get(gaps.len() / 2).copied().map_or(Duration::from_secs(1), plain_period)
}

/// The rows as the running agent would see them: aligned, gated, and cut where the machine is off
/// or a signal is bad.
fn align(config: &Config, block: &Machine, recorded: &Recorded) -> Result<Vec<Stretch>> {
    let names: Vec<Name> = recorded.channels.iter().map(|c| c.as_str().into()).collect();
    let layout = Layout::new(&block.pipeline, names, 1, 1, recorded.rate);
    let rate = layout.rate;
    let mut machine = pipeline::Machine::new(config.agent.id.as_str().into(), layout.into());
    let mut stretches: Vec<Stretch> = Vec::new();
    let mut last: Option<Time> = None;
    for reading in &recorded.readings {
        machine.push(reading, reading.at, false);
        while let Some(step) = machine.pop() {
            let Some(Due::Window(w)) = step.due else { continue };
            let follows = last.is_some_and(|t| w.end.0 - t.0 <= rate);
            last = Some(w.end);
            let row = w.data.iter().map(|v| f64::from(*v)).collect();
            match stretches.last_mut().filter(|_| follows) {
                Some(stretch) => stretch.push(row),
                None => stretches.push(vec![row]),
            }
        }
    }
    ensure!(!stretches.is_empty(), "no row has good values for all of {}", recorded.channels.join(", "));
    Ok(stretches)
}

/// The rows of the channels that change, and the others, which are left out of what was recorded.
/// Channels that the config names are wanted, and a machine that mostly stands still teaches nothing.
fn learnable(
    config: &Config,
    block: &Machine,
    recorded: &mut Recorded,
    steps: usize,
) -> Result<(Vec<Stretch>, Vec<String>)> {
    let stretches = align(config, block, recorded)?;
    // What is judged by the data held back is learnt from the rest.
    let still = fit::constant(&split(&stretches, steps).0, &recorded.channels);
    if still.is_empty() || !block.channels.is_empty() || 2 * still.len() >= recorded.channels.len() {
        return Ok((stretches, Vec::new()));
    }
    recorded.channels.retain(|c| !still.contains(c));
    Ok((align(config, block, recorded)?, still))
}

/// The last fifth, with a window's length between.
fn split(stretches: &[Stretch], steps: usize) -> (Vec<Stretch>, Vec<Stretch>) {
    let total: usize = stretches.iter().map(Vec::len).sum();
    let mut left = total - (total as f64 * HELD_BACK) as usize;
    let (mut train, mut held) = (Vec::new(), Vec::new());
    for stretch in stretches {
        let cut = left.min(stretch.len());
        left -= cut;
        train.push(stretch[..cut].to_vec());
        held.push(stretch[(cut + if cut > 0 { steps } else { 0 }).min(stretch.len())..].to_vec());
    }
    (train, held)
}

/// Which of the held-back windows are strange to a fit that had not seen them, by a detector that
/// comes from the stretches before.
fn flagged(fitted: &Learnt, before: &[Stretch], held: &[Stretch]) -> Vec<bool> {
    let steps = fitted.common().steps;
    let mut states = fitted.start();
    let mut run = |window: &[Vec<f64>]| {
        let stepped = fitted.step(&states, &window.concat());
        states = stepped.next;
        stepped.strange
    };
    // Only the baseline matters, and it forgets: the last stretch's end is enough to warm it.
    let last = before.iter().rev().find(|s| s.len() >= steps);
    let warm = last.map_or(&[][..], |s| &s[s.len().saturating_sub(WARM * steps)..]);
    for window in warm.windows(steps) {
        run(window);
    }
    held.iter().flat_map(|s| s.windows(steps)).map(run).collect()
}

/// Of none it is 0.
fn share(flagged: &[bool]) -> f64 {
    flagged.iter().filter(|f| **f).count() as f64 / flagged.len().max(1) as f64
}

fn samples(stretches: &[Stretch], steps: usize) -> Vec<Vec<f64>> {
    stretches.iter().flat_map(|s| s.chunks_exact(steps)).map(<[Vec<f64>]>::concat).collect()
}

/// What there is to say of a channel.
fn said_of(slow: bool, doubt: f64) -> String {
    let mut said = String::new();
    if slow {
        said += "  wanders: judged by its recent course";
    }
    if doubt > DOUBTFUL {
        said += &format!("  slow for so little data: it has to move {doubt:.1} times as far to stand out");
    }
    said
}

fn tell(out: &Path, about: &write::About, fitted: &Learnt, model: &Model, flagged: f64) {
    let (independent, common) = (fitted.independent(), fitted.common());
    let seconds = about.rate.as_secs_f64() * common.steps as f64;
    println!(
        "{}: learnt {} channels, windows of {} steps ({seconds:.1} s)",
        out.display(),
        about.channels.len(),
        common.steps
    );
    println!("  {:<24} {:>12} {:>12}", "channel", "mean", "deviation");
    for (i, channel) in about.channels.iter().enumerate() {
        let said = match fitted {
            Learnt::Baseline(f) => said_of(f.slow[i], f.doubts[i]),
            Learnt::Course(_) => String::new(),
        };
        println!("  {channel:<24} {:>12.4} {:>12.4}{said}", common.mean[i], common.std[i]);
    }
    if !about.left_out.is_empty() {
        println!(
            "  left out, since they do not change in the first four fifths of the data: {}",
            about.left_out.join(", ")
        );
    }
    if common.optimism > 1.25 {
        let percent = (common.optimism - 1.0) * 100.0;
        println!("  what is new differs from what was learnt: limits are {percent:.0} % wider; more data narrows them");
    }
    println!("  held back: {:.1} % of the windows flagged", flagged * 100.0);
    println!("  self-test passed, sha256 {}", model.digest());
    println!("  {} reference scores, worth about {independent} independent windows:", common.windows);
    let shortest = Duration::from_secs_f64(seconds * independent.max(1) as f64);
    println!("  a budget of one false alarm per {shortest:.0?} is counted; longer ones rest on a fitted tail");
}
