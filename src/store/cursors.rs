//! How far each sink has come, on disk: two pages written in turn, so that a torn one leaves the
//! other. A stale cursor only repeats.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::types::Time;

use super::fault::Fault;
use super::place::{Cursor, Place, Span};
use super::tail::Tip;

/// Room for one page; a sink takes less than 200 bytes plus its name, and 200 for each backlog.
const PAGE: usize = 64 << 10;
/// Generation, length, checksum.
const PAGE_HEAD: usize = 16;

/// What a page holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Saved {
    /// Sequences below this are taken.
    pub sequence: u64,
    /// Dead letters below this have been queued again; of the records that stand among the payloads in
    /// stores of format 1.
    pub requeued: u64,
    /// Refused records below this have been queued again.
    #[serde(default)]
    pub requeued_refused: u64,
    /// By sink: everything below this is done with, in the priority and the routine lane.
    pub sinks: BTreeMap<String, [Cursor; 2]>,
    /// By sink: what of the routine lane is done beyond that. Whoever does not know this member, as
    /// versions before it, sends those once more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ahead: BTreeMap<String, Vec<Span>>,
    /// By lane: how far it had come.
    #[serde(default)]
    pub tips: BTreeMap<String, Tip>,
    /// The time to which ages were counted.
    #[serde(default)]
    pub clock: Time,
}

impl Saved {
    /// Adds a sink.
    pub fn put(&mut self, sink: &str, places: &[Place; 2]) {
        self.sinks.insert(sink.to_owned(), places.each_ref().map(Place::cursor));
        if !places[1].ahead().is_empty() {
            self.ahead.insert(sink.to_owned(), places[1].ahead().to_vec());
        }
    }

    /// Where a sink was.
    pub fn places(&self, sink: &str) -> Option<[Place; 2]> {
        let [priority, routine] = *self.sinks.get(sink)?;
        let ahead = self.ahead.get(sink).map_or(&[][..], Vec::as_slice);
        Some([Place::new(priority, &[]), Place::new(routine, ahead)])
    }
}

/// The file.
pub(super) struct CursorFile {
    file: File,
    path: PathBuf,
    generation: u64,
}

impl CursorFile {
    /// Opens or makes it; what it says, if anything.
    pub fn open(path: &Path) -> Result<(CursorFile, Option<Saved>), Fault> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(Fault::io("open", path))?;
        let newest = newest(&file);
        let generation = newest.as_ref().map_or(0, |(g, _)| *g);
        Ok((CursorFile { file, path: path.to_owned(), generation }, newest.map(|(_, saved)| saved)))
    }

    /// What the file says, if there is one.
    pub fn look(path: &Path) -> Result<Option<Saved>, Fault> {
        match File::open(path) {
            Ok(file) => Ok(newest(&file).map(|(_, saved)| saved)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Fault::io("open", path)(e)),
        }
    }

    /// Writes the page whose turn it is. Not synced unless asked: until then a power cut may bring
    /// older cursors back.
    pub fn write(&mut self, saved: &Saved, sync: bool) -> Result<(), Fault> {
        let json = serde_json::to_vec(saved).unwrap_or_default();
        let generation = self.generation + 1;
        let mut page = Vec::with_capacity(PAGE_HEAD + json.len());
        page.extend_from_slice(&generation.to_le_bytes());
        page.extend_from_slice(&(json.len() as u32).to_le_bytes());
        page.extend_from_slice(&checksum(generation, &json).to_le_bytes());
        page.extend_from_slice(&json);
        if page.len() > PAGE {
            let e = std::io::Error::other("too many sinks, or too long names");
            return Err(Fault::io("write", &self.path)(e));
        }
        let written = self.file.write_all_at(&page, (generation % 2) * PAGE as u64);
        written.map_err(Fault::io("write", &self.path))?;
        self.generation = generation;
        if sync {
            self.file.sync_data().map_err(Fault::io("sync", &self.path))?;
        }
        Ok(())
    }
}

fn checksum(generation: u64, json: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&generation.to_le_bytes());
    crc.update(json);
    crc.finalize()
}

fn newest(file: &File) -> Option<(u64, Saved)> {
    [0, 1].into_iter().filter_map(|page| read_page(file, page)).max_by_key(|(generation, _)| *generation)
}

fn read_page(file: &File, page: u64) -> Option<(u64, Saved)> {
    let mut head = [0; PAGE_HEAD];
    file.read_exact_at(&mut head, page * PAGE as u64).ok()?;
    let generation = u64::from_le_bytes(head[..8].try_into().ok()?);
    let len = u32::from_le_bytes(head[8..12].try_into().ok()?) as usize;
    let crc = u32::from_le_bytes(head[12..].try_into().ok()?);
    if len > PAGE - PAGE_HEAD {
        return None;
    }
    let mut json = vec![0; len];
    file.read_exact_at(&mut json, page * PAGE as u64 + PAGE_HEAD as u64).ok()?;
    if checksum(generation, &json) != crc {
        return None;
    }
    Some((generation, serde_json::from_slice(&json).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved(n: u64) -> Saved {
        let place = [Cursor { sequence: n, position: n }, Cursor { sequence: 2 * n, position: n }];
        let to = Cursor { sequence: 4 * n, position: 2 * n };
        let ahead = if n.is_multiple_of(2) { vec![Span { from: to, to }] } else { Vec::new() };
        let mut saved = Saved { sequence: 3 * n, ..Saved::default() };
        saved.put("cloud", &[Place::new(place[0], &[]), Place::new(place[1], &ahead)]);
        saved
    }

    #[test]
    fn a_sink_is_where_it_was_also_as_older_versions_wrote_it() {
        let [_, routine] = saved(4).places("cloud").unwrap();
        assert_eq!((routine.cursor().sequence, routine.live().sequence), (8, 16));
        let old = br#"{"sequence":9,"requeued":0,"sinks":{"cloud":[{"sequence":1,"position":0},{"sequence":5,"position":3}]}}"#;
        let old: Saved = serde_json::from_slice(old).unwrap();
        let [priority, routine] = old.places("cloud").unwrap();
        assert_eq!((priority.live().sequence, routine.live()), (1, Cursor { sequence: 5, position: 3 }));
        assert_eq!(old.places("archive"), None);
    }

    #[test]
    fn the_newest_page_counts_and_a_torn_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cursors");
        let (mut file, nothing) = CursorFile::open(&path).unwrap();
        assert_eq!(nothing, None);
        for n in 1..=5 {
            file.write(&saved(n), n % 2 == 0).unwrap();
            assert_eq!(CursorFile::open(&path).unwrap().1, Some(saved(n)));
        }
        // Generation 5 is in the second page.
        file.file.write_all_at(b"torn", PAGE as u64 + 20).unwrap();
        let (mut file, older) = CursorFile::open(&path).unwrap();
        assert_eq!(older, Some(saved(4)));
        file.write(&saved(6), true).unwrap();
        assert_eq!(CursorFile::open(&path).unwrap().1, Some(saved(6)));
    }
}
