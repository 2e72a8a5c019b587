//! The block: what one slot holds. A header that describes itself, then the packed items; also
//! finding blocks in a damaged file by magic and checksum.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::types::Time;

/// A slot's value never exceeds this; sled keeps larger ones (above a quarter of its segment) in
/// blob files that it never syncs.
pub(super) const VALUE_MAX: usize = 128 << 10;
/// Bytes of a block's header.
pub(super) const HEADER: usize = 92;
/// The most payload one block carries, before compression.
pub(super) const RAW_MAX: usize = VALUE_MAX - HEADER;

/// The last byte is the block format's version.
const MAGIC: [u8; 8] = *b"\xB7andonb\x01";
const CRC_AT: usize = HEADER - 4;
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;
const FLAG_CHECKPOINT: u8 = 1;
const FLAG_AFTER_SYNC: u8 = 2;
/// How much of a file is looked at in one go while carving.
const CARVE_WINDOW: usize = 256 << 10;

/// A block's header, decoded.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Which lane it was written for, as [`super::view::LaneId`] numbers them.
    pub lane: u8,
    /// The block holds (the first part of) an engine checkpoint.
    pub checkpoint: bool,
    /// All blocks before it were on the medium when it was written. What follows the last such block
    /// may never have been acknowledged, and may have holes after a power cut.
    pub after_sync: bool,
    /// The slot it was written to.
    pub slot: u32,
    /// Items that are complete with this block: 0 for all but the last part of a split item.
    pub count: u32,
    /// Which part of a split item this is, from 0.
    pub part: u16,
    /// How many parts there are; 1 when nothing is split.
    pub parts: u16,
    /// Sequence of the first item.
    pub first: u64,
    /// Sequence of the last item.
    pub last: u64,
    /// How many items this lane ever held before this block.
    pub position: u64,
    /// The engine's ordinal after the last engine record in this lane so far.
    pub engine_upto: u64,
    /// When it was written, by the wall clock.
    pub written: Time,
    /// The earliest time among its items.
    pub from: Time,
    /// The latest time among its items.
    pub to: Time,
}

/// A block that is ready to be written but for its slot.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    /// The header; `slot` is still open.
    pub head: Head,
    codec: u8,
    raw_len: u32,
    payload: Vec<u8>,
}

impl Draft {
    /// Compresses `raw` (at most [`RAW_MAX`]) unless that makes it larger.
    pub fn new(head: Head, raw: Vec<u8>, zstd: &mut zstd::bulk::Compressor<'_>) -> Draft {
        debug_assert!(raw.len() <= RAW_MAX, "{} bytes do not fit a block", raw.len());
        let raw_len = raw.len() as u32;
        match zstd.compress(&raw) {
            Ok(small) if small.len() < raw.len() => Draft { head, codec: ZSTD, raw_len, payload: small },
            _ => Draft { head, codec: PLAIN, raw_len, payload: raw },
        }
    }

    /// Size of the value that [`Draft::encode`] gives.
    pub fn size(&self) -> usize {
        HEADER + self.payload.len()
    }

