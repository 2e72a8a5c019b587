//! What a lane knows of its sealed segments without opening them, and the numbers that must never
//! go back. One small file per lane, replaced whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use super::segment::Summary;
use super::slots::sync_dir;

const NAME: &str = "manifest";
const NAME_NEW: &str = "manifest.new";
/// A manifest larger than this is not ours: it has a few hundred bytes for each segment.
const MAX_BYTES: u64 = 64 << 20;

/// See the top of the file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// The segment that is written after this; sequences below it are taken.
    pub next: u64,
    /// Items ever put into this lane.
    pub position: u64,
    /// The engine's ordinal after the last engine record.
    pub engine_upto: u64,
    /// All segments before `next` that are still wanted.
    pub sealed: Vec<Summary>,
}

impl Manifest {
    /// `None` when there is none, or none that is intact.
    pub fn read(lane: &Path) -> Result<Option<Manifest>, Fault> {
        let path = lane.join(NAME);
        match fs::metadata(&path) {
            Ok(meta) if meta.len() <= MAX_BYTES => {}
            Ok(_) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Fault::io("look at", &path)(e)),
        }
        let bytes = fs::read(&path).map_err(Fault::io("read", &path))?;
        Ok(Manifest::parse(&bytes))
    }

    fn parse(bytes: &[u8]) -> Option<Manifest> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (json, crc) = text.strip_suffix('\n')?.rsplit_once('\n')?;
        let intact = u32::from_str_radix(crc, 16).ok()? == crc32fast::hash(json.as_bytes());
        if !intact {
            return None;
        }
        serde_json::from_str(json).ok()
    }

    fn text(&self) -> String {
        // Numbers only: this cannot fail, and an empty text would be refused when read.
        let json = serde_json::to_string(self).unwrap_or_default();
        let crc = crc32fast::hash(json.as_bytes());
        format!("{json}\n{crc:08x}\n")
    }

    /// Replaces the lane's manifest; durable when this returns.
    pub fn write(&self, lane: &Path) -> Result<(), Fault> {
        let new = lane.join(NAME_NEW);
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(self.text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, lane.join(NAME))
        };
        write().map_err(Fault::io("write", &new))?;
        sync_dir(lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_back_and_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), None);
        let manifest = Manifest {
            next: 9,
            position: 8,
            engine_upto: 20,
            sealed: vec![Summary { name: 1, last: 8, records: 8, checkpoint: Some(3), ..Summary::default() }],
        };
        manifest.write(dir.path()).unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), Some(manifest.clone()));
        let good = manifest.text().into_bytes();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(Manifest::parse(&bad).is_none(), "byte {at}");
            assert!(Manifest::parse(&good[..at]).is_none(), "cut at {at}");
        }
    }
}
