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
    /// An export of the log, JSON lines, or the data directory. Without it: the config's data_dir
    path: Option<PathBuf>,
    /// The hash of an entry noted earlier: it has to be in the chain
    #[arg(long, value_name = "HASH")]
    head: Option<String>,
}

/// Prints what it found; fails where the chain is broken.
pub fn run(action: &Action) -> Result<()> {
    let Action::Verify(options) = action;
    let dir = match &options.path {
        Some(path) if path.is_dir() => Some(path.clone()),
        Some(_) => None,
        None => Some(options.file.load(Needs::default())?.agent.data_dir),
    };
    let (files, given_up) = match (dir, &options.path) {
        (Some(dir), _) => file::all(&dir).with_context(|| format!("looking into {}", dir.display()))?,
        (None, path) => (path.iter().cloned().collect(), false),
    };
    let (mut lines, mut starts) = (Vec::new(), Vec::new());
    for path in &files {
        starts.push(lines.len());
        lines.extend(file::lines(path).with_context(|| format!("reading {}", path.display()))?);
    }
    if let Some(head) = &options.head
        && !lines.iter().any(|l| l.contains(&format!("\"hash\":\"{head}\"")))
    {
        bail!("no entry has the hash {head}; entries are missing or were changed");
    }
    match audit::verify_from(lines, given_up) {
        Ok(v) if v.entries == 0 => println!("no entries yet; the chain is whole"),
        Ok(v) => {
            println!("{} entries from {} to {}; the chain is whole", v.entries, v.first, v.last);
            if v.first_number > 1 {
                println!("older entries, up to number {}, have been given up; the cloud has them", v.first_number - 1);
            }
            println!("head {}", v.head);
        }
        Err((line, why)) => {
            let i = starts.iter().rposition(|s| *s < line).unwrap_or(0);
            bail!("{}:{}: {why}", files[i].display(), line - starts[i]);
        }
    }
    Ok(())
}
