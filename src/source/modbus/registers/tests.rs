//! Registers to numbers: every type and byte order, addresses in both notations.

use proptest::prelude::*;

use super::*;

fn at(table: Table, at: u16, bit: Option<u8>) -> Address {
    Address { table, at, bit }
}

fn decode(kind: Type, order: &str, registers: &[u16]) -> Option<f64> {
    let order = Order::parse(order, kind.width()).expect("an order");
    Decoder { order, ..Decoder::plain(kind) }.decode(registers)
}

#[test]
fn addresses_as_people_write_them() {
    for (text, base, wanted) in [
        ("holding:100", 0, at(Table::Holding, 100, None)),
        ("holding:100", 1, at(Table::Holding, 99, None)),
        ("holding:12.3", 0, at(Table::Holding, 12, Some(3))),
        ("input:0", 0, at(Table::Input, 0, None)),
        ("coil:65535", 0, at(Table::Coil, 65535, None)),
        ("coil:65536", 1, at(Table::Coil, 65535, None)),
        ("discrete:7", 0, at(Table::Discrete, 7, None)),
        ("40001", 0, at(Table::Holding, 0, None)),
        ("40001", 1, at(Table::Holding, 0, None)),
        ("40101", 0, at(Table::Holding, 100, None)),
        ("40101.15", 0, at(Table::Holding, 100, Some(15))),
        ("400101", 0, at(Table::Holding, 100, None)),
        ("465536", 0, at(Table::Holding, 65535, None)),
        ("30001", 0, at(Table::Input, 0, None)),
        ("10001", 0, at(Table::Discrete, 0, None)),
        ("00001", 0, at(Table::Coil, 0, None)),
        ("49999", 0, at(Table::Holding, 9998, None)),
    ] {
        assert_eq!(Address::parse(text, base), Ok(wanted), "{text} from {base}");
    }
}

#[test]
fn wrong_addresses_are_told_why() {
    let told = |text: &str, base| Address::parse(text, base).expect_err(text);
    assert_eq!(told("holdin:5", 0), "\"holdin\" is not one of coil, discrete, input, holding; did you mean `holding`?");
    assert_eq!(told("holding:65536", 0), "\"holding:65536\" is not between 0 and 65535");
    assert_eq!(told("holding:0", 1), "\"holding:0\" is not between 1 and 65536");
    assert_eq!(told("40000", 0), "\"40000\" is not between 1 and 65536");
    assert_eq!(told("465537", 0), "\"465537\" is not between 1 and 65536");
    assert_eq!(told("coil:3.1", 0), "\"coil:3.1\": a coil is a single bit already");
    assert_eq!(told("holding:3.16", 0), "\"holding:3.16\": the bit is not between 0 and 15");
    for text in ["", "101", "4000001", "20001", "50001", "4000x", "x", "+4001"] {
        assert!(told(text, 0).contains("is not an address such as"), "{text}");
    }
    for text in ["holding:", "holding:-1", "holding:+1", "holding: 1", "holding:1e3", "holding:1.", "holding:1.+2"] {
        told(text, 0);
    }
}

/// The table in the documentation of [`Order`].
#[test]
fn the_four_orders_of_123_456() {
    for (order, registers) in
        [("ABCD", [0x42F6, 0xE979]), ("CDAB", [0xE979, 0x42F6]), ("BADC", [0xF642, 0x79E9]), ("DCBA", [0x79E9, 0xF642])]
    {
        assert_eq!(decode(Type::F32, order, &registers), Some(f64::from(123.456_f32)), "{order}");
        let encoded = Order::parse(order, 2).expect("an order").to_registers(bytes(&123.456_f32.to_be_bytes()));
        assert_eq!(encoded, registers, "{order}");
    }
}

