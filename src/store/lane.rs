//! A lane: an ordered run of items in rotating segments. This is the writer's end, owned by one
//! thread; [`LaneView`] is what readers share.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::metrics::lock;
use crate::types::Time;

use super::block::Head;
use super::fault::Fault;
use super::manifest::Manifest;
use super::pack::{Counters, Item, Unit, pack};
use super::segment::{Loss, Losses, Segment, Summary};
use super::slots::{self, SlotWriter};
use super::tail::Tip;
use super::view::{LaneId, LaneView, list, segment_name};
use super::{rescue, segment};

/// What a segment takes besides its blocks: sled's settings file and two directories.
const SEGMENT_OVERHEAD: u64 = 12 << 10;

/// How large a lane's segments are.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Roll when this many slots are used.
    pub slots: u32,
    /// Roll when this many bytes are in.
    pub bytes: u64,
    /// Keep the next segment ready. Not worth its room where rolls are rare.
    pub spare: bool,
}

struct Active {
    segment: Arc<Segment>,
    writer: SlotWriter,
    next_slot: u32,
    bytes: u64,
    opened: Option<Time>,
}

/// The writer's end of a lane.
pub(super) struct Lane {
    pub id: LaneId,
    pub view: Arc<LaneView>,
    /// After everything packed so far, durable or not.
    pub counters: Counters,
    dir: PathBuf,
    quarantine: PathBuf,
    /// The manifest on disk knows every segment below this name.
    listed_upto: u64,
    /// Positions below this are taken, by items that are lost.
    skipped: u64,
    shape: Shape,
    losses: Arc<Losses>,
    active: Option<Active>,
    spare: Option<JoinHandle<Result<SlotWriter, Fault>>>,
    closers: Vec<JoinHandle<()>>,
    /// Packed and not yet in a segment. Bounded by the group that is being written.
    pending: VecDeque<Unit>,
    /// In the active segment and not yet durable.
    in_flight: Vec<Unit>,
    unsynced: Vec<(Head, usize)>,
}

/// What opening a lane found besides its items.
#[derive(Default)]
pub(super) struct Findings {
    /// Sealed segments that are not there. Whether anybody misses them depends on the cursors.
    pub missing: Vec<Summary>,
    /// Items known to be lost.
    pub losses: Vec<Loss>,
    /// Segments that had to be set aside, and why.
    pub quarantined: Vec<String>,
}

/// Removes what an interrupted roll or deletion left behind.
fn sweep(dir: &Path) -> Result<(), Fault> {
    rescue::finish(dir)?;
    for entry in fs::read_dir(dir).map_err(Fault::io("list", dir))?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == "spare" || name.starts_with("del-") {
            fs::remove_dir_all(entry.path()).map_err(Fault::io("remove", &entry.path()))?;
        }
    }
    Ok(())
}

impl Lane {
    /// Opens a lane below `queue`, or makes it.
    pub fn open(id: LaneId, queue: &Path, shape: Shape, losses: Arc<Losses>) -> Result<(Lane, Findings), Fault> {
        let dir = queue.join(id.name());
        let quarantine = queue.join("quarantine");
        for d in [&dir, &quarantine] {
            fs::create_dir_all(d).map_err(Fault::io("create", d))?;
        }
        sweep(&dir)?;
        // A process that was killed may have left names that are in memory only.
        slots::sync_dir(&dir)?;
        let mut lane = Lane {
            id,
            view: Arc::new(LaneView::new()),
            counters: Counters::default(),
            dir,
            quarantine,
            listed_upto: 0,
            skipped: 0,
            shape,
            losses,
            active: None,
            spare: None,
            closers: Vec::new(),
            pending: VecDeque::new(),
            in_flight: Vec::new(),
            unsynced: Vec::new(),
        };
        let findings = lane.load()?;
        Ok((lane, findings))
    }

