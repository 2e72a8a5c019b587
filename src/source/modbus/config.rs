//! `[[source.modbus]]`: what a device is asked, how and how often.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::plan::{Limits, Span};
use super::profile;
use super::registers::{Address, Decoder, Order, Type};
use super::url::{DEFAULT_PORT, Host, Url};
use crate::settings::Section;
use crate::types::Name;

/// What one request may ask for, by the protocol.
const MAX_REGISTERS: i64 = 125;
const DEFAULT_GAP: u16 = 8;
const DEFAULT_POLL: Duration = Duration::from_secs(1);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
/// The shortest poll period and time-out: below this nothing but load is gained.
const SHORTEST: Duration = Duration::from_millis(1);

/// One device and its signals.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The source's name.
    pub name: Name,
    /// Where the device is.
    pub url: Url,
    /// The unit behind that address, 0..=255.
    pub unit: u8,
    /// How long a connection or an answer may take.
    pub timeout: Duration,
    /// What requests may ask for.
    pub limits: Limits,
    /// The rest between two requests.
    pub pause: Duration,
    /// What to read.
    pub signals: Vec<Signal>,
    /// The directory in which what is learnt of the device is kept: no setting, the agent names it.
    pub learnt: Option<PathBuf>,
}

/// One value of one machine and where it is found.
#[derive(Clone, Debug, PartialEq)]
pub struct Signal {
    /// The machine it belongs to.
    pub machine: Name,
    /// Its name.
    pub name: Name,
    /// What to read.
    pub span: Span,
    /// What that means.
    pub decoder: Decoder,
    /// How often.
    pub poll: Duration,
}

impl Config {
    /// Reads a `[[source.modbus]]` section and the profile it names; mistakes become its problems.
    pub fn read(section: &Section<'_>) -> Config {
        profile::with(section, |profile| Config::of(section, profile))
    }

    /// What is said here goes before what the profile says.
    pub(super) fn of(section: &Section<'_>, profile: Option<&Section<'_>>) -> Config {
        let name = section.required_string("name");
        if section.has("name") && name.is_empty() {
            section.problem("name", "is empty");
        }
        let url = read_url(section);
        let unit = section.integer("unit", 0..=255).unwrap_or(1) as u8;
        let poll = either(section, profile, |s| positive(s, "poll")).unwrap_or(DEFAULT_POLL);
        let timeout = either(section, profile, |s| positive(s, "timeout")).unwrap_or(DEFAULT_TIMEOUT);
        let limits = read_limits(section, profile);
        let pause = either(section, profile, |s| s.duration("pause")).unwrap_or_default();
        let machine = section.string("machine");
        let base = |s: &Section<'_>| s.integer("address_base", 0..=1).unwrap_or(0) as u16;
        let mut defaults = Defaults { base: base(section), machine, poll, max_registers: limits.max_registers };
        let tables = section.sections("signal");
        let mut signals = read_signals(&tables, &defaults);
        if let Some(profile) = profile {
            if defaults.machine.is_none() {
                section.problem("machine", "is missing: the signals of a profile are those of this device's machine");
                defaults.machine = Some("?".into());
            }
            defaults.base = base(profile);
            let theirs = read_signals(&profile::signals(profile), &defaults);
            let own: BTreeSet<_> = signals.iter().map(|s| (s.machine.clone(), s.name.clone())).collect();
            signals.extend(theirs.into_iter().filter(|s| !own.contains(&(s.machine.clone(), s.name.clone()))));
        } else if tables.is_empty() && !section.has("profile") {
            section.problem("signal", "nothing to read: add a [[source.modbus.signal]] or name a profile");
        }
        Config { name: name.into(), url, unit, timeout, limits, pause, signals, learnt: None }
    }

    /// Reads every `[[source.modbus]]`. Those on the same line have to agree on how it is set.
    pub fn read_all(section: &Section<'_>) -> Vec<Config> {
        let sections = section.sections("modbus");
        let all: Vec<Config> = sections.iter().map(Config::read).collect();
        for (i, (own, config)) in sections.iter().zip(&all).enumerate() {
            let Some(line) = config.url.line() else { continue };
            let same = all[..i].iter().find(|other| other.url.line().as_ref() == Some(&line));
            if let Some(other) = same.filter(|other| other.url != config.url) {
                let message = format_args!("{:?} uses it as {}, and a line has one setting", &*other.name, other.url);
                own.problem("url", message);
            }
        }
        all
    }

    /// The machines and signals it delivers, in the order of the config.
    pub fn delivers(&self) -> impl Iterator<Item = (&Name, &Name)> {
        self.signals.iter().map(|s| (&s.machine, &s.name))
    }
}

/// What a signal takes from its source.
struct Defaults {
    base: u16,
    machine: Option<String>,
    poll: Duration,
    max_registers: u16,
}

fn read_url(section: &Section<'_>) -> Url {
    let text = section.required_string("url");
    match Url::parse(&text) {
        Ok(url) => return url,
        Err(e) if section.has("url") => section.problem("url", e),
        Err(_) => {}
    }
    Url::Tcp(Host { host: "localhost".into(), port: DEFAULT_PORT })
}

fn positive(section: &Section<'_>, key: &str) -> Option<Duration> {
    let duration = section.duration(key)?;
    if duration < SHORTEST {
        section.problem(key, "should be 1ms or longer");
        return None;
    }
    Some(duration)
}

