//! Frames in hex with what they mean, for `andon modbus --trace`. Pure.

use super::frame::{REFUSED, TCP_HEADER, exception_name, table};

/// Takes the lines of a trace.
pub type Tap = fn(&str);

/// How a frame is wrapped.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Wrap {
    /// Modbus TCP: a header before it.
    Tcp,
    /// RTU: the unit before it, a checksum behind.
    Rtu,
}

/// Which way a frame goes.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the device.
    Out,
    /// From the device.
    In,
}

/// `-> 00 01 … 02  transaction 1, unit 1, read holding 100, 2 registers`
pub fn line(way: Way, wrap: Wrap, frame: &[u8]) -> String {
    let hex: Vec<String> = frame.iter().map(|b| format!("{b:02X}")).collect();
    let arrow = if way == Way::Out { "->" } else { "<-" };
    format!("{arrow} {}  {}", hex.join(" "), meaning(way, wrap, frame))
}

fn meaning(way: Way, wrap: Wrap, frame: &[u8]) -> String {
    let (head, unit, pdu) = match (wrap, frame) {
        (Wrap::Tcp, [a, b, ..]) if frame.len() > TCP_HEADER => {
            let transaction = u16::from_be_bytes([*a, *b]);
            (format!("transaction {transaction}, "), frame[TCP_HEADER - 1], &frame[TCP_HEADER..])
        }
        (Wrap::Rtu, [unit, pdu @ .., _, _]) if !pdu.is_empty() => (String::new(), *unit, pdu),
        _ => return format!("{} bytes that are no frame", frame.len()),
    };
    let said = if way == Way::Out { asked(pdu) } else { answered(pdu) };
    let said = said.unwrap_or_else(|| format!("function {}, not understood", pdu[0]));
    format!("{head}unit {unit}, {said}")
}

fn asked(pdu: &[u8]) -> Option<String> {
    let &[function, a, b, c, d] = pdu else { return None };
    if let Some(said) = written(pdu) {
        return Some(said);
    }
    let (table, start, count) = (table(function)?, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    let what = counted(count.into(), if table.is_bits() { "bit" } else { "register" });
    Some(format!("function {function}, read {} {start}, {what}", table.as_str()))
}

/// A write, or its answer, which is the same.
fn written(pdu: &[u8]) -> Option<String> {
    let &[function, a, b, c, d] = pdu else { return None };
    let (at, value) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    match function {
        5 => Some(format!("function 5, write coil {at}: {}", if value == 0 { "off" } else { "on" })),
        6 => Some(format!("function 6, write holding {at}: {value:04X}")),
        _ => None,
    }
}

fn answered(pdu: &[u8]) -> Option<String> {
    match *pdu {
        [5 | 6, ..] => written(pdu),
        [function, code] if function & REFUSED != 0 => {
            let name = exception_name(code);
            Some(format!("function {}, exception {code}: {name}", function & !REFUSED))
        }
        [function, count, ref bytes @ ..] if bytes.len() == usize::from(count) => {
            let table = table(function)?;
            let (what, each) = if table.is_bits() { ("byte of bits", 1) } else { ("register", 2) };
            let values: Vec<String> = bytes.chunks(each).map(hex).collect();
            let what = if table.is_bits() && values.len() != 1 {
                format!("{} bytes of bits", values.len())
            } else {
                counted(values.len(), what)
            };
            Some(format!("function {function}, {what} of {}: {}", table.as_str(), values.join(" ")))
        }
        _ => None,
    }
}

fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_are_told_in_words() {
        let tcp = |way, frame: &[u8]| line(way, Wrap::Tcp, frame);
        assert_eq!(
            tcp(Way::Out, &[0, 7, 0, 0, 0, 6, 1, 3, 0, 100, 0, 2]),
            "-> 00 07 00 00 00 06 01 03 00 64 00 02  transaction 7, unit 1, function 3, read holding 100, 2 registers"
        );
        assert_eq!(
            tcp(Way::In, &[0, 7, 0, 0, 0, 7, 1, 3, 4, 0, 0, 0x41, 0xBC]),
            "<- 00 07 00 00 00 07 01 03 04 00 00 41 BC  transaction 7, unit 1, function 3, 2 registers of holding: 0000 41BC"
        );
        assert_eq!(
            tcp(Way::In, &[0, 7, 0, 0, 0, 3, 1, 0x83, 2]),
            "<- 00 07 00 00 00 03 01 83 02  transaction 7, unit 1, function 3, exception 2: illegal data address"
        );
        let rtu = line(Way::Out, Wrap::Rtu, &[9, 1, 0, 0, 0, 1, 0xFD, 0x42]);
        assert_eq!(rtu, "-> 09 01 00 00 00 01 FD 42  unit 9, function 1, read coil 0, 1 bit");
        let rtu = line(Way::In, Wrap::Rtu, &[9, 1, 1, 5, 0, 0]);
        assert_eq!(rtu, "<- 09 01 01 05 00 00  unit 9, function 1, 1 byte of bits of coil: 05");
        let write = line(Way::In, Wrap::Rtu, &[9, 5, 0, 10, 0xFF, 0, 0, 0]);
        assert_eq!(write, "<- 09 05 00 0A FF 00 00 00  unit 9, function 5, write coil 10: on");
        assert_eq!(line(Way::In, Wrap::Rtu, &[9, 1]), "<- 09 01  2 bytes that are no frame");
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            for way in [Way::In, Way::Out] {
                for wrap in [Wrap::Tcp, Wrap::Rtu] {
                    prop_assert!(!line(way, wrap, &bytes).is_empty());
                }
            }
        }
    }
}
