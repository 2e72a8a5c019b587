//! One run of one workload on one build.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::agent::Agent;
use crate::direct::Broker;
use crate::mosquitto::{Mosquitto, free_port};
use crate::publisher::{self, Talk};
use crate::sink::Sink;
use crate::workload::{By, Workload};
use crate::{modbus, probe};

/// Messages that may wait at the broker.
const QUEUED: u64 = 20_000;
/// How often it is asked how far it has come.
const OFTEN: Duration = Duration::from_millis(100);
const SELDOM: Duration = Duration::from_secs(1);
/// How long it runs before anything is measured.
const WARM_UP: Duration = Duration::from_secs(2);

const CONFIG: &str = r#"
[agent]
site = "bench/load"
id = "gw"
max_machines = 20000
data_dir = "@DIR@/data"
models_dir = "@MODELS@"

[[source.mqtt]]
name = "shop"
url = "mqtt://127.0.0.1:@BROKER@"
receive_maximum = 10000
@SUBSCRIBE@
@MORE@
[[machine]]
match = "*"
@MODEL@
[cloud]
url = "http://127.0.0.1:@SINK@/events"
compress = "none"

[store]
max_bytes = "8GiB"

[web]
listen = "127.0.0.1:@WEB@"

[log]
level = "warn"
"#;

const MODEL: &str = r#"model = "one-step"
rate = "@RATE@"
stale_after = "1h"
[machine.channels]
count = "s0"
[machine.alarm]
threshold = 1000000
"#;

/// What one run gave.
pub struct Figures {
    readings: f64,
    verdicts: f64,
    cpu_us: f64,
    cores: f64,
    ages: Vec<u64>,
    /// Microseconds from publishing to the acknowledgement.
    acks: Vec<u64>,
    /// Microseconds from the wrong value to the alarm.
    alarms: Vec<u64>,
    rss: f64,
    pss: f64,
    written: f64,
    amplified: f64,
    sent: f64,
    /// CPU us per reading by the name of the thread, those that matter first.
    pub threads: Vec<(String, f64)>,
}

impl Figures {
    pub const NAMES: [&str; 18] = [
        "readings/s",
        "events/s at the sink",
        "CPU us per reading",
        "CPU cores",
        "ms from measured to sink, p50",
        "ms from measured to sink, p99",
        "ms from measured to sink, p99.9",
        "ms from published to durable, p50",
        "ms from published to durable, p99",
        "ms from published to durable, p99.9",
        "ms from published to alarm on MQTT, p50",
        "ms from published to alarm on MQTT, p99",
        "the same, the longest",
        "RSS MB",
        "PSS MB",
        "bytes written per reading",
        "bytes written per byte of payload",
        "bytes sent per event",
    ];

    /// In the order of the names; NaN where it says nothing.
    pub fn values(&self) -> [f64; 18] {
        let part = |of: &[u64], part: f64| {
            let at = (of.len().saturating_sub(1) as f64 * part) as usize;
            of.get(at).map_or(f64::NAN, |n| *n as f64)
        };
        let age = |p| part(&self.ages, p);
        let ack = |p| part(&self.acks, p) / 1000.0;
        let alarm = |p| part(&self.alarms, p) / 1000.0;
        [
            self.readings,
            self.verdicts,
            self.cpu_us,
            self.cores,
            age(0.5),
            age(0.99),
            age(0.999),
            ack(0.5),
            ack(0.99),
            ack(0.999),
            alarm(0.5),
            alarm(0.99),
            alarm(1.0),
            self.rss,
            self.pss,
            self.written,
            self.amplified,
            self.sent,
        ]
    }
}

/// A broker, a sink and a config, in a directory of their own.
pub struct Site {
    broker: Source,
    pub sink: Sink,
    dir: tempfile::TempDir,
    web: u16,
}

/// Where the agent's readings come from.
enum Source {
    Mosquitto(Mosquitto),
    Harness(Broker),
}

impl Source {
    fn start(by: By) -> Result<Source> {
        let lines = "allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 10000\nlog_type error\n";
        Ok(match by {
            By::Harness => Source::Harness(Broker::start()?),
            By::Mosquitto | By::Modbus => Source::Mosquitto(Mosquitto::with(lines)),
        })
    }

    fn port(&self) -> Result<u16> {
        match self {
            Source::Mosquitto(broker) => Ok(broker.port()),
            Source::Harness(broker) => broker.port(),
        }
    }

    /// Microseconds that messages took to be acknowledged, where that is known.
    fn acks(&self) -> Vec<u64> {
        match self {
            Source::Mosquitto(_) => Vec::new(),
            Source::Harness(broker) => broker.take(),
        }
    }
}

