//! The light of a machine against real peers: the real binary, mosquitto, pymodbus, Chromium, a client that follows
//! Home Assistant's documentation. docs/machine-state.md says what is held here.
//!
//! | variable | usual | |
//! |---|---|---|
//! | `ANDON_LIGHT_RUNS` | 2 | random runs |
//! | `ANDON_LIGHT_SECONDS` | 20 | how long each lasts |
//! | `ANDON_LIGHT_SEED` | 1 | the seed of the first; the others count up |
//! | `ANDON_LIGHT_TABLE` | | `1`: measures how soon the light is no longer green, and prints the table |
//!
//! For example `ANDON_LIGHT_RUNS=50 cargo test --release --test light random -- --nocapture`.

// The Modbus peers and the other support both start Python peers.
#![allow(missing_docs, clippy::duplicate_mod, clippy::unwrap_used)]

mod everywhere;
mod field;
mod hung;
mod learnt;
#[path = "../support/modbus.rs"]
#[allow(dead_code)]
mod modbus;
mod plant;
mod random;
mod rig;
mod speed;
#[path = "../support/mod.rs"]
mod support;

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().expect("a number"))
}
