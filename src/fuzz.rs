//! Every parser that bytes from outside reach, each as a function of bytes: an answer or an error, never
//! a panic, and what it accepts is sound. Held to that on a kept corpus and what grows from it, by the
//! tests below on every run, and by libFuzzer by hand (`tests/fuzz/guided.rs`).

use std::path::Path;
use std::sync::OnceLock;

use crate::agent::{audit, engine, input};
use crate::config::{Config, Needs};
use crate::forward::{cloud, delivery, inference as opinion, publish, reply};
use crate::model::bundle::Bundle;
use crate::model::signature::{self, PrivateKey, PublicKey};
use crate::model::unpack::unpack;
use crate::model::{Model, ModelError};
use crate::mqtt::Address;
use crate::pipeline::mode::Condition;
use crate::source;
use crate::source::modbus;
use crate::store;
use crate::types::{RecordId, Rollout, Time};
use crate::web::inference;

mod mutate;
#[cfg(test)]
mod tests;

pub use mutate::Mutator;

/// A parser: its name is that of its directory of the corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("access_token", cloud::any_bytes),
    ("audit_file", audit_file),
    ("audit_log", audit_log),
    ("broker_url", |bytes| drop(Address::parse(&text(bytes)))),
    ("bundle_archive", bundle_archive),
    ("bundle_golden", |bytes| bundle("golden.json", bytes)),
    ("bundle_manifest", |bytes| bundle("model.json", bytes)),
    ("bundle_onnx", bundle_onnx),
    ("bundle_reference", |bytes| bundle("reference.json", bytes)),
    ("bundle_signature", bundle_signature),
    ("cloud_reply", cloud_reply),
    ("condition", condition),
    ("config", config),
    ("desired_models", desired_models),
    ("inference_answer", opinion::any_bytes),
    ("inference_request", inference::any_bytes),
    ("journal_group", journal_group),
    ("key_pem", key_pem),
    ("modbus_learnt", modbus::any_bytes::learnt),
    ("modbus_map", modbus::any_bytes::map),
    ("modbus_profile", modbus::any_bytes::profile),
    ("modbus_rtu", modbus::any_bytes::rtu),
    ("modbus_tcp", modbus::any_bytes::tcp),
    ("modbus_url", modbus::any_bytes::url),
    ("mqtt_command", publish::any_bytes),
    ("payload_csv", source::any_bytes::csv),
    ("payload_influx", source::any_bytes::influx),
    ("payload_json", source::any_bytes::json),
    ("payload_number", source::any_bytes::number),
    ("payload_samples", source::any_bytes::samples),
    ("snapshot", engine::any_bytes::snapshot),
    ("sparkplug", source::any_bytes::sparkplug),
    ("store_block", store::any_bytes::block),
    ("store_cursors", store::any_bytes::cursors),
    ("store_items", store::any_bytes::items),
    ("store_manifest", store::any_bytes::manifest),
    ("store_segment", store::any_bytes::segment),
    ("topic_pattern", source::any_bytes::topic),
];

/// The target of that name.
pub fn target(name: &str) -> Option<fn(&[u8])> {
    TARGETS.iter().find(|t| t.0 == name).map(|t| t.1)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn config(bytes: &[u8]) {
    if let Err(invalid) = Config::parse(&text(bytes), &repository("config/andon.toml"), Needs { source: true }) {
        assert!(!invalid.problems.is_empty() && !invalid.to_string().is_empty());
    }
}

fn condition(bytes: &[u8]) {
    let text = text(bytes);
    if let Ok(condition) = Condition::parse(&text) {
        let _ = condition.holds(&|signal: &str| (signal != "a").then_some(1.0));
        assert!(condition.signals().iter().all(|s| !s.is_empty() && text.contains(s)));
    }
}

fn audit_log(bytes: &[u8]) {
    let lines: Vec<String> = text(bytes).lines().map(str::to_owned).collect();
    if let Err((line, why)) = audit::verify(lines.clone()) {
        assert!(line <= lines.len() + 1 && !why.is_empty());
    }
}

/// A damaged audit log's file is opened, cut to its last whole line, and goes on.
fn audit_file(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(audit::file::NAME);
    std::fs::write(&path, bytes).expect("written");
    if let Ok(mut keeper) = audit::file::Keeper::open(dir.path()) {
        keeper.add(&["{\"number\":18446744073709551615}".into()]).expect("added");
    }
    let _ = audit::file::lines(&path);
}

/// The small bundle of the tests, with one file in place of its own.
fn with_bundle<R>(file: &str, bytes: &[u8], read: impl FnOnce(&Path) -> R) -> R {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join(file), bytes).expect("written");
    for name in ["model.onnx", "model.json", "golden.json", "reference.json"].iter().filter(|n| **n != file) {
        let own = std::fs::read(repository("tests/data/one-step").join(name)).expect("a file");
        std::fs::write(dir.path().join(name), own).expect("written");
    }
    read(dir.path())
}

