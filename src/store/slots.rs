//! A segment as sled sees it: one Db whose keys are slot numbers, all inserted empty in advance.
//! Everything that touches sled is here.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::block::{self, Head};
use super::fault::{Fault, guarded};

/// sled's own segment size. It is kept in the Db and can never change. Values must stay below a
/// quarter of it, or they become blob files that sled never syncs.
const SLED_SEGMENT: usize = 2 << 20;
/// sled's page cache. Slots are written once and mostly read once, so a large one is of no use.
const SLED_CACHE: u64 = 8 << 20;
/// Slots that are never written. The last leaf is not full and would be split, and so rewritten,
/// if it took values.
const SPARE_SLOTS: u32 = 24;
/// How long sled may take to open a segment before it is taken to hang.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
/// How long to wait for the lock that a dying holder lets go of late.
const LOCK_WAIT: Duration = Duration::from_secs(5);

const _: () = assert!(block::VALUE_MAX < SLED_SEGMENT / 4 - 64);

/// An open segment.
#[derive(Clone)]
pub(super) struct Slots {
    db: sled::Db,
}

/// The writer's end of an open segment: syncs for real.
pub(super) struct SlotWriter {
    slots: Slots,
    /// Our own descriptor of sled's file: sled's flush does not reach the medium.
    file: File,
    path: PathBuf,
    /// Slots that were laid out. Beyond them pages would be rewritten, into files sled never syncs.
    room: u32,
}

fn config(dir: &Path) -> sled::Config {
    sled::Config::new()
        .path(dir)
        .segment_size(SLED_SEGMENT)
        .cache_capacity(SLED_CACHE)
        .flush_every_ms(None)
        .use_compression(false)
}

/// The file that holds a segment's blocks.
pub(super) fn data_file(dir: &Path) -> PathBuf {
    dir.join("db")
}

/// Makes a segment with that many empty slots and its room on disk, and syncs all of it.
pub(super) fn create(dir: &Path, slots: u32, preallocate: u64) -> Result<SlotWriter, Fault> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(Fault::io("remove", dir))?;
    }
    fs::create_dir_all(dir).map_err(Fault::io("create", dir))?;
    #[cfg(test)]
    trouble::check(dir)?;
    let db = guarded("open a new segment", || config(dir).open())?;
    guarded("lay out slots", || {
        for slot in 0..slots + SPARE_SLOTS {
            db.insert(slot.to_be_bytes(), &[])?;
        }
        db.flush().map(drop)
    })?;
    let writer = SlotWriter::new(db, dir, slots)?;
    let reserved = fallocate(&writer.file, FallocateFlags::KEEP_SIZE, 0, preallocate);
    // Some filesystems cannot; then a full disk shows up later, at a write.
    if let Err(e @ (Errno::NOSPC | Errno::DQUOT | Errno::IO)) = reserved {
        return Err(Fault::io("reserve room for", &writer.path)(e.into()));
    }
    sync_tree(dir)?;
    Ok(writer)
}

/// Opens a segment again for writing: what it holds, by slot. `Err` when sled cannot, or hangs;
/// a hanging thread is left behind, since nothing can end it.
pub(super) fn open(dir: &Path) -> Result<(SlotWriter, Vec<Head>), Fault> {
    remove_half_made_snapshots(dir)?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match open_once(dir) {
            Err(fault) if fault.is_locked() && Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            other => return other,
        }
    }
}

fn open_once(dir: &Path) -> Result<(SlotWriter, Vec<Head>), Fault> {
    let (done, result) = mpsc::sync_channel(1);
    let path = dir.to_owned();
    let spawned = thread::Builder::new().name("andon-open".into()).spawn(move || {
        let opened = guarded("open a segment", || config(&path).open())
            .and_then(|db| guarded("read a segment", || heads(&db)).map(|known| (db, known)));
        // The one who asked may have given up.
        let _ = done.send(opened);
    });
    spawned.map_err(Fault::io("start a thread for", dir))?;
    match result.recv_timeout(OPEN_TIMEOUT) {
        Ok(opened) => {
            let (db, (heads, keys)) = opened?;
            Ok((SlotWriter::new(db, dir, keys.saturating_sub(SPARE_SLOTS))?, heads))
        }
        Err(_) => Err(Fault::Timeout { doing: "open a segment", seconds: OPEN_TIMEOUT.as_secs() }),
    }
}

/// The blocks sled still knows, in slot order, and the number of its keys. Slots whose value is
/// damaged are left out.
fn heads(db: &sled::Db) -> sled::Result<(Vec<Head>, u32)> {
    let (mut heads, mut keys) = (Vec::new(), 0);
    for item in db.iter() {
        let (key, value) = item?;
        keys += 1;
        match block::parse(&value) {
            Some(head) if *key == head.slot.to_be_bytes() => heads.push(head),
            _ => {}
        }
    }
    Ok((heads, keys))
}

