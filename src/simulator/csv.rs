//! Long runs of the plant as CSV: what models are trained and judged on, and `andon backtest` reads.

use std::io::{self, Write};
use std::time::Duration;

use crate::types::Time;

use super::faults::{self, Fault};
use super::plant::{Layout, MachineStep, Plant};

/// Timestamp of plant time zero: 2026-01-01T00:00:00Z.
const EPOCH: Time = Time(1_767_225_600_000_000_000);

/// What to write.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of the plant and its faults.
    pub seed: u64,
    /// Plant time, seconds.
    pub seconds: f64,
    /// With faults as [`faults::schedule`] gives them.
    pub faults: bool,
    /// Which machines; those of one kind make the columns complete.
    pub layout: Layout,
}

/// Writes a header and a row per machine and step: `timestamp,machine,SIGNALS…,label,fault`.
///
/// The signals are the union over the layout, in its order; a signal that a machine does not have, or
/// that does not arrive, is an empty cell. `label` is 1 while a fault is active on the machine; `fault`
/// names it. Returns the count of rows.
///
/// # Errors
/// What `out` gives.
pub fn write(out: &mut impl Write, options: &Options) -> io::Result<u64> {
    let faults =
        if options.faults { faults::schedule(options.seed, &options.layout, options.seconds) } else { Vec::new() };
    let columns = columns(&options.layout);
    writeln!(out, "timestamp,machine,{},label,fault", columns.join(","))?;
    let mut plant = Plant::with_faults(options.seed, &options.layout, faults);
    let mut rows = 0;
    while plant.time() < options.seconds {
        let step = plant.step();
        let at = EPOCH.plus(Duration::from_millis((step.time * 1000.0).round() as u64));
        for machine in &step.machines {
            let active = step.active.iter().map(|&i| &plant.faults()[i]).find(|f| f.machine == machine.machine);
            row(out, at, machine, &columns, active)?;
            rows += 1;
        }
    }
    out.flush()?;
    Ok(rows)
}

fn columns(layout: &Layout) -> Vec<&'static str> {
    let mut columns = Vec::new();
    for signal in layout.machines.iter().flat_map(|machine| machine.kind.signals()) {
        if !columns.contains(&signal.name) {
            columns.push(signal.name);
        }
    }
    columns
}

fn row(
    out: &mut impl Write,
    at: Time,
    machine: &MachineStep,
    columns: &[&str],
    fault: Option<&Fault>,
) -> io::Result<()> {
    write!(out, "{at},{}", machine.machine)?;
    for column in columns {
        match machine.values.iter().find(|(name, _)| name == column) {
            Some((_, Some(value))) => write!(out, ",{value:.4}")?,
            _ => write!(out, ",")?,
        }
    }
    writeln!(out, ",{},{}", u8::from(fault.is_some()), fault.map_or("", |fault| fault.kind.as_str()))
}
