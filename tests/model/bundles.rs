//! Bundles to ship: copies of a shipped one with another sequence, signed by keys that are made here,
//! packed as archives; and what is done to them to make them bad.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use andon::model::bundle::sha256;
use serde_json::Value;
use tar::{Builder, EntryType, Header};

pub fn sha(bytes: &[u8]) -> String {
    sha256(bytes)
}

/// A private key and its public half, as openssl writes them.
pub struct Keys {
    pub private: PathBuf,
    pub public: PathBuf,
}

pub fn openssl(words: &[&str]) {
    let out = Command::new("openssl").args(words).output().expect("openssl; tests/run installs it");
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
}

impl Keys {
    pub fn make(dir: &Path, name: &str, curve: &str) -> Keys {
        let keys = Keys { private: dir.join(format!("{name}.key")), public: dir.join(format!("{name}.pem")) };
        let (private, public) = (keys.private.to_str().unwrap(), keys.public.to_str().unwrap());
        let curve = format!("ec_paramgen_curve:{curve}");
        openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", &curve, "-out", private]);
        openssl(&["pkey", "-in", private, "-pubout", "-out", public]);
        keys
    }
}

pub fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Changes `model.json`, with digests made anew.
pub fn edit(bundle: &Path, change: impl FnOnce(&mut Value)) {
    let path = bundle.join("model.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    let digests = manifest["digests"].as_object_mut().unwrap();
    for (file, digest) in digests.iter_mut() {
        *digest = sha(&fs::read(bundle.join(file)).unwrap()).into();
    }
    fs::write(path, serde_json::to_vec_pretty(&manifest).unwrap()).unwrap();
}

/// A bundle of this version and sequence, not signed.
pub fn bundle(from: &Path, to: &Path, version: &str, sequence: u64) {
    copy_dir(from, to);
    edit(to, |m| {
        m["version"] = version.into();
        m["sequence"] = sequence.into();
    });
}

pub fn sign(bundle: &Path, keys: &Keys) {
    let mut command = Command::new(crate::support::daemon::binary());
    let out = command.args(["model", "sign", "--key"]).arg(&keys.private).arg(bundle).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// The archive of a directory, with a directory around everything, as `tar` makes it.
pub fn archive(bundle: &Path) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    builder.follow_symlinks(false);
    builder.append_dir_all(bundle.file_name().unwrap(), bundle).unwrap();
    builder.into_inner().unwrap()
}

/// The archive with one entry more, whose name is put in as it is.
pub fn archive_with(bundle: &Path, name: &str, kind: EntryType, data: &[u8]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    builder.append_dir_all("", bundle).unwrap();
    let mut header = Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    if kind == EntryType::Symlink {
        header.set_link_name("/etc/passwd").unwrap();
    }
    header.set_cksum();
    builder.append(&header, data).unwrap();
    builder.into_inner().unwrap()
}

/// Flips one bit in the middle of a file.
pub fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}
