//! Build, wire, run, drain: the only file (with its rooms below) that sees every stage.
//!
//! Sources send batches to the engine's thread; it sends commits to the store's thread; the store
//! completes receipts, and forwarders read what is durable. Dashboards hear of things as they happen.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use serde_json::Value;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Invalid};
use crate::forward::aggregate::Aggregated;
use crate::forward::privacy::Privacy;
use crate::metrics::{Health, Metrics, Shared};
use crate::model::library::Library;
use crate::source::modbus::Lines;
use crate::source::modbus::light::{self, Standing};
use crate::store::{self, Recovered, Store};
use crate::types::{Batch, Live, Name, Time};
use crate::{forward, source, web};

pub mod audit;
mod bands;
pub mod blocks;
mod delivery;
pub mod engine;
mod feed;
mod guests;
pub mod input;
pub mod machine_state;
mod outbox;
pub mod records;
mod recover;
pub mod refused;
mod reload;
mod rollout;
mod scribe;
mod supervision;

use bands::Bands;
use delivery::Delivery;
use engine::Engine;
use engine::second::MAX_PENDING;
use feed::{Feed, Order};
use records::Recorder;
use recover::Replayed;
use reload::Reloader;
use rollout::{Found, Rollouts};
use supervision::{Tasks, supervise_thread};

/// Batches between sources and engine. Each holds at most 4,096 readings of about 60 bytes.
const N_QUEUED_BATCHES: usize = 64;
/// Events between engine and dashboards; who is slower loses some and is told how many.
const N_QUEUED_LIVE: usize = 8_192;
/// Clicks between dashboard and engine.
const N_QUEUED_COMMANDS: usize = 16;
/// Writes of stack lights that wait to be recorded.
const N_QUEUED_WRITES: usize = 64;
/// Answers of a larger model on their way to the engine.
const N_QUEUED_ANSWERS: usize = 16;
/// Permissions of a data directory that andon makes.
const DATA_DIR_MODE: u32 = 0o700;
/// Orders from the agent to its engine: one at the start, one for each reload, some for each new model.
const N_QUEUED_ORDERS: usize = 16;
/// How long sources may take to hand over what they hold and to say goodbye.
const SOURCES_GRACE: Duration = Duration::from_secs(8);
/// How long forwarders may go on sending what is left.
const FORWARD_GRACE: Duration = Duration::from_secs(5);
/// How long the store may take to sync and close.
const CLOSE_GRACE: Duration = Duration::from_secs(20);
/// The engine's name on the board.
const ENGINE: &str = "engine";
/// How long any stage may take beyond its own grace.
const SLACK: Duration = Duration::from_secs(4);

/// A running agent.
pub struct Agent {
    shared: Shared,
    /// Told after the store has everything.
    last: CancellationToken,
    sources: Tasks,
    lines: Lines,
    engine: oneshot::Receiver<()>,
    outlets: Tasks,
    store: Arc<Store>,
    live: broadcast::Sender<Live>,
    dashboard: Option<SocketAddr>,
    ready: String,
    restored: oneshot::Receiver<()>,
    reloader: Reloader,
    library: Arc<Library>,
    data_dir: PathBuf,
}

