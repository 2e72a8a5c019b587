//! `andon model`: what is in a bundle, whether it does what its golden cases say, what it costs, and who
//! signed it. Test and bench run in a process of their own, since a bundle may be broken in any way.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::model::judge::{self, Findings, Limits};
use crate::model::{Bundle, ModelError, signature};
use crate::settings::{parse_duration, parse_size};

mod bench;
mod ship;

/// What to do with the bundle.
#[derive(Subcommand)]
pub enum Action {
    /// Show what a bundle says of itself, and whether its files are those it names
    Inspect(Inspect),
    /// Load a bundle and run its golden cases, in a process with limits
    Test(Test),
    /// Measure time, memory and agreement with the golden cases
    Bench(bench::Options),
    /// Sign a bundle (OpenSSF Model Signing, key method)
    Sign(ship::Sign),
    /// Whether a bundle is as it was signed, and by whom
    Verify(ship::Verify),
    /// Judge a bundle, then put it where the config's models are
    Install(ship::Install),
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
    /// The address space the test may use
    #[arg(long, value_name = "SIZE", default_value = "2GiB", value_parser = size)]
    memory: u64,
    /// How long it may take
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    timeout: Duration,
    /// One JSON object with what was measured
    #[arg(long)]
    json: bool,
    /// Run it in this very process, which then has the limit
    #[arg(long, hide = true)]
    here: bool,
}

/// Runs one of them.
pub fn run(action: &Action) -> Result<()> {
    match action {
        Action::Inspect(options) => inspect(&options.path),
        Action::Test(options) if options.here => test_here(options),
        Action::Test(options) => test(options),
        Action::Bench(options) => bench::run(options),
        Action::Sign(options) => ship::sign(options),
        Action::Verify(options) => ship::verify(options),
        Action::Install(options) => ship::install(options),
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
    let signed = if signature::is_signed(path) { "signed; `andon model verify` says by whom" } else { "not signed" };
    println!("  {signed}");
    Ok(())
}

fn test_here(options: &Test) -> Result<()> {
    let found = judge::here(&options.path, options.memory)?;
    if options.json {
        println!("{}", serde_json::to_string(&found)?);
    } else {
        tell(&found);
    }
    Ok(())
}

fn test(options: &Test) -> Result<()> {
    let limits = Limits { memory: options.memory, time: options.timeout };
    let found = judge::apart(judge::own_program(), &options.path, &limits, &|| false)?;
    if options.json {
        println!("{}", serde_json::to_string(&found)?);
    } else {
        tell(&found);
    }
    Ok(())
}

fn tell(found: &Findings) {
    println!("{} version {}: {} golden cases passed", found.name, found.version, found.cases);
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
