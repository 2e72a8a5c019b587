//! The MQTT source: subscribes, turns messages into batches of readings, and acks a message to the
//! broker only once its batch's receipt says that it is on disk.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::metrics::{Health, Pace, Shared, printable};
use crate::mqtt::sparkplug::{self, Metric};
use crate::mqtt::{self, Dialer, Event, Link, Outgoing, Qos};
use crate::types::{Batch, Time};

mod reader;
mod rejects;
mod settings;
mod unacked;

use reader::Reader;
use rejects::Rejects;
pub use settings::{Config, Subscription};
use unacked::Unacked;

/// Messages and readings in one batch: enough to share the cost of a commit, little enough to keep
/// its latency low.
const BATCH_MESSAGES: usize = 1024;
const BATCH_READINGS: usize = 4096;
/// How long stopping waits for what was delivered to become durable.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How long stopping waits for the broker to have read the acks.
const ECHO_PATIENCE: Duration = Duration::from_secs(2);
/// How long stopping waits for the goodbye to be out.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(3);
/// How long to wait before asking again for a subscription that was refused.
const RESUBSCRIBE_AFTER: Duration = Duration::from_secs(30);
/// Bytes of a topic that the log shows.
const MAX_SHOWN_BYTES: usize = 120;
/// How often the board hears that messages come in.
const GOOD_EVERY: Duration = Duration::from_secs(1);

/// Runs the source until `shared.stop` is cancelled or the receiver of `batches` is gone. Broker
/// trouble never ends it.
pub async fn run(config: Config, shared: Shared, batches: mpsc::Sender<Batch>) {
    let mut dialer = Dialer::new(config.connection.urls.clone());
    let mut source = Source::new(config, shared, batches);
    while let Some(address) = dialer.address().cloned() {
        let ended = match mqtt::open(&source.config.connection, &address, None) {
            Ok(link) => source.serve(link, &address.to_string()).await,
            Err(e) => Ended::Lost { reason: format!("{e:#}"), lived: None },
        };
        source.connected(false);
        let Ended::Lost { reason, lived } = ended else { break };
        let wait = dialer.ended(lived, fastrand::f64());
        tracing::warn!(source = %source.config.name, broker = %address, %reason, "MQTT connection ended");
        source.board(Health::Down, &format!("{address}: {reason}"));
        source.stale();
        if !source.pause(wait).await {
            break;
        }
    }
    source.board(Health::Down, "stopped");
}

/// How a connection ended.
enum Ended {
    /// Stop was asked for, or nobody takes batches any more.
    Stopped,
    /// Try again; `lived` says for how long we were connected.
    Lost { reason: String, lived: Option<Duration> },
}

struct Source {
    config: Config,
    shared: Shared,
    batches: mpsc::Sender<Batch>,
    reader: Reader,
    rejects: Rejects,
    part: String,
    /// A batch the engine has had no room for yet. It outlives its connection.
    waiting: Option<Batch>,
    connected_at: Option<Instant>,
    /// What the broker made of our session: new or resumed.
    session: &'static str,
    resubscribe_at: Option<Instant>,
    last_good: Option<Instant>,
    repeat_at: Option<Instant>,
    /// Of log lines about births that are asked for.
    asks: Pace,
}

/// What there is to do next on a connection.
enum Step {
    Stop,
    Durable(Vec<mqtt::Ack>),
    NotKept,
    Sent(bool),
    Event(Event),
    Resubscribe,
    Repeat,
    Review,
}

impl Source {
    fn new(config: Config, shared: Shared, batches: mpsc::Sender<Batch>) -> Source {
        let reader = Reader::new(&config, &shared.metrics, shared.admitted.clone());
        let part = format!("source/{}", config.name);
        shared.board.set(&part, Health::Starting, "connecting");
        let rejects = Rejects::new(config.name.clone(), &part, &config.subscriptions);
        Source {
            config,
            shared,
            batches,
            reader,
            rejects,
            part,
            waiting: None,
            connected_at: None,
            session: "new",
            resubscribe_at: None,
            last_good: None,
            repeat_at: None,
            asks: Pace::default(),
        }
    }

    /// Waits before the next try, handing on what waits for room meanwhile; `false` when it is time to stop.
    async fn pause(&mut self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        loop {
            tokio::select! {
                () = self.shared.stop.cancelled() => return false,
                () = tokio::time::sleep_until(until) => return true,
                room = self.batches.reserve(), if self.waiting.is_some() => match (room, self.waiting.take()) {
                    (Ok(room), Some(batch)) => room.send(batch),
                    _ => return false,
                },
            }
        }
    }

