//! Runs the README's commands in a directory of their own: a copy of `config/` and `models/`, the
//! built binary as `andon`, and free ports in place of the usual ones.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a command may take, and what runs in the background to listen.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long what looks at the daemon may be asked again until it says what is expected.
const LOOK: Duration = Duration::from_secs(20);
/// How long a demo runs here.
const DEMO_SECONDS: &str = "2";

/// `cargo` where the README is tried: builds are done, and demos are short.
const CARGO: &str = r#"#!/bin/bash
[ "$1" = build ] && exit 0
[ "$1 $2 $3" = "run --release --" ] || { echo "not expected: cargo $*" >&2; exit 2; }
shift 3
exec andon "$@"
"#;

/// `andon` there.
const ANDON: &str = r#"#!/bin/bash
args=()
while [ $# -gt 0 ]; do
    if [ "${args[0]:-}" = demo ] && [ "$1" = --seconds ] && [[ " $* ${args[*]} " != *" --csv "* ]]; then shift 2; continue; fi
    args+=("$1"); shift
done
[ "${args[0]}" = demo ] && [[ " ${args[*]} " != *" --csv "* ]] && args+=(--seconds @SECONDS@ --web 127.0.0.1:@WEB@)
exec @ANDON@ "${args[@]}"
"#;

/// See the top of the file.
pub struct Shell {
    dir: tempfile::TempDir,
    ports: [(&'static str, u16); 2],
    background: Vec<(String, Child)>,
}

impl Shell {
    pub fn new(root: &Path) -> Shell {
        let dir = tempfile::tempdir().expect("a directory");
        let ports = [("1883", free_port()), ("8420", free_port())];
        let shell = Shell { dir, ports, background: Vec::new() };
        for (name, in_it) in [("config", true), ("models", false)] {
            copy(&root.join(name), &shell.at(name), &|text| if in_it { shell.mapped(&text) } else { text });
        }
        let web = shell.ports[1].1.to_string();
        // A config that does not say where the dashboard is means the usual place.
        let path = shell.at("config").join("minimal.toml");
        let text = std::fs::read_to_string(&path).expect("a config");
        std::fs::write(&path, format!("{text}\n[web]\nlisten = \"127.0.0.1:{web}\"\n")).expect("writing");
        let andon = ANDON.replace("@ANDON@", env!("CARGO_BIN_EXE_andon")).replace("@SECONDS@", DEMO_SECONDS);
        shell.script("bin/andon", &andon.replace("@WEB@", &web));
        shell.script("bin/cargo", CARGO);
        // The tests are what runs just now.
        let tests = root.join("tests/run");
        shell.script("tests/run", &format!("#!/bin/bash\ntest -x '{}'\n", tests.display()));
        shell
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn script(&self, path: &str, text: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.at(path);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("making it");
        std::fs::write(&path, text).expect("writing");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("making it runnable");
    }

    fn mapped(&self, text: &str) -> String {
        self.ports.iter().fold(text.to_owned(), |t, (usual, free)| t.replace(usual, &free.to_string()))
    }

    fn command(&self, line: &str) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut bash = Command::new("bash");
        bash.args(["-euc", "-o", "pipefail"]).arg(format!("exec 2>&1\n{line}")).current_dir(self.dir.path());
        bash.env("PATH", format!("{}:{path}:/usr/sbin", self.at("bin").display()));
        bash.env_remove("STATE_DIRECTORY").env_remove("RUST_LOG").stdin(Stdio::null());
        // A proxy would be asked for addresses on this machine.
        bash.env("no_proxy", "127.0.0.1").stdout(Stdio::piped());
        bash
    }

    /// Runs a block's lines one by one; together they have to say the expected lines in order.
    pub fn run(&mut self, lines: &[String], expected: &[String]) {
        let deadline = Instant::now() + LOOK;
        let mut said = Vec::new();
        for line in lines.iter().map(|l| l.trim()).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let line = self.mapped(line);
            // PATH is as it says already.
            if line.starts_with("export PATH=") {
                continue;
            }
            match port_of_service(&line) {
                Some(service) => self.start(&line, service),
                None => said.push((line.clone(), self.once(&line))),
            }
        }
        loop {
            let text: String = said.iter().map(|(_, text)| text.as_str()).collect();
            let Some(missing) = first_missing(&text, expected) else { return };
            assert!(Instant::now() < deadline, "{lines:?} should say {missing:?} but said:\n{text}");
            // What only looks may look again.
            let looks = |line: &str| ["andon status", "curl"].iter().any(|l| line.starts_with(l));
            assert!(said.iter().any(|(line, _)| looks(line)), "{lines:?} should say {missing:?} but said:\n{text}");
            std::thread::sleep(Duration::from_millis(100));
            for (line, text) in said.iter_mut().filter(|(line, _)| looks(line)) {
                *text = self.once(line);
            }
        }
    }

    fn once(&self, line: &str) -> String {
        let mut child = self.command(line).spawn().expect("bash");
        let mut out = child.stdout.take().expect("its output");
        let reading = std::thread::spawn(move || {
            let mut text = Vec::new();
            let _ = out.read_to_end(&mut text);
            String::from_utf8_lossy(&text).into_owned()
        });
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().expect("waiting") {
                break status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                panic!("`{line}` does not end");
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let text = reading.join().expect("its output");
        assert!(status.success(), "`{line}`: {status}\n{text}");
        text
    }

    /// Starts what goes on running, and waits until it listens.
    fn start(&mut self, line: &str, usual: &str) {
        let port = self.ports.iter().find(|(u, _)| *u == usual).expect("a port").1;
        let mut child = self.command(&format!("exec {line}")).stdout(Stdio::null()).spawn().expect("bash");
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = child.try_wait().expect("waiting") {
                panic!("`{line}` ended at once: {status}");
            }
            assert!(Instant::now() < deadline, "`{line}` does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        // Other tests' agents are not to hear what the reader's own is told.
        if line.starts_with("andon") {
            self.script("bin/pkill", &format!("#!/bin/bash\nexec kill \"$1\" {}\n", child.id()));
        }
        self.background.push((line.to_owned(), child));
    }

    /// Ends what runs in the background, the last one first: each has to end well.
    pub fn end(mut self) {
        while let Some((line, mut child)) = self.background.pop() {
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("asking it to end");
            let deadline = Instant::now() + PATIENCE;
            let status = loop {
                if let Some(status) = child.try_wait().expect("waiting") {
                    break status;
                }
                assert!(Instant::now() < deadline, "`{line}` does not end");
                std::thread::sleep(Duration::from_millis(10));
            };
            assert!(status.success(), "`{line}`: {status}");
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        for (_, child) in &mut self.background {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The usual port of a command that goes on running until it is told to stop.
fn port_of_service(line: &str) -> Option<&'static str> {
    if line.starts_with("mosquitto -p") {
        Some("1883")
    } else if line.starts_with("andon run") {
        Some("8420")
    } else {
        None
    }
}

/// The first expected line that is not there, in order. Any digits stand for any others, `…` for
/// anything.
fn first_missing<'e>(text: &str, expected: &'e [String]) -> Option<&'e String> {
    let mut lines = text.lines().map(without_digits);
    expected.iter().find(|e| {
        let wanted = without_digits(e);
        let parts: Vec<&str> = wanted.split('…').collect();
        !lines.any(|line| matches(line.trim_end(), &parts))
    })
}

fn matches(line: &str, parts: &[&str]) -> bool {
    let [first, middle @ ..] = parts else { return false };
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let Some((last, middle)) = middle.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Each number, with its point if it has one, becomes `0`.
fn without_digits(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.trim_end().chars().peekable();
    while let Some(c) = chars.next() {
        if !c.is_ascii_digit() {
            out.push(c);
            continue;
        }
        out.push('0');
        while chars.next_if(|c| c.is_ascii_digit() || *c == '.').is_some() {}
    }
    out
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port()
}

fn copy(from: &Path, to: &Path, change: &dyn Fn(String) -> String) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory").flatten() {
        let (path, target) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            copy(&path, &target, change);
            continue;
        }
        let bytes = std::fs::read(&path).expect("a file");
        let changed = match String::from_utf8(bytes) {
            Ok(text) => change(text).into_bytes(),
            Err(e) => e.into_bytes(),
        };
        std::fs::write(&target, changed).expect("writing");
    }
}

#[test]
fn output_is_compared_loosely_but_compared() {
    let expected = |e: &str| e.lines().map(String::from).collect::<Vec<_>>();
    assert_eq!(first_missing("a 12.5 b\nc\nd 7", &expected("a 3 b\nd 1234")), None);
    assert_eq!(first_missing("agent vm, data in /x", &expected("agent …, data in …")), None);
    assert_eq!(first_missing("b\na", &expected("a\nb")).map(String::as_str), Some("b"));
    assert!(first_missing("a 1 c", &expected("a 1 b")).is_some());
    assert!(first_missing("well", &expected("well done")).is_some());
}
