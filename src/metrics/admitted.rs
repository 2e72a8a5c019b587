//! The machines that the engine follows, for sources that send on their own account: what they send of other
//! machines would only be dropped.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use super::lock;
use crate::types::Name;

/// Shared by the engine's thread, which sets it, and sources. Until it is set every machine counts as followed.
#[derive(Clone, Debug, Default)]
pub struct Admitted(Arc<Mutex<Option<Arc<HashSet<Name>>>>>);

impl Admitted {
    /// Takes over the machines when their number has changed.
    pub fn update(&self, count: usize, machines: impl Iterator<Item = Name>) {
        let mut known = lock(&self.0);
        if known.as_ref().is_none_or(|k| k.len() != count) {
            *known = Some(Arc::new(machines.collect()));
        }
    }

    /// The machines; `None` before the engine has told them.
    pub fn get(&self) -> Option<Arc<HashSet<Name>>> {
        lock(&self.0).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_taken_over_when_their_number_changes() {
        let admitted = Admitted::default();
        assert!(admitted.get().is_none());
        admitted.update(1, ["a".into()].into_iter());
        assert!(admitted.get().is_some_and(|m| m.contains("a")));
        admitted.update(2, ["a".into(), "b".into()].into_iter());
        assert!(admitted.get().is_some_and(|m| m.contains("b")));
    }
}
