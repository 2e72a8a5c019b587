//! The files of a bundle, each read once: the bytes that are hashed are the bytes that are used. Whoever can
//! exchange a directory between two looks gains nothing.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::ModelError;
use super::bundle::{MAX_FILE, sha256};
use super::signature;

/// The largest `model.json`. Advice in several languages takes some of it.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// The largest `golden.json` and `reference.json`; parsed they take up to four times as much.
pub const MAX_CASES: u64 = 16 << 20;
/// The files of a bundle that are used. Others are hashed and not kept.
const USED: [&str; 5] = ["model.json", "model.onnx", "golden.json", "reference.json", signature::FILE];

/// The files of one bundle.
#[derive(Debug)]
pub struct Contents {
    dir: PathBuf,
    used: BTreeMap<&'static str, Vec<u8>>,
    /// SHA-256 by name, hex, of every file but the signature; `None` where others than the used ones were not read.
    digests: Option<BTreeMap<String, String>>,
    /// Of a `golden.json` that was left out.
    golden_digest: Option<String>,
}

impl Contents {
    /// The used files of a bundle.
    ///
    /// # Errors
    /// [`ModelError::Read`] when one cannot be read or is too large; one that is missing is no error.
    pub fn read(dir: &Path) -> Result<Contents, ModelError> {
        let mut used = BTreeMap::new();
        for name in USED {
            let path = dir.join(name);
            if path.exists() {
                used.insert(name, file(&path, limit(name))?);
            }
        }
        Ok(Contents { dir: dir.to_path_buf(), used, digests: None, golden_digest: None })
    }

    /// All files of a bundle, as a signature covers them: plain files only.
    ///
    /// # Errors
    /// [`ModelError::Signature`] for what a signed bundle does not hold.
    pub fn read_all(dir: &Path) -> Result<Contents, ModelError> {
        let refused = |why: String| ModelError::Signature(format!("{}: {why}", dir.display()));
        let (mut used, mut digests) = (BTreeMap::new(), BTreeMap::new());
        for (name, path) in signature::names(dir).map_err(refused)? {
            match USED.iter().find(|u| **u == name) {
                Some(own) => {
                    let bytes = file(&path, limit(own))?;
                    if *own != signature::FILE {
                        digests.insert(name, sha256(&bytes));
                    }
                    used.insert(*own, bytes);
                }
                None => {
                    let digest = signature::hash(&path).map_err(|e| refused(format!("{name:?}: {e}")))?;
                    digests.insert(name, digest);
                }
            }
        }
        Ok(Contents { dir: dir.to_path_buf(), used, digests: Some(digests), golden_digest: None })
    }

    /// Where they were read.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The bytes of one of the used files.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.used.get(name).map(Vec::as_slice)
    }

    /// The same, for good.
    pub fn take(&mut self, name: &str) -> Option<Vec<u8>> {
        self.used.remove(name)
    }

    /// Leaves `golden.json` out from now on; its digest stays.
    pub fn forget_golden(&mut self) {
        if let (Some(bytes), None) = (self.used.remove("golden.json"), self.digests.as_ref()) {
            self.golden_digest = Some(sha256(&bytes));
        }
    }

    /// SHA-256 of every file but the signature, by name; empty where not all were read.
    pub fn digests(&self) -> BTreeMap<String, String> {
        self.digests.clone().unwrap_or_default()
    }

    /// SHA-256 of one file, hex.
    ///
    /// # Errors
    /// When it is not there.
    pub fn digest(&self, name: &str) -> Result<String, ModelError> {
        if let Some(known) = self.digests.as_ref().and_then(|d| d.get(name)) {
            return Ok(known.clone());
        }
        match self.get(name) {
            None if name == "golden.json" && self.golden_digest.is_some() => {
                Ok(self.golden_digest.clone().unwrap_or_default())
            }
            Some(bytes) => Ok(sha256(bytes)),
            None => {
                let path = self.dir.join(name);
                signature::hash(&path).map_err(|source| ModelError::Read { path: path.display().to_string(), source })
            }
        }
    }
}

fn limit(name: &str) -> u64 {
    match name {
        "model.json" => MAX_MANIFEST,
        "golden.json" | "reference.json" => MAX_CASES,
        signature::FILE => signature::MAX_SIGNATURE,
        _ => MAX_FILE,
    }
}

/// A whole file of at most `most` bytes.
pub fn file(path: &Path, most: u64) -> Result<Vec<u8>, ModelError> {
    let read = || {
        let file = std::fs::File::open(path)?;
        let mut out = Vec::new();
        file.take(most + 1).read_to_end(&mut out)?;
        if out.len() as u64 > most {
            return Err(std::io::Error::other(format!("larger than {most} bytes")));
        }
        Ok(out)
    };
    read().map_err(|source| ModelError::Read { path: path.display().to_string(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Model, SelfTest};

    fn shipped(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
    }

    #[test]
    fn what_was_verified_is_used_though_the_directory_is_exchanged() {
        let above = tempfile::tempdir().expect("a directory");
        let dir = above.path().join("bundle");
        let (key, _) = signature::PrivateKey::generate().expect("a key");
        let copy = |from: &str| {
            std::fs::create_dir(&dir).expect("made");
            for entry in std::fs::read_dir(shipped(from)).expect("read").flatten() {
                std::fs::copy(entry.path(), dir.join(entry.file_name())).expect("copied");
            }
        };
        copy("pump-anomaly");
        signature::sign(&dir, &key).expect("signed");
        let contents = Contents::read_all(&dir).expect("read");
        std::fs::rename(&dir, above.path().join("away")).expect("moved");
        copy("press-anomaly");
        signature::verify_contents(&contents, std::slice::from_ref(key.public())).expect("verified");
        let model = Model::from_contents(contents, SelfTest::Run).expect("loaded");
        assert_eq!(&**model.name(), "pump-anomaly");
        let exchanged = Contents::read_all(&dir).expect("read");
        assert!(signature::verify_contents(&exchanged, std::slice::from_ref(key.public())).is_err());
    }

    #[test]
    fn files_that_are_too_large_are_not_read() {
        let dir = tempfile::tempdir().expect("a directory");
        for entry in std::fs::read_dir(shipped("press-anomaly")).expect("read").flatten() {
            std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copied");
        }
        let golden = std::fs::File::create(dir.path().join("golden.json")).expect("created");
        golden.set_len(MAX_CASES + 1).expect("set");
        let why = Contents::read(dir.path()).expect_err("refused").to_string();
        assert!(why.contains("golden.json") && why.contains("larger than"), "{why}");
    }
}
