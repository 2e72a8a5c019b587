//! What a source knows of Sparkplug B edge nodes: their births, which messages are missing, and what
//! has to be told anew. Kept in memory only: after a restart the births are asked for again. Pure.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::backoff::Backoff;
use crate::mqtt::sparkplug::{self as wire, BD_SEQ, Metric, Number, Payload, REBIRTH, Topic, Value, Verb};
use crate::source::topic::is_name;
use crate::types::{Cause, Name, Quality, Reading, Time};

/// Edge nodes that one subscription follows. More would be a storm of topics, not a plant.
const MAX_NODES: usize = 1_000;
/// Devices of one edge node.
const MAX_DEVICES: usize = 1_000;
/// Metrics of all nodes of a subscription together; at some 150 bytes each this bounds the memory.
const MAX_METRICS: usize = 250_000;
/// Values of one machine that are repeated in each `hold`; the engine follows fewer signals of a machine.
pub const MAX_REPEATS_PER_MACHINE: usize = 1_024;
/// Values of a subscription that are repeated in each `hold`.
pub const MAX_REPEATS: usize = 50_000;
/// Between two requests for the same births.
const ASK_FIRST: Duration = Duration::from_secs(2);
const ASK_LONGEST: Duration = Duration::from_secs(300);

/// How topics become names of machines.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Naming {
    /// `spBv1.0/GROUP/+/{machine...}`: `NODE` and `NODE/DEVICE`.
    Device,
    /// `spBv1.0/GROUP/+/{machine}/#`: `NODE`; what its devices measure is `DEVICE/METRIC`.
    Node,
    /// `spBv1.0/{machine...}`: `GROUP/NODE` and `GROUP/NODE/DEVICE`.
    Group,
}

impl Naming {
    /// The machine's name.
    pub fn machine(self, topic: &Topic<'_>) -> String {
        let Topic { group, node, device, .. } = topic;
        match (self, device) {
            (Naming::Device, Some(device)) => format!("{node}/{device}"),
            (Naming::Device | Naming::Node, _) => (*node).to_owned(),
            (Naming::Group, Some(device)) => format!("{group}/{node}/{device}"),
            (Naming::Group, None) => format!("{group}/{node}"),
        }
    }

    /// What stands before the names of a device's metrics.
    fn prefix(self, device: Option<&str>) -> String {
        device.filter(|_| self == Naming::Node).map_or(String::new(), |d| format!("{d}/"))
    }
}

/// What of it a subscription can choose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// See there.
    pub naming: Naming,
    /// Whether births may be asked for.
    pub rebirth: bool,
    /// How often an unchanged value is told again while its node lives; `None`: never.
    pub hold: Option<Duration>,
}

/// What came of a message.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// What is wrong with it, for a person.
    pub complaint: Option<String>,
    /// The topic to which a request for births should go.
    pub ask: Option<String>,
}

/// All edge nodes of one subscription.
pub struct Host {
    settings: Settings,
    nodes: HashMap<String, Node>,
    /// Metrics of all of them.
    metrics: usize,
    /// Rounds of repeats so far: each begins with another node, so that a limit is nobody's fate.
    rounds: usize,
}

/// Values that hold and were not repeated in one round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Of machines that the engine does not follow.
    pub machine: u64,
    /// Beyond [`MAX_REPEATS_PER_MACHINE`].
    pub machine_limit: u64,
    /// Beyond [`MAX_REPEATS`].
    pub limit: u64,
}

struct Node {
    alive: bool,
    bd_seq: Option<u64>,
    /// The sequence number that is due; `None` when any will do.
    due: Option<u8>,
    /// What its clock is ahead of ours, ns, by its newest message.
    ahead: i64,
    /// The node itself is the device without a name.
    devices: HashMap<String, Device>,
    /// Births were asked for and have not come.
    asked: bool,
    /// When births may be asked for again.
    ask_again: Time,
    patience: Backoff,
}

/// A device, or the node itself.
struct Device {
    machine: Name,
    alive: bool,
    /// Whether nothing is missing since its birth, so that aliases and datatypes mean what they meant.
    trusted: bool,
    metrics: Vec<Known>,
    names: HashMap<String, usize>,
    aliases: HashMap<u64, usize>,
}

/// A metric that a birth told of.
struct Known {
    signal: Name,
    datatype: Option<u32>,
    /// The newest value that was told, to be told again: when by the node's clock, and what.
    last: Option<(Time, f64, Quality)>,
}

