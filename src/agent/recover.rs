//! Going back to where the last run ended: the snapshot, then the journal entries after it.

use super::engine::Engine;
use super::input::Group;
use crate::store::{self, Commit, Recovered};

/// Brings the engine to the state it had. Records that were made but did not become durable before
/// the crash are made again and handed to the store, which knows by their ordinals which it has.
pub async fn replay(engine: &mut Engine, recovered: Recovered, commits: &store::Sender) {
    if let Some(snapshot) = &recovered.checkpoint
        && let Err(error) =
            snapshot.whole().ok_or_else(|| "it has several parts".into()).and_then(|s| engine.restore(s))
    {
        tracing::warn!(%error, "the last snapshot cannot be used; windows fill anew");
        engine.count_from(recovered.checkpoint_ordinal);
    }
    let mut entries = 0u64;
    for entry in recovered.entries {
        let group = entry.map_err(|e| e.to_string()).and_then(|e| Ok((e.first_ordinal, Group::decode(&e.data)?)));
        match group {
            Ok((ordinal, group)) => {
                engine.count_from(ordinal);
                let out = engine.step(&group);
                entries += 1;
                if out.records.is_empty() {
                    continue;
                }
                let commit = Commit { records: out.records, first_ordinal: out.first_ordinal, ..Commit::default() };
                if commits.send(commit).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, "a journal entry is left out"),
        }
    }
    engine.count_from(engine.ordinal().max(recovered.next_ordinal));
    tracing::info!(entries, machines = engine.machines(), "restored");
}