/// What is said here, else in the profile. Both are asked, so that both hear of their mistakes.
fn either<T>(
    section: &Section<'_>,
    profile: Option<&Section<'_>>,
    read: impl Fn(&Section<'_>) -> Option<T>,
) -> Option<T> {
    let theirs = profile.and_then(&read);
    read(section).or(theirs)
}

fn read_limits(section: &Section<'_>, profile: Option<&Section<'_>>) -> Limits {
    let max_registers = either(section, profile, |s| s.integer("max_registers", 1..=MAX_REGISTERS));
    let max_registers = max_registers.unwrap_or(MAX_REGISTERS) as u16;
    let gap = either(section, profile, |s| s.integer("gap", 0..=MAX_REGISTERS)).map(|n| n as u16);
    if let Some(gap) = gap.filter(|g| *g > max_registers) {
        let at = profile.filter(|_| !section.has("gap")).unwrap_or(section);
        at.problem("gap", format_args!("{gap} is more than max_registers, which is {max_registers}"));
    }
    Limits { max_registers, gap: gap.unwrap_or(DEFAULT_GAP).min(max_registers) }
}

fn read_signals(tables: &[Section<'_>], defaults: &Defaults) -> Vec<Signal> {
    let mut seen = BTreeSet::new();
    let mut signals = Vec::new();
    for table in tables {
        let Some(signal) = read_signal(table, defaults) else { continue };
        if !seen.insert((signal.machine.clone(), signal.name.clone())) {
            let message = format!("{:?} is there twice for machine {:?}", &*signal.name, &*signal.machine);
            table.problem("name", message);
        }
        signals.push(signal);
    }
    signals
}

/// `None` when it has mistakes. Every key is asked for all the same, so that all mistakes are told.
fn read_signal(section: &Section<'_>, defaults: &Defaults) -> Option<Signal> {
    let name = section.required_string("name");
    let machine = section.string("machine").or_else(|| defaults.machine.clone()).filter(|m| !m.is_empty());
    if machine.is_none() {
        section.problem("machine", "is missing: give it here or for the whole source");
    }
    let at = section.required_string("at");
    let address = match Address::parse(&at, defaults.base) {
        Ok(address) => Some(address),
        Err(e) => {
            if section.has("at") {
                section.problem("at", e);
            }
            None
        }
    };
    let kind = read_type(section, address);
    let scale = section.float("scale").unwrap_or(1.0);
    if scale == 0.0 {
        section.problem("scale", "0 would make every value the same");
    }
    let offset = section.float("offset").unwrap_or(0.0);
    let poll = if section.has("poll") { positive(section, "poll") } else { Some(defaults.poll) };
    let order = read_order(section, address, kind);
    let (address, kind, order) = (address?, kind?, order?);
    let span = read_span(section, address, kind, defaults.max_registers)?;
    let decoder = Decoder { kind, order, bit: address.bit, scale, offset };
    Some(Signal { machine: machine?.into(), name: name.into(), span, decoder, poll: poll? })
}

fn read_type(section: &Section<'_>, address: Option<Address>) -> Option<Type> {
    let word = section.string("type");
    if word.as_deref().is_some_and(|w| w.starts_with("string")) {
        section.problem("type", "a signal is a number; strings can be looked at with `andon modbus read`");
        return None;
    }
    let kind = word.and_then(|_| section.choice("type", &Type::NAMES));
    let Some(address) = address else { return kind };
    let table = address.table.as_str();
    let is_bit = address.table.is_bits() || address.bit.is_some();
    match kind {
        None if section.has("type") => None,
        None if is_bit => Some(Type::Bool),
        None => {
            section.problem("type", format_args!("is missing: how is {address} to be read, as u16, i16, f32 …?"));
            None
        }
        Some(kind) if is_bit && kind != Type::Bool => {
            let what = if address.table.is_bits() { format!("a {table}") } else { format!("{address}") };
            section.problem("type", format_args!("{what} is a single bit and cannot be read as {}", kind.as_str()));
            None
        }
        Some(Type::Bool) if !is_bit => {
            section
                .problem("at", format_args!("a bool in a register needs its bit: \"{address}.0\" to \"{address}.15\""));
            None
        }
        kind => kind,
    }
}

fn read_order(section: &Section<'_>, address: Option<Address>, kind: Option<Type>) -> Option<Order> {
    let text = section.string("order");
    let registers = kind?.width();
    let Some(text) = text else { return Some(Order::big_endian(registers)) };
    if address.is_some_and(|a| a.table.is_bits()) {
        section.problem("order", "a single bit has no byte order");
        return None;
    }
    Order::parse(&text, registers).map_err(|e| section.problem("order", e)).ok()
}

fn read_span(section: &Section<'_>, address: Address, kind: Type, max_registers: u16) -> Option<Span> {
    let span = Span { table: address.table, start: address.at, count: kind.width() };
    if span.end() > 65536 {
        let message = format!("{address} leaves no room for the {} registers of a {}", span.count, kind.as_str());
        section.problem("at", message);
        return None;
    }
    if span.count > max_registers {
        let message =
            format!("a {} takes {} registers, but max_registers is {max_registers}", kind.as_str(), span.count);
        section.problem("type", message);
        return None;
    }
    Some(span)
}

#[cfg(test)]
mod tests;
