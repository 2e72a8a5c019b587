//! Going on with a segment after a stop of any kind. sled's word is checked against what the file
//! itself shows; where they differ the segment is rebuilt from every block that can be found, and
//! the original is set aside.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::block::{self, Head};
use super::fault::Fault;
use super::segment::Summary;
use super::slots::{self, SlotWriter};

/// A segment that was reopened.
pub(super) struct Reopened {
    /// `None` when nothing can be written at present; the blocks can still be read.
    pub writer: Option<SlotWriter>,
    /// What it holds, in slot order, with the length of each block.
    pub blocks: Vec<(Head, usize)>,
    /// Why it had to be rebuilt.
    pub trouble: Option<String>,
}

/// The heads alone.
pub(super) fn heads(blocks: &[(Head, usize)]) -> Vec<Head> {
    blocks.iter().map(|(head, _)| *head).collect()
}

/// Heads with the size of their blocks, and the blocks themselves.
pub(super) type Found = (Vec<(Head, usize)>, Vec<Vec<u8>>);

/// Every intact block in a segment's file, and the bytes of each when `keep` asks for them.
pub(super) fn blocks(dir: &Path, lane: u8, keep: bool) -> Result<Found, Fault> {
    let path = slots::data_file(dir);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        Err(e) => return Err(Fault::io("open", &path)(e)),
    };
    let (mut heads, mut values) = (Vec::new(), Vec::new());
    for found in block::carve(&file, lane).map_err(Fault::io("read", &path))? {
        if keep {
            match block::read_found(&file, &found).map_err(Fault::io("read", &path))? {
                Some(value) => values.push(value),
                None => continue,
            }
        }
        heads.push((found.head, found.len));
    }
    Ok((heads, values))
}

/// Makes up the summary of a segment that no manifest lists.
pub(super) fn survey(name: u64, dir: &Path, lane: u8, position: u64) -> Result<Summary, Fault> {
    let (heads, _) = blocks(dir, lane, false)?;
    let mut summary = Summary::empty(name, position, 0);
    heads.iter().for_each(|(head, len)| summary.add(head, *len));
    summary.disk = fs::metadata(slots::data_file(dir)).map_or(0, |m| slots::on_disk(&m));
    Ok(summary)
}

/// Opens the segment in `dir` for writing, rebuilding it if need be.
pub(super) fn reopen(
    dir: &Path,
    lane: u8,
    slots: u32,
    lane_dir: &Path,
    aside: impl FnOnce() -> PathBuf,
) -> Result<Reopened, Fault> {
    // What a process left that was killed may be in memory only. The engine's replay builds on it, and
    // what follows from it becomes durable in other lanes: it has to be on the medium first.
    let unsure = slots::sync_file(dir).err();
    // Before sled opens it: sled zeroes what it does not recognise. At most one segment's worth.
    let (mut blocks, mut values) = blocks(dir, lane, true)?;
    let seen = heads(&blocks);
    if let Some(end) = torn_tail(&seen) {
        tracing::info!("{} blocks behind a hole were never acknowledged and are dropped", blocks.len() - end);
        blocks.truncate(end);
        values.truncate(end);
    }
    let opened = unsure.map_or_else(|| slots::open(dir), Err);
    let trouble = match opened {
        // One without slots is an empty file: sled makes a new Db of that.
        Ok((writer, known)) if known == seen && is_whole(&seen) && writer.room() > 0 => {
            return Ok(Reopened { writer: Some(writer), blocks, trouble: None });
        }
        Ok((writer, known)) => {
            writer.close_untrimmed().map(std::thread::JoinHandle::join);
            let empty = known.is_empty() && seen.is_empty();
            difference(&known, &seen, &heads(&blocks)).or_else(|| empty.then(|| "the file is empty".to_owned()))
        }
        Err(fault) if fault.is_locked() => return Err(fault),
        Err(fault) if fault.no_room() => return Ok(Reopened { writer: None, blocks, trouble: None }),
        Err(fault) => Some(fault.to_string()),
    };
    // What power cuts leave is not worth a look.
    let aside = || if trouble.is_some() { aside() } else { lane_dir.join("del-torn") };
    match rebuild(dir, slots, lane_dir, values, aside) {
        Ok(writer) => {
            (0..).zip(&mut blocks).for_each(|(slot, (head, _))| head.slot = slot);
            Ok(Reopened { writer: Some(writer), blocks, trouble })
        }
        Err(fault) if fault.no_room() => Ok(Reopened { writer: None, blocks, trouble }),
        Err(fault) => Err(fault),
    }
}

