//! Arguments, then the command, then the exit code.

use std::process::ExitCode;

use andon::command::Cli;
use clap::Parser;

fn main() -> ExitCode {
    Cli::parse().run()
}