impl Site {
    pub fn build(workload: &Workload) -> Result<Site> {
        let dir = tempfile::tempdir()?;
        let (broker, sink, web) = (Source::start(workload.by)?, Sink::start()?, free_port());
        let more = match workload.by {
            By::Modbus => modbus::start(dir.path())?,
            _ if workload.probed => probe::CONFIG.into(),
            _ => String::new(),
        };
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let config = CONFIG
            .replace("@DIR@", &dir.path().display().to_string())
            .replace("@MODELS@", &models.display().to_string())
            .replace("@BROKER@", &broker.port()?.to_string())
            .replace("@SINK@", &sink.port.to_string())
            .replace("@WEB@", &web.to_string())
            .replace("@SUBSCRIBE@", workload.config)
            .replace("@MORE@", &more)
            .replace("@MODEL@", if workload.scored { MODEL } else { "" })
            .replace("@RATE@", &format!("{}ms", workload.step_ms));
        std::fs::write(dir.path().join("andon.toml"), config)?;
        Ok(Site { broker, sink, dir, web })
    }

    pub fn start(&self, binary: &Path) -> Result<Agent> {
        Agent::start(binary, &self.dir.path().join("andon.toml"), self.web)
    }

    /// Publishes until told to stop.
    pub fn publish(&self, workload: &Workload, talk: &Talk) -> Result<()> {
        match &self.broker {
            Source::Mosquitto(broker) => publisher::publish(broker.port(), workload, talk),
            Source::Harness(broker) => broker.publish(workload, talk),
        }
    }
}

/// Runs it.
pub fn run(workload: &Workload, binary: &Path, time: Duration) -> Result<Figures> {
    let site = Site::build(workload)?;
    let agent = site.start(binary)?;
    let talk = Talk { per_message: workload.readings(), ..Talk::default() };
    let port = site.broker.port()?;
    thread::scope(|scope| {
        let publishing = scope.spawn(|| site.publish(workload, &talk));
        let probing = workload.probed.then(|| scope.spawn(|| probe::watch(port, &talk.stop)));
        let figures = watch(workload, &agent, &site, &talk, time);
        talk.stop.store(true, Ordering::Relaxed);
        let panicked = |_| anyhow::anyhow!("a publisher panicked");
        publishing.join().map_err(panicked)??;
        let mut figures = figures?;
        if let Some(probing) = probing {
            figures.alarms = probing.join().map_err(panicked)??;
            figures.alarms.sort_unstable();
        }
        Ok(figures)
    })
}

/// Lets the publisher go on as far as the agent has come, and returns how far that is.
pub fn feed(agent: &Agent, talk: &Talk) -> Result<f64> {
    let readings = agent.metric("andon_readings_total")?;
    let taken = talk.base.load(Ordering::Relaxed) + readings as u64 / talk.per_message.max(1);
    talk.allowed.store(taken + QUEUED, Ordering::Relaxed);
    Ok(readings)
}

/// Bytes of payload published so far.
fn paid(talk: &Talk) -> f64 {
    talk.bytes.load(Ordering::Relaxed) as f64
}

fn watch(workload: &Workload, agent: &Agent, site: &Site, talk: &Talk, time: Duration) -> Result<Figures> {
    // The agent answers each time: where the pace is given, that would only be more load.
    let every = if workload.pace.is_some() { SELDOM } else { OFTEN };
    let feed_until = |until: Instant| -> Result<()> {
        while Instant::now() < until {
            feed(agent, talk)?;
            thread::sleep(every.min(until.saturating_duration_since(Instant::now())));
        }
        Ok(())
    };
    feed_until(Instant::now() + WARM_UP)?;
    site.sink.take();
    site.broker.acks();
    let now = || Ok::<_, anyhow::Error>((feed(agent, talk)?, agent.cpu(), agent.written(), paid(talk)));
    let (start, before) = (Instant::now(), now()?);
    feed_until(start + time)?;
    let after = now()?;
    let (seconds, mut taken, mut acks) = (start.elapsed().as_secs_f64(), site.sink.take(), site.broker.acks());
    let read = after.0 - before.0;
    let (rss, pss) = agent.memory();
    taken.ages.sort_unstable();
    acks.sort_unstable();
    // Without a pace the messages' times are not now.
    let ages = if workload.pace.is_some() { taken.ages } else { Vec::new() };
    let mut threads: Vec<(String, f64)> = (after.1.0.iter())
        .map(|(name, s)| (name.clone(), (s - before.1.0.get(name).unwrap_or(&0.0)) * 1e6 / read))
        .filter(|(_, us)| us.is_finite() && *us >= 0.01)
        .collect();
    threads.sort_by(|a, b| b.1.total_cmp(&a.1));
    let cpu = after.1.1 - before.1.1;
    Ok(Figures {
        readings: read / seconds,
        verdicts: taken.events as f64 / seconds,
        cpu_us: cpu * 1e6 / read,
        cores: cpu / seconds,
        ages,
        acks,
        alarms: Vec::new(),
        rss,
        pss,
        written: (after.2 - before.2) / read,
        amplified: (after.2 - before.2) / (after.3 - before.3),
        sent: taken.bytes as f64 / taken.events as f64,
        threads,
    })
}
