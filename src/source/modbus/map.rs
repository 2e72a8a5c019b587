//! From a register map, as vendors hand it out in a CSV, to a device profile. Pure. What cannot be
//! understood is told with its line and left out: nothing is guessed that would give a wrong value.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::registers::{Address, Order, Table, Type};

/// Names that columns go by, in lower case without spaces, underscores and dashes.
const NAME: &[&str] = &["name", "signal", "tag", "tagname", "parameter", "variable", "symbol", "label"];
const ADDRESS: &[&str] =
    &["address", "at", "register", "addr", "registeraddress", "modbusaddress", "reg", "offsetaddress"];
const TABLE: &[&str] = &["table", "area", "registertype", "kind", "function", "functioncode", "fc", "objecttype"];
const TYPE: &[&str] = &["type", "datatype", "format", "dataformat", "encoding"];
const ORDER: &[&str] = &["order", "byteorder", "wordorder", "endian", "endianness"];
const SCALE: &[&str] = &["scale", "factor", "multiplier", "gain", "scaling", "resolution"];
const OFFSET: &[&str] = &["offset", "bias"];
const BIT: &[&str] = &["bit", "bitnumber", "bitposition"];
const POLL: &[&str] = &["poll", "pollinterval"];
const NOTES: &[&str] = &["unit", "units", "description", "comment", "remarks", "note", "notes"];

/// How maps name types.
const TYPES: &[(&str, Type)] = &[
    ("bool", Type::Bool),
    ("bit", Type::Bool),
    ("boolean", Type::Bool),
    ("coil", Type::Bool),
    ("u16", Type::U16),
    ("uint16", Type::U16),
    ("uint", Type::U16),
    ("word", Type::U16),
    ("unsigned16", Type::U16),
    ("ushort", Type::U16),
    ("unsigned", Type::U16),
    ("i16", Type::I16),
    ("int16", Type::I16),
    ("int", Type::I16),
    ("s16", Type::I16),
    ("sint16", Type::I16),
    ("short", Type::I16),
    ("signed16", Type::I16),
    ("signed", Type::I16),
    ("u32", Type::U32),
    ("uint32", Type::U32),
    ("dword", Type::U32),
    ("udint", Type::U32),
    ("ulong", Type::U32),
    ("unsigned32", Type::U32),
    ("i32", Type::I32),
    ("int32", Type::I32),
    ("dint", Type::I32),
    ("s32", Type::I32),
    ("long", Type::I32),
    ("sint32", Type::I32),
    ("signed32", Type::I32),
    ("u64", Type::U64),
    ("uint64", Type::U64),
    ("lword", Type::U64),
    ("ulint", Type::U64),
    ("i64", Type::I64),
    ("int64", Type::I64),
    ("lint", Type::I64),
    ("s64", Type::I64),
    ("sint64", Type::I64),
    ("f32", Type::F32),
    ("float32", Type::F32),
    ("float", Type::F32),
    ("real", Type::F32),
    ("single", Type::F32),
    ("f64", Type::F64),
    ("float64", Type::F64),
    ("double", Type::F64),
    ("lreal", Type::F64),
];

/// What the map does not say of itself.
#[derive(Clone, Debug, Default)]
pub struct Assumed {
    /// The table of addresses that are plain numbers, where no column names it.
    pub table: Option<Table>,
    /// What the map calls the first register, 0 or 1.
    pub base: u16,
    /// The order of 32-bit values for which the map names none, such as CDAB; wider ones have their
    /// words the same way round.
    pub order: Option<Order>,
}

/// A profile, and what became of the map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// The text of the profile.
    pub text: String,
    /// How many signals it has.
    pub signals: usize,
    /// What was left out, and why: line and sentence.
    pub left_out: Vec<(u64, String)>,
}

/// Where the columns are.
struct Columns {
    name: Option<usize>,
    address: usize,
    table: Option<usize>,
    kind: Option<usize>,
    order: Option<usize>,
    scale: Option<usize>,
    offset: Option<usize>,
    bit: Option<usize>,
    poll: Option<usize>,
    notes: Vec<usize>,
}

