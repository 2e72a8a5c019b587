//! The one thread that writes: gathers commits into groups, makes each group durable lane by lane,
//! completes receipts, and keeps house.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, sleep_until, timeout_at};

use crate::backoff::Backoff;
use crate::metrics::{Health, Pulse, Shared};
use crate::types::{Kind, Receipt, Time};

use super::Commit;
use super::fault::Fault;
use super::group::Group;
use super::house::House;
use super::lane::Lane;
use super::outbox::{Aside, Shelf};
use super::slots;
use super::snapshot::Progress;
use super::view::{LANES, LaneId};

/// A group is written once it holds this much.
const GROUP_BYTES: usize = 128 << 10;
/// After a pause, how long the first commit of a group waits for company.
const LINGER: Duration = Duration::from_millis(3);
/// How often the thread wakes when nothing happens.
const IDLE: Duration = Duration::from_secs(1);
/// How often an idle store looks whether its directory is still there. One that writes looks each time.
const PLACE_EVERY: Duration = Duration::from_secs(1);
/// Pauses between tries while the disk does not take anything.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What the thread is asked to do once it is idle.
#[derive(Default)]
pub(super) struct Order {
    what: AtomicU8,
    changed: Notify,
}

const CLOSE: u8 = 1;
const ABANDON: u8 = 2;

impl Order {
    /// Write what has been sent, save everything, end.
    pub fn close(&self) {
        let _ = self.what.compare_exchange(0, CLOSE, Ordering::AcqRel, Ordering::Acquire);
        self.changed.notify_one();
    }

    /// End now, as a crash would.
    pub fn abandon(&self) {
        self.what.store(ABANDON, Ordering::Release);
        self.changed.notify_one();
    }

    fn is_close(&self) -> bool {
        self.what.load(Ordering::Acquire) == CLOSE
    }

    fn is_abandon(&self) -> bool {
        self.what.load(Ordering::Acquire) == ABANDON
    }
}

/// The thread's belongings.
pub(super) struct Writer {
    pub commits: mpsc::Receiver<Commit>,
    pub asides: mpsc::Receiver<Aside>,
    pub order: Arc<Order>,
    pub shelf: Arc<Shelf>,
    pub shared: Shared,
    pub lanes: [Lane; LANES],
    pub group: Group,
    pub house: House,
    pub interval: Duration,
    pub pulse: Pulse,
    pub last_group: Option<Instant>,
    pub commits_open: bool,
    /// What the engine is told of snapshots.
    pub progress: Arc<Progress>,
    /// The directory with everything, and what it is known by.
    pub queue: (PathBuf, (u64, u64)),
    pub place_checked: Instant,
}

/// What one wait brought.
#[derive(Default)]
struct Gathered {
    commits: Vec<Commit>,
    asides: Vec<Aside>,
    first: Option<Instant>,
}

impl Gathered {
    fn bytes(&self) -> usize {
        self.commits.iter().map(Commit::size).sum()
    }

    fn push(&mut self, commit: Commit) {
        self.first.get_or_insert_with(Instant::now);
        self.commits.push(commit);
    }
}

impl Writer {
    /// Works until told to end. `Err` when what was sent could not be written before that.
    pub fn run(mut self, runtime: &Runtime) -> Result<(), Fault> {
        self.say_well();
        loop {
            let gathered = runtime.block_on(self.gather());
            if self.order.is_abandon() {
                break;
            }
            let first = gathered.first;
            let receipts = self.accept(gathered);
            let written = self.write(runtime, first);
            if let Err(fault) = written {
                // The cursors lie in their own file, whose room is taken already.
                let _ = self.house.save(&self.shelf, true);
                self.end();
                return Err(fault);
            }
            receipts.into_iter().for_each(Receipt::complete);
            self.keep_house();
            if self.order.is_close() && self.commits.is_empty() && self.asides.is_empty() {
                return self.finish();
            }
        }
        self.end();
        Ok(())
    }

