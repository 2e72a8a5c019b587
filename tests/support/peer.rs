//! A Python program of `tests/support` as the other side: orders go in line by line, what it says comes
//! out as JSON, one value a line.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// Killed when dropped.
pub struct Peer {
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::UnboundedReceiver<Value>,
}

impl Peer {
    pub fn start(script: &str, arguments: &[&str]) -> Peer {
        let root = env!("CARGO_MANIFEST_DIR");
        let python = std::env::var("ANDON_TEST_PYTHON").unwrap_or_else(|_| format!("{root}/target/venv/bin/python"));
        let mut child = Command::new(&python)
            .arg(format!("{root}/tests/support/{script}"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{python}: {e}: tests/run sets up all that the tests need"));
        let (tx, lines) = mpsc::unbounded_channel();
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = tx.send(serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}")));
            }
        });
        let stdin = child.stdin.take().expect("piped");
        Peer { child, stdin, lines }
    }

    pub fn order(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").expect("it listens");
    }

    /// What it says next, whatever it is.
    pub async fn next(&mut self) -> Value {
        timeout(PATIENCE, self.lines.recv()).await.expect("a line in time").expect("it lives")
    }

    /// What it says next that has this key.
    pub async fn says(&mut self, key: &str) -> Value {
        loop {
            let line = self.next().await;
            if line.get(key).is_some() {
                return line;
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
