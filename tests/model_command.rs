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

#[test]
fn every_bundle_can_be_measured() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let bundles = ["models", "tests/data/sequence"].iter().flat_map(|d| std::fs::read_dir(root.join(d)).unwrap());
    let bundles = bundles.map(|e| e.unwrap().path()).filter(|p| p.join("model.json").exists());
    let mut measured = 0;
    for bundle in bundles {
        // A second of vibration takes minutes where nothing is optimised.
        if cfg!(debug_assertions) && bundle.ends_with("bearing-class") {
            continue;
        }
        let (code, text) = andon(&["bench", "--time", "1ms", "--json"], &bundle);
        assert_eq!(code, Some(0), "{text}");
        let figures: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        let plans: Vec<_> =
            figures["latency"].as_array().unwrap().iter().map(|l| (&l["plan"], &l["windows"])).collect();
        assert_eq!(
            format!("{plans:?}"),
            "[(Number(8), Number(1)), (Number(8), Number(8)), (Number(1), Number(1)), (Number(32), Number(32))]"
        );
        assert!(figures["latency"][0]["p50_us"].as_f64() <= figures["latency"][0]["p99_us"].as_f64());
        let golden = &figures["golden"];
        assert!(golden["cases"].as_u64() > Some(2) && golden["of_tolerance"].as_f64() <= Some(1.0), "{text}");
        measured += 1;
    }
    assert!(measured >= 8, "only {measured} bundles were found");
    let (code, text) = andon(&["bench", "--time", "1ms"], &shipped());
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("as the agent runs it, 1 of 8") && text.contains("plan made for 32"), "{text}");
    let (code, text) = andon(&["bench", "--memory", "40MiB"], &shipped());
    assert_eq!(code, Some(78), "{text}");
}

/// What the README shows as its table: each bundle in tract beside onnxruntime in the same run.
#[test]
fn the_bench_beside_onnxruntime_runs() {
    if cfg!(debug_assertions) {
        eprintln!("skipped: unoptimised code says nothing of speed");
        return;
    }
    let Some(python) = std::env::var_os("ANDON_TEST_PYTHON") else {
        eprintln!("skipped: no ANDON_TEST_PYTHON; tests/run sets it");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models.py");
    let out = Command::new(python).arg(script).args(["--bench", env!("CARGO_BIN_EXE_andon")]).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    println!("{text}");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(text.lines().filter(|l| l.contains(" | ") && !l.contains("ort 1")).count() >= 8, "{text}");
    assert_eq!(text.lines().filter(|l| l.starts_with("a step of ")).count(), 2, "{text}");
}
