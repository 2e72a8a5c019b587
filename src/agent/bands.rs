//! Where each signal of a machine is while it is healthy, by its model's manifest; for the dashboard.

use std::collections::BTreeMap;

use wildmatch::WildMatch;

use super::engine::Block;
use crate::types::Name;
use crate::web::Band;

/// By `[[machine]]` block, in order.
pub struct Bands(Vec<(WildMatch, BTreeMap<Name, Band>)>);

impl Bands {
    /// Of all blocks.
    pub fn of(blocks: &[Block]) -> Bands {
        let bands = |block: &Block| -> BTreeMap<Name, Band> {
            let Some(model) = &block.model else { return BTreeMap::new() };
            let channels = block.layout.channels.iter().zip(&model.manifest().channels);
            channels.map(|(signal, c)| (signal.clone(), Band { unit: c.unit.clone(), normal: c.normal() })).collect()
        };
        Bands(blocks.iter().map(|b| (b.matcher.clone(), bands(b))).collect())
    }

    /// Those of a machine: the first block that fits applies.
    pub fn get(&self, machine: &str) -> BTreeMap<Name, Band> {
        self.0.iter().find(|(matcher, _)| matcher.matches(machine)).map(|(_, b)| b.clone()).unwrap_or_default()
    }
}
