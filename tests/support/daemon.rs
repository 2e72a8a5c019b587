//! `andon run` as a process: started on a config, told apart from ready by what it tells systemd,
//! killed or ended, started again on the same data, and asked over its own HTTP.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::mosquitto::free_port;

/// Longer than anything here takes, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// How much of its log is shown when a test fails.
const SHOWN_LOG: usize = 8_000;

/// The binary under test: the one cargo built, or the one `ANDON_BIN` names.
pub fn binary() -> PathBuf {
    std::env::var_os("ANDON_BIN").map_or_else(|| env!("CARGO_BIN_EXE_andon").into(), PathBuf::from)
}

/// Runs a command of the binary to its end, in a bare environment.
pub fn andon<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    let mut command = Command::new(binary());
    clear(&mut command).args(args).stdin(Stdio::null());
    let [out, err] = [(); 2].map(|()| tempfile::NamedTempFile::new().expect("a file"));
    command.stdout(out.reopen().expect("a file")).stderr(err.reopen().expect("a file"));
    let mut child = command.spawn().expect("andon starts");
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().expect("waiting") {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{command:?} does not end: {}", std::fs::read_to_string(err.path()).unwrap_or_default());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let read = |file: &tempfile::NamedTempFile| std::fs::read(file.path()).expect("reading");
    Output { status, stdout: read(&out), stderr: read(&err) }
}

/// Nothing of the caller's systemd or logging settings gets through.
fn clear(command: &mut Command) -> &mut Command {
    for name in ["RUST_LOG", "JOURNAL_STREAM", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "STATE_DIRECTORY"] {
        command.env_remove(name);
    }
    command
}

/// Where the repository keeps a thing.
pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Polls until it holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A daemon with a directory of its own, running or not.
pub struct Daemon {
    dir: tempfile::TempDir,
    web: u16,
    child: Option<Child>,
    notify: UnixDatagram,
    watchdog: Option<Duration>,
    heard: Vec<String>,
    environment: Vec<(OsString, OsString)>,
}

impl Daemon {
    /// Writes the config; nothing runs yet. `@DIR@` stands for the daemon's directory, `@WEB@` for
    /// its dashboard's address, `@DATA@` for the repository's `tests/data`, `@MODELS@` for `models`.
    pub fn new(config: &str) -> Daemon {
        let dir = tempfile::tempdir().expect("a directory");
        let notify = UnixDatagram::bind(dir.path().join("notify")).expect("a socket");
        notify.set_nonblocking(true).expect("a socket");
        let daemon = Daemon {
            dir,
            web: free_port(),
            child: None,
            notify,
            watchdog: None,
            heard: Vec::new(),
            environment: Vec::new(),
        };
        daemon.configure(config);
        daemon
    }

    /// Writes another config, for the next start.
    pub fn configure(&self, config: &str) {
        let path = |p: &Path| p.to_str().expect("a plain path").to_owned();
        let text = config
            .replace("@DIR@", &path(self.dir.path()))
            .replace("@WEB@", &format!("127.0.0.1:{}", self.web))
            .replace("@DATA@", &path(&repository("tests/data")))
            .replace("@MODELS@", &path(&repository("models")));
        std::fs::write(self.config(), text).expect("writing the config");
    }

    /// More environment for the next starts.
    pub fn environment<K: Into<OsString>, V: Into<OsString>>(&mut self, more: impl IntoIterator<Item = (K, V)>) {
        self.environment.extend(more.into_iter().map(|(k, v)| (k.into(), v.into())));
    }

    /// systemd's watchdog period for the next start.
    pub fn watchdog(&mut self, period: Duration) {
        self.watchdog = Some(period);
    }

    pub fn port(&self) -> u16 {
        self.web
    }

