//! `andon modbus read`, `probe` and `scan`, the real binary, against pymodbus and against devices
//! that are silent or refuse.
#![allow(clippy::unwrap_used, dead_code)]

use std::process::{Command, Output};
use std::time::Duration;

use andon::types::Time;
use serde_json::Value;

#[path = "support/modbus.rs"]
mod support;
use support::*;

/// Runs `andon modbus` with these words.
fn andon(words: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_andon"));
    command.arg("modbus").args(words.split_whitespace()).output().expect("andon runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The JSON lines it printed.
fn objects(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn read_gives_every_type_in_every_order_as_pymodbus_has_it() {
    let server = Pymodbus::start();
    let url = format!("tcp://{}", server.address);
    let at = |s: &Served| match &s.order {
        Some(order) => format!("--at {}:{}:{order}", s.at, s.r#type),
        None => format!("--at {}:{}", s.at, s.r#type),
    };
    let all: Vec<String> = server.signals.iter().map(at).collect();
    let out = andon(&format!("read {url} --timeout 20s --json {}", all.join(" ")));
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let lines = objects(&out);
    assert_eq!(lines.len(), server.signals.len());
    for (line, served) in lines.iter().zip(&server.signals) {
        let value = line["value"].as_f64().or(line["value"].as_bool().map(f64::from));
        assert_eq!((value, &line["quality"]), (Some(served.value), &Value::from("good")), "{served:?}");
    }
}

#[test]
fn read_has_type_order_scale_and_base_for_all() {
    let server = Pymodbus::start();
    let url = format!("tcp://{}", server.address);
    let float = server.signals.iter().find(|s| s.r#type == "f32" && s.order.as_deref() == Some("CDAB")).unwrap();
    let number: u16 = float.at.strip_prefix("holding:").unwrap().parse().unwrap();
    let rest = "--type f32 --order CDAB --timeout 20s --json";
    let before = Time::now().to_string();
    let digits = 40001 + u32::from(number);
    for at in [format!("--at {}", float.at), format!("--at holding:{} --base 1", number + 1), format!("--at {digits}")]
    {
        let out = andon(&format!("read {url} {at} {rest}"));
        assert_eq!(objects(&out)[0]["value"], 23.5, "{at}");
    }
    let out = andon(&format!("read {url} --at {} {rest} --scale 2 --offset -7", float.at));
    assert_eq!(objects(&out)[0]["value"], 40);
    let at = objects(&out)[0]["at"].as_str().unwrap().to_owned();
    assert!(*before <= *at && *at <= *Time::now().to_string() && at.ends_with('Z'), "{at}");
    let out = andon(&format!("read {url} --at holding:2100 --type string(10) --timeout 20s --json"));
    assert_eq!(objects(&out)[0]["value"], "Pump 7");
    let out = andon(&format!("read {url} --at holding:3000 --at holding:3001 --timeout 20s"));
    let shown: Vec<String> =
        stdout(&out).lines().map(|l| l.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(shown, ["holding:3000 3000", "holding:3001 3001"]);
}

#[test]
fn read_says_why_there_is_no_value_and_goes_on() {
    let server = Pymodbus::start();
    let url = format!("tcp://{}", server.address);
    let out = andon(&format!("read {url} --at holding:3010 --at holding:3011 --timeout 20s --json"));
    assert_eq!(out.status.code(), Some(1));
    assert!(stderr(&out).contains("andon: 1 of 2 values could not be read"), "{}", stderr(&out));
    let lines = objects(&out);
    assert_eq!((&lines[0]["value"], &lines[0]["quality"]), (&Value::Null, &Value::from("bad")));
    assert_eq!(lines[0]["reason"], "exception 2: illegal data address");
    assert!(lines[0]["at"].is_string());
    assert_eq!((&lines[1]["value"], &lines[1]["quality"]), (&Value::from(3011), &Value::from("good")));
    // Nobody there at all.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let out = andon(&format!("read tcp://{gone} --at holding:1 --json"));
    assert_eq!((out.status.code(), objects(&out)[0]["value"].clone()), (Some(1), Value::Null));
}

#[test]
fn wrong_usage_is_told_before_anything_is_dialed() {
    for (words, message) in [
        ("read tcp://127.0.0.1:1", "--at <ADDRESS>"),
        ("read tpc://127.0.0.1:1 --at holding:1", "\"tpc\" is not tcp"),
        ("read tcp://127.0.0.1:1 --at holding:1 --type f23", "did you mean `f32`?"),
        ("read tcp://127.0.0.1:1 --at holding:1:f32:CDAA", "should hold each of the letters"),
        ("read tcp://127.0.0.1:1 --at hodling:1", "\"hodling\" is not one of"),
        ("read tcp://127.0.0.1:1 --at coil:1:u16", "is a single bit"),
        ("read tcp://127.0.0.1:1 --at holding:65535:f32", "leaves no room"),
        ("read tcp://127.0.0.1:1 --at holding:1:string", "string(1) to string(250)"),
        ("probe tcp://127.0.0.1:1 --at coil:1", "is a single bit"),
        ("scan tcp://127.0.0.1:1 --units 1-300", "is not a list of units"),
        ("scan tcp://127.0.0.1:1 --timeout soon", "is not a duration"),
    ] {
        let out = andon(words);
        assert_eq!(out.status.code(), Some(2), "{words}: {}", stderr(&out));
        assert!(stderr(&out).contains(message), "{words}: {}", stderr(&out));
    }
}

#[test]
fn the_trace_shows_frames_and_what_they_mean() {
    let server = Pymodbus::start();
    let url = format!("tcp://{}", server.address);
    let out = andon(&format!("read {url} --at holding:3000 --at holding:3010 --timeout 20s --trace --json"));
    assert_eq!(
        stderr(&out).lines().take(4).collect::<Vec<_>>(),
        [
            "-> 00 01 00 00 00 06 01 03 0B B8 00 01  transaction 1, unit 1, function 3, read holding 3000, 1 register",
            "<- 00 01 00 00 00 05 01 03 02 0B B8  transaction 1, unit 1, function 3, 1 register of holding: 0BB8",
            "-> 00 02 00 00 00 06 01 03 0B C2 00 01  transaction 2, unit 1, function 3, read holding 3010, 1 register",
            "<- 00 02 00 00 00 03 01 83 02  transaction 2, unit 1, function 3, exception 2: illegal data address",
        ]
    );
    assert_eq!(objects(&out).len(), 2);
}

#[test]
fn probe_finds_the_type_and_order() {
    let server = Pymodbus::start();
    let url = format!("tcp://{}", server.address);
    let floats = server.signals.iter().filter(|s| s.r#type == "f32" && s.value == 23.5 && s.at.starts_with("holding"));
    let usual = floats.filter(|s| s.order.as_deref() != Some("BCDA"));
    let mut seen = 0;
    for served in usual {
        let out = andon(&format!("probe {url} --at {} --expect 23.5 --timeout 20s", served.at));
        let text = stdout(&out);
        let words: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words, ["*", "base", "0", "f32", served.order.as_deref().unwrap(), "23.5"], "{text}");
        let plausible = text.lines().filter(|l| l.starts_with('*')).count();
        assert!((1..=8).contains(&plausible), "{text}");
        assert!(text.lines().count() > 20, "{text}");
        // A manual that counts from 1.
        let number: u16 = served.at.strip_prefix("holding:").unwrap().parse().unwrap();
        let out = andon(&format!("probe {url} --at holding:{} --expect 23.5 --timeout 20s --json", number + 1));
        let best = objects(&out)[0].clone();
        assert_eq!((&best["base"], &best["plausible"]), (&Value::from(1), &Value::from(true)), "{best}");
        assert_eq!((&best["type"], best["order"].as_str()), (&Value::from("f32"), served.order.as_deref()));
        seen += 1;
    }
    assert_eq!(seen, 4);
}

#[test]
fn scan_finds_units_and_ranges() {
    let server = Pymodbus::start();
    let url = format!("tcp://{}", server.address);
    let out = andon(&format!("scan {url} --units 1 --addresses 2990-3040 --pause 0ms --timeout 20s --json"));
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    let found = objects(&out)[0].clone();
    assert_eq!(found["units"][0]["unit"], 1);
    let holding = &found["units"][0]["readable"]["holding"];
    assert_eq!(*holding, serde_json::json!([[3000, 3009], [3011, 3019], [3021, 3029]]), "{found}");
    assert_eq!(found["units"][0]["cut_short"], serde_json::json!({}));
    let out = andon(&format!("scan {url} --units 1 --addresses 2990-3040 --pause 0ms --timeout 20s"));
    let holding = stdout(&out).lines().find(|l| l.trim().starts_with("holding")).map(str::to_owned);
    assert_eq!(holding.as_deref(), Some("  holding   3000-3009, 3011-3019, 3021-3029"));
}

#[tokio::test]
async fn scan_passes_over_silent_units_and_rests_between_requests() {
    // Unit 1 answers here whatever unit is asked, so the others are not believed.
    let address = raw_device(|asked| Does::Sends(Duration::ZERO, asked.answer())).await;
    let words = format!("scan tcp://{address} --units 1-3 --units-only --pause 100ms --timeout 5s");
    let started = std::time::Instant::now();
    let out = tokio::task::spawn_blocking(move || andon(&words)).await.unwrap();
    assert_eq!(stdout(&out), "unit 1 answers\n");
    assert!(started.elapsed() >= Duration::from_millis(300));

    let silent = raw_device(|_| Does::Ignores).await;
    let words = format!("scan tcp://{silent} --units 5-6 --pause 0ms --timeout 100ms");
    let out = tokio::task::spawn_blocking(move || andon(&words)).await.unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(stderr(&out).contains("none of the 2 units answers at tcp://127.0.0.1:"), "{}", stderr(&out));
}

#[test]
fn a_map_becomes_a_profile_that_devices_use() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let map = "Name,Register,Type,Scale\nSpeed,40101,UINT16,0.1\nSerial,40200,STRING,\nEnergy,103,UDINT,\n";
    std::fs::write(path("map.csv"), map).unwrap();
    let words = format!("import {} --table holding --base 1 --order CDAB", path("map.csv"));
    let shown = andon(&words);
    assert_eq!(shown.status.code(), Some(0), "{}", stderr(&shown));
    assert_eq!(stderr(&shown), format!("{}:3: left out: is a text, and a signal is a number\n", path("map.csv")));
    let words = format!("{words} --out {}", path("drive.toml"));
    let out = andon(&words);
    assert_eq!(stdout(&out), format!("{}: 2 signals, 1 rows left out\n", path("drive.toml")));
    assert_eq!(std::fs::read_to_string(path("drive.toml")).unwrap(), stdout(&shown));
    let again = andon(&words);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("is there already; --force writes over it"), "{}", stderr(&again));

    let device = |n: u8| {
        let name = format!("[[source.modbus]]\nname = \"drive-{n}\"\nurl = \"rtu:///dev/ttyUSB7\"\nunit = {n}\n");
        name + &format!("machine = \"fan-{n}\"\nprofile = \"drive.toml\"\n")
    };
    let config = device(1) + &device(2) + "[[machine]]\nmatch = \"*\"\n";
    std::fs::write(path("andon.toml"), config).unwrap();
    let check = || {
        let out =
            Command::new(env!("CARGO_BIN_EXE_andon")).args(["check", "-c", &path("andon.toml")]).output().unwrap();
        (out.status.code(), stdout(&out) + &stderr(&out))
    };
    let (code, text) = check();
    assert!(code == Some(0) && text.contains("line /dev/ttyUSB7"), "{text}");
    // A mistake in the profile is told once, in its own place.
    let broken = std::fs::read_to_string(path("drive.toml")).unwrap().replace("u16", "u61");
    std::fs::write(path("drive.toml"), broken).unwrap();
    let (code, text) = check();
    assert_eq!(code, Some(78), "{text}");
    let told = "drive.toml:8: signal.type: \"u61\" is not one of";
    assert_eq!(text.matches(told).count(), 1, "{text}");
}