fn bundle(file: &str, bytes: &[u8]) {
    if let Err(error) = with_bundle(file, bytes, Bundle::read) {
        assert!(!error.to_string().is_empty());
    }
}

/// The graph with the digest it has, so that tract sees it. What may exhaust memory or never end is
/// judged in a process of its own (`andon model test`), so here files stay small.
fn bundle_onnx(bytes: &[u8]) {
    if bytes.len() > 4096 {
        return;
    }
    let manifest = std::fs::read_to_string(repository("tests/data/one-step/model.json")).expect("the manifest");
    let mut manifest: serde_json::Value = serde_json::from_str(&manifest).expect("JSON");
    manifest["digests"]["model.onnx"] = crate::model::bundle::sha256(bytes).into();
    let loaded: Result<_, ModelError> = with_bundle("model.onnx", bytes, |dir| {
        std::fs::write(dir.join("model.json"), manifest.to_string()).expect("written");
        Model::load(dir)
    });
    if let Err(error) = loaded {
        assert!(!error.to_string().is_empty());
    }
}

/// An archive as the cloud or a person delivers it: nothing lands beside the directory, nor too much in it.
fn bundle_archive(bytes: &[u8]) {
    const MAX_BYTES: u64 = 1 << 20;
    let dir = tempfile::tempdir().expect("a directory");
    let within = dir.path().join("bundle");
    std::fs::create_dir(&within).expect("a directory");
    if let Ok(path) = unpack(bytes, &within, MAX_BYTES) {
        assert!(path.starts_with(&within) && path.is_dir());
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 1, "something beside it");
    assert!(size(&within) <= MAX_BYTES);
}

fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).expect("readable").flatten();
    let each = |e: std::fs::DirEntry| match e.metadata().expect("readable") {
        meta if meta.is_dir() => size(&e.path()),
        meta => meta.len(),
    };
    entries.map(each).sum()
}

/// A signature by nobody we trust.
fn bundle_signature(bytes: &[u8]) {
    static KEY: OnceLock<PrivateKey> = OnceLock::new();
    let key = KEY.get_or_init(|| PrivateKey::generate().expect("a key").0).public();
    let verified = with_bundle("model.sig", bytes, |dir| signature::verify(dir, std::slice::from_ref(key)));
    assert!(!verified.expect_err("nobody has signed it").to_string().is_empty());
}

fn key_pem(bytes: &[u8]) {
    if let Ok(key) = PublicKey::from_pem(bytes) {
        let again = PublicKey::from_pem(key.pem().as_bytes()).expect("a key that was read");
        assert_eq!(again.fingerprint(), key.fingerprint());
    }
    let _ = PrivateKey::from_pem(bytes);
}

fn desired_models(bytes: &[u8]) {
    for files in [false, true] {
        if let Ok(desired) = delivery::parse(bytes, &Rollout::default(), files) {
            assert!(desired.wanted.iter().all(|w| w.sha256.len() == 64));
        }
    }
}

/// The first line holds status and `Retry-After`, the rest is the body.
fn cloud_reply(bytes: &[u8]) {
    let end = bytes.iter().position(|b| *b == b'\n').unwrap_or(bytes.len());
    let head = text(&bytes[..end]);
    let (status, after) = head.split_once(' ').unwrap_or((&head, ""));
    let answer = reply::Answer {
        status: status.parse().unwrap_or(200),
        retry_after: (!after.is_empty()).then(|| after.to_owned()),
        date: None,
        body: bytes.get(end + 1..).unwrap_or_default().to_vec(),
    };
    let ids = [RecordId([0; 16]), RecordId([1; 16]), RecordId([0xAB; 16])];
    if let reply::Reply::Each(fates) = reply::classify(&answer, &ids, Time(1_700_000_000_000_000_000)) {
        assert_eq!(fates.len(), ids.len());
    }
}

fn journal_group(bytes: &[u8]) {
    if let Ok(group) = input::Group::decode(bytes) {
        let again = input::Group::decode(&group.encode()).expect("what was read can be written and read");
        assert_eq!(again.inputs.len(), group.inputs.len());
    }
}
