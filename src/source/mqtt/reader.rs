//! From messages to readings and rejects: finds the subscription a topic belongs to, decodes the
//! payload and names what was in it.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

use super::Config;
use crate::metrics::{Admitted, Metrics};
use crate::mqtt::{MAX_PAYLOAD, Message, sparkplug};
use crate::source::mqtt::settings::Subscription;
use crate::source::payload::Found;
use crate::source::sparkplug::{Host, Settings};
use crate::source::topic::{Place, Topics, is_name};
use crate::types::{Batch, Cause, Clock, Name, Origin, Quality, Reading, Reject, Time};

/// Reads messages; keeps what repeats.
pub struct Reader {
    source: Name,
    subscriptions: Vec<Subscription>,
    topics: Topics,
    found: Found,
    /// What is known of the edge nodes of each subscription to Sparkplug B.
    hosts: Vec<Option<Host>>,
    /// Topics to which requests for births should go.
    asks: Vec<String>,
    /// The arrival time given last.
    stamped: Time,
    good: Counter,
    uncertain: Counter,
    bad: Counter,
    rejects: Counter,
    /// Values that hold and are not repeated, by reason.
    skipped: [Counter; 3],
    /// The machines that the engine follows.
    admitted: Admitted,
}

impl Reader {
    pub fn new(config: &Config, metrics: &Arc<Metrics>, admitted: Admitted) -> Reader {
        let source = config.name.to_string();
        let readings = |quality: Quality| {
            let labels = [("source", source.clone()), ("quality", quality.as_str().to_owned())];
            metrics.readings.get_or_create_owned(&labels)
        };
        Reader {
            source: config.name.clone(),
            subscriptions: config.subscriptions.clone(),
            topics: Topics::default(),
            found: Found::default(),
            hosts: config.subscriptions.iter().map(|s| s.sparkplug.clone().map(Host::new)).collect(),
            asks: Vec::new(),
            stamped: Time(i64::MIN),
            good: readings(Quality::Good),
            uncertain: readings(Quality::Uncertain),
            bad: readings(Quality::Bad),
            skipped: ["machine", "machine_limit", "limit"].map(|reason| {
                let labels = [("source", source.clone()), ("reason", reason.to_owned())];
                metrics.repeats_skipped.get_or_create_owned(&labels)
            }),
            admitted,
            rejects: metrics.rejects.get_or_create_owned(&[("source", source.clone())]),
        }
    }

    /// An empty batch that arrives now.
    pub fn batch(&self) -> Batch {
        Batch {
            source: self.source.clone(),
            arrived: Time::now(),
            readings: Vec::new(),
            rejects: Vec::new(),
            again: false,
            receipt: None,
        }
    }

    /// Adds what is in the message to the batch.
    pub fn read(&mut self, message: &Message, batch: &mut Batch) {
        batch.again |= message.again;
        if let Err(reason) = self.try_read(message, batch) {
            batch.rejects.push(self.reject(message, batch.arrived, reason));
        }
    }

    /// Counts what the batch holds.
    pub fn count(&self, batch: &Batch) {
        let of = |q: Quality| batch.readings.iter().filter(|r| r.quality == q).count() as u64;
        let (uncertain, bad) = (of(Quality::Uncertain), of(Quality::Bad));
        self.good.inc_by(batch.readings.len() as u64 - uncertain - bad);
        self.uncertain.inc_by(uncertain);
        self.bad.inc_by(bad);
        self.rejects.inc_by(batch.rejects.len() as u64);
    }

    fn try_read(&mut self, message: &Message, batch: &mut Batch) -> Result<(), String> {
        let (subscriptions, source) = (&self.subscriptions, &*self.source);
        let place =
            self.topics.place(message.topic(), |topics| find(source, subscriptions, topics, message.topic()))?;
        if message.full_size > MAX_PAYLOAD {
            return Err(format!("its {} bytes are more than {MAX_PAYLOAD}", message.full_size));
        }
        if let Some(host) = &mut self.hosts[place.subscription] {
            let now = stamp(&mut self.stamped, batch.arrived);
            let before = batch.readings.len();
            let outcome = host.take(message.topic(), &place.machine, &message.payload, now, &mut batch.readings);
            let clock = subscriptions[place.subscription].clock;
            batch.readings[before..].iter_mut().for_each(|r| timed(r, clock, now));
            self.asks.extend(outcome.ask);
            return outcome.complaint.map_or(Ok(()), Err);
        }
        subscriptions[place.subscription].payload.decode(&message.payload, &mut self.found)?;
        let mut complaint = self.found.complaint().map(str::to_owned);
        let now = stamp(&mut self.stamped, batch.arrived);
        for (name, value, at) in self.found.values() {
            match signal(&mut self.topics, &place, name) {
                Some(signal) => {
                    let mut reading = reading(&place, signal, value, at, message, now);
                    let clock = subscriptions[place.subscription].clock;
                    timed(&mut reading, if at.is_some() { clock } else { Clock::Arrival }, now);
                    batch.readings.push(reading);
                }
                None if name.is_empty() => {
                    complaint = complaint.or(Some("neither topic nor payload names the signal".into()))
                }
                None => complaint = complaint.or_else(|| Some(format!("{name:?} cannot be the name of a signal"))),
            }
        }
        complaint.map_or(Ok(()), Err)
    }

    /// The topics to which requests for Sparkplug births should go now.
    pub fn asks(&mut self) -> Vec<String> {
        std::mem::take(&mut self.asks)
    }

    /// The connection is gone: what that makes stale.
    pub fn lost(&mut self, now: Time, readings: &mut Vec<Reading>) {
        self.hosts.iter_mut().flatten().for_each(|h| h.lost(now, readings));
        readings.iter_mut().for_each(|r| timed(r, Clock::Arrival, now));
    }

