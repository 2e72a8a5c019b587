//! Requests and answers as bytes: the part that all transports share, the header of Modbus TCP and
//! the checksum of RTU. Pure.

use super::connection::Failure;
use super::plan::Span;
use super::registers::Table;

/// The header of Modbus TCP: transaction, protocol, length, unit.
pub const TCP_HEADER: usize = 7;
/// The most bytes a frame of Modbus TCP may have: the header and a PDU of 253.
const TCP_LONGEST: usize = TCP_HEADER + 253;
/// The first bytes of an RTU answer, which tell its length: unit, function, count or exception.
const RTU_HEAD: usize = 3;
/// The answer to a write: unit, the request as it was, checksum.
const RTU_ECHO: usize = 8;
/// Set in the function of an answer that is an exception.
pub const REFUSED: u8 = 0x80;

/// The function that reads a table.
pub fn function(table: Table) -> u8 {
    match table {
        Table::Coil => 1,
        Table::Discrete => 2,
        Table::Holding => 3,
        Table::Input => 4,
    }
}

/// The table that a function reads.
pub fn table(function: u8) -> Option<Table> {
    [Table::Coil, Table::Discrete, Table::Holding, Table::Input].into_iter().find(|t| self::function(*t) == function)
}

/// How many bytes of values answer a request for `span`.
pub fn answer_bytes(span: Span) -> usize {
    if span.table.is_bits() { usize::from(span.count).div_ceil(8) } else { usize::from(span.count) * 2 }
}

/// A request without what a transport puts around it: all that are made here are of one length.
pub type Request = [u8; 5];

/// A write of one coil or one holding register. Only the stack light makes any.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// A coil, on or off.
    Coil(u16, bool),
    /// A holding register.
    Register(u16, u16),
}

impl Write {
    /// What is written, as reading it gives it: where and what.
    pub fn expects(self) -> (Span, u16) {
        let span = |table, start| Span { table, start, count: 1 };
        match self {
            Write::Coil(at, on) => (span(Table::Coil, at), on.into()),
            Write::Register(at, value) => (span(Table::Holding, at), value),
        }
    }

    /// The request; a device that has done it answers with the same bytes.
    pub fn request(self) -> Request {
        let (function, at, value) = match self {
            Write::Coil(at, on) => (5, at, if on { 0xFF00 } else { 0 }),
            Write::Register(at, value) => (6, at, value),
        };
        let ([a, b], [c, d]) = (at.to_be_bytes(), value.to_be_bytes());
        [function, a, b, c, d]
    }

    /// What an answer to it says.
    ///
    /// # Errors
    ///
    /// [`Failure::Exception`] or [`Failure::Broken`].
    pub fn done(self, pdu: &[u8]) -> Result<(), Failure> {
        let request = self.request();
        match *pdu {
            [f, code] if f == request[0] | REFUSED => Err(Failure::Exception(code, exception_name(code).into())),
            _ if pdu == request => Ok(()),
            _ => Err(Failure::Broken("the answer is not the echo of what was written".into())),
        }
    }
}

/// The request that reads a span.
pub fn request(span: Span) -> Request {
    let ([a, b], [c, d]) = (span.start.to_be_bytes(), span.count.to_be_bytes());
    [function(span.table), a, b, c, d]
}

/// A request as Modbus TCP has it.
pub fn tcp_request(transaction: u16, unit: u8, request: Request) -> [u8; 12] {
    let [t, u] = transaction.to_be_bytes();
    let [f, a, b, c, d] = request;
    [t, u, 0, 0, 0, 6, unit, f, a, b, c, d]
}

/// A request as RTU has it.
pub fn rtu_request(unit: u8, request: Request) -> [u8; 8] {
    let [f, a, b, c, d] = request;
    let [low, high] = crc(&[unit, f, a, b, c, d]).to_le_bytes();
    [unit, f, a, b, c, d, low, high]
}

/// The length of the whole TCP frame that starts with this header.
///
/// # Errors
///
/// A sentence for a person, when no Modbus frame starts like this.
pub fn tcp_length(header: &[u8; TCP_HEADER]) -> Result<usize, String> {
    let [_, _, protocol_high, protocol_low, high, low, _] = *header;
    let protocol = u16::from_be_bytes([protocol_high, protocol_low]);
    if protocol != 0 {
        return Err(format!("protocol {protocol} in place of 0"));
    }
    let length = usize::from(u16::from_be_bytes([high, low])) + TCP_HEADER - 1;
    // At the least a function and a byte after it.
    if !(TCP_HEADER + 2..=TCP_LONGEST).contains(&length) {
        return Err(format!("a frame of {length} bytes"));
    }
    Ok(length)
}

