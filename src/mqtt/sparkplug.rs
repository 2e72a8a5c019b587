//! Sparkplug B: topics and payloads (Eclipse Sparkplug 3.0, chapters 4 and 6), for the source that
//! listens to edge nodes and for the publisher that is one. What comes in borrows from the message.

use crate::types::Time;

mod wire;

pub use wire::{Unreadable, decode, encode};

/// The first level of every topic.
pub const NAMESPACE: &str = "spBv1.0";
/// The command that asks an edge node for its births.
pub const REBIRTH: &str = "Node Control/Rebirth";
/// The metric that ties a death to its birth.
pub const BD_SEQ: &str = "bdSeq";

/// What a message is.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// An edge node tells all its metrics.
    NBirth,
    /// Values of the node itself.
    NData,
    /// The node is gone; sent by its last will.
    NDeath,
    /// A device tells all its metrics.
    DBirth,
    /// Values of a device.
    DData,
    /// A device is gone.
    DDeath,
    /// To a node.
    NCmd,
    /// To a device.
    DCmd,
}

const VERBS: [(&str, Verb); 8] = [
    ("NBIRTH", Verb::NBirth),
    ("NDATA", Verb::NData),
    ("NDEATH", Verb::NDeath),
    ("DBIRTH", Verb::DBirth),
    ("DDATA", Verb::DData),
    ("DDEATH", Verb::DDeath),
    ("NCMD", Verb::NCmd),
    ("DCMD", Verb::DCmd),
];

/// `spBv1.0/GROUP/VERB/NODE[/DEVICE]`, taken apart.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Topic<'t> {
    /// The group.
    pub group: &'t str,
    /// What it is.
    pub verb: Verb,
    /// The edge node.
    pub node: &'t str,
    /// The device below it; `None` with the verbs of nodes.
    pub device: Option<&'t str>,
}

impl<'t> Topic<'t> {
    /// Takes a topic apart; `None` when it is none of Sparkplug's (`STATE` of host applications is
    /// none of these either).
    pub fn parse(topic: &'t str) -> Option<Topic<'t>> {
        let mut levels = topic.split('/');
        if levels.next() != Some(NAMESPACE) {
            return None;
        }
        let (group, verb, node) = (levels.next()?, levels.next()?, levels.next()?);
        let (_, verb) = *VERBS.iter().find(|(word, _)| *word == verb)?;
        let device = levels.next();
        let of_device = matches!(verb, Verb::DBirth | Verb::DData | Verb::DDeath | Verb::DCmd);
        let whole = levels.next().is_none() && of_device == device.is_some();
        let named = !group.is_empty() && !node.is_empty() && device != Some("");
        (whole && named).then_some(Topic { group, verb, node, device })
    }

    /// The topic as it is written.
    pub fn write(group: &str, verb: Verb, node: &str, device: Option<&str>) -> String {
        let verb = VERBS.iter().find(|(_, v)| *v == verb).map_or("", |(word, _)| word);
        match device {
            Some(device) => format!("{NAMESPACE}/{group}/{verb}/{node}/{device}"),
            None => format!("{NAMESPACE}/{group}/{verb}/{node}"),
        }
    }
}

/// A payload, borrowed from its bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Payload<'p> {
    /// When it was sent, in ms since 1970.
    pub timestamp: Option<u64>,
    /// 0 to 255, one more with each message of an edge node.
    pub seq: Option<u64>,
    /// Marks compressed payloads.
    pub uuid: Option<&'p str>,
    /// In order.
    pub metrics: Vec<Metric<'p>>,
}

/// One metric.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metric<'p> {
    /// Its name; data may leave it out where there is an alias.
    pub name: Option<&'p str>,
    /// A number for the name, told by the birth.
    pub alias: Option<u64>,
    /// When it was measured, in ms since 1970.
    pub timestamp: Option<u64>,
    /// One of [`datatype`]; data may leave it out.
    pub datatype: Option<u32>,
    /// It was stored on the way and is not the present value.
    pub is_historical: bool,
    /// It has no value.
    pub is_null: bool,
    /// The `Quality` property: 192 good, 500 stale, 0 bad.
    pub quality: Option<i32>,
    /// The value as it is on the wire.
    pub value: Value<'p>,
}

