//! The dashboard, its API and `/metrics` over HTTP, for browsers on the plant's network, Prometheus
//! and `andon status`. The pipeline never waits for it: a picture in [`View`] that has missed events asks for
//! the present state of everything.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::metrics::{Shared, lock};
use crate::settings::{Secret, Section};
use crate::types::{Name, Time};

pub use crate::types::{Action, Command, ModelCommand, Refusal};

mod actions;
mod alarm_list;
mod api;
mod assets;
mod connections;
mod course;
mod events;
mod guard;
pub mod inference;
mod json;
mod limits;
mod machine;
mod picture;
mod plot;
mod ring;
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

/// A signal's unit, and where it is while the machine is healthy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Band {
    /// As the model's manifest has it; may be empty.
    pub unit: String,
    /// Least and greatest.
    pub normal: Option<[f64; 2]>,
}

/// Answers with the bands of a machine's signals, as far as they are known. Quick, and never blocks.
pub type BandsFn = Arc<dyn Fn(&str) -> BTreeMap<Name, Band> + Send + Sync>;

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
    /// Where signals are while their machine is healthy.
    pub bands: BandsFn,
    /// The same, for guests who want to use them.
    pub inference: inference::Models,
    /// Where to send what people do to alarms; `None` refuses.
    pub commands: Option<mpsc::Sender<Command>>,
    /// Where to send what people do to models; `None` refuses.
    pub model_commands: Option<mpsc::Sender<ModelCommand>>,
    /// The settings in force, when they can change: token and names are taken over at once.
    pub settings: Option<watch::Receiver<Config>>,
}

/// What every request handler sees.
struct App {
    access: Mutex<Arc<Access>>,
    state: State,
    shared: Shared,
    samples: sampler::Samples,
    streams: Arc<Semaphore>,
    plotting: Arc<Semaphore>,
    budget: limits::ByteBudget,
    refusals: Arc<limits::RefusalLog>,
    wrong_tokens: limits::WrongTokens,
}

/// Who may ask.
struct Access {
    key: Option<guard::Key>,
    hosts: Vec<String>,
}

impl Access {
    fn of(config: &Config) -> Arc<Access> {
        let key = config.token.as_ref().map(guard::Key::new);
        Arc::new(Access { key, hosts: config.hosts.clone() })
    }
}

impl App {
    fn access(&self) -> Arc<Access> {
        lock(&self.access).clone()
    }

    /// Takes over token and names whenever they change. A listener beyond this host keeps its token.
    async fn follow_settings(&self, local: bool) {
        let Some(mut settings) = self.state.settings.clone() else { return };
        while settings.changed().await.is_ok() {
            let new = settings.borrow_and_update().clone();
            if new.token.is_some() || local {
                *lock(&self.access) = Access::of(&new);
            }
        }
    }
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
    let local = listener.local_addr().is_ok_and(|a| a.ip().is_loopback());
    let refusals = Arc::new(limits::RefusalLog::new(shared.metrics.clone()));
    let app = Arc::new(App {
        access: Mutex::new(Access::of(&config)),
        state,
        shared,
        samples: sampler::Samples::default(),
        streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        plotting: Arc::new(Semaphore::new(MAX_PLOTTING)),
        budget: limits::ByteBudget::default(),
        refusals: refusals.clone(),
        wrong_tokens: limits::WrongTokens::default(),
    });
    let sampling = sampler::run(app.clone(), stop.clone());
    let (follower, until) = (app.clone(), stop.clone());
    let following = async move {
        until.run_until_cancelled(follower.follow_settings(local)).await;
    };
    let serving = server::serve(listener, api::router(app), &refusals, stop);
    tokio::join!(sampling, following, serving);
}

#[cfg(test)]
mod tests;
