//! Readings that the engine did not use, for those who tell people of them.

use crate::types::Name;

/// Readings of one machine that were not used for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The source they came by; empty when it is not known.
    pub source: Name,
    /// Their machine.
    pub machine: Name,
    /// The signal of the first of them.
    pub signal: Name,
    /// Why: the label of the metric.
    pub reason: &'static str,
    /// How many.
    pub count: u64,
    /// What is wrong with the first of them, for a person.
    pub example: String,
}
