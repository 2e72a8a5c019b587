//! What a register means: addresses as people write them, value types, byte orders. Pure.
//! For the poller, for `andon modbus`, and for the simulated devices.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One of the four tables of a Modbus device.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Table {
    /// Single bits that could be written (function 1).
    Coil,
    /// Single bits, read-only (function 2).
    Discrete,
    /// 16-bit registers, read-only (function 4).
    Input,
    /// 16-bit registers that could be written (function 3).
    Holding,
}

impl Table {
    /// All of them, with the word used in addresses and the digit that 40101 notation begins with.
    const NAMES: [(Table, &'static str, char); 4] = [
        (Table::Coil, "coil", '0'),
        (Table::Discrete, "discrete", '1'),
        (Table::Input, "input", '3'),
        (Table::Holding, "holding", '4'),
    ];

    /// The word used in addresses.
    pub fn as_str(self) -> &'static str {
        Self::NAMES[self as usize].1
    }

    /// Whether it holds single bits rather than registers.
    pub fn is_bits(self) -> bool {
        matches!(self, Table::Coil | Table::Discrete)
    }
}

/// A place in a device, counted from 0 as on the wire.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// The table.
    pub table: Table,
    /// The register or bit within it, from 0.
    pub at: u16,
    /// One bit of that register, 0 the least significant.
    pub bit: Option<u8>,
}

impl Address {
    /// Reads `holding:100`, `holding:12.3`, `40101` or `400101`.
    ///
    /// `base` is what the first register is called in the `kind:N` form, 0 or 1. The digits form
    /// always counts from 1: 40001 is the first holding register.
    ///
    /// # Errors
    ///
    /// A sentence for a person.
    pub fn parse(text: &str, base: u16) -> Result<Address, String> {
        let (place, bit) = match text.split_once('.') {
            Some((place, bit)) => (place, Some(parse_bit(text, bit)?)),
            None => (text, None),
        };
        let (table, number, base) = match place.split_once(':') {
            Some((word, number)) => (table_by_word(word)?, number, u32::from(base)),
            None => {
                let (table, number) = split_digits(place)?;
                (table, number, 1)
            }
        };
        if table.is_bits() && bit.is_some() {
            return Err(format!("{text:?}: a {} is a single bit already", table.as_str()));
        }
        let at = digits(number).and_then(|n| n.checked_sub(base)).and_then(|n| u16::try_from(n).ok());
        let at = at.ok_or_else(|| format!("{text:?} is not between {base} and {}", base + 65535))?;
        Ok(Address { table, at, bit })
    }
}

impl fmt::Display for Address {
    /// In the `kind:N` form, from 0.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.table.as_str(), self.at)?;
        self.bit.map_or(Ok(()), |bit| write!(f, ".{bit}"))
    }
}

fn digits(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.len() <= 6 && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

fn parse_bit(text: &str, bit: &str) -> Result<u8, String> {
    let n = digits(bit).filter(|n| *n < 16).and_then(|n| u8::try_from(n).ok());
    n.ok_or_else(|| format!("{text:?}: the bit is not between 0 and 15"))
}

fn table_by_word(word: &str) -> Result<Table, String> {
    let found = Table::NAMES.iter().find(|(_, name, _)| *name == word).map(|(table, ..)| *table);
    found.ok_or_else(|| {
        let hint = crate::settings::hint(word, &["coil", "discrete", "input", "holding"]);
        format!("{word:?} is not one of coil, discrete, input, holding{hint}")
    })
}

/// `40101` or `400101`: the first digit names the table.
fn split_digits(text: &str) -> Result<(Table, &str), String> {
    let wrong = || format!("{text:?} is not an address such as \"holding:100\", \"40101\" or \"400101\"");
    if !(5..=6).contains(&text.len()) || digits(text).is_none() {
        return Err(wrong());
    }
    let table = Table::NAMES.iter().find(|(.., digit)| text.starts_with(*digit)).map(|(table, ..)| *table);
    Ok((table.ok_or_else(wrong)?, &text[1..]))
}

/// How the bits at an address are read as a number.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub enum Type {
    /// One bit: 0 or 1.
    Bool,
    /// One register.
    U16,
    /// One register, two's complement.
    I16,
    /// Two registers.
    U32,
    /// Two registers, two's complement.
    I32,
    /// Four registers; exact up to 2^53.
    U64,
    /// Four registers, two's complement; exact within ±2^53.
    I64,
    /// Two registers, IEEE 754.
    F32,
    /// Four registers, IEEE 754.
    F64,
}

impl Type {
    /// All of them, with the words used in configs.
    pub const NAMES: [(&'static str, Type); 9] = [
        ("bool", Type::Bool),
        ("u16", Type::U16),
        ("i16", Type::I16),
        ("u32", Type::U32),
        ("i32", Type::I32),
        ("u64", Type::U64),
        ("i64", Type::I64),
        ("f32", Type::F32),
        ("f64", Type::F64),
    ];

    /// The word used in configs.
    pub fn as_str(self) -> &'static str {
        Self::NAMES[self as usize].0
    }

    /// How many registers (or bits, in a table of bits) it takes.
    pub fn width(self) -> u16 {
        match self {
            Type::Bool | Type::U16 | Type::I16 => 1,
            Type::U32 | Type::I32 | Type::F32 => 2,
            Type::U64 | Type::I64 | Type::F64 => 4,
        }
    }