    fn load(&mut self) -> Result<Findings, Fault> {
        let mut findings = Findings::default();
        let on_disk = list(&self.dir)?;
        let manifest = Manifest::read(&self.dir)?;
        if manifest.is_none() && on_disk.len() > 1 {
            findings.quarantined.push(format!("{}: the manifest is damaged", self.id.name()));
        }
        let manifest = manifest.unwrap_or_default();
        self.counters = Counters { position: manifest.position, engine_upto: manifest.engine_upto };
        self.listed_upto = manifest.next;
        self.view.raise_floor(manifest.position, manifest.next);
        let mut sealed: Vec<(Summary, PathBuf)> = Vec::new();
        for summary in manifest.sealed {
            let here = self.dir.join(segment_name(summary.name));
            let aside = self.quarantine.join(self.aside_name(summary.name));
            match [here, aside].into_iter().find(|d| slots::data_file(d).exists()) {
                Some(dir) => sealed.push((summary, dir)),
                None => findings.missing.push(summary),
            }
        }
        let mut unlisted: Vec<(u64, PathBuf)> =
            on_disk.into_iter().filter(|(n, _)| sealed.iter().all(|(s, _)| s.name != *n)).collect();
        let newest = unlisted.pop_if(|(name, _)| sealed.iter().all(|(s, _)| s.name < *name));
        for (name, dir) in unlisted {
            let summary = self.survey(name, &dir, &mut findings)?;
            sealed.push((summary, dir));
        }
        sealed.sort_by_key(|(s, _)| s.name);
        for (summary, dir) in sealed {
            self.count_on(&summary);
            self.push(Segment::sealed(self.id as u8, &dir, summary, self.losses.clone()));
        }
        if let Some((name, dir)) = newest {
            self.resume(name, &dir, &mut findings)?;
        }
        Ok(findings)
    }

    fn aside_name(&self, name: u64) -> String {
        format!("{}-{}", self.id.name(), segment_name(name))
    }

    fn push(&self, segment: Segment) -> Arc<Segment> {
        let segment = Arc::new(segment);
        lock(&self.view.segments).push_back(segment.clone());
        segment
    }

    fn count_on(&mut self, summary: &Summary) {
        self.counters.position = self.counters.position.max(summary.end());
        self.counters.engine_upto = self.counters.engine_upto.max(summary.engine_upto);
    }

    /// Makes up the summary of a segment that no manifest lists.
    fn survey(&self, name: u64, dir: &Path, findings: &mut Findings) -> Result<Summary, Fault> {
        let (heads, _) = rescue::blocks(dir, self.id as u8, false)?;
        let summary = self.summarise(name, &heads);
        findings.losses.extend(segment::holes(self.id as u8, &summary, &rescue::heads(&heads)));
        Ok(summary)
    }

    fn summarise(&self, name: u64, heads: &[(Head, usize)]) -> Summary {
        let mut summary = Summary::empty(name, self.counters.position, self.counters.engine_upto);
        heads.iter().for_each(|(head, len)| summary.add(head, *len));
        summary
    }

    /// Goes on with the segment that was being written when the store last stopped.
    fn resume(&mut self, name: u64, dir: &Path, findings: &mut Findings) -> Result<(), Fault> {
        let id = self.id as u8;
        let reopened = rescue::reopen(dir, id, self.shape.slots, &self.dir, || {
            self.quarantine.join(format!("{}.broken", self.aside_name(name)))
        })?;
        let summary = self.summarise(name, &reopened.blocks);
        let heads = rescue::heads(&reopened.blocks);
        let expected = Summary { position: self.counters.position.min(summary.position), ..summary.clone() };
        let expected = Summary { records: summary.end() - expected.position, ..expected };
        findings.losses.extend(segment::holes(id, &expected, &heads));
        findings
            .quarantined
            .extend(reopened.trouble.map(|t| format!("{}/{}: {t}", self.id.name(), segment_name(name))));
        self.count_on(&summary);
        let next_slot = summary.blocks;
        let (bytes, opened) = (summary.bytes, (summary.blocks > 0).then_some(summary.opened));
        match reopened.writer {
            Some(writer) => {
                let slots = writer.slots();
                let segment = self.push(Segment::live(id, dir, summary, slots, heads, self.losses.clone()));
                self.active = Some(Active { segment, writer, next_slot, bytes, opened });
            }
            None => {
                self.push(Segment::sealed(id, dir, summary, self.losses.clone()));
            }
        }
        Ok(())
    }

