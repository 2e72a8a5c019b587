//! Results for MQTT dashboards: status, verdicts, alarms and states as flat JSON, and device
//! discovery for Home Assistant. A convenience: what has to arrive goes to the cloud by the store.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

use super::dialing::{Talk, keep_talking};
use crate::metrics::{Health, Shared};
use crate::mqtt::{Connection, Event, Filter, Link, Message, Outgoing, Qos, Refused};
use crate::settings::{Secret, Section};
use crate::types::{Command, ENGINE_SILENT_AFTER, Live, Name, Time};

mod commands;
pub(super) mod messages;
mod standing;

use commands::Commands;
use messages::Topics;
use standing::Standing;

/// How often what found no room is offered again.
const RETRY: Duration = Duration::from_millis(100);
/// How often it is looked whether the engine is silent.
const WATCH: Duration = Duration::from_millis(500);
/// How long stopping waits for `offline` to be taken.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(3);
/// Where Home Assistant says that it has started.
const BIRTH_TOPIC: &str = "homeassistant/status";

/// Shorter tokens could be guessed.
const MIN_TOKEN_CHARS: usize = 16;

/// `[publish]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The `[[source.mqtt]]` whose connection settings are reused.
    pub source: String,
    /// The first levels of every topic.
    pub prefix: String,
    /// Whether to announce machines to Home Assistant.
    pub home_assistant: bool,
    /// How results are written.
    pub format: Format,
    /// Sparkplug's group.
    pub group: String,
    /// The Sparkplug host application without which nothing is sent.
    pub primary_host: Option<String>,
    /// What commands have to carry; `None`: none are taken.
    pub command_token: Option<Secret>,
}

/// How results are written.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Flat JSON, see here.
    #[default]
    Json,
    /// As an edge node, see [`super::sparkplug`].
    SparkplugB,
}

impl Config {
    /// Reads the section. `site` gives Sparkplug's group where the section does not.
    pub fn read(section: &Section<'_>, site: &str) -> Config {
        let source = section.required_string("source");
        let mut prefix = section.string("prefix").unwrap_or_else(|| "andon".to_owned());
        if prefix.is_empty() || prefix != messages::levels(&prefix) {
            section.problem("prefix", format_args!("{prefix:?} is not a topic: levels of plain text, joined by /"));
            prefix = "andon".to_owned();
        }
        let formats = [("json", Format::Json), ("sparkplug_b", Format::SparkplugB)];
        let format = section.choice("format", &formats).unwrap_or_default();
        let home_assistant = section.boolean("home_assistant").unwrap_or(false);
        let group = section.string("group");
        let primary_host = section.string("primary_host");
        let level = |key: &str, text: Option<&String>| match text {
            Some(t) if t.is_empty() || t.contains(['/', '+', '#']) => {
                section.problem(key, format_args!("{t:?} cannot be one level of a topic"));
            }
            Some(_) if format != Format::SparkplugB => section.problem(key, "goes only with format = \"sparkplug_b\""),
            _ => {}
        };
        level("group", group.as_ref());
        level("primary_host", primary_host.as_ref());
        if format == Format::SparkplugB && home_assistant {
            section.problem("home_assistant", "does not go with format = \"sparkplug_b\"");
        }
        let group = group.unwrap_or_else(|| site.replace('/', "-"));
        let command_token = section.secret("command_token");
        if command_token.as_ref().is_some_and(|t| t.reveal().chars().count() < MIN_TOKEN_CHARS) {
            section.problem("command_token", format_args!("the token is shorter than {MIN_TOKEN_CHARS} characters"));
        }
        if format == Format::SparkplugB && command_token.is_some() {
            section.problem("command_token", "does not go with format = \"sparkplug_b\"");
        }
        Config { source, prefix, home_assistant, format, group, primary_host, command_token }
    }
}

/// Publishes until `shared.stop` is cancelled or `live` is closed. `connection` is that of the
/// source; the publisher uses a client id of its own and leaves no session behind.
pub async fn run(
    config: Config,
    connection: Connection,
    site: String,
    agent_id: String,
    shared: Shared,
    live: Receiver<Live>,
) {
    run_with(config, connection, (site, agent_id), shared, live, None).await;
}

/// The same, and takes what people want done to alarms to `engine` where the config allows it.
pub async fn run_with(
    config: Config,
    mut connection: Connection,
    (site, agent_id): (String, String),
    shared: Shared,
    live: Receiver<Live>,
    engine: Option<mpsc::Sender<Command>>,
) {
    connection.client_id.push_str("-publish");
    connection.clean = true;
    let topics = Topics::new(&config.prefix, &site, &agent_id);
    let part = format!("publish/{}", config.source);
    let mut publisher = Publisher {
        standing: Standing::new(topics, config.home_assistant),
        home_assistant: config.home_assistant,
        commands: config.command_token.zip(engine).map(|(token, engine)| Commands::new(token, engine)),
        connected_at: None,
        engine_heard: None,
        in_flight: 0,
        part,
        shared,
        live,
    };
    keep_talking(&mut publisher, &connection, "results").await;
}