/// The length of the whole RTU answer that starts with these bytes; `None` while there are too few
/// to tell.
///
/// # Errors
///
/// A sentence for a person, when no answer to a request of ours starts like this.
pub fn rtu_length(bytes: &[u8]) -> Result<Option<usize>, String> {
    let Some(&function) = bytes.get(1) else { return Ok(None) };
    let writes = matches!(function & !REFUSED, 5 | 6);
    if !writes && table(function & !REFUSED).is_none() {
        return Err(format!("function {function}"));
    }
    if function & REFUSED != 0 {
        return Ok(Some(RTU_HEAD + 2));
    }
    if writes {
        return Ok(Some(RTU_ECHO));
    }
    Ok(bytes.get(2).map(|count| RTU_HEAD + usize::from(*count) + 2))
}

/// Whether an RTU frame's last two bytes are the checksum of the rest.
pub fn rtu_is_whole(frame: &[u8]) -> bool {
    frame.split_last_chunk::<2>().is_some_and(|(rest, sum)| crc(rest) == u16::from_le_bytes(*sum))
}

/// The checksum of RTU: CRC-16 with polynomial 8005, bits reversed, starting from FFFF.
pub fn crc(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0xFFFF, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xA001 } else { crc >> 1 })
    })
}

/// The values in an answer to the request for `span`: a word for each register, or 0 or 1 for each
/// bit. `pdu` starts with the function, which is that of the request.
///
/// # Errors
///
/// [`Failure::Exception`], [`Failure::Length`] or [`Failure::Broken`].
pub fn values(pdu: &[u8], span: Span) -> Result<Vec<u16>, Failure> {
    let asked = function(span.table);
    let (count, bytes) = match *pdu {
        [f, code] if f == asked | REFUSED => return Err(Failure::Exception(code, exception_name(code).into())),
        [f, ..] if f & !REFUSED != asked => return Err(Failure::Broken("the answer is to another function".into())),
        [f, count, ref bytes @ ..] if f == asked => (count, bytes),
        _ => return Err(Failure::Broken("the answer cannot be read".into())),
    };
    if bytes.len() != usize::from(count) || !span.table.is_bits() && count % 2 != 0 {
        return Err(Failure::Broken("the answer cannot be read: its length is not what it says".into()));
    }
    let values: Vec<u16> = if span.table.is_bits() {
        let bits = bytes.iter().flat_map(|byte| (0..8).map(move |bit| u16::from(byte >> bit & 1)));
        bits.take(span.count.into()).collect()
    } else {
        bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
    };
    if bytes.len() == answer_bytes(span) {
        Ok(values)
    } else {
        let got = if span.table.is_bits() { bytes.len() * 8 } else { values.len() };
        Err(Failure::Length { asked: span.count, got })
    }
}