    /// Packs items to be written by the next [`Lane::write`].
    pub fn add(&mut self, items: Vec<Item>, now: Time, zstd: &mut zstd::bulk::Compressor<'_>) {
        self.pending.extend(pack(self.id as u8, items, &mut self.counters, now, zstd));
    }

    /// Whether everything added is durable.
    pub fn is_settled(&self) -> bool {
        self.pending.is_empty() && self.in_flight.is_empty()
    }

    /// Writes and syncs everything added. After an error the segment at fault is never touched
    /// again; calling once more goes on in a fresh one, and nothing is written twice as far as
    /// readers can see.
    pub fn write(&mut self) -> Result<(), Fault> {
        let result = self.try_write();
        if result.is_err() {
            self.abandon_active();
        }
        result
    }

    fn try_write(&mut self) -> Result<(), Fault> {
        while let Some(unit) = self.pending.front() {
            let (slots, first) = (unit.len() as u32, unit[0].head.first);
            if self.active.as_ref().is_some_and(|a| self.is_full(a, slots)) {
                self.sync()?;
                self.seal();
            }
            let id = self.id as u8;
            if self.active.is_none() {
                self.activate(first)?;
            }
            let (Some(active), Some(unit)) = (&mut self.active, self.pending.pop_front()) else { break };
            self.in_flight.push(unit);
            for draft in self.in_flight.last_mut().into_iter().flatten() {
                debug_assert_eq!(draft.head.lane, id);
                draft.head.after_sync = self.unsynced.is_empty();
                active.writer.put(active.next_slot, draft.encode(active.next_slot))?;
                self.unsynced.push((Head { slot: active.next_slot, ..draft.head }, draft.size()));
                active.next_slot += 1;
                active.bytes += draft.size() as u64;
                active.opened.get_or_insert(draft.head.written);
            }
        }
        self.sync()
    }

    fn is_full(&self, active: &Active, more: u32) -> bool {
        let slots = self.shape.slots.min(active.writer.room());
        active.next_slot > 0 && (active.next_slot + more > slots || active.bytes >= self.shape.bytes)
    }

    fn sync(&mut self) -> Result<(), Fault> {
        if self.in_flight.is_empty() {
            return Ok(());
        }
        if let Some(active) = &self.active {
            active.writer.sync()?;
            active.segment.publish(&self.unsynced);
        }
        self.in_flight.clear();
        self.unsynced.clear();
        Ok(())
    }

    /// Ends the active segment, all of which is durable. The manifest learns of it before the next
    /// one starts.
    fn seal(&mut self) {
        let Some(active) = self.active.take() else { return };
        let segment = active.segment;
        segment.seal();
        segment.set_disk(segment.summary().bytes + SEGMENT_OVERHEAD);
        self.closers.retain(|c| !c.is_finished());
        self.closers.extend(active.writer.close(move |disk| segment.set_disk(disk + SEGMENT_OVERHEAD)));
    }

    /// Ends the active segment after an error: what is durable in it stays, the rest is pending
    /// again.
    fn abandon_active(&mut self) {
        for unit in self.in_flight.drain(..).rev() {
            self.pending.push_front(unit);
        }
        self.unsynced.clear();
        let Some(active) = self.active.take() else { return };
        active.segment.seal();
        let summary = active.segment.summary();
        // Not joined: sled may hang on a Db that has failed.
        drop(active.writer.close(|_| ()));
        if summary.blocks == 0 {
            lock(&self.view.segments).pop_back();
            self.discard(&active.segment);
        }
    }

