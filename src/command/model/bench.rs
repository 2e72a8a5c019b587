//! `andon model bench`: how fast a bundle is in tract, how much memory it takes, and how far its
//! answers are from the golden ones. What it is timed on is noise like the training data.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use crate::model::judge::{self, Limits};
use crate::model::session::Session;
use crate::model::{Bundle, ModelError};

/// Batch sizes that are measured beside the agent's own: a lonely window, and what onnxruntime is
/// usually measured with.
const SIZES: [usize; 2] = [1, 32];
/// Runs before the clock starts: caches and lazily made tables.
const WARM_UP: usize = 1;
/// However long they take. The table says how many there were: a p99 needs a hundred, which the
/// usual time gives to any model that takes less than 10 ms.
const LEAST_RUNS: usize = 5;
/// More runs say no more, and their times have to be kept.
const MOST_RUNS: usize = 50_000;
/// What the noise begins with, so that two runs are given the same windows.
const SEED: u64 = 1;

/// See `andon model bench --help`.
#[derive(Args)]
pub struct Options {
    /// The bundle's directory
    path: PathBuf,
    /// How long each batch size is measured
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = super::duration)]
    time: Duration,
    /// One JSON object in place of the table
    #[arg(long)]
    json: bool,
    /// The address space it may use
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = super::size)]
    memory: u64,
    /// How long it may take
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = super::duration)]
    timeout: Duration,
    /// Run it in this very process, which then has the limit
    #[arg(long, hide = true)]
    here: bool,
}

/// What was measured of a bundle.
#[derive(Debug, Serialize)]
struct Figures {
    name: String,
    version: String,
    /// Of `model.onnx`.
    onnx_bytes: u64,
    /// Of all of the bundle's files.
    bundle_bytes: u64,
    /// From bytes in memory to a plan.
    build_ms: f64,
    /// What building the agent's plan and running it added to the resident memory, program code
    /// not counted.
    memory_bytes: u64,
    golden: Agreement,
    latency: Vec<Latency>,
}

/// How far the answers are from the golden ones.
#[derive(Debug, Default, Serialize)]
struct Agreement {
    cases: usize,
    values: usize,
    /// Largest difference of a value.
    largest: f64,
    /// The same as a share of what the case allows; above 1 the bundle would be refused.
    of_tolerance: f64,
}

/// Times of one batch size.
#[derive(Debug, Serialize)]
struct Latency {
    /// Windows that the plan takes at once.
    plan: usize,
    /// Windows given to it; the rest is padding.
    windows: usize,
    runs: usize,
    p50_us: f64,
    p99_us: f64,
    /// Median by window given.
    per_window_us: f64,
}

/// Measures in a process of its own, and prints.
pub fn run(options: &Options) -> Result<()> {
    if options.here {
        return here(options);
    }
    let time = format!("{}ns", options.time.as_nanos());
    let words = ["bench", "--time", &time, "--json"];
    let words = &words[..if options.json { 4 } else { 3 }];
    let limits = Limits { memory: options.memory, time: options.timeout };
    print!("{}", judge::told(judge::own_program(), words, &options.path, &limits, &|| false)?);
    Ok(())
}

fn here(options: &Options) -> Result<()> {
    judge::hold(options.memory)?;
    let bundle = Bundle::read(&options.path)?;
    let before = resident()?;
    let started = Instant::now();
    let own = Session::build(&bundle.onnx, &bundle.manifest)?;
    let build_ms = started.elapsed().as_secs_f64() * 1e3;
    let golden = agreement(&own, &bundle)?;
    let mut latency =
        vec![latency(&own, &bundle, 1, options.time)?, latency(&own, &bundle, own.batch(), options.time)?];
    let memory_bytes = resident()?.saturating_sub(before);
    for size in SIZES {
        let plan = Session::bound(&bundle.onnx, &bundle.manifest, size)?;
        latency.push(self::latency(&plan, &bundle, size, options.time)?);
    }
    let figures = Figures {
        name: bundle.manifest.name.clone(),
        version: bundle.manifest.version.clone(),
        onnx_bytes: bundle.onnx.len() as u64,
        bundle_bytes: size_of(&options.path)?,
        build_ms,
        memory_bytes,
        golden,
        latency,
    };
    if options.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        figures.print(own.batch());
    }
    Ok(())
}

