//! A stand-in cloud: takes CloudEvents over HTTP, counts every id, and misbehaves as scripted. For
//! the demo and for tests; `GET /stats` tells what it has, `POST /faults` scripts what comes.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use axum::Router;
use axum::routing::{get, post};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::faults::Script;
use self::kept::Kept;
use self::wire::{Cut, Wires};
use crate::metrics::lock;
use crate::settings::Secret;

mod faults;
mod kept;
mod receive;
mod wire;

pub use faults::{Fault, Rules, Storm};

/// How it starts; all can be left at their defaults.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Who comes without it gets 401.
    pub token: Option<Secret>,
    /// Every event that is taken is appended here, one JSON object per line.
    pub log: Option<PathBuf>,
}

/// What it has taken so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Requests for events, whatever became of them.
    pub requests: u64,
    /// Requests recognised by their Idempotency-Key and answered as before.
    pub replays: u64,
    /// Events taken, each time they came.
    pub received: u64,
    /// Events with an id not taken before.
    pub distinct: u64,
    /// Events with an id already taken.
    pub duplicates: u64,
    /// Requests that followed a redirect, which they must not.
    pub strays: u64,
    /// Distinct events by type.
    pub types: BTreeMap<String, u64>,
}

/// One request, as it was answered.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When it was answered.
    pub at: Instant,
    /// With what; 0 when the connection was cut instead.
    pub status: u16,
    /// Its Idempotency-Key.
    pub key: String,
    /// Its Content-Type.
    pub content_type: String,
    /// The ids of its events, as far as they could be read.
    pub ids: Vec<String>,
    /// Bytes of the body as sent.
    pub wire_bytes: usize,
}

/// A running stand-in cloud. Dropping it stops it.
pub struct Cloud {
    addr: SocketAddr,
    state: Arc<State>,
    stop: CancellationToken,
    task: Option<JoinHandle<()>>,
}

/// What the handlers share.
pub(crate) struct State {
    pub(crate) kept: Mutex<Kept>,
    pub(crate) script: Mutex<Script>,
}

impl State {
    fn new(options: Options) -> Result<Arc<State>> {
        let log = match &options.log {
            Some(path) => {
                let open = File::options().create(true).append(true).open(path);
                Some(open.with_context(|| format!("opening {}", path.display()))?)
            }
            None => None,
        };
        let rules = Rules { token: options.token, ..Rules::default() };
        Ok(Arc::new(State { kept: Mutex::new(Kept::new(log)), script: Mutex::new(Script::new(rules)) }))
    }
}

impl Cloud {
    /// Starts listening; port 0 finds a free one.
    ///
    /// # Errors
    /// When the address is taken or the log cannot be opened.
    pub async fn start(addr: SocketAddr, options: Options) -> Result<Cloud> {
        let listener = TcpListener::bind(addr).await.with_context(|| format!("listening on {addr}"))?;
        let addr = listener.local_addr()?;
        let state = State::new(options)?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(answer(listener, state.clone(), stop.clone()));
        Ok(Cloud { addr, state, stop, task: Some(task) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where to POST events.
    pub fn url(&self) -> String {
        format!("http://{}/v1/events", self.addr)
    }

    /// What it has taken so far.
    pub fn stats(&self) -> Stats {
        lock(&self.state.kept).stats()
    }

    /// Median and 99th percentile of the age of the latest events at their arrival, milliseconds.
    pub fn delay_ms(&self) -> (f64, f64) {
        lock(&self.state.kept).delay_ms()
    }

    /// How often an event with this id was taken.
    pub fn count(&self, id: &str) -> u32 {
        lock(&self.state.kept).count(id)
    }

    /// The latest requests, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state.kept).seen()
    }

    /// The next requests meet these faults, in order and after those already scripted.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        lock(&self.state.script).extend(faults);
    }

    /// Changes the rules that hold for every request.
    pub fn rules(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut lock(&self.state.script).rules);
    }

    /// Stops listening, and returns once the requests under way are answered.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            // It ends by itself; should it have panicked, it has ended too.
            let _ = task.await;
        }
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Serves on this listener for ever: the stand-in as a process of its own.
///
/// # Errors
/// When the log cannot be opened.
pub async fn serve(listener: TcpListener, options: Options) -> Result<()> {
    answer(listener, State::new(options)?, CancellationToken::new()).await;
    Ok(())
}

async fn answer(listener: TcpListener, state: Arc<State>, stop: CancellationToken) {
    let router = Router::new()
        .route("/v1/events", post(receive::events))
        .route("/stats", get(receive::stats))
        .route("/faults", post(receive::faults))
        .route(receive::ELSEWHERE, post(receive::stray).get(receive::stray))
        .with_state(state);
    let service = router.into_make_service_with_connect_info::<Cut>();
    // It only ends when told to; single connections fail by themselves.
    let _ = axum::serve(Wires(listener), service).with_graceful_shutdown(stop.cancelled_owned()).await;
}
