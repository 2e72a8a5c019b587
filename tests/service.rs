//! andon as a systemd service: what it tells the manager, how it ends, and that the unit is sound.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use andon::settings::Secret;
use andon::simulator::cloud::{Cloud, Options};
use support::certificates;
use support::daemon::{Daemon, binary, repository, until};
use support::mosquitto::Mosquitto;
use support::publisher::publish;

mod support;

#[path = "service/package.rs"]
mod package;

/// `TimeoutStopSec` of the unit.
const STOP: Duration = Duration::from_secs(45);
/// 2025-01-01T00:00:00Z.
const EPOCH_MS: i64 = 1_735_689_600_000;

const CONFIG: &str = r#"
[agent]
site = "test/service"
id = "gw"
data_dir = "@DIR@/data"
models_dir = "@DATA@"

[[source.mqtt]]
name = "shop"
url = "@BROKER@"
[[source.mqtt.subscribe]]
topic = "plant/{machine}/{signal}"
value = "/value"
time = "/ts"
time_format = "unix_ms"

[[machine]]
match = "*"
model = "one-step"
[machine.alarm]
threshold = 1e6

[web]
listen = "@WEB@"
"#;

/// A broker that is not there.
const NOBODY: &str = "mqtt://127.0.0.1:1";

#[test]
fn it_tells_systemd_how_it_is() {
    let mut daemon = Daemon::new(&CONFIG.replace("@BROKER@", NOBODY));
    daemon.watchdog(Duration::from_secs(1));
    daemon.start_ready();
    until("the watchdog is fed again and again", || daemon.times_told("WATCHDOG=1") >= 8);
    assert!(daemon.is_running());
    daemon.ask_to_stop();
    daemon.wait_for_last("STOPPING=1");
    assert!(daemon.wait().success());
    assert_eq!(daemon.times_told("READY=1"), 1);
    assert_eq!(daemon.times_told("STOPPING=1"), 1);
    assert!(daemon.heard().iter().any(|s| s.starts_with("STATUS=")), "{:?}", daemon.heard());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_that_hangs_is_not_covered_for() {
    let broker = Mosquitto::start();
    // A model that takes minutes over one reading: its stage hangs, all others go on.
    let config = CONFIG.replace("@BROKER@", &broker.url()).replace("one-step", "hanging");
    let mut daemon = Daemon::new(&config);
    daemon.watchdog(Duration::from_secs(3));
    daemon.start_ready();
    until("the watchdog is fed", || daemon.times_told("WATCHDOG=1") >= 3);
    let message = |n: i64| ("plant/m1/count".to_owned(), format!("{{\"value\":1,\"ts\":{}}}", EPOCH_MS + n * 100));
    publish(&broker.url(), (0..20).map(message)).await;
    // On a busy machine a slow disk may be named with it.
    let named = |l: &str| l.contains("stages make no progress") && l.contains("engine");
    until("the hanging stage is named", || daemon.log().lines().any(named));
    let fed = daemon.times_told("WATCHDOG=1");
    // Twice the period: systemd would have killed it by now.
    let begun = Instant::now();
    until("twice the watchdog's period is over", || begun.elapsed() > Duration::from_secs(6));
    assert_eq!(daemon.times_told("WATCHDOG=1"), fed, "the watchdog is fed although a stage hangs");
    // Everybody else is well, and says what is not.
    until("it is not alive", || daemon.get("/health/live").is_ok_and(|(status, _)| status == 503));
    let (_, body) = daemon.get("/health/live").expect("an answer");
    assert!(body.contains("engine makes no progress"), "{body}");
    // systemd would have killed it by now. Without it the process ends by itself.
    let status = daemon.wait();
    assert_eq!(status.code(), Some(1), "{}", daemon.log());
    let log = daemon.log();
    assert!(log.contains("a stage has failed: has made no progress for 60 s"), "{log}");
    assert!(log.contains("stages have failed: engine: has made no progress for 60 s"), "{log}");
}

/// What is read from this path hangs from now on, as it does on a network drive that is gone.
fn hang(path: &std::path::Path) {
    let pipe = path.with_extension("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    fs::rename(&pipe, path).expect("a pipe in its place");
}

/// A daemon whose watchdog wants to be fed every three seconds, on a machine with four cores.
fn watched(config: &str) -> Daemon {
    let mut daemon = Daemon::new(config);
    daemon.watchdog(Duration::from_secs(3));
    daemon.environment([("TOKIO_WORKER_THREADS", "4")]);
    daemon
}

fn starves(daemon: &mut Daemon, stage: &str) {
    until("the hanging stage is named", || {
        daemon.log().lines().any(|l| l.contains("stages make no progress") && l.contains(stage))
    });
    let fed = daemon.times_told("WATCHDOG=1");
    let begun = Instant::now();
    until("twice the watchdog's period is over", || begun.elapsed() > Duration::from_secs(6));
    assert_eq!(daemon.times_told("WATCHDOG=1"), fed, "the watchdog is fed although {stage} hangs");
    daemon.kill9();
}

#[test]
fn a_device_whose_file_hangs_is_not_covered_for() {
    let device = "[[source.modbus]]\nname = \"plc\"\nurl = \"tcp://127.0.0.1:1\"\nmachine = \"m1\"\n\
                  signal = [{ name = \"count\", at = \"holding:1\", type = \"u16\" }]\n";
    let mut daemon =
        watched(&CONFIG.replace("@BROKER@", NOBODY).replace("[[machine]]", &format!("{device}[[machine]]")));
    // What was learnt of a device is read when its source starts.
    let learnt = daemon.dir().join("data/modbus");
    fs::create_dir_all(&learnt).expect("a directory");
    hang(&learnt.join(format!("plc-{:08x}.json", crc32fast::hash(b"plc"))));
    daemon.start_ready();
    starves(&mut daemon, "source/plc");
}

#[test]
fn a_broker_whose_certificate_hangs_is_not_covered_for() {
    let broker = "mqtts://127.0.0.1:1\"\ntls = { ca = \"@DIR@/ca.pem\" }\n#\"";
    let mut daemon = watched(&CONFIG.replace("@BROKER@\"", broker));
    certificates::certificates(daemon.dir());
    daemon.start_ready();
    until("the watchdog is fed though the broker is away", || daemon.times_told("WATCHDOG=1") >= 3);
    hang(&daemon.dir().join("ca.pem"));
    starves(&mut daemon, "source/shop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_whose_token_hangs_is_not_covered_for() {
    let options = Options { token: Some(Secret::new("the-right-one".into())), ..Options::default() };
    let cloud = Cloud::start(([127, 0, 0, 1], 0).into(), options).await.expect("a port");
    let section = format!("[cloud]\nurl = \"{}\"\ntoken_file = \"@DIR@/token\"\n", cloud.url());
    let mut daemon = watched(&(CONFIG.replace("@BROKER@", NOBODY) + &section));
    fs::write(daemon.dir().join("token"), "the-wrong-one").expect("written");
    daemon.start_ready();
    until("the token is refused", || daemon.component("cloud").0 == "down" || cloud.stats().requests > 0);
    until("the watchdog is fed though the cloud refuses", || daemon.times_told("WATCHDOG=1") >= 3);
    // A refused token is read again before the next try.
    hang(&daemon.dir().join("token"));
    starves(&mut daemon, "cloud");
}

#[test]
fn who_only_waits_for_others_is_well() {
    // They take connections and never say a word.
    let silent = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
    let [broker, plc, cloud] = [0, 1, 2].map(|i| silent[i].local_addr().expect("an address"));
    let more = format!(
        "[[source.modbus]]\nname = \"plc\"\nurl = \"tcp://{plc}\"\nmachine = \"m1\"\ntimeout = \"30s\"\n\
         signal = [{{ name = \"count\", at = \"holding:1\", type = \"u16\" }}]\n\
         [[write]]\ndevice = \"plc\"\nwho = \"alarms\"\nred = \"coil:1\"\n\
         [cloud]\nurl = \"http://{cloud}\"\n[publish]\nsource = \"shop\"\n"
    );
    let mut daemon = watched(&(CONFIG.replace("@BROKER@", &format!("mqtt://{broker}")) + &more));
    daemon.watchdog(Duration::from_secs(10));
    daemon.start_ready();
    // A quarter of the period each: longer than anybody may be silent.
    until("the watchdog is fed again and again", || daemon.times_told("WATCHDOG=1") >= 6);
    assert!(!daemon.log().contains("stages make no progress"), "{}", daemon.log());
    let (code, body) = daemon.get("/health/ready").expect("an answer");
    assert_eq!(code, 200, "{body}");
    daemon.kill9();
}

#[test]
fn without_a_watchdog_none_is_fed() {
    let mut daemon = Daemon::new(&CONFIG.replace("@BROKER@", NOBODY)).ready();
    until("it answers", || daemon.get("/health/ready").is_ok_and(|(status, _)| status == 200));
    assert!(daemon.terminate().success());
    assert_eq!(daemon.times_told("WATCHDOG=1"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains() {
    let broker = Mosquitto::start();
    let cloud = Cloud::start(([127, 0, 0, 1], 0).into(), Options::default()).await.expect("a port");
    let config = CONFIG.replace("@BROKER@", &broker.url()) + &format!("[cloud]\nurl = \"{}\"\n", cloud.url());
    let mut daemon = Daemon::new(&config).ready();
    until("it has subscribed", || daemon.component("source/shop").0 == "up");

    // Messages come without end; in the midst of them it is told to stop.
    let url = broker.url();
    let message = |n: i64| {
        let payload = format!("{{\"value\":{n},\"ts\":{}}}", EPOCH_MS + n / 10 * 100);
        (format!("plant/m{}/count", n % 10), payload)
    };
    let publishing = tokio::spawn(async move { publish(&url, (0..200_000).map(message)).await });
    until("some have been judged", || cloud.stats().distinct > 1_000);
    let begun = Instant::now();
    let status = daemon.terminate();
    let took = begun.elapsed();
    publishing.abort();
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    assert!(took < STOP, "it took {took:?}");
    let first_life = cloud.stats();
    println!("{} records at the cloud, stopped within {took:?}", first_life.distinct);

    // What the broker was told is safe is at the cloud: nothing waits in the store, and what comes
    // next is new.
    daemon.start_ready();
    assert_eq!(daemon.status()["records_waiting"].as_f64().unwrap_or(-1.0), 0.0, "{}", daemon.status());
    until("messages that were not acked come again", || cloud.stats().distinct > first_life.distinct);
    until("all is taken", || {
        let before = cloud.stats().received;
        std::thread::sleep(Duration::from_millis(500));
        cloud.stats().received == before && daemon.status()["records_waiting"].as_f64() == Some(0.0)
    });
    // mosquitto may drop acks it has not read when the next connection comes at once; what comes
    // again then is recognised.
    assert_eq!(daemon.metric("andon_readings_dropped_total", "late"), 0.0, "what comes again is known, not late");
    assert_eq!(cloud.stats().duplicates, 0);
    assert!(daemon.terminate().success());
}

/// Polls until systemd has been told a reload's end, and gives the last status.
fn reloaded(daemon: &mut Daemon, times: usize) -> String {
    daemon.hang_up();
    until("the reload has ended", || daemon.times_told("READY=1") == 1 + times);
    assert_eq!(daemon.times_told("RELOADING=1"), times);
    assert!(daemon.heard().iter().any(|s| s.strip_prefix("MONOTONIC_USEC=").is_some_and(|n| n.parse::<u64>().is_ok())));
    daemon.heard().iter().rev().find(|s| s.starts_with("STATUS=")).cloned().expect("a status")
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_takes_over_a_good_config_and_nothing_of_a_bad_one() {
    let broker = Mosquitto::start();
    let config = CONFIG.replace("@BROKER@", &broker.url());
    let mut daemon = Daemon::new(&config).ready();
    until("it has subscribed", || daemon.component("source/shop").0 == "up");
    let message = |n: i64| ("plant/m1/count".to_owned(), format!("{{\"value\":{n},\"ts\":{}}}", EPOCH_MS + n * 100));
    publish(&broker.url(), (0..50).map(message)).await;
    until("all is taken", || daemon.metric("andon_readings_total", "shop") == 50.0);
    let waiting = daemon.status()["records_waiting"].clone();

    // Broken in three ways: nothing changes, and each mistake is told with its line.
    let broken = config.replace("threshold = 1e6", "treshold = 0.5") + "[store]\nmax_bytes = \"2 apples\"\n";
    daemon.configure(&broken.replace("model = \"one-step\"", "model = \"no-such\""));
    let status = reloaded(&mut daemon, 1);
    assert!(status.contains("reload refused"), "{status}");
    let log = daemon.log();
    for part in ["nothing was changed", "andon.toml:", "treshold", "2 apples"] {
        assert!(log.contains(part), "{part} is not in {log}");
    }
    publish(&broker.url(), (50..60).map(message)).await;
    until("it goes on", || daemon.metric("andon_readings_total", "shop") == 60.0);
    assert_eq!(daemon.metric("andon_alarms_active", "anomaly"), 0.0);

    // A good one: the limit is in force at once, the log speaks more, and what needs a restart is named.
    let good = config
        .replace("threshold = 1e6", "threshold = 0.5\nseverity = 650")
        .replace("site = \"test/service\"", "site = \"test/other\"")
        + "[log]\nlevel = \"debug\"\n";
    daemon.configure(&good);
    let status = reloaded(&mut daemon, 2);
    assert!(
        status.contains("in force: log.level, machine[\"*\"].alarm.severity, machine[\"*\"].alarm.threshold"),
        "{status}"
    );
    assert!(status.contains("needs a restart: agent.site"), "{status}");
    publish(&broker.url(), (60..120).map(message)).await;
    until("the new limit is in force", || {
        let (_, body) = daemon.get("/api/v1/alarms").expect("an answer");
        body.contains("\"severity\":650")
    });

    // The connection is the one from the start, and what waited is still there.
    assert_eq!(daemon.metric("andon_source_connects_total", "shop"), 1.0);
    assert_eq!(daemon.metric("andon_readings_dropped_total", "duplicate"), 0.0);
    assert!(daemon.status()["records_waiting"].as_f64() >= waiting.as_f64());
    assert!(daemon.terminate().success());
    let audit = std::fs::read_to_string(daemon.dir().join("data/audit.jsonl")).expect("the audit log");
    assert!(audit.contains("\"who\":\"SIGHUP\",\"action\":\"config\""), "{audit}");
}

#[test]
fn sigterm_during_start_and_twice_is_no_trouble() {
    let mut daemon = Daemon::new(&CONFIG.replace("@BROKER@", NOBODY)).ready();
    daemon.ask_to_stop();
    daemon.ask_to_stop();
    assert!(daemon.wait().success(), "{}", daemon.log());
}

/// The unit, with the binary under test in place of the installed one and a config that is there.
fn unit(dir: &std::path::Path) -> std::path::PathBuf {
    let unit = fs::read_to_string(repository("systemd/andon.service")).expect("the unit");
    let unit = unit.replace("/usr/bin/andon", binary().to_str().expect("a plain path"));
    let path = dir.join("andon.service");
    fs::write(&path, unit).expect("writing");
    path
}

fn analyze(args: &[&str], unit: &std::path::Path) -> (bool, String) {
    let output = Command::new("systemd-analyze").args(args).arg(unit).output();
    let output = output.expect("systemd-analyze is not installed: tests/run sets up all that the tests need");
    let told = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&told).into_owned())
}

#[test]
fn the_unit_is_sound() {
    let dir = tempfile::tempdir().expect("a directory");
    let (passed, told) = analyze(&["verify", "--man=no"], &unit(dir.path()));
    assert!(passed, "{told}");
    let ours: Vec<&str> = told.lines().filter(|l| l.contains("andon")).collect();
    assert!(ours.is_empty(), "{told}");
}

#[test]
fn the_unit_exposes_little() {
    let dir = tempfile::tempdir().expect("a directory");
    // In tenths: at most 1.5 of 10.
    let (passed, told) = analyze(&["security", "--offline=true", "--threshold=15", "--no-pager"], &unit(dir.path()));
    assert!(passed && told.contains("Overall exposure level"), "{told}");
}

#[test]
fn the_unit_fits_the_binary() {
    let unit = fs::read_to_string(repository("systemd/andon.service")).expect("the unit");
    for line in [
        "Type=notify",
        "RestartPreventExitStatus=78",
        "User=andon",
        "StateDirectory=andon",
        "TimeoutStopSec=45s",
        "ExecReload=/bin/kill -HUP $MAINPID",
    ] {
        assert!(unit.lines().any(|l| l == line), "{line} is not in the unit");
    }
}
