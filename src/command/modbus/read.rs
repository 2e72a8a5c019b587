//! `andon modbus read`: values as a config would read them.

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use super::{Device, runtime, usage};
use crate::settings::hint;
use crate::source::modbus::plan::Span;
use crate::source::modbus::registers::{Address, Decoder, Order, Type, text};
use crate::source::modbus::{Connection, Failure};
use crate::types::Time;

/// The longest text: what fits in one answer.
const LONGEST_TEXT: usize = 250;

/// See `andon modbus read --help`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    device: Device,
    /// The unit behind the address
    #[arg(long, default_value_t = 1)]
    unit: u8,
    /// What to read: holding:100, input:7, coil:3, holding:12.3 or 40101; also holding:100:f32:CDAB. Can be repeated
    #[arg(long, value_name = "ADDRESS", required = true)]
    at: Vec<String>,
    /// bool u16 i16 u32 i32 u64 i64 f32 f64 string(BYTES), where --at does not say it; u16 unless given
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// The byte order, such as CDAB, where --at does not say it; big-endian unless given
    #[arg(long)]
    order: Option<String>,
    /// The number is multiplied by this
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    scale: f64,
    /// And then this is added
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    offset: f64,
    /// What the manual calls the first register, 0 or 1
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1))]
    base: u16,
    /// Print a JSON object for each value
    #[arg(long)]
    json: bool,
}

/// One value to read.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    /// As it was written.
    at: String,
    span: Span,
    meaning: Meaning,
}

#[derive(Clone, Debug, PartialEq)]
enum Meaning {
    Number(Decoder),
    Text { bytes: usize, swapped: bool },
}

/// Prints each value; fails when one could not be read.
pub fn run(options: &Options) -> Result<()> {
    let wanted: Result<Vec<Wanted>, String> = options.at.iter().map(|at| Wanted::parse(at, options)).collect();
    let wanted = wanted.unwrap_or_else(|message| usage(&message));
    let bad = runtime()?.block_on(read_all(options, &wanted));
    ensure!(bad == 0, "{bad} of {} values could not be read", wanted.len());
    Ok(())
}

async fn read_all(options: &Options, wanted: &[Wanted]) -> usize {
    let mut link: Option<Connection> = None;
    let mut bad = 0;
    for one in wanted {
        let outcome = match &mut link {
            Some(connection) => connection.read(one.span).await,
            None => match options.device.dial(options.unit).await {
                Ok(connection) => link.insert(connection).read(one.span).await,
                Err(failure) => Err(failure),
            },
        };
        if outcome.as_ref().is_err_and(|f| !f.spares_connection()) {
            link = None;
        }
        let value = outcome.map_err(reason).and_then(|words| one.meaning.of(&words));
        bad += usize::from(value.is_err());
        println!("{}", if options.json { json_line(value) } else { text_line(one, value) });
    }
    bad
}

fn reason(failure: Failure) -> String {
    failure.to_string()
}

fn json_line(value: Result<Value, String>) -> String {
    let at = Time::now().to_string();
    match value {
        Ok(value) => json!({"value": value, "quality": "good", "at": at}).to_string(),
        Err(reason) => json!({"value": null, "quality": "bad", "at": at, "reason": reason}).to_string(),
    }
}

fn text_line(wanted: &Wanted, value: Result<Value, String>) -> String {
    match value {
        Ok(value) => format!("{:24} {value}  at {}", wanted.at, Time::now()),
        Err(reason) => format!("{:24} bad: {reason}", wanted.at),
    }
}

impl Meaning {
    fn of(&self, words: &[u16]) -> Result<Value, String> {
        match self {
            Meaning::Text { bytes, swapped } => Ok(Value::from(text(words, *bytes, *swapped))),
            Meaning::Number(decoder) => {
                let value = decoder.decode(words).ok_or("not a finite number")?;
                Ok(if decoder.kind == Type::Bool && decoder.scale == 1.0 && decoder.offset == 0.0 {
                    Value::from(value != 0.0)
                } else {
                    number(value)
                })
            }
        }
    }
}

