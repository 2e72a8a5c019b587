//! Keeping house: saving cursors, deleting what is delivered, holding the limits, telling figures.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use crate::metrics::{Shared, lock};
use crate::types::Time;

use super::Commit;
use super::cursors::{CursorFile, Saved};
use super::fault::Fault;
use super::group::Gap;
use super::lane::Lane;
use super::limits::{Ageing, Limits, Usage};
use super::outbox::Shelf;
use super::place::{self, Place};
use super::segment::{Loss, Summary};
use super::tail::{LostTail, Tip};
use super::view::{LANES, LaneId, LaneView};

/// Cursors are saved at most this often.
const SAVE_EVERY: Duration = Duration::from_millis(100);
/// Limits are looked at, and figures told, at most this often.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How far the lanes have come is saved at most this often where no cursor moves.
const TIPS_EVERY: Duration = Duration::from_secs(1);
/// Dead letters that are given up are logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(60);
/// Exists once systemd-timesyncd has set the clock since the system came up.
const CLOCK_IS_SYNCHRONISED: &str = "/run/systemd/timesync/synchronized";
/// Damaged segments kept for a look; beyond this the oldest go.
const QUARANTINE_KEEP: usize = 8;
/// A checkpoint is wanted after this many bytes of entries, or a sixteenth of `max_bytes`.
const CHECKPOINT_BYTES: u64 = 16 << 20;
/// A segment is sealed at the latest when its first block is older than this part of `max_age`.
const AGE_STEPS: u32 = 8;

/// What [`super::Store::status`] cannot read from the lanes themselves.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    /// Bytes on disk by lane.
    pub disk: [u64; LANES],
    /// Items given up, by lane.
    pub dropped: [u64; LANES],
    /// Items found damaged since the store was opened.
    pub damaged: u64,
    /// Segments set aside since the store was opened.
    pub quarantined: u64,
    /// Why nothing can be written at present.
    pub fault: Option<String>,
    /// How often `disk` was taken.
    pub looks: u64,
}

/// How far the gap record for the segment to be given up next has come.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
enum Told {
    Queued,
    Writing,
    Durable,
}

/// A gap that is being told, and the segment that goes afterwards.
struct Telling {
    gap: Gap,
    told: Told,
}

/// See the top of the file.
pub(super) struct House {
    pub cursors: CursorFile,
    pub limits: Limits,
    pub quarantine: PathBuf,
    pub figures: Arc<Mutex<Figures>>,
    /// The last journal entry that a durable checkpoint knows of.
    pub checkpoint_after: u64,
    /// Recovery reads nothing of the journal below this.
    pub checkpoint_from: u64,
    /// Sequences below this are taken.
    pub next_record: u64,
    since_checkpoint: u64,
    /// Where all sinks were when that last was on the medium for sure.
    synced: Option<Vec<[Place; 2]>>,
    saved_at: Option<Instant>,
    looked_at: Option<Instant>,
    ageing: Ageing,
    /// The time to which ages were counted last.
    aged_to: Time,
    /// The clock was ahead at the first look: the gateway was off for long, or its clock is wrong.
    held_since_start: bool,
    telling: Option<Telling>,
    /// In the order of [`LaneId::ALL`].
    views: [Arc<LaneView>; LANES],
    /// Ends of lanes that are lost and not told yet stand in the cursors file as they did.
    untold_tips: BTreeMap<String, Tip>,
    /// How far the lanes had come when that was saved last.
    saved_ends: [u64; LANES],
    /// Dead letters given up since that was logged last, and when that was.
    unlogged: [(u64, Option<Instant>); LANES],
}

