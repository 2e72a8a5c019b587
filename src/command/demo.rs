//! `andon demo`: a simulated factory with faults, an in-process broker, Modbus devices and a cloud
//! stand-in, and the real agent between them over real sockets, all in a temporary directory.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast;

use super::runtime;
use crate::agent::Agent;
use crate::config::{Config, Needs};
use crate::logging;
use crate::metrics::{Metrics, Shared};
use crate::simulator::cloud::{self, Cloud};
use crate::simulator::faults::{self, Fault};
use crate::simulator::plant::{DT, Layout, Plant};
use crate::simulator::{broker, csv};
use crate::types::Live;

mod factory;
mod report;
mod scene;

use factory::Factory;
use report::{Course, Report};

/// The plant's random seed: other than those the models were trained on.
const SEED: u64 = 4242;
/// Faults are planned for this long when the demo runs until it is stopped.
const OPEN_END: f64 = 86_400.0;
/// Where the dashboard listens unless the port is taken.
const DASHBOARD: &str = "127.0.0.1:8420";
/// How long what was published may take to come in once the plant has stopped.
const DRAIN: Duration = Duration::from_secs(20);

/// See `andon demo --help`.
#[derive(Args)]
pub struct Options {
    /// Stop after so many seconds [default: run until Ctrl-C]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Plant time per real time, 0.1 to 20
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    speed: f64,
    /// Print the figures as one JSON object on the last line
    #[arg(long)]
    json: bool,
    /// Where the dashboard listens; port 0 takes a free one
    #[arg(long, value_name = "ADDR")]
    web: Option<SocketAddr>,
    /// Inject no faults
    #[arg(long)]
    no_faults: bool,
    /// Another plant: other noise, other modes, other faults
    #[arg(long, value_name = "N", default_value_t = SEED)]
    seed: u64,
    /// Write what the plant measures to a CSV instead of running
    #[arg(long, value_name = "FILE", requires = "seconds")]
    csv: Option<PathBuf>,
    /// With --csv: the kind of machine
    #[arg(long, value_name = "pump|motor|press|all", default_value = "all", requires = "csv")]
    kind: String,
    /// With --csv: how many of them
    #[arg(long, value_name = "N", default_value_t = 1, requires = "csv")]
    count: usize,
}

/// Runs the demo, or writes its CSV.
pub fn run(options: &Options) -> Result<()> {
    anyhow::ensure!((0.1..=20.0).contains(&options.speed), "--speed has to be between 0.1 and 20");
    if let Some(path) = &options.csv {
        return write_csv(options, path);
    }
    logging::start(&logging::Config { level: "warn".into() })?;
    runtime()?.block_on(demo(options))
}

async fn demo(options: &Options) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("andon-demo-").tempdir().context("making a temporary directory")?;
    let plant = plan(options);
    let faults = plant.faults().to_vec();
    let log = dir.path().join("cloud.ndjson");
    let cloud_options = cloud::Options { log: Some(log.clone()), ..cloud::Options::default() };
    let cloud = Cloud::start((Ipv4Addr::LOCALHOST, 0).into(), cloud_options).await?;
    let factory = Factory::open(plant, Layout::demo(), broker::start()?, options.speed).await?;
    scene::unpack_models(&dir.path().join("models"))?;
    let config = scene::config(&factory, &cloud.url(), options.speed);
    let config = load(&config, dir.path(), options.web)?;
    let agent = Agent::start(config, Shared::new()).await?;
    if let Some(address) = agent.dashboard() {
        println!("dashboard: http://{address}");
    }
    let started = Instant::now();
    let (begin, begin_time) = factory.begin();
    let running = factory.start();
    let narrator = tokio::spawn(narrate(&agent, options, faults.clone(), begin));
    wait(options.seconds).await?;
    let seconds = started.elapsed().as_secs_f64();
    let published = running.hush().await;
    let metrics = agent.metrics();
    drain(&metrics, published).await;
    narrator.abort();
    agent.finish().await?;
    running.stop().await;
    let course = Course { log: &log, published, seconds, faults: &faults, begin: begin_time, speed: options.speed };
    let report = Report::new(&course, &metrics, &cloud)?;
    cloud.stop().await;
    report.print(options.json);
    Ok(())
}

fn plan(options: &Options) -> Plant {
    let layout = Layout::demo();
    if options.no_faults {
        return Plant::new(options.seed, &layout);
    }
    let seconds = options.seconds.map_or(OPEN_END, |s| s as f64 * options.speed);
    Plant::with_faults(options.seed, &layout, faults::schedule(options.seed, &layout, seconds))
}

fn load(text: &str, dir: &Path, web: Option<SocketAddr>) -> Result<Config> {
    let path = dir.join("andon.toml");
    let address = match web {
        Some(address) => address,
        None => {
            let usual: SocketAddr = DASHBOARD.parse()?;
            let free = std::net::TcpListener::bind(usual).is_ok();
            if free { usual } else { SocketAddr::new(usual.ip(), 0) }
        }
    };
    let text = text.replace("@WEB@", &address.to_string());
    std::fs::write(&path, &text).with_context(|| format!("writing {}", path.display()))?;
    Ok(Config::load(&path, Needs { source: true })?)
}

/// Tells on the terminal what goes wrong in the plant and what the agent makes of it.
fn narrate(agent: &Agent, options: &Options, faults: Vec<Fault>, begin: Instant) -> impl Future<Output = ()> + use<> {
    let mut events = agent.live();
    let speed = options.speed;
    let quiet = options.json;
    async move {
        let mut next = 0;
        loop {
            let due = faults.get(next).map(|f| begin + Duration::from_secs_f64(f.start / speed));
            tokio::select! {
                () = tokio::time::sleep_until(due.unwrap_or(Instant::now() + Duration::from_secs(3600)).into()) => {
                    if let Some(f) = faults.get(next).filter(|_| !quiet) {
                        let signal = f.signal.map_or(String::new(), |s| format!(" on {s}"));
                        println!("{:7.1} s  plant  {}: {}{signal} begins", f.start, f.machine, f.kind.as_str());
                    }
                    next += 1;
                }
                event = events.recv() => match event {
                    Ok(Live::Alarm(a, _)) if !quiet => {
                        let at = begin.elapsed().as_secs_f64() * speed;
                        println!("{at:7.1} s  andon  {}: {} [{}]", a.machine, a.message, a.state.as_str());
                    }
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        }
    }
}

async fn wait(seconds: Option<u64>) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let end = async {
        match seconds {
            Some(n) => tokio::time::sleep(Duration::from_secs(n)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = end => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Waits until all that was published has come in.
async fn drain(metrics: &Metrics, published: u64) {
    let deadline = Instant::now() + DRAIN;
    while metrics.total("andon_readings_total", report::SHOP) < published && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn write_csv(options: &Options, path: &Path) -> Result<()> {
    let layout = match options.kind.as_str() {
        "pump" => Layout::new(options.count, 0, 0),
        "motor" => Layout::new(0, options.count, 0),
        "press" => Layout::new(0, 0, options.count),
        "all" => Layout::demo(),
        other => bail!("--kind {other:?} is not pump, motor, press or all"),
    };
    let seconds = options.seconds.unwrap_or(0) as f64;
    let settings = csv::Options { seed: options.seed, seconds, faults: !options.no_faults, layout };
    let file = std::fs::File::create(path).with_context(|| format!("writing {}", path.display()))?;
    let rows = csv::write(&mut std::io::BufWriter::new(file), &settings)?;
    println!("{}: {rows} rows, one every {DT} s for each machine", path.display());
    Ok(())
}
