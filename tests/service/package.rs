//! The Debian package, built from the binary under test, on a machine of its own: systemd starts in a
//! namespace over a layer on top of this machine's Debian, and the package lives its life there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use super::support::daemon::{binary, repository};

/// For all of the package's life; it takes some fifteen seconds.
const PATIENCE: &str = "300";

fn run(command: &mut Command) -> String {
    let output: Output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {told}");
    told
}

/// A directory that is no mount of its own, as an overlay's upper layer needs.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

/// The package in that version, from the binary that cargo has built for the tests.
fn package(dir: &Path, version: &str) -> PathBuf {
    let profile = binary().parent().and_then(Path::file_name).expect("target/PROFILE").to_owned();
    let path = dir.join(format!("{version}.deb"));
    let tools = repository("target/tools/bin");
    let search = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(env!("CARGO"));
    command.args(["deb", "--locked", "--offline", "--no-build", "--fast", "--compress-system"]);
    command
        .args(["--deb-version", version, "--profile"])
        .arg(profile)
        .arg("--output")
        .arg(&path)
        .current_dir(repository("."));
    run(command.env("PATH", format!("{}:{search}", tools.display())));
    path
}

/// The same package under a higher version; `dpkg-deb` is quicker about it.
fn later(dir: &Path, package: &Path, from: &str, to: &str) -> PathBuf {
    let (files, path) = (dir.join("files"), dir.join("later.deb"));
    run(Command::new("dpkg-deb").arg("--raw-extract").arg(package).arg(&files));
    let control = files.join("DEBIAN/control");
    let text = fs::read_to_string(&control).expect("the control file");
    assert!(text.contains(from), "{text}");
    fs::write(&control, text.replace(from, to)).expect("written");
    run(Command::new("dpkg-deb").args(["-Zgzip", "-z1", "--root-owner-group", "--build"]).arg(&files).arg(&path));
    path
}

/// Built once for all tests here.
fn packages() -> &'static (tempfile::TempDir, PathBuf, PathBuf) {
    static BUILT: OnceLock<(tempfile::TempDir, PathBuf, PathBuf)> = OnceLock::new();
    BUILT.get_or_init(|| {
        let dir = scratch();
        let old = package(dir.path(), "0.0.1-1");
        let new = later(dir.path(), &old, "0.0.1-1", "0.0.2-1");
        (dir, old, new)
    })
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn the_package_holds_what_it_should() {
    let (_, old, _) = packages();
    let listed = run(Command::new("dpkg-deb").arg("--contents").arg(old));
    // Mode, owner and path; sizes and times differ, and which examples there are.
    let lines = listed.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let lines = lines.map(|w| format!("{} {} {}", w[0], w[1], w[5..].join(" ")));
    let told = |l: &String| !l.contains("/doc/andon/examples/") && !l.contains("/share/andon/models/");
    let mut lines: Vec<String> = lines.filter(told).collect();
    for path in ["doc/andon/examples/andon.toml", "andon/models/pump-anomaly/model.onnx"] {
        assert!(listed.lines().any(|l| l.starts_with("-rw-r--r--") && l.ends_with(path)), "{path}: {listed}");
    }
    lines.sort_by(|a, b| a.split(' ').nth(2).cmp(&b.split(' ').nth(2)));
    insta::with_settings!({ prepend_module_to_snapshot => false, snapshot_path => "../snapshots" }, {
        insta::assert_snapshot!("package_contents", lines.join("\n"));
    });
    let conffiles = run(Command::new("dpkg-deb").arg("--info").arg(old).arg("conffiles"));
    assert_eq!(conffiles.trim(), "/etc/andon/andon.toml");
    let field = |name: &str| run(Command::new("dpkg-deb").arg("--field").arg(old).arg(name));
    assert!(field("Depends").contains("libc6 (>= "), "{}", field("Depends"));
    assert!(field("Depends").contains("systemd"), "{}", field("Depends"));
}

/// A mounted layer over this machine's files; taken down when dropped.
struct Layer(PathBuf);

impl Layer {
    fn over_everything(dir: &Path) -> Layer {
        for name in ["upper", "work", "root"] {
            fs::create_dir(dir.join(name)).expect("a directory");
        }
        let at = |name: &str| dir.join(name).display().to_string();
        let options = format!("lowerdir=/,upperdir={},workdir={}", at("upper"), at("work"));
        run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options, &at("root")]));
        Layer(dir.join("root"))
    }

    fn link(&self, path: &str, to: &str) {
        let path = self.0.join(path);
        let _ = fs::remove_file(&path);
        std::os::unix::fs::symlink(to, path).expect("a link");
    }
}

impl Drop for Layer {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// The part of what the script printed below a heading.
fn part<'a>(told: &'a str, heading: &str) -> &'a str {
    let (_, rest) = told.split_once(&format!("== {heading}\n")).unwrap_or_else(|| panic!("no {heading} in {told}"));
    rest.split_once("== ").map_or(rest, |(part, _)| part)
}

#[test]
fn the_package_lives_from_install_to_purge() {
    if !is_root() {
        println!("left out: only root can start a machine in a namespace");
        return;
    }
    let (_, old, new) = packages();
    let dir = scratch();
    let layer = Layer::over_everything(dir.path());
    let at = |name: &str| layer.0.join("package").join(name);
    fs::create_dir(layer.0.join("package")).expect("a directory");
    fs::create_dir(at("one-step")).expect("a directory");
    for entry in fs::read_dir(repository("tests/data/one-step")).expect("the model").flatten() {
        fs::copy(entry.path(), at("one-step").join(entry.file_name())).expect("copied");
    }
    let script = repository("tests/service/package.sh");
    for (from, to) in [(old, "old.deb"), (new, "new.deb"), (&script, "scenario")] {
        fs::copy(from, at(to)).expect("copied");
    }
    let unit = "[Unit]\nAfter=basic.target dbus.service\n[Service]\nType=oneshot\nExecStart=/package/scenario\n\
                StandardOutput=file:/package/told\nStandardError=file:/package/told\n";
    fs::write(layer.0.join("etc/systemd/system/scenario.service"), unit).expect("a unit");
    // Nothing of this machine's own timers, and a name of its own.
    layer.link("etc/systemd/system/timers.target", "/dev/null");
    // A container image may forbid packages to start anything.
    let _ = fs::remove_file(layer.0.join("usr/sbin/policy-rc.d"));
    let _ = fs::remove_file(layer.0.join("etc/machine-id"));
    fs::write(layer.0.join("etc/machine-id"), "").expect("no machine id");

    let mut machine = Command::new("timeout");
    machine.args([PATIENCE, "systemd-nspawn", "--quiet", "--private-network", "--register=no", "--keep-unit"]);
    machine.args(["--console=pipe", "--directory"]).arg(&layer.0).args(["--boot", "--", "--unit=scenario.service"]);
    let output = machine.stdin(Stdio::null()).output().expect("systemd-nspawn is not installed: tests/run does it");
    let told = fs::read_to_string(at("told")).unwrap_or_default();
    let console = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{told}\n{console}", output.status);
    println!("{told}");
    insta::with_settings!({ prepend_module_to_snapshot => false, snapshot_path => "../snapshots" }, {
        insta::assert_snapshot!("package_files", part(&told, "files").trim());
    });
    assert_eq!(part(&told, "unsafe files"), "");
    assert_eq!(part(&told, "left over"), "");
    assert!(told.contains("== end\n"), "{told}");
}