impl House {
    pub fn new(
        cursors: CursorFile,
        limits: Limits,
        quarantine: PathBuf,
        views: [Arc<LaneView>; LANES],
        last_seen: Time,
    ) -> House {
        House {
            cursors,
            limits,
            quarantine,
            figures: Arc::default(),
            checkpoint_after: 0,
            checkpoint_from: 0,
            next_record: 0,
            since_checkpoint: 0,
            synced: None,
            saved_at: None,
            looked_at: None,
            ageing: Ageing::after(Instant::now(), last_seen),
            aged_to: last_seen,
            held_since_start: false,
            telling: None,
            views,
            untold_tips: BTreeMap::new(),
            saved_ends: Default::default(),
            unlogged: Default::default(),
        }
    }

    /// How long the writer may sleep, given how long it would like to.
    pub fn patience(&self, most: Duration, moved: bool) -> Duration {
        if moved || self.telling.is_some() { most.min(SAVE_EVERY) } else { most }
    }

    /// Everything queued so far is in the group that is being written.
    pub fn group_started(&mut self) {
        if let Some(Telling { told: told @ Told::Queued, .. }) = &mut self.telling {
            *told = Told::Writing;
        }
    }

    /// That group is durable.
    pub fn group_durable(&mut self) {
        if let Some(Telling { told: told @ Told::Writing, .. }) = &mut self.telling {
            *told = Told::Durable;
        }
    }

    /// Asks for a checkpoint once enough has gone into the journal since the last one.
    pub fn count_entry(&mut self, commit: &Commit, wanted: &AtomicBool) {
        self.since_checkpoint += commit.entry.as_ref().map_or(0, Vec::len) as u64;
        if commit.checkpoint.is_some() {
            self.since_checkpoint = 0;
        }
        let limit = CHECKPOINT_BYTES.min(self.limits.journal_bytes() / 4);
        wanted.store(self.since_checkpoint > limit, Ordering::Relaxed);
    }

    pub fn fault(&self, fault: Option<String>) {
        lock(&self.figures).fault = fault;
    }

    /// What somebody should look at, although the store works.
    pub fn troubles(&self) -> Option<String> {
        let figures = lock(&self.figures);
        let lost = figures.damaged;
        (figures.quarantined > 0 || lost > 0)
            .then(|| format!("{} damaged segments are in the quarantine; {lost} items were lost", figures.quarantined))
    }

    /// Does what is due; gaps to be told.
    pub fn keep(&mut self, shelf: &Shelf, lanes: &mut [Lane; LANES], shared: &Shared, now: Time) -> Vec<Gap> {
        let due = |at: Option<Instant>, every| at.is_none_or(|t| t.elapsed() >= every);
        let moved = shelf.moved.load(Ordering::Acquire) && due(self.saved_at, SAVE_EVERY);
        let grown = due(self.saved_at, TIPS_EVERY) && self.saved_ends != self.views.each_ref().map(|v| v.end());
        if moved || grown {
            self.saved_at = Some(Instant::now());
            if let Err(fault) = self.save(shelf, false) {
                tracing::warn!("cursors are not saved; after a crash more would be sent again: {fault}");
            }
            self.remove_delivered(shelf, lanes);
        }
        let telling = self.telling.as_ref().is_some_and(|t| t.told == Told::Durable);
        if !telling && !due(self.looked_at, LOOK_EVERY) {
            return Vec::new();
        }
        let now = self.age_to(now, shelf);
        self.looked_at = Some(Instant::now());
        let before = now.minus(self.limits.max_age / AGE_STEPS);
        lanes.iter_mut().for_each(|l| l.seal_if_older(before));
        self.remove_delivered(shelf, lanes);
        let gaps = self.hold_limits(shelf, lanes, shared, now);
        self.tell(shelf, lanes, shared);
        gaps
    }

