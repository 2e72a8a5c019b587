//! `andon model sign`, `verify` and `install`, the real binary, against PyPI's `model-signing`: what the
//! one signs the other verifies, and what one refuses so does the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use super::bundles::{Keys, archive, bundle, flip, openssl, sign};
use crate::support::daemon::{binary, repository};

fn andon(words: &[&str], paths: &[&Path]) -> (Option<i32>, String) {
    said(Command::new(binary()).arg("model").args(words).args(paths).output().unwrap())
}

fn said(out: Output) -> (Option<i32>, String) {
    (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

fn verify(bundle: &Path, key: &Path) -> (Option<i32>, String) {
    andon(&["verify", "--key"], &[key, bundle])
}

/// PyPI's command line.
fn pypi(words: &[&str], key: &Path, bundle: &Path) -> bool {
    let usual = repository("target/venv/bin/python").display().to_string();
    let python = std::env::var("ANDON_TEST_PYTHON").unwrap_or(usual);
    let mut command = Command::new(python);
    let signature = bundle.join("model.sig");
    command.args(["-m", "model_signing"]).args(&words[..2]).arg(bundle).arg("--signature").arg(signature);
    let out = command.arg(words[2]).arg(key).output().expect("python; tests/run installs what it needs");
    println!("model_signing {words:?}: {}", said(out.clone()).1.trim());
    out.status.success()
}

fn pypi_signs(keys: &Keys, bundle: &Path) -> bool {
    pypi(&["sign", "key", "--private_key"], &keys.private, bundle)
}

fn pypi_verifies(keys: &Keys, bundle: &Path) -> bool {
    pypi(&["verify", "key", "--public_key"], &keys.public, bundle)
}

fn fresh(dir: &Path, name: &str) -> PathBuf {
    let to = dir.join(name);
    bundle(&repository("models/pump-anomaly"), &to, "2", 2);
    to
}

#[test]
fn what_we_sign_pypi_verifies_and_the_other_way_round() {
    let dir = tempfile::tempdir().unwrap();
    for curve in ["P-256", "P-384"] {
        let keys = Keys::make(dir.path(), curve, curve);
        let ours = fresh(dir.path(), &format!("ours-{curve}"));
        sign(&ours, &keys);
        assert!(pypi_verifies(&keys, &ours), "{curve}: ours");
        let theirs = fresh(dir.path(), &format!("theirs-{curve}"));
        assert!(pypi_signs(&keys, &theirs), "{curve}");
        let (code, text) = verify(&theirs, &keys.public);
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("5 files as signed by "), "{text}");
        // Both refuse the same change.
        flip(&theirs.join("reference.json"));
        assert_eq!(verify(&theirs, &keys.public).0, Some(78));
        assert!(!pypi_verifies(&keys, &theirs));
    }
}

/// Made by model-signing 1.1.0; the specification shows its fingerprint and root digest as the example.
/// Source: sigstore/model-transparency, scripts/tests/v1.1.0-elliptic-key.
#[test]
fn a_signature_that_others_made_long_ago_verifies() {
    let (code, text) = verify(&repository("tests/data/oms"), &repository("tests/data/oms-key.pem"));
    assert_eq!(code, Some(0), "{text}");
    let key = "e8450dec4eb99dae995da9af1bc2cc9f76ed669ee2e744f57abba763df3e3f8e";
    assert!(text.contains(&format!("2 files as signed by {key}")), "{text}");
}

#[test]
fn what_was_changed_after_signing_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys::make(dir.path(), "maker", "P-256");
    let other = Keys::make(dir.path(), "other", "P-256");
    let mutation = |name: &str, why: &str, change: &dyn Fn(&Path)| {
        let bundle = fresh(dir.path(), name);
        assert!(pypi_signs(&keys, &bundle));
        change(&bundle);
        let (code, text) = verify(&bundle, &keys.public);
        assert_eq!(code, Some(78), "{name}: {text}");
        assert!(text.contains(why), "{name}: {text}");
    };
    for file in ["model.onnx", "model.json", "golden.json", "reference.json", "MODEL_CARD.md"] {
        mutation(&format!("flip-{file}"), "is not as it was signed", &|b| flip(&b.join(file)));
    }
    mutation("flip-sig", "model.sig", &|b| flip(&b.join("model.sig")));
    mutation("extra", "\"extra\" is not signed", &|b| fs::write(b.join("extra"), "").unwrap());
    mutation("missing", "is signed but missing", &|b| fs::remove_file(b.join("golden.json")).unwrap());
    mutation("renamed", "is not signed", &|b| fs::rename(b.join("golden.json"), b.join("gold.json")).unwrap());
    mutation("swapped", "not trusted", &|b| sign(b, &other));
    mutation("truncated", "no Sigstore bundle", &|b| {
        let text = fs::read(b.join("model.sig")).unwrap();
        fs::write(b.join("model.sig"), &text[..text.len() / 2]).unwrap();
    });
    mutation("link", "not a plain file", &|b| {
        fs::rename(b.join("model.onnx"), dir.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), b.join("model.onnx")).unwrap();
    });
    mutation("unsigned", "it is not signed", &|b| fs::remove_file(b.join("model.sig")).unwrap());
}

