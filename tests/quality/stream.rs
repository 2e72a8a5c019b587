//! Anomalies in single signals (Numenta's benchmark, NAB): learnt from the first 15 % of each file,
//! default settings, the score of every row as `andon backtest` writes it.

use std::fs;
use std::path::Path;

use super::figures::{self, Stream};
use super::{CONFIG, all_of, andon, data};

/// NAB's standard profile at least; the README says 61.3.
const SCORE: f64 = 60.0;
/// NAB's probationary part: this share of a file, and no more rows than this.
const PROBATION: (f64, usize) = (0.15, 750);

fn scores(file: &Path, learnt: usize) -> Option<Vec<f64>> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("andon.toml"), CONFIG).unwrap();
    fs::copy(file, dir.path().join("data.csv")).unwrap();
    let rows = learnt.to_string();
    let input = ["-c", "andon.toml", "--input", "data.csv", "--machine", "m"];
    // Nobody says that these rows are healthy, as `learn` would like it.
    let learn = [&["learn"], &input[..], &["--rows", &rows, "--out", "models/mine", "--force"]].concat();
    if let Err(said) = super::attempt(dir.path(), &learn) {
        assert!(said.contains("never changes") || said.contains("full windows of healthy running"), "{said}");
        return None;
    }
    andon(dir.path(), &[&["backtest"], &input[..], &["--out", "out.csv", "--json"]].concat());
    let (head, out) = figures::table(&dir.path().join("out.csv"), b',');
    let at = head.iter().position(|h| h == "score").unwrap();
    Some(out.iter().map(|r| r[at].parse().unwrap_or(0.0)).collect())
}

/// One file: its rows' scores and its windows, joined after it was judged.
fn stream(root: &Path, name: &str, windows: &serde_json::Value) -> Stream {
    let file = root.join("data").join(name);
    let (_, rows) = figures::table(&file, b',');
    let learnt = ((PROBATION.0 * rows.len() as f64) as usize).min(PROBATION.1);
    let scores = scores(&file, learnt);
    let refused = scores.is_none();
    let scores = scores.unwrap_or_else(|| vec![0.0; rows.len()]);
    assert_eq!(scores.len(), rows.len(), "a row for each row");
    // Times of this form are in the order of their letters.
    let place = |pair: &serde_json::Value, i: usize| pair[i].as_str().unwrap()[..19].to_owned();
    let window = |pair: &serde_json::Value| {
        let (from, to) = (place(pair, 0), place(pair, 1));
        (rows.partition_point(|r| r[0] < from), rows.partition_point(|r| r[0] <= to).saturating_sub(1))
    };
    let windows = windows.as_array().unwrap().iter().map(window).filter(|w| w.1 >= learnt).collect();
    Stream { name: name.to_owned(), scores, learnt, windows, refused }
}

#[test]
fn anomalies_in_single_signals_are_found_with_default_settings() {
    let Some(root) = data().map(|d| d.join("nab")).filter(|d| d.is_dir()) else { return };
    if cfg!(debug_assertions) {
        eprintln!("skipped: 365,000 windows take an hour without --release");
        return;
    }
    let labels = fs::read(root.join("labels/combined_windows.json")).unwrap();
    let labels: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&labels).unwrap();
    let names: Vec<&String> = labels.keys().collect();
    let streams = all_of(&names, |name| stream(&root, name, &labels[*name]));
    if let Some(dir) = std::env::var_os("ANDON_NAB_OUT") {
        keep(Path::new(&dir), &root, &streams);
    }
    let all: Vec<&Stream> = streams.iter().collect();
    let (score, threshold) = figures::stream_score(&all);
    println!("NAB, learnt from the first 15 % of each file (at most 750 rows), default settings");
    println!("{:<24} {:>6} {:>8} {:>9}", "files", "number", "windows", "standard");
    let folder = |s: &&Stream| s.name.split('/').next().unwrap().to_owned();
    let mut folders: Vec<String> = all.iter().map(folder).collect();
    folders.dedup();
    for name in &folders {
        let some: Vec<&Stream> = all.iter().copied().filter(|s| folder(s) == *name).collect();
        let windows: usize = some.iter().map(|s| s.windows.len()).sum();
        let at = figures::stream_score_at(&some, threshold);
        println!("{name:<24} {:>6} {windows:>8} {:>9}", some.len(), at.map_or("-".into(), |s| format!("{s:.1}")));
    }
    let refused = all.iter().filter(|s| s.refused).count();
    println!("{:<24} {:>6} {:>8} {score:>9.1}", "all", all.len(), all.iter().map(|s| s.windows.len()).sum::<usize>());
    println!("the threshold, {threshold:.2}, was chosen on these files, as NAB does; {refused} files were refused");
    // A threshold that has not seen the labels it is judged by: found on every other file.
    let half = |odd: usize| all.iter().copied().skip(odd).step_by(2).collect::<Vec<_>>();
    let across: Vec<f64> = (0..2)
        .map(|odd| figures::stream_score_at(&half(1 - odd), figures::stream_score(&half(odd)).1).unwrap())
        .collect();
    println!("threshold of one half of the files on the other: {:.1} and {:.1}", across[0], across[1]);
    assert_eq!(all.len(), 58);
    assert!(score >= SCORE, "the README claims more: {score}");
}

/// Results as NAB's own programs read them.
fn keep(dir: &Path, root: &Path, streams: &[Stream]) {
    for stream in streams {
        let (_, rows) = figures::table(&root.join("data").join(&stream.name), b',');
        let line = |(row, score): (&Vec<String>, &f64)| format!("{},{},{score}\n", row[0], row[1]);
        let lines: String = rows.iter().zip(&stream.scores).map(line).collect();
        let path = dir.join(&stream.name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("timestamp,value,anomaly_score\n{lines}")).unwrap();
    }
}