#[test]
fn known_answers_for_64_bits() {
    // -2.5e17 as f64 is C3 8B C1 6D 67 4E C8 00.
    assert_eq!((-2.5e17_f64).to_be_bytes(), [0xC3, 0x8B, 0xC1, 0x6D, 0x67, 0x4E, 0xC8, 0x00]);
    for (order, registers) in [
        ("ABCDEFGH", [0xC38B, 0xC16D, 0x674E, 0xC800]),
        ("GHEFCDAB", [0xC800, 0x674E, 0xC16D, 0xC38B]),
        ("BADCFEHG", [0x8BC3, 0x6DC1, 0x4E67, 0x00C8]),
        ("HGFEDCBA", [0x00C8, 0x4E67, 0x6DC1, 0x8BC3]),
        ("EFGHABCD", [0x674E, 0xC800, 0xC38B, 0xC16D]),
        ("CDABGHEF", [0xC16D, 0xC38B, 0xC800, 0x674E]),
        // One that is not its own inverse, so that encoding and decoding cannot be swapped unseen.
        ("BCDEFGHA", [0x8BC1, 0x6D67, 0x4EC8, 0x00C3]),
    ] {
        assert_eq!(decode(Type::F64, order, &registers), Some(-2.5e17), "{order}");
    }
}

#[test]
fn known_answers_by_type() {
    assert_eq!(decode(Type::U16, "AB", &[0xFFFE]), Some(65534.0));
    assert_eq!(decode(Type::U16, "BA", &[0x3412]), Some(f64::from(0x1234)));
    assert_eq!(decode(Type::I16, "AB", &[0xFFFE]), Some(-2.0));
    assert_eq!(decode(Type::U32, "ABCD", &[0xFFFF, 0xFFFE]), Some(4_294_967_294.0));
    assert_eq!(decode(Type::I32, "CDAB", &[0xFFFE, 0xFFFF]), Some(-2.0));
    assert_eq!(decode(Type::U64, "ABCDEFGH", &[0, 1, 0, 2]), Some(4_294_967_298.0));
    assert_eq!(decode(Type::I64, "ABCDEFGH", &[0xFFFF, 0xFFFF, 0xFFFF, 0xFFFD]), Some(-3.0));
    assert_eq!(Decoder::plain(Type::Bool).decode(&[1]), Some(1.0));
    let bit = |n| Decoder { bit: Some(n), ..Decoder::plain(Type::Bool) };
    assert_eq!(bit(3).decode(&[0x0008]), Some(1.0));
    assert_eq!(bit(2).decode(&[0x0008]), Some(0.0));
    assert_eq!(bit(15).decode(&[0x8000]), Some(1.0));
    let swapped = Decoder { order: Order::parse("BA", 1).expect("an order"), ..bit(3) };
    assert_eq!(swapped.decode(&[0x0800]), Some(1.0));
}

#[test]
fn scale_comes_before_offset() {
    let decoder = Decoder { scale: 0.5, offset: -40.0, ..Decoder::plain(Type::U16) };
    assert_eq!(decoder.decode(&[200]), Some(60.0));
    let inverted = Decoder { scale: -1.0, offset: 1.0, ..Decoder::plain(Type::Bool) };
    assert_eq!(inverted.decode(&[1]), Some(0.0));
}

#[test]
fn what_is_not_finite_is_no_value() {
    assert_eq!(decode(Type::F32, "ABCD", &[0x7FC0, 0]), None);
    assert_eq!(decode(Type::F32, "ABCD", &[0xFF80, 0]), None);
    assert_eq!(decode(Type::F64, "ABCDEFGH", &[0x7FF0, 0, 0, 0]), None);
    let overflowing = Decoder { scale: 1e300, ..Decoder::plain(Type::F64) };
    assert_eq!(overflowing.decode(&Order::big_endian(4).to_registers(1e300_f64.to_be_bytes())), None);
}