/// A value as it is on the wire: what integers mean depends on the datatype.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value<'p> {
    /// There is none.
    #[default]
    None,
    /// 8 to 32 bit, also signed ones.
    Int(u32),
    /// 64 bit, also signed ones; some clients send 32 bit unsigned so.
    Long(u64),
    /// 32-bit float.
    Float(f32),
    /// 64-bit float.
    Double(f64),
    /// True or false.
    Boolean(bool),
    /// Text in UTF-8.
    Text(&'p str),
    /// Members of a template instance.
    Template(Vec<Metric<'p>>),
    /// Bytes, data sets, extensions: nothing that has a number.
    Other,
}

/// Datatypes that matter here, by the numbers of the specification.
pub mod datatype {
    /// 8-bit signed.
    pub const INT8: u32 = 1;
    /// 16-bit signed.
    pub const INT16: u32 = 2;
    /// 32-bit signed.
    pub const INT32: u32 = 3;
    /// 64-bit signed.
    pub const INT64: u32 = 4;
    /// 8-bit unsigned.
    pub const UINT8: u32 = 5;
    /// 16-bit unsigned.
    pub const UINT16: u32 = 6;
    /// 32-bit unsigned.
    pub const UINT32: u32 = 7;
    /// 64-bit unsigned.
    pub const UINT64: u32 = 8;
    /// 32-bit float.
    pub const FLOAT: u32 = 9;
    /// 64-bit float.
    pub const DOUBLE: u32 = 10;
    /// True or false.
    pub const BOOLEAN: u32 = 11;
    /// Text.
    pub const STRING: u32 = 12;
    /// A template's instance or definition.
    pub const TEMPLATE: u32 = 19;
}

/// What a metric's value comes to.
#[derive(Copy, Clone, Debug, PartialEq)]
pub enum Number {
    /// A number; true is 1, false 0. NaN and infinities are left for the pipeline to refuse.
    Is(f64),
    /// Text, a time, a data set: not for us.
    IsNone,
    /// An integer, and without its datatype nobody can say whether it is signed.
    NeedsType,
    /// It cannot be of the datatype it claims.
    Wrong,
}

impl Value<'_> {
    /// The number, by the datatype that the metric or its birth names.
    pub fn number(&self, datatype: Option<u32>) -> Number {
        use datatype::*;
        let (narrow, wide) = match self {
            Value::Float(f) => return of_type(datatype, FLOAT..=DOUBLE, f64::from(*f)),
            Value::Double(f) => return of_type(datatype, FLOAT..=DOUBLE, *f),
            Value::Boolean(b) => return of_type(datatype, BOOLEAN..=BOOLEAN, f64::from(u8::from(*b))),
            // In 32 bit negative numbers are told by 32-bit two's complement.
            Value::Int(n) => (i64::from(*n as i32), u64::from(*n)),
            Value::Long(n) => (*n as i64, *n),
            Value::None | Value::Text(_) | Value::Template(_) | Value::Other => return Number::IsNone,
        };
        let Some(datatype) = datatype else { return Number::NeedsType };
        let signed = |bits: u32| {
            // Some clients send the bits of a small negative number without sign extension.
            let cut = ((wide << (64 - bits)) as i64) >> (64 - bits);
            let fits = narrow == cut || wide < 1 << bits.min(63);
            if fits { Number::Is(cut as f64) } else { Number::Wrong }
        };
        let unsigned = |bits: u32| if bits == 64 || wide < 1 << bits { Number::Is(wide as f64) } else { Number::Wrong };
        match datatype {
            INT8 => signed(8),
            INT16 => signed(16),
            INT32 => signed(32),
            INT64 => Number::Is(narrow as f64),
            UINT8 => unsigned(8),
            UINT16 => unsigned(16),
            UINT32 => unsigned(32),
            UINT64 => unsigned(64),
            BOOLEAN if wide < 2 => Number::Is(wide as f64),
            FLOAT | DOUBLE | BOOLEAN => Number::Wrong,
            _ => Number::IsNone,
        }
    }
}

fn of_type(told: Option<u32>, own: std::ops::RangeInclusive<u32>, value: f64) -> Number {
    if told.is_none_or(|t| own.contains(&t)) { Number::Is(value) } else { Number::Wrong }
}

/// Milliseconds since 1970 as a time; `None` when out of range.
pub fn time(ms: u64) -> Option<Time> {
    i64::try_from(ms).ok()?.checked_mul(1_000_000).map(Time)
}

/// A time as milliseconds since 1970.
pub fn ms(time: Time) -> u64 {
    (time.0 / 1_000_000).max(0) as u64
}

#[cfg(test)]
mod tests;
