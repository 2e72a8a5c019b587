//! Going back to where the last run ended: the snapshot, then the journal entries after it.

use super::engine::Engine;
use super::input::Group;
use crate::metrics::Shared;
use crate::store::{self, Commit, Recovered};

/// How a replay ended.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Replayed {
    /// The engine is in the state it had.
    Whole,
    /// The agent is to stop. The engine must not be used.
    Stopped,
}

/// The store takes nothing any more.
#[derive(Debug, thiserror::Error)]
#[error("the store ended while the journal was replayed")]
pub struct StoreEnded;

/// Brings the engine to the state it had. Records that were made but did not become durable before
/// the crash are made again and handed to the store, which knows by their ordinals which it has.
/// The pulse beats once for each entry.
///
/// # Errors
/// The store has ended. The engine must not be used then.
pub async fn replay(
    engine: &mut Engine,
    recovered: Recovered,
    commits: &store::Sender,
    shared: &Shared,
) -> Result<Replayed, StoreEnded> {
    if let Some(snapshot) = &recovered.checkpoint
        && let Err(error) = engine.restore_parts(snapshot.parts.iter().map(|(_, bytes)| &**bytes))
    {
        tracing::warn!(%error, "the last snapshot cannot be used; windows fill anew");
        engine.count_from(recovered.checkpoint_ordinal);
    }
    #[cfg(test)]
    super::tests::provoke(&shared.board);
    let mut entries = 0u64;
    for entry in recovered.entries {
        shared.pulse.beat();
        if shared.stop.is_cancelled() {
            return Ok(Replayed::Stopped);
        }
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
                shared.pulse.during(commits.send(commit)).await.map_err(|_| StoreEnded)?;
            }
            Err(error) => tracing::warn!(%error, "a journal entry is left out"),
        }
    }
    engine.count_from(engine.ordinal().max(recovered.next_ordinal));
    tracing::info!(entries, machines = engine.machines(), "restored");
    Ok(Replayed::Whole)
}