#[test]
fn wrong_orders_are_told_why() {
    assert_eq!(Order::parse("ABC", 2), Err("\"ABC\" should have 4 letters, such as ABCD".into()));
    assert_eq!(Order::parse("ABCD", 4), Err("\"ABCD\" should have 8 letters, such as ABCDEFGH".into()));
    assert_eq!(Order::parse("AACD", 2), Err("\"AACD\" should hold each of the letters ABCD once".into()));
    assert_eq!(Order::parse("abcd", 2), Err("\"abcd\" should hold each of the letters ABCD once".into()));
    assert!(Order::parse("ÄB", 1).is_err());
}

/// The first bytes of a big-endian value, and zeros.
fn bytes(value: &[u8]) -> [u8; 8] {
    let mut all = [0; 8];
    all[..value.len()].copy_from_slice(value);
    all
}

fn any_order(registers: usize) -> impl Strategy<Value = String> {
    let letters: Vec<char> = "ABCDEFGH"[..registers * 2].chars().collect();
    Just(letters).prop_shuffle().prop_map(|letters| letters.into_iter().collect())
}

proptest! {
    #[test]
    fn decoding_undoes_encoding_64(value: i64, order in any_order(4)) {
        let order = Order::parse(&order, 4).expect("an order");
        let registers = order.to_registers(value.to_be_bytes());
        prop_assert_eq!(order.to_value(&registers), value.to_be_bytes());
        let decoded = Decoder { order, ..Decoder::plain(Type::I64) }.decode(&registers);
        prop_assert_eq!(decoded, Some(value as f64));
    }

    #[test]
    fn decoding_undoes_encoding_32(value: f32, order in any_order(2)) {
        let order = Order::parse(&order, 2).expect("an order");
        let registers = order.to_registers(bytes(&value.to_be_bytes()));
        let decoded = Decoder { order, ..Decoder::plain(Type::F32) }.decode(&registers);
        prop_assert_eq!(decoded, value.is_finite().then_some(f64::from(value)));
    }

    #[test]
    fn decoding_undoes_encoding_16(value: i16, order in any_order(1)) {
        let order = Order::parse(&order, 1).expect("an order");
        let registers = order.to_registers(bytes(&value.to_be_bytes()));
        let decoded = Decoder { order, ..Decoder::plain(Type::I16) }.decode(&registers);
        prop_assert_eq!(decoded, Some(f64::from(value)));
    }

    #[test]
    fn an_order_reads_as_it_was_written(order in any_order(4)) {
        prop_assert_eq!(Order::parse(&order, 4).expect("an order").to_string(), order);
    }

    #[test]
    fn an_address_reads_as_it_was_written(number: u16, table in 0..4_usize, bit in proptest::option::of(0..16_u8)) {
        let table = Table::NAMES[table].0;
        let address = at(table, number, bit.filter(|_| !table.is_bits()));
        prop_assert_eq!(Address::parse(&address.to_string(), 0), Ok(address));
    }

    #[test]
    fn no_text_makes_the_parsers_panic(text in ".{0,12}", registers in prop::sample::select(vec![1_u16, 2, 4])) {
        let _ = Address::parse(&text, 1);
        let _ = Order::parse(&text, registers);
    }

    /// A device may answer with fewer registers than the type needs.
    #[test]
    fn no_reply_makes_decoding_panic(registers in prop::collection::vec(any::<u16>(), 0..6), kind in 0..9_usize) {
        let _ = Decoder::plain(Type::NAMES[kind].1).decode(&registers);
    }
}

#[test]
fn text_ends_at_the_first_zero_byte() {
    let words = [0x4162, 0x6364, 0x2020, 0x0000, 0x5858];
    assert_eq!(text(&words, 10, false), "Abcd");
    assert_eq!(text(&words, 3, false), "Abc");
    assert_eq!(text(&words, 4, true), "bAdc");
    assert_eq!(text(&[0xC3A9, 0xFF41], 4, false), "é\u{FFFD}A");
    assert_eq!(text(&[], 4, false), "");
}