#[test]
fn keys_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let bundle = fresh(dir.path(), "bundle");
    let large = Keys::make(dir.path(), "large", "P-521");
    let (code, text) = andon(&["sign", "--key"], &[&large.private, &bundle]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("P-256 or P-384"), "{text}");
    let (code, text) = verify(&bundle, &large.private);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("its public half is wanted"), "{text}");
    // As older versions of openssl write them: the curve first, then the key in SEC 1.
    let old = Keys { private: dir.path().join("old.key"), public: dir.path().join("old.pem") };
    let (private, public) = (old.private.to_str().unwrap(), old.public.to_str().unwrap());
    openssl(&["ecparam", "-name", "secp384r1", "-genkey", "-out", private]);
    openssl(&["ec", "-in", private, "-pubout", "-out", public]);
    sign(&bundle, &old);
    assert_eq!(verify(&bundle, &old.public).0, Some(0));
}

#[test]
fn a_bundle_is_judged_and_then_installed() {
    let dir = tempfile::tempdir().unwrap();
    let keys = Keys::make(dir.path(), "maker", "P-256");
    let config = dir.path().join("andon.toml");
    let text = "[[source.mqtt]]\nname = \"shop\"\nurl = \"mqtt://127.0.0.1:1\"\n[[source.mqtt.subscribe]]\ntopic = \"p/{machine}/{signal}\"\n[agent]\ndata_dir = \"data\"\nmodels_dir = \"models\"\n[[machine]]\nmatch = \"pump-*\"\n\
                model = \"pump-anomaly\"\n[models]\ntrusted_keys = [\"maker.pem\"]\n";
    fs::write(&config, text).unwrap();
    let install = |path: &Path| andon(&["install", "-c"], &[&config, path]);
    let bundle = fresh(dir.path(), "bundle");
    let (code, text) = install(&bundle);
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("it is not signed"), "{text}");
    sign(&bundle, &keys);
    let (code, text) = install(&bundle);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("models/pump-anomaly: version 2, signed by "), "{text}");
    let placed = dir.path().join("models/pump-anomaly");
    assert_eq!(verify(&placed, &keys.public).0, Some(0));
    // Again is a downgrade, until somebody says that it is meant.
    let tar = dir.path().join("bundle.tar");
    fs::write(&tar, archive(&bundle)).unwrap();
    let (code, text) = install(&tar);
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("its sequence 2 is not above 2"), "{text}");
    let (code, text) = andon(&["install", "--allow-downgrade", "-c"], &[&config, &tar]);
    assert_eq!(code, Some(0), "{text}");
    assert!(dir.path().join("models/.pump-anomaly.previous/model.sig").is_file());
    let left: Vec<_> = fs::read_dir(dir.path().join("models")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    // The agent takes nothing that is not signed as long as keys are given.
    flip(&placed.join("MODEL_CARD.md"));
    let out = said(Command::new(binary()).arg("check").arg("-c").arg(&config).output().unwrap());
    assert!(out.1.contains("\"MODEL_CARD.md\" is not as it was signed"), "{}", out.1);
}
