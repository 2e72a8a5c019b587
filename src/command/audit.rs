//! `andon audit`: who did what to alarms, models and the configuration, and whether the log of it is whole.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use super::ConfigFile;
use crate::agent::audit::{self, file};
use crate::config::Needs;

/// See `andon audit --help`.
#[derive(Subcommand)]
pub enum Action {
    /// Follow the chain of hashes from the first entry to the last
    Verify(Options),
}

/// See `andon audit verify --help`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    file: ConfigFile,
    /// The log, or an export of it: JSON lines. Without it: the one in the config's data_dir
    path: Option<PathBuf>,
    /// The hash of an entry noted earlier: it has to be in the chain
    #[arg(long, value_name = "HASH")]
    head: Option<String>,
}

/// Prints what it found; fails where the chain is broken.
pub fn run(action: &Action) -> Result<()> {
    let Action::Verify(options) = action;
    let path = match &options.path {
        Some(path) => path.clone(),
        None => options.file.load(Needs::default())?.agent.data_dir.join(file::NAME),
    };
    let lines = file::lines(&path).with_context(|| format!("reading {}", path.display()))?;
    if let Some(head) = &options.head
        && !lines.iter().any(|l| l.contains(&format!("\"hash\":\"{head}\"")))
    {
        bail!("{}: no entry has the hash {head}; entries are missing or were changed", path.display());
    }
    match audit::verify(lines) {
        Ok(v) if v.entries == 0 => println!("no entries yet; the chain is whole"),
        Ok(v) => println!("{} entries from {} to {}; the chain is whole\nhead {}", v.entries, v.first, v.last, v.head),
        Err((line, why)) => bail!("{}:{line}: {why}", path.display()),
    }
    Ok(())
}
