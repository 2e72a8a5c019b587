//! Packing items into blocks and taking them out again. Small items share a block; an item too
//! large for one block is split over several.

use std::collections::VecDeque;

use crate::types::Time;

use super::block::{Draft, Head, RAW_MAX};

/// Each item in a shared block is preceded by its sequence (8 bytes) and its length (4).
const FRAME: usize = 12;
/// The part of a split item that one block holds. What does not fit a block with its frame makes
/// at least two of these.
pub(super) const PART: usize = RAW_MAX - FRAME;

/// One thing to be stored: a record, a journal entry, a checkpoint or a dead letter.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Item {
    /// Its number; rising within the lane.
    pub seq: u64,
    /// Its encoding.
    pub bytes: Vec<u8>,
    /// When what it tells of happened.
    pub at: Time,
    /// The engine's ordinal after it; the lane's present one for items not from the engine.
    pub engine_upto: u64,
    /// It is an engine checkpoint.
    pub checkpoint: bool,
}

/// What counts on through all blocks of a lane.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Counters {
    /// Items ever put into this lane.
    pub position: u64,
    /// See [`Head::engine_upto`].
    pub engine_upto: u64,
}

/// Blocks that must lie in one segment: one block of whole items, or all parts of a split one.
pub(super) type Unit = Vec<Draft>;

/// Packs items, in order, into as few blocks as hold them.
pub(super) fn pack(
    lane: u8,
    items: Vec<Item>,
    counters: &mut Counters,
    written: Time,
    zstd: &mut zstd::bulk::Compressor<'_>,
) -> VecDeque<Unit> {
    let mut units = VecDeque::new();
    let mut open: Option<(Head, Vec<u8>)> = None;
    for item in items {
        let len = FRAME + item.bytes.len();
        if let Some((head, raw)) = open.take_if(|(_, raw)| raw.len() + len > RAW_MAX) {
            units.push_back(vec![Draft::new(head, raw, zstd)]);
        }
        if item.bytes.len() > PART {
            units.push_back(split(lane, &item, counters, written, zstd));
            continue;
        }
        let (head, raw) = open.get_or_insert_with(|| (opening(lane, &item, counters, written), Vec::new()));
        add(head, &item, counters);
        raw.extend_from_slice(&item.seq.to_le_bytes());
        raw.extend_from_slice(&(item.bytes.len() as u32).to_le_bytes());
        raw.extend_from_slice(&item.bytes);
    }
    if let Some((head, raw)) = open {
        units.push_back(vec![Draft::new(head, raw, zstd)]);
    }
    units
}

/// A header that holds no items yet, to which this one will be the first.
fn opening(lane: u8, item: &Item, counters: &Counters, written: Time) -> Head {
    Head {
        lane,
        checkpoint: false,
        after_sync: false,
        slot: 0,
        count: 0,
        part: 0,
        parts: 1,
        first: item.seq,
        last: item.seq,
        position: counters.position,
        engine_upto: counters.engine_upto,
        written,
        from: item.at,
        to: item.at,
    }
}

fn add(head: &mut Head, item: &Item, counters: &mut Counters) {
    counters.position += 1;
    counters.engine_upto = counters.engine_upto.max(item.engine_upto);
    head.count += 1;
    head.last = item.seq;
    head.engine_upto = counters.engine_upto;
    head.checkpoint |= item.checkpoint;
    head.from = head.from.min(item.at);
    head.to = head.to.max(item.at);
}

/// The item counts, and moves `engine_upto`, with its last part only: until that is on disk it is
/// not there.
fn split(lane: u8, item: &Item, counters: &mut Counters, written: Time, zstd: &mut zstd::bulk::Compressor<'_>) -> Unit {
    let chunks: Vec<&[u8]> = item.bytes.chunks(PART).collect();
    let mut head = Head { parts: chunks.len() as u16, ..opening(lane, item, counters, written) };
    let mut unit = Vec::with_capacity(chunks.len());
    for (part, chunk) in chunks.iter().enumerate() {
        head.part = part as u16;
        head.checkpoint = item.checkpoint && part == 0;
        if part + 1 == chunks.len() {
            add(&mut head, item, counters);
            head.checkpoint = false;
        }
        unit.push(Draft::new(head, chunk.to_vec(), zstd));
    }
    unit
}

