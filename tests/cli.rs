//! The command line's contract on the real binary: what it prints, and how it exits.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn andon(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_andon")).current_dir(dir).args(arguments).output().unwrap()
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn ten_mistakes_are_all_told_with_their_lines() {
    let output = andon(repository(), &["check", "-c", "tests/data/ten-mistakes.toml"]);
    assert_eq!(output.status.code(), Some(78));
    let told = stderr(&output);
    insta::assert_snapshot!(told);
    assert!(told.lines().filter(|l| l.contains("ten-mistakes.toml:")).count() >= 10, "{told}");
}

#[test]
fn a_config_that_is_not_there_is_a_bad_config() {
    let output = andon(repository(), &["run", "-c", "no/such.toml"]);
    assert_eq!(output.status.code(), Some(78));
    assert!(stderr(&output).contains("no/such.toml"), "{}", stderr(&output));
}

#[test]
fn wrong_usage_exits_2() {
    for wrong in [&["frobnicate"][..], &["run", "--fast"], &["backtest"], &["demo", "--seconds", "soon"], &[]] {
        assert_eq!(andon(repository(), wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn nobody_to_ask_is_a_failure_that_says_so() {
    let output = andon(repository(), &["status", "--url", "http://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is it running?"), "{}", stderr(&output));
}

const PUMPS: &str = r#"
[agent]
models_dir = "@MODELS@"
[[machine]]
match = "pump-*"
model = "pump-anomaly"
running = "speed > 1600"
[machine.alarm]
false_alarms = "1 per week"
"#;

#[cfg(feature = "demo")]
#[test]
fn a_backtest_finds_what_was_broken_and_does_so_twice_alike() {
    let dir = tempfile::tempdir().unwrap();
    let models = repository().join("models");
    std::fs::write(dir.path().join("andon.toml"), PUMPS.replace("@MODELS@", models.to_str().unwrap())).unwrap();
    let run = |arguments: &str| {
        let output = andon(dir.path(), &arguments.split_whitespace().collect::<Vec<_>>());
        assert!(output.status.success(), "{arguments}: {}", stderr(&output));
        stdout(&output)
    };
    run("demo --csv data.csv --kind pump --count 2 --seconds 300 --seed 77");
    let backtest = "backtest -c andon.toml --input data.csv --machine-column machine --label label --json --out";
    let first = run(&format!("{backtest} one.csv"));
    assert_eq!(first, run(&format!("{backtest} two.csv")));
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read("one.csv"), read("two.csv"));
    assert_eq!(read("one.csv").lines().next(), Some("timestamp,machine,score,p_value,pred,alarm,top_channel,label"));
    assert_eq!(read("one.csv").lines().count(), read("data.csv").lines().count(), "a row per row");
    let figures: serde_json::Value = serde_json::from_str(first.lines().last().unwrap()).unwrap();
    assert!(figures["far"].as_f64().unwrap() < 0.2, "{figures}");
    // Stuck and silent sensors are told as input alarms, so that not every event is a prediction.
    assert!(figures["events_detected"].as_f64() >= figures["events"].as_f64().map(|e| 0.4 * e), "{figures}");
}

#[cfg(feature = "demo")]
#[test]
fn the_demo_loses_nothing_and_finds_the_faults() {
    let dir = tempfile::tempdir().unwrap();
    let output = andon(dir.path(), &["demo", "--seconds", "60", "--json", "--web", "127.0.0.1:0"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let line = stdout(&output);
    let f: serde_json::Value = serde_json::from_str(line.lines().last().unwrap()).unwrap();
    let n = |key: &str| f[key].as_f64().unwrap_or_else(|| panic!("no {key} in {f}"));
    assert_eq!((n("lost"), n("duplicates")), (0.0, 0.0), "{f}");
    assert_eq!(n("records_forwarded"), n("records_stored"), "{f}");
    assert!(n("faults_injected") >= 9.0 && n("faults_detected") >= 0.9 * n("faults_injected"), "{f}");
    assert!(n("false_alarms") <= 1.0, "{f}");
    for key in ["seconds", "readings", "windows", "verdicts", "alarms", "p50_ms", "p99_ms"] {
        assert!(n(key) > 0.0, "{key}: {f}");
    }
}
