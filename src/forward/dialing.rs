//! Connections to a broker that come and go: dial, talk, wait, and dial again, until it is time to stop.

use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::Health;
use crate::mqtt::{self, Connection, Dialer, Link, Outgoing};

/// What is done over them.
pub trait Talk {
    /// A connection is about to be made: forgets the one before, and says what the broker is to publish
    /// should it break.
    fn begin(&mut self) -> Outgoing;

    /// Talks over one connection. Gives the reason why it ended, or `None` when it is time to stop.
    fn serve(&mut self, link: Link, address: &str) -> impl Future<Output = Option<String>> + Send;

    /// Since when the connection has been of use; `None` if it never was.
    fn since(&self) -> Option<Instant>;

    /// Waits before the next try; `false` when it is time to stop.
    fn pause(&mut self, wait: Duration) -> impl Future<Output = bool> + Send;

    /// Tells how it is.
    fn board(&self, health: Health, detail: &str);
}

/// Keeps talking, as `what`.
pub async fn keep_talking(talk: &mut impl Talk, connection: &Connection, what: &str) {
    let mut dialer = Dialer::new(connection.urls.clone());
    while let Some(address) = dialer.address().cloned() {
        let will = talk.begin();
        let reason = match mqtt::open(connection, &address, Some(will)) {
            Ok(link) => talk.serve(link, &address.to_string()).await,
            Err(e) => Some(format!("{e:#}")),
        };
        let Some(reason) = reason else { break };
        let wait = dialer.ended(talk.since().map(|at| at.elapsed()), fastrand::f64());
        tracing::warn!(broker = %address, what, %reason, "publishing interrupted");
        talk.board(Health::Down, &format!("{address}: {reason}"));
        if !talk.pause(wait).await {
            break;
        }
    }
    talk.board(Health::Down, "stopped");
}
