//! Readings that the engine does not use, as it tells them: whose, why and how many.

use crate::types::Name;

/// Readings of one signal that one step of the engine did not use, for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The source that sent them.
    pub source: Name,
    /// The machine they name.
    pub machine: Name,
    /// The signal they name.
    pub signal: Name,
    /// As `andon_readings_dropped_total` counts it: `duplicate`, `late`, `future`, `no_machine`,
    /// `other_origin`, `limit`.
    /// Duplicates in a batch that the broker sent again are not among them: they are expected.
    pub reason: &'static str,
    /// How many.
    pub count: u64,
    /// The newest of them for a person, such as its time and by how much that is wrong. Made by the engine, no
    /// text of a payload.
    pub example: String,
}

impl Refused {
    /// The kind as it stands in a sentence: "7 of 9 readings are KIND".
    pub fn kind(&self) -> &'static str {
        match self.reason {
            "duplicate" => "repeated",
            "late" => "late",
            "future" => "from the future",
            "no_machine" => "of no machine",
            "other_origin" => "of another origin",
            "limit" => "over a limit",
            other => other,
        }
    }

    /// What is wrong and what to look at.
    pub fn meaning(&self) -> &'static str {
        match self.reason {
            "duplicate" => "the signal has a reading of this time already; does the device's clock stand still?",
            "late" => "older than `lateness` allows; is the device's clock or `time_format` wrong?",
            "future" => "ahead of the gateway's clock; is the device's clock or `time_format` wrong?",
            "no_machine" => "no [[machine]] matches",
            "other_origin" => "another topic or device feeds this signal already; do two machines share a name?",
            "limit" => "there is no room for more machines or signals",
            other => other,
        }
    }
}
