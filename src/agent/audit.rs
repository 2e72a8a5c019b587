//! The audit log: who did what to alarms, models and the configuration, as a chain in which each entry
//! names the hash of the one before. The chain is part of the engine's state; [`file`] keeps it readable.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::types::Time;

pub mod file;

/// Entries that the engine remembers, so that those that had not reached the file before a crash are
/// written after it. They reach it within milliseconds.
const TAIL: usize = 64;
/// What the first entry names as the hash before it.
const BEGINNING: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// One thing that was done.
pub struct Entry<'a> {
    /// When.
    pub at: Time,
    /// By whom.
    pub who: &'a str,
    /// What: `ack`, `shelve`, `config`, `model` and so on.
    pub action: &'a str,
    /// To what: a machine, a model, the config.
    pub subject: &'a str,
    /// More of it.
    pub detail: &'a str,
}

/// An entry as it is written: the `data` of its record, and a line of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    timestamp: String,
    number: u64,
    who: String,
    action: String,
    subject: String,
    detail: String,
    previous: String,
    hash: String,
}

impl Line {
    fn hashed(&self) -> String {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        let number = self.number.to_string();
        let parts = [&self.previous, &number, &self.timestamp, &self.who, &self.action, &self.subject, &self.detail];
        for part in parts {
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        hash.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect()
    }
}

/// The end of the chain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ledger {
    count: u64,
    head: String,
    tail: VecDeque<String>,
}

impl Ledger {
    /// Adds an entry; gives its number, from 1, and its JSON.
    pub fn write(&mut self, entry: &Entry<'_>) -> (u64, String) {
        self.count += 1;
        let previous = if self.head.is_empty() { BEGINNING.to_owned() } else { std::mem::take(&mut self.head) };
        let mut line = Line {
            timestamp: entry.at.to_string(),
            number: self.count,
            who: entry.who.to_owned(),
            action: entry.action.to_owned(),
            subject: entry.subject.to_owned(),
            detail: entry.detail.to_owned(),
            previous,
            hash: String::new(),
        };
        line.hash = line.hashed();
        self.head.clone_from(&line.hash);
        // Strings and numbers always serialise.
        let text = serde_json::to_string(&line).unwrap_or_default();
        self.tail.push_back(text.clone());
        if self.tail.len() > TAIL {
            self.tail.pop_front();
        }
        (self.count, text)
    }

    /// The newest entries, oldest first.
    pub fn tail(&self) -> Vec<String> {
        self.tail.iter().cloned().collect()
    }
}

/// What a whole chain tells of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Entries.
    pub entries: u64,
    /// The number of the first; above 1 where older ones have been given up.
    pub first_number: u64,
    /// The number of the last.
    pub last_number: u64,
    /// When the first was written.
    pub first: String,
    /// When the last was written.
    pub last: String,
    /// The hash of the last: whoever has noted it can tell later whether anything before was changed.
    pub head: String,
}

/// Follows a chain from its beginning, a line at a time.
///
/// # Errors
/// The number of the first line that does not fit, from 1, and why.
pub fn verify(lines: impl IntoIterator<Item = String>) -> Result<Verified, (usize, String)> {
    verify_from(lines, false)
}

/// The same; with `anywhere` from whatever entry is there first, because older ones have been given up.
///
/// # Errors
/// As [`verify`].
pub fn verify_from(lines: impl IntoIterator<Item = String>, anywhere: bool) -> Result<Verified, (usize, String)> {
    let mut out = Verified { head: BEGINNING.into(), ..Verified::default() };
    for (i, text) in lines.into_iter().enumerate() {
        let wrong = |why: String| Err((i + 1, why));
        let line: Line = match serde_json::from_str(&text) {
            Ok(line) => line,
            Err(e) => return wrong(format!("this is no entry of an audit log: {e}")),
        };
        if i == 0 && anywhere && line.number > 1 {
            (out.last_number, out.head) = (line.number - 1, line.previous.clone());
        }
        if out.last_number.checked_add(1) != Some(line.number) {
            return wrong(match i {
                0 => format!("it begins with entry {}: those before it are missing", line.number),
                _ => format!("entry {} follows entry {}", line.number, out.last_number),
            });
        }
        if line.previous != out.head {
            return wrong("the entry before it is not the one it was written after".into());
        }
        if line.hash != line.hashed() {
            return wrong("it was changed after it was written".into());
        }
        if i == 0 {
            out.first.clone_from(&line.timestamp);
            out.first_number = line.number;
        }
        out.entries += 1;
        (out.last_number, out.last, out.head) = (line.number, line.timestamp, line.hash);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chain(details: &[String]) -> Vec<String> {
        let mut ledger = Ledger::default();
        let entry = |(i, detail): (usize, &String)| {
            let at = Time(i as i64 * 1_000_000_000);
            ledger.write(&Entry { at, who: "Ana", action: "ack", subject: "press-1", detail }).1
        };
        details.iter().enumerate().map(entry).collect()
    }

    proptest! {
        #[test]
        fn a_chain_is_whole_until_somebody_touches_it(
            details in prop::collection::vec(".{0,12}", 2..20),
            at in any::<prop::sample::Index>(),
            what in 0usize..4,
            with in "[a-zA-Z0-9]",
        ) {
            let lines = chain(&details);
            let whole = verify(lines.clone()).expect("whole");
            prop_assert_eq!(whole.entries, lines.len() as u64);
            let (mut bad, i) = (lines.clone(), at.index(lines.len()));
            match what {
                0 => drop(bad.remove(i)),
                1 => bad.insert(i, lines[(i + 1) % lines.len()].clone()),
                2 => bad[i] = bad[i].replacen("Ana", &with, 1),
                _ => bad.swap(i, (i + 1) % lines.len()),
            }
            // What is missing at the very end shows only in the head that somebody noted.
            match verify(bad) {
                Ok(v) => prop_assert!(what == 0 && i == lines.len() - 1 && v.head != whole.head),
                Err((line, _)) => prop_assert!(line >= 1),
            }
        }

        #[test]
        fn garbage_is_no_chain_and_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            prop_assert!(verify([text]).is_err());
        }
    }

    #[test]
    fn an_empty_log_is_whole() {
        assert_eq!(verify([]).expect("whole").entries, 0);
    }
}
