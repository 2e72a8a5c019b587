//! `[[write]]`: a stack light on a device, driven by how the machines stand. The only thing that is
//! ever written to equipment, off unless asked for; each write is read back and told for the record.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::warn;
use wildmatch::WildMatch;

use super::config::Config as Device;
use super::connection::{Connection, Failure};
use super::frame::Write;
use super::line::Lines;
use super::registers::{Address, Table};
use crate::backoff::Backoff;
use crate::metrics::{Health, Shared};
use crate::settings::{Section, hint};
use crate::types::{MachineState, Name, Time};

/// The first and the longest wait before a write is tried again.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// With nothing heard from the engine for so long, nobody knows how the machines stand: the safe
/// state. The engine is heard twice a second.
const LOST: Duration = Duration::from_secs(15);
/// How long the safe state may take at the end: less than sources are given to stop.
const GOODBYE: Duration = Duration::from_secs(5);
/// How often the light is looked at unless the config says otherwise.
const AGAIN: Duration = Duration::from_secs(10);

/// How the machines stand, as the engine tells it.
pub type Standing = Arc<[(Name, MachineState)]>;

/// What the light shows.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lamp {
    /// None: no machine is on.
    Off,
    /// All machines that are on are judged and normal.
    Green,
    /// A machine is watched, but not judged.
    White,
    /// A machine needs a person.
    Amber,
    /// A machine is in alarm.
    Red,
}

impl Lamp {
    const NAMES: [(&'static str, Lamp); 5] = [
        ("off", Lamp::Off),
        ("green", Lamp::Green),
        ("white", Lamp::White),
        ("amber", Lamp::Amber),
        ("red", Lamp::Red),
    ];

    /// The word used in configs and records.
    pub fn as_str(self) -> &'static str {
        Self::NAMES[self as usize].0
    }

    /// The worst of the machines that `which` fits.
    fn of(standing: &[(Name, MachineState)], which: &WildMatch) -> Lamp {
        let lamp = |light: &MachineState| match light {
            MachineState::Green => Lamp::Green,
            MachineState::Amber => Lamp::Amber,
            MachineState::Red => Lamp::Red,
            MachineState::White => Lamp::White,
            MachineState::Off => Lamp::Off,
        };
        standing.iter().filter(|(name, _)| which.matches(name)).map(|(_, l)| lamp(l)).max().unwrap_or(Lamp::Off)
    }
}

/// Where the light hangs. These addresses and values are all that can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wiring {
    /// A coil for each lamp that there is.
    Coils(BTreeMap<Lamp, u16>),
    /// One register, and its value for each state.
    Register(u16, BTreeMap<Lamp, u16>),
}

impl Wiring {
    /// What makes the light show `lamp`. Lamps go on before others go off: it is never dark between.
    fn writes(&self, lamp: Lamp) -> Vec<Write> {
        match self {
            Wiring::Coils(coils) => {
                let mut all: Vec<(Lamp, u16)> = coils.iter().map(|(l, at)| (*l, *at)).collect();
                all.sort_by_key(|(l, _)| *l != lamp);
                all.into_iter().map(|(l, at)| Write::Coil(at, l == lamp)).collect()
            }
            // Where there is no value for white, no lamp is lit: nothing is promised.
            Wiring::Register(at, values) => {
                let value = values.get(&lamp).or_else(|| values.get(&Lamp::Off));
                value.map(|v| Write::Register(*at, *v)).into_iter().collect()
            }
        }
    }

    fn places(&self) -> Vec<(Table, u16)> {
        match self {
            Wiring::Coils(coils) => coils.values().map(|at| (Table::Coil, *at)).collect(),
            Wiring::Register(at, _) => vec![(Table::Holding, *at)],
        }
    }
}

/// One `[[write]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The `[[source.modbus]]` whose device it hangs on.
    pub device: Name,
    /// Glob over the machines it stands for.
    pub machines: String,
    wiring: Wiring,
    safe: Lamp,
    again: Duration,
    /// With nothing heard from the engine for so long, the safe state. No setting.
    pub lost: Duration,
}

impl Config {
    /// Reads every `[[write]]`, given the devices there are; mistakes become problems.
    pub fn read_all(root: &Section<'_>, devices: &[Device]) -> Vec<Config> {
        let mut taken = Vec::new();
        let mut all = Vec::new();
        for section in root.sections("write") {
            let Some(config) = Config::read(&section, devices) else { continue };
            for place in config.wiring.places() {
                if taken.contains(&(config.device.clone(), place)) {
                    let at = Address { table: place.0, at: place.1, bit: None };
                    section.problem(
                        "device",
                        format_args!("{at} of {:?} is written by another [[write]]", &*config.device),
                    );
                }
                taken.push((config.device.clone(), place));
            }
            all.push(config);
        }
        all
    }

