//! The stack light: the one thing andon writes to equipment. Against pymodbus and libmodbus, a device
//! that lies, and through the whole agent up to the record of each write.
#![allow(clippy::unwrap_used, dead_code)]
#![cfg(feature = "demo")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use andon::metrics::{Health, Shared};
use andon::settings::{Document, Surroundings};
use andon::simulator::cloud::{Cloud, Options};
use andon::source::modbus::light::{self, Standing, Wrote};
use andon::source::modbus::plan::Span;
use andon::source::modbus::registers::Table;
use andon::source::modbus::{Config, Connection, Lines};
use andon::types::MachineState;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

#[path = "support/modbus.rs"]
mod support;
use support::*;
#[path = "support/pair.rs"]
mod pair;
use pair::Pair;
#[path = "support/libmodbus.rs"]
mod libmodbus;
use libmodbus::Libmodbus;
#[path = "support/mod.rs"]
mod agent;
use agent::daemon::{Daemon, until};

/// A light at work, without an agent around it.
struct Lit {
    shared: Shared,
    standing: watch::Sender<Standing>,
    wrote: mpsc::Receiver<Wrote>,
    task: JoinHandle<()>,
}

impl Lit {
    fn start(device: &Config, lines: &Lines, write: &str, lost: Duration) -> Lit {
        let document = Document::parse(write, Surroundings::default());
        let mut configs = light::Config::read_all(&document.root(), std::slice::from_ref(device));
        assert_eq!(document.into_problems(), [], "{write}");
        let mut config = configs.remove(0);
        config.lost = lost;
        let shared = Shared::new();
        let (standing, stand) = watch::channel(Standing::default());
        let (tell, wrote) = mpsc::channel(64);
        let task = tokio::spawn(light::run(config, device.clone(), lines.clone(), shared.clone(), stand, tell));
        Lit { shared, standing, wrote, task }
    }

    fn stand(&self, light: MachineState) {
        self.standing.send_replace([("m".into(), light)].into_iter().collect());
    }

    async fn next(&mut self) -> Wrote {
        tokio::time::timeout(DEADLINE, self.wrote.recv()).await.expect("a write").expect("a light")
    }

    /// Stops it; what it wrote until then.
    async fn stop(mut self) -> Vec<Wrote> {
        self.shared.stop.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.expect("an end").expect("no panic");
        let mut rest = Vec::new();
        while let Ok(wrote) = self.wrote.try_recv() {
            rest.push(wrote);
        }
        rest
    }
}

fn said(wrote: &Wrote) -> (&str, u16, &str) {
    assert_eq!(wrote.failure, None, "{wrote:?}");
    (&wrote.address, wrote.value, &wrote.reason)
}

#[tokio::test]
async fn a_light_shares_a_serial_line_with_those_who_read() {
    let line = Pair::new();
    let server = Libmodbus::start(Some(&line.theirs()));
    let lines = Lines::default();
    let url = line.url() + "&parity=none";
    let device = config(&source_at("plc", &url, "poll = \"10ms\"\ntimeout = \"5s\"", &served(&server.signals)));
    let mut source = Running::on(device.clone(), &lines);
    source.next().await;
    let write = "[[write]]\ndevice = \"plc\"\nwho = \"alarms\"\nregister = \"holding:950\"\n\
        values = { off = 0, green = 1, amber = 2, red = 4 }\nsafe = \"amber\"\n";
    let mut lit = Lit::start(&device, &lines, write, DEADLINE);
    let mut lamp = Connection::dial(&lines, &device.url, 1, DEADLINE).await.unwrap();
    let span = Span { table: Table::Holding, start: 950, count: 1 };
    assert_eq!(lamp.read(span).await, Ok(vec![0]), "nothing is touched before the engine has spoken");
    for (light, value, word) in
        [(MachineState::Green, 1, "green"), (MachineState::Red, 4, "red"), (MachineState::Off, 0, "off")]
    {
        lit.stand(light);
        let wrote = lit.next().await;
        assert_eq!(said(&wrote), ("holding:950", value, &*format!("{word}: as the machines stand")));
        assert_eq!(lamp.read(span).await, Ok(vec![value]));
        let readings = source.next().await;
        for (reading, served) in readings.iter().zip(&server.signals) {
            assert_eq!(reading.value, served.value, "{served:?}");
        }
    }
    let rest = lit.stop().await;
    assert_eq!(rest.iter().map(said).collect::<Vec<_>>(), [("holding:950", 2, "amber: the agent stops")]);
    assert_eq!(lamp.read(span).await, Ok(vec![2]));
    source.stop().await;
}