impl Node {
    fn new() -> Node {
        Node {
            alive: false,
            bd_seq: None,
            due: None,
            ahead: 0,
            devices: HashMap::new(),
            asked: false,
            ask_again: Time(i64::MIN),
            patience: Backoff::new(ASK_FIRST, ASK_LONGEST),
        }
    }

    fn distrust(&mut self) {
        self.devices.values_mut().for_each(|d| d.trusted = false);
    }

    fn metrics(&self) -> usize {
        self.devices.values().map(|d| d.metrics.len()).sum()
    }
}

/// One message on its way in.
struct Incoming<'m> {
    topic: Topic<'m>,
    machine: &'m Name,
    payload: Payload<'m>,
    arrived: Time,
}

impl Host {
    /// Knows nobody yet.
    pub fn new(settings: Settings) -> Host {
        Host { settings, nodes: HashMap::new(), metrics: 0, rounds: 0 }
    }

    /// Takes a message in: readings are added to `out`. `machine` is the name that the settings'
    /// naming gives to the topic.
    pub fn take(
        &mut self,
        topic: &str,
        machine: &Name,
        payload: &[u8],
        arrived: Time,
        out: &mut Vec<Reading>,
    ) -> Outcome {
        // Host applications' STATE, and what others command.
        let Some(topic) = Topic::parse(topic).filter(|t| !matches!(t.verb, Verb::NCmd | Verb::DCmd)) else {
            return Outcome::default();
        };
        let payload = match wire::decode(payload) {
            Ok(payload) => payload,
            Err(e) => return Outcome { complaint: Some(e.to_string()), ask: None },
        };
        if payload.uuid == Some("SPBV1.0_COMPRESSED") {
            let complaint = "compressed Sparkplug payloads are not read; switch compression off at the edge node";
            return Outcome { complaint: Some(complaint.into()), ask: None };
        }
        let id = format!("{}/{}", topic.group, topic.node);
        if !self.nodes.contains_key(&id) {
            if self.nodes.len() >= MAX_NODES {
                let complaint = format!("more than {MAX_NODES} Sparkplug edge nodes: this one is not followed");
                return Outcome { complaint: Some(complaint), ask: None };
            }
            self.nodes.insert(id.clone(), Node::new());
        }
        let room = MAX_METRICS - self.metrics.min(MAX_METRICS);
        let Some(node) = self.nodes.get_mut(&id) else { return Outcome::default() };
        let before = node.metrics();
        let incoming = Incoming { topic, machine, payload, arrived };
        let mut told = Told { naming: self.settings.naming, room: room + before, complaint: None, ask: false, out };
        node.take(&incoming, &mut told);
        let Told { complaint, ask, .. } = told;
        self.metrics = self.metrics - before + node.metrics();
        let may = ask && self.settings.rebirth && arrived >= node.ask_again;
        let ask = may.then(|| node.ask(topic.group, topic.node, arrived));
        Outcome { complaint, ask }
    }

    /// The connection to the broker is gone, and with it whatever is said meanwhile: what was known is
    /// stale (tck-id-message-flow-phid-sparkplug-clean-session and what follows from it).
    pub fn lost(&mut self, now: Time, out: &mut Vec<Reading>) {
        for node in self.nodes.values_mut().filter(|n| n.alive) {
            node.stale(now, out);
            node.due = None;
            node.distrust();
        }
    }

    /// The topics to which requests for births should go now that the broker is back.
    pub fn back(&mut self, now: Time) -> Vec<String> {
        if !self.settings.rebirth {
            return Vec::new();
        }
        self.ask_those(now, |n| n.alive)
    }

    /// The topics to which requests for births should go once more: requests and births are told once
    /// (QoS 0), and a node that has nothing to say would else be waited for without end.
    pub fn overdue(&mut self, now: Time) -> Vec<String> {
        self.ask_those(now, |n| n.alive && n.asked && now >= n.ask_again)
    }

    fn ask_those(&mut self, now: Time, which: impl Fn(&Node) -> bool) -> Vec<String> {
        let nodes = self.nodes.iter_mut().filter(|(_, n)| which(n));
        let topics = nodes.filter_map(|(id, n)| {
            let (group, node) = id.split_once('/')?;
            Some(n.ask(group, node, now))
        });
        topics.collect()
    }