    /// Waits for the first commit, then for company: after a pause only a moment, under load so
    /// long that there is one group in each interval.
    async fn gather(&mut self) -> Gathered {
        let mut gathered = Gathered::default();
        self.pulse.beat();
        self.wait(&mut gathered).await;
        let Some(first) = gathered.first else { return gathered };
        let paced = self.last_group.map_or(first, |last| last + self.interval);
        let deadline = paced.max(first + LINGER.min(self.interval)).min(first + self.interval);
        while gathered.bytes() < GROUP_BYTES && !self.order.is_abandon() {
            match timeout_at(deadline.into(), self.commits.recv()).await {
                Ok(Some(commit)) => gathered.push(commit),
                Ok(None) => {
                    self.commits_open = false;
                    break;
                }
                Err(_) => break,
            }
        }
        while gathered.bytes() < GROUP_BYTES
            && let Ok(commit) = self.commits.try_recv()
        {
            gathered.push(commit);
        }
        while let Ok(aside) = self.asides.try_recv() {
            gathered.asides.push(aside);
        }
        gathered
    }

    async fn wait(&mut self, gathered: &mut Gathered) {
        let moved = self.shelf.moved.load(Ordering::Acquire);
        let patience = self.house.patience(IDLE, moved);
        let idle = Instant::now() + if self.group.has_snapshot() { patience.min(self.interval) } else { patience };
        if self.order.is_close() {
            if let Ok(commit) = self.commits.try_recv() {
                gathered.push(commit);
            }
            return;
        }
        tokio::select! {
            biased;
            commit = self.commits.recv(), if self.commits_open => match commit {
                Some(commit) => gathered.push(commit),
                None => self.commits_open = false,
            },
            aside = self.asides.recv() => gathered.asides.extend(aside),
            () = self.shelf.wake.notified() => {}
            () = self.order.changed.notified() => {}
            () = sleep_until(idle.into()) => {}
        }
    }

    /// Hands everything to the lanes; nothing is written yet.
    fn accept(&mut self, gathered: Gathered) -> Vec<Receipt> {
        let now = Time::now();
        let mut receipts = Vec::new();
        for mut commit in gathered.commits {
            receipts.append(&mut commit.receipts);
            self.house.count_entry(&commit, &self.progress.wanted);
            if commit.entry.is_some() || commit.checkpoint.is_some() {
                self.tell_tails();
            }
            self.group.add_commit(commit, now);
        }
        for aside in gathered.asides {
            self.group.add_aside(aside);
        }
        let gaps = self.house.losses(self.shelf.losses.take(), &mut self.lanes, &self.shared);
        if !gaps.is_empty() {
            self.say_well();
        }
        self.group.add_gaps(gaps);
        receipts
    }

    /// The replay is over, and with it is known what of the lanes' ends is lost for good.
    fn tell_tails(&mut self) {
        let tails = self.group.take_tails();
        if tails.is_empty() {
            return;
        }
        for tail in &tails {
            self.shelf.losses.report(tail.loss());
            if let Err(fault) = self.lanes[tail.lane as usize].keep_skip() {
                tracing::warn!("{fault}");
            }
        }
        self.house.tips_are_told();
    }

    fn write_lanes(&mut self) -> Result<(), Fault> {
        self.lanes.iter_mut().try_for_each(Lane::write)?;
        self.is_in_place()
    }

    /// Whether what is written can be found again: the directory and the files in use are still those
    /// that were opened.
    fn is_in_place(&mut self) -> Result<(), Fault> {
        self.place_checked = Instant::now();
        let (path, known) = &self.queue;
        let found = std::fs::metadata(path).ok().map(|m| slots::identity(&m));
        if found != Some(*known) {
            return Err(Fault::Replaced { path: path.clone() });
        }
        self.lanes.iter().try_for_each(Lane::is_in_place)
    }