/// Turns a map into a profile. The first row names the columns.
///
/// # Errors
///
/// A sentence for a person when there is no such row, or no column of addresses or types in it.
pub fn import(csv: &[u8], from: &str, assumed: &Assumed) -> Result<Imported, String> {
    let text = String::from_utf8_lossy(csv.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(csv));
    let first = text.lines().find(|l| !l.trim().is_empty()).ok_or("the file is empty")?;
    let delimiter = [b';', b'\t', b','].into_iter().max_by_key(|d| first.bytes().filter(|b| b == d).count());
    let delimiter = delimiter.unwrap_or(b',');
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).trim(csv::Trim::All).from_reader(text.as_bytes());
    let heads = reader.headers().map_err(|e| format!("no row of column names: {e}"))?.clone();
    let columns = Columns::of(&heads)?;
    let mut out = Imported::default();
    let mut names = BTreeSet::new();
    let mut body = String::new();
    for row in reader.records() {
        let row = match row {
            Ok(row) => row,
            Err(e) => {
                out.left_out.push((e.position().map_or(0, csv::Position::line), e.to_string()));
                continue;
            }
        };
        if row.iter().all(str::is_empty) {
            continue;
        }
        match signal(&row, &columns, assumed, delimiter == b';') {
            Ok(signal) => {
                out.signals += 1;
                signal.write(&mut body, unique(&signal.name, &mut names));
            }
            Err(e) => out.left_out.push((row.position().map_or(0, csv::Position::line), e)),
        }
    }
    out.text = format!(
        "# Made from {}.\ndescription = \"{}\"\naddress_base = {}\n{body}",
        plain(from),
        plain(from),
        assumed.base
    );
    Ok(out)
}

impl Columns {
    fn of(heads: &csv::StringRecord) -> Result<Columns, String> {
        let keys: Vec<String> = heads.iter().map(key).collect();
        let find = |names: &[&str]| names.iter().find_map(|n| keys.iter().position(|k| k == n));
        let listed = heads.iter().collect::<Vec<_>>().join(", ");
        let address = find(ADDRESS);
        let address = address.ok_or_else(|| format!("no column is named address or register; there are: {listed}"))?;
        let notes = keys.iter().enumerate().filter(|(_, k)| NOTES.contains(&k.as_str())).map(|(i, _)| i).collect();
        Ok(Columns {
            name: find(NAME),
            address,
            table: find(TABLE),
            kind: find(TYPE),
            order: find(ORDER),
            scale: find(SCALE),
            offset: find(OFFSET),
            bit: find(BIT),
            poll: find(POLL),
            notes,
        })
    }
}

