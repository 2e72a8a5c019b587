//! `[[sink.mqtt]]`, `[[sink.file]]` and `[[sink.nats]]`: where records go besides the cloud. Each has a name,
//! a cursor of its own in the store, and its own rules of what may leave.

use std::time::Duration;

use super::cloud_events::Encoder;
use super::deliver::Carrier;
use super::order::Order;
use super::privacy::Privacy;
use super::report::Report;
use super::{Outbox, bridge, deliver, file, nats};
use crate::metrics::Shared;
use crate::settings::Section;

/// Each sink's cursor takes some 200 bytes of the 64 KiB page that is written each time one moves.
const MAX_SINKS: usize = 16;
/// Names that others have in the store and in metrics.
const TAKEN: [&str; 2] = [super::cloud::NAME, super::sparkplug::SINK];

/// One sink.
#[derive(Clone, Debug)]
pub struct Config {
    /// Its name in metrics, on the board and in the store.
    pub name: String,
    /// What may leave by it.
    pub privacy: Privacy,
    /// What goes first after an outage.
    pub order: Order,
    /// Where to.
    pub way: Way,
}

/// Where a sink leads.
#[derive(Clone, Debug)]
pub enum Way {
    /// Another MQTT broker.
    Mqtt(bridge::Config),
    /// A file here.
    File(file::Config),
    /// A NATS JetStream stream.
    Nats(nats::Config),
}

impl Config {
    /// Reads the `sink` table of the whole file; absent, there are none.
    pub fn read_all(root: &Section<'_>, site: &str, agent_id: &str) -> Vec<Config> {
        let Some(section) = root.section("sink") else { return Vec::new() };
        let mut all: Vec<Config> = Vec::new();
        let mut add = |s: &Section<'_>, way: &dyn Fn(&str) -> Way| {
            let name = name(s, &all);
            let (privacy, way) = (Privacy::read(s, &name), way(&name));
            let order = Order::read(s, Order::OldestFirst, &privacy);
            all.push(Config { name, privacy, order, way });
        };
        for s in &section.sections("mqtt") {
            add(s, &|name| Way::Mqtt(bridge::Config::read(s, name, site, agent_id)));
        }
        for s in &section.sections("file") {
            add(s, &|_| Way::File(file::Config::read(s)));
        }
        for s in &section.sections("nats") {
            add(s, &|_| Way::Nats(nats::Config::read(s, site, agent_id)));
        }
        if all.len() > MAX_SINKS {
            section.problem("mqtt", format_args!("there are {} sinks; {MAX_SINKS} are the most", all.len()));
        }
        all
    }
}

fn name(s: &Section<'_>, others: &[Config]) -> String {
    let name = s.required_string("name");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if s.has("name") && (name.is_empty() || name.len() > 64 || !name.chars().all(plain)) {
        s.problem("name", "needs 1 to 64 letters, digits, - and _");
    }
    if others.iter().any(|c| c.name == name) || TAKEN.contains(&name.as_str()) {
        s.problem("name", format_args!("{name:?} is taken: its place in the store is kept under it"));
    }
    name
}

/// Knocks without sending a record, for `andon check --connect`: what to say of it, or why it cannot be used.
///
/// # Errors
/// For a person.
pub async fn probe(config: &Config, agent_id: &str) -> Result<String, String> {
    match &config.way {
        Way::Mqtt(bridge) => {
            let mut why = String::new();
            for address in &bridge.connection.urls {
                match crate::mqtt::probe(&bridge.connection, address, &[]).await {
                    Ok(_) => return Ok(format!("{address} answers and lets us in")),
                    Err(e) => why = format!("{address}: {e:#}"),
                }
            }
            Err(why)
        }
        Way::File(file) => file.probe(),
        Way::Nats(nats) => {
            let encoder = Encoder::new("", "", Privacy::default());
            let mut publisher = nats::Publisher::new(nats.clone(), encoder, agent_id);
            publisher.open().await.map_err(|trouble| format!("{}: {}", publisher.place(), trouble.detail))?;
            publisher.close().await;
            Ok(format!("{} answers and lets us in", publisher.place()))
        }
    }
}

/// Sends what waits in `outbox` until the agent stops and then, for at most `grace`, what is left.
pub async fn run<O: Outbox>(
    config: Config,
    (site, agent_id): (String, String),
    outbox: O,
    grace: Duration,
    shared: Shared,
) {
    let encoder = Encoder::new(&site, &agent_id, config.privacy);
    let part = format!("sink/{}", config.name);
    let report = |place: String| Report::new(&shared, &config.name, &part, place);
    match config.way {
        Way::Mqtt(mqtt) => {
            let bridge = bridge::Bridge::new(mqtt, encoder);
            let report = report(bridge.place());
            deliver::run(bridge, outbox, report, grace, shared).await;
        }
        Way::File(file) => {
            let writer = file::Writer::new(file, encoder);
            let report = report(writer.place());
            deliver::run(writer, outbox, report, grace, shared).await;
        }
        Way::Nats(nats) => {
            let publisher = nats::Publisher::new(nats, encoder, &agent_id);
            let report = report(publisher.place());
            deliver::run(publisher, outbox, report, grace, shared).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Document, Surroundings};

    fn read(text: &str) -> (Vec<Config>, Vec<String>) {
        let document = Document::parse(text, Surroundings::default());
        let configs = Config::read_all(&document.root(), "lyon/line3", "gw-07");
        let problems = document.into_problems();
        (configs, problems.into_iter().map(|p| format!("{}: {}", p.line, p.message)).collect())
    }

    #[test]
    fn the_smallest_sinks_are_read() {
        let (configs, problems) = read(
            "[[sink.mqtt]]\nname = \"a\"\nurl = \"mqtts://broker\"\n[[sink.file]]\nname = \"b\"\npath = \"x.ndjson\"\n\
             [[sink.nats]]\nname = \"c\"\nurl = [\"nats://a:4222\", \"tls://b\"]\n",
        );
        assert_eq!(problems, [""; 0]);
        let names: Vec<&str> = configs.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert!(configs.iter().all(|c| c.order == Order::OldestFirst));
        let Way::Mqtt(mqtt) = &configs[0].way else { panic!("{:?}", configs[0]) };
        assert_eq!((mqtt.connection.client_id.as_str(), mqtt.connection.clean), ("andon-gw-07-a", true));
        assert_eq!(mqtt.max_message_bytes, 131_072);
    }

    #[test]
    fn every_mistake_is_told() {
        let (_, problems) = read(
            "[[sink.mqtt]]\nname = \"cloud\"\nurl = \"mqtt://b\"\ntopic = \"a/{site}/b/c/d/e/f/{kind}\"\nqos = 1\n\
             max_message_bytes = \"3B\"\n[[sink.file]]\nname = \"x y\"\nmax_age = \"1ms\"\nmax_files = 0\n\
             [[sink.nats]]\nname = \"x y\"\nurl = \"http://a\"\nsubject = \"a.>\"\nusername = \"u\"\npseudonymise = true\n\
             tls = { ca = \"ca.pem\" }\n",
        );
        insta::assert_snapshot!(problems.join("\n"));
    }
}