    /// Edge nodes speak only of what changes. What they have not spoken of is still so as long as they
    /// live, and is told again here, by their own clocks and a little late, so that no change that is on
    /// its way is overtaken. Only of the machines that the engine follows, where that is known.
    pub fn repeat(&mut self, now: Time, admitted: Option<&HashSet<Name>>, out: &mut Vec<Reading>) -> Skipped {
        let mut skipped = Skipped::default();
        let Some(hold) = self.settings.hold else { return skipped };
        let begin = self.rounds.checked_rem(self.nodes.len()).unwrap_or(0);
        self.rounds = self.rounds.wrapping_add(1);
        let most = out.len() + MAX_REPEATS;
        let mut nodes: Vec<&mut Node> = self.nodes.values_mut().collect();
        nodes.rotate_left(begin);
        for node in nodes.into_iter().filter(|n| n.alive) {
            let at = Time(now.0.saturating_add(node.ahead)).minus(hold);
            for device in node.devices.values_mut().filter(|d| d.alive && d.trusted) {
                if admitted.is_some_and(|a| !a.contains(&device.machine)) {
                    skipped.machine += device.metrics.len() as u64;
                    continue;
                }
                device.repeat(at, hold, most, &mut skipped, out);
            }
        }
        skipped
    }

    /// How often [`Host::repeat`] and [`Host::overdue`] want to be called.
    pub fn tick(&self) -> Duration {
        self.settings.hold.unwrap_or(ASK_FIRST)
    }
}

/// What a message leads to.
struct Told<'o> {
    naming: Naming,
    /// Metrics that the node may have.
    room: usize,
    complaint: Option<String>,
    ask: bool,
    out: &'o mut Vec<Reading>,
}

impl Told<'_> {
    fn complain(&mut self, what: impl FnOnce() -> String) {
        self.complaint.get_or_insert_with(what);
    }
}

impl Node {
    fn ask(&mut self, group: &str, node: &str, now: Time) -> String {
        self.asked = true;
        self.ask_again = now.plus(self.patience.after_failure(1.0));
        Topic::write(group, Verb::NCmd, node, None)
    }

    fn take(&mut self, m: &Incoming<'_>, told: &mut Told<'_>) {
        if m.topic.verb != Verb::NDeath
            && let Some(at) = m.payload.timestamp.and_then(wire::time)
        {
            self.ahead = at.0.saturating_sub(m.arrived.0);
        }
        match m.topic.verb {
            Verb::NBirth => self.node_birth(m, told),
            Verb::NDeath => self.node_death(m, told),
            Verb::DBirth => {
                self.in_order(m, told);
                self.birth(m, told);
            }
            Verb::NData | Verb::DData => {
                self.in_order(m, told);
                self.data(m, told);
            }
            Verb::DDeath => {
                self.in_order(m, told);
                let device = m.topic.device.unwrap_or_default();
                if let Some(device) = self.devices.get_mut(device) {
                    device.stale(m.arrived, told.out);
                    device.alive = false;
                }
            }
            Verb::NCmd | Verb::DCmd => {}
        }
    }

    fn node_birth(&mut self, m: &Incoming<'_>, told: &mut Told<'_>) {
        let seq = m.payload.seq.and_then(|n| u8::try_from(n).ok());
        if seq.is_none() {
            told.complain(|| "a birth without a sequence number from 0 to 255".into());
        }
        // All that was known of it, its devices included, begins anew.
        self.devices.clear();
        self.alive = true;
        self.due = seq.map(|n| n.wrapping_add(1));
        self.bd_seq = bd_seq(&m.payload);
        self.patience.reset();
        (self.asked, self.ask_again) = (false, Time(i64::MIN));
        self.birth(m, told);
    }

    /// A death counts only if it belongs to the birth: a last will may come after its successor's birth.
    fn node_death(&mut self, m: &Incoming<'_>, told: &mut Told<'_>) {
        let of = bd_seq(&m.payload);
        if self.bd_seq.is_some() && of.is_some() && of != self.bd_seq {
            return;
        }
        self.stale(m.arrived, told.out);
        self.alive = false;
        self.due = None;
        self.devices.values_mut().for_each(|d| (d.alive, d.trusted) = (false, false));
    }

    fn stale(&mut self, now: Time, out: &mut Vec<Reading>) {
        self.devices.values_mut().for_each(|d| d.stale(now, out));
    }

