//! `andon modbus probe`: all that the registers at an address could mean, the likeliest first.

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;

use super::read::number;
use super::{Device, runtime, usage};
use crate::source::modbus::probe::{Candidate, Window, candidates};
use crate::source::modbus::registers::Address;

/// See `andon modbus probe --help`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    device: Device,
    /// The unit behind the address
    #[arg(long, default_value_t = 1)]
    unit: u8,
    /// The register as the manual numbers it: holding:100, input:7 or 40101
    #[arg(long, value_name = "ADDRESS")]
    at: String,
    /// What the value should be about, e.g. what the device's own display shows
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    expect: Option<f64>,
    /// Print a JSON object for each reading
    #[arg(long)]
    json: bool,
}

/// Prints every type in every usual byte order from both address bases.
pub fn run(options: &Options) -> Result<()> {
    // 40101 counts from 1 and leaves no doubt; its number is taken as if it were holding:100 from 0.
    let address = Address::parse(&options.at, 0).unwrap_or_else(|message| usage(&message));
    if address.table.is_bits() || address.bit.is_some() {
        usage(&format!("{address} is a single bit: there is nothing to find out about it"));
    }
    let window = runtime()?.block_on(async {
        let mut connection = options.device.dial(options.unit).await?;
        Window::read(&mut connection, address.table, address.at).await
    })?;
    let all = candidates(&window, options.expect);
    ensure!(!all.is_empty(), "the device refuses {address} and the register before it");
    if options.json {
        all.iter().for_each(|c| println!("{}", object(c)));
        return Ok(());
    }
    println!("{}", registers(&window, address));
    for candidate in &all {
        println!("{}", row(candidate));
    }
    let plausible = all.iter().filter(|c| c.plausible).count();
    match options.expect {
        Some(expect) => println!("{plausible} of {} are about {expect}, marked with *", all.len()),
        None => println!("{plausible} of {} have a usual size, marked with *; --expect tells them apart", all.len()),
    }
    Ok(())
}

fn registers(window: &Window, address: Address) -> String {
    let words = window.words.map(|word| word.map_or("----".into(), |w| format!("{w:04X}")));
    let first = i32::from(address.at) - 1;
    format!("{} {first} to {}: {}", address.table.as_str(), first + 4, words.join(" "))
}

fn row(c: &Candidate) -> String {
    let mark = if c.plausible { '*' } else { ' ' };
    let scale = if c.scale == 1.0 { String::new() } else { format!("  scale {}", c.scale) };
    format!("{mark} base {}  {:3}  {:8}  {}{scale}", c.base, c.kind.as_str(), c.order.to_string(), number(c.value))
}

fn object(c: &Candidate) -> String {
    json!({"base": c.base, "type": c.kind.as_str(), "order": c.order.to_string(), "scale": c.scale,
        "value": number(c.value), "plausible": c.plausible})
    .to_string()
}
