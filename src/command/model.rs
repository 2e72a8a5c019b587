//! `andon model`: what is in a bundle, whether it does what its golden cases say, and what it costs.
//! Test and bench run in a process of their own with limits, since a bundle from elsewhere may be
//! broken in any way.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::model::{Bundle, Model, ModelError};
use crate::settings::{parse_duration, parse_size};

mod bench;

/// How often the parent looks whether the test has ended.
const LOOK: Duration = Duration::from_millis(10);
/// As much of what the test says as is shown.
const SHOWN: u64 = 16 << 10;

/// What to do with the bundle.
#[derive(Subcommand)]
pub enum Action {
    /// Show what a bundle says of itself, and whether its files are those it names
    Inspect(Inspect),
    /// Load a bundle and run its golden cases, in a process with limits
    Test(Test),
    /// Measure time, memory and agreement with the golden cases
    Bench(bench::Options),
}

/// See `andon model inspect --help`.
#[derive(Args)]
pub struct Inspect {
    /// The bundle's directory
    path: PathBuf,
}

/// See `andon model test --help`.
#[derive(Args)]
pub struct Test {
    /// The bundle's directory
    path: PathBuf,
    #[command(flatten)]
    limits: Limits,
    /// Run it in this very process, which then has the limit
    #[arg(long, hide = true)]
    here: bool,
}

/// What the process of its own may use.
#[derive(Args)]
pub struct Limits {
    /// The address space it may use
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = size)]
    memory: u64,
    /// How long it may take
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

impl Limits {
    /// Holds this process to the address space.
    fn take(&self) -> Result<()> {
        let limit = Rlimit { current: Some(self.memory), maximum: Some(self.memory) };
        setrlimit(Resource::As, limit).context("limiting the address space")
    }
}

/// Runs one of them.
pub fn run(action: &Action) -> Result<()> {
    match action {
        Action::Inspect(options) => inspect(&options.path),
        Action::Test(options) if options.here => test_here(options),
        Action::Test(options) => apart(&options.limits, &["test"], &options.path),
        Action::Bench(options) if options.here => bench::run(options),
        Action::Bench(options) => {
            let time = format!("{}ns", options.time.as_nanos());
            let words = ["bench", "--time", &time, "--json"];
            apart(&options.limits, &words[..if options.json { 4 } else { 3 }], &options.path)
        }
    }
}

fn inspect(path: &Path) -> Result<()> {
    let bundle = Bundle::read(path)?;
    let m = &bundle.manifest;
    println!("{} version {}: {:?}", m.name, m.version, m.task);
    println!("  window {} steps of {:?}, every {} steps", m.steps, m.rate, m.stride);
    for (what, tensors) in [("input", &m.inputs), ("output", &m.outputs)] {
        tensors.iter().for_each(|t| println!("  {what} {} {} {:?}", t.name, t.datatype, t.shape));
    }
    for c in &m.channels {
        println!("  channel {} {}: mean {}, std {}", c.name, c.unit, c.mean, c.std);
    }
    println!("  {} golden cases, {} reference scores", bundle.golden.len(), bundle.reference.scores.len());
    println!("  model.onnx {} bytes, sha256 {}", bundle.onnx.len(), bundle.digest);
    m.digests.keys().for_each(|file| println!("  digest of {file}: as model.json says"));
    if !m.digests.contains_key("model.onnx") {
        println!("  no digest of model.onnx: nothing says that it is the one that was made");
    }
    Ok(())
}

fn test_here(options: &Test) -> Result<()> {
    options.limits.take()?;
    let cases = Bundle::read(&options.path)?.golden.len();
    let model = Model::load(&options.path)?;
    println!("{} version {}: {cases} golden cases passed", model.manifest().name, model.manifest().version);
    Ok(())
}

/// Runs `andon model WORDS PATH` in a process of its own, and says how it ended.
fn apart(limits: &Limits, words: &[&str], path: &Path) -> Result<()> {
    let own = std::env::current_exe().context("finding this program")?;
    let mut child = Command::new(own);
    child.arg("model").args(words).args(["--here", "--memory", &limits.memory.to_string(), "--"]).arg(path);
    let mut child = child.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("starting the test")?;
    let stderr = child.stderr.take();
    // Read while it runs, so that a talkative child does not wait for room.
    let said = std::thread::spawn(move || {
        let mut text = Vec::new();
        let Some(mut pipe) = stderr else { return text };
        let _ = pipe.by_ref().take(SHOWN).read_to_end(&mut text);
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        text
    });
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for the test")? {
            break status;
        }
        if started.elapsed() > limits.timeout {
            let _ = child.kill();
            let _ = child.wait();
            return Err(failed(format!("it did not end within {:?}", limits.timeout)));
        }
        std::thread::sleep(LOOK);
    };
    let said = said.join().unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (_, Some(signal)) => {
            let limit = limits.memory;
            Err(failed(format!("it died of signal {signal}, maybe of the limit of {limit} bytes: {}", said.trim())))
        }
        _ => Err(failed(said.trim().trim_start_matches("andon: ").to_owned())),
    }
}

/// A model that cannot be used has an exit code of its own.
fn failed(what: String) -> anyhow::Error {
    anyhow::Error::new(ModelError::Test(what))
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).filter(|s| *s > 0).ok_or_else(|| format!("{text:?} is not a size such as \"2GiB\""))
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| format!("{text:?} is not a duration such as \"60s\""))
}