    fn read(section: &Section<'_>, devices: &[Device]) -> Option<Config> {
        let device = read_device(section, devices);
        let who = section.required_string("who");
        if section.has("who") && who != "alarms" {
            section.problem("who", format_args!("{who:?} may not write: the only one who may is \"alarms\""));
        }
        let machines = section.string("machines").unwrap_or_else(|| "*".into());
        let base = section.integer("address_base", 0..=1).unwrap_or(0) as u16;
        let wiring = read_wiring(section, base);
        let safe = section.choice("safe", &Lamp::NAMES).unwrap_or(Lamp::Off);
        let again = section.duration("again").unwrap_or(AGAIN);
        if again < Duration::from_millis(100) {
            section.problem("again", "should be 100ms or longer");
        }
        Some(Config { device: device?, machines, wiring: wiring?, safe, again, lost: LOST })
    }

    /// What it may write, in words.
    pub fn summary(&self) -> String {
        let places = self.wiring.places().into_iter().map(|(table, at)| Address { table, at, bit: None }.to_string());
        let places = places.collect::<Vec<_>>().join(", ");
        format!("{places} of {:?}, a stack light for machines {:?}", &*self.device, self.machines)
    }
}

fn read_device(section: &Section<'_>, devices: &[Device]) -> Option<Name> {
    let name = section.required_string("device");
    let Some(device) = devices.iter().find(|d| *d.name == *name) else {
        if section.has("device") {
            let known: Vec<&str> = devices.iter().map(|d| &*d.name).collect();
            section.problem("device", format_args!("names no [[source.modbus]]: {name:?}{}", hint(&name, &known)));
        }
        return None;
    };
    if device.unit == 0 && device.url.line().is_some() {
        section.problem("device", "is unit 0 of a serial line, which is every unit on it: that is never written to");
        return None;
    }
    Some(device.name.clone())
}

fn read_wiring(section: &Section<'_>, base: u16) -> Option<Wiring> {
    let mut coils = BTreeMap::new();
    for (word, lamp) in &Lamp::NAMES[1..] {
        if let Some(at) = read_place(section, word, Table::Coil, base) {
            coils.insert(*lamp, at);
        }
    }
    let register = read_place(section, "register", Table::Holding, base);
    // Read in any case, so that all mistakes are told.
    let values = section.section("values").map(|values| read_values(&values));
    match (coils.is_empty(), register) {
        (false, None) if values.is_none() && !section.has("register") => Some(Wiring::Coils(coils)),
        (true, Some(at)) => {
            if values.is_none() {
                section.problem("register", "needs `values = { off = …, green = …, amber = …, red = … }` beside it");
            }
            values?.map(|values| Wiring::Register(at, values))
        }
        (true, None) if !["green", "white", "amber", "red", "register"].iter().any(|k| section.has(k)) => {
            section.problem("device", "says not where the light is: give coils as green, amber, red, or a register");
            None
        }
        (false, _) => {
            section.problem("register", "give either coils or a register with values, not both");
            None
        }
        // Told already.
        (true, None) => None,
    }
}

fn read_place(section: &Section<'_>, key: &str, table: Table, base: u16) -> Option<u16> {
    let text = section.string(key)?;
    match Address::parse(&text, base) {
        Ok(address) if address.table == table && address.bit.is_none() => return Some(address.at),
        Ok(address) => {
            section.problem(key, format_args!("{address} is no {}, and nothing else is written here", table.as_str()));
        }
        Err(e) => section.problem(key, e),
    }
    None
}

fn read_values(values: &Section<'_>) -> Option<BTreeMap<Lamp, u16>> {
    let value = |(word, lamp): &(&str, Lamp)| {
        if *lamp == Lamp::White && !values.has(word) {
            return None;
        }
        if !values.has(word) {
            values.problem(word, "is missing: a register needs a value for off, green, amber and red");
        }
        values.integer(word, 0..=65535).map(|v| (*lamp, v as u16))
    };
    let all: BTreeMap<Lamp, u16> = Lamp::NAMES.iter().filter_map(value).collect();
    let needed = [Lamp::Off, Lamp::Green, Lamp::Amber, Lamp::Red];
    needed.iter().all(|lamp| all.contains_key(lamp)).then_some(all)
}

/// One write, for the record.
#[derive(Clone, Debug, PartialEq)]
pub struct Wrote {
    /// The device.
    pub device: Name,
    /// When its outcome was known.
    pub at: Time,
    /// Where: `coil:10`, counted from 0.
    pub address: String,
    /// What: 0 or 1, or the value of a register.
    pub value: u16,
    /// What the light was to show, and why.
    pub reason: String,
    /// Why it is not known to be done; `None`: done and read back.
    pub failure: Option<String>,
}

