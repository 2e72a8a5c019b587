//! What devices, lines and people's register maps may hold, as functions of bytes, for `crate::fuzz`.

use super::frame::{self, TCP_HEADER, Write};
use super::learnt::Learnt;
use super::map::{Assumed, import};
use super::plan::{Memory, Span};
use super::registers::{Address, Decoder, Table, Type};
use super::{Url, profile, trace};
use crate::types::Time;

/// An answer, read as one to each kind of request.
fn answer(pdu: &[u8]) {
    for (table, count) in [(Table::Holding, 2), (Table::Input, 125), (Table::Coil, 11), (Table::Discrete, 2000)] {
        if let Ok(values) = frame::values(pdu, Span { table, start: 0, count }) {
            assert_eq!(values.len(), usize::from(count));
            for (_, kind) in Type::NAMES.iter().filter(|(_, t)| usize::from(t.width()) <= values.len()) {
                let number = Decoder::plain(*kind).decode(&values[..usize::from(kind.width())]);
                assert!(number.is_none_or(f64::is_finite));
            }
        }
    }
    let _ = Write::Coil(3, true).done(pdu);
}

/// An answer over TCP.
pub fn tcp(bytes: &[u8]) {
    let _ = trace::line(trace::Way::In, trace::Wrap::Tcp, bytes);
    let Some((header, rest)) = bytes.split_first_chunk::<TCP_HEADER>() else { return };
    if let Ok(length) = frame::tcp_length(header)
        && let Some(pdu) = rest.get(..length - TCP_HEADER)
    {
        answer(pdu);
    }
}

/// An answer on a serial line; its checksum is mended, or nothing would be read.
pub fn rtu(bytes: &[u8]) {
    let _ = (frame::rtu_length(bytes), frame::rtu_is_whole(bytes));
    let whole = [bytes, &frame::crc(bytes).to_le_bytes()].concat();
    assert!(frame::rtu_is_whole(&whole));
    let _ = trace::line(trace::Way::In, trace::Wrap::Rtu, &whole);
    if let Ok(Some(length)) = frame::rtu_length(&whole)
        && length <= whole.len()
    {
        answer(&whole[1..length - 2]);
    }
}

/// A vendor's register map.
pub fn map(bytes: &[u8]) {
    for assumed in [Assumed::default(), Assumed { table: Some(Table::Holding), base: 1, order: None }] {
        let _ = import(bytes, "map.csv", &assumed);
    }
}

/// A device profile.
pub fn profile(bytes: &[u8]) {
    let _ = profile::problems(&String::from_utf8_lossy(bytes));
}

/// What an earlier run learnt of a device.
pub fn learnt(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let url = Url::parse("tcp://127.0.0.1").expect("a URL");
    let learnt = Learnt::new(dir.path(), "s", &url, 1);
    let empty = Memory::default();
    learnt.keep(&empty, Time(0)).expect("written");
    let path = std::fs::read_dir(dir.path()).expect("the directory").flatten().next().expect("the file").path();
    std::fs::write(path, bytes).expect("written");
    let mut memory = Memory::default();
    let spans = [Span { table: Table::Holding, start: 100, count: 2 }];
    if learnt.recall(&mut memory, &spans, Time(0)).is_ok() {
        learnt.keep(&memory, Time(0)).expect("what was read can be written");
    }
}

/// Where a device is, and an address in it.
pub fn url(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(url) = Url::parse(&text) {
        assert_eq!(Url::parse(&url.to_string()).as_ref(), Ok(&url), "{url}");
    }
    for base in [0, 1] {
        if let Ok(address) = Address::parse(&text, base) {
            assert!(!address.to_string().is_empty());
        }
    }
}
