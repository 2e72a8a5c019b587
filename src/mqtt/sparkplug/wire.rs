//! Protobuf of Sparkplug B's `Payload`, read and written by hand: reading is bounded in count and
//! depth, skips what is not needed, and never panics.

use std::fmt;

use super::{Metric, Payload, Value};

/// Metrics in one payload, members of templates included. What is beyond makes it unreadable.
pub const MAX_METRICS: usize = 16_384;
/// Templates within templates.
const MAX_DEPTH: u8 = 4;

/// Why a payload cannot be read.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// It ends in the middle of a field.
    Truncated,
    /// A field has a shape it cannot have.
    Malformed,
    /// A name is not UTF-8.
    NotText,
    /// More than [`MAX_METRICS`].
    TooMany,
    /// Templates nested deeper than is read.
    TooDeep,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unreadable::Truncated => f.write_str("not a Sparkplug B payload: it ends in the middle of a field"),
            Unreadable::Malformed => f.write_str("not a Sparkplug B payload: it is not protobuf of that shape"),
            Unreadable::NotText => f.write_str("not a Sparkplug B payload: a name is not UTF-8 text"),
            Unreadable::TooMany => write!(f, "more than {MAX_METRICS} metrics in one payload"),
            Unreadable::TooDeep => write!(f, "templates are nested more than {MAX_DEPTH} deep"),
        }
    }
}

/// A field's content.
enum Field<'p> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'p [u8]),
    Fixed32(u32),
}

/// What is left to read.
struct Input<'p>(&'p [u8]);

impl<'p> Input<'p> {
    fn take(&mut self, n: usize) -> Result<&'p [u8], Unreadable> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Unreadable::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, Unreadable> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = self.take(1)?[0];
            // The tenth byte has room for one bit.
            if shift == 63 && byte > 1 {
                return Err(Unreadable::Malformed);
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Unreadable::Malformed)
    }

    /// The next field's number and content; `None` at the end.
    fn next(&mut self) -> Result<Option<(u64, Field<'p>)>, Unreadable> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let field = match key & 7 {
            0 => Field::Varint(self.varint()?),
            1 => Field::Fixed64(u64::from_le_bytes(self.take(8)?.try_into().map_err(|_| Unreadable::Truncated)?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| Unreadable::Truncated)?;
                Field::Bytes(self.take(length)?)
            }
            5 => Field::Fixed32(u32::from_le_bytes(self.take(4)?.try_into().map_err(|_| Unreadable::Truncated)?)),
            _ => return Err(Unreadable::Malformed),
        };
        match key >> 3 {
            0 => Err(Unreadable::Malformed),
            number => Ok(Some((number, field))),
        }
    }
}

fn text(bytes: &[u8]) -> Result<&str, Unreadable> {
    std::str::from_utf8(bytes).map_err(|_| Unreadable::NotText)
}

/// Reads a payload.
///
/// # Errors
/// See [`Unreadable`].
pub fn decode(bytes: &[u8]) -> Result<Payload<'_>, Unreadable> {
    let mut payload = Payload::default();
    let (mut input, mut room) = (Input(bytes), MAX_METRICS);
    while let Some(field) = input.next()? {
        match field {
            (1, Field::Varint(n)) => payload.timestamp = Some(n),
            (2, Field::Bytes(b)) => payload.metrics.push(metric(b, &mut room, 0)?),
            (3, Field::Varint(n)) => payload.seq = Some(n),
            (4, Field::Bytes(b)) => payload.uuid = Some(text(b)?),
            (1..=4, _) => return Err(Unreadable::Malformed),
            _ => {}
        }
    }
    Ok(payload)
}

fn metric<'p>(bytes: &'p [u8], room: &mut usize, depth: u8) -> Result<Metric<'p>, Unreadable> {
    *room = room.checked_sub(1).ok_or(Unreadable::TooMany)?;
    let mut m = Metric::default();
    let mut input = Input(bytes);
    while let Some(field) = input.next()? {
        match field {
            (1, Field::Bytes(b)) => m.name = Some(text(b)?),
            (2, Field::Varint(n)) => m.alias = Some(n),
            (3, Field::Varint(n)) => m.timestamp = Some(n),
            (4, Field::Varint(n)) => m.datatype = Some(u32::try_from(n).map_err(|_| Unreadable::Malformed)?),
            (5, Field::Varint(n)) => m.is_historical = n != 0,
            (7, Field::Varint(n)) => m.is_null = n != 0,
            (9, Field::Bytes(b)) => m.quality = quality(b)?,
            // Some encoders extend the sign of 32-bit numbers to 64.
            (10, Field::Varint(n)) => m.value = Value::Int(n as u32),
            (11, Field::Varint(n)) => m.value = Value::Long(n),
            (12, Field::Fixed32(n)) => m.value = Value::Float(f32::from_bits(n)),
            (13, Field::Fixed64(n)) => m.value = Value::Double(f64::from_bits(n)),
            (14, Field::Varint(n)) => m.value = Value::Boolean(n != 0),
            (15, Field::Bytes(b)) => m.value = Value::Text(text(b)?),
            (18, Field::Bytes(b)) => m.value = template(b, room, depth)?,
            (16 | 17 | 19, Field::Bytes(_)) => m.value = Value::Other,
            (1..=5 | 7 | 9..=19, _) => return Err(Unreadable::Malformed),
            _ => {}
        }
    }
    Ok(m)
}

