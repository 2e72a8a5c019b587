//! Child processes that live to be killed: ignored tests of this very binary.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::support::daemon::PATIENCE;

/// A running child and what it says.
pub struct Life {
    child: Child,
    lines: mpsc::Receiver<String>,
    reader: Option<JoinHandle<()>>,
    heard: Vec<String>,
}

impl Life {
    /// Starts the ignored test of that name.
    pub fn start<K: AsRef<OsStr>, V: AsRef<OsStr>>(name: &str, environment: impl IntoIterator<Item = (K, V)>) -> Life {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", name, "--nocapture"]).envs(environment);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (tx, lines) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            let (mut lines, mut line) = (BufReader::new(stdout), String::new());
            // A line without its end was cut off by the kill.
            while lines.read_line(&mut line).is_ok_and(|n| n > 0) && line.ends_with('\n') {
                // The test runner has something to say too.
                let noise = line.trim().is_empty() || line.starts_with("running ");
                if !noise && tx.send(line.trim_end().to_owned()).is_err() {
                    break;
                }
                line.clear();
            }
        });
        Life { child, lines, reader: Some(reader), heard: Vec::new() }
    }

    /// Waits until it says something that fits.
    pub fn wait_for(&mut self, what: &str, fits: impl Fn(&str) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|e| panic!("waited in vain for {what}: {e}; heard {:?}", self.heard));
            let found = fits(&line);
            self.heard.push(line);
            if found {
                return;
            }
        }
    }

    /// Kills it after a while; all it said. It must not have ended by itself.
    pub fn kill_after(self, pause: Duration) -> Vec<String> {
        std::thread::sleep(pause);
        self.kill()
    }

    /// The same, now.
    pub fn kill(mut self) -> Vec<String> {
        let _ = self.child.kill();
        let status = self.child.wait().unwrap();
        let heard = self.end();
        let last = &heard[heard.len().saturating_sub(5)..];
        assert_eq!(status.signal(), Some(9), "the child had ended by itself with {status}; it said last: {last:?}");
        heard
    }

    /// Waits for its end; how it ended and all it said.
    pub fn join(mut self) -> (bool, Vec<String>) {
        let deadline = Instant::now() + PATIENCE;
        let mut status = None;
        while status.is_none() && Instant::now() < deadline {
            status = self.child.try_wait().unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        (status.is_some_and(|s| s.success()), self.end())
    }

    fn end(&mut self) -> Vec<String> {
        let _ = self.child.kill();
        self.child.wait().unwrap();
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.heard.extend(self.lines.try_iter());
        std::mem::take(&mut self.heard)
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// For children: says a whole line at a time, so that a kill cuts off at most the last one.
pub fn say(line: std::fmt::Arguments<'_>) {
    let line = format!("{line}\n");
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}
