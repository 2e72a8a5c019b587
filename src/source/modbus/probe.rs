//! What could these registers mean? Every type in every usual byte order, from both address bases,
//! with the readings that make sense marked: for `andon modbus probe`. Pure but for [`Window::read`].

use std::cmp::Ordering;

use super::connection::{Connection, Failure};
use super::plan::Span;
use super::registers::{Decoder, Order, Table, Type};

/// Registers a value may take.
const WIDEST: u16 = 4;
/// How far from the expected value still counts as "about" it.
const ABOUT: f64 = 0.1;
/// Devices like to send 23.5 as 235; scales that are tried for whole numbers.
const SCALES: [f64; 4] = [1.0, 0.1, 0.01, 0.001];
/// Sizes that measured values usually have.
const USUAL: std::ops::RangeInclusive<f64> = 1e-3..=1e6;

/// The registers around an address as a manual gives it, those that could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The number in the manual.
    pub number: u16,
    /// From the register before `number`, which is meant when the manual counts from 1.
    pub words: [Option<u16>; WIDEST as usize + 1],
}

impl Window {
    /// Reads it from a device; what the device refuses is left out.
    ///
    /// # Errors
    ///
    /// Those [`Failure`]s after which the connection is of no more use.
    pub async fn read(connection: &mut Connection, table: Table, number: u16) -> Result<Window, Failure> {
        let mut words = [None; WIDEST as usize + 1];
        let places = (i32::from(number) - 1..).zip(&mut words);
        for (at, word) in places.filter_map(|(at, word)| Some((u16::try_from(at).ok()?, word))) {
            match connection.read(Span { table, start: at, count: 1 }).await {
                Ok(values) => *word = values.first().copied(),
                Err(failure) if failure.spares_connection() => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(Window { number, words })
    }

    /// The registers of a value of this width when the first register is called `base`.
    fn of(&self, base: u16, width: u16) -> Option<Vec<u16>> {
        let first = usize::from(1 - base.min(1));
        self.words.get(first..first + usize::from(width))?.iter().copied().collect()
    }
}

/// One way to read the registers.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// What the manual calls the first register, 0 or 1: the `address_base` to configure.
    pub base: u16,
    /// The type.
    pub kind: Type,
    /// The byte order.
    pub order: Order,
    /// The scale that brings it near the expected value, else 1.
    pub scale: f64,
    /// The value, scaled.
    pub value: f64,
    /// Whether it is about what was expected or, without that, of a usual size.
    pub plausible: bool,
}

/// All readings that are finite numbers, the plausible ones first and the nearest to `expect` first
/// among them; then plain ones before odd ones.
pub fn candidates(window: &Window, expect: Option<f64>) -> Vec<Candidate> {
    let mut all = Vec::new();
    for (_, kind) in Type::NAMES.into_iter().filter(|(_, kind)| *kind != Type::Bool) {
        for order in usual_orders(kind.width()) {
            for base in [0, 1] {
                let Some(words) = window.of(base, kind.width()) else { continue };
                let value = Decoder { order, ..Decoder::plain(kind) }.decode(&words);
                all.extend(value.map(|value| judge(base, kind, order, value, expect)));
            }
        }
    }
    // A stable sort: where nothing else tells them apart, narrow types and plain orders stay first.
    all.sort_by(|a, b| b.plausible.cmp(&a.plausible).then_with(|| nearer(a, b, expect)));
    all
}

/// Big-endian first, then the swaps of words and of bytes that devices are known for.
pub fn usual_orders(registers: u16) -> Vec<Order> {
    let texts: &[&str] = match registers {
        1 => &["AB", "BA"],
        2 => &["ABCD", "CDAB", "BADC", "DCBA"],
        _ => &["ABCDEFGH", "GHEFCDAB", "BADCFEHG", "HGFEDCBA", "EFGHABCD", "CDABGHEF", "FEHGBADC", "DCBAHGFE"],
    };
    texts.iter().filter_map(|text| Order::parse(text, registers).ok()).collect()
}

fn judge(base: u16, kind: Type, order: Order, raw: f64, expect: Option<f64>) -> Candidate {
    let is_float = matches!(kind, Type::F32 | Type::F64);
    let scales = if is_float { &SCALES[..1] } else { &SCALES[..] };
    let about = |scale: &&f64| expect.is_some_and(|e| (raw * **scale - e).abs() <= ABOUT * e.abs().max(1.0));
    let fitting = scales.iter().find(about);
    let scale = fitting.copied().unwrap_or(1.0);
    let plausible = match expect {
        Some(_) => fitting.is_some(),
        // A float that only looks like one seldom has a usual size; a wide whole number that only
        // looks like one is seldom small.
        None => USUAL.contains(&raw.abs()),
    };
    Candidate { base, kind, order, scale, value: raw * scale, plausible }
}

fn nearer(a: &Candidate, b: &Candidate, expect: Option<f64>) -> Ordering {
    let Some(expect) = expect else { return Ordering::Equal };
    (a.value - expect).abs().total_cmp(&(b.value - expect).abs())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(words: [u16; 5]) -> Window {
        Window { number: 100, words: words.map(Some) }
    }

    fn shown(candidate: &Candidate) -> String {
        let Candidate { base, kind, order, scale, value, .. } = candidate;
        format!("base {base} {} {order} x{scale} = {value}", kind.as_str())
    }

    #[test]
    fn the_swapped_float_is_found() {
        // 23.5 as f32 is 41BC 0000; here with its words swapped, one register off.
        let found = candidates(&window([0x0000, 0x41BC, 7, 7, 7]), Some(23.5));
        let plausible: Vec<String> = found.iter().filter(|c| c.plausible).map(shown).collect();
        // The high word says most of it, so its other neighbour does nearly as well: nearest first.
        assert_eq!(plausible, ["base 1 f32 CDAB x1 = 23.5", "base 0 f32 ABCD x1 = 23.50001335144043"]);
    }

    #[test]
    fn the_scaled_whole_number_is_found() {
        let found = candidates(&window([9999, 235, 0x8000, 0x8000, 0x8000]), Some(23.4));
        let plausible: Vec<String> = found.iter().filter(|c| c.plausible).map(shown).collect();
        assert_eq!(plausible, ["base 0 u16 AB x0.1 = 23.5", "base 0 i16 AB x0.1 = 23.5"]);
    }

    #[test]
    fn without_an_expectation_usual_sizes_are_marked() {
        // 1000 as f32 is 447A 0000.
        let found = candidates(&window([0x7F7F, 0x447A, 0x0000, 0x7F7F, 0x7F7F]), None);
        let floats: Vec<String> = found.iter().filter(|c| c.plausible && c.kind == Type::F32).map(shown).collect();
        assert_eq!(floats, ["base 0 f32 ABCD x1 = 1000", "base 1 f32 CDAB x1 = 1001.9921264648438"]);
    }

    #[test]
    fn registers_that_cannot_be_read_are_left_out() {
        let found = candidates(&Window { number: 0, words: [None, Some(5), None, None, None] }, None);
        let all: Vec<String> = found.iter().map(shown).collect();
        let expected = ["u16 AB x1 = 5", "u16 BA x1 = 1280", "i16 AB x1 = 5", "i16 BA x1 = 1280"];
        assert_eq!(all, expected.map(|e| format!("base 0 {e}")));
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_among_the_plausible(value in 0.5..50_000.0_f32, order in 0..4_usize, base in 0..2_u16) {
            let order = usual_orders(2)[order];
            let [a, b, c, d] = value.to_be_bytes();
            let words = order.to_registers([a, b, c, d, 0, 0, 0, 0]);
            let mut all = [0x7FFF; 5];
            all[usize::from(1 - base)..][..2].copy_from_slice(&words);
            let found = candidates(&window(all), Some(f64::from(value)));
            let hit = |c: &&Candidate| (c.base, c.kind, c.order) == (base, Type::F32, order);
            let hit = found.iter().find(hit).expect("the way it was encoded");
            prop_assert!(hit.plausible);
            prop_assert_eq!(hit.value, f64::from(value));
        }
    }
}
