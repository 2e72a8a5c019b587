//! How records, journal items and dead letters are written as bytes. The first byte is the
//! version of the encoding that follows.

use serde::{Deserialize, Serialize};

use crate::types::{Name, Record, Reject, Time};

const VERSION: u8 = 1;

/// A journal item: what [`super::Commit`] brings in, and when.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum JournalItem {
    /// An entry.
    Entry {
        /// When it was committed.
        at: Time,
        /// Ordinal of the first record it causes.
        first_ordinal: u64,
        /// The engine's own encoding.
        data: Vec<u8>,
    },
    /// An engine snapshot as format 1 wrote it: whole, in one item.
    Checkpoint {
        /// When it was taken.
        at: Time,
        /// Ordinal of the next record.
        ordinal: u64,
        /// The journal sequence of the last entry it knows of.
        after: u64,
        /// The engine's own encoding.
        data: Vec<u8>,
    },
    /// A piece of a part of a snapshot.
    Piece {
        /// When the snapshot was taken.
        at: Time,
        /// Bytes of the part.
        data: Vec<u8>,
    },
    /// The end of a snapshot, with which it counts.
    Root {
        /// When the snapshot was taken.
        at: Time,
        /// Ordinal of the next record.
        ordinal: u64,
        /// The journal sequence of the last entry it knows of.
        after: u64,
        /// Where its index lies, as [`super::snapshot`] encodes it.
        data: Vec<u8>,
    },
}

const ENTRY: u8 = 0;
const CHECKPOINT: u8 = 1;
const PIECE: u8 = 2;
const ROOT: u8 = 3;
const JOURNAL_HEAD: usize = 26;

impl JournalItem {
    /// Written by hand rather than by serde: the data is large and is copied once.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, at, ordinal, after, data) = match self {
            JournalItem::Entry { at, first_ordinal, data } => (ENTRY, at, first_ordinal, &0, data),
            JournalItem::Checkpoint { at, ordinal, after, data } => (CHECKPOINT, at, ordinal, after, data),
            JournalItem::Piece { at, data } => (PIECE, at, &0, &0, data),
            JournalItem::Root { at, ordinal, after, data } => (ROOT, at, ordinal, after, data),
        };
        let mut out = Vec::with_capacity(JOURNAL_HEAD + data.len());
        out.extend_from_slice(&[VERSION, kind]);
        out.extend_from_slice(&at.0.to_le_bytes());
        out.extend_from_slice(&ordinal.to_le_bytes());
        out.extend_from_slice(&after.to_le_bytes());
        out.extend_from_slice(data);
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<JournalItem> {
        let (head, data) = bytes.split_at_checked(JOURNAL_HEAD)?;
        let at = Time(i64::from_le_bytes(head[2..10].try_into().ok()?));
        let ordinal = u64::from_le_bytes(head[10..18].try_into().ok()?);
        let after = u64::from_le_bytes(head[18..26].try_into().ok()?);
        match (head[0], head[1]) {
            (VERSION, ENTRY) => Some(JournalItem::Entry { at, first_ordinal: ordinal, data: data.to_vec() }),
            (VERSION, CHECKPOINT) => Some(JournalItem::Checkpoint { at, ordinal, after, data: data.to_vec() }),
            (VERSION, PIECE) => Some(JournalItem::Piece { at, data: data.to_vec() }),
            (VERSION, ROOT) => Some(JournalItem::Root { at, ordinal, after, data: data.to_vec() }),
            _ => None,
        }
    }
}

/// How long [`JournalItem::encode`] makes it.
pub(super) const fn journal_len(data: usize) -> usize {
    JOURNAL_HEAD + data
}

/// Something set aside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum DeadLetter {
    /// A payload that could not be read.
    Payload(Reject),
    /// A record that a sink refused for good.
    Record {
        /// When it was set aside.
        at: Time,
        /// The sink that refused it.
        sink: Name,
        /// Why.
        reason: String,
        /// The sequence it had.
        sequence: u64,
        /// The record.
        record: Record,
    },
}

impl DeadLetter {
    /// When it was set aside.
    pub fn at(&self) -> Time {
        match self {
            DeadLetter::Payload(reject) => reject.at,
            DeadLetter::Record { at, .. } => *at,
        }
    }
}

pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Only values that refuse to be serialised fail, and ours do not; an empty item reads as lost.
    postcard::to_extend(value, vec![VERSION]).unwrap_or_default()
}

pub(super) fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Option<T> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => postcard::from_bytes(rest).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Kind, RecordId};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trips(at: i64, ordinal: u64, after: u64, data: Vec<u8>, subject: String, text: String, kind in 0..Kind::ALL.len()) {
            let entry = JournalItem::Entry { at: Time(at), first_ordinal: ordinal, data: data.clone() };
            prop_assert_eq!(entry.encode().len(), journal_len(data.len()));
            prop_assert_eq!(JournalItem::decode(&entry.encode()), Some(entry));
            let checkpoint = JournalItem::Checkpoint { at: Time(at), ordinal, after, data: data.clone() };
            prop_assert_eq!(JournalItem::decode(&checkpoint.encode()), Some(checkpoint));
            let piece = JournalItem::Piece { at: Time(at), data: data.clone() };
            prop_assert_eq!(JournalItem::decode(&piece.encode()), Some(piece));
            let root = JournalItem::Root { at: Time(at), ordinal, after, data };
            prop_assert_eq!(JournalItem::decode(&root.encode()), Some(root));
            let record = Record {
                id: RecordId::of(&[text.as_bytes()]),
                kind: Kind::ALL[kind],
                subject: subject.as_str().into(),
                at: Time(at),
                data: text,
            };
            prop_assert_eq!(decode::<Record>(&encode(&record)), Some(record.clone()));
            let dead = DeadLetter::Record { at: Time(at), sink: "cloud".into(), reason: subject, sequence: after, record };
            prop_assert_eq!(decode::<DeadLetter>(&encode(&dead)), Some(dead));
        }

        #[test]
        fn garbage_does_no_harm(bytes: Vec<u8>) {
            let _ = JournalItem::decode(&bytes);
            let _ = decode::<Record>(&bytes);
            let _ = decode::<DeadLetter>(&bytes);
        }
    }

    #[test]
    fn an_encoding_of_the_future_is_not_guessed_at() {
        let mut bytes = JournalItem::Entry { at: Time(1), first_ordinal: 2, data: vec![3] }.encode();
        bytes[0] = 2;
        assert_eq!(JournalItem::decode(&bytes), None);
    }
}