    /// Holds the sequence number against the one that is due. After a gap a birth may be among what is
    /// missing, so nothing that earlier births said is believed.
    fn in_order(&mut self, m: &Incoming<'_>, told: &mut Told<'_>) {
        let seq = m.payload.seq.and_then(|n| u8::try_from(n).ok());
        if let (Some(due), Some(seq)) = (self.due, seq)
            && due != seq
        {
            told.complain(|| {
                format!("messages of this edge node are missing: sequence number {due} was due and {seq} came")
            });
            told.ask = true;
            self.distrust();
        }
        if self.due.is_some() {
            self.due = seq.map(|n| n.wrapping_add(1));
        }
        if !self.alive {
            // Its birth was not heard; that it speaks shows that it lives.
            self.alive = true;
            told.ask = true;
        }
    }

    fn birth(&mut self, m: &Incoming<'_>, told: &mut Told<'_>) {
        let id = m.topic.device.unwrap_or_default();
        if !self.devices.contains_key(id) && self.devices.len() >= MAX_DEVICES {
            told.complain(|| format!("more than {MAX_DEVICES} devices of one edge node"));
            return;
        }
        self.devices.remove(id);
        let mut device = Device::new(m.machine.clone());
        let room = told.room.saturating_sub(self.metrics());
        let prefix = told.naming.prefix(m.topic.device);
        let at = m.payload.timestamp.and_then(wire::time).unwrap_or(m.arrived);
        each(&m.payload.metrics, "", &mut |path, metric| {
            if path.is_empty() || is_own(path) {
                return;
            }
            let Some(place) = device.learn(path, &prefix, metric, room, told) else { return };
            // A birth tells how things are when it is sent, however long they have been so.
            device.tell(place, metric, metric.datatype, at, told);
        });
        self.devices.insert(id.to_owned(), device);
    }

    fn data(&mut self, m: &Incoming<'_>, told: &mut Told<'_>) {
        let id = m.topic.device.unwrap_or_default();
        let sent = m.payload.timestamp.and_then(wire::time).unwrap_or(m.arrived);
        let (room, prefix) = (told.room.saturating_sub(self.metrics()), told.naming.prefix(m.topic.device));
        if !self.devices.contains_key(id) {
            if self.devices.len() >= MAX_DEVICES {
                told.complain(|| format!("more than {MAX_DEVICES} devices of one edge node"));
                return;
            }
            self.devices.insert(id.to_owned(), Device { trusted: false, ..Device::new(m.machine.clone()) });
        }
        let Some(device) = self.devices.get_mut(id) else { return };
        if !device.alive {
            (device.alive, device.trusted) = (true, false);
        }
        // Metrics that name themselves can be used without a birth.
        told.ask |= !device.trusted;
        let mut unknown = None;
        each(&m.payload.metrics, "", &mut |path, metric| {
            if is_own(path) {
                return;
            }
            let place = match metric.alias {
                Some(alias) if path.is_empty() => device.aliases.get(&alias).copied().filter(|_| device.trusted),
                _ if path.is_empty() => None,
                _ if device.trusted => device.names.get(path).copied(),
                _ => match device.learn(path, &prefix, metric, room + device.metrics.len(), told) {
                    Some(place) => Some(place),
                    None => return,
                },
            };
            let Some(place) = place else {
                unknown.get_or_insert_with(|| match metric.alias {
                    Some(alias) if path.is_empty() => format!("no birth that still holds tells what alias {alias} is"),
                    _ => format!("the birth did not tell of a metric {:?}", shorten(path)),
                });
                return;
            };
            let datatype = metric.datatype.or(device.metrics[place].datatype.filter(|_| device.trusted));
            let at = metric.timestamp.and_then(wire::time).unwrap_or(sent);
            device.tell(place, metric, datatype, at, told);
        });
        if let Some(unknown) = unknown {
            told.ask = true;
            told.complain(|| unknown);
        }
    }
}

impl Device {
    fn new(machine: Name) -> Device {
        let (metrics, names, aliases) = Default::default();
        Device { machine, alive: true, trusted: true, metrics, names, aliases }
    }

    /// The place of a metric that names itself; `None`, and told, where it cannot have one.
    fn learn(
        &mut self,
        path: &str,
        prefix: &str,
        metric: &Metric<'_>,
        room: usize,
        told: &mut Told<'_>,
    ) -> Option<usize> {
        let place = match self.names.get(path) {
            Some(place) => *place,
            None => {
                let signal = format!("{prefix}{path}");
                if !is_name(&signal) {
                    told.complain(|| format!("{:?} cannot be the name of a signal", shorten(&signal)));
                    return None;
                }
                if self.metrics.len() >= room {
                    told.complain(|| format!("more than {MAX_METRICS} metrics in all births"));
                    return None;
                }
                self.metrics.push(Known { signal: signal.into(), datatype: None, last: None });
                self.names.insert(path.to_owned(), self.metrics.len() - 1);
                self.metrics.len() - 1
            }
        };
        self.metrics[place].datatype = metric.datatype;
        if let Some(alias) = metric.alias {
            self.aliases.insert(alias, place);
        }
        Some(place)
    }