/// Killed while it opens, sled leaves these behind and then calls the Db corrupt for ever.
fn remove_half_made_snapshots(dir: &Path) -> Result<(), Fault> {
    for entry in fs::read_dir(dir).map_err(Fault::io("list", dir))?.flatten() {
        if entry.file_name().to_string_lossy().ends_with(".generating") {
            fs::remove_file(entry.path()).map_err(Fault::io("remove", &entry.path()))?;
        }
    }
    Ok(())
}

impl Slots {
    /// The value in a slot.
    pub fn get(&self, slot: u32) -> Result<Option<sled::IVec>, Fault> {
        guarded("read a slot", || self.db.get(slot.to_be_bytes()))
    }
}

impl SlotWriter {
    fn new(db: sled::Db, dir: &Path, room: u32) -> Result<SlotWriter, Fault> {
        let path = data_file(dir);
        let file = OpenOptions::new().read(true).write(true).open(&path).map_err(Fault::io("open", &path))?;
        Ok(SlotWriter { slots: Slots { db }, file, path, room })
    }

    /// How many slots may be written, which is not what is configured now when the segment is older.
    pub fn room(&self) -> u32 {
        self.room
    }

    /// Whether the file in this directory is still the one that is written.
    pub fn is_in(&self, dir: &Path) -> bool {
        let ours = self.file.metadata().ok().map(|m| identity(&m));
        ours.is_some() && ours == fs::metadata(data_file(dir)).ok().map(|m| identity(&m))
    }

    /// For readers.
    pub fn slots(&self) -> Slots {
        self.slots.clone()
    }

    /// Fills a slot. Not durable before [`SlotWriter::sync`].
    pub fn put(&self, slot: u32, value: Vec<u8>) -> Result<(), Fault> {
        guarded("fill a slot", || self.slots.db.insert(slot.to_be_bytes(), value).map(drop))
    }

    /// Everything put so far is on the medium when this returns.
    pub fn sync(&self) -> Result<(), Fault> {
        guarded("flush", || self.slots.db.flush().map(drop))?;
        #[cfg(test)]
        trouble::check(&self.path)?;
        self.file.sync_data().map_err(Fault::io("sync", &self.path))
    }

    /// Lets sled go, on a thread of its own since that takes a while, gives back the room the
    /// segment did not need, and says how much it takes on disk.
    pub fn close(self, then: impl FnOnce(u64) + Send + 'static) -> Option<thread::JoinHandle<()>> {
        let closer = thread::Builder::new().name("andon-close".into()).spawn(move || {
            let SlotWriter { slots, file, .. } = self;
            let _ = guarded("close a segment", || {
                drop(slots);
                Ok(())
            });
            // Setting the length it has frees what was reserved beyond it.
            let trimmed = file.metadata().and_then(|m| file.set_len(m.len()));
            if let Ok(()) = trimmed
                && let Ok(size) = file.metadata()
            {
                then(on_disk(&size));
            }
        });
        closer.ok()
    }
}

impl SlotWriter {
    /// Lets sled go, on a thread of its own, and keeps the room that was reserved.
    pub fn close_untrimmed(self) -> Option<thread::JoinHandle<()>> {
        let close = move || {
            let _ = guarded("close a segment", || {
                drop(self);
                Ok(())
            });
        };
        thread::Builder::new().name("andon-close".into()).spawn(close).ok()
    }
}

/// What tells a file from every other: its device and inode.
pub(super) fn identity(meta: &fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    (meta.dev(), meta.ino())
}

/// What a file really takes, in bytes.
pub(super) fn on_disk(meta: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(meta) * 512
}

/// Makes the entries of a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), Fault> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(Fault::io("sync", dir))
}

/// Makes what a segment's file holds durable, whoever wrote it.
pub(super) fn sync_file(dir: &Path) -> Result<(), Fault> {
    let path = data_file(dir);
    match File::open(&path).and_then(|f| f.sync_data()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Fault::io("sync", &path)),
    }
}

fn sync_tree(dir: &Path) -> Result<(), Fault> {
    for entry in fs::read_dir(dir).map_err(Fault::io("list", dir))?.flatten() {
        File::open(entry.path()).and_then(|f| f.sync_all()).map_err(Fault::io("sync", &entry.path()))?;
    }
    sync_dir(dir)
}

/// A disk that is full, for tests: everything below certain directories fails.
#[cfg(test)]
pub(super) mod trouble {
    use std::io;
    use std::path::{Path, PathBuf};
    use std::sync::Mutex;

    use super::Fault;
    use crate::metrics::lock;

    static FULL: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

    pub fn start(below: &Path) {
        lock(&FULL).push(below.to_owned());
    }

    pub fn stop(below: &Path) {
        lock(&FULL).retain(|p| p != below);
    }

    pub fn check(path: &Path) -> Result<(), Fault> {
        let full = lock(&FULL).iter().any(|p| path.starts_with(p));
        if full { Err(Fault::io("sync", path)(io::ErrorKind::StorageFull.into())) } else { Ok(()) }
    }
}