impl Figures {
    fn print(&self, own: usize) {
        let kib = |bytes: u64| bytes as f64 / 1024.0;
        println!("{} version {}", self.name, self.version);
        println!("  model.onnx {:.1} KiB, the bundle {:.1} KiB", kib(self.onnx_bytes), kib(self.bundle_bytes));
        println!("  built in {:.1} ms, resident memory {:.0} KiB more", self.build_ms, kib(self.memory_bytes));
        let g = &self.golden;
        let (cases, values) = (g.cases, g.values);
        println!(
            "  {cases} golden cases, {values} values: off by {:.1e} at most, {:.1} % of what is allowed",
            g.largest,
            g.of_tolerance * 100.0
        );
        println!("  {:<34} {:>10} {:>10} {:>12} {:>7}", "one run on one core, µs", "p50", "p99", "per window", "runs");
        for l in &self.latency {
            let what = match (l.plan == own, l.windows) {
                (true, 1) => format!("as the agent runs it, 1 of {own}"),
                (true, _) => format!("as the agent runs it, {own} of {own}"),
                (false, n) => format!("plan made for {n}"),
            };
            let (p50, p99, each, runs) = (l.p50_us, l.p99_us, l.per_window_us, l.runs);
            println!("  {what:<34} {p50:>10.1} {p99:>10.1} {each:>12.2} {runs:>7}");
        }
    }
}

/// How far the golden answers are missed. A bundle that the agent would refuse is measured too.
fn agreement(session: &Session, bundle: &Bundle) -> Result<Agreement> {
    let mut found = Agreement { cases: bundle.golden.len(), ..Agreement::default() };
    for case in &bundle.golden {
        let mut each = |_: &str, got: f32, want: f32| {
            let off = (f64::from(got) - f64::from(want)).abs();
            let off = if off.is_nan() { f64::MAX } else { off };
            found.values += 1;
            found.largest = found.largest.max(off);
            let share = off / (case.atol + case.rtol * f64::from(want).abs());
            // JSON has no infinity.
            found.of_tolerance = found.of_tolerance.max(share.min(f64::MAX));
            Ok(())
        };
        session.replay(case, &mut each).map_err(ModelError::Golden)?;
    }
    Ok(found)
}

/// Times so many windows at once, for about `time`.
fn latency(session: &Session, bundle: &Bundle, windows: usize, time: Duration) -> Result<Latency> {
    let data = noise(bundle, windows);
    let windows: Vec<&[f32]> = data.iter().map(Vec::as_slice).collect();
    let states = vec![session.initial(); windows.len()];
    for _ in 0..WARM_UP {
        session.run(&windows, &states)?;
    }
    let mut taken = Vec::with_capacity(LEAST_RUNS);
    let started = Instant::now();
    while taken.len() < LEAST_RUNS || (started.elapsed() < time && taken.len() < MOST_RUNS) {
        let one = Instant::now();
        std::hint::black_box(session.run(&windows, &states)?);
        taken.push(one.elapsed().as_secs_f64() * 1e6);
    }
    taken.sort_by(f64::total_cmp);
    let at = |share: f64| taken[((taken.len() - 1) as f64 * share).round() as usize];
    Ok(Latency {
        plan: session.batch(),
        windows: windows.len(),
        runs: taken.len(),
        p50_us: at(0.5),
        p99_us: at(0.99),
        per_window_us: at(0.5) / windows.len() as f64,
    })
}

/// Windows like those of training: each value within a deviation or so of its channel's mean.
fn noise(bundle: &Bundle, windows: usize) -> Vec<Vec<f32>> {
    let mut rng = fastrand::Rng::with_seed(SEED);
    let m = &bundle.manifest;
    let mut value = |i: usize| {
        let c = &m.channels[i % m.channels.len()];
        (c.mean + c.std * (3.0 * rng.f64() - 1.5)) as f32
    };
    (0..windows).map(|_| (0..m.steps * m.channels.len()).map(&mut value).collect()).collect()
}

/// This process's resident memory in bytes, without what is mapped from files.
fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("reading /proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let kib = line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse::<u64>().ok());
    kib.map(|kib| kib * 1024).context("/proc/self/status has no RssAnon")
}

fn size_of(dir: &Path) -> Result<u64> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    Ok(entries.flatten().filter_map(|e| e.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum())
}
