//! What the process does before it does anything: signals are kept from the first moment, and what it makes is its
//! user's alone.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

#[path = "support/mod.rs"]
mod support;

use support::daemon::{binary, until};

/// A process that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(config: &Path, umask: &str) -> Running {
        let script = format!("umask {umask}; exec \"$0\" run -c \"$1\"");
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(binary()).arg(config).stdin(Stdio::null());
        Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Whether the process catches the signal of this number.
    fn catches(&self, signal: u32) -> bool {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap_or_default();
        let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|c| u64::from_str_radix(c.trim(), 16).ok()).unwrap_or(0);
        caught & (1 << (signal - 1)) != 0
    }
}

fn config(dir: &Path) -> String {
    let data = dir.join("data");
    format!(
        "[agent]\nsite = \"s\"\nid = \"gw\"\ndata_dir = {data:?}\n[[source.mqtt]]\nname = \"shop\"\n\
         url = \"mqtt://127.0.0.1:1\"\n[[source.mqtt.subscribe]]\ntopic = \"plant/{{machine}}/{{signal}}\"\n\
         payload = \"number\"\n[[machine]]\nmatch = \"*\"\n[web]\nlisten = \"off\"\n"
    )
}

/// The config is a pipe that nobody has written yet: nothing but the handlers can have been done.
#[test]
fn a_hangup_before_the_config_is_read_does_not_end_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("andon.toml");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let mut running = Running::start(&pipe, "022");
    until("SIGHUP is caught", || running.catches(1));
    let pid = Pid::from_raw(running.0.id() as i32).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    std::fs::write(&pipe, config(dir.path())).unwrap();
    until("the store is there", || dir.path().join("data").is_dir());
    assert!(running.0.try_wait().unwrap().is_none(), "it runs");
}

#[test]
fn what_it_makes_is_not_for_others_whatever_the_umask() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("andon.toml");
    std::fs::write(&path, config(dir.path())).unwrap();
    let _running = Running::start(&path, "000");
    let data = dir.path().join("data");
    until("the library is there", || data.join("library/partial").is_dir());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data), 0o700);
    let mut open = vec![data];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten().map(|e| e.path()) {
            // Files come and go while it starts.
            let Ok(meta) = std::fs::symlink_metadata(&entry) else { continue };
            assert_eq!(meta.permissions().mode() & 0o007, 0, "{}", entry.display());
            if meta.is_dir() {
                open.push(entry);
            }
        }
    }
}
