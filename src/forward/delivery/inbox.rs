//! A folder into which bundles are put by hand or by other programs: `*.tar`, or a `desired.json` that
//! names archives in the folder or elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ring::digest;

use super::desired::{Desired, MAX_BODY, Wanted, Where, parse};
use crate::types::Rollout;

/// The desired state's file name.
const DESIRED: &str = "desired.json";
/// Archives that are looked at; the rest waits until these are done.
const MAX_ARCHIVES: usize = 64;

/// What tells whether a file has changed.
type Look = (u64, Option<SystemTime>);

/// See the module.
#[derive(Debug)]
pub struct Inbox {
    dir: PathBuf,
    rollout: Rollout,
    /// As the files were when last looked at: what is still being written is left alone.
    seen: BTreeMap<String, Look>,
    /// Digests of archives that have not changed since.
    digests: BTreeMap<String, (Look, String)>,
}

impl Inbox {
    /// A folder, and how its bundles are taken into use where nothing else says.
    pub fn new(dir: PathBuf, rollout: Rollout) -> Inbox {
        Inbox { dir, rollout, seen: BTreeMap::new(), digests: BTreeMap::new() }
    }

    /// What lies there and has not changed since the last look. Blocks.
    ///
    /// # Errors
    /// When the folder or the desired state in it cannot be read.
    pub fn look(&mut self) -> Result<Desired, String> {
        let unreadable = |e: io::Error| format!("{}: {e}", self.dir.display());
        let (mut now, mut all) = (BTreeMap::new(), Desired::default());
        for entry in fs::read_dir(&self.dir).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let (Ok(name), Ok(meta)) = (entry.file_name().into_string(), entry.metadata()) else { continue };
            let archive = name.ends_with(".tar") && !name.starts_with('.');
            if meta.is_file() && (archive || name == DESIRED) && now.len() < MAX_ARCHIVES {
                now.insert(name, (meta.len(), meta.modified().ok()));
            }
        }
        let before = std::mem::replace(&mut self.seen, now);
        let settled: Vec<(String, Look)> =
            self.seen.iter().filter(|(n, l)| before.get(*n) == Some(l)).map(|(n, l)| (n.clone(), *l)).collect();
        if let Some((_, (size, _))) = settled.iter().find(|(n, _)| n == DESIRED) {
            if *size > MAX_BODY {
                return Err(format!("{DESIRED} is longer than {MAX_BODY} bytes"));
            }
            let text = fs::read(self.dir.join(DESIRED)).map_err(unreadable)?;
            all = parse(&text, &self.rollout, true).map_err(|e| format!("{DESIRED}: {e}"))?;
        }
        self.digests.retain(|name, (look, _)| self.seen.get(name) == Some(look));
        for (name, look) in settled.into_iter().filter(|(n, _)| n != DESIRED) {
            if all.wanted.iter().any(|w| w.at == Where::File(name.clone())) {
                continue;
            }
            let Some(sha256) = self.digest(&name, look) else { continue };
            let (model, version, rollout) = (String::new(), String::new(), self.rollout.clone());
            all.wanted.push(Wanted { model, version, at: Where::File(name), sha256, rollout });
        }
        Ok(all)
    }

    /// Where a file of the inbox is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Marks an archive as done with: `x.tar` becomes `x.tar.accepted` or `x.tar.refused`.
    ///
    /// # Errors
    /// When it cannot be renamed; it is then left alone for another reason.
    pub fn done(&self, name: &str, accepted: bool) -> io::Result<()> {
        let suffix = if accepted { "accepted" } else { "refused" };
        fs::rename(self.dir.join(name), self.dir.join(format!("{name}.{suffix}")))
    }

    fn digest(&mut self, name: &str, look: Look) -> Option<String> {
        if let Some((_, digest)) = self.digests.get(name) {
            return Some(digest.clone());
        }
        let digest = sha256_of(&self.dir.join(name)).ok()?;
        self.digests.insert(name.to_owned(), (look, digest.clone()));
        Some(digest)
    }
}

/// SHA-256 of a file, hex.
///
/// # Errors
/// When it cannot be read.
pub fn sha256_of(path: &Path) -> io::Result<String> {
    let (mut file, mut hash) = (fs::File::open(path)?, digest::Context::new(&digest::SHA256));
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hash.finish().as_ref().iter().map(|b| format!("{b:02x}")).collect());
        }
        hash.update(&buffer[..n]);
    }
}
