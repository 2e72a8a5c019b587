//! Results as a Sparkplug B edge node: this agent is the node, each machine a device of it. What has
//! been stored goes out in order; what the broker could not take meanwhile is sent as historical.

use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout, timeout_at};

use super::Outbox;
use super::dialing::{Talk, keep_talking};
use super::publish::Config;
use crate::metrics::{Health, Shared};
use crate::mqtt::sparkplug::{self as wire, REBIRTH, Topic, Value, Verb};
use crate::mqtt::{Connection, Event, Filter, Link, Message, Outgoing, Qos, Refused};
use crate::types::{Live, Stored, Time};

mod device;
mod node;

use node::Node;

/// Records sent before the broker is asked whether it has read them.
const BATCH_RECORDS: usize = 256;
const BATCH_BYTES: usize = 256 << 10;
/// How long the broker may take to answer that, and to take a goodbye.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
const GOODBYE_PATIENCE: Duration = Duration::from_secs(3);
/// Once the agent stops, an outbox that stays empty for this long is taken to be at its end.
const STOP_IDLE: Duration = Duration::from_secs(1);
/// The sink's name in metrics and in the store.
pub const SINK: &str = "sparkplug";

/// Publishes until `shared.stop` is cancelled, and then for at most `grace` what is left. `connection` is
/// that of the source; a client id of its own is used and no session left behind.
pub async fn run<O: Outbox>(
    config: Config,
    mut connection: Connection,
    agent_id: String,
    outbox: O,
    live: Receiver<Live>,
    grace: Duration,
    shared: Shared,
) {
    connection.client_id.push_str("-publish");
    connection.clean = true;
    let part = format!("publish/{}", config.source);
    let node = Node::new(&config.group, &agent_id);
    let primary_host = config.primary_host.clone();
    let mut edge = Edge { node, primary_host, outbox, live, grace, part, shared, born_at: None, again: false };
    keep_talking(&mut edge, &connection, "as a Sparkplug node").await;
}

struct Edge<O> {
    node: Node,
    primary_host: Option<String>,
    outbox: O,
    live: Receiver<Live>,
    grace: Duration,
    part: String,
    shared: Shared,
    /// Since when the births of this connection are out.
    born_at: Option<Instant>,
    /// The births are to be told again.
    again: bool,
}

/// What comes first on a connection.
enum Step {
    Stop,
    News(Live),
    Lagged(u64),
    Waiting(bool),
    Event(Event),
}