/// How many blocks come before the first hole that is not damage: one behind the last block that
/// follows a sync, in what was being written when the power went.
fn torn_tail(seen: &[Head]) -> Option<usize> {
    let durable = seen.iter().rposition(|h| h.after_sync).map_or(0, |last| last + 1);
    let follows = |i: usize| i.checked_sub(1).map_or(0, |before| seen[before].slot + 1);
    (durable..seen.len()).find(|i| seen[*i].slot != follows(*i))
}

fn is_whole(seen: &[Head]) -> bool {
    seen.iter().enumerate().all(|(i, h)| h.slot as usize == i)
}

/// What is wrong between what sled knows, what its file holds, and what of that counts; `None` when
/// it is only the end that a power cut has torn.
fn difference(known: &[Head], seen: &[Head], counted: &[Head]) -> Option<String> {
    let torn = counted.len() < seen.len();
    if !is_whole(counted) {
        return Some(format!("blocks are missing among {}", seen.len()));
    }
    (!torn && known != seen).then(|| format!("sled knows {} blocks, its file holds {}", known.len(), seen.len()))
}

/// Writes the blocks to the first slots of a fresh segment and puts that in the place of the old
/// one. Interrupted before the first rename, it is done again at the next start; between the
/// renames, the lane has no such segment and `rescue` is complete.
fn rebuild(
    dir: &Path,
    slots: u32,
    lane_dir: &Path,
    values: Vec<Vec<u8>>,
    aside: impl FnOnce() -> PathBuf,
) -> Result<SlotWriter, Fault> {
    let rescue = lane_dir.join("rescue");
    let writer = slots::create(&rescue, slots.max(values.len() as u32), 0)?;
    for (slot, value) in (0..).zip(values) {
        if let Some(value) = block::moved(value, slot) {
            writer.put(slot, value)?;
        }
    }
    writer.sync()?;
    let mark = rescue.join(FOR);
    let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    fs::write(&mark, name).map_err(Fault::io("write", &mark))?;
    File::open(&mark).and_then(|f| f.sync_all()).map_err(Fault::io("sync", &mark))?;
    slots::sync_dir(&rescue)?;
    let aside = aside();
    if aside.exists() {
        fs::remove_dir_all(&aside).map_err(Fault::io("remove", &aside))?;
    }
    fs::rename(dir, &aside).map_err(Fault::io("rename", dir))?;
    fs::rename(&rescue, dir).map_err(Fault::io("rename", &rescue))?;
    slots::sync_dir(lane_dir)?;
    Ok(writer)
}

/// In a rescue that is complete: the name of the segment it stands for.
const FOR: &str = "for";

/// Finishes a rebuild that was interrupted between its renames, or drops one that was not
/// complete.
pub(super) fn finish(lane_dir: &Path) -> Result<(), Fault> {
    let rescue = lane_dir.join("rescue");
    if !rescue.exists() {
        return Ok(());
    }
    let name = fs::read_to_string(rescue.join(FOR)).unwrap_or_default();
    let target = lane_dir.join(&name);
    if name.starts_with("seg-") && !name.contains('/') && !target.exists() {
        fs::rename(&rescue, &target).map_err(Fault::io("rename", &rescue))?;
        return slots::sync_dir(lane_dir);
    }
    fs::remove_dir_all(&rescue).map_err(Fault::io("remove", &rescue))
}