struct Publisher {
    standing: Standing,
    home_assistant: bool,
    commands: Option<Commands>,
    connected_at: Option<Instant>,
    /// When the engine was heard last, by the wall clock and by the monotonic one; `None` while it is silent.
    engine_heard: Option<(Time, Instant)>,
    /// Messages on their way that the broker has not yet said it has.
    in_flight: usize,
    part: String,
    shared: Shared,
    live: Receiver<Live>,
}

impl Publisher {
    fn arrived(&mut self, link: &Link, address: &str) {
        self.connected_at = Some(Instant::now());
        self.board(Health::Up, &format!("connected to {address}"));
        tracing::info!(broker = address, "MQTT publishing");
        // A connection this young has room for these.
        let _ = self.publish(link, &self.standing.topics().status("online"));
        if self.home_assistant {
            let birth = Filter { topic: BIRTH_TOPIC.to_owned(), qos: Qos::AtMostOnce };
            let _ = link.client.subscribe(&[birth]);
        }
        if self.commands.is_some() {
            let commands = Filter { topic: self.standing.topics().command(), qos: Qos::AtLeastOnce };
            let _ = link.client.subscribe(&[commands]);
        }
        self.standing.all_again();
    }

    fn heard(&mut self, link: &Link, mut message: Message) {
        if let Some(ack) = message.ack.take() {
            let _ = link.client.ack(ack);
        }
        if message.topic() == BIRTH_TOPIC {
            if &*message.payload == b"online" {
                self.standing.announce_again();
            }
        } else if let Some(commands) = &self.commands
            // What a broker has kept was meant for another time.
            && !message.retained
        {
            commands.take(&message.payload);
        }
    }

    fn answer(&mut self, link: &Link, payload: String) {
        let topic = format!("{}/result", self.standing.topics().command());
        // Whoever asked sees by the alarm itself what became of it.
        let _ = self.publish(link, &Outgoing { topic, payload: payload.into(), qos: Qos::AtLeastOnce, retain: false });
    }

    /// Takes what the engine tells: verdicts go out at once or not at all, the rest is remembered
    /// until it is out.
    fn news(&mut self, news: Live, link: Option<&Link>) {
        self.engine_heard = Some((Time::now(), Instant::now()));
        match news {
            Live::Step { .. } | Live::Flood(_) | Live::Heartbeat(_) => {}
            Live::Snapshot(events) => self.present(&events),
            Live::Verdict(verdict, data) => {
                self.known(&verdict.machine);
                match link.filter(|_| self.connected_at.is_some()) {
                    Some(link) => self.send_verdict(link, &verdict.machine, &data),
                    None => self.dropped("offline", 1),
                }
            }
            Live::Alarm(alarm, data) => {
                if self.known(&alarm.machine) {
                    self.standing.alarm(&alarm, data);
                }
            }
            Live::Opinion(machine, _, data) => {
                if self.known(&machine) {
                    self.standing.opinion(&machine, data);
                }
            }
            Live::State { machine, at, light, why } => {
                if self.known(&machine) {
                    self.standing.state(&machine, light, at, &why);
                }
            }
        }
        if let Some(link) = link {
            self.send_due(link);
        }
    }

    /// While the engine is silent only red is known to hold. Once it goes on it sends the present state of everything.
    fn watch_engine(&mut self) {
        if let Some((at, _)) = self.engine_heard.take_if(|(_, heard)| heard.elapsed() >= ENGINE_SILENT_AFTER) {
            self.standing.engine_is_silent(at);
        }
    }

    /// Takes the present state of everything, after events were missed. Only what differs is sent.
    fn present(&mut self, events: &[Live]) {
        let mut alarms = HashSet::new();
        for event in events {
            match event {
                Live::State { machine, at, light, why } if self.known(machine) => {
                    self.standing.present_state(machine, *light, *at, why);
                }
                Live::Alarm(alarm, data) => {
                    alarms.insert(alarm.id);
                    if self.known(&alarm.machine) {
                        self.standing.present_alarm(alarm, data);
                    }
                }
                _ => {}
            }
        }
        self.standing.end_alarms_but(&alarms);
    }

    /// Counts missed events, and asks for the present state: retained messages would stay wrong.
    fn missed(&self, n: u64) {
        self.dropped("lag", n);
        self.shared.resync.ask();
    }

