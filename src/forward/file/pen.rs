//! The file under a file sink: lines are appended and fsynced, a torn end is cut off, full and old files
//! are set aside. Blocks.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde::Deserialize;

use super::Config;
use crate::types::RecordId;

/// Ids that are remembered from before the start, at some 20 bytes each. The store saves cursors within a
/// second, and after a power cut brings back one of the last half minute at worst.
const REMEMBERED: usize = 500_000;
/// After so many lines in a row that were not there yet, nothing more is repeated.
const CAUGHT_UP: usize = 100_000;
/// Longer lines are none of ours: a record has at most 1 MiB of data.
const MAX_LINE: usize = 8 << 20;
/// The time in a rotated file's name, UTC: names in order are files in order.
const STAMP: &str = "%Y%m%dT%H%M%S.%3f";

/// One record.
pub struct Line {
    pub id: RecordId,
    /// With its line break.
    pub text: Vec<u8>,
}

/// How far writing came.
#[derive(Debug, Default)]
pub struct Written {
    /// Lines from the front that are on the medium.
    pub lines: usize,
    /// Bytes that were written for them.
    pub bytes: usize,
    pub error: Option<io::Error>,
}

/// An open file.
pub struct Pen {
    config: Config,
    file: File,
    /// Bytes that are on the medium.
    length: u64,
    opened: SystemTime,
    /// What earlier runs wrote last.
    earlier: HashSet<RecordId>,
    /// Lines since one was last found there.
    fresh: usize,
}

impl Pen {
    /// Opens the file or makes it, cuts off a torn end, and remembers what is there.
    pub fn open(config: &Config) -> io::Result<Pen> {
        let path = &config.path;
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            fs::create_dir_all(dir)?;
        }
        let mut earlier = HashSet::new();
        let whole = remember(path, &mut earlier)?;
        for (_, rotated) in rotated(config)?.iter().rev() {
            if earlier.len() >= REMEMBERED {
                break;
            }
            remember(rotated, &mut earlier)?;
        }
        let file = File::options().create(true).append(true).open(path)?;
        file.set_len(whole)?;
        // What a killed run left is made durable before anything is built on it.
        file.sync_all()?;
        sync_dir(path)?;
        let opened = file.metadata().and_then(|m| m.created().or_else(|_| m.modified()))?;
        Ok(Pen { config: config.clone(), file, length: whole, opened, earlier, fresh: 0 })
    }

    /// Appends what is not there yet, and fsyncs. After an error the file ends where it ended before.
    pub fn write(&mut self, lines: Vec<Line>) -> Written {
        let mut done = Written::default();
        let mut chunk: Vec<u8> = Vec::new();
        let mut chunk_lines = 0;
        for line in lines {
            if self.length + (chunk.len() + line.text.len()) as u64 > self.config.max_bytes || self.is_old() {
                if !self.flush(&mut chunk, &mut chunk_lines, &mut done) {
                    return done;
                }
                if let Err(e) = self.rotate() {
                    done.error = Some(e);
                    return done;
                }
            }
            chunk_lines += 1;
            if !self.is_there(&line.id) {
                chunk.extend_from_slice(&line.text);
            }
        }
        self.flush(&mut chunk, &mut chunk_lines, &mut done);
        done
    }

    /// `false` after an error.
    fn flush(&mut self, chunk: &mut Vec<u8>, lines: &mut usize, done: &mut Written) -> bool {
        let written =
            if chunk.is_empty() { Ok(()) } else { self.file.write_all(chunk).and_then(|()| self.file.sync_data()) };
        match written {
            Ok(()) => {
                self.length += chunk.len() as u64;
                done.lines += std::mem::take(lines);
                done.bytes += chunk.len();
                chunk.clear();
                true
            }
            Err(e) => {
                // Where even this fails, opening the file anew cuts off what is torn.
                let _ = self.file.set_len(self.length);
                done.error = Some(e);
                false
            }
        }
    }

    fn is_there(&mut self, id: &RecordId) -> bool {
        if self.earlier.is_empty() {
            return false;
        }
        let there = self.earlier.remove(id);
        self.fresh = if there { 0 } else { self.fresh + 1 };
        if self.fresh >= CAUGHT_UP {
            self.earlier = HashSet::new();
        }
        there
    }

    fn is_old(&self) -> bool {
        // A clock that was set back makes no file old.
        self.length > 0 && self.opened.elapsed().unwrap_or(Duration::ZERO) > self.config.max_age
    }

    /// Sets the file aside under the time, and begins a new one. An empty file stays.
    fn rotate(&mut self) -> io::Result<()> {
        if self.length == 0 {
            return Ok(());
        }
        let all = rotated(&self.config)?;
        let now = Timestamp::now();
        let latest = all.last().map(|(at, _)| *at);
        let at = latest.and_then(|l| l.checked_add(Duration::from_millis(1)).ok()).map_or(now, |after| after.max(now));
        fs::rename(&self.config.path, name(&self.config.path, at))?;
        self.file = File::options().create(true).append(true).open(&self.config.path)?;
        self.length = 0;
        self.opened = SystemTime::now();
        sync_dir(&self.config.path)?;
        let surplus = (all.len() + 1).saturating_sub(self.config.max_files);
        for (_, old) in all.into_iter().take(surplus) {
            // Somebody may have taken it away.
            let _ = fs::remove_file(old);
        }
        Ok(())
    }
}

/// Stem and extension of a path: `events` and `.ndjson`.
fn split(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned());
    (text(path.file_stem()).unwrap_or_default(), text(path.extension()).map(|e| format!(".{e}")).unwrap_or_default())
}

