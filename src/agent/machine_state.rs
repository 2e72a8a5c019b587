//! The state of a machine as a pure function of what is known of it. docs/machine-state.md holds the truth table,
//! and the test below runs that table.

use serde::{Deserialize, Serialize};

use crate::types::MachineState;

/// All that decides a machine's state.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Its anomaly alarm.
    pub alarm: AlarmEvidence,
    /// Whether it runs.
    pub running: RunningEvidence,
    /// Its inputs.
    pub inputs: InputEvidence,
    /// What the model said, and when.
    pub judgement: Judgement,
}

/// How the anomaly alarm stands.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AlarmEvidence {
    /// There is none.
    #[default]
    None,
    /// It is active and announced.
    Active,
    /// It is active, and shelved, suppressed or out of service.
    PutAside,
    /// Its condition has gone, and nobody has acknowledged it.
    Returned,
}

/// Whether the machine runs, as fresh data says.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RunningEvidence {
    /// It runs, or nothing says when it does not.
    #[default]
    On,
    /// It does not run.
    Off,
    /// There are no fresh data to tell.
    Unknown,
}

/// How the inputs are.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum InputEvidence {
    /// All are fresh and usable.
    #[default]
    Good,
    /// One is marked bad, or its alarm is active.
    Bad,
    /// One is silent.
    Silent,
    /// Readings of one come with a time that cannot be used.
    Refused,
    /// One is silent and its source is down.
    SourceDown,
}

/// What the model says of the machine.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Judgement {
    /// No model is bound; readings are taken in time.
    NoModel,
    /// The first window fills, within its time.
    #[default]
    WarmingUp,
    /// The first window is not full after its time.
    Overdue,
    /// The last window was judged too long ago.
    NotInTime,
    /// The last window was judged in time and is normal.
    Normal,
    /// The last window was judged in time and is unusual, which is not an alarm yet.
    Unusual,
    /// The last window had an input that could not be used.
    InputBad,
    /// The model could not be run.
    ModelUnavailable,
}

/// The state of a machine.
pub fn machine_state(e: &Evidence) -> MachineState {
    match e.alarm {
        AlarmEvidence::Active => return MachineState::Red,
        AlarmEvidence::PutAside | AlarmEvidence::Returned => return MachineState::Amber,
        AlarmEvidence::None => {}
    }
    match e.running {
        RunningEvidence::Off => return MachineState::Off,
        RunningEvidence::Unknown => return MachineState::Amber,
        RunningEvidence::On => {}
    }
    if e.inputs != InputEvidence::Good {
        return MachineState::Amber;
    }
    match e.judgement {
        Judgement::Normal => MachineState::Green,
        Judgement::NoModel | Judgement::WarmingUp => MachineState::White,
        Judgement::Overdue
        | Judgement::NotInTime
        | Judgement::Unusual
        | Judgement::InputBad
        | Judgement::ModelUnavailable => MachineState::Amber,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = include_str!("../../docs/machine-state.md");

    const ALARMS: [(&str, AlarmEvidence); 4] = [
        ("none", AlarmEvidence::None),
        ("active", AlarmEvidence::Active),
        ("put aside", AlarmEvidence::PutAside),
        ("returned", AlarmEvidence::Returned),
    ];
    const RUNNING: [(&str, RunningEvidence); 3] =
        [("on", RunningEvidence::On), ("off", RunningEvidence::Off), ("unknown", RunningEvidence::Unknown)];
    const INPUTS: [(&str, InputEvidence); 5] = [
        ("good", InputEvidence::Good),
        ("bad", InputEvidence::Bad),
        ("silent", InputEvidence::Silent),
        ("refused", InputEvidence::Refused),
        ("source down", InputEvidence::SourceDown),
    ];
    const JUDGEMENTS: [(&str, Judgement); 8] = [
        ("no model", Judgement::NoModel),
        ("warming up", Judgement::WarmingUp),
        ("overdue", Judgement::Overdue),
        ("not in time", Judgement::NotInTime),
        ("normal", Judgement::Normal),
        ("unusual", Judgement::Unusual),
        ("input bad", Judgement::InputBad),
        ("model unavailable", Judgement::ModelUnavailable),
    ];

    /// The values that a cell stands for: words parted by commas, or `any`.
    fn cell<T: Copy>(text: &str, words: &[(&str, T)]) -> Vec<T> {
        let find = |word: &str| {
            let found = words.iter().find(|(name, _)| *name == word.trim()).map(|(_, value)| *value);
            found.unwrap_or_else(|| panic!("{word:?} is not a word of the table"))
        };
        if text.trim() == "any" { words.iter().map(|(_, v)| *v).collect() } else { text.split(',').map(find).collect() }
    }

    /// Each row of the table as (evidence, state), wildcards opened.
    fn rows() -> Vec<(Evidence, String)> {
        let mut out = Vec::new();
        // The document's other tables have fewer columns.
        let has_five = |l: &&str| l.starts_with("| ") && l.matches('|').count() == 6;
        for line in TABLE.lines().filter(has_five).filter(|l| !l.starts_with("| alarm")) {
            let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
            for alarm in cell(cells[0], &ALARMS) {
                for running in cell(cells[1], &RUNNING) {
                    for inputs in cell(cells[2], &INPUTS) {
                        for judgement in cell(cells[3], &JUDGEMENTS) {
                            let evidence = Evidence { alarm, running, inputs, judgement };
                            out.push((evidence, cells[4].trim().to_owned()));
                        }
                    }
                }
            }
        }
        out
    }

    #[test]
    fn the_documented_table_is_the_function() {
        for (evidence, state) in rows() {
            assert_eq!(machine_state(&evidence).as_str(), state, "{evidence:?}");
        }
    }

    #[test]
    fn the_documented_table_is_total_and_says_nothing_twice() {
        let rows = rows();
        assert_eq!(rows.len(), ALARMS.len() * RUNNING.len() * INPUTS.len() * JUDGEMENTS.len());
        for (i, (evidence, _)) in rows.iter().enumerate() {
            assert!(!rows[..i].iter().any(|(before, _)| before == evidence), "{evidence:?} stands there twice");
        }
    }
}
