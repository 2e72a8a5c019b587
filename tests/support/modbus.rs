//! Devices for the Modbus tests: pymodbus in a process of its own, and a raw TCP server that does
//! what no library would; and a running source to hold against them.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use andon::metrics::{Component, Shared};
use andon::settings::{Document, Surroundings};
use andon::source::modbus::{Config, Lines, run};
use andon::types::{Batch, Cause, Quality, Reading};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// What the tests wait for comes within a fraction of this, or never.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Reads the one `[[modbus]]` of a file.
pub fn config(text: &str) -> Config {
    let document = Document::parse(text, Surroundings::default());
    let config = Config::read(&document.root().sections("modbus")[0]);
    assert_eq!(document.into_problems(), [], "{text}");
    config
}

/// A source at a URL, then `keys`, then signals as [`source_text`] has them.
pub fn source_at(name: &str, url: &str, keys: &str, signals: &[(String, String)]) -> String {
    let signals = signals.iter().map(|(name, rest)| format!("[[modbus.signal]]\nname = \"{name}\"\n{rest}\n"));
    let head = format!("[[modbus]]\nname = \"{name}\"\nurl = \"{url}\"\nmachine = \"m\"\n{keys}\n");
    head + &signals.collect::<String>()
}

/// A source at `address`, then `keys`, then a signal of machine `m` for each of (name, rest).
pub fn source_text(address: SocketAddr, keys: &str, signals: &[(String, String)]) -> String {
    source_at("plc", &format!("tcp://{address}"), keys, signals)
}

/// Every value that a server holds, as a signal, so as to be compared with what it says it holds.
pub fn served(signals: &[Served]) -> Vec<(String, String)> {
    let order = |s: &Served| s.order.as_ref().map_or(String::new(), |o| format!("order = \"{o}\""));
    let text = |s: &Served| format!("at = \"{}\"\ntype = \"{}\"\n{}", s.at, s.r#type, order(s));
    signals.iter().enumerate().map(|(i, s)| (format!("s{i}"), text(s))).collect()
}

/// Signals r5, r7 … for plain u16 holding registers.
pub fn registers(at: impl IntoIterator<Item = u16>) -> Vec<(String, String)> {
    at.into_iter().map(|a| (format!("r{a}"), format!("at = \"holding:{a}\"\ntype = \"u16\""))).collect()
}

/// A source at work.
pub struct Running {
    pub shared: Shared,
    pub batches: mpsc::Receiver<Batch>,
    task: JoinHandle<()>,
}

impl Running {
    pub fn start(config: Config) -> Running {
        Running::on(config, &Lines::default())
    }

    /// One that shares serial lines with others.
    pub fn on(config: Config, lines: &Lines) -> Running {
        let shared = Shared::new();
        let (tx, batches) = mpsc::channel(1);
        let task = tokio::spawn(run(config, lines.clone(), shared.clone(), tx));
        Running { shared, batches, task }
    }

    pub async fn next(&mut self) -> Vec<Reading> {
        timeout(DEADLINE, self.batches.recv()).await.expect("a batch in time").expect("a source that runs").readings
    }

    /// The first round for which `wanted` holds.
    pub async fn until(&mut self, wanted: impl Fn(&[Reading]) -> bool) -> Vec<Reading> {
        let looking = async {
            loop {
                let readings = self.next().await;
                if wanted(&readings) {
                    return readings;
                }
            }
        };
        timeout(DEADLINE, looking).await.expect("what was waited for")
    }

    /// The board's line once `wanted` holds for it.
    pub async fn board(&mut self, wanted: impl Fn(&Component) -> bool) -> Component {
        let looking = async {
            loop {
                let component = self.shared.board.components().remove("source/plc");
                if let Some(component) = component.filter(|c| wanted(c)) {
                    return component;
                }
                let _ = timeout(Duration::from_millis(5), self.batches.recv()).await;
            }
        };
        timeout(DEADLINE, looking).await.expect("the board to say what was waited for")
    }

    pub fn metric(&self, line: &str) -> u64 {
        let text = self.shared.metrics.render();
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.trim().parse().ok());
        found.unwrap_or(0)
    }

    /// Stops it, which has to come to an end in time.
    pub async fn stop(mut self) {
        self.shared.stop.cancel();
        timeout(DEADLINE, &mut self.task).await.expect("an end").expect("no panic");
    }
}

pub fn all_good(readings: &[Reading]) -> bool {
    readings.iter().all(|r| r.quality == Quality::Good)
}

pub fn all_bad(cause: Cause) -> impl Fn(&[Reading]) -> bool {
    move |readings| readings.iter().all(|r| (r.quality, r.cause) == (Quality::Bad, cause))
}

pub fn of<'r>(readings: &'r [Reading], signal: &str) -> &'r Reading {
    readings.iter().find(|r| &*r.signal == signal).unwrap_or_else(|| panic!("no {signal} in {readings:?}"))
}

/// pymodbus, in its own process.
pub struct Pymodbus {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pub address: SocketAddr,
    pub signals: Vec<Served>,
    pub version: String,
}