    /// The connection is back.
    pub fn back(&mut self, now: Time) {
        self.asks.extend(self.hosts.iter_mut().flatten().flat_map(|h| h.back(now)));
    }

    /// What has not changed and still holds, as a batch; `None` when there is nothing. Births that were
    /// asked for in vain are asked for again.
    pub fn repeat(&mut self) -> Option<Batch> {
        let mut batch = self.batch();
        self.asks.extend(self.hosts.iter_mut().flatten().flat_map(|h| h.overdue(batch.arrived)));
        let admitted = self.admitted.get();
        for host in self.hosts.iter_mut().flatten() {
            let skipped = host.repeat(batch.arrived, admitted.as_deref(), &mut batch.readings);
            let counts = [skipped.machine, skipped.machine_limit, skipped.limit];
            for (counter, count) in self.skipped.iter().zip(counts) {
                counter.inc_by(count);
            }
        }
        (!batch.readings.is_empty()).then_some(batch)
    }

    /// How often [`Reader::repeat`] wants to be called; `None`: never.
    pub fn tick(&self) -> Option<Duration> {
        self.hosts.iter().flatten().map(Host::tick).min()
    }

    fn reject(&self, message: &Message, at: Time, reason: String) -> Reject {
        let keep = message.payload.len().min(Reject::KEEP_BYTES);
        Reject {
            at,
            source: self.source.clone(),
            origin: message.topic().to_owned(),
            reason,
            payload: message.payload[..keep].to_vec(),
        }
    }
}

/// The arrival time of one message. Two messages of a batch never share it: readings of one
/// signal with the same time count as repeats. A clock that was set back is followed.
fn stamp(stamped: &mut Time, arrived: Time) -> Time {
    let next = Time(stamped.0.saturating_add(1));
    *stamped = if next.since(arrived) < Duration::from_secs(1) { next.max(arrived) } else { arrived };
    *stamped
}

/// The first subscription that matches, and the names it gives.
fn find(source: &str, subscriptions: &[Subscription], topics: &mut Topics, topic: &str) -> Result<Place, String> {
    for (index, subscription) in subscriptions.iter().enumerate() {
        let Some(named) = subscription.pattern.matches(topic) else { continue };
        if let Some(settings) = &subscription.sparkplug {
            return sparkplug_place(index, settings, topics, topic);
        }
        let machine = match (named.machine, &subscription.machine) {
            (Some(machine), _) if is_name(machine) => topics.name(machine),
            (Some(machine), _) => return Err(format!("the topic's {machine:?} cannot be the name of a machine")),
            (None, Some(machine)) => machine.clone(),
            (None, None) => return Err("the topic names no machine".into()),
        };
        let signal = match (named.signal, &subscription.signal) {
            (Some(signal), _) if is_name(signal) => Some(topics.name(signal)),
            (Some(signal), _) => return Err(format!("the topic's {signal:?} cannot be the name of a signal")),
            (None, signal) => signal.clone(),
        };
        return Ok(Place { subscription: index, machine, signal, origin: Origin::new(source, topic) });
    }
    Err("no subscription's topic matches it".into())
}

/// What is no message of an edge node gets a place too, and is passed over there.
fn sparkplug_place(index: usize, settings: &Settings, topics: &mut Topics, topic: &str) -> Result<Place, String> {
    let machine = sparkplug::Topic::parse(topic).map_or_else(|| topic.to_owned(), |t| settings.naming.machine(&t));
    if !is_name(&machine) {
        return Err(format!("the topic's {machine:?} cannot be the name of a machine"));
    }
    Ok(Place { subscription: index, machine: topics.name(&machine), signal: None, origin: Origin::default() })
}

/// The signal's name: the topic's, the payload's, or both joined by a dot.
fn signal(topics: &mut Topics, place: &Place, name: &str) -> Option<Name> {
    match &place.signal {
        Some(signal) if name.is_empty() => Some(signal.clone()),
        Some(signal) if is_name(name) => Some(topics.name(&format!("{signal}.{name}"))),
        None if is_name(name) => Some(topics.name(name)),
        _ => None,
    }
}

/// Gives a reading the clock that its time is of. What andon says itself of a link has the gateway's.
fn timed(reading: &mut Reading, clock: Clock, now: Time) {
    reading.clock = if reading.cause == Cause::Disconnected { Clock::Arrival } else { clock };
    if clock == Clock::Arrival {
        reading.at = now;
    }
}

fn reading(place: &Place, signal: Name, value: Option<f64>, at: Option<Time>, message: &Message, now: Time) -> Reading {
    let machine = place.machine.clone();
    let Some(value) = value else {
        let bad = Reading::bad(machine, signal, at.unwrap_or(now), Cause::Source);
        return Reading { origin: place.origin, ..bad };
    };
    let mut reading = Reading { origin: place.origin, ..Reading::good(machine, signal, at.unwrap_or(now), value) };
    if message.retained && at.is_none() {
        // What the broker had kept is of unknown age.
        reading.quality = Quality::Uncertain;
        reading.cause = Cause::Held;
    }
    reading
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_messages_arrive_at_the_same_time() {
        let config = Config {
            name: "shop".into(),
            connection: crate::mqtt::Connection::new(Vec::new(), "x"),
            subscriptions: Vec::new(),
        };
        let mut last = Reader::new(&config, &Metrics::new(), Admitted::default()).stamped;
        let at: Vec<i64> = [100, 100, 50, 5_000_000_000, 4_999_999_999].map(|t| stamp(&mut last, Time(t)).0).to_vec();
        assert_eq!(at, [100, 101, 102, 5_000_000_000, 5_000_000_001]);
        assert_eq!(stamp(&mut last, Time(100)), Time(100), "a clock set back is followed");
    }
}
