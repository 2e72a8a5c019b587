//! Runs every target on its corpus and on what grows from it. `ANDON_FUZZ_CASES` runs more,
//! `ANDON_FUZZ_SEED` others, `ANDON_FUZZ_TARGET` one target only.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use super::*;

/// Mutations of each target in every run; those that write files or build models get fewer.
const CASES: u32 = 2_000;
/// One run of a parser on at most 64 KiB; a debug build on a busy machine included.
const LONGEST: Duration = Duration::from_secs(20);

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|n| n.parse().ok())
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = repository("tests/data/corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .flatten()
        .map(|e| e.path())
        .collect();
    files.sort();
    let read = |p: &std::path::PathBuf| std::fs::read(p).expect("readable");
    let corpus: Vec<Vec<u8>> = files.iter().map(read).collect();
    assert!(!corpus.is_empty(), "{} is empty", dir.display());
    corpus
}

/// Keeps what did harm where it can be looked at, and be added to the corpus.
fn run(name: &str, parse: fn(&[u8]), bytes: &[u8]) {
    let begun = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| parse(bytes)));
    let took = begun.elapsed();
    if outcome.is_err() || took > LONGEST {
        let path = repository("target").join(format!("fuzz-{name}-{:08x}", crc32fast::hash(bytes)));
        std::fs::write(&path, bytes).expect("written");
        panic!("{name} took {took:?} on {} bytes, {}", bytes.len(), path.display());
    }
}

/// The targets are shared out to a few tests, which run side by side.
fn part(which: usize, of: usize) {
    let seed = setting("ANDON_FUZZ_SEED").unwrap_or(1);
    let only = std::env::var("ANDON_FUZZ_TARGET").ok();
    let chosen = TARGETS.iter().skip(which).step_by(of).filter(|t| only.as_ref().is_none_or(|o| o == t.0));
    for (name, parse) in chosen {
        let corpus = corpus(name);
        corpus.iter().for_each(|bytes| run(name, *parse, bytes));
        let share = match *name {
            "bundle_onnx" => 20,
            name if name.starts_with("bundle") || name.ends_with("_file") || name == "config" => 5,
            _ => 1,
        };
        let cases = setting("ANDON_FUZZ_CASES").unwrap_or(u64::from(CASES / share));
        let mut mutator = Mutator::new(seed);
        let begun = Instant::now();
        (0..cases).for_each(|_| run(name, *parse, &mutator.next(&corpus)));
        println!("{name}: {} of the corpus, {cases} near it, {:.1?}", corpus.len(), begun.elapsed());
    }
}

#[test]
fn any_bytes_1() {
    part(0, 2);
}

#[test]
fn any_bytes_2() {
    part(1, 2);
}

#[test]
fn the_corpus_has_a_directory_for_each_target_and_no_other() {
    let there = std::fs::read_dir(repository("tests/data/corpus")).expect("the corpus").flatten();
    let mut there: Vec<String> = there.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    there.sort();
    assert_eq!(there, TARGETS.iter().map(|t| t.0).collect::<Vec<_>>());
}

#[test]
fn the_same_seed_makes_the_same_inputs() {
    let corpus = [b"one".to_vec(), b"another".to_vec()];
    let inputs = |seed| {
        let mut mutator = Mutator::new(seed);
        (0..100).map(|_| mutator.next(&corpus)).collect::<Vec<_>>()
    };
    assert_eq!(inputs(7), inputs(7));
    assert_ne!(inputs(7), inputs(8));
}

/// Writes the seeds that only the code itself can make: `cargo test --lib make_the_seeds -- --ignored`.
#[test]
#[ignore = "writes into the corpus"]
fn make_the_seeds() {
    let put = |target: &str, name: &str, bytes: &[u8]| {
        let dir = repository("tests/data/corpus").join(target);
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::write(dir.join(name), bytes).expect("written");
    };
    let mut ledger = audit::Ledger::default();
    let entry = |n| audit::Entry { at: Time(n), who: "Ana", action: "ack", subject: "press-1", detail: "seen" };
    let lines: Vec<String> = (0..3).map(|n| ledger.write(&entry(n)).1 + "\n").collect();
    put("audit_log", "chain", lines.concat().as_bytes());
    put("audit_file", "chain", lines.concat().as_bytes());
    put("audit_file", "torn", lines.concat().trim_end_matches(['}', '\n']).as_bytes());
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("model.json"), "{}").expect("written");
    let (key, pem) = PrivateKey::generate().expect("a key");
    signature::sign(dir.path(), &key).expect("signed");
    put("bundle_signature", "signed", &std::fs::read(dir.path().join("model.sig")).expect("readable"));
    put("key_pem", "private", pem.as_bytes());
    put("key_pem", "public", key.public().pem().as_bytes());
    put("journal_group", "readings", &journal());
    put("snapshot", "two-signals", &engine::any_bytes::seed());
    for (target, name, bytes) in store::any_bytes::seeds() {
        put(target, name, &bytes);
    }
}

fn journal() -> Vec<u8> {
    let good = |signal: &str, at| crate::types::Reading::good("press-1".into(), signal.into(), Time(at), 1.5);
    let inputs = vec![
        input::Input::Readings(Time(5), vec![good("flow", 1), good("speed", 2)]),
        input::Input::Tick(Time(7)),
        input::Input::Clock(Time(8)),
    ];
    input::Group { inputs }.encode()
}