    /// The time to which ages are counted: the clock's, but a leap of it only once it is confirmed.
    fn age_to(&mut self, wall: Time, shelf: &Shelf) -> Time {
        let (was_held, is_first) = (self.ageing.is_held(), self.looked_at.is_none());
        let mut now = self.ageing.now(Instant::now(), wall);
        // What was said before the leap does not speak for it.
        let confirmed = shelf.clock_confirmed.swap(false, Ordering::AcqRel) && was_held;
        if self.ageing.is_held() {
            self.held_since_start |= is_first;
            if confirmed || (self.held_since_start && Path::new(CLOCK_IS_SYNCHRONISED).exists()) {
                self.ageing.confirm();
                now = wall;
            } else if !was_held {
                let minutes = wall.since(now).as_secs() / 60;
                tracing::warn!(
                    "the clock is {minutes} min ahead of what was counted; nothing is given up for its age by it until it is confirmed"
                );
            }
        } else {
            self.held_since_start = false;
        }
        self.aged_to = now;
        now
    }

    /// These lanes have lost their ends, which is told later.
    pub fn keep_tips<'a>(&mut self, tails: impl Iterator<Item = &'a LostTail>) {
        self.untold_tips.extend(tails.map(|t| (t.lane.name().to_owned(), t.tip)));
    }

    /// Their ends are told.
    pub fn tips_are_told(&mut self) {
        self.untold_tips.clear();
        self.saved_ends = Default::default();
    }

    /// Saves all cursors.
    pub fn save(&mut self, shelf: &Shelf, sync: bool) -> Result<(), Fault> {
        shelf.moved.store(false, Ordering::Release);
        let [requeued, requeued_refused] = shelf.requeued.each_ref().map(|r| r.load(Ordering::Acquire));
        let tips = self.views.each_ref().map(|v| Tip::of(v));
        let mut saved = Saved { sequence: self.next_record, requeued, requeued_refused, ..Saved::default() };
        saved.clock = self.aged_to;
        saved.tips = LaneId::ALL.iter().zip(tips).map(|(id, tip)| (id.name().to_owned(), tip)).collect();
        saved.tips.extend(self.untold_tips.iter().map(|(lane, tip)| (lane.clone(), *tip)));
        let places = shelf.places();
        shelf.sinks.keys().zip(&places).for_each(|(name, places)| saved.put(name, places));
        let result = self.cursors.write(&saved, sync);
        match &result {
            Ok(()) => {
                self.saved_ends = tips.map(|t| t.position);
                self.saved_at = Some(Instant::now());
                if sync {
                    self.synced = Some(places);
                }
            }
            Err(_) => shelf.moved.store(true, Ordering::Release),
        }
        result
    }

    /// Deletes segments that no sink wants: old ones, and those behind a backlog whose records went before
    /// it, lest it be given up to make room for them. The cursors are on the medium before that, so a
    /// segment that is gone and that somebody wants is known to be lost.
    fn remove_delivered(&mut self, shelf: &Shelf, lanes: &mut [Lane; LANES]) {
        if shelf.sinks.is_empty() {
            return;
        }
        for (i, id) in LaneId::OUT.into_iter().enumerate() {
            let lane = &mut lanes[id as usize];
            let places = shelf.places();
            for (name, last) in lane.sealed() {
                let wanted = |places: &[[Place; 2]]| places.iter().any(|p| p[i].wants(name, last));
                if wanted(&places) {
                    continue;
                }
                // Cursors move on while this runs: what counts is where they were when synced.
                if self.synced.as_deref().is_none_or(wanted) && self.save(shelf, true).is_err() {
                    return;
                }
                lane.remove(name);
            }
        }
    }

    fn usage(&self, lanes: &[Lane; LANES]) -> [Usage; LANES] {
        lanes.each_ref().map(|lane| {
            let oldest = lane.oldest_sealed().filter(|s| lane.id != LaneId::Journal || self.is_history(s));
            Usage { disk: lane.disk(), oldest }
        })
    }

    /// Whether a journal segment is not needed to recover: it holds no entry that the last durable
    /// snapshot does not know, and no part of that snapshot.
    fn is_history(&self, summary: &Summary) -> bool {
        summary.last < self.checkpoint_from
    }

    /// The disk is full, whoever filled it: lets go of the oldest journal segment that is only history.
    /// What is owed to sinks stays; a gap record could not be written.
    pub fn make_room(&mut self, lanes: &mut [Lane; LANES]) {
        let journal = &mut lanes[LaneId::Journal as usize];
        if journal.oldest_sealed().is_some_and(|s| self.is_history(&s)) {
            journal.remove_oldest();
        }
    }

    /// Gives up what the limits ask for. What somebody still waits for is told first, and goes once
    /// that is durable.
    fn hold_limits(&mut self, shelf: &Shelf, lanes: &mut [Lane; LANES], shared: &Shared, now: Time) -> Vec<Gap> {
        if let Some(telling) = self.telling.take()
            && let Some(unfinished) = self.follow_through(telling, shelf, lanes, shared)
        {
            self.telling = Some(unfinished);
            return Vec::new();
        }
        loop {
            let usage = self.usage(lanes);
            let Some((id, why)) = self.limits.next_eviction(&usage, now) else { return Vec::new() };
            let Some(oldest) = usage[id as usize].oldest.clone() else { return Vec::new() };
            let place = LaneId::OUT.iter().position(|l| *l == id);
            let owed = match place {
                Some(p) => owed(&oldest, p, &shelf.places()),
                // The journal's history is nobody's; dead letters are somebody's until they are looked at.
                None => (id != LaneId::Journal).then(|| whole(id, &oldest)),
            };
            if let Some(loss) = owed {
                if let Some(place) = place {
                    shelf.fences[place].fetch_max(oldest.last + 1, Ordering::AcqRel);
                }
                let gap = Gap { lane: id, reason: why.as_str(), loss };
                self.telling = Some(Telling { gap: gap.clone(), told: Told::Queued });
                return vec![gap];
            }
            if !self.give_up(shelf, &mut lanes[id as usize], &oldest, place) {
                return Vec::new();
            }
        }
    }

    /// Gives the told segment up, even if the limits hold by now: sinks no longer read it. Returns
    /// what is still to be done.
    fn follow_through(
        &mut self,
        telling: Telling,
        shelf: &Shelf,
        lanes: &mut [Lane; LANES],
        shared: &Shared,
    ) -> Option<Telling> {
        if telling.told != Told::Durable {
            return Some(telling);
        }
        let Gap { lane: id, reason, loss } = &telling.gap;
        let lane = &mut lanes[*id as usize];
        let place = LaneId::OUT.iter().position(|l| l == id);
        // It is gone if the slowest sink had the rest of it in hand.
        if let Some(oldest) = lane.oldest_sealed().filter(|s| s.name == loss.segment)
            && !self.give_up(shelf, lane, &oldest, place)
        {
            return Some(telling);
        }
        self.dropped(shared, *id, reason, loss.records);
        match place {
            Some(_) => {
                tracing::error!("gave up {} undelivered records of the {} lane: {reason}", loss.records, id.name());
            }
            None => self.log_dead_letters(*id, reason, loss.records),
        }
        None
    }

    /// Garbage can come fast: one line in a minute.
    fn log_dead_letters(&mut self, id: LaneId, reason: &str, letters: u64) {
        let (unlogged, at) = &mut self.unlogged[id as usize];
        *unlogged += letters;
        if at.is_none_or(|t| t.elapsed() >= LOG_EVERY) {
            tracing::error!("gave up {unlogged} dead letters of the {} lane: {reason}", id.name());
            (*unlogged, *at) = (0, Some(Instant::now()));
        }
    }

    fn give_up(&mut self, shelf: &Shelf, lane: &mut Lane, oldest: &Summary, place: Option<usize>) -> bool {
        if let Some(place) = place {
            let after = oldest.extent().to;
            shelf.sinks.values().for_each(|s| _ = s.skip_to(place, after));
            if self.save(shelf, true).is_err() {
                return false;
            }
        }
        lane.remove_oldest();
        true
    }

    fn dropped(&self, shared: &Shared, lane: LaneId, reason: &str, records: u64) {
        lock(&self.figures).dropped[lane as usize] += records;
        let labels = [("lane", lane.name().to_owned()), ("reason", reason.to_owned())];
        shared.metrics.store_dropped.get_or_create(&labels).inc_by(records);
    }

    /// Turns losses that readers found, or that opening found, into gaps, and sets damaged
    /// segments aside.
    pub fn losses(&mut self, found: Vec<Loss>, lanes: &mut [Lane; LANES], shared: &Shared) -> Vec<Gap> {
        let mut gaps = Vec::new();
        for loss in found {
            let Some(id) = LaneId::ALL.into_iter().find(|l| *l as u8 == loss.lane) else { continue };
            tracing::error!("{} items of the {} lane are damaged and lost", loss.records, id.name());
            self.dropped(shared, id, DAMAGED, loss.records);
            lock(&self.figures).damaged += loss.records;
            match lanes[id as usize].set_aside(loss.segment) {
                Ok(true) => self.set_aside(lanes),
                Ok(false) => {}
                Err(fault) => tracing::warn!("a damaged segment stays where it is: {fault}"),
            }
            gaps.push(Gap { lane: id, reason: DAMAGED, loss });
        }
        gaps
    }

    /// One more segment is in the quarantine.
    pub fn set_aside(&mut self, lanes: &[Lane; LANES]) {
        lock(&self.figures).quarantined += 1;
        let in_use: Vec<PathBuf> = lanes.iter().flat_map(Lane::in_quarantine).collect();
        let Ok(entries) = fs::read_dir(&self.quarantine) else { return };
        let age = |p: &PathBuf| fs::metadata(p).and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut kept: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| !in_use.contains(p)).collect();
        kept.sort_by_key(age);
        for dir in kept.iter().rev().skip(QUARANTINE_KEEP) {
            if let Err(e) = fs::remove_dir_all(dir) {
                tracing::warn!("cannot remove {}: {e}", dir.display());
            }
        }
    }

    fn tell(&self, shelf: &Shelf, lanes: &[Lane; LANES], shared: &Shared) {
        let disk = lanes.each_ref().map(Lane::disk);
        let mut figures = lock(&self.figures);
        figures.disk = disk;
        figures.looks += 1;
        drop(figures);
        let labels = |id: LaneId| [("lane", id.name().to_owned())];
        for (id, bytes) in LaneId::ALL.into_iter().zip(disk) {
            shared.metrics.store_disk.get_or_create(&labels(id)).set(bytes as i64);
        }
        let depths: Vec<[(u64, u64); 2]> = shelf.sinks.values().map(|s| shelf.depth(s)).collect();
        for (i, id) in LaneId::OUT.into_iter().enumerate() {
            let deepest = depths.iter().map(|d| d[i].0).max().unwrap_or(0);
            shared.metrics.outbox_records.get_or_create(&labels(id)).set(deepest as i64);
        }
        for (name, sink) in &shelf.sinks {
            let labels = [("sink", name.clone())];
            shared.metrics.outbox_backlog.get_or_create(&labels).set(shelf.backlog(sink) as i64);
        }
    }
}

/// The reason in gap records for what the disk did not keep.
pub(super) const DAMAGED: &str = "damaged";

/// All of a segment.
pub(super) fn whole(id: LaneId, s: &Summary) -> Loss {
    let (segment, first, last, records) = (s.name, s.name, s.last, s.records);
    Loss { lane: id as u8, segment, first, last, records, from: s.from, to: s.to }
}

/// What of a segment some sink has not delivered yet.
fn owed(segment: &Summary, lane: usize, places: &[[Place; 2]]) -> Option<Loss> {
    let open = places.iter().flat_map(|p| p[lane].open_in(segment.extent()));
    let (span, records) = place::union(open.collect())?;
    Some(Loss {
        lane: LaneId::OUT[lane] as u8,
        segment: segment.name,
        first: span.from.sequence,
        last: span.to.sequence - 1,
        records,
        from: segment.from,
        to: segment.to,
    })
}
