//! The binary's commands, one file each. Results go to stdout, logs to stderr.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::config::{Config, Invalid, Needs};

mod audit;
mod backtest;
mod check;
#[cfg(feature = "demo")]
mod demo;
mod learn;
mod modbus;
mod model;
mod outbox;
mod run;
mod status;
mod table;

/// Done.
const OK: u8 = 0;
/// Failed while running.
const FAILED: u8 = 1;
/// Bad config or model (EX_CONFIG of sysexits.h).
const BAD_CONFIG: u8 = 78;

/// The command line.
#[derive(Parser)]
#[command(name = "andon", version, about = "Watches machines: MQTT and Modbus in, anomalies out, nothing lost")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon
    Run(ConfigFile),
    /// Check a config and load every model it names
    Check(check::Options),
    /// Watch a simulated factory: broker, devices, cloud and all
    #[cfg(feature = "demo")]
    Demo(demo::Options),
    /// Run the pipeline on recorded data
    Backtest(backtest::Options),
    /// Learn a model from recorded healthy running
    Learn(learn::Options),
    /// Look at a Modbus device: what it has, and what its registers mean
    #[command(subcommand)]
    Modbus(modbus::Action),
    /// Look at a model bundle, or test it
    #[command(subcommand)]
    Model(model::Action),
    /// Look into the durable queue and the dead letters of a data directory
    #[command(subcommand)]
    Outbox(outbox::Action),
    /// Prove that the log of who did what is whole
    #[command(subcommand)]
    Audit(audit::Action),
    /// Ask the running daemon how it is
    Status(status::Options),
}

/// Which config.
#[derive(Args, Clone, Debug)]
struct ConfigFile {
    /// The config file
    #[arg(short, long, value_name = "FILE", default_value = "/etc/andon/andon.toml")]
    config: PathBuf,
}

impl ConfigFile {
    fn load(&self, needs: Needs) -> Result<Config> {
        Ok(Config::load(&self.config, needs)?)
    }
}

impl Cli {
    /// Runs the command; what is returned is the exit code of the contract.
    pub fn run(self) -> ExitCode {
        // One crypto provider for all TLS; a second call would only say that it is there already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let done = match self.command {
            Command::Run(file) => run::run(&file),
            Command::Check(options) => check::run(&options),
            #[cfg(feature = "demo")]
            Command::Demo(options) => demo::run(&options),
            Command::Backtest(options) => backtest::run(&options),
            Command::Learn(options) => learn::run(&options),
            Command::Modbus(action) => modbus::run(&action),
            Command::Model(action) => model::run(&action),
            Command::Outbox(action) => outbox::run(&action),
            Command::Audit(action) => audit::run(&action),
            Command::Status(options) => status::run(&options),
        };
        match done {
            Ok(()) => ExitCode::from(OK),
            Err(error) => {
                eprintln!("andon: {error:#}");
                ExitCode::from(exit_code(&error))
            }
        }
    }
}

/// A config or model that cannot be used has its own exit code; systemd does not restart on it.
fn exit_code(error: &anyhow::Error) -> u8 {
    let config = error.chain().any(|e| e.is::<Invalid>() || e.is::<crate::model::ModelError>());
    if config { BAD_CONFIG } else { FAILED }
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()
}