/// A word without what tells spellings apart.
fn key(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// One signal, as it will stand in the profile.
struct Signal {
    name: String,
    at: String,
    kind: Option<Type>,
    order: Option<Order>,
    scale: Option<f64>,
    offset: Option<f64>,
    poll: Option<String>,
    note: String,
}

impl Signal {
    fn write(&self, out: &mut String, name: String) {
        // Writing to a string does not fail.
        let _ = write!(out, "\n[[signal]]");
        if !self.note.is_empty() {
            let _ = write!(out, " # {}", self.note);
        }
        let _ = writeln!(out, "\nname = \"{name}\"\nat = \"{}\"", self.at);
        let words = [("type", self.kind.map(|k| k.as_str().to_owned())), ("order", self.order.map(|o| o.to_string()))];
        let words = words.into_iter().chain([("poll", self.poll.clone())]);
        for (key, value) in words.filter_map(|(key, value)| Some((key, value?))) {
            let _ = writeln!(out, "{key} = \"{value}\"");
        }
        for (key, value) in [("scale", self.scale), ("offset", self.offset)] {
            if let Some(value) = value {
                let _ = writeln!(out, "{key} = {value:?}");
            }
        }
    }
}

fn signal(row: &csv::StringRecord, columns: &Columns, assumed: &Assumed, comma: bool) -> Result<Signal, String> {
    let cell = |column: Option<usize>| column.and_then(|i| row.get(i)).filter(|c| !c.is_empty());
    let table = cell(columns.table).map(table_of).transpose()?.or(assumed.table);
    let (mut at, mut address) = address_of(row.get(columns.address).unwrap_or(""), table, assumed.base)?;
    if let Some(bit) = cell(columns.bit).filter(|_| address.bit.is_none() && !address.table.is_bits()) {
        at = format!("{at}.{bit}");
        address = Address::parse(&at, assumed.base)?;
    }
    let is_bit = address.table.is_bits() || address.bit.is_some();
    let kind = match cell(columns.kind) {
        _ if is_bit => None,
        Some(word) => Some(type_of(word)?),
        None => return Err("names no type: how is it to be read, as u16, i16, f32 …?".into()),
    };
    let order = match (kind, cell(columns.order)) {
        (Some(kind), Some(word)) => Some(order_of(word, kind.width())?),
        (Some(kind), None) => assumed.order.map(|order| widened(order, kind.width())),
        (None, _) => None,
    };
    let number = |column, what: &str| {
        let text = cell(column);
        text.map(|t| number(t, comma).ok_or_else(|| format!("{t:?} is no {what}"))).transpose()
    };
    let (scale, offset) = (number(columns.scale, "scale")?, number(columns.offset, "offset")?);
    if scale == Some(0.0) {
        return Err("a scale of 0 would make every value the same".into());
    }
    let name = cell(columns.name).map_or_else(|| tidy(&at), tidy);
    let poll = cell(columns.poll).map(str::to_owned);
    if let Some(poll) = poll.as_ref().filter(|p| crate::settings::parse_duration(p).is_none()) {
        return Err(format!("{poll:?} is not a duration such as \"500ms\""));
    }
    let note = columns.notes.iter().filter_map(|i| row.get(*i)).filter(|n| !n.is_empty());
    let note = plain(&note.collect::<Vec<_>>().join(", "));
    let usual = |order: &Order| *order != Order::big_endian(order.registers() as u16);
    let apart = |usual: f64| move |value: &f64| *value != usual;
    Ok(Signal {
        name,
        at,
        kind,
        order: order.filter(usual),
        scale: scale.filter(apart(1.0)),
        offset: offset.filter(apart(0.0)),
        poll,
        note,
    })
}

/// `holding:100` or `40101` as it stands; a plain or hexadecimal number with the table of its row.
fn address_of(text: &str, table: Option<Table>, base: u16) -> Result<(String, Address), String> {
    if text.is_empty() {
        return Err("has no address".into());
    }
    let (place, bit) = text.split_once('.').map_or((text, ""), |(place, _)| (place, &text[place.len()..]));
    let hex = place.strip_prefix("0x").or_else(|| place.strip_prefix("0X")).or_else(|| place.strip_suffix(['h', 'H']));
    let plain: Option<u32> = match hex {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => place.parse().ok(),
    };
    // 40101 names its table itself, unless the row says that it is a number of another.
    let noted = (hex.is_none() && place.len() >= 5).then(|| Address::parse(text, base).ok()).flatten();
    if let Some(address) = noted.filter(|a| table.is_none_or(|t| t == a.table)) {
        return Ok((text.to_owned(), address));
    }
    let at = match (plain, table) {
        (Some(number), Some(table)) => format!("{}:{number}{bit}", table.as_str()),
        (Some(_), None) => {
            return Err(format!("{text:?} names no table: is it holding, input, coil or discrete?"));
        }
        (None, _) => text.to_owned(),
    };
    Address::parse(&at, base).map(|address| (at, address))
}

/// The table by name, by the function that reads it, or by the digit of 40101.
fn table_of(word: &str) -> Result<Table, String> {
    let key = key(word);
    let found = match key.as_str() {
        "coil" | "coils" | "do" | "digitaloutput" | "0x" | "1" | "01" | "fc1" | "fc01" | "readcoils" => Table::Coil,
        "discrete" | "discreteinput" | "discreteinputs" | "di" | "digitalinput" | "1x" | "2" | "02" | "fc2"
        | "fc02" => Table::Discrete,
        "holding" | "holdingregister" | "holdingregisters" | "hr" | "ao" | "4x" | "3" | "03" | "fc3" | "fc03" => {
            Table::Holding
        }
        "input" | "inputregister" | "inputregisters" | "ir" | "ai" | "3x" | "4" | "04" | "fc4" | "fc04" => Table::Input,
        _ => {
            return Err(format!(
                "{word:?} is not a table: coil, discrete, input, holding, or the function that reads it"
            ));
        }
    };
    Ok(found)
}

fn type_of(word: &str) -> Result<Type, String> {
    let word_key = key(word);
    let found = TYPES.iter().find(|(name, _)| *name == word_key).map(|(_, kind)| *kind);
    if word_key.starts_with("string") || word_key.starts_with("char") || word_key.starts_with("ascii") {
        return Err("is a text, and a signal is a number".into());
    }
    found.ok_or_else(|| format!("{word:?} is not a type such as u16, int32 or float"))
}

fn order_of(word: &str, registers: u16) -> Result<Order, String> {
    let key = key(word);
    let pair = match key.as_str() {
        "big" | "bigendian" | "be" | "msw" | "mswfirst" | "highwordfirst" | "msb" => "ABCD",
        "little" | "littleendian" | "le" | "lsb" => "DCBA",
        "lsw" | "lswfirst" | "lowwordfirst" | "wordswap" | "wordswapped" | "swapped" | "bigendianwordswap" => "CDAB",
        "byteswap" | "byteswapped" | "bigendianbyteswap" => "BADC",
        _ => return Order::parse(&word.to_ascii_uppercase(), registers),
    };
    Ok(widened(Order::parse(pair, 2)?, registers))
}

/// The order of a value of another width whose bytes and words lie the way those of a 32-bit one do.
fn widened(order: Order, registers: u16) -> Order {
    let letters = order.to_string();
    let text = match (letters.as_str(), registers) {
        ("CDAB", 4) => "GHEFCDAB",
        ("BADC", 4) => "BADCFEHG",
        ("DCBA", 4) => "HGFEDCBA",
        ("BADC" | "DCBA", 1) => "BA",
        (other, 2) => other,
        _ => return Order::big_endian(registers),
    };
    Order::parse(text, registers).unwrap_or(Order::big_endian(registers))
}

/// `0.1`, `/10`, `x0.1`, `1/10`; `0,1` where the file has semicolons between.
fn number(text: &str, comma: bool) -> Option<f64> {
    let text = if comma { text.replace(',', ".") } else { text.to_owned() };
    let text = text.trim_start_matches(['x', 'X', '*', '×']).trim();
    let value = match text.split_once('/') {
        Some((above, below)) => {
            let above: f64 = if above.trim().is_empty() { 1.0 } else { above.trim().parse().ok()? };
            above / below.trim().parse::<f64>().ok()?
        }
        None => text.parse().ok()?,
    };
    value.is_finite().then_some(value)
}

/// A name fit for topics: letters, digits and underscores.
fn tidy(text: &str) -> String {
    let words: Vec<String> = (text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()))
        .map(|word| word.to_lowercase())
        .collect();
    if words.is_empty() { "signal".into() } else { words.join("_") }
}

fn unique(name: &str, names: &mut BTreeSet<String>) -> String {
    let numbered = (2..).map(|n| format!("{name}_{n}"));
    let free = std::iter::once(name.to_owned()).chain(numbered).find(|n| !names.contains(n));
    let free = free.unwrap_or_default();
    names.insert(free.clone());
    free
}

/// Fit for a comment and for a string in TOML.
fn plain(text: &str) -> String {
    let unfit = |c: char| c.is_control() || c.is_whitespace() || c == '"' || c == '\\';
    text.split(unfit).filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