    /// One value as a reading.
    fn tell(&mut self, place: usize, metric: &Metric<'_>, datatype: Option<u32>, at: Time, told: &mut Told<'_>) {
        let known = &mut self.metrics[place];
        let number = if metric.is_null { Number::Is(0.0) } else { metric.value.number(datatype) };
        let value = match number {
            Number::Is(value) => value,
            Number::IsNone => return,
            Number::NeedsType => {
                told.ask = true;
                told.complain(|| format!("no birth that still holds tells the datatype of {:?}", &*known.signal));
                return;
            }
            Number::Wrong => {
                told.complain(|| format!("{:?} is not of its datatype {datatype:?}", &*known.signal));
                return;
            }
        };
        let (quality, cause) = quality(metric, value);
        if !metric.is_historical && known.last.is_none_or(|(since, ..)| at >= since) {
            known.last = Some((at, value, quality));
        }
        let (machine, signal) = (self.machine.clone(), known.signal.clone());
        told.out.push(Reading { quality, cause, ..Reading::good(machine, signal, at, value) });
    }

    /// Its values that hold, as they are at `at`; `out` grows to `most`.
    fn repeat(&mut self, at: Time, hold: Duration, most: usize, skipped: &mut Skipped, out: &mut Vec<Reading>) {
        let mut repeated = 0;
        for known in &mut self.metrics {
            let Some((since, value, quality)) = known.last.as_mut() else { continue };
            if at <= since.plus(hold / 2) {
                continue;
            }
            if repeated == MAX_REPEATS_PER_MACHINE {
                skipped.machine_limit += 1;
                continue;
            }
            if out.len() >= most {
                skipped.limit += 1;
                continue;
            }
            repeated += 1;
            *since = at;
            let (machine, signal) = (self.machine.clone(), known.signal.clone());
            let cause = if *quality == Quality::Good { Cause::None } else { Cause::Source };
            out.push(Reading { quality: *quality, cause, ..Reading::good(machine, signal, at, *value) });
        }
    }

    /// None of its values holds any more.
    fn stale(&mut self, now: Time, out: &mut Vec<Reading>) {
        for known in &mut self.metrics {
            if known.last.take().is_some() {
                let (machine, signal) = (self.machine.clone(), known.signal.clone());
                out.push(Reading::bad(machine, signal, now, Cause::Disconnected));
            }
        }
    }
}

/// Goes through metrics and the members of templates, with their names joined by `/`.
fn each<'p>(metrics: &[Metric<'p>], above: &str, take: &mut impl FnMut(&str, &Metric<'p>)) {
    for metric in metrics {
        let name = metric.name.unwrap_or_default();
        match &metric.value {
            Value::Template(members) if above.is_empty() => each(members, name, take),
            Value::Template(members) => each(members, &format!("{above}/{name}"), take),
            _ if above.is_empty() => take(name, metric),
            _ => take(&format!("{above}/{name}"), metric),
        }
    }
}

/// Metrics of Sparkplug itself: they are not measured.
fn is_own(name: &str) -> bool {
    name == BD_SEQ || name == REBIRTH || name.starts_with("Node Control/") || name.starts_with("Device Control/")
}

fn bd_seq(payload: &Payload<'_>) -> Option<u64> {
    let metric = payload.metrics.iter().find(|m| m.name == Some(BD_SEQ))?;
    match metric.value {
        Value::Int(n) => Some(u64::from(n)),
        Value::Long(n) => Some(n),
        _ => None,
    }
}

/// 192 is good, 500 stale, 0 bad; some clients send OPC's finer ones.
fn quality(metric: &Metric<'_>, value: f64) -> (Quality, Cause) {
    if metric.is_null {
        return (Quality::Bad, Cause::Source);
    }
    if !value.is_finite() {
        return (Quality::Bad, Cause::NotFinite);
    }
    match metric.quality {
        None | Some(192..=255) => (Quality::Good, Cause::None),
        Some(64..=127) => (Quality::Uncertain, Cause::Source),
        Some(500) => (Quality::Bad, Cause::Disconnected),
        Some(_) => (Quality::Bad, Cause::Source),
    }
}

fn shorten(text: &str) -> &str {
    text.char_indices().nth(60).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests;