    fn known(&mut self, machine: &Name) -> bool {
        let known = self.standing.meet(machine);
        if !known {
            self.dropped("machines", 1);
        }
        known
    }

    fn send_verdict(&mut self, link: &Link, machine: &str, data: &Arc<str>) {
        let Some(payload) = messages::flat(data) else { return };
        let topic = self.standing.topics().of(machine, "verdict");
        let message = Outgoing { topic, payload: payload.into(), qos: Qos::AtMostOnce, retain: false };
        if self.publish(link, &message) == Err(Refused::Full) {
            self.dropped("full", 1);
        }
    }

    /// Sends what is due as far as there is room.
    fn send_due(&mut self, link: &Link) {
        if self.connected_at.is_none() {
            return;
        }
        while let Some(message) = self.standing.due() {
            if self.publish(link, &message) == Err(Refused::Full) {
                return;
            }
            self.standing.sent();
        }
    }

    fn publish(&mut self, link: &Link, message: &Outgoing) -> Result<(), Refused> {
        link.client.publish(message)?;
        self.shared.metrics.published.inc();
        if message.qos != Qos::AtMostOnce {
            self.in_flight += 1;
        }
        Ok(())
    }

    /// Says `offline` and sees to it that the broker has it. Where that takes too long the link is
    /// cut without a goodbye, and the broker says it by our will.
    async fn goodbye(&mut self, mut link: Link) {
        if self.connected_at.is_none() {
            return;
        }
        let deadline = Instant::now() + GOODBYE_PATIENCE;
        let offline = self.standing.topics().status("offline");
        if self.publish(&link, &offline).is_err() {
            return;
        }
        while self.in_flight > 0 {
            match timeout_at(deadline, link.next()).await {
                Ok(Event::Delivered) => self.in_flight -= 1,
                Ok(Event::Disconnected(_)) | Err(_) => return,
                Ok(_) => {}
            }
        }
        link.client.disconnect();
        let ended = async { while !matches!(link.next().await, Event::Disconnected(_)) {} };
        let _ = timeout_at(deadline, ended).await;
    }

    fn dropped(&self, reason: &str, n: u64) {
        self.shared.metrics.publish_dropped.get_or_create(&[("reason", reason.to_owned())]).inc_by(n);
    }
}

impl Talk for Publisher {
    fn begin(&mut self) -> Outgoing {
        self.connected_at = None;
        self.in_flight = 0;
        self.standing.topics().status("offline")
    }

    async fn serve(&mut self, mut link: Link, address: &str) -> Option<String> {
        let mut retry = interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut watch = interval(WATCH);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.shared.stop.cancelled() => break,
                _ = watch.tick() => self.watch_engine(),
                heard = self.live.recv() => match heard {
                    Ok(news) => self.news(news, Some(&link)),
                    Err(RecvError::Lagged(n)) => self.missed(n),
                    Err(RecvError::Closed) => break,
                },
                event = link.next() => match event {
                    Event::Connected { .. } => self.arrived(&link, address),
                    Event::Message(message) => self.heard(&link, message),
                    Event::Delivered => self.in_flight = self.in_flight.saturating_sub(1),
                    Event::Subscribed(_) | Event::Echo => {}
                    Event::Disconnected(reason) => return Some(reason),
                },
                Some(answer) = next_answer(&mut self.commands) => self.answer(&link, answer),
                _ = retry.tick(), if self.connected_at.is_some() && self.standing.is_due() => {}
            }
            self.send_due(&link);
        }
        self.goodbye(link).await;
        None
    }

    fn since(&self) -> Option<Instant> {
        self.connected_at
    }

    // Listens all the while.
    async fn pause(&mut self, wait: Duration) -> bool {
        self.connected_at = None;
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                () = self.shared.stop.cancelled() => return false,
                () = tokio::time::sleep_until(until) => return true,
                heard = self.live.recv() => match heard {
                    Ok(news) => self.news(news, None),
                    Err(RecvError::Lagged(n)) => self.missed(n),
                    Err(RecvError::Closed) => return false,
                },
            }
        }
    }

    fn board(&self, health: Health, detail: &str) {
        self.shared.board.set(&self.part, health, detail);
    }
}

async fn next_answer(commands: &mut Option<Commands>) -> Option<String> {
    match commands {
        Some(commands) => commands.answer().await,
        None => std::future::pending().await,
    }
}

#[cfg(any(test, feature = "fuzz"))]
/// A command as a function of bytes, for `crate::fuzz`: one with the token right, else nothing is read.
pub(crate) fn any_bytes(bytes: &[u8]) {
    commands::any_bytes(bytes);
}

#[cfg(test)]
mod tests;
