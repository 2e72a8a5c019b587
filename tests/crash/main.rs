//! Crashes: kill -9, power cuts, full and failing disks, and what is left afterwards. Everything here
//! is random and takes its seed from outside, so that it can run for hours:
//!
//! | variable | usual | |
//! |---|---|---|
//! | `ANDON_CRASH_SEED` | 7 | what chance starts from |
//! | `ANDON_CRASH_CUTS` | 15 | power cuts under the store |
//! | `ANDON_CRASH_AGENT_CUTS` | 4 | power cuts under the whole agent |
//! | `ANDON_CRASH_STORE_KILLS` | 30 | kill -9 of the store |
//! | `ANDON_CRASH_TROUBLES` | 8 | times a disk fails under the whole agent |
//! | `ANDON_CRASH_KILLS` | 10 | kill -9 of the whole agent |
//! | `ANDON_CRASH_MESSAGES` | 10,000; optimised 100,000 | messages for the whole agent |
//! | `ANDON_CRASH_BROKER_KILLS` | 6 | kill -9 of broker and agent in turn |
//! | `ANDON_CRASH_BROKER_MESSAGES` | 10,000 | messages for that |
//! | `ANDON_STORM_SECONDS` | 12 | how long the storm at the cloud lasts |
//! | `ANDON_CRASH_KEEP` | | a directory for copies of what the last cuts left |
//! | `ANDON_BIN` | what cargo built | the daemon to torment |
//!
//! For example `ANDON_CRASH_CUTS=1000 ANDON_CRASH_SEED=$RANDOM cargo test --release --test crash
//! store::power -- --nocapture`.

#![allow(missing_docs, clippy::unwrap_used)]

mod agent;
mod backlog;
mod broker;
mod disk;
mod lives;
mod powercut;
mod proofs;
mod store;
mod storm;
#[path = "../support/mod.rs"]
mod support;

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |v| v.parse().expect("a number"))
}
