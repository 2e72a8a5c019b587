//! The dashboard, its API and `/metrics` over HTTP, for browsers on the plant's network, Prometheus
//! and `andon status`. It only watches: the picture in [`View`] may lag or lose events without
//! the pipeline ever waiting for it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::metrics::Shared;
use crate::settings::{Secret, Section};
use crate::types::{RecordId, Time};

mod api;
mod events;
mod guard;
mod json;
mod picture;
mod plot;
mod sampler;
mod server;
mod view;

pub use view::View;

/// Where the dashboard listens unless told otherwise.
pub const DEFAULT_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8420);
/// Shorter tokens could be guessed over the network.
const MIN_TOKEN_CHARS: usize = 16;
/// Browsers that may hold an event stream open at a time.
const MAX_STREAMS: usize = 64;
/// Plots drawn at a time; each takes some milliseconds of a core.
const MAX_PLOTTING: usize = 2;

/// `[web]` of the config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where to listen; `None` when it is off.
    pub listen: Option<SocketAddr>,
    /// What callers have to show for anything but `/health/…` and the empty page.
    pub token: Option<Secret>,
    /// Names by which browsers may call this server while there is no token. `localhost` and
    /// addresses are always well; other names could be an attacker's that point here.
    pub hosts: Vec<String>,
}

impl Default for Config {
    fn default() -> Config {
        Config { listen: Some(DEFAULT_LISTEN), token: None, hosts: Vec::new() }
    }
}

impl Config {
    /// Reads `[web]`. Listening beyond this host without a token is a problem.
    pub fn read(section: &Section<'_>) -> Config {
        let listen = match section.string("listen").as_deref() {
            None => Some(DEFAULT_LISTEN),
            Some("off") => None,
            Some(text) => match parse_listen(text) {
                Some(address) => Some(address),
                None => {
                    section.problem(
                        "listen",
                        format_args!("{text:?} is not \"off\" or an address like \"127.0.0.1:8420\""),
                    );
                    Some(DEFAULT_LISTEN)
                }
            },
        };
        let token = section.secret("token");
        let token_key = if section.has("token_file") { "token_file" } else { "token" };
        if token.as_ref().is_some_and(|t| t.reveal().chars().count() < MIN_TOKEN_CHARS) {
            section.problem(token_key, format_args!("the token is shorter than {MIN_TOKEN_CHARS} characters"));
        }
        let asked_for_token = token.is_some() || section.has("token_file") || section.has("token");
        if listen.is_some_and(|a| !a.ip().is_loopback()) && !asked_for_token {
            section.problem("listen", "listening beyond this host needs a `token_file`");
        }
        let hosts = section.strings("hosts").unwrap_or_default();
        Config { listen, token, hosts: hosts.into_iter().map(|h| h.to_ascii_lowercase()).collect() }
    }
}

fn parse_listen(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) => port.parse().ok().map(|p| SocketAddr::new(DEFAULT_LISTEN.ip(), p)),
        None => text.parse().ok(),
    }
}

/// Answers with a JSON object that a part of the agent gives of itself. Called about once a second
/// on an async thread: it must be quick and must not block.
pub type StatusFn = Arc<dyn Fn() -> Value + Send + Sync>;

/// Who this agent is.
#[derive(Clone, Debug)]
pub struct About {
    /// ISA-95 path of the site.
    pub site: String,
    /// The agent's id.
    pub agent: String,
    /// Of andon.
    pub version: String,
    /// When the process started.
    pub started: Time,
    /// Where it keeps its data.
    pub data_dir: PathBuf,
}

/// What the dashboard shows and whom it may ask.
#[derive(Clone)]
pub struct State {
    /// Machines and alarms; somebody has to run [`View::follow`].
    pub view: Arc<View>,
    /// Who this agent is.
    pub about: About,
    /// Queue depth, bytes, drops.
    pub store_status: StatusFn,
    /// The models loaded.
    pub models: StatusFn,
    /// Where to send what people do to alarms; `None` refuses.
    pub commands: Option<mpsc::Sender<Command>>,
}

/// What a person wants done to an alarm.
#[derive(Debug)]
pub struct Command {
    /// The alarm.
    pub alarm: RecordId,
    /// What to do.
    pub action: Action,
    /// Who wants it, at most 64 characters: as they call themselves, and the address they come from.
    pub who: String,
    /// The answer. Dropping it tells them that the agent could not say.
    pub reply: oneshot::Sender<Result<(), Refusal>>,
}

/// What can be done to an alarm.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Somebody has seen it.
    Acknowledge,
}

/// Why it was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No alarm of that id stands.
    NoSuchAlarm,
    /// The alarm is there, but not in a state for this; says why.
    NotNow(String),
}

/// What every request handler sees.
struct App {
    config: Config,
    state: State,
    shared: Shared,
    key: Option<guard::Key>,
    samples: sampler::Samples,
    streams: Arc<Semaphore>,
    plotting: Arc<Semaphore>,
}

/// Opens the port; port 0 takes a free one. Fails when the dashboard is off or the port is taken.
pub async fn bind(config: &Config) -> Result<(TcpListener, SocketAddr)> {
    let listen = config.listen.context("the dashboard is off (web.listen)")?;
    let listener =
        TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen} for the dashboard"))?;
    let address = listener.local_addr().context("asking for the dashboard's own address")?;
    Ok((listener, address))
}

/// Serves until `shared.stop` is cancelled, then lets open requests finish for a few seconds.
pub async fn run(listener: TcpListener, config: Config, state: State, shared: Shared) {
    let stop = shared.stop.clone();
    let app = Arc::new(App {
        key: config.token.as_ref().map(guard::Key::new),
        config,
        state,
        shared,
        samples: sampler::Samples::default(),
        streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        plotting: Arc::new(Semaphore::new(MAX_PLOTTING)),
    });
    let sampling = sampler::run(app.clone(), stop.clone());
    let serving = server::serve(listener, api::router(app), stop);
    tokio::join!(sampling, serving);
}

#[cfg(test)]
mod tests;