impl Agent {
    /// Opens the store, loads the models, goes back to where the last run ended, and starts all
    /// stages. `shared.stop` stops the sources; then call [`Agent::finish`].
    pub async fn start(config: Config, shared: Shared) -> Result<Agent> {
        let unusable = |problems| Invalid { path: config.path.clone(), problems };
        let (blocks, models) = blocks::build(&config).map_err(unusable)?;
        shared.metrics.build_info.get_or_create(&[("version", env!("CARGO_PKG_VERSION").into())]).set(1);
        for name in models.keys() {
            shared.board.set(&format!("model/{name}"), Health::Up, "loaded");
        }
        let opened = {
            let (store, dir, shared) = (config.store.clone(), config.agent.data_dir.clone(), shared.clone());
            let sinks = sink_names(&config);
            let open = move || {
                make_private(&dir);
                let sinks: Vec<&str> = sinks.iter().map(String::as_str).collect();
                Store::open(&store, &dir, &sinks, shared)
            };
            tokio::task::spawn_blocking(open).await?
        };
        let (store, recovered) = opened.context("opening the store")?;
        let dir = config.agent.data_dir.clone();
        let library = tokio::task::spawn_blocking(move || Library::open(&dir)).await?;
        let (library, damaged) = library.context("opening the library of models")?;
        if let Some(why) = damaged {
            tracing::error!("what was known of delivered models is lost, they have to come again: {why}");
        }
        let recorder = Recorder::new(&config.agent.site, &config.agent.id);
        let (orders_tx, orders) = mpsc::channel(N_QUEUED_ORDERS);
        let library = Arc::new(library);
        let found = load_library(&config, &models, &library).await?;
        let delivery = Delivery::new(&config, library.clone(), orders_tx.clone(), shared.clone());
        let (rollouts, steps, versions) = Rollouts::new(shared.clone());
        let reloader = Reloader::new(&config, models, Bands::of(&blocks), versions, orders_tx);
        let policy = config.cloud.as_ref().and_then(|c| c.inference.as_ref()).map(|i| i.policy.clone());
        let mut engine = Engine::new(recorder, blocks, config.agent.max_machines).with_second_opinions(policy);
        engine.report_every(config.report_every);
        engine.stock(found.models.iter().cloned());
        let mut agent = Agent {
            last: CancellationToken::new(),
            sources: Tasks::new(&shared),
            lines: Lines::default(),
            engine: oneshot::channel().1,
            outlets: Tasks::new(&shared),
            live: broadcast::channel(N_QUEUED_LIVE).0,
            dashboard: None,
            ready: String::new(),
            restored: oneshot::channel().1,
            reloader,
            store: Arc::new(store),
            library,
            data_dir: config.agent.data_dir.clone(),
            shared,
        };
        agent.outlets.spawn("the library of models", "library", rollout::keep(agent.library.clone(), steps));
        agent.wire(config, engine, recovered, (rollouts, found), orders).await?;
        if let Some(delivery) = delivery {
            let shared = agent.shared.clone();
            agent.sources.spawn_stage("the delivery of models", "models", &shared, |_| delivery.run());
        }
        Ok(agent)
    }

    async fn wire(
        &mut self,
        config: Config,
        engine: Engine,
        recovered: Recovered,
        (rollouts, found): (Rollouts, Found),
        orders: mpsc::Receiver<Order>,
    ) -> Result<()> {
        let (commands_tx, commands) = mpsc::channel(N_QUEUED_COMMANDS);
        let (batches_tx, batches) = mpsc::channel(N_QUEUED_BATCHES);
        let n = config.source.mqtt.len() + config.source.modbus.len();
        self.ready = format!("{n} sources, {} models", self.reloader.n_models());
        // Dashboards first, so that they hear how things stood.
        let (model_commands_tx, model_commands) = mpsc::channel(N_QUEUED_COMMANDS);
        self.start_web(&config, commands_tx.clone(), model_commands_tx).await?;
        self.start_publish(&config, commands_tx);
        let lights = self.start_lights(&config.source, &batches_tx);
        let opinions = self.start_inference(&config);
        let data_dir = self.data_dir.clone();
        let inputs = Inputs { batches, commands, model_commands, orders, lights, opinions, rollouts, found, data_dir };
        self.start_engine(engine, recovered, inputs)?;
        self.reloader.tell_what_runs("start").await;
        self.start_cloud(&config)?;
        self.start_sinks(&config)?;
        self.start_sources(config.source, &config.agent.data_dir, &batches_tx);
        Ok(())
    }

    /// Stack lights, if there are any, and the engine's end of them. Each holds a sender of batches: the
    /// engine is to last until the light is safe and that is recorded.
    fn start_lights(&mut self, config: &source::Config, batches: &mpsc::Sender<Batch>) -> Option<feed::Lights> {
        let (tell, wrote) = mpsc::channel(N_QUEUED_WRITES);
        let (standing, stand) = watch::channel(Standing::default());
        for light in &config.lights {
            let Some(device) = config.modbus.iter().find(|d| d.name == light.device).cloned() else { continue };
            let (light, lines, shared, batches) =
                (light.clone(), self.lines.clone(), self.shared.clone(), batches.clone());
            let (stand, tell) = (stand.clone(), tell.clone());
            let (name, part) = (format!("stack light {}", light.device), format!("light/{}", light.device));
            self.sources.spawn_stage(name, &part, &shared, |shared| async move {
                light::run(light, device, lines, shared, stand, tell).await;
                drop(batches);
            });
        }
        (!config.lights.is_empty()).then_some(feed::Lights { standing, wrote })
    }