    /// Makes the group durable, however long it takes. `Err` only when told to end meanwhile.
    fn write(&mut self, runtime: &Runtime, first: Option<Instant>) -> Result<(), Fault> {
        let nothing = self.group.is_empty() && self.lanes.iter().all(Lane::is_settled);
        if nothing && (self.place_checked.elapsed() < PLACE_EVERY || self.is_in_place().is_ok()) {
            return Ok(());
        }
        let started = Instant::now();
        self.last_group = Some(started);
        self.hand_over();
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        while let Err(fault) = self.write_lanes() {
            if backoff.failures() == 0 {
                tracing::error!("the store cannot write; nothing is acknowledged until it can: {fault}");
            }
            self.shared.board.set("store", Health::Down, fault.to_string());
            self.house.fault(Some(fault.to_string()));
            if self.order.is_close() || self.order.is_abandon() {
                return Err(fault);
            }
            if fault.is_full() {
                self.house.make_room(&mut self.lanes);
            }
            let pause = backoff.after_failure(fastrand::f64());
            runtime.block_on(self.pause(pause));
            self.keep_house();
        }
        if backoff.failures() > 0 {
            tracing::info!("the store writes again");
            self.house.fault(None);
            self.say_well();
        }
        self.tell(first.unwrap_or(started));
        Ok(())
    }

    async fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.order.is_close() && !self.order.is_abandon() {
            self.pulse.beat();
            tokio::select! {
                () = self.order.changed.notified() => {}
                () = sleep(IDLE.min(until.saturating_duration_since(Instant::now()))) => {}
            }
        }
    }

    /// The group is durable: moves the readers' horizon and counts.
    fn tell(&mut self, first: Instant) {
        let metrics = &self.shared.metrics;
        metrics.store_commits.inc();
        metrics.store_commit.observe(first.elapsed().as_secs_f64());
        for (kind, n) in Kind::ALL.into_iter().zip(self.group.take_counts()) {
            if n > 0 {
                metrics.store_records.get_or_create(&[("kind", kind.as_str().to_owned())]).inc_by(n);
            }
        }
        self.shelf.horizon.send_modify(|n| *n += 1);
        self.settle();
        self.shared.board.good("store");
    }

    fn say_well(&self) {
        match self.house.troubles() {
            None => self.shared.board.set("store", Health::Up, ""),
            Some(troubles) => self.shared.board.set("store", Health::Degraded, troubles),
        }
    }

    fn hand_over(&mut self) {
        self.group.hand_over(&mut self.lanes, Time::now());
        self.house.next_record = self.group.next_record();
        self.house.group_started();
    }

    /// What was handed over is durable.
    fn settle(&mut self) {
        if let Some(durable) = self.group.durable(&self.lanes[LaneId::Journal as usize].view) {
            self.house.checkpoint_after = durable.after;
            self.house.checkpoint_from = durable.from;
        }
        self.house.group_durable();
    }

    /// Cursors, limits, figures. Gaps that follow from it go into the next group.
    fn keep_house(&mut self) {
        let gaps = self.house.keep(&self.shelf, &mut self.lanes, &self.shared, Time::now());
        if !gaps.is_empty() {
            self.group.add_gaps(gaps);
            self.shelf.wake.notify_one();
        }
    }

    /// An orderly end: the last snapshot and the cursors are saved.
    fn finish(mut self) -> Result<(), Fault> {
        let mut written = Ok(());
        while written.is_ok() && !self.group.is_empty() {
            self.hand_over();
            written = self.write_lanes();
            if written.is_ok() {
                self.settle();
            }
            self.pulse.beat();
        }
        let saved = self.house.save(&self.shelf, true);
        self.end();
        written.and(saved)
    }

    fn end(self) {
        self.shelf.closed.store(true, Ordering::Release);
        self.shelf.horizon.send_modify(|n| *n += 1);
        for lane in self.lanes {
            lane.close();
        }
        self.shared.board.set("store", Health::Down, "closed");
    }
}