    /// The value for this slot.
    pub fn encode(&self, slot: u32) -> Vec<u8> {
        let h = &self.head;
        let mut out = Vec::with_capacity(self.size());
        out.extend_from_slice(&MAGIC);
        let flags = if h.checkpoint { FLAG_CHECKPOINT } else { 0 } | if h.after_sync { FLAG_AFTER_SYNC } else { 0 };
        out.extend_from_slice(&[h.lane, self.codec, flags, 0]);
        out.extend_from_slice(&slot.to_le_bytes());
        out.extend_from_slice(&h.count.to_le_bytes());
        out.extend_from_slice(&h.part.to_le_bytes());
        out.extend_from_slice(&h.parts.to_le_bytes());
        out.extend_from_slice(&(self.payload.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.raw_len.to_le_bytes());
        for n in [h.first, h.last, h.position, h.engine_upto] {
            out.extend_from_slice(&n.to_le_bytes());
        }
        for t in [h.written, h.from, h.to] {
            out.extend_from_slice(&t.0.to_le_bytes());
        }
        let crc = checksum(&out, &self.payload);
        out.extend_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&self.payload);
        out
    }
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(header);
    crc.update(payload);
    crc.finalize()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// How long the whole block is that starts with this header; `None` when it is none.
fn stated_len(bytes: &[u8]) -> Option<usize> {
    if bytes.get(..8)? != MAGIC {
        return None;
    }
    let payload = u32_at(bytes, 24)? as usize;
    (payload <= RAW_MAX).then_some(HEADER + payload)
}

/// Reads a block, which may be followed by other bytes; `None` unless all of it is intact.
pub(super) fn parse(bytes: &[u8]) -> Option<Head> {
    let len = stated_len(bytes)?;
    let whole = bytes.get(..len)?;
    if checksum(&whole[..CRC_AT], &whole[HEADER..]) != u32_at(whole, CRC_AT)? {
        return None;
    }
    Some(Head {
        lane: whole[8],
        checkpoint: whole[10] & FLAG_CHECKPOINT != 0,
        after_sync: whole[10] & FLAG_AFTER_SYNC != 0,
        slot: u32_at(whole, 12)?,
        count: u32_at(whole, 16)?,
        part: u16_at(whole, 20)?,
        parts: u16_at(whole, 22)?,
        first: u64_at(whole, 32)?,
        last: u64_at(whole, 40)?,
        position: u64_at(whole, 48)?,
        engine_upto: u64_at(whole, 56)?,
        written: Time(u64_at(whole, 64)? as i64),
        from: Time(u64_at(whole, 72)? as i64),
        to: Time(u64_at(whole, 80)? as i64),
    })
}

/// The same block for another slot; `None` when it is none.
pub(super) fn moved(mut bytes: Vec<u8>, slot: u32) -> Option<Vec<u8>> {
    parse(&bytes)?;
    bytes[12..16].copy_from_slice(&slot.to_le_bytes());
    let crc = checksum(&bytes[..CRC_AT], &bytes[HEADER..stated_len(&bytes)?]);
    bytes[CRC_AT..HEADER].copy_from_slice(&crc.to_le_bytes());
    Some(bytes)
}

#[cfg(any(test, feature = "fuzz"))]
/// The same bytes with the magic, length and checksum that make a block of them.
pub(super) fn mended(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = bytes.get(..bytes.len().min(VALUE_MAX))?.to_vec();
    let payload = u32::try_from(out.len().checked_sub(HEADER)?).ok()?;
    out[..MAGIC.len()].copy_from_slice(&MAGIC);
    out[24..28].copy_from_slice(&payload.to_le_bytes());
    let crc = checksum(&out[..CRC_AT], &out[HEADER..]);
    out[CRC_AT..HEADER].copy_from_slice(&crc.to_le_bytes());
    Some(out)
}

/// The unpacked payload of a block that [`parse`] accepted.
pub(super) fn payload(bytes: &[u8]) -> Option<Vec<u8>> {
    let len = stated_len(bytes)?;
    let stored = bytes.get(HEADER..len)?;
    let raw_len = u32_at(bytes, 28)? as usize;
    if raw_len > RAW_MAX {
        return None;
    }
    match bytes[9] {
        PLAIN => Some(stored.to_vec()),
        ZSTD => zstd::bulk::decompress(stored, raw_len).ok(),
        _ => None,
    }
}

/// A block found in a file.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Its header.
    pub head: Head,
    /// Where in the file it starts.
    pub offset: u64,
    /// How long it is.
    pub len: usize,
}

/// Finds every intact block of this lane in a file, whatever state the file is in, in slot order.
/// Where a slot was written more than once, the copy that comes last in the file counts; all copies
/// of a slot have the same content, since slots are written once and only ever moved.
pub(super) fn carve(file: &File, lane: u8) -> io::Result<Vec<Found>> {
    let finder = memchr::memmem::Finder::new(&MAGIC);
    let mut found: Vec<Found> = Vec::new();
    let mut window = vec![0; CARVE_WINDOW];
    let mut block = vec![0; VALUE_MAX];
    let mut at = 0;
    loop {
        let n = read_up_to(file, &mut window, at)?;
        let Some(hit) = finder.find(&window[..n]) else {
            if n < window.len() {
                break;
            }
            at += (n - (MAGIC.len() - 1)) as u64;
            continue;
        };
        let offset = at + hit as u64;
        let n = read_up_to(file, &mut block[..HEADER], offset)?;
        let len = stated_len(&block[..n]).unwrap_or(0);
        let n = read_up_to(file, &mut block[..len], offset)?;
        at = match parse(&block[..n]) {
            Some(head) if head.lane == lane => {
                found.push(Found { head, offset, len });
                offset + len as u64
            }
            _ => offset + 1,
        };
    }
    found.sort_by_key(|f| (f.head.slot, f.offset));
    found.reverse();
    found.dedup_by_key(|f| f.head.slot);
    found.reverse();
    Ok(found)
}

