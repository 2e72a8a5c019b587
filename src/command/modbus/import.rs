//! `andon modbus import`: a vendor's register map in a CSV becomes a device profile.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::usage;
use crate::source::modbus::map::{Assumed, Imported, import};
use crate::source::modbus::profile;
use crate::source::modbus::registers::{Order, Table};

/// See `andon modbus import --help`.
#[derive(Args)]
pub struct Options {
    /// The register map: a CSV whose first row names its columns, such as name, address, type, scale
    map: PathBuf,
    /// The profile to write; without it, it goes to stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
    /// The table of addresses that are plain numbers, where no column names it: holding, input, coil or discrete
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// What the map calls the first register, 0 or 1
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1))]
    base: u16,
    /// The byte order of values of 32 bit, where no column names it, such as CDAB; wider ones likewise
    #[arg(long)]
    order: Option<String>,
}

/// Writes the profile, and tells on stderr what was left out.
pub fn run(options: &Options) -> Result<()> {
    let assumed = assumed(options).unwrap_or_else(|message| usage(&message));
    let map = &options.map;
    let bytes = std::fs::read(map).with_context(|| format!("cannot read {}", map.display()))?;
    let name = map.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let made = import(&bytes, &name, &assumed).map_err(|e| anyhow::anyhow!("{}: {e}", map.display()))?;
    for (line, why) in &made.left_out {
        eprintln!("{}:{line}: left out: {why}", map.display());
    }
    ensure!(made.signals > 0, "{}: nothing in it could be made a signal", map.display());
    // What goes wrong here is not the user's to mend, but he should not find it out from the daemon.
    if let Some(problem) = profile::problems(&made.text).first() {
        bail!("the profile made of {} is not valid: line {}: {}", map.display(), problem.line, problem.message);
    }
    match &options.out {
        None => print!("{}", made.text),
        Some(out) => write(out, options.force, &made)?,
    }
    Ok(())
}

fn write(out: &Path, force: bool, made: &Imported) -> Result<()> {
    ensure!(force || !out.exists(), "{} is there already; --force writes over it", out.display());
    std::fs::write(out, &made.text).with_context(|| format!("cannot write {}", out.display()))?;
    println!("{}: {} signals, {} rows left out", out.display(), made.signals, made.left_out.len());
    Ok(())
}

fn assumed(options: &Options) -> Result<Assumed, String> {
    let table = match options.table.as_deref() {
        None => None,
        Some("holding") => Some(Table::Holding),
        Some("input") => Some(Table::Input),
        Some("coil") => Some(Table::Coil),
        Some("discrete") => Some(Table::Discrete),
        Some(other) => return Err(format!("{other:?} is not one of holding, input, coil, discrete")),
    };
    let order = options.order.as_deref().map(|order| Order::parse(order, 2)).transpose()?;
    Ok(Assumed { table, base: options.base, order })
}
