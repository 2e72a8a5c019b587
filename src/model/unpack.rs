//! Takes a bundle out of a tar archive from elsewhere: plain files and directories below the target and
//! nothing else, within bounds. Whether its contents are good is another matter.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use tar::{Archive, EntryType};

use super::bundle::MAX_FILE;
use super::signature::{MAX_FILES, is_relative};

/// Entries of an archive: files, their directories, and a header more for each.
const MAX_ENTRIES: usize = 4 * MAX_FILES;
/// The longest extended header; it holds times and names.
const MAX_HEADER: u64 = 64 << 10;
/// The longest name of a file within the bundle.
const MAX_NAME: usize = 200;

/// Why an archive was not unpacked.
#[derive(Debug)]
pub enum Failure {
    /// It holds what a bundle does not.
    Bad(String),
    /// It could not be written here.
    Disk(io::Error),
}

use Failure::{Bad, Disk};

/// Unpacks into `dir`, which is empty, at most `max_bytes` of files. Gives where the bundle lies: `dir`,
/// or the one directory in it where the archive has that around everything.
///
/// # Errors
/// What the archive holds that a bundle does not; some of it may be in `dir` by then.
pub fn unpack(archive: impl Read, dir: &Path, max_bytes: u64) -> Result<PathBuf, Failure> {
    let damaged = |e: io::Error| Bad(format!("the archive is damaged: {e}"));
    let mut archive = Archive::new(archive);
    let (mut left, mut files) = (max_bytes, 0);
    // Raw: names are those in the headers, and no header can ask for more memory than is its due.
    for (n, entry) in archive.entries().map_err(damaged)?.raw(true).enumerate() {
        let mut entry = entry.map_err(damaged)?;
        if n >= MAX_ENTRIES {
            return Err(Bad(format!("the archive has more than {MAX_ENTRIES} entries")));
        }
        let (kind, size) = (entry.header().entry_type(), entry.size());
        if matches!(kind, EntryType::XHeader | EntryType::XGlobalHeader) && size <= MAX_HEADER {
            continue;
        }
        let name = String::from_utf8(entry.path_bytes().into_owned());
        let name = name.map_err(|_| Bad("the archive has a name that is not UTF-8".to_owned()))?;
        let relative = name.strip_prefix("./").unwrap_or(&name).trim_end_matches('/');
        if kind == EntryType::Directory && (relative.is_empty() || relative == ".") {
            continue;
        }
        if !is_relative(relative) || relative.len() > MAX_NAME {
            return Err(Bad(format!("the archive has {name:?}, which is not the name of a file below it")));
        }
        let to = dir.join(relative);
        match kind {
            EntryType::Directory => fs::create_dir_all(&to).map_err(|e| writing(relative, e))?,
            EntryType::Regular => {
                files += 1;
                if files > MAX_FILES || size > left || size > MAX_FILE {
                    return Err(Bad(format!("the archive is too large: {name:?} goes beyond what a bundle may hold")));
                }
                left -= size;
                write(&mut entry, &to, size).map_err(|e| writing(relative, e))?;
            }
            other => return Err(Bad(format!("the archive has {name:?} as {other:?}; only plain files are taken"))),
        }
    }
    root(dir).map_err(damaged)
}

/// Names that collide and archives that end early are their own fault; the rest is the disk's.
fn writing(name: &str, e: io::Error) -> Failure {
    use io::ErrorKind::{AlreadyExists, InvalidData, IsADirectory, NotADirectory, Other, UnexpectedEof};
    match e.kind() {
        AlreadyExists | InvalidData | IsADirectory | NotADirectory | Other | UnexpectedEof => {
            Bad(format!("the archive is damaged: {name:?}: {e}"))
        }
        _ => Disk(e),
    }
}

