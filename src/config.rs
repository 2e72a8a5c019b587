//! The whole configuration, one field per stage. Each stage reads its own part; this file joins
//! them, checks what only the whole can show, and points at the line of every mistake.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::model::trust::Trust;
use crate::settings::{Document, Problem, Section, Surroundings, hint};
use crate::{alarm, forward, logging, pipeline, source, store, web};

/// Machines that are followed unless `[agent] max_machines` says otherwise.
const MAX_MACHINES: i64 = 10_000;
/// A model in service is reported on this often unless `[models] report_every` says otherwise.
pub const REPORT_EVERY: Duration = Duration::from_secs(3600);
/// And not more often than this.
const LEAST_REPORT_EVERY: Duration = Duration::from_secs(1);

/// A checked configuration.
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    /// Its text, for telling what has changed since.
    pub text: String,
    /// Who and where the agent is.
    pub agent: Agent,
    /// What brings readings in.
    pub source: source::Config,
    /// Of `[models]`: whose models are used.
    pub trust: Trust,
    /// Of `[models]`: where new ones come from, if they do.
    pub delivery: Option<forward::delivery::Config>,
    /// `[[machine]]`, in order; the first that matches a machine is its block.
    pub machines: Vec<Machine>,
    /// Of `[models]`: how often models in service are reported on.
    pub report_every: Duration,
    /// `[store]`.
    pub store: store::Config,
    /// `[cloud]`, if results leave the plant.
    pub cloud: Option<forward::cloud::Config>,
    /// `[[sink.mqtt]]`, `[[sink.file]]` and `[[sink.nats]]`.
    pub sinks: Vec<forward::sinks::Config>,
    /// `[publish]`, if results go to MQTT dashboards.
    pub publish: Option<forward::publish::Config>,
    /// `[web]`.
    pub web: web::Config,
    /// `[log]`.
    pub log: logging::Config,
}

/// `[agent]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    /// ISA-95 path; part of topics and event sources.
    pub site: String,
    /// This gateway.
    pub id: String,
    /// Where the store lives.
    pub data_dir: PathBuf,
    /// Where bundles live, one directory each.
    pub models_dir: PathBuf,
    /// How many machines are followed.
    pub max_machines: usize,
}

/// `[[machine]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Glob over machine ids.
    pub matcher: String,
    /// The bundle's name; `None`: signals are shown but not judged.
    pub model: Option<String>,
    /// Model channel to signal.
    pub channels: Vec<(String, String)>,
    /// Its pipeline.
    pub pipeline: pipeline::Settings,
    /// Its alarms.
    pub alarm: alarm::Config,
    /// While this holds, its alarms are suppressed.
    pub suppress: Option<pipeline::mode::Condition>,
    /// Where the block begins, for messages about the model.
    pub line: usize,
}

/// A config file that cannot be used: all that is wrong with it.
#[derive(Debug)]
pub struct Invalid {
    /// The file.
    pub path: PathBuf,
    /// In line order.
    pub problems: Vec<Problem>,
}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = String::new();
        for p in &self.problems {
            let file = p.file.as_ref().unwrap_or(&self.path);
            writeln!(out, "{}:{}: {}", file.display(), p.line, p.message)?;
        }
        f.write_str(out.trim_end())
    }
}

impl std::error::Error for Invalid {}

/// What a command does not need of a config.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// At least one source.
    pub source: bool,
}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path, needs: Needs) -> Result<Config, Invalid> {
        let text = std::fs::read_to_string(path).map_err(|e| Invalid {
            path: path.to_path_buf(),
            problems: vec![Problem::new(0, format!("cannot be read: {e}"))],
        })?;
        Config::parse(&text, path, needs)
    }

    /// Checks a text; `path` is for messages and for finding files named in it.
    pub fn parse(text: &str, path: &Path, needs: Needs) -> Result<Config, Invalid> {
        let document = Document::parse(text, Surroundings::of(path));
        let config = Config { text: text.to_owned(), ..Config::read(&document.root(), path, needs) };
        let problems = document.into_problems();
        if problems.is_empty() { Ok(config) } else { Err(Invalid { path: path.to_path_buf(), problems }) }
    }

    fn read(root: &Section<'_>, path: &Path, needs: Needs) -> Config {
        let agent = Agent::read(root);
        let source = source::Config::read(root, &agent.id);
        let cloud = root.section("cloud").map(|s| forward::cloud::Config::read(&s));
        let models = root.section("models");
        let config = Config {
            path: path.to_path_buf(),
            text: String::new(),
            report_every: models.as_ref().map_or(REPORT_EVERY, read_report_every),
            trust: models.as_ref().map(Trust::read).unwrap_or_default(),
            delivery: models.as_ref().and_then(|s| forward::delivery::Config::read(s, cloud.as_ref())),
            machines: root.sections("machine").iter().map(Machine::read).collect(),
            store: root.section("store").map(|s| store::Config::read(&s)).unwrap_or_default(),
            sinks: forward::sinks::Config::read_all(root, &agent.site, &agent.id),
            cloud,
            publish: root.section("publish").map(|s| forward::publish::Config::read(&s, &agent.site)),
            web: root.section("web").map(|s| web::Config::read(&s)).unwrap_or_default(),
            log: logging::Config::read(root),
            agent,
            source,
        };
        config.check_whole(root, needs);
        config
    }

    fn check_whole(&self, root: &Section<'_>, needs: Needs) {
        if self.delivery.is_some() && self.trust.keys.is_empty() {
            root.problem("models", "new models have to be signed: name who may in `trusted_keys`");
        }
        let mut names = BTreeSet::new();
        let mqtt = self.source.mqtt.iter().map(|s| &*s.name);
        for name in mqtt.clone().chain(self.source.modbus.iter().map(|s| &*s.name)) {
            if !names.insert(name) {
                root.problem("source", format_args!("two sources are named {name:?}; give each its own `name`"));
            }
        }
        self.check_origins(root);
        if needs.source && names.is_empty() {
            root.problem("source", "there is none: add a [[source.mqtt]] or a [[source.modbus]]");
        }
        if self.machines.is_empty() {
            root.problem("machine", "there is none: add a [[machine]] with `match = \"*\"`");
        }
        if let Some(publish) = &self.publish
            && !mqtt.clone().any(|n| n == publish.source)
        {
            let known: Vec<&str> = mqtt.collect();
            let near = hint(&publish.source, &known);
            root.problem("publish", format_args!("`source` names no [[source.mqtt]]: {:?}{near}", publish.source));
        }
    }
}

