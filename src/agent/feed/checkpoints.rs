//! Snapshots of the engine as the store keeps them: what machines share, and each machine by itself. A part that
//! is as it was in the snapshot before is not written again.

use std::collections::HashMap;

use ring::digest::{SHA256, digest};

use crate::agent::engine::Engine;
use crate::store::{PartContent, Snapshot, SnapshotPart};
use crate::types::Name;

/// The parts of the snapshot that was sent last, by their digests.
#[derive(Default)]
pub struct Checkpoints {
    sent: HashMap<Name, [u8; 32]>,
}

impl Checkpoints {
    /// A snapshot of the engine as it is; `whole`: with the bytes of every part.
    pub fn take(&mut self, engine: &Engine, whole: bool) -> Snapshot {
        let before = std::mem::take(&mut self.sent);
        let parts = engine.parts().map(|(key, bytes)| {
            let mut sum = [0; 32];
            sum.copy_from_slice(digest(&SHA256, &bytes).as_ref());
            let unchanged = !whole && before.get(&key) == Some(&sum);
            self.sent.insert(key.clone(), sum);
            SnapshotPart { key, content: if unchanged { PartContent::Unchanged } else { PartContent::Bytes(bytes) } }
        });
        Snapshot { parts: parts.collect() }
    }
}