    fn activate(&mut self, first: u64) -> Result<(), Fault> {
        let id = self.id as u8;
        let spare = self.dir.join("spare");
        // An item of more parts than a segment has slots gets a segment of its own size.
        let needed = self.pending.front().map_or(0, |unit| unit.len() as u32).max(self.shape.slots);
        let ready = self.spare.take().and_then(|s| s.join().ok()).and_then(Result::ok);
        let writer = match ready {
            Some(writer) if writer.room() >= needed => writer,
            too_small => {
                // Its directory is made anew.
                too_small.and_then(SlotWriter::close_untrimmed).map(JoinHandle::join);
                slots::create(&spare, needed, self.preallocate())?
            }
        };
        self.write_manifest(first)?;
        let dir = self.dir.join(segment_name(first));
        if dir.exists() {
            self.rename_away(&dir)?;
        }
        fs::rename(&spare, &dir).map_err(Fault::io("rename", &spare))?;
        slots::sync_dir(&self.dir)?;
        let drafted = self.pending.front().map_or(self.counters.position, |u| u[0].head.position);
        let upto = self.view.segments().last().map_or(0, |s| s.summary().engine_upto);
        let summary = Summary::empty(first, drafted, upto);
        let slots = writer.slots();
        let segment = self.push(Segment::live(id, &dir, summary, slots, Vec::new(), self.losses.clone()));
        self.active = Some(Active { segment, writer, next_slot: 0, bytes: 0, opened: None });
        self.prepare_spare();
        Ok(())
    }

    /// The end of the lane is lost up to here: what comes gets later positions, in a segment of its own.
    pub fn skip_to(&mut self, tip: &Tip) {
        let is_empty = self.active.as_ref().is_some_and(|a| a.next_slot == 0);
        if let Some(active) = self.active.take_if(|_| is_empty) {
            active.segment.seal();
            drop(active.writer.close(|_| ()));
            lock(&self.view.segments).pop_back();
            self.discard(&active.segment);
        }
        self.seal();
        self.counters.position = self.counters.position.max(tip.position);
        self.skipped = self.counters.position;
        self.view.raise_floor(tip.position, tip.sequence + 1);
    }

    /// The manifest learns of what was skipped, now that it is told.
    pub fn keep_skip(&mut self) -> Result<(), Fault> {
        if self.active.is_none() { self.write_manifest(self.view.last() + 1) } else { Ok(()) }
    }

    /// Whether the file that is written is still where readers and the next start look for it.
    pub fn is_in_place(&self) -> Result<(), Fault> {
        let Some(active) = &self.active else { return Ok(()) };
        let dir = active.segment.dir();
        if active.writer.is_in(&dir) { Ok(()) } else { Err(Fault::Replaced { path: slots::data_file(&dir) }) }
    }

    fn preallocate(&self) -> u64 {
        self.shape.bytes
    }

    fn prepare_spare(&mut self) {
        if !self.shape.spare || self.spare.is_some() {
            return;
        }
        let (dir, slots, bytes) = (self.dir.join("spare"), self.shape.slots, self.preallocate());
        let build = move || slots::create(&dir, slots, bytes);
        self.spare = thread::Builder::new().name("andon-spare".into()).spawn(build).ok();
    }

    fn write_manifest(&mut self, next: u64) -> Result<(), Fault> {
        let active = self.active.as_ref().map(|a| a.segment.summary().name);
        let summaries = self.view.segments().into_iter().map(|s| s.summary());
        let sealed: Vec<Summary> = summaries.filter(|s| Some(s.name) != active).collect();
        let upto = sealed.iter().map(|s| s.engine_upto).max().unwrap_or(0);
        let end = sealed.iter().map(Summary::end).max().unwrap_or(0);
        let old = Manifest::read(&self.dir)?.unwrap_or_default();
        let (next, end) = (next.max(old.next), end.max(self.skipped));
        Manifest { next, position: end.max(old.position), engine_upto: upto.max(old.engine_upto), sealed }
            .write(&self.dir)?;
        self.listed_upto = next;
        Ok(())
    }

    fn rename_away(&self, dir: &Path) -> Result<PathBuf, Fault> {
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let away = self.dir.join(format!("del-{name}-{:08x}", fastrand::u32(..)));
        fs::rename(dir, &away).map_err(Fault::io("rename", dir))?;
        Ok(away)
    }

    /// Removes a segment's directory. One that was set aside for a look stays there.
    fn discard(&self, segment: &Segment) {
        let dir = segment.dir();
        if dir.starts_with(&self.quarantine) {
            return;
        }
        let removed = self.rename_away(&dir).and_then(|d| fs::remove_dir_all(&d).map_err(Fault::io("remove", &d)));
        if let Err(fault) = removed {
            tracing::warn!("a segment that is no longer needed stays on disk until the next start: {fault}");
        }
    }