fn write(entry: &mut impl Read, to: &Path, size: u64) -> io::Result<()> {
    if let Some(above) = to.parent() {
        fs::create_dir_all(above)?;
    }
    // New: a name that comes twice is refused, and nothing is written through what is there already.
    let mut file = fs::File::options().write(true).create_new(true).open(to)?;
    let written = io::copy(&mut entry.take(size), &mut file)?;
    if written == size { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn root(dir: &Path) -> io::Result<PathBuf> {
    let entries: Vec<PathBuf> = fs::read_dir(dir)?.map(|e| e.map(|e| e.path())).collect::<io::Result<_>>()?;
    match &entries[..] {
        [only] if only.is_dir() => Ok(only.clone()),
        [] => Err(io::Error::other("there is nothing in it")),
        _ => Ok(dir.to_path_buf()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tar::{Builder, Header};

    use super::*;

    /// An archive of entries: name, kind, contents. Names are put in as they are.
    fn archive(entries: &[(&str, EntryType, &[u8])]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (name, kind, data) in entries {
            let mut header = Header::new_gnu();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_size(data.len() as u64);
            if kind.is_symlink() || kind.is_hard_link() {
                header.set_link_name("model.json").expect("set");
            }
            header.set_mode(0o777);
            header.set_cksum();
            builder.append(&header, *data).expect("appended");
        }
        builder.into_inner().expect("finished")
    }

    fn unpacked(bytes: &[u8]) -> Result<(tempfile::TempDir, PathBuf), String> {
        let dir = tempfile::tempdir().expect("a directory");
        let inside = dir.path().join("inside");
        fs::create_dir(&inside).expect("made");
        let done = unpack(bytes, &inside, 1000);
        let beside = fs::read_dir(dir.path()).expect("read").count();
        assert_eq!(beside, 1, "nothing is written beside it");
        done.map(|root| (dir, root)).map_err(|e| match e {
            Bad(why) => why,
            Disk(e) => panic!("{e}"),
        })
    }

    #[test]
    fn a_bundle_comes_out_with_or_without_a_directory_around_it() {
        use EntryType::{Directory, Regular, XHeader};
        let pax = b"19 mtime=1.000000\n";
        for around in ["", "./", "pump-4/", "./pump-4/"] {
            let name = |n: &str| format!("{around}{n}");
            let bytes = archive(&[
                (&name(""), Directory, b""),
                ("x", XHeader, pax),
                (&name("model.json"), Regular, b"{}"),
                (&name("more/notes"), Regular, b""),
            ]);
            // A lone empty name is no entry that tar writes.
            let Ok((_dir, root)) = unpacked(&bytes) else { panic!("{around}") };
            assert_eq!(fs::read(root.join("model.json")).expect("read"), b"{}");
            assert!(root.join("more/notes").is_file());
        }
    }

    #[test]
    fn tricks_are_refused() {
        use EntryType::{Block, Char, Fifo, GNULongName, GNUSparse, Link, Regular, Symlink};
        for name in ["../model.json", "/etc/passwd", "a/../../b", "a//b", "..", "a\\b", "./../x"] {
            let why = unpacked(&archive(&[(name, Regular, b"x")])).map(|_| ()).expect_err(name);
            assert!(why.contains("not the name of a file below it"), "{name}: {why}");
        }
        for kind in [Symlink, Link, Fifo, Char, Block, GNUSparse, GNULongName] {
            let why = unpacked(&archive(&[("model.onnx", kind, b"")])).map(|_| ()).expect_err("refused");
            assert!(why.contains("only plain files"), "{kind:?}: {why}");
        }
        let twice = archive(&[("a", Regular, b"1"), ("a", Regular, b"2")]);
        assert!(unpacked(&twice).is_err());
        let large = archive(&[("a", Regular, &[0; 600]), ("b", Regular, &[0; 600])]);
        assert!(unpacked(&large).map(|_| ()).expect_err("refused").contains("too large"));
        let names: Vec<String> = (0..=MAX_FILES).map(|i| format!("f{i}")).collect();
        let many: Vec<(&str, EntryType, &[u8])> = names.iter().map(|n| (n.as_str(), Regular, &b""[..])).collect();
        assert!(unpacked(&archive(&many)).map(|_| ()).expect_err("refused").contains("too large"));
        let good = archive(&[("model.json", Regular, &[7; 500])]);
        assert!(unpacked(&good[..700]).is_err(), "truncated");
        assert!(unpacked(&[]).is_err() && unpacked(&[1; 512]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_panic_or_get_out(changes in prop::collection::vec((0..3072_usize, any::<u8>()), 1..20)) {
            let mut bytes = archive(&[("model.json", EntryType::Regular, b"{}"), ("d/x", EntryType::Regular, &[1; 90])]);
            for (at, to) in changes {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = to;
                }
            }
            let _ = unpacked(&bytes);
            let _ = unpacked(&bytes[..bytes.len() / 2]);
        }
    }
}