    /// One connection, from opening to end.
    async fn serve(&mut self, mut link: Link, address: &str) -> Ended {
        self.connected_at = None;
        self.resubscribe_at = None;
        let mut unacked = Unacked::default();
        loop {
            match self.step(&mut link, &mut unacked).await {
                Step::Stop => return self.finish(link, unacked).await,
                Step::Durable(acks) => {
                    for ack in acks {
                        // Refused only where the link is over, which its last event tells.
                        let _ = link.client.ack(ack);
                    }
                }
                Step::NotKept => return self.lost("a batch was not kept, so the broker has to send it again"),
                Step::Sent(true) => {}
                Step::Sent(false) => return Ended::Stopped,
                Step::Repeat => self.repeat(&link),
                Step::Review => self.rejects.review(&self.shared.board),
                Step::Resubscribe => {
                    self.resubscribe_at = None;
                    self.subscribe(&link);
                }
                Step::Event(event) => {
                    if let Some(reason) = self.take(event, &mut link, &mut unacked, address) {
                        return self.lost(&reason);
                    }
                }
            }
        }
    }

    /// Waits for whatever comes first. While a batch waits for room no event is taken, so the link
    /// fills up and leaves the socket unread; acks go on all the while.
    async fn step(&mut self, link: &mut Link, unacked: &mut Unacked) -> Step {
        let resubscribe_at = self.resubscribe_at.unwrap_or_else(Instant::now);
        let repeat_at = self.repeat_at.unwrap_or_else(Instant::now);
        let review_at = self.rejects.review_at();
        let may_repeat = self.repeat_at.is_some() && self.waiting.is_none();
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => Step::Stop,
            durable = unacked.next() => durable.map_or(Step::NotKept, Step::Durable),
            // Before what comes in, which may always be ready.
            () = tokio::time::sleep_until(review_at.unwrap_or(repeat_at)), if review_at.is_some() => Step::Review,
            room = self.batches.reserve(), if self.waiting.is_some() => match (room, self.waiting.take()) {
                (Ok(room), Some(batch)) => {
                    room.send(batch);
                    Step::Sent(true)
                }
                _ => Step::Sent(false),
            },
            event = link.next(), if self.waiting.is_none() => Step::Event(event),
            () = tokio::time::sleep_until(resubscribe_at), if self.resubscribe_at.is_some() => Step::Resubscribe,
            () = tokio::time::sleep_until(repeat_at), if may_repeat => Step::Repeat,
        }
    }

    /// Acts on an event; the reason when the link is over.
    fn take(&mut self, event: Event, link: &mut Link, unacked: &mut Unacked, address: &str) -> Option<String> {
        match event {
            Event::Connected { session_present, .. } => {
                self.connected_at = Some(Instant::now());
                self.connected(true);
                self.session = if session_present { "resumed" } else { "new" };
                tracing::info!(source = %self.config.name, broker = address, session = self.session, "MQTT connected");
                self.subscribe(link);
                self.repeat_at = self.reader.tick().map(|tick| Instant::now() + tick);
            }
            Event::Subscribed(answers) => {
                self.subscribed(&answers, address);
                // Only now, so that the births it brings are heard.
                self.reader.back(Time::now());
                self.ask(link);
            }
            Event::Message(message) => return self.collect(message, link, unacked, address),
            Event::Disconnected(reason) => return Some(reason),
            // We publish nothing that is acked.
            Event::Delivered | Event::Echo => {}
        }
        None
    }

    /// Makes a batch of this message and of those that are already here.
    fn collect(
        &mut self,
        first: mqtt::Message,
        link: &mut Link,
        unacked: &mut Unacked,
        address: &str,
    ) -> Option<String> {
        let mut batch = self.reader.batch();
        let mut acks = Vec::new();
        let mut next = Some(first);
        let mut messages = 0;
        let mut other = None;
        while let Some(mut message) = next.take() {
            acks.extend(message.ack.take());
            self.reader.read(&message, &mut batch);
            messages += 1;
            if messages >= BATCH_MESSAGES || batch.readings.len() >= BATCH_READINGS {
                break;
            }
            match link.ready() {
                Some(Event::Message(message)) => next = Some(message),
                event => other = event,
            }
        }
        self.reader.count(&batch);
        self.rejects.count(messages as u64, &batch);
        self.ask(link);
        batch.receipt = unacked.add(acks);
        self.waiting = Some(batch);
        let now = Instant::now();
        if self.last_good.is_none_or(|at| now - at >= GOOD_EVERY) {
            self.last_good = Some(now);
            self.shared.board.good(&self.part);
        }
        other.and_then(|event| self.take(event, link, unacked, address))
    }

    /// Asks Sparkplug edge nodes for their births. What does not get out is asked for again later.
    fn ask(&mut self, link: &Link) {
        let topics = self.reader.asks();
        if let Some(newest) = topics.last()
            && let Some(count) = self.asks.due(topics.len() as u64, std::time::Instant::now())
        {
            let newest = printable(newest, MAX_SHOWN_BYTES);
            tracing::info!(source = %self.config.name, count, newest, "asking Sparkplug edge nodes for their births");
        }
        for topic in topics {
            let true_ = Metric {
                name: Some(sparkplug::REBIRTH),
                datatype: Some(sparkplug::datatype::BOOLEAN),
                value: sparkplug::Value::Boolean(true),
                ..Metric::default()
            };
            let timestamp = Some(sparkplug::ms(Time::now()));
            let payload = sparkplug::Payload { timestamp, metrics: vec![true_], ..Default::default() };
            let payload = sparkplug::encode(&payload);
            let _ = link.client.publish(&Outgoing { topic, payload, qos: Qos::AtMostOnce, retain: false });
        }
    }

    /// Tells again what holds though nobody speaks of it, and asks again for births that did not come.
    fn repeat(&mut self, link: &Link) {
        self.repeat_at = self.reader.tick().map(|tick| Instant::now() + tick);
        let batch = self.reader.repeat();
        self.ask(link);
        if let Some(batch) = batch {
            self.reader.count(&batch);
            self.waiting = Some(batch);
        }
    }

    /// The link is gone: what Sparkplug edge nodes said no longer holds.
    fn stale(&mut self) {
        let mut readings = Vec::new();
        self.reader.lost(Time::now(), &mut readings);
        if !readings.is_empty() {
            let mut batch = self.reader.batch();
            batch.readings = readings;
            self.reader.count(&batch);
            match &mut self.waiting {
                // It keeps its receipt, which by now belongs to a connection that is over.
                Some(waiting) => waiting.readings.extend(batch.readings),
                None => self.waiting = Some(batch),
            }
        }
    }

    fn subscribe(&mut self, link: &Link) {
        // Also when the session is resumed: the config may have changed since.
        let filters: Vec<mqtt::Filter> = self.config.subscriptions.iter().map(Subscription::filter).collect();
        if let Err(e) = link.client.subscribe(&filters) {
            self.board(Health::Down, &format!("cannot subscribe: {e}"));
            self.resubscribe_at = Some(Instant::now() + RESUBSCRIBE_AFTER);
        }
    }

    fn subscribed(&mut self, answers: &[Option<String>], address: &str) {
        let refused: Vec<String> = (self.config.subscriptions.iter().zip(answers))
            .filter_map(|(s, answer)| Some(format!("{}: {}", s.filter().topic, answer.as_ref()?)))
            .collect();
        if refused.is_empty() {
            self.board(Health::Up, &format!("connected to {address}, session {}", self.session));
            return;
        }
        let all = refused.len() == self.config.subscriptions.len();
        let detail = format!("{address} refused to subscribe {}", refused.join(", "));
        tracing::warn!(source = %self.config.name, "{detail}");
        self.board(if all { Health::Down } else { Health::Degraded }, &detail);
        self.resubscribe_at = Some(Instant::now() + RESUBSCRIBE_AFTER);
    }

    /// Stops reading, lets what was delivered become durable, acks it and says goodbye. What is
    /// still unacked then comes again next time.
    async fn finish(&mut self, mut link: Link, mut unacked: Unacked) -> Ended {
        if self.connected_at.is_none() {
            return Ended::Stopped;
        }
        let drained = timeout(STOP_PATIENCE, async {
            while self.waiting.is_some() || !unacked.is_empty() {
                tokio::select! {
                    durable = unacked.next() => match durable {
                        Some(acks) => acks.into_iter().for_each(|ack| {
                            let _ = link.client.ack(ack);
                        }),
                        None => break,
                    },
                    room = self.batches.reserve(), if self.waiting.is_some() => match (room, self.waiting.take()) {
                        (Ok(room), Some(batch)) => room.send(batch),
                        _ => break,
                    },
                    // Left unacked. The link has to be emptied, or acks would not get out.
                    event = link.next() => if matches!(event, Event::Disconnected(_)) { break },
                }
            }
        });
        if drained.await.is_err() {
            tracing::warn!(source = %self.config.name, "stopped before all messages were durable; they will come again");
        }
        link.client.lift_limit();
        if link.client.echo().is_ok() {
            let heard = async { while !matches!(link.next().await, Event::Echo | Event::Disconnected(_)) {} };
            if timeout(ECHO_PATIENCE, heard).await.is_err() {
                tracing::warn!(source = %self.config.name, "the broker may not have read all acks; some messages may come again");
            }
        }
        link.client.disconnect();
        let goodbye = async { while !matches!(link.next().await, Event::Disconnected(_)) {} };
        // Too late is as good as a closed socket: the session stays either way.
        let _ = timeout(GOODBYE_PATIENCE, goodbye).await;
        Ended::Stopped
    }

    fn lost(&self, reason: &str) -> Ended {
        Ended::Lost { reason: reason.to_owned(), lived: self.connected_at.map(|at| at.elapsed()) }
    }

    fn connected(&self, now: bool) {
        let label = [("source", self.config.name.to_string())];
        self.shared.metrics.source_connected.get_or_create(&label).set(i64::from(now));
        if now {
            self.shared.metrics.source_connects.get_or_create(&label).inc();
        }
    }

    fn board(&self, health: Health, detail: &str) {
        self.shared.board.set(&self.part, health, detail);
    }
}
