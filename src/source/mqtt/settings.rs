//! `[[source.mqtt]]` and its `[[source.mqtt.subscribe]]`.

use std::time::Duration;

use crate::mqtt::sparkplug::NAMESPACE;
use crate::mqtt::{Connection, Filter, Qos};
use crate::settings::Section;
use crate::source::payload;
use crate::source::sparkplug::{self, Naming};
use crate::source::topic::{Pattern, Shape, is_name};
use crate::types::{Clock, Name};

/// How often an unchanged Sparkplug metric is told again unless the config says otherwise.
const HOLD: Duration = Duration::from_secs(1);

/// One broker and what to take from it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Names the source in metrics, on the board and in rejects.
    pub name: Name,
    /// How to reach the broker.
    pub connection: Connection,
    /// In order of precedence: the first one that matches a topic reads it.
    pub subscriptions: Vec<Subscription>,
}

/// One topic pattern and how to read its payloads.
#[derive(Clone, Debug)]
pub struct Subscription {
    pub(super) pattern: Pattern,
    pub(super) qos: Qos,
    pub(super) payload: payload::Config,
    pub(super) machine: Option<Name>,
    pub(super) signal: Option<Name>,
    /// Whose clock gives the time of readings.
    pub(super) clock: Clock,
    /// With Sparkplug B.
    pub(super) sparkplug: Option<sparkplug::Settings>,
}

impl Subscription {
    /// What to ask the broker for.
    pub fn filter(&self) -> Filter {
        Filter { topic: self.pattern.filter(), qos: self.qos }
    }
}

impl Config {
    /// Reads all `[[source.mqtt]]` below `source`, and sees that they do not get in each other's way.
    pub fn read_all(source: &Section<'_>, agent_id: &str) -> Vec<Config> {
        let mut all: Vec<Config> = Vec::new();
        for section in source.sections("mqtt") {
            let config = Config::read(&section, agent_id);
            if all.iter().any(|c| c.name == config.name) && !config.name.is_empty() {
                section.problem("name", format_args!("{:?} is taken: each source needs its own name", config.name));
            }
            let same_client = |c: &&Config| {
                c.connection.client_id == config.connection.client_id
                    && c.connection.urls.iter().any(|u| config.connection.urls.contains(u))
            };
            if let Some(other) = all.iter().find(same_client) {
                section.problem(
                    "client_id",
                    format_args!(
                        "{:?} is also used by source {:?} at the same broker, which would throw one of them out: \
                         give each its own client_id",
                        config.connection.client_id, other.name
                    ),
                );
            }
            all.push(config);
        }
        all
    }

    /// Reads one `[[source.mqtt]]`. The default client id is `andon-AGENT`.
    pub fn read(section: &Section<'_>, agent_id: &str) -> Config {
        let name = section.required_string("name");
        let connection = Connection::read(section, &format!("andon-{agent_id}"));
        let subscriptions: Vec<Subscription> = section.sections("subscribe").iter().filter_map(subscription).collect();
        if !section.has("subscribe") {
            section.problem("subscribe", "is missing: without [[source.mqtt.subscribe]] nothing is taken in");
        }
        Config { name: name.into(), connection, subscriptions }
    }
}

fn subscription(section: &Section<'_>) -> Option<Subscription> {
    let topic = section.required_string("topic");
    let parsed = Pattern::parse(&topic);
    let qos = section.integer("qos", 0..=2).map_or(Qos::AtLeastOnce, |n| match n {
        0 => Qos::AtMostOnce,
        1 => Qos::AtLeastOnce,
        _ => Qos::ExactlyOnce,
    });
    let machine = name_of(section, "machine");
    let signal = name_of(section, "signal");
    let names_signal = parsed.as_ref().ok().is_none_or(Pattern::names_signal);
    let payload = payload::Config::read(section, names_signal || signal.is_some());
    let (rebirth, hold) = (section.boolean("rebirth"), section.duration("hold"));
    for (key, given) in [("rebirth", rebirth.is_some()), ("hold", hold.is_some())] {
        if given && !payload.is_sparkplug() {
            section.problem(key, "goes only with payload = \"sparkplug_b\"");
        }
    }
    let pattern = match parsed {
        Ok(pattern) => pattern,
        Err(e) => {
            if section.has("topic") && !topic.is_empty() {
                section.problem("topic", format_args!("{topic:?}: {e}"));
            }
            return None;
        }
    };
    match (pattern.names_machine(), &machine) {
        (false, None) => section.problem("topic", "names no {machine}, and there is no `machine` beside it"),
        (true, Some(_)) => section.problem("machine", "is named by {machine} in `topic` already"),
        _ => {}
    }
    if pattern.names_signal() && signal.is_some() {
        section.problem("signal", "is named by {signal} in `topic` already");
    }
    let sparkplug = payload.is_sparkplug().then(|| sparkplug::Settings {
        naming: naming(section, pattern.shape(), signal.is_some() || pattern.names_signal()),
        rebirth: rebirth.unwrap_or(true),
        hold: Some(hold.unwrap_or(HOLD)).filter(|d| !d.is_zero()),
    });
    let clocks = [("follow", Clock::Follow), ("device", Clock::Device), ("arrival", Clock::Arrival)];
    let clock = section.choice("clock", &clocks).unwrap_or_default();
    Some(Subscription { pattern, qos, payload, machine, signal, clock, sparkplug })
}

