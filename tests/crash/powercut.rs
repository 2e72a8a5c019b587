//! Power cuts: runs a process below `powercut.c`, and when it has been killed makes of its directory
//! what a disk could hold if the power had gone at that moment. What was synced stays; of the rest
//! chance takes what it likes, down to single sectors.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const SECTOR: u64 = 512;
const PAGE: u64 = 4096;
/// In place of an offset: the record tells the length of the file.
const LENGTH: u64 = u64::MAX;

/// The library, compiled once per run of the tests.
fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/powercut.c");
        // Next to the test binary; each process makes its own, since several may run at once.
        let out = std::env::temp_dir().join(format!("andon-powercut-{}.so", std::process::id()));
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]).arg(&out).arg(source);
        let done = cc.args(["-ldl", "-lpthread"]).output().expect("a C compiler: see tests/run");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        out
    })
}

/// What can be made to go wrong while the process runs. The order is that in `powercut.c`.
#[derive(Copy, Clone)]
pub enum Knob {
    FailSyncs = 0,
    SyncDelayUs = 1,
    Full = 2,
    #[allow(dead_code)]
    FailWrites = 3,
    ReadOnly = 4,
    /// These three are counted.
    Syncs = 5,
    Written = 6,
    Faults = 7,
}

/// A directory on a disk that forgets.
pub struct Disk {
    dir: PathBuf,
    notes: Option<PathBuf>,
    control: File,
    control_path: PathBuf,
}

impl Disk {
    /// For processes that change `dir`, with the notes in `beside`: another directory on the same
    /// file system. Both are made.
    pub fn new(dir: &Path, beside: &Path) -> Disk {
        let disk = Disk::faults_only(dir, beside);
        let notes = beside.join("notes");
        fs::create_dir_all(&notes).expect("a directory");
        Disk { notes: Some(notes), ..disk }
    }

    /// One that forgets nothing, where only faults can be set.
    pub fn faults_only(dir: &Path, beside: &Path) -> Disk {
        for d in [dir, beside] {
            fs::create_dir_all(d).expect("a directory");
        }
        let control_path = beside.join("control");
        let mut options = OpenOptions::new();
        let control = options.read(true).write(true).create(true).truncate(true).open(&control_path).expect("a file");
        control.set_len(64).expect("room");
        Disk { dir: dir.to_owned(), notes: None, control, control_path }
    }

    /// What a process needs in its environment to be on this disk.
    pub fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        let mut all = vec![
            ("LD_PRELOAD", library().to_owned()),
            ("POWERCUT_DIR", self.dir.clone()),
            ("POWERCUT_CONTROL", self.control_path.clone()),
        ];
        all.extend(self.notes.iter().map(|n| ("POWERCUT_NOTES", n.clone())));
        all
    }

    pub fn set(&self, knob: Knob, value: u64) {
        self.control.write_all_at(&value.to_le_bytes(), knob as u64 * 8).expect("writing");
    }

    pub fn get(&self, knob: Knob) -> u64 {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, knob as u64 * 8).expect("reading");
        u64::from_le_bytes(bytes)
    }

    /// Takes back what chance says; the process must be dead. From then on all that is left is
    /// durable.
    pub fn cut(&self, taste: Taste) -> Cut {
        let notes = self.notes.as_ref().expect("a disk that forgets");
        let mut random = fastrand::Rng::with_seed(taste.seed);
        let mut cut = Cut { taste: Some(taste), ..Cut::default() };
        undo_names(&self.dir, notes, taste.names, &mut random, &mut cut);
        undo_contents(&self.dir, notes, taste.contents, &mut random, &mut cut);
        fs::remove_dir_all(notes).expect("removing the notes");
        fs::create_dir(notes).expect("a directory");
        cut
    }
}

/// How cruel a cut is.
#[derive(Copy, Clone, Debug)]
pub struct Taste {
    pub seed: u64,
    pub contents: Contents,
    pub names: Names,
}

/// What is kept of contents that were not synced.
#[derive(Copy, Clone, Debug, PartialEq)]
pub enum Contents {
    Nothing,
    Everything,
    /// This part of the 512-byte sectors.
    Sectors(f64),
    /// This part of the 4096-byte pages.
    Pages(f64),
}

/// What is kept of changes in directories that were not synced.
#[derive(Copy, Clone, Debug, PartialEq)]
pub enum Names {
    Nothing,
    Everything,
    /// The first ones, over all directories: as in a journal.
    Journal,
    /// The first ones of each directory. A move between two is kept or not as a whole.
    EachDirectory,
}

impl Taste {
    /// Everything that was not synced is gone.
    pub fn harsh() -> Taste {
        Taste { seed: 0, contents: Contents::Nothing, names: Names::Nothing }
    }

