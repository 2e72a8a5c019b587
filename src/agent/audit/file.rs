//! The audit log as files of JSON lines below the data directory, for people and for
//! `andon audit verify`. It follows the engine: an entry is written here once it is durable there.
//! A file that is full is named by its first entry and kept aside; of those the oldest are given up.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Its name below the data directory.
pub const NAME: &str = "audit.jsonl";
/// A file that has grown to this is kept aside and a new one begun: some 3,000 entries.
const FULL: u64 = 1 << 20;
/// Files kept aside: with the one being written 33 MiB, decades of what people do to a line. What is given
/// up is with the cloud, and the chain goes on from there.
const KEPT: usize = 32;
/// The last line is looked for in so much of the file's end; an entry is far shorter.
const MAX_LINE: u64 = 64 * 1024;

/// The file, open at its end.
pub struct Keeper {
    dir: PathBuf,
    file: File,
    size: u64,
    last: u64,
    full: u64,
    kept: usize,
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
        Keeper::open_with(dir, FULL, KEPT)
    }

    /// The same with other bounds: bytes of a file, and files kept aside.
    fn open_with(dir: &Path, full: u64, kept: usize) -> io::Result<Keeper> {
        let mut file = writable(dir)?;
        let length = file.metadata()?.len();
        let end = tail(&mut file, length)?;
        let whole = end.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let size = length - (end.len() - whole) as u64;
        file.set_len(size)?;
        let mut last = last_number(&end[..whole]);
        // Nothing in it yet: it was just begun, and the last entry is in the file before.
        if let Some(before) = aside(dir)?.pop().filter(|_| last.is_none()) {
            let mut before = File::open(before)?;
            let length = before.metadata()?.len();
            last = last_number(&tail(&mut before, length)?);
        }
        Ok(Keeper { dir: dir.to_owned(), file, size, last: last.unwrap_or(0), full, kept })
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
        if text.is_empty() {
            return Ok(());
        }
        if self.size >= self.full {
            self.begin_another()?;
        }
        self.file.write_all(text.as_bytes())?;
        self.file.sync_data()?;
        (self.last, self.size) = (last, self.size + text.len() as u64);
        Ok(())
    }

    /// Keeps the file aside under the number of its first entry, gives up the oldest of those, and begins
    /// another. A crash between any two of these leaves a chain that is whole.
    fn begin_another(&mut self) -> io::Result<()> {
        let path = self.dir.join(NAME);
        let first = lines(&path)?.first().and_then(|l| number(l)).unwrap_or(0);
        fs::rename(&path, self.dir.join(format!("audit-{first:012}.jsonl")))?;
        self.file = writable(&self.dir)?;
        self.size = 0;
        File::open(&self.dir)?.sync_all()?;
        let mut old = aside(&self.dir)?;
        let surplus = old.len().saturating_sub(self.kept);
        old.drain(..surplus).try_for_each(fs::remove_file)
    }
}

fn writable(dir: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(dir.join(NAME))
}

/// The end of a file, at most [`MAX_LINE`].
fn tail(file: &mut File, length: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LINE)))?;
    let mut end = Vec::new();
    Read::by_ref(file).take(MAX_LINE).read_to_end(&mut end)?;
    Ok(end)
}

fn last_number(end: &[u8]) -> Option<u64> {
    String::from_utf8_lossy(end).lines().next_back().and_then(number)
}

/// Files kept aside, oldest first.
fn aside(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let digits = name.strip_prefix("audit-").and_then(|n| n.strip_suffix(".jsonl")).unwrap_or_default();
        if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// All files of the log below a data directory, oldest first, and whether so many are kept aside that
/// older ones have been given up by design.
pub fn all(dir: &Path) -> io::Result<(Vec<PathBuf>, bool)> {
    let mut files = aside(dir)?;
    let given_up = files.len() >= KEPT;
    files.push(dir.join(NAME));
    Ok((files, given_up))
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

    fn entries(ledger: &mut Ledger, n: usize) -> Vec<String> {
        let entry = |detail: String| {
            ledger.write(&Entry { at: Time(1), who: "Ana", action: "ack", subject: "press-1", detail: &detail }).1
        };
        (0..n).map(|i| format!("{i:020}")).map(entry).collect()
    }

    fn together(dir: &Path) -> Vec<String> {
        all(dir).expect("files").0.iter().flat_map(|f| lines(f).expect("lines")).collect()
    }

    #[test]
    fn full_files_are_kept_aside_and_the_chain_goes_on_over_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut ledger = Ledger::default();
        let all_lines = entries(&mut ledger, 60);
        for (i, line) in all_lines.iter().enumerate() {
            // Opened anew each time, as if it had been killed after each entry; what is written twice is known.
            let mut keeper = Keeper::open_with(dir.path(), 2_000, 100).expect("a file");
            keeper.add(&all_lines[i.saturating_sub(3)..i]).expect("known");
            keeper.add(std::slice::from_ref(line)).expect("written");
        }
        assert!(aside(dir.path()).expect("files").len() > 5);
        assert_eq!(together(dir.path()), all_lines);
        assert_eq!(verify(together(dir.path())).expect("whole").entries, 60);
    }

    #[test]
    fn the_oldest_are_given_up_and_the_rest_is_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut ledger = Ledger::default();
        let mut keeper = Keeper::open_with(dir.path(), 1_000, 3).expect("a file");
        for _ in 0..40 {
            keeper.add(&entries(&mut ledger, 1)).expect("written");
        }
        let files = all(dir.path()).expect("files").0;
        assert_eq!(files.len(), 4);
        let bytes: u64 = files.iter().map(|f| fs::metadata(f).expect("a file").len()).sum();
        assert!(bytes < 4 * 1_500, "{bytes}");
        let left = together(dir.path());
        assert!(verify(left.clone()).is_err(), "a chain without its beginning has to be asked for");
        let v = super::super::verify_from(left, true).expect("whole");
        assert!(v.entries < 40 && v.last_number == 40 && v.first_number == 41 - v.entries, "{v:?}");
    }

    #[test]
    fn a_file_that_is_missing_in_the_middle_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut keeper = Keeper::open_with(dir.path(), 1_000, 100).expect("a file");
        keeper.add(&entries(&mut Ledger::default(), 1)).expect("written");
        let mut ledger = Ledger::default();
        entries(&mut ledger, 1);
        for _ in 0..30 {
            keeper.add(&entries(&mut ledger, 1)).expect("written");
        }
        let old = aside(dir.path()).expect("files");
        fs::remove_file(&old[old.len() / 2]).expect("removed");
        let (_, why) = super::super::verify_from(together(dir.path()), true).expect_err("a hole");
        assert!(why.contains("follows entry"), "{why}");
    }

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