/// Keeps the light as the machines stand until `shared.stop` is cancelled, then leaves it in its safe
/// state. Tells each write to `tell`. Trouble never ends it: it backs off and goes on.
pub async fn run(
    config: Config,
    device: Device,
    lines: Lines,
    shared: Shared,
    standing: watch::Receiver<Standing>,
    tell: mpsc::Sender<Wrote>,
) {
    let safe = config.safe;
    let mut lamp = Lamppost { part: format!("light/{}", device.name), config, device, lines, shared, tell, link: None };
    lamp.follow(standing).await;
    if let Err(failure) = lamp.say_goodbye(safe).await {
        warn!(device = %lamp.device.name, "the stack light could not be left {}: {failure}", safe.as_str());
    }
}

struct Lamppost {
    config: Config,
    device: Device,
    lines: Lines,
    shared: Shared,
    tell: mpsc::Sender<Wrote>,
    link: Option<Connection>,
    part: String,
}

impl Lamppost {
    /// Until the agent stops. What is being written then is seen through: a write that is dropped in
    /// the middle would be in no record.
    async fn follow(&mut self, mut standing: watch::Receiver<Standing>) {
        let stop = self.shared.stop.clone();
        let which = WildMatch::new(&self.config.machines);
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let mut heard = Instant::now();
        // Not known yet: nothing is touched before the engine has spoken, or been silent for too long.
        let mut wanted: Option<(Lamp, &str)> = None;
        let (again, lost) = (self.config.again, self.config.lost);
        let mut next = heard + lost;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                changed = standing.changed() => {
                    if changed.is_ok() {
                        heard = Instant::now();
                        let lamp = Lamp::of(&standing.borrow_and_update(), &which);
                        let news = wanted != Some((lamp, "as the machines stand"));
                        wanted = Some((lamp, "as the machines stand"));
                        if !news {
                            continue;
                        }
                    } else {
                        // The engine has ended, and so will this.
                        stop.cancelled().await;
                        return;
                    }
                }
                () = sleep_until(next) => {}
            }
            if heard.elapsed() >= lost {
                wanted = Some((self.config.safe, "nothing is heard of the machines"));
            }
            let Some((lamp, why)) = wanted else { continue };
            next = Instant::now()
                + match self.show(lamp, why).await {
                    Ok(()) => {
                        backoff.reset();
                        let detail = format!("{} on {}", lamp.as_str(), self.device.url);
                        self.shared.board.set(&self.part, Health::Up, detail);
                        again.min(lost)
                    }
                    Err(failure) => {
                        self.link = None;
                        let detail = format!("should be {}: {}: {failure}", lamp.as_str(), self.device.url);
                        if backoff.failures() == 0 {
                            warn!(device = %self.device.name, "the stack light {detail}");
                        }
                        self.shared.board.set(&self.part, Health::Down, detail);
                        backoff.after_failure(fastrand::f64())
                    }
                };
        }
    }

    async fn say_goodbye(&mut self, safe: Lamp) -> Result<(), Failure> {
        let until = Instant::now() + GOODBYE;
        loop {
            match self.show(safe, "the agent stops").await {
                // The connection may just have been closed by the device: once more.
                Err(Failure::Broken(_)) if self.link.take().is_some() && Instant::now() < until => {}
                outcome => return outcome,
            }
        }
    }

    /// Looks at each place, writes where it is not as it should be, and looks again.
    async fn show(&mut self, lamp: Lamp, why: &str) -> Result<(), Failure> {
        for write in self.config.wiring.writes(lamp) {
            let (span, value) = write.expects();
            if self.link().await?.read(span).await? == [value] {
                continue;
            }
            let outcome = self.write(write).await;
            let told = Wrote {
                device: self.device.name.clone(),
                at: Time::now(),
                address: Address { table: span.table, at: span.start, bit: None }.to_string(),
                value,
                reason: format!("{}: {why}", lamp.as_str()),
                failure: outcome.as_ref().err().map(ToString::to_string),
            };
            // The engine goes on for as long as this does.
            let _ = self.tell.send(told).await;
            outcome?;
        }
        Ok(())
    }

    async fn write(&mut self, write: Write) -> Result<(), Failure> {
        let (span, value) = write.expects();
        let connection = self.link().await?;
        connection.write(write).await?;
        match connection.read(span).await?[..] {
            [read] if read == value => Ok(()),
            _ => Err(Failure::Broken("what was written is not what is read back".into())),
        }
    }

    async fn link(&mut self) -> Result<&mut Connection, Failure> {
        if self.link.is_none() {
            let Device { url, unit, timeout, .. } = &self.device;
            self.link = Some(Connection::dial(&self.lines, url, *unit, *timeout).await?);
        }
        self.link.as_mut().ok_or_else(|| Failure::Broken("there is no connection".into()))
    }
}

#[cfg(test)]
mod tests;