impl Config {
    /// A signal has one origin: two devices that feed the same one are a mistake, as of a copied block.
    fn check_origins(&self, root: &Section<'_>) {
        let mut origins: BTreeMap<(&str, &str), &str> = BTreeMap::new();
        for device in &self.source.modbus {
            for signal in &device.signals {
                let first = *origins.entry((&signal.machine, &signal.name)).or_insert(&device.name);
                if first != &*device.name {
                    let (machine, signal, second) = (&signal.machine, &signal.name, &device.name);
                    let message = format_args!(
                        "signal {signal:?} of machine {machine:?} is read from {first:?} and from {second:?}; \
                         give one of them another `machine` or `name`"
                    );
                    root.problem("source", message);
                }
            }
        }
    }
}

fn read_report_every(models: &Section<'_>) -> Duration {
    let every = models.duration("report_every").unwrap_or(REPORT_EVERY);
    if every < LEAST_REPORT_EVERY {
        models.problem("report_every", "at least \"1s\": every report is a record");
    }
    every.max(LEAST_REPORT_EVERY)
}

impl Agent {
    fn read(root: &Section<'_>) -> Agent {
        let s = root.section("agent");
        let get = |key: &str| s.as_ref().and_then(|s| s.string(key));
        let path = |key: &str| get(key).map(|p| root.surroundings().base.join(p));
        let data_dir = path("data_dir").or_else(|| std::env::var_os("STATE_DIRECTORY").map(PathBuf::from));
        let data_dir = data_dir.unwrap_or_else(|| "/var/lib/andon".into());
        let agent = Agent {
            site: get("site").unwrap_or_else(|| "site".into()),
            id: get("id").unwrap_or_else(host_name),
            models_dir: path("models_dir").unwrap_or_else(|| data_dir.join("models")),
            max_machines: s.as_ref().and_then(|s| s.integer("max_machines", 1..=100_000)).unwrap_or(MAX_MACHINES)
                as usize,
            data_dir,
        };
        let plain = |t: &str, extra: &str| !t.is_empty() && t.chars().all(|c| c.is_alphanumeric() || extra.contains(c));
        if let Some(s) = &s {
            if !plain(&agent.site, "-_./") || agent.site.starts_with('/') || agent.site.ends_with('/') {
                s.problem("site", "is part of topics: use letters, digits, - _ . and / between levels");
            }
            if !plain(&agent.id, "-_.") {
                s.problem("id", "is part of topics: use letters, digits, - _ and .");
            }
        }
        agent
    }
}

impl Machine {
    fn read(s: &Section<'_>) -> Machine {
        let channels = s.section("channels").map(|c| {
            let read = |key: String| c.string(&key).map(|signal| (key, signal));
            c.keys().into_iter().filter_map(read).collect()
        });
        Machine {
            matcher: s.required_string("match"),
            model: s.string("model"),
            channels: channels.unwrap_or_default(),
            pipeline: pipeline::Settings::read(s),
            alarm: alarm::Config::read(s),
            suppress: s.string("suppress_alarms").and_then(|text| {
                let parsed = pipeline::mode::Condition::parse(&text);
                parsed.map_err(|e| s.problem("suppress_alarms", e)).ok()
            }),
            line: s.line(),
        }
    }
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let plain: String = name.chars().filter(|c| c.is_alphanumeric() || "-_.".contains(*c)).collect();
    if plain.is_empty() { "andon".into() } else { plain }
}
