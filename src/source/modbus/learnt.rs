//! What has been learnt of a device's limits, in a small file of its own: a restart goes on reading
//! around the holes rather than run into each of them again. Losing it costs a few requests.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::plan::{Memory, Span};
use super::registers::Table;
use super::url::Url;
use crate::types::{Cause, Time};

/// More than any config needs; what is longer was not written by us.
const LONGEST: u64 = 4 << 20;

/// The file of one device.
#[derive(Clone, Debug)]
pub struct Learnt {
    path: PathBuf,
    device: String,
    unit: u8,
}

#[derive(Serialize, Deserialize)]
struct File {
    device: String,
    unit: u8,
    holes: Vec<Hole>,
    cuts: Vec<Cut>,
}

/// A span that the device refuses.
#[derive(Serialize, Deserialize)]
struct Hole {
    table: Table,
    start: u16,
    count: u16,
    cause: Cause,
}

/// A border that no request reaches across, and until when.
#[derive(Serialize, Deserialize)]
struct Cut {
    table: Table,
    at: u16,
    until: Time,
}

impl Learnt {
    /// Below `dir`, under the source's name. What it holds is for this unit of this device only.
    pub fn new(dir: &Path, source: &str, url: &Url, unit: u8) -> Learnt {
        // Names may hold anything; the sum keeps two apart that look alike once tidied.
        let tidy = |c: char| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' };
        let name: String = source.chars().take(60).map(tidy).collect();
        let path = dir.join(format!("{name}-{:08x}.json", crc32fast::hash(source.as_bytes())));
        Learnt { path, device: url.to_string(), unit }
    }

    /// Adds what the file holds to `memory`, as far as it concerns these spans. Holes are tried
    /// again at once, each alone. `Err`: why the file is of no use; it will be written anew.
    pub fn recall(&self, memory: &mut Memory, spans: &[Span], now: Time) -> Result<(), String> {
        let text = match fs::metadata(&self.path) {
            Ok(m) if m.len() > LONGEST => return Err(format!("{} is too long", self.path.display())),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            _ => fs::read_to_string(&self.path).map_err(|e| format!("{}: {e}", self.path.display()))?,
        };
        let file: File = serde_json::from_str(&text).map_err(|e| format!("{}: {e}", self.path.display()))?;
        if file.device != self.device || file.unit != self.unit {
            return Ok(());
        }
        let start = tokio::time::Instant::now();
        let holes = file.holes.into_iter().map(|h| (Span { table: h.table, start: h.start, count: h.count }, h.cause));
        for (span, cause) in holes.filter(|(span, _)| spans.contains(span)) {
            memory.recall_hole(span, cause, start);
        }
        let known = |c: &Cut| spans.iter().any(|s| (s.table, s.start) == (c.table, c.at));
        for cut in file.cuts.into_iter().filter(known) {
            memory.recall_cut(cut.table, cut.at, cut.until.since(now), start);
        }
        Ok(())
    }

    /// Writes what is known, in place of what the file held.
    ///
    /// # Errors
    ///
    /// Whatever the disk says.
    pub fn keep(&self, memory: &Memory, now: Time) -> std::io::Result<()> {
        let holes = memory.all_holes().map(|(s, cause)| Hole { table: s.table, start: s.start, count: s.count, cause });
        let until = |left: Duration| now.plus(left);
        let cuts = memory.all_cuts(tokio::time::Instant::now());
        let cuts = cuts.map(|(table, at, left)| Cut { table, at, until: until(left) });
        let file = File { device: self.device.clone(), unit: self.unit, holes: holes.collect(), cuts: cuts.collect() };
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir)?;
        }
        // Not synced: after a power cut the old one, the new one or none at all will do.
        let fresh = self.path.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(&file)?)?;
        fs::rename(&fresh, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::super::plan::Advice;
    use super::*;

    fn span(start: u16) -> Span {
        Span { table: Table::Holding, start, count: 1 }
    }

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    #[test]
    fn what_is_learnt_is_there_after_a_restart_for_the_same_device_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let (now, at) = (Instant::now(), Time::now());
        let learnt = Learnt::new(&dir.path().join("modbus"), "press/plc", &url("tcp://plc"), 1);
        let mut memory = Memory::default();
        assert_eq!(learnt.recall(&mut memory, &[span(1)], at), Ok(()), "a first start");
        memory.refused(span(3), Cause::Exception, now);
        memory.refused(span(9), Cause::Timeout, now);
        memory.cut(Table::Holding, 5, now);
        learnt.keep(&memory, at).expect("kept");

        let spans: Vec<Span> = (0..8).map(span).collect();
        let recall = |learnt: &Learnt, at: Time| {
            let mut memory = Memory::default();
            assert_eq!(learnt.recall(&mut memory, &spans, at), Ok(()));
            memory
        };
        let memory = recall(&learnt, at);
        let later = Instant::now();
        assert_eq!((memory.advice(span(3), later), memory.cause(span(3))), (Advice::Retry, Cause::Exception));
        assert_eq!(memory.holes(), 1, "the one at 9 is no longer asked for");
        assert_eq!(memory.all_cuts(later).map(|(_, at, _)| at).collect::<Vec<_>>(), [5]);
        assert_eq!(recall(&learnt, at.plus(Memory::CUT_HOLDS * 2)).all_cuts(Instant::now()).count(), 0);
        let other = Learnt { unit: 2, ..learnt.clone() };
        assert_eq!(recall(&other, at).holes(), 0);
        let other = Learnt::new(&dir.path().join("modbus"), "press/plc", &url("tcp://plc:503"), 1);
        assert_eq!(recall(&other, at).holes(), 0);
    }

    #[test]
    fn a_file_that_is_no_good_is_told_and_written_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        let learnt = Learnt::new(dir.path(), "a", &url("tcp://plc"), 1);
        for text in
            ["", "{", "[1]", "{\"device\":\"tcp://plc:502\",\"unit\":1,\"holes\":[{\"table\":\"x\"}],\"cuts\":[]}"]
        {
            fs::write(&learnt.path, text).expect("written");
            let mut memory = Memory::default();
            assert!(learnt.recall(&mut memory, &[span(1)], Time::now()).is_err(), "{text}");
            learnt.keep(&memory, Time::now()).expect("kept");
            assert_eq!(learnt.recall(&mut memory, &[span(1)], Time::now()), Ok(()));
        }
    }

    #[test]
    fn names_that_look_alike_have_files_of_their_own() {
        let path = |source| Learnt::new(Path::new("/d"), source, &url("tcp://plc"), 1).path;
        assert_ne!(path("a/b"), path("a_b"));
        assert_eq!(path("../../etc").parent(), Some(Path::new("/d")));
    }
}