    /// One of many.
    pub fn any(random: &mut fastrand::Rng) -> Taste {
        let part = [0.1, 0.5, 0.9, 0.99, 0.999][random.usize(..5)];
        let contents = match random.u8(..10) {
            0..3 => Contents::Nothing,
            3..5 => Contents::Everything,
            5..8 => Contents::Sectors(part),
            _ => Contents::Pages(part),
        };
        let names = match random.u8(..4) {
            0 => Names::Nothing,
            1 => Names::Everything,
            2 => Names::Journal,
            _ => Names::EachDirectory,
        };
        Taste { seed: random.u64(..), contents, names }
    }
}

/// What a cut took.
#[derive(Debug, Default)]
pub struct Cut {
    pub taste: Option<Taste>,
    pub names_unsynced: usize,
    pub names_undone: usize,
    pub sectors_unsynced: usize,
    pub sectors_undone: usize,
    pub files_touched: usize,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cut { names_unsynced, names_undone, sectors_unsynced, sectors_undone, .. } = self;
        write!(f, "{sectors_undone} of {sectors_unsynced} sectors in {} files, ", self.files_touched)?;
        write!(f, "{names_undone} of {names_unsynced} names")?;
        self.taste.map_or(Ok(()), |t| write!(f, " ({:?}, {:?})", t.contents, t.names))
    }
}

// ---- names ----

/// One change of a directory.
struct Op {
    kind: char,
    dir: u64,
    name: String,
    inode: u64,
    to: u64,
    new_name: String,
    replaced: u64,
}

impl Op {
    fn parse(line: &str) -> Option<Op> {
        let parts: Vec<&str> = line.split('\t').collect();
        let [kind, dir, name, inode, to, new_name, replaced] = parts[..] else { return None };
        Some(Op {
            kind: kind.chars().next()?,
            dir: dir.parse().ok()?,
            name: name.to_owned(),
            inode: inode.parse().ok()?,
            to: to.parse().ok()?,
            new_name: new_name.to_owned(),
            replaced: replaced.parse().ok()?,
        })
    }

    fn dirs(&self) -> impl Iterator<Item = u64> {
        [self.dir].into_iter().chain((self.kind == 'r' && self.to != self.dir).then_some(self.to))
    }
}

/// Changes that no sync followed, oldest first. A move between directories is one transaction and
/// durable with either.
fn unsynced(notes: &Path) -> Vec<Op> {
    let text = fs::read_to_string(notes.join("ops")).unwrap_or_default();
    // A torn last line was never acted upon.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut pending: Vec<Op> = Vec::new();
    for op in whole.lines().filter_map(Op::parse) {
        match op.kind {
            's' => pending.retain(|p| p.dirs().all(|d| d != op.dir)),
            'S' => pending.clear(),
            _ => pending.push(op),
        }
    }
    pending
}

fn undo_names(dir: &Path, notes: &Path, taste: Names, random: &mut fastrand::Rng, cut: &mut Cut) {
    let pending = unsynced(notes);
    let all = pending.len();
    let mut keep: HashMap<u64, usize> = HashMap::new();
    let dirs: BTreeSet<u64> = pending.iter().flat_map(Op::dirs).collect();
    let common = random.usize(..=all);
    for d in &dirs {
        let upto = match taste {
            Names::Nothing => 0,
            Names::Everything => all,
            Names::Journal => common,
            Names::EachDirectory => random.usize(..=all),
        };
        keep.insert(*d, upto);
    }
    // What follows an undone move is undone in both directories.
    while let Some((i, op)) = pending.iter().enumerate().find(|(i, op)| {
        let kept: Vec<bool> = op.dirs().map(|d| *i < keep[&d]).collect();
        kept.contains(&true) && kept.contains(&false)
    }) {
        op.dirs().for_each(|d| _ = keep.entry(d).and_modify(|k| *k = (*k).min(i)));
    }
    cut.names_unsynced = all;
    for (i, op) in pending.iter().enumerate().rev() {
        if i >= keep[&op.dir] {
            cut.names_undone += 1;
            undo(op, &Tree::read(dir, notes), notes);
        }
    }
}

/// Where each inode is.
struct Tree(HashMap<u64, PathBuf>);

impl Tree {
    fn read(dir: &Path, notes: &Path) -> Tree {
        let mut tree = Tree(HashMap::new());
        tree.walk(notes, false);
        // After the notes: what is still there counts, not what was kept of it.
        tree.walk(dir, true);
        tree
    }

    fn walk(&mut self, path: &Path, itself: bool) {
        let Ok(meta) = fs::symlink_metadata(path) else { return };
        if itself {
            self.0.insert(meta.ino(), path.to_owned());
        }
        if meta.is_dir() {
            for entry in fs::read_dir(path).expect("a directory").flatten() {
                self.walk(&entry.path(), true);
            }
        }
    }
}

fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|m| m.ino())
}

