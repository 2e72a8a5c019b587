//! `andon modbus scan`: which units answer, and which of their addresses can be read. One request
//! at a time with a rest between, so that a line in use is hardly disturbed.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::{Map, Value, json};
use tokio::time::sleep;

use super::{Device, duration, runtime};
use crate::source::modbus::plan::Span;
use crate::source::modbus::registers::Table;
use crate::source::modbus::scan::{Pace, answers, readable};
use crate::source::modbus::{Connection, Failure};

const TABLES: [Table; 4] = [Table::Coil, Table::Discrete, Table::Input, Table::Holding];

/// See `andon modbus scan --help`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    device: Device,
    /// Units to look for, such as 1-247 or 1,2,17
    #[arg(long, value_name = "UNITS", default_value = "1-247", value_parser = units)]
    units: Units,
    /// Addresses to look at in each table of a unit that answers, from 0
    #[arg(long, value_name = "FROM-TO", default_value = "0-999", value_parser = range)]
    addresses: RangeInclusive<u16>,
    /// The rest before each request
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = duration)]
    pause: Duration,
    /// Registers or bits in one request, at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=125))]
    longest: u16,
    /// Requests for each table of a unit, at most
    #[arg(long, value_name = "N", default_value_t = 300)]
    requests: usize,
    /// Only find the units
    #[arg(long)]
    units_only: bool,
    /// Print the outcome as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Units(BTreeSet<u8>);

/// What was found of a table of a unit.
struct Part {
    table: Table,
    readable: Vec<Span>,
    /// Why not all was looked at.
    cut_short: Option<String>,
}

/// Prints units and ranges as they are found.
pub fn run(options: &Options) -> Result<()> {
    let found = runtime()?.block_on(look(options))?;
    if options.json {
        let units: Vec<Value> = found.iter().map(|(unit, parts)| object(*unit, parts)).collect();
        println!("{}", json!({ "units": units }));
    }
    ensure!(!found.is_empty(), "none of the {} units answers at {}", options.units.0.len(), options.device.url);
    Ok(())
}

async fn look(options: &Options) -> Result<Vec<(u8, Vec<Part>)>> {
    let progress = Progress::new();
    let mut found = Vec::new();
    for (i, &unit) in options.units.0.iter().enumerate() {
        progress.show(&format!("unit {unit} ({} of {}), {} found", i + 1, options.units.0.len(), found.len()));
        sleep(options.pause).await;
        // A device that cannot be reached at all is no silent unit.
        let mut connection = options.device.dial(unit).await?;
        // One that hangs up or answers for another unit does not have this one either.
        if !answers(&mut connection).await.unwrap_or(false) {
            continue;
        }
        progress.clear();
        if !options.json {
            println!("unit {unit} answers");
        }
        let tables: &[Table] = if options.units_only { &[] } else { &TABLES };
        let mut parts = Vec::new();
        for &table in tables {
            let part = ranges(options, unit, table, &progress).await?;
            if !options.json {
                println!("  {}", text(&part));
            }
            parts.push(part);
        }
        found.push((unit, parts));
    }
    progress.clear();
    Ok(found)
}

async fn ranges(options: &Options, unit: u8, table: Table, progress: &Progress) -> Result<Part, Failure> {
    let (from, to) = (*options.addresses.start(), *options.addresses.end());
    // One less than all of them, when that is all 65536: what counts them has 16 bits.
    let within = Span { table, start: from, count: (to - from).saturating_add(1) };
    let pace = Pace { longest: options.longest, requests: options.requests, pause: options.pause };
    let mut connection: Connection = options.device.dial(unit).await?;
    let found = readable(&mut connection, within, pace, |made, left| {
        progress.show(&format!("unit {unit}, {}: {made} requests made, {left} or more left", table.as_str()));
    })
    .await;
    progress.clear();
    let cut_short = match found.failure {
        Some(failure) => Some(failure.to_string()),
        None if found.complete => None,
        None => Some(format!("not all was looked at: --requests is {}", options.requests)),
    };
    Ok(Part { table, readable: found.readable, cut_short })
}

fn text(part: &Part) -> String {
    let ranges: Vec<String> = part.readable.iter().map(|s| format!("{}-{}", s.start, s.end() - 1)).collect();
    let ranges = if ranges.is_empty() { "nothing".into() } else { ranges.join(", ") };
    let more = part.cut_short.as_ref().map_or(String::new(), |why| format!(" ({why})"));
    format!("{:9} {ranges}{more}", part.table.as_str())
}

fn object(unit: u8, parts: &[Part]) -> Value {
    let ranges = |p: &Part| p.readable.iter().map(|s| json!([s.start, s.end() - 1])).collect::<Value>();
    let readable: Map<String, Value> = parts.iter().map(|p| (p.table.as_str().to_owned(), ranges(p))).collect();
    let cut = |p: &&Part| p.cut_short.is_some();
    let cut: Map<String, Value> =
        parts.iter().filter(cut).map(|p| (p.table.as_str().to_owned(), json!(p.cut_short))).collect();
    json!({"unit": unit, "readable": readable, "cut_short": cut})
}

/// One line on stderr that is written over, on a terminal only.
struct Progress {
    terminal: bool,
}

impl Progress {
    fn new() -> Progress {
        Progress { terminal: std::io::stderr().is_terminal() }
    }

    fn show(&self, line: &str) {
        if self.terminal {
            eprint!("\r\x1b[K{line}");
            let _ = std::io::stderr().flush();
        }
    }

    fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}

fn units(text: &str) -> Result<Units, String> {
    let wrong = || format!("{text:?} is not a list of units from 0 to 255, such as 1-247 or 1,2,17");
    let mut all = BTreeSet::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (u8, u8) = (from.trim().parse().map_err(|_| wrong())?, to.trim().parse().map_err(|_| wrong())?);
        all.extend(from..=to);
    }
    if all.is_empty() { Err(wrong()) } else { Ok(Units(all)) }
}

fn range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let ends = text.split_once('-').and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
    let found = ends.filter(|(from, to)| from <= to).map(|(from, to)| from..=to);
    found.ok_or_else(|| format!("{text:?} is not a range of addresses such as 0-999"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_units() {
        let read = |text| units(text).map(|u| u.0.into_iter().collect::<Vec<u8>>());
        assert_eq!(read("1-3"), Ok(vec![1, 2, 3]));
        assert_eq!(read("17,2, 2-4"), Ok(vec![2, 3, 4, 17]));
        assert_eq!(read("0-255").map(|u| u.len()), Ok(256));
        for text in ["", "x", "1-256", "3-1", "-1", "1-", "1,,2"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_of_addresses() {
        assert_eq!(range("0-999"), Ok(0..=999));
        assert_eq!(range("5-5"), Ok(5..=5));
        for text in ["", "7", "9-1", "0-65536", "a-b"] {
            assert!(range(text).is_err(), "{text}");
        }
    }
}
