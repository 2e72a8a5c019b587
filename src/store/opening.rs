//! Opening the store: lanes, cursors, the last checkpoint, and what is missing.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use tokio::sync::{Notify, mpsc, watch};

use crate::metrics::{Shared, lock};
use crate::types::Time;

use super::cursors::{CursorFile, Saved};
use super::fault::Fault;
use super::group::{Group, Next};
use super::house::{House, whole};
use super::journal::{Entries, FoundSnapshot, last_snapshot};
use super::lane::{Findings, Lane};
use super::limits::{Limits, shape};
use super::lock::Lock;
use super::outbox::{Shelf, Sink};
use super::place::{Cursor, Place};
use super::segment::{Loss, Losses};
use super::snapshot::SnapshotWriter;
use super::tail::LostTail;
use super::view::{LANES, LaneId, LaneView};
use super::writer::{Order, Writer};
use super::{COMMITS, Config, Recovered, Sender, Store, slots};

/// The version of everything below `queue/`.
const FORMAT: u32 = 2;
/// After damage, sequences go on this much later: more than one segment can have held.
const LEAP: u64 = 1 << 24;
/// Dead letters on their way from sinks to the writer; each sink waits for its own.
const ASIDES: usize = 16;

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data directory cannot be used.
    #[error("cannot write {}: {source}", path.display())]
    NotWritable {
        /// What was tried.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Another process works there.
    #[error("{} is in use by {}", data_dir.display(), holder(*pid))]
    Locked {
        /// The data directory.
        data_dir: PathBuf,
        /// Who holds it, if it said so.
        pid: Option<u32>,
    },
    /// Written by a later version.
    #[error("the store has format {found}, this version knows formats up to {known}; install the newer version again")]
    NewerFormat {
        /// What is there.
        found: u32,
        /// What can be read.
        known: u32,
    },
    /// The disk or sled failed.
    #[error("cannot open the store: {0}")]
    Failed(String),
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

impl From<Fault> for OpenError {
    fn from(fault: Fault) -> OpenError {
        match fault {
            Fault::Io { path, source, .. } => OpenError::NotWritable { path, source },
            other => OpenError::Failed(other.to_string()),
        }
    }
}

fn check_format(queue: &Path) -> Result<(), OpenError> {
    let path = queue.join("format");
    match fs::read_to_string(&path) {
        // An empty or torn one is from a first start that was cut short.
        Ok(text) => match text.trim().parse() {
            Ok(found) if found > FORMAT => return Err(OpenError::NewerFormat { found, known: FORMAT }),
            Ok(FORMAT) => return Ok(()),
            // What format 1 has is read as well; new items are added to it.
            _ => {}
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(OpenError::NotWritable { path, source }),
    }
    let write = || {
        let mut file = fs::File::create(&path)?;
        writeln!(file, "{FORMAT}")?;
        file.sync_all()
    };
    write().map_err(|source| OpenError::NotWritable { path: path.clone(), source })
}

/// See [`Store::open`].
pub(super) fn open(
    config: &Config,
    data_dir: &Path,
    sinks: &[&str],
    shared: Shared,
) -> Result<(Store, Recovered), OpenError> {
    let queue = data_dir.join("queue");
    fs::create_dir_all(&queue).map_err(|source| OpenError::NotWritable { path: queue.clone(), source })?;
    let data_lock = Lock::take(data_dir)?;
    check_format(&queue)?;
    let losses = Arc::new(Losses::default());
    let (mut lanes, mut findings) = (Vec::new(), Vec::new());
    for id in LaneId::ALL {
        let shape = shape(id, config.max_bytes, config.segment_bytes, config.segment_slots);
        let (lane, found) = Lane::open(id, &queue, shape, losses.clone())?;
        lanes.push(lane);
        findings.push(found);
    }
    let mut lanes: [Lane; LANES] = lanes.try_into().map_err(|_| OpenError::Failed("lanes".to_owned()))?;
    let (cursor_file, saved) = CursorFile::open(&queue.join("cursors"))?;
    slots::sync_dir(&queue)?;
    slots::sync_dir(data_dir)?;
    let views = lanes.each_ref().map(|l| l.view.clone());
    let sinks = place_sinks(sinks, saved.as_ref(), &views);
    let limits = Limits {
        max_bytes: config.max_bytes,
        max_age: config.max_age,
        dead_letter_bytes: config.dead_letter_max_bytes,
        refused_bytes: config.refused_max_bytes,
    };
    let last_seen = saved.as_ref().map(|s| s.clock).unwrap_or_default();
    let mut house = House::new(cursor_file, limits, queue.join("quarantine"), views.clone(), last_seen);
    let journal = &views[LaneId::Journal as usize];
    let snapshot = last_snapshot(journal)?;
    let snapshots = SnapshotWriter::new(snapshot.as_ref().map_or(&[], |s| &s.parts), config.snapshot_step);
    let recovered = recover(&lanes, snapshot, &findings, &mut house);
    report_missing(&findings, saved.as_ref(), &sinks, &house, &losses);
    let tails = lost_tails(&mut lanes, saved.as_ref(), &sinks);
    lock(&house.figures).quarantined = findings.iter().map(|f| f.quarantined.len() as u64).sum();
    let next = next_numbers(&views, &findings, saved.as_ref(), &tails);
    // The replay makes records again, and only those.
    let (returning, gone): (Vec<_>, Vec<_>) = tails.into_iter().partition(|t| LaneId::OUT.contains(&t.lane));
    let missed = |l: &Loss| l.lane != LaneId::Journal as u8 || l.last > house.checkpoint_after;
    losses.report(gone.iter().filter_map(LostTail::loss).filter(missed));
    house.keep_tips(returning.iter());
    house.next_record = next.record;
    let requeued = saved.map_or([0; 2], |s| [s.requeued, s.requeued_refused]);
    let (store, writer) = assemble(
        config, data_dir, lanes, views, sinks, requeued, house, next, snapshots, returning, losses, shared, data_lock,
    )?;
    start(store, writer).map(|store| (store, recovered))
}

/// Where each sink goes on: where it was, but not before what is still there.
fn place_sinks(names: &[&str], saved: Option<&Saved>, views: &[Arc<LaneView>; LANES]) -> BTreeMap<String, Arc<Sink>> {
    let mut sinks = BTreeMap::new();
    for name in names {
        let mut at = saved.and_then(|s| s.places(name)).unwrap_or_default();
        for (place, id) in at.iter_mut().zip(LaneId::OUT) {
            let (position, sequence) = views[id as usize].start();
            place.advance(Cursor { sequence, position });
        }
        sinks.insert((*name).to_owned(), Arc::new(Sink::new(name, at)));
    }
    sinks
}

fn recover(
    lanes: &[Lane; LANES],
    snapshot: Option<FoundSnapshot>,
    findings: &[Findings],
    house: &mut House,
) -> Recovered {
    let journal = &lanes[LaneId::Journal as usize].view;
    house.checkpoint_after = snapshot.as_ref().map_or(0, |s| s.after);
    house.checkpoint_from = snapshot.as_ref().map_or(0, |s| s.from);
    let entries = Entries::new(journal.clone(), house.checkpoint_after + 1, Time(i64::MIN));
    let next_ordinal = lanes.iter().map(|l| l.counters.engine_upto).max().unwrap_or(0);
    let checkpoint_ordinal = snapshot.as_ref().map_or(0, |s| s.ordinal);
    Recovered {
        checkpoint: snapshot.map(|s| s.snapshot),
        checkpoint_ordinal,
        entries,
        next_ordinal: next_ordinal.max(checkpoint_ordinal),
        quarantined: findings.iter().flat_map(|f| f.quarantined.clone()).collect(),
    }
}

/// Losses that opening found, as far as anybody misses them.
fn report_missing(
    findings: &[Findings],
    saved: Option<&Saved>,
    sinks: &BTreeMap<String, Arc<Sink>>,
    house: &House,
    losses: &Losses,
) {
    for (id, found) in LaneId::ALL.into_iter().zip(findings) {
        let place = LaneId::OUT.iter().position(|l| *l == id);
        // Without saved cursors nobody knows what was delivered, and nothing is claimed.
        let was = |name: &String| saved.and_then(|s| s.places(name)).zip(place).map(|(p, lane)| p[lane].clone());
        let places: Vec<Place> = sinks.keys().filter_map(was).collect();
        let missed = |l: &Loss| match id {
            LaneId::Journal => l.last > house.checkpoint_after,
            LaneId::Priority | LaneId::Routine => places.iter().any(|p| p.wants(l.first, l.last)),
            LaneId::Dead | LaneId::Refused => true,
        };
        let gone = found.missing.iter().map(|s| Loss { segment: 0, ..whole(id, s) });
        losses.report(gone.chain(found.losses.iter().cloned()).filter(missed));
    }
}

/// What the lanes have lost since it was saved how far they had come.
fn lost_tails(lanes: &mut [Lane; LANES], saved: Option<&Saved>, sinks: &BTreeMap<String, Arc<Sink>>) -> Vec<LostTail> {
    let mut tails = Vec::new();
    for lane in lanes {
        let Some(tip) = saved.and_then(|s| s.tips.get(lane.id.name())) else { continue };
        let place = LaneId::OUT.iter().position(|l| *l == lane.id);
        let was = |name: &String| saved.and_then(|s| s.places(name)).zip(place).map(|(p, i)| p[i].clone());
        if let Some(tail) = LostTail::find(lane, tip, sinks.keys().filter_map(was).collect()) {
            lane.skip_to(tip);
            tails.push(tail);
        }
    }
    tails
}

/// Numbers that were never used: above everything on disk and everything ever acknowledged.
fn next_numbers(
    views: &[Arc<LaneView>; LANES],
    findings: &[Findings],
    saved: Option<&Saved>,
    tails: &[LostTail],
) -> Next {
    let after = |id: LaneId| {
        let damaged = &findings[id as usize];
        let lost = tails.iter().find(|t| t.lane == id).map_or(0, |t| t.tip.sequence);
        let whole = damaged.quarantined.is_empty() && damaged.losses.is_empty() && lost == 0;
        views[id as usize].last().max(lost) + 1 + if whole { 0 } else { LEAP }
    };
    let ahead = |s: &Saved| s.ahead.values().flatten().map(|s| s.to.sequence).max();
    let cursors = |s: &Saved| s.sinks.values().flatten().map(|c| c.sequence).chain([s.sequence]).max().max(ahead(s));
    let cursors = saved.and_then(cursors);
    Next {
        journal: after(LaneId::Journal),
        record: after(LaneId::Priority).max(after(LaneId::Routine)).max(cursors.unwrap_or(1)),
        dead: after(LaneId::Dead),
        refused: after(LaneId::Refused),
    }
}

#[allow(clippy::too_many_arguments)] // the one place where all parts meet
fn assemble(
    config: &Config,
    data_dir: &Path,
    lanes: [Lane; LANES],
    views: [Arc<LaneView>; LANES],
    sinks: BTreeMap<String, Arc<Sink>>,
    requeued: [u64; 2],
    house: House,
    next: Next,
    snapshots: SnapshotWriter,
    tails: Vec<LostTail>,
    losses: Arc<Losses>,
    shared: Shared,
    data_lock: Lock,
) -> Result<(Store, Writer), OpenError> {
    let (tx, commits) = mpsc::channel(COMMITS);
    let (aside, asides) = mpsc::channel(ASIDES);
    let [_, priority, routine, ..] = &views;
    let shelf = Arc::new(Shelf {
        lanes: [priority.clone(), routine.clone()],
        fences: Default::default(),
        sinks,
        backlog_after: config.backlog_after,
        horizon: watch::Sender::new(0),
        moved: AtomicBool::new(true),
        wake: Notify::new(),
        aside,
        requeued: requeued.map(AtomicU64::new),
        clock_confirmed: AtomicBool::new(false),
        losses,
        closed: AtomicBool::new(false),
    });
    let progress = snapshots.progress.clone();
    let order = Arc::new(Order::default());
    let group = Group::new(next, &lanes, snapshots, house.limits.journal_bytes() / 2, tails)
        .map_err(|e| OpenError::Failed(e.to_string()))?;
    let path = data_dir.join("queue");
    let meta = fs::metadata(&path).map_err(|source| OpenError::NotWritable { path: path.clone(), source })?;
    let queue = (path, slots::identity(&meta));
    let (figures, pulse) = (house.figures.clone(), shared.board.pulse("store"));
    let writer = Writer {
        commits,
        asides,
        order: order.clone(),
        shelf: shelf.clone(),
        shared,
        lanes,
        group,
        house,
        interval: config.commit_interval,
        pulse,
        last_group: None,
        commits_open: true,
        progress: progress.clone(),
        queue,
        place_checked: Instant::now(),
    };
    let sender = Sender { tx, progress };
    let store = Store { sender, shelf, order, figures, lanes: views, thread: None, _lock: data_lock };
    Ok((store, writer))
}

fn start(mut store: Store, writer: Writer) -> Result<Store, OpenError> {
    let failed = |e: io::Error| OpenError::Failed(e.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
    let board = writer.shared.board.clone();
    let run = move || {
        let ended = catch_unwind(AssertUnwindSafe(|| writer.run(&runtime)));
        board.ended("store");
        ended.unwrap_or_else(|panic| {
            board.panicked("store", &*panic);
            resume_unwind(panic)
        })
    };
    store.thread = Some(std::thread::Builder::new().name("andon-store".into()).spawn(run).map_err(failed)?);
    Ok(store)
}