fn read_up_to(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match file.read_at(&mut buffer[n..], at + n as u64) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

/// The bytes of a block that [`carve`] found; `None` when they are no longer intact.
pub(super) fn read_found(file: &File, found: &Found) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; found.len];
    let n = read_up_to(file, &mut bytes, found.offset)?;
    bytes.truncate(n);
    Ok((parse(&bytes) == Some(found.head)).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn head(slot: u32) -> Head {
        Head {
            lane: 2,
            checkpoint: slot.is_multiple_of(2),
            after_sync: slot.is_multiple_of(3),
            slot,
            count: 3,
            part: 0,
            parts: 1,
            first: u64::from(slot) * 3 + 1,
            last: u64::from(slot) * 3 + 3,
            position: u64::from(slot) * 3,
            engine_upto: 77,
            written: Time(5),
            from: Time(-4),
            to: Time(9),
        }
    }

    fn encoded(slot: u32, raw: &[u8]) -> Vec<u8> {
        let mut zstd = zstd::bulk::Compressor::new(1).unwrap();
        Draft::new(head(slot), raw.to_vec(), &mut zstd).encode(slot)
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out_again(raw in proptest::collection::vec(any::<u8>(), 0..3000), slot: u32) {
            let bytes = encoded(slot, &raw);
            prop_assert!(bytes.len() <= HEADER + raw.len());
            prop_assert_eq!(parse(&bytes), Some(head(slot)));
            prop_assert_eq!(payload(&bytes), Some(raw.clone()));
            let elsewhere = moved(bytes, 7).unwrap();
            prop_assert_eq!(parse(&elsewhere), Some(Head { slot: 7, ..head(slot) }));
            prop_assert_eq!(payload(&elsewhere), Some(raw));
        }

        #[test]
        fn any_flipped_bit_is_seen(raw in proptest::collection::vec(any::<u8>(), 0..300), at: prop::sample::Index, bit in 0..8) {
            let mut bytes = encoded(1, &raw);
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            prop_assert_eq!(parse(&bytes), None);
        }

        #[test]
        fn garbage_is_no_block(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), magic: bool) {
            if magic && bytes.len() > 8 {
                bytes[..8].copy_from_slice(&MAGIC);
            }
            prop_assert_eq!(parse(&bytes), None);
            let _ = payload(&bytes);
        }

        #[test]
        fn carving_finds_blocks_between_garbage(
            parts in proptest::collection::vec((proptest::collection::vec(any::<u8>(), 0..2000), 0..3u8), 1..20)
        ) {
            let mut file = tempfile::tempfile().unwrap();
            let mut want = Vec::new();
            for (i, (bytes, what)) in parts.iter().enumerate() {
                let mut block = encoded(i as u32, bytes);
                match what {
                    0 => want.push(i as u32),
                    1 => *block.last_mut().unwrap() ^= 1,
                    _ => block = bytes.clone(),
                }
                file.write_all(&block).unwrap();
            }
            let found = carve(&file, 2).unwrap();
            prop_assert_eq!(found.iter().map(|f| f.head.slot).collect::<Vec<_>>(), want);
            for f in &found {
                let bytes = read_found(&file, f).unwrap().unwrap();
                prop_assert_eq!(payload(&bytes).unwrap(), parts[f.head.slot as usize].0.clone());
            }
        }
    }

    #[test]
    fn carving_sees_across_windows_and_ignores_other_lanes() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![0xB7; CARVE_WINDOW - 3]).unwrap();
        file.write_all(&encoded(4, b"across")).unwrap();
        file.write_all(&vec![0; 3 * CARVE_WINDOW]).unwrap();
        file.write_all(&encoded(1, b"late")).unwrap();
        let slots: Vec<u32> = carve(&file, 2).unwrap().iter().map(|f| f.head.slot).collect();
        assert_eq!(slots, [1, 4]);
        assert!(carve(&file, 1).unwrap().is_empty());
    }
}