/// The members of a template's instance.
fn template<'p>(bytes: &'p [u8], room: &mut usize, depth: u8) -> Result<Value<'p>, Unreadable> {
    if depth >= MAX_DEPTH {
        return Err(Unreadable::TooDeep);
    }
    let mut members = Vec::new();
    let mut input = Input(bytes);
    while let Some((number, field)) = input.next()? {
        match (number, field) {
            (2, Field::Bytes(b)) => members.push(metric(b, room, depth + 1)?),
            (2, _) => return Err(Unreadable::Malformed),
            _ => {}
        }
    }
    Ok(Value::Template(members))
}

/// The property named `Quality` of a property set.
fn quality(bytes: &[u8]) -> Result<Option<i32>, Unreadable> {
    let (mut at, mut keys, mut values) = (None, 0_usize, Vec::new());
    let mut input = Input(bytes);
    while let Some((number, field)) = input.next()? {
        match (number, field) {
            (1, Field::Bytes(b"Quality")) => (at, keys) = (Some(keys), keys + 1),
            (1, Field::Bytes(_)) => keys += 1,
            (2, Field::Bytes(b)) => values.push(b),
            (1 | 2, _) => return Err(Unreadable::Malformed),
            _ => {}
        }
    }
    let Some(value) = at.and_then(|at| values.get(at)) else { return Ok(None) };
    let (mut input, mut found) = (Input(value), None);
    while let Some(field) = input.next()? {
        if let (3 | 4, Field::Varint(n)) = field {
            found = i32::try_from(n as i64).ok();
        }
    }
    Ok(found)
}

/// Writes a payload.
pub fn encode(payload: &Payload<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    put_number(&mut out, 1, payload.timestamp);
    for m in &payload.metrics {
        put_bytes(&mut out, 2, &encode_metric(m));
    }
    put_number(&mut out, 3, payload.seq);
    put_text(&mut out, 4, payload.uuid);
    out
}

fn encode_metric(m: &Metric<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    put_text(&mut out, 1, m.name);
    put_number(&mut out, 2, m.alias);
    put_number(&mut out, 3, m.timestamp);
    put_number(&mut out, 4, m.datatype.map(u64::from));
    put_number(&mut out, 5, m.is_historical.then_some(1));
    put_number(&mut out, 7, m.is_null.then_some(1));
    if let Some(quality) = m.quality {
        let mut value = Vec::new();
        put_number(&mut value, 1, Some(u64::from(super::datatype::INT32)));
        put_number(&mut value, 3, Some(u64::from(quality as u32)));
        let mut set = Vec::new();
        put_bytes(&mut set, 1, b"Quality");
        put_bytes(&mut set, 2, &value);
        put_bytes(&mut out, 9, &set);
    }
    match &m.value {
        Value::None | Value::Other => {}
        Value::Int(n) => put_number(&mut out, 10, Some(u64::from(*n))),
        Value::Long(n) => put_number(&mut out, 11, Some(*n)),
        Value::Float(f) => {
            put_key(&mut out, 12, 5);
            out.extend(f.to_le_bytes());
        }
        Value::Double(f) => {
            put_key(&mut out, 13, 1);
            out.extend(f.to_le_bytes());
        }
        Value::Boolean(b) => put_number(&mut out, 14, Some(u64::from(*b))),
        Value::Text(t) => put_bytes(&mut out, 15, t.as_bytes()),
        Value::Template(members) => {
            let mut template = Vec::new();
            members.iter().for_each(|m| put_bytes(&mut template, 2, &encode_metric(m)));
            put_bytes(&mut out, 18, &template);
        }
    }
    out
}

fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn put_key(out: &mut Vec<u8>, number: u8, wire: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire));
}

fn put_number(out: &mut Vec<u8>, number: u8, value: Option<u64>) {
    if let Some(n) = value {
        put_key(out, number, 0);
        put_varint(out, n);
    }
}

fn put_bytes(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    put_key(out, number, 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn put_text(out: &mut Vec<u8>, number: u8, text: Option<&str>) {
    if let Some(t) = text {
        put_bytes(out, number, t.as_bytes());
    }
}
