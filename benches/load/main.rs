//! The load harness: the real binary between a real mosquitto and an HTTP sink, all on this machine.
//! Prints a table: readings and verdicts a second, CPU for each reading and for each thread, latency
//! from publishing to the cloud, memory, bytes written and sent.
//!
//! `cargo bench --bench load [-- --seconds N] [--only WORKLOAD] [--runs N] [--bin ANDON] [--against ANDON]`
//!
//! With `--against`, another build takes turns with ours, and the ratios are what counts: machines
//! differ, and so do hours of the day on one of them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

mod agent;
mod direct;
mod modbus;
#[path = "../../tests/support/mosquitto.rs"]
#[allow(dead_code)] // shared with the tests, which use more of it
mod mosquitto;
mod outage;
mod probe;
mod publisher;
mod run;
mod sink;
mod start;
mod workload;

use run::Figures;
use workload::Workload;

/// What was asked for.
struct Options {
    time: Duration,
    runs: usize,
    only: Option<String>,
    ours: PathBuf,
    against: Option<PathBuf>,
}

impl Options {
    fn read() -> Result<Options> {
        let mut options = Options {
            time: Duration::from_secs(10),
            runs: 1,
            only: None,
            ours: env!("CARGO_BIN_EXE_andon").into(),
            against: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} wants a value"));
            match word.as_str() {
                "--seconds" => options.time = Duration::from_secs_f64(value()?.parse()?),
                "--runs" => options.runs = value()?.parse()?,
                "--only" => options.only = Some(value()?),
                "--bin" => options.ours = value()?.into(),
                "--against" => options.against = Some(value()?.into()),
                // What cargo adds.
                "--bench" => {}
                other => bail!("{other:?} is not known here"),
            }
        }
        Ok(options)
    }
}

fn main() -> Result<()> {
    let options = Options::read()?;
    for workload in workload::all() {
        if options.only.as_ref().is_some_and(|only| *only != workload.name) {
            continue;
        }
        println!("\n{}: {}", workload.name, workload.about);
        if workload.outage {
            outage::run(&workload, &options.ours, options.time)?;
        } else {
            measure(&workload, &options)?;
        }
    }
    if options.only.as_ref().is_none_or(|only| only == "start") {
        println!("\nstart: from starting the process to its answer that it is ready");
        starts(&options)?;
    }
    Ok(())
}

fn starts(options: &Options) -> Result<()> {
    for n_models in [0, 3] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..options.runs {
            ours.push(start::measure(&options.ours, n_models)?);
            if let Some(against) = &options.against {
                theirs.push(start::measure(against, n_models)?);
            }
        }
        for (n, what) in ["on an empty directory", "after kill -9"].into_iter().enumerate() {
            let spread = |figures: &[[f64; 2]]| Spread::of(figures.iter().map(|f| f[n]).collect());
            say(&format!("ms with {n_models} models, {what}"), spread(&ours), spread(&theirs));
        }
    }
    Ok(())
}

/// A line, with the other build's figure beside it if there is one.
fn say(name: &str, ours: Option<Spread>, theirs: Option<Spread>) {
    match (ours, theirs) {
        (Some(a), Some(b)) => println!("  {name:<44} {a}   against {b}   ratio {:.2}", a.median / b.median),
        (Some(a), None) => println!("  {name:<44} {a}"),
        _ => {}
    }
}

fn measure(workload: &Workload, options: &Options) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        ours.push(run::run(workload, &options.ours, options.time)?);
        if let Some(against) = &options.against {
            theirs.push(run::run(workload, against, options.time)?);
        }
    }
    for (n, name) in Figures::NAMES.iter().enumerate() {
        let spread = |figures: &[Figures]| Spread::of(figures.iter().map(|f| f.values()[n]).collect());
        say(name, spread(&ours), spread(&theirs));
    }
    let threads = &ours.last().context("at least one run")?.threads;
    let each: Vec<String> = threads.iter().map(|(name, us)| format!("{name} {us:.2}")).collect();
    println!("  {:<44} {}", "CPU us per reading, by thread, last run", each.join(", "));
    Ok(())
}

/// The median of some runs, and how far they lie apart.
struct Spread {
    least: f64,
    median: f64,
    most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.retain(|v| v.is_finite());
        values.sort_by(f64::total_cmp);
        let at = |part: usize| values.get((values.len().saturating_sub(1)) * part / 2).copied();
        Some(Spread { least: at(0)?, median: at(1)?, most: at(2)? })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.median >= 100.0 { 0 } else { 2 };
        write!(f, "{:>12.digits$}", self.median)?;
        if self.least < self.most {
            write!(f, " ({:.digits$} to {:.digits$})", self.least, self.most)?;
        }
        Ok(())
    }
}
