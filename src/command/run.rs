//! `andon run`: the daemon, until SIGTERM or SIGINT.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use super::{ConfigFile, runtime};
use crate::agent::Agent;
use crate::config::Needs;
use crate::metrics::Shared;
use crate::{logging, systemd};

/// Runs until told to stop, then drains.
pub fn run(file: &ConfigFile) -> Result<()> {
    let config = file.load(Needs { source: true })?;
    logging::start(&config.log)?;
    runtime()?.block_on(async {
        // Before anything else, so that a stop during start is not missed.
        let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
        let agent = Agent::start(config, Shared::new()).await?;
        let dashboard = agent.dashboard().map_or("off".into(), |a| format!("http://{a}"));
        tracing::info!(dashboard, "andon {} is running: {}", env!("CARGO_PKG_VERSION"), agent.summary());
        systemd::ready(agent.summary());
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
            _ = interrupt.recv() => tracing::info!("SIGINT: draining"),
        }
        systemd::stopping();
        agent.finish().await
    })
}
