//! A serial line for the Modbus tests: two pseudo-terminals that socat ties together.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Two serial devices, each the other end of the other.
pub struct Pair {
    socat: Child,
    dir: tempfile::TempDir,
}

impl Pair {
    pub fn new() -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let end = |name: &str| format!("pty,raw,echo=0,link={}", dir.path().join(name).display());
        let mut socat = Command::new("socat");
        let socat = socat.arg(end("ours")).arg(end("theirs")).stderr(Stdio::null()).spawn();
        let pair = Pair { socat: socat.expect("socat; tests/run installs it"), dir };
        let started = Instant::now();
        while !(pair.ours().exists() && pair.theirs().exists()) {
            assert!(started.elapsed() < Duration::from_secs(60), "socat makes no pseudo-terminals");
            std::thread::sleep(Duration::from_millis(5));
        }
        pair
    }

    pub fn ours(&self) -> PathBuf {
        self.dir.path().join("ours")
    }

    pub fn theirs(&self) -> PathBuf {
        self.dir.path().join("theirs")
    }

    pub fn url(&self) -> String {
        format!("rtu://{}?baud=115200", self.ours().display())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = self.socat.kill();
        let _ = self.socat.wait();
    }
}
