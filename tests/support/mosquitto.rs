//! A real mosquitto on a port of its own, in a directory of its own, gone when the test is over.

use std::collections::BTreeSet;
use std::io::{Read, Seek, SeekFrom};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long mosquitto may take to listen or to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A broker that belongs to one test.
pub struct Mosquitto {
    child: Option<Child>,
    dir: tempfile::TempDir,
    port: u16,
}

impl Mosquitto {
    /// Open to everyone, queues without bound, sessions survive a restart.
    pub fn start() -> Mosquitto {
        Mosquitto::with("allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 1000\n")
    }

    /// With these lines of configuration; `{dir}` stands for the broker's directory. Listener,
    /// persistence and logging are taken care of.
    pub fn with(lines: &str) -> Mosquitto {
        Mosquitto::within(tempfile::tempdir().expect("a directory"), lines)
    }

    /// The same, in a directory where files for it have been put.
    pub fn within(dir: tempfile::TempDir, lines: &str) -> Mosquitto {
        let path = dir.path().to_str().expect("a plain path").to_owned();
        let lines = lines.replace("{dir}", &path);
        // Types add up; all of them is a line for each message, which costs the broker more than the message.
        let logged = if lines.contains("log_type") { "log_type information\n" } else { "log_type all\n" };
        for _ in 0..5 {
            let port = free_port();
            // `user root` only matters when the test runs as root: it keeps the directory writable.
            let config = format!(
                "listener {port} 127.0.0.1\nuser root\npersistence true\npersistence_location {path}/\n\
                 log_dest file {path}/log\n{logged}{lines}"
            );
            std::fs::write(dir.path().join("mosquitto.conf"), config).expect("writing the config");
            if let Some(child) = launch(dir.path(), port) {
                return Mosquitto { child: Some(child), dir, port };
            }
            // Someone else may have taken the port in between.
        }
        let log = std::fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        panic!("mosquitto does not start:\n{log}");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// All that it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Asks it to end, which makes it save its sessions, and waits.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ =
                rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM);
            let deadline = Instant::now() + PATIENCE;
            while child.try_wait().expect("waiting").is_none() {
                assert!(Instant::now() < deadline, "mosquitto does not stop");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Pulls the plug.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same port.
    pub fn restart(&mut self) {
        self.kill();
        self.child = Some(launch(self.dir.path(), self.port).expect("mosquitto starts again"));
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let last: Vec<&str> = log.lines().rev().take(60).collect();
            eprintln!("the broker's last words:\n{}", last.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
    }
}

/// A port that was free a moment ago, and that nobody in this process was given before: a test may have
/// killed who listened there, and mean to start it again. Below those that the kernel gives to outgoing
/// connections (from 32768 on Linux): one of them could take it meanwhile, even the one that dials it.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = fastrand::u16(15_000..32_000);
        let first = GIVEN.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
        if first && is_free(port) {
            return port;
        }
    }
}

/// Bound but never listened on: a child that another test forks meanwhile holds the socket for a moment,
/// and somebody who dials it then would think that who was to listen there does.
fn is_free(port: u16) -> bool {
    let bound = tokio::net::TcpSocket::new_v4().and_then(|socket| {
        socket.set_reuseaddr(true)?;
        socket.bind(([127, 0, 0, 1], port).into())
    });
    bound.is_ok()
}

/// The plugin that can refuse subscriptions; it comes with mosquitto.
pub fn dynamic_security() -> PathBuf {
    let name = "mosquitto_dynamic_security.so";
    let triplets = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|d| d.path());
    let all = triplets.chain(["/usr/lib".into(), "/usr/local/lib".into()]).map(|d| d.join(name));
    all.into_iter()
        .find(|p| p.is_file())
        .expect("mosquitto's plugin for dynamic security is not installed: see tests/run")
}

/// Runs it and waits until it says that it runs, and listens.
fn launch(dir: &Path, port: u16) -> Option<Child> {
    // The log goes on over restarts, and can be long.
    let log = dir.join("log");
    let before = std::fs::metadata(&log).map_or(0, |m| m.len());
    let said = || {
        let mut text = Vec::new();
        let mut file = std::fs::File::open(&log)?;
        file.seek(SeekFrom::Start(before))?;
        file.read_to_end(&mut text)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&text).contains(" running\n"))
    };
    let mut child = Command::new(binary())
        .arg("-c")
        .arg(dir.join("mosquitto.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("mosquitto can be run");
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if child.try_wait().expect("waiting").is_some() {
            return None;
        }
        if said().unwrap_or(false) && TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some(child);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
    None
}

fn binary() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(&path).map(|d| d.join("mosquitto")).chain(["/usr/sbin/mosquitto".into()]);
    all.into_iter()
        .find(|p| p.is_file())
        .expect("mosquitto is not installed: tests/run sets up all that the tests need")
}
