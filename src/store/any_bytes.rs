//! What a disk may give back, as functions of bytes, for `crate::fuzz`. Checksums are mended where
//! nothing behind them would be reached otherwise.

use std::fs;

use super::block::{self, HEADER};
use super::cursors::CursorFile;
use super::manifest::Manifest;
use super::pack;
use super::record::{DeadLetter, JournalItem, decode, encode};
use crate::types::Record;

/// A block as it is, and with its length and checksum right.
pub fn block(bytes: &[u8]) {
    one_block(bytes);
    if let Some(mended) = block::mended(bytes) {
        one_block(&mended);
    }
}

fn one_block(bytes: &[u8]) {
    let Some(head) = block::parse(bytes) else { return };
    let Some(payload) = block::payload(bytes) else { return };
    if let Some(items) = pack::unpack(&head, &payload) {
        assert_eq!(items.len(), head.count as usize);
        items.iter().for_each(|(_, item)| one_item(item));
    }
}

/// An item of each lane.
pub fn items(bytes: &[u8]) {
    one_item(bytes);
}

fn one_item(bytes: &[u8]) {
    if let Some(item) = JournalItem::decode(bytes) {
        assert!(JournalItem::decode(&item.encode()).is_some());
    }
    if let Some(record) = decode::<Record>(bytes) {
        assert!(decode::<Record>(&encode(&record)).is_some());
    }
    if let Some(letter) = decode::<DeadLetter>(bytes) {
        let _ = letter.at();
    }
}

/// A segment's file, whatever state it is in.
pub fn segment(bytes: &[u8]) {
    let mut file = tempfile::tempfile().expect("a file");
    std::io::Write::write_all(&mut file, bytes).expect("written");
    for lane in 0..5 {
        let found = block::carve(&file, lane).expect("readable");
        assert!(found.windows(2).all(|w| w[0].head.slot < w[1].head.slot));
        for block in &found {
            assert!(block.len >= HEADER && block::read_found(&file, block).is_ok_and(|b| b.is_some()));
        }
    }
}

/// A lane's manifest.
pub fn manifest(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let json = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let sum = format!("\n{:08x}\n", crc32fast::hash(json));
    for content in [bytes.to_vec(), [json, sum.as_bytes()].concat()] {
        fs::write(dir.path().join("manifest"), content).expect("written");
        if let Some(read) = Manifest::read(dir.path()).expect("readable") {
            read.write(dir.path()).expect("what was read can be written");
            assert_eq!(Manifest::read(dir.path()).expect("readable"), Some(read));
        }
    }
}

/// How far the sinks have come.
pub fn cursors(bytes: &[u8]) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), bytes).expect("written");
    let seen = CursorFile::look(file.path()).expect("readable");
    let (mut cursors, opened) = CursorFile::open(file.path()).expect("opened");
    assert_eq!(seen, opened);
    let opened = opened.unwrap_or_default();
    for places in opened.sinks.keys().filter_map(|sink| opened.places(sink)) {
        assert!(places[1].open().all(|s| s.from.sequence <= s.to.sequence));
    }
    // Too many sinks for a page is an error, no panic.
    let _ = cursors.write(&opened, false);
}

/// Good ones of each kind: the target, a name, the bytes.
#[cfg(test)]
pub(crate) fn seeds() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    use super::cursors::Saved;
    use super::pack::{Counters, Item, pack};
    use super::place::{Cursor, Place, Span};
    use crate::types::{Reject, Time};

    let entry = JournalItem::Entry { at: Time(1), first_ordinal: 2, data: vec![1, 2, 3] }.encode();
    let checkpoint = JournalItem::Checkpoint { at: Time(1), ordinal: 2, after: 1, data: vec![7; 40] }.encode();
    let reject = Reject {
        at: Time(1),
        source: "shop".into(),
        origin: "a/b".into(),
        reason: "no".into(),
        payload: vec![0, 0xFF],
    };
    let letter = encode(&DeadLetter::Payload(reject));
    let item =
        |seq: u64, bytes: &[u8]| Item { seq, bytes: bytes.to_vec(), at: Time(1), engine_upto: 2, checkpoint: false };
    let items = vec![item(5, &entry), item(6, &checkpoint), item(7, &[9; 3000])];
    let mut zstd = zstd::bulk::Compressor::new(1).expect("zstd");
    let units = pack(0, items, &mut Counters { position: 5, engine_upto: 2 }, Time(9), &mut zstd);
    let blocks: Vec<Vec<u8>> = units.iter().flatten().zip(0..).map(|(draft, slot)| draft.encode(slot)).collect();
    let dir = tempfile::tempdir().expect("a directory");
    let mut manifest = Manifest { next: 9, position: 8, engine_upto: 2, ..Manifest::default() };
    manifest.sealed.push(super::segment::Summary { name: 1, last: 8, ..Default::default() });
    manifest.write(dir.path()).expect("written");
    let path = dir.path().join("cursors");
    let (mut cursors, _) = CursorFile::open(&path).expect("opened");
    let mut saved = Saved { sequence: 9, requeued: 1, ..Saved::default() };
    let at = |n: u64| Cursor { sequence: n + 1, position: n };
    saved.put("cloud", &[Place::new(at(3), &[]), Place::new(at(3), &[])]);
    cursors.write(&saved, false).expect("written");
    cursors.write(&saved, false).expect("written");
    let read = |p: std::path::PathBuf| fs::read(p).expect("readable");
    let without_backlog = read(path.clone());
    let ahead = [Span { from: at(5), to: at(6) }, Span { from: at(8), to: at(8) }];
    saved.put("cloud", &[Place::new(at(3), &[]), Place::new(at(3), &ahead)]);
    cursors.write(&saved, false).expect("written");
    let segment = blocks.iter().flat_map(|b| [b.clone(), vec![0; 100]].concat()).collect();
    vec![
        ("store_block", "packed", blocks[0].clone()),
        ("store_segment", "blocks", segment),
        ("store_items", "entry", entry),
        ("store_items", "checkpoint", checkpoint),
        ("store_items", "dead-letter", letter),
        ("store_manifest", "one-sealed", read(dir.path().join("manifest"))),
        ("store_cursors", "two-pages", without_backlog),
        ("store_cursors", "backlogs", read(path)),
    ]
}
