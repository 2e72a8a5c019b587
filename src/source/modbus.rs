//! Modbus: asks a device for its signals at their own rates and sends what it answers.
//! Nothing here writes to a device but [`light`], which has to be asked for. A connection per source
//! over TCP; those on the same serial line share it.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::metrics::Shared;
use crate::types::{Batch, Time};

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod any_bytes;
pub mod budget;
mod config;
mod connection;
mod debts;
mod frame;
mod learnt;
pub mod light;
mod line;
pub mod map;
pub mod plan;
mod poller;
pub mod probe;
pub mod profile;
pub mod registers;
mod report;
pub mod scan;
mod schedule;
pub mod trace;
mod url;

pub use config::{Config, Signal};
pub use connection::{Connection, Failure};
pub use line::Lines;
pub use url::Url;

use poller::Poller;
use schedule::Schedule;

/// Polls the device until `shared.stop` is cancelled or nobody takes the batches any more.
///
/// One [`Batch`] per round holds a reading of every signal that was due, good or bad, stamped with
/// the time its reply arrived. Nothing the device does ends this: while it cannot be reached, its
/// signals are bad at their own rates, so that what is downstream sees bad quality, not silence.
/// Sources that are given the same `lines` share serial lines and gateways. When `batches` is full,
/// polling waits; rounds missed meanwhile are skipped.
pub async fn run(config: Config, lines: Lines, shared: Shared, batches: mpsc::Sender<Batch>) {
    let config = Arc::new(config);
    let stop = shared.stop.clone();
    let mut poller = Poller::new(config.clone(), lines, shared);
    tokio::select! {
        () = stop.cancelled() => {}
        () = poll(&config, &mut poller, batches) => {}
    }
    poller.keep();
}

async fn poll(config: &Config, poller: &mut Poller, batches: mpsc::Sender<Batch>) {
    poller.first_dial().await;
    let mut schedule = Schedule::new(config.signals.iter().map(|s| s.poll), Instant::now());
    while let Some(next) = schedule.next() {
        tokio::select! {
            biased;
            () = sleep_until(next) => {}
            () = poller.redial() => continue,
        }
        let readings = poller.round(&schedule.take_due(Instant::now())).await;
        let batch = Batch {
            source: config.name.clone(),
            arrived: Time::now(),
            readings,
            rejects: vec![],
            again: false,
            receipt: None,
        };
        if batches.send(batch).await.is_err() {
            return;
        }
    }
}
