//! How well `andon learn` and `andon backtest` find faults in public recordings, told as a table and
//! held against what the README claims. Runs where the data is (`ANDON_DATA=DIR`, else
//! `../shared/data`); says so and passes where it is not. The recordings are no part of the project.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

mod bearing;
mod explain;
mod figures;
mod stream;
mod turbofan;
use figures::{Figures, changepoint_score};

/// Rows of each recording that are learnt from, as its protocol has it.
const LEARNT: usize = 400;
/// What the README says of SKAB: F1 and the change-point score at least, false and missed alarms at
/// most, with what rounding there leaves.
const F1: f64 = 0.879;
const NAB: f64 = 37.6;
const FAR: f64 = 9.9;
const MAR: f64 = 15.0;
/// Default settings but for the model's name: no limit, no window is given.
const CONFIG: &str = "[agent]\nmodels_dir = \"models\"\n[[machine]]\nmatch = \"*\"\nmodel = \"mine\"\n";

fn data() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = std::env::var_os("ANDON_DATA").map_or_else(|| root.join("../shared/data"), PathBuf::from);
    if dir.is_dir() {
        return Some(dir);
    }
    eprintln!("skipped: no data in {}; set ANDON_DATA", dir.display());
    None
}

/// Runs the binary in a directory; its stdout.
fn andon(dir: &Path, arguments: &[&str]) -> String {
    attempt(dir, arguments).unwrap_or_else(|said| panic!("andon {}: {said}", arguments.join(" ")))
}

/// Its stdout, or what it said when it failed.
fn attempt(dir: &Path, arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_andon"));
    // glibc gives large blocks back to the kernel at once; a backtest asks for them again and again.
    command
        .envs(["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"].map(|name| (name, "67108864")));
    let output = command.current_dir(dir).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// One recording: what is true and what was said, row by row, without the rows learnt from.
struct Judged {
    name: String,
    /// Whether its number is odd.
    odd: bool,
    seconds: Vec<f64>,
    anomaly: Vec<bool>,
    changepoint: Vec<bool>,
    said: Vec<bool>,
}

/// Learns from the first rows, then judges the whole recording. The labels are not shown to either;
/// they are joined afterwards.
fn skab(recording: &Path) -> Judged {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("andon.toml"), CONFIG).unwrap();
    let truth = figures::table(recording, b';');
    let signals: Vec<usize> =
        (0..truth.0.len()).filter(|i| !matches!(truth.0[*i].as_str(), "anomaly" | "changepoint")).collect();
    let pick = |row: &[String]| signals.iter().map(|i| row[*i].as_str()).collect::<Vec<_>>().join(";");
    let rows: Vec<String> = std::iter::once(pick(&truth.0)).chain(truth.1.iter().map(|r| pick(r))).collect();
    fs::write(dir.path().join("data.csv"), rows.join("\n")).unwrap();
    let learnt = LEARNT.to_string();
    let input = ["-c", "andon.toml", "--input", "data.csv", "--machine", "pump"];
    andon(dir.path(), &[&["learn"], &input[..], &["--rows", &learnt, "--out", "models/mine"]].concat());
    andon(dir.path(), &[&["backtest"], &input[..], &["--out", "out.csv", "--json"]].concat());
    let (head, out) = figures::table(&dir.path().join("out.csv"), b',');
    let column = |head: &[String], name: &str| head.iter().position(|h| h == name).unwrap();
    let flags = |head: &[String], rows: &[Vec<String>], name: &str| -> Vec<bool> {
        let at = column(head, name);
        rows[LEARNT..].iter().map(|r| r[at].parse::<f64>().unwrap() > 0.0).collect()
    };
    assert_eq!(out.len(), truth.1.len(), "a row for each row");
    Judged {
        name: recording
            .components()
            .rev()
            .take(2)
            .map(|c| c.as_os_str().to_string_lossy())
            .collect::<Vec<_>>()
            .join(" of "),
        odd: recording.file_stem().unwrap().to_str().unwrap().parse::<u32>().unwrap() % 2 == 1,
        seconds: truth.1[LEARNT..].iter().map(|r| figures::seconds(&r[0])).collect(),
        anomaly: flags(&truth.0, &truth.1, "anomaly"),
        changepoint: flags(&truth.0, &truth.1, "changepoint"),
        said: flags(&head, &out, "pred"),
    }
}

fn recordings(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = ["valve1", "valve2"]
        .iter()
        .flat_map(|v| fs::read_dir(dir.join(v)).unwrap())
        .map(|e| e.unwrap().path())
        .collect();
    all.sort();
    all
}

/// In order, on as many threads as there are cores.
fn all_of<T: Sync, R: Send>(items: &[T], judge: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = || {
        let mut mine = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return mine };
            mine.push((at, judge(item)));
        }
    };
    let mut done: Vec<(usize, R)> = std::thread::scope(|s| {
        let running: Vec<_> = (0..threads).map(|_| s.spawn(work)).collect();
        running.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, j)| j).collect()
}

#[test]
fn faults_of_a_real_pump_are_found_with_default_settings() {
    let Some(dir) = data().map(|d| d.join("skab")).filter(|d| d.is_dir()) else { return };
    let judged = all_of(&recordings(&dir), |path| skab(path));
    let mut whole = Figures::default();
    println!("SKAB, learnt from the first {LEARNT} rows of each recording, default settings (1 per week)");
    println!("{:<24} {:>6} {:>7} {:>7}", "recording", "F1", "FAR %", "MAR %");
    for j in &judged {
        let one = Figures::of(&j.anomaly, &j.said);
        println!("{:<24} {:>6.3} {:>7.1} {:>7.1}", j.name, one.f1(), one.far(), one.mar());
        whole.add(&one);
    }
    let points = |j| -> (&[f64], &[bool], &[bool]) {
        let j: &Judged = j;
        (&j.seconds, &j.changepoint, &j.said)
    };
    let nab = changepoint_score(judged.iter().map(points));
    // Whether what holds for some of them holds for the others.
    for (half, odd) in [("even numbers", false), ("odd numbers", true)] {
        let of_half = || judged.iter().filter(|j| j.odd == odd);
        let mut figures = Figures::default();
        of_half().for_each(|j| figures.add(&Figures::of(&j.anomaly, &j.said)));
        let nab = changepoint_score(of_half().map(points));
        let (f1, far, mar) = (figures.f1(), figures.far(), figures.mar());
        println!("{half:<24} {f1:>6.3} {far:>7.1} {mar:>7.1}, change points {nab:.1}");
    }
    println!("{:<24} {:>6.3} {:>7.1} {:>7.1}", "all", whole.f1(), whole.far(), whole.mar());
    println!("change points, NAB standard: {nab:.1}; always alarming would score F1 {:.3}", whole.f1_if_always());
    assert_eq!(judged.len(), 20);
    // What the README says.
    assert!(whole.f1() >= F1 && whole.far() <= FAR && whole.mar() <= MAR, "the README claims more");
    assert!(nab >= NAB, "the README claims more: {nab}");
}