    fn start_sources(&mut self, config: source::Config, data_dir: &Path, batches: &mpsc::Sender<Batch>) {
        for mqtt in config.mqtt {
            let (shared, batches) = (self.shared.clone(), batches.clone());
            let (name, part) = (format!("source {}", mqtt.name), format!("source/{}", mqtt.name));
            self.sources.spawn_stage(name, &part, &shared, |shared| source::mqtt::run(mqtt, shared, batches));
        }
        for mut modbus in config.modbus {
            modbus.learnt = Some(data_dir.join("modbus"));
            let (lines, shared, batches) = (self.lines.clone(), self.shared.clone(), batches.clone());
            let (name, part) = (format!("source {}", modbus.name), format!("source/{}", modbus.name));
            self.sources
                .spawn_stage(name, &part, &shared, |shared| source::modbus::run(modbus, lines, shared, batches));
        }
    }

    /// The engine's thread replays the journal, then runs until the sources have gone. Its pulse exists before
    /// that, so that a replay that hangs is noticed.
    fn start_engine(&mut self, engine: Engine, recovered: Recovered, inputs: Inputs) -> Result<()> {
        let shared = self.shared.for_stage(ENGINE);
        shared.board.set(ENGINE, Health::Starting, "replaying the journal");
        let (ended_tx, ended) = oneshot::channel();
        let (restored_tx, restored) = oneshot::channel();
        (self.engine, self.restored) = (ended, restored);
        let (commits, live, library) = (self.store.sender(), self.live.clone(), self.library.clone());
        let thread = EngineThread { engine, commits, shared: shared.clone(), live, library, restored: restored_tx };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let run = move || {
            let work = || runtime.block_on(thread.run(recovered, inputs));
            supervise_thread(ENGINE, &shared.board, &shared.stop, work);
            // Nobody may be waiting for it.
            let _ = ended_tx.send(());
        };
        thread::Builder::new().name("engine".into()).spawn(run).context("starting the engine's thread")?;
        Ok(())
    }

    /// Resolves once it is known whether the engine is back where the last run ended. `false`: it will not be,
    /// and the board says why.
    pub async fn restored(&mut self) -> bool {
        (&mut self.restored).await.is_ok()
    }

    /// Resolves once a stage has failed: it panicked, ended too early or makes no progress. The agent is then to
    /// be ended with [`Agent::finish`].
    pub fn failed(&self) -> impl Future<Output = ()> + use<> {
        let board = self.shared.board.clone();
        async move { board.failed().await }
    }

    /// Takes over what a changed config file says, as far as that needs no restart: see [`reload`].
    ///
    /// # Errors
    /// All that is wrong with the file; nothing has changed then.
    pub async fn reload(&mut self, who: &str) -> Result<reload::Reloaded> {
        self.reloader.reload(who).await
    }

    fn start_cloud(&mut self, config: &Config) -> Result<()> {
        let Some(cloud) = config.cloud.clone() else { return Ok(()) };
        let Some(outbox) = self.store.outbox(forward::cloud::NAME) else { return Ok(()) };
        let outbox = outbox::Adapter::new(outbox, cloud.order);
        let (site, id, shared) = (config.agent.site.clone(), config.agent.id.clone(), self.last_shared());
        let name = "the cloud sink";
        match self.summed_up(&outbox, forward::cloud::NAME, &cloud.privacy, config)? {
            Some(sums) => self.outlets.spawn_stage(name, forward::cloud::NAME, &shared, |shared| {
                forward::cloud::run(cloud, site, id, sums, FORWARD_GRACE, shared)
            }),
            None => self.outlets.spawn_stage(name, forward::cloud::NAME, &shared, |shared| {
                forward::cloud::run(cloud, site, id, outbox, FORWARD_GRACE, shared)
            }),
        }
        Ok(())
    }

    fn start_sinks(&mut self, config: &Config) -> Result<()> {
        for sink in &config.sinks {
            let Some(outbox) = self.store.outbox(&sink.name) else { continue };
            let outbox = outbox::Adapter::new(outbox, sink.order);
            let who = (config.agent.site.clone(), config.agent.id.clone());
            let (name, shared) = (format!("the sink {}", sink.name), self.last_shared());
            let part = format!("sink/{}", sink.name);
            match self.summed_up(&outbox, &sink.name, &sink.privacy, config)? {
                Some(sums) => self.outlets.spawn_stage(name, &part, &shared, |shared| {
                    forward::sinks::run(sink.clone(), who, sums, FORWARD_GRACE, shared)
                }),
                None => self.outlets.spawn_stage(name, &part, &shared, |shared| {
                    forward::sinks::run(sink.clone(), who, outbox, FORWARD_GRACE, shared)
                }),
            }
        }
        Ok(())
    }