impl<O: Outbox> Edge<O> {
    async fn step(&mut self, link: &mut Link) -> Step {
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => Step::Stop,
            event = link.next() => Step::Event(event),
            heard = self.live.recv() => match heard {
                Ok(news) => Step::News(news),
                Err(RecvError::Lagged(n)) => Step::Lagged(n),
                Err(RecvError::Closed) => Step::Stop,
            },
            waiting = self.outbox.ready(), if self.born_at.is_some() => Step::Waiting(waiting),
        }
    }

    fn subscribe(&self, link: &Link) {
        let filter = |topic: String| Filter { topic, qos: Qos::AtLeastOnce };
        let mut filters = vec![filter(self.node.commands())];
        filters.extend(self.primary_host.as_ref().map(|host| filter(format!("{}/STATE/{host}", wire::NAMESPACE))));
        // A connection this young has room for it.
        let _ = link.client.subscribe(&filters);
    }

    /// A command, or the state of the primary host; the reason when the connection is to end for it.
    fn told(&mut self, message: &Message) -> Option<String> {
        if message.topic().starts_with(wire::NAMESPACE) && message.topic().contains("/STATE/") {
            return match is_online(&message.payload) {
                Some(true) if self.born_at.is_none() => {
                    self.again = true;
                    None
                }
                Some(false) if self.born_at.is_some() => Some("the primary host is offline".into()),
                _ => None,
            };
        }
        if Topic::parse(message.topic()).is_some_and(|t| t.verb == Verb::NCmd)
            && wire::decode(&message.payload).is_ok_and(|p| asks_for_rebirth(&p))
        {
            tracing::info!("asked for a Sparkplug rebirth");
            // Commands before the first birth are of no use: it comes anyhow.
            self.again |= self.born_at.is_some();
        }
        None
    }

    /// The node's birth and those of all devices.
    async fn births(&mut self, link: &Link, address: &str) {
        self.again = false;
        let births = self.node.births(Time::now());
        self.shared.metrics.published.inc_by(births.len() as u64);
        // When the connection ends meanwhile, its last event tells.
        link.client.flush(births).await;
        if self.born_at.is_none() {
            self.born_at = Some(Instant::now());
            tracing::info!(broker = address, "Sparkplug publishing");
        }
        self.board(Health::Up, &format!("connected to {address}, born as {}", self.node.name()));
    }

    /// Takes what the engine tells. What is stored comes by the outbox too, and goes out from there; here
    /// it says how things stand, for births.
    fn news(&mut self, news: Live, link: Option<&Link>) {
        let now = Time::now();
        let messages = match &news {
            Live::Snapshot(events) => events.iter().flat_map(|event| self.told_of(event, true, now)).collect(),
            event => self.told_of(event, false, now),
        };
        let Some(link) = link.filter(|_| self.born_at.is_some() && !self.again) else { return };
        for message in messages {
            if self.publish(link, &message) == Err(Refused::Full) {
                // Its sequence number is gone: all begins anew.
                self.again = true;
                self.dropped("full", 1);
                return;
            }
        }
    }

    /// What the node has to tell of an event, or of a part of the present state.
    fn told_of(&mut self, event: &Live, is_present: bool, now: Time) -> Vec<Outgoing> {
        let told = if is_present { self.node.present(event, now) } else { self.node.news(event, now) };
        if told.is_none() {
            self.dropped("machines", 1);
        }
        let (birth, change) = told.unwrap_or_default();
        birth.into_iter().chain(change).collect()
    }

    /// Counts missed events, and asks for the present state.
    fn missed(&self, n: u64) {
        self.dropped("lag", n);
        self.shared.resync.ask();
    }

    fn publish(&self, link: &Link, message: &Outgoing) -> Result<(), Refused> {
        link.client.publish(message)?;
        self.shared.metrics.published.inc();
        Ok(())
    }

    /// Sends what waits, and advances once the broker has read it: Sparkplug's data is QoS 0 and has no
    /// acks of its own.
    async fn send_waiting(&mut self, link: &mut Link) -> Result<(), String> {
        let records = match self.outbox.next(BATCH_RECORDS, BATCH_BYTES).await {
            Ok(records) => records,
            Err(e) => return Err(format!("the outbox: {e:#}")),
        };
        let now = Time::now();
        let messages: Vec<Outgoing> = records.iter().flat_map(|r| self.node.record(&r.record, now)).collect();
        let sent = messages.len() as u64;
        if !messages.is_empty() {
            let until = Instant::now() + ANSWER_PATIENCE;
            let flushed = timeout_at(until, link.client.flush(messages)).await;
            if !matches!(flushed, Ok(true)) {
                return Err("the connection broke while data was sent".into());
            }
            link.client.echo().map_err(|e| e.to_string())?;
            self.echoed(link, until).await?;
        }
        self.outbox.ack(&records).await.map_err(|e| format!("the outbox: {e:#}"))?;
        self.shared.metrics.published.inc_by(sent);
        let labels = [("sink", SINK.to_owned())];
        self.shared.metrics.forward_records.get_or_create(&labels).inc_by(records.len() as u64);
        let delay = self.shared.metrics.forward_delay.get_or_create_owned(&labels);
        records.iter().for_each(|r: &Stored| delay.observe(now.since(r.record.at).as_secs_f64()));
        Ok(())
    }

    async fn echoed(&mut self, link: &mut Link, until: Instant) -> Result<(), String> {
        loop {
            match timeout_at(until, link.next()).await {
                Ok(Event::Echo) => return Ok(()),
                Ok(Event::Message(message)) => {
                    if let Some(reason) = self.told(&message) {
                        return Err(reason);
                    }
                }
                Ok(Event::Disconnected(reason)) => return Err(reason),
                Ok(_) => {}
                Err(_) => return Err("the broker does not answer".into()),
            }
        }
    }

    /// Sends what is left when the agent stops, then the node's death.
    async fn last_words(&mut self, mut link: Link) {
        let until = Instant::now() + self.grace;
        while self.born_at.is_some() && Instant::now() < until {
            let waiting = timeout(STOP_IDLE, self.outbox.ready()).await;
            if !matches!(waiting, Ok(true)) {
                break;
            }
            match timeout_at(until, self.send_waiting(&mut link)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return,
                Err(_) => break,
            }
        }
        self.goodbye(link).await;
    }

    /// A disconnect that is meant tells the death itself; a will is not sent then.
    async fn goodbye(&mut self, mut link: Link) {
        let until = Instant::now() + GOODBYE_PATIENCE;
        if self.born_at.take().is_some() {
            let death = self.node.death(Time::now());
            if self.publish(&link, &death).is_err() {
                return;
            }
            loop {
                match timeout_at(until, link.next()).await {
                    Ok(Event::Delivered) => break,
                    // Dropped without a goodbye, the broker tells it by our will.
                    Ok(Event::Disconnected(_)) | Err(_) => return,
                    Ok(_) => {}
                }
            }
        }
        link.client.disconnect();
        let ended = async { while !matches!(link.next().await, Event::Disconnected(_)) {} };
        let _ = timeout_at(until, ended).await;
    }

    fn dropped(&self, reason: &str, n: u64) {
        self.shared.metrics.publish_dropped.get_or_create(&[("reason", reason.to_owned())]).inc_by(n);
    }
}