/// Sparkplug's topics have fixed levels: `spBv1.0/GROUP/TYPE/NODE[/DEVICE]`.
fn naming(section: &Section<'_>, shape: Shape<'_>, names_signal: bool) -> Naming {
    if shape.first != Some(NAMESPACE) {
        section.problem("topic", "has to begin with spBv1.0/ for Sparkplug B");
    }
    if shape.shared {
        section.problem("topic", "cannot be a shared subscription: Sparkplug needs every message, in order");
    }
    if names_signal {
        section.problem("topic", "a signal is not named here: signals are called as the metrics are");
    }
    match (shape.machine, shape.levels, shape.tail) {
        (Some(3), 3, true) if shape.third_is_open => Naming::Device,
        (Some(3), 4, true) if shape.third_is_open => Naming::Node,
        (Some(1), 1, true) => Naming::Group,
        _ => {
            section.problem(
                "topic",
                "has to take births, data and deaths of nodes and devices: \"spBv1.0/GROUP/+/{machine...}\" (a machine \
                 is NODE/DEVICE), \"spBv1.0/GROUP/+/{machine}/#\" (a machine is a NODE) or \"spBv1.0/{machine...}\" (a \
                 machine is GROUP/NODE/DEVICE)",
            );
            Naming::Device
        }
    }
}

fn name_of(section: &Section<'_>, key: &str) -> Option<Name> {
    let name = section.string(key)?;
    if !is_name(&name) {
        section.problem(key, "is not a usable name: it is empty, too long or has control characters");
        return None;
    }
    Some(name.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Document, Surroundings};

    fn read(text: &str) -> (Vec<Config>, String) {
        let document = Document::parse(text, Surroundings::default());
        let config = crate::source::Config::read(&document.root(), "gw-07");
        let problems = document.into_problems().into_iter().map(|p| format!("{}: {}", p.line, p.message));
        (config.mqtt, problems.collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn the_whole_of_it() {
        let (configs, problems) = read(
            r#"
[[source.mqtt]]
name = "shop"
url = ["mqtt://127.0.0.1:1883", "mqtt://127.0.0.2"]
version = "3.1.1"
receive_maximum = 50
session_expiry = "1d"
username = "andon"
[[source.mqtt.subscribe]]
topic = "factory/{line}/{machine}/{signal}"
qos = 2
payload = "json"
value = "/value"
time = "/ts"
time_format = "unix_ms"
[[source.mqtt.subscribe]]
topic = "press/{rest...}"
machine = "press-04"
"#,
        );
        assert_eq!(problems, "");
        let c = &configs[0];
        assert_eq!((&*c.name, c.connection.client_id.as_str(), c.connection.urls.len()), ("shop", "andon-gw-07", 2));
        let filters: Vec<String> =
            c.subscriptions.iter().map(|s| format!("{} {:?}", s.filter().topic, s.filter().qos)).collect();
        assert_eq!(filters, ["factory/+/+/+ ExactlyOnce", "press/# AtLeastOnce"]);
    }

    #[test]
    fn mistakes() {
        let (_, problems) = read(
            r#"
[[source.mqtt]]
url = "mqtt://127.0.0.1"
[[source.mqtt]]
name = "b"
url = "mqtt://127.0.0.1"
receive_maximun = 3
[[source.mqtt.subscribe]]
topic = "a/{signal}"
qos = 3
[[source.mqtt.subscribe]]
topic = "a/{machine}/#/b"
[[source.mqtt.subscribe]]
topic = "a/{machine}"
machine = "m"
payload = "number"
[[source.mqtt.subscribe]]
topic = "b/{machine}/{signal}"
signal = ""
"#,
        );
        insta::assert_snapshot!(problems, @r#"
        2: source.mqtt.name: is missing
        2: source.mqtt.subscribe: is missing: without [[source.mqtt.subscribe]] nothing is taken in
        4: source.mqtt.client_id: "andon-gw-07" is also used by source "" at the same broker, which would throw one of them out: give each its own client_id
        7: unknown key `source.mqtt.receive_maximun`; did you mean `receive_maximum`?
        9: source.mqtt.subscribe.topic: names no {machine}, and there is no `machine` beside it
        10: source.mqtt.subscribe.qos: 3 is not between 0 and 2
        12: source.mqtt.subscribe.topic: "a/{machine}/#/b": # can only be the last level
        15: source.mqtt.subscribe.machine: is named by {machine} in `topic` already
        16: source.mqtt.subscribe.payload: a bare number needs {signal} in `topic`, or `signal`
        19: source.mqtt.subscribe.signal: is not a usable name: it is empty, too long or has control characters
        "#);
    }
}