    /// Sums in place of records, where nothing else may leave by this sink.
    fn summed_up(
        &self,
        outbox: &outbox::Adapter,
        sink: &str,
        privacy: &Privacy,
        config: &Config,
    ) -> Result<Option<Aggregated<outbox::Adapter>>> {
        let Some(settings) = privacy.aggregate.clone() else { return Ok(None) };
        let dir = config.agent.data_dir.join("sinks");
        Aggregated::open(outbox.clone(), sink, settings, privacy.fields.clone(), &dir).map(Some)
    }

    /// Whoever takes questions to a larger model, and the engine's end of it. It ends with the sources: what
    /// is under way then is asked again after the next start.
    fn start_inference(&mut self, config: &Config) -> Option<feed::Opinions> {
        let inference = config.cloud.as_ref()?.inference.clone()?;
        let (asks_tx, asks) = mpsc::channel(MAX_PENDING);
        let (answers_tx, answers) = mpsc::channel(N_QUEUED_ANSWERS);
        let tempo = forward::inference::Tempo::default();
        let shared = self.shared.clone();
        self.sources.spawn_stage("asking a larger model", "inference", &shared, |shared| {
            forward::inference::run(inference, tempo, asks, answers_tx, shared)
        });
        Some(feed::Opinions { asks: asks_tx, answers })
    }

    fn start_publish(&mut self, config: &Config, commands: mpsc::Sender<web::Command>) {
        let Some(publish) = config.publish.clone() else { return };
        let Some(source) = config.source.mqtt.iter().find(|s| *s.name == publish.source) else { return };
        let (connection, events, shared) = (source.connection.clone(), self.live.subscribe(), self.last_shared());
        let (site, id) = (config.agent.site.clone(), config.agent.id.clone());
        if publish.format == forward::publish::Format::SparkplugB {
            let Some(outbox) = self.store.outbox(forward::sparkplug::SINK) else { return };
            let outbox = outbox::Adapter::new(outbox, forward::order::Order::OldestFirst);
            self.outlets.spawn_stage("publishing as a Sparkplug node", "publish", &shared, |shared| {
                forward::sparkplug::run(publish, connection, id, outbox, events, FORWARD_GRACE, shared)
            });
            return;
        }
        self.outlets.spawn_stage("publishing to MQTT", "publish", &shared, |shared| {
            forward::publish::run_with(publish, connection, (site, id), shared, events, Some(commands))
        });
    }

    async fn start_web(
        &mut self,
        config: &Config,
        commands: mpsc::Sender<web::Command>,
        model_commands: mpsc::Sender<web::ModelCommand>,
    ) -> Result<()> {
        if config.web.listen.is_none() {
            return Ok(());
        }
        let (listener, address) = web::bind(&config.web).await?;
        self.dashboard = Some(address);
        let view = web::View::new();
        let (follower, events, shared) = (view.clone(), self.live.subscribe(), self.last_shared());
        self.outlets.spawn("the dashboard's picture", "dashboard/picture", follower.follow(events, shared));
        // Weak: at the end the store is closed by its one owner.
        let store = Arc::downgrade(&self.store);
        let store_status =
            move || store.upgrade().and_then(|s| serde_json::to_value(s.status()).ok()).unwrap_or(Value::Null);
        let state = web::State {
            view,
            about: web::About {
                site: config.agent.site.clone(),
                agent: config.agent.id.clone(),
                version: env!("CARGO_PKG_VERSION").into(),
                started: Time::now(),
                data_dir: config.agent.data_dir.clone(),
            },
            store_status: Arc::new(store_status),
            models: self.reloader.describe_models(),
            bands: self.reloader.bands(),
            inference: self.reloader.serve_models(),
            commands: Some(commands),
            model_commands: Some(model_commands),
            settings: Some(self.reloader.web_settings()),
        };
        let (settings, shared) = (config.web.clone(), self.last_shared());
        self.outlets
            .spawn_stage("the dashboard", "dashboard", &shared, |shared| web::run(listener, settings, state, shared));
        Ok(())
    }

    /// For stages that go on until the store has everything.
    fn last_shared(&self) -> Shared {
        Shared { stop: self.last.clone(), ..self.shared.clone() }
    }

    /// Where the dashboard listens.
    pub fn dashboard(&self) -> Option<SocketAddr> {
        self.dashboard
    }

    /// A line about what runs.
    pub fn summary(&self) -> &str {
        &self.ready
    }

    /// What happens from now on, as dashboards hear it.
    pub fn live(&self) -> broadcast::Receiver<Live> {
        self.live.subscribe()
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.shared.metrics.clone()
    }

