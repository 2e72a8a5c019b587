//! libmodbus as a device for the Modbus tests: a small program in C, built once for each test file.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::LazyLock;

use super::support::{Hello, Served};

static PROGRAM: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let out = dir.path().join("libmodbus_server");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/libmodbus_server.c");
    let mut cc = Command::new("cc");
    let done = cc.args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"]).arg(&out).args([source, "-lmodbus"]).output();
    let done = done.expect("a C compiler: see tests/run");
    assert!(done.status.success(), "libmodbus-dev? tests/run installs it. {}", String::from_utf8_lossy(&done.stderr));
    (dir, out)
});

/// Such a device, in its own process. It ends with its input.
pub struct Libmodbus {
    child: Child,
    _stdin: ChildStdin,
    pub address: SocketAddr,
    pub signals: Vec<Served>,
    pub version: String,
}

impl Libmodbus {
    /// Over TCP, or as unit 1 at the end of a serial line.
    pub fn start(line: Option<&Path>) -> Libmodbus {
        let mut child = Command::new(&PROGRAM.1)
            .args(line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program just built");
        let stdin = child.stdin.take().expect("its input");
        let mut hello = String::new();
        let stdout = child.stdout.take().expect("its output");
        BufReader::new(stdout).read_line(&mut hello).expect("its first line");
        let hello: Hello = serde_json::from_str(&hello).expect("what it holds");
        let address = SocketAddr::from(([127, 0, 0, 1], hello.port));
        Libmodbus { child, _stdin: stdin, address, signals: hello.signals, version: hello.version }
    }
}

impl Drop for Libmodbus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
