//! Readings out of the agent's own journal, for `andon learn --from-journal`. Only looks: the agent
//! may be running meanwhile.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use crate::agent::input::{Group, Input};
use crate::store::Offline;
use crate::types::{Name, Reading, Time};

/// The machine's readings that were taken in since then, in order of arrival. Entries that cannot be
/// read are left out with a warning: what is left may still be enough.
pub fn readings(data_dir: &Path, since: Time, machine: &str) -> Result<Vec<Reading>> {
    let store = Offline::look(data_dir).with_context(|| format!("looking into {}", data_dir.display()))?;
    let mut out = Vec::new();
    for entry in store.journal_since(since) {
        let group = entry.map_err(|e| e.to_string()).and_then(|e| Group::decode(&e.data));
        match group {
            Ok(group) => out.extend(group.inputs.into_iter().flat_map(of).filter(|r| &*r.machine == machine)),
            Err(error) => tracing::warn!(%error, "a journal entry is left out"),
        }
    }
    Ok(out)
}

fn of(input: Input) -> Vec<Reading> {
    match input {
        Input::Readings(_, readings) => readings,
        _ => Vec::new(),
    }
}

/// The signals in order of name, and the times of the one that speaks most often.
pub fn signals(readings: &[Reading]) -> (Vec<Name>, Vec<Time>) {
    let mut times: BTreeMap<Name, Vec<Time>> = BTreeMap::new();
    readings.iter().for_each(|r| times.entry(r.signal.clone()).or_default().push(r.at));
    let mut busiest = times.values().max_by_key(|t| t.len()).cloned().unwrap_or_default();
    busiest.sort_unstable();
    (times.into_keys().collect(), busiest)
}