fn name(path: &Path, at: Timestamp) -> PathBuf {
    let (stem, extension) = split(path);
    path.with_file_name(format!("{stem}-{}Z{extension}", at.to_zoned(TimeZone::UTC).strftime(STAMP)))
}

/// Files that were set aside, oldest first.
fn rotated(config: &Config) -> io::Result<Vec<(Timestamp, PathBuf)>> {
    let (stem, extension) = split(&config.path);
    let dir = config.path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let stamp = name.strip_prefix(&format!("{stem}-")).and_then(|n| n.strip_suffix(&extension));
        let at = stamp.and_then(|s| DateTime::strptime(STAMP, s.strip_suffix('Z')?).ok());
        let at = at.and_then(|t| t.to_zoned(TimeZone::UTC).ok());
        all.extend(at.map(|at| (at.timestamp(), path)));
    }
    all.sort();
    Ok(all)
}

/// Notes the ids of a file's lines, and gives the length up to the end of its last whole line. A file
/// that is not there has none.
fn remember(path: &Path, ids: &mut HashSet<RecordId>) -> io::Result<u64> {
    #[derive(Deserialize)]
    struct Known {
        id: String,
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e),
    };
    let (mut reader, mut line, mut at, mut whole) = (BufReader::new(file), Vec::new(), 0, 0);
    loop {
        line.clear();
        let n = io::Read::take(&mut reader, MAX_LINE as u64).read_until(b'\n', &mut line)?;
        if n == 0 {
            return Ok(whole);
        }
        at += n as u64;
        // What is no record in between was put there by somebody else, and stays.
        if let Ok(known) = serde_json::from_slice::<Known>(&line)
            && line.ends_with(b"\n")
        {
            whole = at;
            if ids.len() < REMEMBERED {
                ids.extend(parse(&known.id));
            }
        }
    }
}

fn parse(id: &str) -> Option<RecordId> {
    let number = u128::from_str_radix(id, 16).ok().filter(|_| id.len() == 32)?;
    Some(RecordId(number.to_be_bytes()))
}

fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> Config {
        Config { path: dir.join("out/events.ndjson"), max_bytes: 1024, max_age: Duration::from_hours(1), max_files: 3 }
    }

    fn line(n: u64) -> Line {
        let id = RecordId::of(&[&n.to_le_bytes()]);
        Line { id, text: format!("{{\"id\":\"{id}\",\"n\":{n}}}\n").into_bytes() }
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).expect("a file")
    }

    fn numbers(config: &Config) -> Vec<u64> {
        let mut files: Vec<PathBuf> = rotated(config).expect("a directory").into_iter().map(|(_, p)| p).collect();
        files.push(config.path.clone());
        let text: String = files.iter().map(|p| read(p)).collect();
        text.lines()
            .map(|l| serde_json::from_str::<serde_json::Value>(l).expect("JSON")["n"].as_u64().expect("n"))
            .collect()
    }

    #[test]
    fn lines_are_appended_once_over_many_starts() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = Config { max_bytes: 1 << 20, ..config(dir.path()) };
        for start in 0..5 {
            let mut pen = Pen::open(&config).expect("opened");
            // The last twenty of the run before come again.
            let from = (start * 50_u64).saturating_sub(20);
            let written = pen.write((from..start * 50 + 50).map(line).collect());
            assert_eq!((written.lines as u64, written.error.is_none()), (start * 50 + 50 - from, true));
        }
        assert_eq!(numbers(&config), (0..250).collect::<Vec<_>>());
    }

    #[test]
    fn a_torn_end_is_cut_off() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = config(dir.path());
        Pen::open(&config).expect("opened").write((0..3).map(line).collect());
        let whole = read(&config.path);
        for torn in ["{\"id\":\"", "\0\0\0\0", "{\"id\":\"00000000000000000000000000000000\",\"n\":9}"] {
            fs::write(&config.path, format!("{whole}{torn}")).expect("written");
            Pen::open(&config).expect("opened");
            assert_eq!(read(&config.path), whole, "{torn:?}");
        }
        // What somebody else put in between is left alone.
        fs::write(&config.path, format!("# a note\n{whole}")).expect("written");
        Pen::open(&config).expect("opened");
        assert_eq!(read(&config.path), format!("# a note\n{whole}"));
    }

    #[test]
    fn files_are_rotated_by_size_and_the_oldest_go() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = config(dir.path());
        let mut pen = Pen::open(&config).expect("opened");
        let written = pen.write((0..100).map(line).collect());
        assert_eq!(written.lines, 100);
        let files = rotated(&config).expect("a directory");
        assert_eq!(files.len(), 3);
        assert!(files.iter().all(|(_, p)| fs::metadata(p).expect("there").len() <= 1024));
        let kept = numbers(&config);
        assert_eq!(kept.last(), Some(&99));
        assert!(kept.windows(2).all(|w| w[0] + 1 == w[1]), "in order: {kept:?}");
        // After a restart the rotated ones are known as well.
        Pen::open(&config).expect("opened").write(kept.iter().map(|&n| line(n)).collect());
        assert_eq!(numbers(&config), kept);
    }

    #[test]
    fn files_are_rotated_by_age() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = Config { max_age: Duration::ZERO, ..config(dir.path()) };
        let mut pen = Pen::open(&config).expect("opened");
        for n in 0..3 {
            pen.write(vec![line(n)]);
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(rotated(&config).expect("a directory").len(), 2);
        assert_eq!(numbers(&config), [0, 1, 2]);
    }
}