impl<O: Outbox> Talk for Edge<O> {
    fn begin(&mut self) -> Outgoing {
        // Each connection's death can be told from those of others.
        self.node.connecting();
        self.born_at = None;
        self.node.death(Time::now())
    }

    async fn serve(&mut self, mut link: Link, address: &str) -> Option<String> {
        let mut subscribed = false;
        loop {
            match self.step(&mut link).await {
                Step::Stop => break,
                Step::News(news) => self.news(news, Some(&link)),
                Step::Lagged(n) => self.missed(n),
                Step::Waiting(false) => break,
                Step::Waiting(true) => {
                    if let Err(reason) = self.send_waiting(&mut link).await {
                        return Some(reason);
                    }
                }
                Step::Event(Event::Connected { .. }) => self.subscribe(&link),
                Step::Event(Event::Subscribed(refused)) => {
                    if let Some(reason) = refused.into_iter().flatten().next() {
                        return Some(format!("refused to subscribe to commands: {reason}"));
                    }
                    subscribed = true;
                    self.again |= self.primary_host.is_none();
                }
                Step::Event(Event::Message(message)) => {
                    if let Some(reason) = self.told(&message) {
                        self.goodbye(link).await;
                        return Some(reason);
                    }
                }
                Step::Event(Event::Disconnected(reason)) => return Some(reason),
                Step::Event(Event::Delivered | Event::Echo) => {}
            }
            if self.again && subscribed {
                self.births(&link, address).await;
            }
        }
        self.last_words(link).await;
        None
    }

    fn since(&self) -> Option<Instant> {
        self.born_at
    }

    // Listens all the while.
    async fn pause(&mut self, wait: Duration) -> bool {
        self.born_at = None;
        self.again = false;
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

/// A host application's `{"online":true,"timestamp":…}`.
fn is_online(payload: &[u8]) -> Option<bool> {
    serde_json::from_slice::<serde_json::Value>(payload).ok()?.get("online")?.as_bool()
}

fn asks_for_rebirth(payload: &wire::Payload<'_>) -> bool {
    payload.metrics.iter().any(|m| m.name == Some(REBIRTH) && m.value == Value::Boolean(true))
}