    /// The number that these big-endian bytes stand for. Missing bytes count as zero.
    fn number(self, bytes: [u8; 8]) -> f64 {
        let [a, b, c, d, ..] = bytes;
        match self {
            Type::Bool => f64::from(u16::from_be_bytes([a, b]) & 1),
            Type::U16 => f64::from(u16::from_be_bytes([a, b])),
            Type::I16 => f64::from(i16::from_be_bytes([a, b])),
            Type::U32 => f64::from(u32::from_be_bytes([a, b, c, d])),
            Type::I32 => f64::from(i32::from_be_bytes([a, b, c, d])),
            Type::F32 => f64::from(f32::from_be_bytes([a, b, c, d])),
            Type::U64 => u64::from_be_bytes(bytes) as f64,
            Type::I64 => i64::from_be_bytes(bytes) as f64,
            Type::F64 => f64::from_be_bytes(bytes),
        }
    }
}

/// In which order the bytes of a value come on the wire.
///
/// The letters name the bytes of the big-endian value, `A` the most significant, and stand in the
/// order in which they arrive: registers in address order, the high byte of each register first.
/// Any permutation will do.
///
/// The f32 123.456 is `42 F6 E9 79` in big-endian: A = 42, B = F6, C = E9, D = 79. In two registers:
///
/// | order | first register | second register | also called |
/// |---|---|---|---|
/// | `ABCD` | 42F6 | E979 | big-endian, the Modbus way |
/// | `CDAB` | E979 | 42F6 | word swap |
/// | `BADC` | F642 | 79E9 | byte swap |
/// | `DCBA` | 79E9 | F642 | little-endian |
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Order {
    /// For each wire byte, the place in the big-endian value it belongs to.
    places: [u8; 8],
    len: u8,
}

impl Order {
    /// Big-endian for values of this many registers (1, 2 or 4).
    pub fn big_endian(registers: u16) -> Order {
        Order { places: [0, 1, 2, 3, 4, 5, 6, 7], len: (registers.min(4) * 2) as u8 }
    }

    /// Reads `CDAB` and the like for a value of this many registers (1, 2 or 4).
    ///
    /// # Errors
    ///
    /// A sentence for a person: wrong length, or not each letter once.
    pub fn parse(text: &str, registers: u16) -> Result<Order, String> {
        let mut order = Order::big_endian(registers);
        let all = &"ABCDEFGH"[..usize::from(order.len)];
        if text.len() != all.len() {
            return Err(format!("{text:?} should have {} letters, such as {all}", all.len()));
        }
        if !all.bytes().all(|letter| text.bytes().any(|b| b == letter)) {
            return Err(format!("{text:?} should hold each of the letters {all} once"));
        }
        for (place, letter) in order.places.iter_mut().zip(text.bytes()) {
            *place = letter - b'A';
        }
        Ok(order)
    }

    /// How many registers a value of this order takes.
    pub fn registers(self) -> usize {
        usize::from(self.len / 2)
    }

    /// The big-endian bytes of the value in these registers; missing registers count as zero.
    fn to_value(self, registers: &[u16]) -> [u8; 8] {
        let wire = registers.iter().flat_map(|r| r.to_be_bytes());
        let mut value = [0; 8];
        for (byte, place) in wire.zip(&self.places[..usize::from(self.len)]) {
            value[usize::from(*place)] = byte;
        }
        value
    }

    /// The registers that carry these big-endian bytes.
    pub fn to_registers(self, value: [u8; 8]) -> Vec<u16> {
        let wire = self.places.map(|place| value[usize::from(place)]);
        let pairs = wire[..usize::from(self.len)].chunks_exact(2);
        pairs.map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = &self.places[..usize::from(self.len)];
        letters.iter().try_for_each(|place| write!(f, "{}", char::from(b'A' + place)))
    }
}

/// How to turn what is at an address into a number in the signal's own unit.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Decoder {
    /// The type.
    pub kind: Type,
    /// The byte order; not used in tables of bits.
    pub order: Order,
    /// The bit of the register, for a bool in a table of registers.
    pub bit: Option<u8>,
    /// The number is multiplied by this,
    pub scale: f64,
    /// and then this is added.
    pub offset: f64,
}

impl Decoder {
    /// Plain big-endian, unscaled.
    pub fn plain(kind: Type) -> Decoder {
        Decoder { kind, order: Order::big_endian(kind.width()), bit: None, scale: 1.0, offset: 0.0 }
    }

    /// The value in these registers, or `None` when it is not finite. A bit out of a table of bits
    /// is a register of 0 or 1. Missing registers count as zero.
    pub fn decode(&self, registers: &[u16]) -> Option<f64> {
        let mut bytes = self.order.to_value(registers);
        if let Some(bit) = self.bit {
            let word = u16::from_be_bytes([bytes[0], bytes[1]]) >> u16::from(bit.min(15)) & 1;
            [bytes[0], bytes[1]] = word.to_be_bytes();
        }
        let value = self.kind.number(bytes) * self.scale + self.offset;
        value.is_finite().then_some(value)
    }
}

/// The text in these registers: two bytes in each, the high one first unless `swapped`. It ends at
/// the first zero byte; spaces behind it go. What is not UTF-8 is replaced.
pub fn text(registers: &[u16], bytes: usize, swapped: bool) -> String {
    let pair = |word: &u16| if swapped { word.to_le_bytes() } else { word.to_be_bytes() };
    let all: Vec<u8> = registers.iter().flat_map(pair).take(bytes).take_while(|b| *b != 0).collect();
    String::from_utf8_lossy(&all).trim_end_matches(' ').to_owned()
}

#[cfg(test)]
mod tests;