    /// Ends everything in flow order: sources hand over what they hold, the engine finishes, the
    /// store syncs, forwarders send what they can. Bounded in time.
    ///
    /// # Errors
    /// The stages that have failed, with those that did not end in time.
    pub async fn finish(mut self) -> Result<()> {
        let board = self.shared.board.clone();
        let well = board.failures().is_empty();
        self.shared.stop.cancel();
        let mut late = self.sources.join(SOURCES_GRACE).await;
        if tokio::time::timeout(SLACK, &mut self.engine).await.is_err() {
            late.push("the engine".into());
        }
        self.last.cancel();
        late.extend(self.outlets.join(FORWARD_GRACE + SLACK).await);
        match Arc::try_unwrap(self.store) {
            Ok(store) => {
                let closing = tokio::task::spawn_blocking(move || store.close());
                match tokio::time::timeout(CLOSE_GRACE, closing).await {
                    Ok(Ok(Ok(()))) => {}
                    Ok(Ok(Err(error))) => board.fail("store", &format!("cannot be closed: {error}")),
                    Ok(Err(error)) => board.fail("store", &format!("cannot be closed: {error}")),
                    Err(_) => late.push("the store".into()),
                }
            }
            Err(_) => late.push("the store".into()),
        }
        if well {
            rollout::ended_well(&self.data_dir);
        }
        for stage in late {
            board.fail(&stage, "did not end in time");
        }
        let failures = board.failures();
        if failures.is_empty() { Ok(()) } else { Err(anyhow!("stages have failed: {}", failures.join("; "))) }
    }
}

/// All who read the store's outgoing lanes, by the names under which it keeps their places.
fn sink_names(config: &Config) -> Vec<String> {
    let sparkplug = config.publish.as_ref().is_some_and(|p| p.format == forward::publish::Format::SparkplugB);
    let cloud = config.cloud.iter().map(|_| forward::cloud::NAME);
    let fixed = cloud.chain(sparkplug.then_some(forward::sparkplug::SINK)).map(str::to_owned);
    fixed.chain(config.sinks.iter().map(|s| s.name.clone())).collect()
}

/// What the engine's thread is fed.
struct Inputs {
    batches: mpsc::Receiver<Batch>,
    commands: mpsc::Receiver<web::Command>,
    model_commands: mpsc::Receiver<web::ModelCommand>,
    orders: mpsc::Receiver<Order>,
    lights: Option<feed::Lights>,
    opinions: Option<feed::Opinions>,
    rollouts: Rollouts,
    found: Found,
    data_dir: PathBuf,
}

/// What the engine's thread owns.
struct EngineThread {
    engine: Engine,
    commits: store::Sender,
    shared: Shared,
    live: broadcast::Sender<Live>,
    library: Arc<Library>,
    /// Told once the journal is replayed.
    restored: oneshot::Sender<()>,
}

impl EngineThread {
    /// Replays the journal, then runs until the sources have gone.
    async fn run(mut self, recovered: Recovered, inputs: Inputs) -> Result<()> {
        match recover::replay(&mut self.engine, recovered, &self.commits, &self.shared).await? {
            Replayed::Whole => {}
            Replayed::Stopped => return Ok(()),
        }
        self.shared.board.set(ENGINE, Health::Up, "");
        // Nobody may be waiting for it.
        let _ = self.restored.send(());
        let Inputs { batches, commands, model_commands, orders, lights, opinions, mut rollouts, found, data_dir } =
            inputs;
        rollouts.first = rollout::reconcile(&self.engine, &self.library, &found, Time::now());
        let feed = Feed::new(self.engine, self.commits, self.live, data_dir, rollouts, self.shared).with_lights(lights);
        let feed = feed.with_model_commands(model_commands);
        feed.with_opinions(opinions).run(batches, commands, orders).await;
        Ok(())
    }
}

/// Makes the data directory for this user alone. One that is there stays as it is. The store says what does not
/// work.
fn make_private(data_dir: &Path) {
    let mode = std::os::unix::fs::DirBuilderExt::mode;
    let mut builder = std::fs::DirBuilder::new();
    if let Err(error) = mode(builder.recursive(true), DATA_DIR_MODE).create(data_dir) {
        tracing::debug!(%error, "the data directory cannot be made");
    }
}

/// Loads what the library has of these models.
async fn load_library(config: &Config, models: &blocks::Models, library: &Arc<Library>) -> Result<Found> {
    let (data_dir, library) = (config.agent.data_dir.clone(), library.clone());
    let names: Vec<Name> = models.values().map(|m| m.name().clone()).collect();
    let keys = config.trust.keys.clone();
    let loading = move || rollout::load(&library, &names, &keys, &data_dir, Time::now());
    Ok(tokio::task::spawn_blocking(loading).await?)
}

#[cfg(test)]
mod tests;