/// What the protocol calls an exception.
pub fn exception_name(code: u8) -> &'static str {
    match code {
        1 => "illegal function",
        2 => "illegal data address",
        3 => "illegal data value",
        4 => "server device failure",
        5 => "acknowledge",
        6 => "server device busy",
        8 => "memory parity error",
        10 => "gateway path unavailable",
        11 => "gateway target device failed to respond",
        _ => "not known to the protocol",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn span(table: Table, start: u16, count: u16) -> Span {
        Span { table, start, count }
    }

    #[test]
    fn the_examples_of_the_specification() {
        // Modbus application protocol 1.1b3, 6.3: registers 108 to 110 hold 022B, 0000, 0064.
        let asked = span(Table::Holding, 107, 3);
        assert_eq!(request(asked), [3, 0, 0x6B, 0, 3]);
        let answer = [3, 6, 0x02, 0x2B, 0, 0, 0, 0x64];
        assert_eq!(values(&answer, asked), Ok(vec![0x022B, 0, 0x64]));
        // 6.1: coils 20 to 38.
        let asked = span(Table::Coil, 19, 19);
        assert_eq!(request(asked), [1, 0, 0x13, 0, 0x13]);
        let bits = values(&[1, 3, 0xCD, 0x6B, 0x05], asked).expect("19 bits");
        assert_eq!(bits, [1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1, 0, 1, 1, 0, 1, 0, 1]);
    }

    #[test]
    fn the_checksum_is_the_one_in_use() {
        assert_eq!(crc(b"123456789"), 0x4B37);
        assert_eq!(rtu_request(1, request(span(Table::Holding, 0, 10))), [1, 3, 0, 0, 0, 10, 0xC5, 0xCD]);
        assert!(rtu_is_whole(&[1, 3, 0, 0, 0, 10, 0xC5, 0xCD]));
        assert!(!rtu_is_whole(&[1, 3, 0, 0, 0, 11, 0xC5, 0xCD]));
        assert!(!rtu_is_whole(&[1]));
    }

    #[test]
    fn writes_as_the_specification_has_them() {
        // 6.5: coil 173 on; 6.6: register 2 is 3.
        let (coil, register) = (Write::Coil(172, true), Write::Register(1, 3));
        assert_eq!((coil.request(), register.request()), ([5, 0, 0xAC, 0xFF, 0], [6, 0, 1, 0, 3]));
        assert_eq!(coil.expects(), (span(Table::Coil, 172, 1), 1));
        assert_eq!(coil.done(&[5, 0, 0xAC, 0xFF, 0]), Ok(()));
        assert_eq!(coil.done(&[0x85, 2]), Err(Failure::Exception(2, "illegal data address".into())));
        for pdu in [&[][..], &[5], &[5, 0, 0xAC, 0, 0], &[6, 0, 0xAC, 0xFF, 0], &[0x86, 2], &[5, 0, 0xAC, 0xFF, 0, 0]] {
            assert!(matches!(coil.done(pdu), Err(Failure::Broken(_))), "{pdu:?}");
        }
        assert_eq!((rtu_length(&[1, 5]), rtu_length(&[1, 0x86])), (Ok(Some(8)), Ok(Some(5))));
    }

    #[test]
    fn an_answer_of_another_length_is_refused() {
        let registers = |n: u8| [vec![3, n * 2], [0, 7].repeat(n.into())].concat();
        let asked = span(Table::Holding, 0, 2);
        assert_eq!(values(&registers(2), asked), Ok(vec![7, 7]));
        for got in [0, 1, 3] {
            assert_eq!(values(&registers(got), asked), Err(Failure::Length { asked: 2, got: got.into() }));
        }
        let asked = span(Table::Coil, 0, 9);
        assert_eq!(values(&[1, 2, 0xFF, 0xFF], asked), Ok(vec![1; 9]));
        assert_eq!(values(&[1, 1, 0xFF], asked), Err(Failure::Length { asked: 9, got: 8 }));
        assert!(values(&[1, 3, 0, 0, 0], asked).is_err());
    }

    #[test]
    fn what_is_no_answer_to_the_request_is_refused() {
        let asked = span(Table::Holding, 0, 1);
        assert_eq!(values(&[0x83, 2], asked), Err(Failure::Exception(2, "illegal data address".into())));
        for pdu in [&[][..], &[3], &[0x83], &[0x84, 2], &[4, 2, 0, 0], &[3, 2, 0], &[3, 3, 0, 0, 0], &[0x83, 2, 0]] {
            assert!(matches!(values(pdu, asked), Err(Failure::Broken(_))), "{pdu:?}");
        }
    }

    #[test]
    fn lengths_are_told_from_the_head() {
        assert_eq!(tcp_length(&[0, 1, 0, 0, 0, 3, 1]), Ok(9));
        assert!(tcp_length(&[0, 1, 0, 0, 0, 2, 1]).is_err());
        assert!(tcp_length(&[0, 1, 0, 0, 1, 0, 1]).is_err());
        assert!(tcp_length(b"HTTP/1.").is_err());
        assert_eq!(rtu_length(&[1]), Ok(None));
        assert_eq!(rtu_length(&[1, 3]), Ok(None));
        assert_eq!(rtu_length(&[1, 3, 4]), Ok(Some(9)));
        assert_eq!(rtu_length(&[1, 0x83]), Ok(Some(5)));
        assert!(rtu_length(&[1, 0x55]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), count in 1..=125_u16, bits: bool) {
            let asked = span(if bits { Table::Coil } else { Table::Holding }, 0, count);
            if let Ok(values) = values(&bytes, asked) {
                prop_assert_eq!(values.len(), usize::from(count));
            }
            let _ = (rtu_length(&bytes), rtu_is_whole(&bytes));
        }
    }
}