const COILS: &str =
    "[[write]]\ndevice = \"plc\"\nwho = \"alarms\"\ngreen = \"coil:8\"\namber = \"coil:9\"\nred = \"coil:10\"\n";

#[tokio::test]
async fn with_no_word_from_the_engine_it_goes_to_the_safe_state() {
    let server = Pymodbus::start();
    let device = config(&source_text(server.address, "timeout = \"10s\"", &registers([3000])));
    let mut lit = Lit::start(&device, &Lines::default(), COILS, Duration::from_millis(500));
    lit.stand(MachineState::Red);
    // pymodbus starts with 8 and 9 on.
    let wrote: Vec<Wrote> = [lit.next().await, lit.next().await, lit.next().await].into();
    let why = "red: as the machines stand";
    assert_eq!(
        wrote.iter().map(said).collect::<Vec<_>>(),
        [("coil:10", 1, why), ("coil:8", 0, why), ("coil:9", 0, why)]
    );
    assert_eq!(said(&lit.next().await), ("coil:10", 0, "off: nothing is heard of the machines"));
    lit.stand(MachineState::Amber);
    assert_eq!(said(&lit.next().await), ("coil:9", 1, "amber: as the machines stand"));
    assert_eq!(lit.stop().await.len(), 1);
}

#[tokio::test]
async fn a_device_that_only_says_it_has_done_it_is_found_out() {
    let writes = Arc::new(AtomicUsize::new(0));
    let counted = writes.clone();
    let address = raw_device(move |asked| {
        let head = [&asked.transaction.to_be_bytes()[..], &[0, 0, 0]].concat();
        let [a, b] = asked.at.to_be_bytes();
        let [c, d] = asked.count.to_be_bytes();
        Does::Sends(
            Duration::ZERO,
            match asked.function {
                5 => {
                    counted.fetch_add(1, Ordering::Relaxed);
                    [&head[..], &[6, 1, 5, a, b, c, d]].concat()
                }
                _ => [&head[..], &[4, 1, 1, 1, 0]].concat(),
            },
        )
    })
    .await;
    let device = config(&source_text(address, "timeout = \"10s\"", &registers([3000])));
    let mut lit = Lit::start(&device, &Lines::default(), COILS, DEADLINE);
    lit.stand(MachineState::Red);
    let wrote = lit.next().await;
    assert_eq!((&*wrote.address, wrote.value), ("coil:10", 1));
    assert_eq!(wrote.failure.as_deref(), Some("what was written is not what is read back"));
    let told = || lit.shared.board.components().remove("light/plc").is_some_and(|c| c.health == Health::Down);
    tokio::time::timeout(DEADLINE, async {
        while !told() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("told on the board");
    // It is tried again, with a rest between, and each try is told.
    let mut all = 1;
    while all < 3 {
        assert!(lit.next().await.failure.is_some());
        all += 1;
    }
    all += lit.stop().await.len();
    assert_eq!(all, writes.load(Ordering::Relaxed), "each write is told");
}

#[tokio::test]
async fn what_the_device_refuses_is_told() {
    let plc = andon::simulator::plc::Plc::start(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let device = config(&source_text(plc.address(), "timeout = \"10s\"", &registers([3000])));
    let mut lit = Lit::start(&device, &Lines::default(), COILS, DEADLINE);
    lit.stand(MachineState::Green);
    assert_eq!(lit.next().await.failure.as_deref(), Some("exception 1: illegal function"));
    lit.stop().await;
}

/// A request to a Modbus TCP device by hand: its answer behind the header.
fn by_hand(address: SocketAddr, pdu: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(&[&[0, 1, 0, 0, 0, pdu.len() as u8 + 1, 1], pdu].concat()).unwrap();
    let mut head = [0; 7];
    stream.read_exact(&mut head).unwrap();
    let mut rest = vec![0; usize::from(head[5]) - 1];
    stream.read_exact(&mut rest).unwrap();
    rest
}

/// Green, amber and red as pymodbus has them.
fn lamps(address: SocketAddr) -> [bool; 3] {
    let bits = by_hand(address, &[1, 0, 8, 0, 3])[2];
    [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0]
}

fn set_register(address: SocketAddr, at: u16, value: u16) {
    let ([a, b], [c, d]) = (at.to_be_bytes(), value.to_be_bytes());
    assert_eq!(by_hand(address, &[6, a, b, c, d]), [6, a, b, c, d]);
}

const AGENT: &str = r#"
[agent]
site = "test"
id = "gw"
data_dir = "@DIR@/data"
models_dir = "@DATA@"

[[source.modbus]]
name = "plc"
url = "tcp://@PLC@"
timeout = "10s"
poll = "100ms"
machine = "press"
[[source.modbus.signal]]
name = "count"
at = "holding:3000"
type = "u16"

[[machine]]
match = "*"
model = "one-step"
[machine.alarm]
threshold = 5000
off_delay = "0s"

[[write]]
device = "plc"
who = "alarms"
green = "coil:8"
amber = "coil:9"
red = "coil:10"
again = "300ms"

[cloud]
url = "@CLOUD@"

[web]
listen = "@WEB@"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn alarms_drive_the_light_and_each_write_is_on_record() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("events");
    let options = Options { log: Some(log.clone()), ..Options::default() };
    let cloud = Cloud::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let server = Pymodbus::start();
    let plc = server.address;
    let text = AGENT.replace("@PLC@", &plc.to_string()).replace("@CLOUD@", &cloud.url());
    tokio::task::spawn_blocking(move || {
        let mut daemon = Daemon::new(&text).ready();
        until("green while all is well", || lamps(plc) == [true, false, false]);
        set_register(plc, 3000, 6000);
        until("red in alarm", || lamps(plc) == [false, false, true]);
        // Somebody, or a PLC that was restarted, puts it out: it is put right.
        assert_eq!(by_hand(plc, &[5, 0, 10, 0, 0]).len(), 5);
        until("red again", || lamps(plc)[2]);
        set_register(plc, 3000, 7);
        until("over, but nobody has seen it", || lamps(plc) == [false, true, false]);
        let audits = || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            let events = text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
            events.filter(|e| e["type"] == "io.andon.audit.v1" && e["subject"] == "plc").collect::<Vec<_>>()
        };
        let last =
            || audits().iter().any(|e| e["data"]["detail"].as_str().unwrap().contains("amber: as the machines stand"));
        until("the writes are told to the cloud", last);
        assert!(daemon.terminate().success(), "{}", daemon.log());
        assert_eq!(lamps(plc), [false, false, false], "off when the agent stops");
        // What it wrote last is on record too, and goes out with the next start.
        let (head, tail) = (text.find("[[write]]").unwrap(), text.find("[cloud]").unwrap());
        daemon.configure(&(text[..head].to_owned() + &text[tail..]));
        daemon.start_ready();
        until("the last write is told", || {
            audits().iter().any(|e| e["data"]["detail"].as_str().unwrap().contains("off: the agent stops"))
        });
        assert_eq!(lamps(plc), [false, false, false], "without [[write]] nothing is written");
        assert!(daemon.terminate().success());
        let told: Vec<String> = (audits().iter()).map(|e| e["data"]["detail"].as_str().unwrap().to_owned()).collect();
        // How it found the lamps and what it knew first is left out: all the rest is in order.
        let mut rest = told.iter();
        for expected in [
            "coil:10 1 red: as the machines stand",
            "coil:8 0 red: as the machines stand",
            "coil:10 1 red: as the machines stand",
            "coil:9 1 amber: as the machines stand",
            "coil:10 0 amber: as the machines stand",
            "coil:9 0 off: the agent stops",
        ] {
            assert!(rest.any(|t| *t == format!("{expected}; verified")), "{expected} is not in its place in {told:#?}");
        }
        for event in audits() {
            assert_eq!((&event["subject"], &event["data"]["who"]), (&"plc".into(), &"alarms".into()));
            assert_eq!(event["data"]["action"], "write");
        }
    })
    .await
    .unwrap();
}
