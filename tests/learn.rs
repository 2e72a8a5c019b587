//! `andon learn` on the real binary: healthy data of a machine nobody trained for becomes a bundle
//! that finds what goes wrong, and data that teaches nothing is refused.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use andon::agent::input::{Group, Input};
use andon::metrics::Shared;
use andon::store::{self, Commit, Store};
use andon::types::{Reading, Receipt, Time};

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
    // The gateway signs what it learns, and uses nothing that is not signed.
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        let output = command.current_dir(dir.path()).args(arguments.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "openssl {arguments}: {}", said(&output));
    };
    openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out gateway.key");
    openssl("pkey -in gateway.key -pubout -out gateway.pem");
    let models = "[models]\nsigning_key = \"gateway.key\"\nrequire_signature = true\n";
    std::fs::write(dir.path().join("andon.toml"), format!("{CONFIG}{models}")).unwrap();
    run("demo --csv healthy.csv --kind pump --seconds 900 --no-faults --seed 31");
    run("demo --csv faulty.csv --kind pump --seconds 600 --seed 32");
    let told =
        run("learn -c andon.toml --input healthy.csv --machine pump-1 --ignore machine,label,fault --out models/mine");
    assert!(told.contains("self-test passed"), "{told}");
    assert!(run("model verify models/mine --key gateway.pem").contains("5 files as signed by "));
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
fn what_the_agent_took_in_can_be_learnt_from_while_it_runs() {
    let dir = place();
    let config = format!("{CONFIG}\n").replace("[agent]", "[agent]\ndata_dir = \"data\"");
    std::fs::write(dir.path().join("andon.toml"), config).unwrap();
    std::fs::create_dir(dir.path().join("data")).unwrap();
    // Stays open, as under a running agent.
    let (store, _) =
        Store::open(&store::Config::default(), &dir.path().join("data"), &["cloud"], Shared::new()).unwrap();
    let wobble = |i: i64| (i * 7919 % 101) as f64 / 10.0;
    for part in 0..10 {
        let row = |i: i64| {
            let reading = |machine: &str, signal: &str, value| {
                Reading::good(machine.into(), signal.into(), Time(1_700_000_000_000_000_000 + i * 1_000_000_000), value)
            };
            let of = |m| [reading(m, "speed", 2000.0 + wobble(i)), reading(m, "flow", wobble(i * 3 + 1))];
            of("pump-1").into_iter().chain(of("pump-2"))
        };
        let readings = (part * 60..part * 60 + 60).flat_map(row).collect();
        let group = Group { inputs: vec![Input::Readings(Time::now(), readings)] };
        let (receipt, written) = Receipt::new();
        let commit = Commit { entry: Some(group.encode()), receipts: vec![receipt], ..Commit::default() };
        store.sender().blocking_send(commit).unwrap();
        written.blocking_recv().unwrap();
    }
    let learn = |more: &str| {
        let arguments = format!("learn -c andon.toml --from-journal 1h --out models/mine --machine {more}");
        andon(dir.path(), &arguments)
    };
    let told = learn("pump-1");
    assert!(told.status.success(), "{}", said(&told));
    assert!(said(&told).contains("learnt 2 channels"), "{}", said(&told));
    let card = std::fs::read_to_string(dir.path().join("models/mine/MODEL_CARD.md")).unwrap();
    assert!(card.contains("from the agent's journal"), "{card}");
    let none = learn("pump-3");
    assert_eq!(none.status.code(), Some(1));
    assert!(said(&none).contains("has no readings of pump-3"), "{}", said(&none));
    store.close().unwrap();
}

#[test]
fn a_channel_that_never_changes_is_left_out_and_said_to_be() {
    let dir = place();
    let wobble = |i: i32| f64::from(i * 7919 % 101) / 10.0;
    // The setpoint is changed when four fifths are over: too late to learn from.
    let row = |i: i32| {
        let setpoint = if i < 590 { 7 } else { 8 };
        format!("2026-01-01 00:{:02}:{:02},{},{},{setpoint}\n", i / 60, i % 60, 2000.0 + wobble(i), wobble(i + 3))
    };
    let rows: String = (0..600).map(row).collect();
    std::fs::write(dir.path().join("data.csv"), format!("time,speed,flow,setpoint\n{rows}")).unwrap();
    let learn = "learn -c andon.toml --input data.csv --machine pump-1 --out models/mine";
    let told = andon(dir.path(), learn);
    assert!(told.status.success(), "{}", said(&told));
    assert!(
        said(&told).contains("left out, since they do not change in the first four fifths of the data: setpoint"),
        "{}",
        said(&told)
    );
    assert!(said(&told).contains("learnt 2 channels"), "{}", said(&told));
    let card = std::fs::read_to_string(dir.path().join("models/mine/MODEL_CARD.md")).unwrap();
    assert!(
        card.contains("Left out, since they do not change in the first four fifths of the data: setpoint."),
        "{card}"
    );
    // Who names it wants it.
    let channels = "[machine.channels]\nspeed = \"speed\"\nflow = \"flow\"\nsetpoint = \"setpoint\"\n";
    std::fs::write(dir.path().join("andon.toml"), format!("{CONFIG}{channels}")).unwrap();
    let told = andon(dir.path(), learn);
    assert!(!told.status.success() && said(&told).contains("channel setpoint never changes"), "{}", said(&told));
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
    assert!(flat.contains("channel flow never changes") && flat.contains("--ignore flow)"), "{flat}");
    let still = learn(&|_| "2000,5".into(), 600);
    assert!(still.contains("channels speed, flow never change") && still.contains("--ignore speed,flow)"), "{still}");
    let drifting =
        learn(&|i| format!("{},{}", 2000.0 + wobble(i), if i < 480 { wobble(i) } else { 300.0 + wobble(i) }), 600);
    assert!(drifting.contains("look unlike those before"), "{drifting}");
    let words = learn(&|_| "fast,5".into(), 600);
    assert!(words.contains("line 2: speed is \"fast\", not a number"), "{words}");
}