/// Whole numbers without a decimal point.
pub fn number(value: f64) -> Value {
    // Up to here each whole number has an f64 of its own.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT { Value::from(value as i64) } else { Value::from(value) }
}

impl Wanted {
    /// `ADDRESS[:TYPE[:ORDER]]`.
    fn parse(at: &str, options: &Options) -> Result<Wanted, String> {
        let parts: Vec<&str> = at.split(':').collect();
        let in_words = parts[0].starts_with(|c: char| c.is_ascii_alphabetic());
        let (place, rest) = parts.split_at(if in_words { 2 } else { 1 }.min(parts.len()));
        if rest.len() > 2 {
            return Err(format!("{at:?} is not ADDRESS, ADDRESS:TYPE or ADDRESS:TYPE:ORDER"));
        }
        let address = Address::parse(&place.join(":"), options.base)?;
        let kind = rest.first().copied().or(options.kind.as_deref());
        // The order of all is for those whose type is that of all.
        let order = rest.get(1).copied().or(options.order.as_deref().filter(|_| rest.is_empty()));
        let (meaning, count) = meaning(address, kind, order, (options.scale, options.offset))?;
        let span = Span { table: address.table, start: address.at, count };
        if span.end() > 65536 {
            return Err(format!("{at:?} leaves no room for {count} registers"));
        }
        Ok(Wanted { at: at.to_owned(), span, meaning })
    }
}

/// What is at an address, and how many registers or bits it takes.
fn meaning(
    address: Address,
    kind: Option<&str>,
    order: Option<&str>,
    (scale, offset): (f64, f64),
) -> Result<(Meaning, u16), String> {
    let is_bit = address.table.is_bits() || address.bit.is_some();
    let word = kind.unwrap_or(if is_bit { "bool" } else { "u16" });
    if let Some(length) = word.strip_prefix("string") {
        return string(address, length, order);
    }
    let known = Type::NAMES.iter().find(|(name, _)| *name == word).map(|(_, kind)| *kind);
    let kind = known.ok_or_else(|| {
        let names = Type::NAMES.map(|(name, _)| name);
        format!("{word:?} is not one of {}, string(BYTES){}", names.join(", "), hint(word, &names))
    })?;
    match kind {
        Type::Bool if !is_bit => {
            return Err(format!("a bool in a register needs its bit: {address}.0 to {address}.15"));
        }
        Type::Bool => {}
        _ if is_bit => return Err(format!("{address} is a single bit and cannot be read as {word}")),
        _ => {}
    }
    let order = match order {
        Some(_) if address.table.is_bits() => return Err("a single bit has no byte order".into()),
        Some(order) => Order::parse(order, kind.width())?,
        None => Order::big_endian(kind.width()),
    };
    Ok((Meaning::Number(Decoder { kind, order, bit: address.bit, scale, offset }), kind.width()))
}

/// `(BYTES)` behind `string`.
fn string(address: Address, length: &str, order: Option<&str>) -> Result<(Meaning, u16), String> {
    let digits = length.strip_prefix('(').and_then(|l| l.strip_suffix(')'));
    let bytes: Option<usize> = digits.and_then(|d| d.parse().ok()).filter(|n| (1..=LONGEST_TEXT).contains(n));
    let bytes = bytes
        .ok_or_else(|| format!("a string has its length in bytes behind it: string(1) to string({LONGEST_TEXT})"))?;
    if address.table.is_bits() || address.bit.is_some() {
        return Err(format!("{address} is a single bit and cannot be read as a string"));
    }
    let swapped = match order {
        None | Some("AB") => false,
        Some("BA") => true,
        Some(order) => return Err(format!("{order:?}: the byte order of a string is AB or BA")),
    };
    Ok((Meaning::Text { bytes, swapped }, bytes.div_ceil(2) as u16))
}
