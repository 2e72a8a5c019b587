//! `andon learn` on the real binary: healthy data of a machine nobody trained for becomes a bundle
//! that finds what goes wrong, and data that teaches nothing is refused.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

const CONFIG: &str = r#"
[agent]
models_dir = "models"
[[machine]]
match = "pump-*"
model = "mine"
running = "speed > 1600"
[machine.alarm]
false_alarms = "1 per day"
"#;

fn andon(dir: &Path, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_andon"));
    command.current_dir(dir).args(arguments.split_whitespace()).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("andon.toml"), CONFIG).unwrap();
    dir
}

#[cfg(feature = "demo")]
#[test]
fn a_machine_nobody_trained_for_is_watched_after_one_command() {
    let dir = place();
    let run = |arguments: &str| {
        let output = andon(dir.path(), arguments);
        assert!(output.status.success(), "andon {arguments}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    run("demo --csv healthy.csv --kind pump --seconds 900 --no-faults --seed 31");
    run("demo --csv faulty.csv --kind pump --seconds 600 --seed 32");
    let told =
        run("learn -c andon.toml --input healthy.csv --machine pump-1 --ignore machine,label,fault --out models/mine");
    assert!(told.contains("self-test passed"), "{told}");
    let ignore = "--machine-column machine --label label --json";
    let healthy = run(&format!("backtest -c andon.toml --input healthy.csv {ignore}"));
    let faulty = run(&format!("backtest -c andon.toml --input faulty.csv {ignore}"));
    let figure = |text: &str, key: &str| -> f64 {
        let value: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        value[key].as_f64().unwrap_or_else(|| panic!("no {key} in {text}"))
    };
    assert!(figure(&healthy, "far") < 0.01, "{healthy}");
    // The process faults; stuck and silent sensors are told as input alarms, not as predictions.
    assert!(figure(&faulty, "events_detected") >= 0.4 * figure(&faulty, "events"), "{faulty}");
    assert!(figure(&faulty, "precision") > 0.5, "{faulty}");
}

#[test]
fn what_teaches_nothing_is_refused_with_a_reason() {
    let dir = place();
    let learn = |rows: &dyn Fn(i32) -> String, n: i32| {
        let rows: String = (0..n).map(|i| format!("2026-01-01 00:{:02}:{:02},{}\n", i / 60, i % 60, rows(i))).collect();
        std::fs::write(dir.path().join("data.csv"), format!("time,speed,flow\n{rows}")).unwrap();
        let output = andon(dir.path(), "learn -c andon.toml --input data.csv --machine pump-1 --out models/mine");
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(!dir.path().join("models/mine").exists(), "nothing is left behind");
        said(&output)
    };
    let wobble = |i: i32| f64::from(i * 7919 % 101) / 10.0;
    let few = learn(&|i| format!("{},{}", 2000.0 + wobble(i), wobble(i + 3)), 50);
    assert!(few.contains("only 21 full windows"), "{few}");
    let flat = learn(&|i| format!("{},5", 2000.0 + wobble(i)), 600);
    assert!(flat.contains("channel flow never changes"), "{flat}");
    let drifting =
        learn(&|i| format!("{},{}", 2000.0 + wobble(i), if i < 480 { wobble(i) } else { 300.0 + wobble(i) }), 600);
    assert!(drifting.contains("look unlike those before"), "{drifting}");
    let words = learn(&|_| "fast,5".into(), 600);
    assert!(words.contains("line 2: speed is \"fast\", not a number"), "{words}");
}