/// The items of an unsplit block; `None` when the payload makes no sense.
pub(super) fn unpack(head: &Head, mut payload: &[u8]) -> Option<Vec<(u64, Vec<u8>)>> {
    let mut items = Vec::new();
    while let Some((frame, rest)) = payload.split_at_checked(FRAME) {
        let seq = u64::from_le_bytes(frame[..8].try_into().ok()?);
        let len = u32::from_le_bytes(frame[8..].try_into().ok()?) as usize;
        let (bytes, rest) = rest.split_at_checked(len)?;
        items.push((seq, bytes.to_vec()));
        payload = rest;
    }
    (payload.is_empty() && items.len() == head.count as usize).then_some(items)
}

#[cfg(test)]
mod tests {
    use super::super::block::{VALUE_MAX, parse, payload};
    use super::*;
    use proptest::prelude::*;

    fn restore(units: &VecDeque<Unit>) -> Vec<(u64, Vec<u8>)> {
        let mut out = Vec::new();
        for unit in units {
            let blocks: Vec<(Head, Vec<u8>)> = (unit.iter().enumerate())
                .map(|(slot, d)| {
                    let bytes = d.encode(slot as u32);
                    assert!(bytes.len() <= VALUE_MAX && bytes.len() == d.size());
                    (parse(&bytes).unwrap(), payload(&bytes).unwrap())
                })
                .collect();
            if blocks[0].0.parts == 1 {
                assert_eq!(blocks.len(), 1);
                out.extend(unpack(&blocks[0].0, &blocks[0].1).unwrap());
            } else {
                assert_eq!(blocks.len(), usize::from(blocks[0].0.parts));
                out.push((blocks[0].0.first, blocks.iter().flat_map(|b| b.1.clone()).collect()));
            }
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn items_come_out_as_they_went_in(sizes in proptest::collection::vec(
            prop_oneof![8 => 0usize..500, 1 => 60_000usize..140_000, 1 => 130_900usize..131_200, 1 => 300_000usize..600_000], 0..40)
        ) {
            let items: Vec<Item> = sizes.iter().enumerate().map(|(i, len)| Item {
                seq: 10 + i as u64 * 2,
                bytes: (0..*len).map(|b| (b * 7919 + b / 256 + i) as u8).collect(),
                at: Time(100 - i as i64),
                engine_upto: i as u64 + 1,
                checkpoint: false,
            }).collect();
            let mut counters = Counters { position: 5, engine_upto: 0 };
            let mut zstd = zstd::bulk::Compressor::new(1).unwrap();
            let units = pack(1, items.clone(), &mut counters, Time(1), &mut zstd);
            prop_assert_eq!(restore(&units), items.iter().map(|i| (i.seq, i.bytes.clone())).collect::<Vec<_>>());
            let mut position = 5;
            for head in units.iter().flatten().map(|d| d.head) {
                prop_assert_eq!(head.position, position);
                position += u64::from(head.count);
                prop_assert_eq!(head.engine_upto, position - 5);
            }
            let blocks: usize = items.iter().map(|i| i.bytes.len().div_ceil(PART).max(1)).sum();
            prop_assert!(units.iter().flatten().count() <= blocks);
            prop_assert_eq!(counters, Counters { position: 5 + items.len() as u64, engine_upto: items.len() as u64 });
        }

        #[test]
        fn nonsense_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let head = Head { count: 3, ..opening(0, &Item { seq: 1, bytes: vec![], at: Time(0), engine_upto: 0, checkpoint: false }, &Counters::default(), Time(0)) };
            if let Some(items) = unpack(&head, &bytes) {
                prop_assert_eq!(items.len(), 3);
            }
        }
    }
}