/// Takes one change back, if it was made at all.
fn undo(op: &Op, tree: &Tree, notes: &Path) {
    let at = |dir: u64, name: &str| tree.0.get(&dir).map(|d| d.join(name));
    let Some(path) = at(op.dir, &op.name) else { return };
    match op.kind {
        'c' => _ = fs::remove_file(&path),
        'm' => _ = fs::remove_dir_all(&path),
        'u' if inode(&path).is_none() => {
            fs::hard_link(notes.join(format!("g-{}", op.inode)), &path).expect("a link back");
        }
        'd' if inode(&path).is_none() => {
            fs::rename(notes.join(format!("g-{}", op.inode)), &path).expect("a directory back");
        }
        'r' => {
            let Some(new) = at(op.to, &op.new_name) else { return };
            if inode(&new) != Some(op.inode) || inode(&path).is_some() {
                return;
            }
            fs::rename(&new, &path).expect("a name back");
            if op.replaced != 0 {
                fs::hard_link(notes.join(format!("g-{}", op.replaced)), &new).expect("a link back");
            }
        }
        _ => {}
    }
}

// ---- contents ----

/// What a file was when it was last synced, as far as it differs since.
#[derive(Default)]
struct Before {
    length: Option<u64>,
    /// By number; the last one may be short.
    sectors: BTreeMap<u64, Vec<u8>>,
}

impl Before {
    fn read(&mut self, path: &Path) {
        let bytes = fs::read(path).unwrap_or_default();
        let mut rest = &bytes[..];
        while let Some((head, tail)) = rest.split_at_checked(16) {
            let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
            let (offset, length) = (number(0), number(8));
            if offset == LENGTH {
                self.length.get_or_insert(length);
                rest = tail;
                continue;
            }
            // A torn last record was never acted upon.
            let Some((data, tail)) = tail.split_at_checked(length as usize) else { break };
            for (i, sector) in data.chunks(SECTOR as usize).enumerate() {
                self.sectors.insert(offset / SECTOR + i as u64, sector.to_vec());
            }
            rest = tail;
        }
    }
}

fn undo_contents(dir: &Path, notes: &Path, taste: Contents, random: &mut fastrand::Rng, cut: &mut Cut) {
    let mut inodes: Vec<u64> = Vec::new();
    for entry in fs::read_dir(notes).expect("the notes").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        inodes.extend(name.strip_prefix("u-").or(name.strip_prefix("p-")).and_then(|n| n.parse::<u64>().ok()));
    }
    inodes.sort_unstable();
    inodes.dedup();
    let mut places = Tree(HashMap::new());
    places.walk(dir, true);
    let mut seen = HashSet::new();
    for inode in inodes {
        let Some(path) = places.0.get(&inode).filter(|p| seen.insert((*p).clone())) else { continue };
        let mut before = Before::default();
        before.read(&notes.join(format!("u-{inode}")));
        // What a failed sync left undecided is older.
        let mut undecided = Before::default();
        undecided.read(&notes.join(format!("p-{inode}")));
        before.sectors.append(&mut undecided.sectors);
        if let Some(length) = undecided.length.or(before.length) {
            before.length = Some(length);
            restore(path, &before, taste, random, cut);
        }
    }
}

/// Makes a file what the disk may have of it.
fn restore(path: &Path, before: &Before, taste: Contents, random: &mut fastrand::Rng, cut: &mut Cut) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("a file");
    let now = file.metadata().expect("a file").len();
    // A sector beyond the old end that was noted again had been written back.
    let written = before.sectors.iter().next_back().map_or(0, |(n, s)| n * SECTOR + s.len() as u64);
    let base = before.length.unwrap_or(now).max(written);
    let beyond = base.div_ceil(SECTOR)..now.div_ceil(SECTOR);
    let unsynced: Vec<u64> = before.sectors.keys().copied().chain(beyond).collect();
    let mut pages: HashMap<u64, bool> = HashMap::new();
    let mut keep = |sector: u64| match taste {
        Contents::Nothing => false,
        Contents::Everything => true,
        Contents::Sectors(part) => random.f64() < part,
        Contents::Pages(part) => *pages.entry(sector * SECTOR / PAGE).or_insert_with(|| random.f64() < part),
    };
    // A shorter file is a change like any other.
    let shrunk = now < base && (taste == Contents::Everything || (taste != Contents::Nothing && keep(u64::MAX / PAGE)));
    let (mut end, mut undone) = (base, Vec::new());
    for sector in &unsynced {
        if keep(*sector) && sector * SECTOR < now {
            end = end.max(((sector + 1) * SECTOR).min(now));
        } else {
            undone.push(*sector);
        }
    }
    cut.sectors_unsynced += unsynced.len();
    cut.sectors_undone += undone.len();
    cut.files_touched += usize::from(!undone.is_empty());
    for sector in undone {
        let mut bytes = before.sectors.get(&sector).cloned().unwrap_or_default();
        // What is kept behind it makes the file longer; a hole is zeros.
        bytes.resize(SECTOR as usize, 0);
        file.write_all_at(&bytes, sector * SECTOR).expect("writing");
    }
    file.set_len(if shrunk { now } else { end }).expect("the length");
}
