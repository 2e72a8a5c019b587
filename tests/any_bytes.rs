//! Whatever bytes come in where bytes come in: an answer or an error, never a panic, and in bounded time.
//! Good inputs are bent a little, since pure noise never gets past the first character. Parsers with
//! tests like this beside them (payloads, topics, registers, replies, headers, journal, blocks) are not
//! repeated here. `ANDON_FUZZ_CASES` runs more than the few that every run has.
#![allow(missing_docs)]

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use andon::agent::audit;
use andon::config::{Config, Needs};
use andon::model::bundle::Bundle;
use andon::mqtt::Address;
use andon::pipeline::mode::Condition;
use proptest::prelude::*;

fn cases(usual: u32) -> ProptestConfig {
    let asked = std::env::var("ANDON_FUZZ_CASES").ok().and_then(|n| n.parse().ok());
    ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(asked.unwrap_or(usual)) }
}

fn repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// One way to spoil a text.
#[derive(Clone, Debug)]
enum Spoil {
    Cut(usize, usize),
    Twice(usize, usize),
    Put(usize, Vec<u8>),
    Swap(usize, usize),
}

fn spoil() -> impl Strategy<Value = Spoil> {
    let telling = prop::sample::select(vec![
        "\"",
        "'",
        "[",
        "]",
        "{",
        "}",
        "=",
        "\n",
        "\\u0000",
        "-1",
        "1e999",
        "NaN",
        "99999999999999999999",
        "null",
        "[[",
        "\u{feff}",
        "\r",
        "#",
        "${HOME}",
        "${",
        "..",
        "/",
        "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    ]);
    let bytes = prop_oneof![
        telling.prop_map(|t| t.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 1..8),
        (any::<u8>(), 1usize..2000).prop_map(|(b, n)| vec![b; n]),
    ];
    prop_oneof![
        (any::<usize>(), 1usize..60).prop_map(|(at, n)| Spoil::Cut(at, n)),
        (any::<usize>(), 1usize..60).prop_map(|(at, n)| Spoil::Twice(at, n)),
        (any::<usize>(), bytes).prop_map(|(at, b)| Spoil::Put(at, b)),
        (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Spoil::Swap(a, b)),
    ]
}

fn spoilt(good: &[u8], spoils: &[Spoil]) -> Vec<u8> {
    let mut out = good.to_vec();
    for spoil in spoils {
        let n = out.len().max(1);
        match spoil {
            Spoil::Cut(at, len) => {
                let at = at % n;
                out.drain(at.min(out.len())..(at + len).min(out.len()));
            }
            Spoil::Twice(at, len) => {
                let at = (at % n).min(out.len());
                let piece = out[at..(at + len).min(out.len())].to_vec();
                out.splice(at..at, piece);
            }
            Spoil::Put(at, bytes) => {
                let at = (at % n).min(out.len());
                out.splice(at..at, bytes.iter().copied());
            }
            Spoil::Swap(a, b) if !out.is_empty() => out.swap(a % n, b % n),
            Spoil::Swap(..) => {}
        }
    }
    out
}

fn spoils() -> impl Strategy<Value = Vec<Spoil>> {
    prop::collection::vec(spoil(), 1..6)
}

/// All settings alive, so that every reader is reached.
fn whole_config() -> String {
    let text = std::fs::read_to_string(repository("config/andon.toml")).expect("the config");
    let bare = |l: &str| match l.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => rest.to_owned(),
        _ => l.to_owned(),
    };
    text.lines().map(bare).collect::<Vec<_>>().join("\n")
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn configs(spoils in spoils()) {
        static GOOD: std::sync::OnceLock<String> = std::sync::OnceLock::new();
        let bytes = spoilt(GOOD.get_or_init(whole_config).as_bytes(), &spoils);
        let text = String::from_utf8_lossy(&bytes);
        if let Err(invalid) = Config::parse(&text, &repository("config/andon.toml"), Needs { source: true }) {
            prop_assert!(!invalid.problems.is_empty() && !invalid.to_string().is_empty());
        }
    }

    #[test]
    fn conditions(text in "[a-z0-9 ()<>=!._-]{0,60}|((not |\\()*[a-c] ?[<>]=? ?[0-9.e-]{0,6}\\)*( and | or )?){0,12}") {
        if let Ok(condition) = Condition::parse(&text) {
            let _ = condition.holds(&|signal: &str| (signal != "a").then_some(1.0));
            prop_assert!(condition.signals().len() <= 60);
        }
    }

    #[test]
    fn broker_urls(text in "(mqtts?|tcp|ssl)?(://)?.{0,40}") {
        let _ = Address::parse(&text);
    }

    #[test]
    fn audit_logs(spoils in spoils(), which in 0usize..8) {
        let mut ledger = audit::Ledger::default();
        let mut lines: Vec<String> = (0..8)
            .map(|i| {
                let at = andon::types::Time(i);
                ledger.write(&audit::Entry { at, who: "Ana", action: "ack", subject: "press-1", detail: "x" }).1
            })
            .collect();
        let good = lines[which].clone();
        lines[which] = String::from_utf8_lossy(&spoilt(good.as_bytes(), &spoils)).into_owned();
        let same = lines[which] == good;
        if audit::verify(lines.clone()).is_ok() && !same {
            // Only what JSON itself does not mind may have changed.
            let meant: serde_json::Value = serde_json::from_str(&lines[which]).expect("JSON");
            let was: serde_json::Value = serde_json::from_str(&good).expect("JSON");
            for (key, value) in was.as_object().expect("an object") {
                prop_assert_eq!(&meant[key], value);
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(120))]

    /// Manifests, golden cases and reference scores that were damaged or made to harm.
    #[test]
    fn bundles(spoils in spoils(), file in prop::sample::select(vec!["model.json", "golden.json", "reference.json"])) {
        static RUN: AtomicU64 = AtomicU64::new(0);
        let dir = std::env::temp_dir().join(format!("andon-any-{}-{}", std::process::id(), RUN.fetch_add(1, Ordering::Relaxed)));
        std::fs::create_dir_all(&dir).expect("a directory");
        for name in ["model.onnx", "model.json", "golden.json", "reference.json"] {
            let mut bytes = std::fs::read(repository("tests/data/one-step").join(name)).expect("a file");
            if name == file {
                bytes = spoilt(&bytes, &spoils);
            }
            std::fs::write(dir.join(name), bytes).expect("written");
        }
        let read = Bundle::read(&dir);
        std::fs::remove_dir_all(&dir).expect("removed");
        if let Err(error) = read {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    /// A damaged audit log's file is opened, cut to its last whole line, and goes on.
    #[test]
    fn audit_files(bytes in prop::collection::vec(any::<u8>(), 0..4000), text in ".{0,300}") {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(audit::file::NAME);
        std::fs::write(&path, [bytes, text.into_bytes()].concat()).expect("written");
        if let Ok(mut keeper) = audit::file::Keeper::open(dir.path()) {
            keeper.add(&["{\"number\":18446744073709551615}".into()]).expect("added");
        }
        let _ = audit::file::lines(&path);
    }
}
