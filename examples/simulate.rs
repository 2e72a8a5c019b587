//! Writes a run of the simulated factory to CSV: the data the shipped models are made from.
//!
//! `cargo run --example simulate -- --machine pump --seed 1 --seconds 3600 --faults --out pump.csv`

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;

use andon::simulator::csv::{self, Options};
use andon::simulator::plant::Layout;
use anyhow::{Context, bail};
use clap::Parser;

#[derive(Parser)]
struct Args {
    /// pump, motor, press, or demo for the whole factory.
    #[arg(long, default_value = "demo")]
    machine: String,
    /// How many machines of that kind.
    #[arg(long, default_value_t = 1)]
    count: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Plant time.
    #[arg(long, default_value_t = 3600.0)]
    seconds: f64,
    /// With faults on a schedule.
    #[arg(long)]
    faults: bool,
    #[arg(long)]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let layout = match args.machine.as_str() {
        "pump" => Layout::new(args.count, 0, 0),
        "motor" => Layout::new(0, args.count, 0),
        "press" => Layout::new(0, 0, args.count),
        "demo" => Layout::demo(),
        other => bail!("--machine {other}: pump, motor, press or demo"),
    };
    let file = File::create(&args.out).with_context(|| format!("creating {}", args.out.display()))?;
    let options = Options { seed: args.seed, seconds: args.seconds, faults: args.faults, layout };
    let rows =
        csv::write(&mut BufWriter::new(file), &options).with_context(|| format!("writing {}", args.out.display()))?;
    println!("{rows} rows in {}", args.out.display());
    Ok(())
}
