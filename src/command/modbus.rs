//! `andon modbus`: a look at a device, before there is a config and when its values are nonsense.
//! Reads only. Results go to stdout; progress and the frames of `--trace` to stderr.

use std::time::Duration;

use anyhow::Result;
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Subcommand};

use super::{Cli, runtime};
use crate::settings::parse_duration;
use crate::source::modbus::{Connection, Failure, Lines, Url};

mod import;
mod probe;
mod read;
mod scan;

/// What to do with the device.
#[derive(Subcommand)]
pub enum Action {
    /// Read values
    Read(read::Options),
    /// Show what the registers at an address could mean
    Probe(probe::Options),
    /// Find the units that answer, and what can be read from them
    Scan(scan::Options),
    /// Make a device profile of a register map in a CSV
    Import(import::Options),
}

/// Where the device is and how to speak to it.
#[derive(Args, Clone)]
struct Device {
    /// tcp://HOST[:PORT], rtu:///dev/ttyUSB0?baud=19200&parity=even&stop=1 or rtu-tcp://HOST[:PORT]
    #[arg(value_parser = Url::parse)]
    url: Url,
    /// How long a connection or an answer may take
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration)]
    timeout: Duration,
    /// Print every frame in hex, with what it means, to stderr
    #[arg(long)]
    trace: bool,
    /// The line, if it is one, and what it remembers.
    #[arg(skip)]
    lines: Lines,
}

impl Device {
    async fn dial(&self, unit: u8) -> Result<Connection, Failure> {
        let tap = |line: &str| eprintln!("{line}");
        let connection = Connection::dial(&self.lines, &self.url, unit, self.timeout).await?;
        Ok(connection.traced(self.trace.then_some(tap)))
    }
}

/// Runs one of them.
pub fn run(action: &Action) -> Result<()> {
    match action {
        Action::Read(options) => read::run(options),
        Action::Probe(options) => probe::run(options),
        Action::Scan(options) => scan::run(options),
        Action::Import(options) => import::run(options),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let found = parse_duration(text).filter(|d| *d <= Duration::from_secs(3600));
    found.ok_or_else(|| format!("{text:?} is not a duration of up to an hour, such as \"500ms\""))
}

/// Ends the program as clap does when arguments are wrong.
fn usage(message: &str) -> ! {
    Cli::command().error(ErrorKind::ValueValidation, message).exit()
}