    /// The oldest segment, unless it is the one being written or the manifest does not know it:
    /// with that one gone, nothing would tell which sequences are taken.
    pub fn oldest_sealed(&self) -> Option<Summary> {
        let first = lock(&self.view.segments).front()?.summary();
        (self.active_name() != Some(first.name) && first.name < self.listed_upto).then_some(first)
    }

    fn active_name(&self) -> Option<u64> {
        self.active.as_ref().map(|a| a.segment.summary().name)
    }

    /// First and last sequence of all segments that may go, as [`Lane::oldest_sealed`] may, oldest first.
    pub fn sealed(&self) -> Vec<(u64, u64)> {
        let active = self.active_name();
        let all = self.view.segments().into_iter().map(|s| s.summary());
        all.filter(|s| Some(s.name) != active && s.name < self.listed_upto).map(|s| (s.name, s.last)).collect()
    }

    /// Gives up the oldest segment, unless it is the one being written.
    pub fn remove_oldest(&mut self) {
        if let Some(oldest) = self.oldest_sealed() {
            self.remove(oldest.name);
        }
    }

    /// Gives up one of [`Lane::sealed`]. The manifest knows it until it is written next.
    pub fn remove(&mut self, name: u64) {
        let removed = {
            let mut segments = lock(&self.view.segments);
            let at = segments.iter().position(|s| s.name() == name);
            at.and_then(|at| segments.remove(at))
        };
        if let Some(segment) = removed {
            let summary = segment.summary();
            self.view.raise_floor(summary.end(), summary.last + 1);
            self.discard(&segment);
        }
    }

    /// Ends the active segment when its first block is older than `before`, so that age limits can
    /// reach it.
    pub fn seal_if_older(&mut self, before: Time) {
        if self.is_settled() && self.active.as_ref().and_then(|a| a.opened).is_some_and(|t| t < before) {
            self.seal();
            if let Err(fault) = self.write_manifest(self.view.last() + 1) {
                tracing::warn!("{fault}");
            }
        }
    }

    /// Moves a damaged segment to the quarantine; it is read from there. `true` when it was moved.
    pub fn set_aside(&mut self, name: u64) -> Result<bool, Fault> {
        let segment = self.view.segments().into_iter().find(|s| s.summary().name == name);
        let Some(segment) = segment.filter(|_| self.active_name() != Some(name)) else { return Ok(false) };
        let from = segment.dir();
        if from.starts_with(&self.quarantine) {
            return Ok(false);
        }
        let to = self.quarantine.join(self.aside_name(name));
        fs::rename(&from, &to).map_err(Fault::io("rename", &from))?;
        segment.moved(&to);
        slots::sync_dir(&self.dir)?;
        Ok(true)
    }

    /// Directories in the quarantine that this lane still reads from.
    pub fn in_quarantine(&self) -> Vec<PathBuf> {
        self.view.segments().iter().map(|s| s.dir()).filter(|d| d.starts_with(&self.quarantine)).collect()
    }

    /// Bytes on disk, the spare included.
    pub fn disk(&self) -> u64 {
        let sealed: u64 = self.view.segments().iter().map(|s| s.summary().disk).sum();
        let mut open = vec![self.dir.join("spare")];
        open.extend(self.active.as_ref().map(|a| a.segment.dir()));
        let file_size = |d: &PathBuf| fs::metadata(slots::data_file(d)).map_or(0, |m| slots::on_disk(&m));
        sealed + open.iter().map(file_size).sum::<u64>()
    }

    /// Everything added must be settled. Lets go of the files and waits until that is done.
    pub fn close(mut self) {
        if let Some(active) = self.active.take() {
            active.segment.seal();
            // The active segment keeps its room: the next start goes on in it.
            self.closers.extend(active.writer.close_untrimmed());
        }
        if let Some(Ok(Ok(spare))) = self.spare.take().map(JoinHandle::join) {
            self.closers.extend(spare.close_untrimmed());
        }
        for closer in self.closers {
            // A panic in there was caught and is nobody's concern now.
            let _ = closer.join();
        }
    }
}
