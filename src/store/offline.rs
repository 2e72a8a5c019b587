//! Looking into a data directory without opening the store: for `outbox` commands and `learn`.
//! Read-only, so it may be used while an agent runs there.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::metrics::lock;
use crate::types::Time;

use super::cursors::{CursorFile, Saved};
use super::fault::Fault;
use super::items::{DeadLetters, Records};
use super::journal::Entries;
use super::outbox::ReadError;
use super::rescue;
use super::segment::Segment;
use super::view::{self, LANES, LaneId, LaneView, look};
use super::{LaneStatus, StoreStatus};

/// A store as its files show it at one moment.
pub struct Offline {
    /// In the order of [`LaneId::ALL`].
    lanes: [Arc<LaneView>; LANES],
    saved: Saved,
}

impl From<Fault> for ReadError {
    fn from(fault: Fault) -> ReadError {
        ReadError::Disk(fault.to_string())
    }
}

impl Offline {
    /// Looks below this data directory. `Err` when there is no store or it cannot be read.
    pub fn look(data_dir: &Path) -> Result<Offline, ReadError> {
        let queue = data_dir.join("queue");
        if !queue.is_dir() {
            return Err(ReadError::Disk(format!("there is no store in {}", data_dir.display())));
        }
        let saved = CursorFile::look(&queue.join("cursors"))?.unwrap_or_default();
        let [journal, priority, routine, dead, refused] = LaneId::ALL.map(|id| look(id, &queue));
        Ok(Offline { lanes: [journal?, priority?, routine?, dead?, refused?].map(Arc::new), saved })
    }

    /// Looks at the damaged segments that were set aside below this data directory: whatever of them
    /// is still readable. Some of it may stand in the store as well.
    pub fn look_at_damaged(data_dir: &Path) -> Result<Offline, ReadError> {
        let quarantine = data_dir.join("queue").join("quarantine");
        let [journal, priority, routine, dead, refused] = LaneId::ALL.map(|id| damaged_lane(id, &quarantine));
        Ok(Offline { lanes: [journal?, priority?, routine?, dead?, refused?].map(Arc::new), saved: Saved::default() })
    }

    /// How many records a sink has not delivered: of the priority lane, of the routine lane.
    pub fn waiting(&self, sink: &str) -> Option<[u64; 2]> {
        let places = self.saved.places(sink)?;
        Some([0, 1].map(|i| self.lanes[LaneId::OUT[i] as usize].waiting(&places[i])))
    }

    /// The sinks that have a cursor there.
    pub fn sinks(&self) -> Vec<String> {
        self.saved.sinks.keys().cloned().collect()
    }

    /// How full it is, and how much the slowest sink has to deliver.
    pub fn status(&self) -> StoreStatus {
        let mut lanes = BTreeMap::new();
        for (id, lane) in LaneId::ALL.into_iter().zip(&self.lanes) {
            let (held, bytes) = lane.held();
            let place = LaneId::OUT.iter().position(|o| *o == id);
            let sinks = self.saved.sinks.keys().filter_map(|s| self.waiting(s));
            let deepest = place.and_then(|p| sinks.map(|w| w[p]).max());
            let records = deepest.unwrap_or(held);
            let segments = lane.segments();
            let oldest = segments.iter().map(|s| s.summary()).find(|s| s.blocks > 0).map(|s| s.opened);
            let disk_bytes = segments.iter().map(|s| s.summary().disk).sum();
            let bytes = (u128::from(bytes) * u128::from(records) / u128::from(held.max(1))) as u64;
            lanes.insert(id.name(), LaneStatus { records, bytes, oldest, disk_bytes, dropped: 0 });
        }
        StoreStatus { lanes, ..StoreStatus::default() }
    }

    /// The records that this sink has not delivered, or all on disk for `None`: the priority lane's,
    /// then the routine lane's, each oldest first.
    pub fn records(&self, sink: Option<&str>) -> impl Iterator<Item = <Records as Iterator>::Item> + use<> {
        let places = sink.and_then(|s| self.saved.places(s)).unwrap_or_default();
        let lane = |i: usize| {
            let (lane, open): (_, Vec<_>) = (self.lanes[LaneId::OUT[i] as usize].clone(), places[i].open().collect());
            open.into_iter().flat_map(move |span| Records::new(lane.clone(), span))
        };
        lane(0).chain(lane(1))
    }

    /// What was set aside, with the number of each in its lane: payloads that could not be read, then
    /// records that were refused, each oldest first.
    pub fn dead_letters(&self) -> impl Iterator<Item = <DeadLetters as Iterator>::Item> + use<> {
        let lane = |id: LaneId| DeadLetters::new(self.lanes[id as usize].clone());
        lane(LaneId::Dead).chain(lane(LaneId::Refused))
    }

    /// What the journal recorded since then.
    pub fn journal_since(&self, since: Time) -> Entries {
        Entries::new(self.lanes[LaneId::Journal as usize].clone(), 1, since)
    }
}

/// What was set aside of one lane, as if it were a lane.
fn damaged_lane(id: LaneId, quarantine: &Path) -> Result<LaneView, Fault> {
    let lane = LaneView::new();
    let prefix = format!("{}-", id.name());
    for (name, path) in view::list_named(quarantine, &prefix)? {
        let position = lane.end();
        let summary = rescue::survey(name, &path, id as u8, position)?;
        lock(&lane.segments).push_back(Arc::new(Segment::sealed(id as u8, &path, summary, Arc::default())));
    }
    Ok(lane)
}
