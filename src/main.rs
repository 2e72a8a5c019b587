//! Arguments, then the command, then the exit code.

use std::process::ExitCode;

use andon::command::Cli;
use clap::Parser;

fn main() -> ExitCode {
    end_quietly_when_nobody_reads();
    Cli::parse().run()
}

/// `andon … | head` is no failure: who closed the pipe has read what he wanted. `println!` would panic.
fn end_quietly_when_nobody_reads() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if said.starts_with("failed printing to stdout: Broken pipe") {
            std::process::exit(0);
        }
        usual(panic);
    }));
}
