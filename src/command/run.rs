//! `andon run`: the daemon, until SIGTERM or SIGINT. SIGHUP reads the config again.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::fs::Mode;
use rustix::process::umask;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{ConfigFile, runtime};
use crate::agent::Agent;
use crate::config::{Config, Needs};
use crate::metrics::Shared;
use crate::{logging, systemd};

/// How often systemd is told that the start takes long.
const STILL_STARTING: Duration = Duration::from_secs(5);

/// How long what is left on the runtime may take to end.
const LEFTOVERS: Duration = Duration::from_secs(2);

/// Runs until told to stop or until a stage fails, then drains.
///
/// # Errors
/// What kept it from starting, or the stages that have failed.
pub fn run(file: &ConfigFile) -> Result<()> {
    // Before anything else: a signal during the start is kept, not fatal.
    let runtime = runtime()?;
    let signals = runtime.block_on(async { Signals::listen() })?;
    keep_private();
    let config = file.load(Needs { source: true })?;
    logging::start(&config.log)?;
    let shared = Shared::new();
    systemd::watch(shared.board.clone()).context("starting the watchdog's thread")?;
    let result = runtime.block_on(serve(config, shared, signals));
    runtime.shutdown_timeout(LEFTOVERS);
    result
}

/// What the process is told from outside.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).context("listening for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("listening for SIGINT")?,
            hangup: signal(SignalKind::hangup()).context("listening for SIGHUP")?,
        })
    }
}

/// What this process makes is not for others, whatever the umask was.
fn keep_private() {
    let others = Mode::RWXO | Mode::WGRP;
    let before = umask(others);
    umask(before | others);
}

async fn serve(config: Config, shared: Shared, signals: Signals) -> Result<()> {
    let Signals { mut terminate, mut interrupt, mut hangup } = signals;
    let mut agent = Agent::start(config, shared).await?;
    let dashboard = agent.dashboard().map_or("off".into(), |a| format!("http://{a}"));
    tracing::info!(dashboard, "andon {} is running: {}", env!("CARGO_PKG_VERSION"), agent.summary());
    let mut failed = pin!(agent.failed());
    // `None` until it is known whether the journal is replayed.
    let mut restored = None;
    loop {
        tokio::select! {
            _ = terminate.recv() => {
                tracing::info!("SIGTERM: draining");
                break;
            }
            _ = interrupt.recv() => {
                tracing::info!("SIGINT: draining");
                break;
            }
            () = &mut failed => {
                tracing::error!("draining, then the process ends with exit code 1");
                break;
            }
            // Long journals take a while; systemd is asked for more time as long as it goes on.
            well = agent.restored(), if restored.is_none() => {
                restored = Some(well);
                if well {
                    systemd::ready(agent.summary());
                }
            }
            () = tokio::time::sleep(STILL_STARTING), if restored.is_none() => systemd::still_starting(),
            _ = hangup.recv(), if restored == Some(true) => reload(&mut agent).await,
        }
    }
    systemd::stopping();
    agent.finish().await
}

/// A config that cannot be used changes nothing.
async fn reload(agent: &mut Agent) {
    systemd::reloading();
    let status = match agent.reload("SIGHUP").await {
        Ok(reloaded) => {
            tracing::info!("SIGHUP: {reloaded}");
            format!("{}; reloaded, {reloaded}", agent.summary())
        }
        Err(error) => {
            for problem in format!("{error:#}").lines() {
                tracing::error!(problem, "SIGHUP: the config cannot be used and nothing was changed");
            }
            format!("{}; reload refused: {error:#}", agent.summary())
        }
    };
    systemd::ready(status.lines().next().unwrap_or_default());
}
