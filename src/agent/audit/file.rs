//! The audit log as a file of JSON lines below the data directory, for people and for
//! `andon audit verify`. It follows the engine: an entry is written here once it is durable there.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Deserialize;

/// Its name below the data directory.
pub const NAME: &str = "audit.jsonl";
/// The last line is looked for in so much of the file's end; an entry is far shorter.
const MAX_LINE: u64 = 64 * 1024;

/// The file, open at its end.
pub struct Keeper {
    file: File,
    last: u64,
}

#[derive(Deserialize)]
struct Numbered {
    number: u64,
}

fn number(line: &str) -> Option<u64> {
    serde_json::from_str::<Numbered>(line).ok().map(|n| n.number)
}

impl Keeper {
    /// Opens or makes the file. What a crash left of a half-written line is cut off.
    pub fn open(dir: &Path) -> io::Result<Keeper> {
        let path = dir.join(NAME);
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(MAX_LINE)))?;
        let mut end = Vec::new();
        Read::by_ref(&mut file).take(MAX_LINE).read_to_end(&mut end)?;
        let whole = end.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        file.set_len(length - (end.len() - whole) as u64)?;
        let text = String::from_utf8_lossy(&end[..whole]);
        let last = text.lines().next_back().and_then(number).unwrap_or(0);
        Ok(Keeper { file, last })
    }

    /// Adds the entries that are not in it yet, and syncs.
    pub fn add(&mut self, lines: &[String]) -> io::Result<()> {
        let mut text = String::new();
        let mut last = self.last;
        for line in lines {
            let Some(n) = number(line).filter(|n| *n > last) else { continue };
            last = n;
            text.push_str(line);
            text.push('\n');
        }
        if !text.is_empty() {
            self.file.write_all(text.as_bytes())?;
            self.file.sync_data()?;
            self.last = last;
        }
        Ok(())
    }
}

/// The lines of a file. A last line without an end is left out: it was not written whole.
pub fn lines(path: &Path) -> io::Result<Vec<String>> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut out = Vec::new();
    loop {
        let mut line = String::new();
        let n = Read::by_ref(&mut reader).take(MAX_LINE).read_line(&mut line)?;
        if n == 0 {
            return Ok(out);
        }
        match line.strip_suffix('\n') {
            Some(whole) => out.push(whole.to_owned()),
            None if n as u64 == MAX_LINE => return Err(io::Error::other("a line is too long to be an entry")),
            None => return Ok(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Entry, Ledger, verify};
    use super::*;
    use crate::types::Time;

    #[test]
    fn what_a_crash_left_half_written_is_written_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut ledger = Ledger::default();
        for detail in ["one", "two", "three"] {
            ledger.write(&Entry { at: Time(1), who: "Ana", action: "ack", subject: "press-1", detail });
        }
        let tail = ledger.tail();
        Keeper::open(dir.path()).expect("a file").add(&tail[..2]).expect("written");
        let path = dir.path().join(NAME);
        let whole = std::fs::read(&path).expect("the file");
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).expect("cut");
            let mut keeper = Keeper::open(dir.path()).expect("a file");
            keeper.add(&tail).expect("written");
            keeper.add(&tail).expect("again changes nothing");
            assert_eq!(verify(lines(&path).expect("lines")).expect("whole").entries, 3, "cut at {cut}");
        }
    }
}
