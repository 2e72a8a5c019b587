//! `andon run`: the daemon, until SIGTERM or SIGINT. SIGHUP reads the config again.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use super::{ConfigFile, runtime};
use crate::agent::Agent;
use crate::config::Needs;
use crate::metrics::Shared;
use crate::{logging, systemd};

/// How often systemd is told that the start takes long.
const STILL_STARTING: Duration = Duration::from_secs(5);

/// Runs until told to stop, then drains.
pub fn run(file: &ConfigFile) -> Result<()> {
    let config = file.load(Needs { source: true })?;
    logging::start(&config.log)?;
    runtime()?.block_on(async {
        // Before anything else, so that a stop during start is not missed.
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        let mut hangup = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
        let mut agent = Agent::start(config, Shared::new()).await?;
        let dashboard = agent.dashboard().map_or("off".into(), |a| format!("http://{a}"));
        tracing::info!(dashboard, "andon {} is running: {}", env!("CARGO_PKG_VERSION"), agent.summary());
        let mut ready = false;
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
                // Long journals take a while; systemd is asked for more time as long as it goes on.
                () = agent.restored(), if !ready => {
                    ready = true;
                    systemd::ready(agent.summary());
                }
                () = tokio::time::sleep(STILL_STARTING), if !ready => systemd::still_starting(),
                _ = hangup.recv(), if ready => reload(&mut agent).await,
            }
        }
        systemd::stopping();
        agent.finish().await
    })
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