    pub fn config(&self) -> PathBuf {
        self.dir.path().join("andon.toml")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts it and does not wait.
    pub fn start(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        self.told();
        self.heard.clear();
        let log = File::options().create(true).append(true).open(self.log_path()).expect("a log");
        let mut command = Command::new(binary());
        clear(&mut command).arg("run").arg("-c").arg(self.config());
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        command.env("NOTIFY_SOCKET", self.dir.path().join("notify"));
        if let Some(period) = self.watchdog {
            command.env("WATCHDOG_USEC", period.as_micros().to_string());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().expect("andon starts"));
    }

    /// Starts it and waits until it says that it is ready.
    pub fn ready(mut self) -> Daemon {
        self.start_ready();
        self
    }

    /// The same, again.
    pub fn start_ready(&mut self) {
        self.start();
        self.wait_for("READY=1");
    }

    /// Waits until it has told systemd this.
    pub fn wait_for(&mut self, state: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.told();
            if self.heard.iter().any(|s| s == state) {
                return;
            }
            let ended = self.child.as_mut().and_then(|c| c.try_wait().expect("waiting"));
            assert!(ended.is_none(), "it ended with {ended:?} before it said {state}\n{}", self.log());
            assert!(Instant::now() < deadline, "it does not say {state}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The same, where it may end right after.
    pub fn wait_for_last(&mut self, state: &str) {
        until(state, || self.times_told(state) > 0);
    }

    /// All it has told systemd since it was started.
    pub fn heard(&mut self) -> &[String] {
        self.told();
        &self.heard
    }

    /// How often it has told systemd this since it was started.
    pub fn times_told(&mut self, state: &str) -> usize {
        self.told();
        self.heard.iter().filter(|s| *s == state).count()
    }

    /// Takes what has come in on the notification socket.
    fn told(&mut self) {
        let mut buffer = [0; 4096];
        while let Ok(n) = self.notify.recv(&mut buffer) {
            self.heard.extend(String::from_utf8_lossy(&buffer[..n]).lines().map(str::to_owned));
        }
    }

    /// Pulls the plug.
    pub fn kill9(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("a kill");
        let status = child.wait().expect("waiting");
        assert_eq!(status.signal(), Some(9), "it had ended by itself: {status}\n{}", self.log());
    }

    /// SIGTERM, without waiting for the end.
    pub fn ask_to_stop(&self) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), Signal::TERM).expect("a signal");
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it runs");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().expect("waiting") {
                return status;
            }
            if Instant::now() > deadline {
                self.child = Some(child);
                panic!("it does not end\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// SIGTERM, and its end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.ask_to_stop();
        self.wait()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|c| c.try_wait().expect("waiting").is_none())
    }

    /// All it has logged, over all its lives.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("stderr")
    }

    /// The answer of its HTTP server: status and body.
    pub fn get(&self, path: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.web))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{}\r\n\r\n", self.web)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        Ok((status, body.to_owned()))
    }

    /// Posts JSON: status and body of the answer.
    pub fn post(&self, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.web)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        let head = format!("POST {path} HTTP/1.0\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json", self.web);
        write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0), body.to_owned())
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// Its resident memory in KiB.
    pub fn memory(&self) -> u64 {
        let id = self.child.as_ref().expect("it runs").id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// Where its dashboard listens.
    pub fn web_port(&self) -> u16 {
        self.web
    }

    /// SIGHUP: it is to read its config again.
    pub fn hang_up(&self) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), Signal::HUP).expect("a signal");
    }

    /// `/api/v1/status`.
    pub fn status(&self) -> Value {
        let (status, body) = self.get("/api/v1/status").expect("an answer");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// The health and detail of a component; empty where there is none.
    pub fn component(&self, name: &str) -> (String, String) {
        let status = self.status();
        let text = |key| status["components"][name][key].as_str().unwrap_or("").to_owned();
        (text("health"), text("detail"))
    }

    /// The sum of a metric's samples whose labels contain `label`.
    pub fn metric(&self, sample: &str, label: &str) -> f64 {
        let (status, text) = self.get("/metrics").expect("an answer");
        assert_eq!(status, 200, "{text}");
        let mine = text.lines().filter_map(|l| l.strip_prefix(sample));
        let mine = mine.filter(|l| l.starts_with(['{', ' ']) && l.contains(label));
        mine.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).fold(0.0, |a, b| a + b)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let start = log.len().saturating_sub(SHOWN_LOG);
            let start = (start..log.len()).find(|i| log.is_char_boundary(*i)).unwrap_or(log.len());
            eprintln!("--- andon's log, its end ---\n{}", &log[start..]);
        }
    }
}
