//! `andon model` and what the daemon does with models that come to it, the real binary, on good and on
//! broken bundles.
#![allow(clippy::unwrap_used)]

#[path = "model/bundles.rs"]
mod bundles;
#[path = "model/delivery.rs"]
mod delivery;
#[path = "model/guests.rs"]
mod guests;
#[path = "model/rollout.rs"]
mod rollout;
#[path = "model/signing.rs"]
mod signing;
#[path = "support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

fn andon(words: &[&str], bundle: &Path) -> (Option<i32>, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_andon")).arg("model").args(words).arg(bundle).output().unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// A copy of a shipped bundle, to break.
fn copy() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("bundle");
    std::fs::create_dir(&to).unwrap();
    for entry in std::fs::read_dir(shipped()).unwrap().flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    (dir, to)
}

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pump-anomaly")
}

#[test]
fn a_good_bundle_is_shown_and_passes() {
    let (code, text) = andon(&["inspect"], &shipped());
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("pump-anomaly version 1: Reconstruction\n"), "{text}");
    assert!(text.contains("  digest of model.onnx: as model.json says\n"), "{text}");
    assert!(text.contains("  input window FP32 [-1, 32, 8]\n"), "{text}");
    let (code, text) = andon(&["test"], &shipped());
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("pump-anomaly version 1: ") && text.ends_with("golden cases passed\n"), "{text}");
}

#[test]
fn a_changed_file_is_named() {
    let (_dir, bundle) = copy();
    let mut bytes = std::fs::read(bundle.join("model.onnx")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(bundle.join("model.onnx"), bytes).unwrap();
    for words in [["inspect"], ["test"]] {
        let (code, text) = andon(&words, &bundle);
        assert_eq!(code, Some(78), "{text}");
        assert!(text.contains("model.onnx has SHA-256 "), "{text}");
    }
}

#[test]
fn the_limits_hold() {
    let (code, text) = andon(&["test", "--memory", "40MiB"], &shipped());
    assert_eq!(code, Some(78), "{text}");
    let (code, text) = andon(&["test", "--timeout", "0s"], &shipped());
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("did not end within"), "{text}");
}