/// One value that pymodbus holds, encoded by Python.
#[derive(Clone, Debug, Deserialize)]
pub struct Served {
    pub at: String,
    pub r#type: String,
    pub order: Option<String>,
    pub value: f64,
}

/// The first line of a server.
#[derive(Deserialize)]
pub struct Hello {
    pub port: u16,
    pub signals: Vec<Served>,
    pub version: String,
}

impl Pymodbus {
    pub fn start() -> Pymodbus {
        Pymodbus::with(&[])
    }

    /// An RTU device with units 1 and 2 at the end of a serial line.
    pub fn on_line(path: &std::path::Path) -> Pymodbus {
        Pymodbus::with(&[path.as_os_str()])
    }

    fn with(arguments: &[&std::ffi::OsStr]) -> Pymodbus {
        let root = env!("CARGO_MANIFEST_DIR");
        let python = std::env::var("ANDON_TEST_PYTHON").unwrap_or_else(|_| format!("{root}/target/venv/bin/python"));
        let mut child = Command::new(&python)
            .arg(format!("{root}/tests/support/pymodbus_server.py"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{python}: {e}. Run tests/run: it sets up the Python these tests need"));
        let stdin = child.stdin.take().expect("its input");
        let mut stdout = BufReader::new(child.stdout.take().expect("its output"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("its output");
        let hello: Hello = serde_json::from_str(&line).unwrap_or_else(|e| {
            panic!("no pymodbus in {python} ({e}). Run tests/run: it installs what these tests need")
        });
        let address = SocketAddr::from(([127, 0, 0, 1], hello.port));
        Pymodbus { child, stdin, stdout, address, signals: hello.signals, version: hello.version }
    }

    /// The requests since the last call: (function, address, count).
    pub fn requests(&mut self) -> Vec<(u8, u16, u16)> {
        writeln!(self.stdin).expect("a server that listens");
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("an answer");
        serde_json::from_str(&line).expect("a list of requests")
    }

    /// Stops the process as it stands: connections stay open, nothing is answered.
    pub fn freeze(&self) {
        kill_process(self.pid(), Signal::STOP).expect("frozen");
    }

    /// Lets it go on; it will answer what it was asked meanwhile.
    pub fn thaw(&self) {
        kill_process(self.pid(), Signal::CONT).expect("thawed");
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Pymodbus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request as it came over the wire.
#[derive(Copy, Clone, Debug)]
pub struct Asked {
    /// Which request on that connection, counted from 0.
    pub nth: usize,
    pub transaction: u16,
    pub function: u8,
    pub at: u16,
    pub count: u16,
}

impl Asked {
    /// A proper answer in which each register holds its own address.
    pub fn answer(&self) -> Vec<u8> {
        self.answer_as(self.transaction, (self.at..).take(self.count.into()))
    }

    /// An answer under any transaction number.
    pub fn answer_as(&self, transaction: u16, words: impl IntoIterator<Item = u16>) -> Vec<u8> {
        let words: Vec<u8> = words.into_iter().flat_map(u16::to_be_bytes).collect();
        let mut frame = transaction.to_be_bytes().to_vec();
        frame.extend([0, 0]);
        frame.extend((words.len() as u16 + 3).to_be_bytes());
        frame.extend([1, self.function, words.len() as u8]);
        frame.extend(words);
        frame
    }

    pub fn covers(&self, at: u16) -> bool {
        (self.at..).take(self.count.into()).any(|a| a == at)
    }
}

/// What a raw device does with a request.
pub enum Does {
    /// Sends these bytes after this time, and goes on listening meanwhile.
    Sends(Duration, Vec<u8>),
    /// Sends these bytes and closes the connection.
    SendsAndCloses(Vec<u8>),
    /// Closes the connection.
    Closes,
    /// Nothing at all.
    Ignores,
}

/// A TCP server that does to each request what the function says.
pub async fn raw_device(does: impl Fn(Asked) -> Does + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(raw_connection(stream, does.clone()));
        }
    });
    address
}

async fn raw_connection(stream: TcpStream, does: impl Fn(Asked) -> Does) {
    let (mut input, output) = stream.into_split();
    let output = std::sync::Arc::new(tokio::sync::Mutex::new(output));
    for nth in 0.. {
        let mut frame = [0; 12];
        if input.read_exact(&mut frame).await.is_err() {
            return;
        }
        let word = |i: usize| u16::from_be_bytes([frame[i], frame[i + 1]]);
        let asked = Asked { nth, transaction: word(0), function: frame[7], at: word(8), count: word(10) };
        match does(asked) {
            Does::Sends(after, bytes) => {
                let output = output.clone();
                tokio::spawn(async move {
                    sleep(after).await;
                    // The other side may have hung up by now; that is its right.
                    let _ = output.lock().await.write_all(&bytes).await;
                });
            }
            Does::SendsAndCloses(bytes) => {
                let _ = output.lock().await.write_all(&bytes).await;
                return;
            }
            Does::Closes => return,
            Does::Ignores => {}
        }
    }
}
