//! `docs/limits.md` against the code: what it says of single limits holds, and its list of all of them is complete.
//! `ANDON_WRITE_LIMITS=1 cargo test --release --test limits` writes that list.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// What the names of limits begin with.
const PREFIXES: &[&str] = &["MAX_", "LEAST_", "LONGEST_"];
const BEGIN: &str = "<!-- every limit, from the code -->";

struct Limit {
    place: String,
    name: String,
    value: String,
    says: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            sources(&entry, out);
        } else if entry.extension().is_some_and(|e| e == "rs") && !entry.ends_with("tests.rs") {
            out.push(entry);
        }
    }
}

/// All constants of a file outside of its tests, with the lines of documentation above them.
fn constants(path: &Path) -> Vec<Limit> {
    let text = fs::read_to_string(path).unwrap();
    let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let place = path.strip_prefix(root()).unwrap().display().to_string();
    let (mut says, mut out) = (Vec::new(), Vec::new());
    let mut lines = code.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if let Some(doc) = line.strip_prefix("///") {
            says.push(doc.trim().to_owned());
            continue;
        }
        let rest = line.strip_prefix("const ").or(line.split_once(") const ").map(|(_, r)| r));
        let rest = rest.or(line.strip_prefix("pub const "));
        if let Some((name, rest)) = rest.and_then(|r| r.split_once(": ")) {
            let mut whole = rest.to_owned();
            while !whole.ends_with(';') {
                let Some(next) = lines.next() else { break };
                whole = format!("{whole} {next}");
            }
            let value = whole.split_once('=').map_or("", |(_, v)| v.trim().trim_end_matches(';'));
            let (name, value) = (name.to_owned(), value.to_owned());
            out.push(Limit { place: place.clone(), name, value, says: says.join(" ") });
        }
        says.clear();
    }
    out
}

fn all() -> Vec<Limit> {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    files.iter().filter(|p| !p.components().any(|c| c.as_os_str() == "tests")).flat_map(|p| constants(p)).collect()
}

fn listed() -> String {
    let mut out = "| Constant | Value | What it bounds |\n|---|---|---|\n".to_owned();
    for limit in all().iter().filter(|l| PREFIXES.iter().any(|p| l.name.starts_with(p))) {
        let says = limit.says.replace('|', "\\|");
        out.push_str(&format!("| `{}` `{}` | `{}` | {says} |\n", limit.place, limit.name, limit.value));
    }
    out
}

fn document() -> (PathBuf, String) {
    let path = root().join("docs/limits.md");
    let text = fs::read_to_string(&path).unwrap();
    (path, text)
}

#[test]
fn every_limit_is_listed_with_its_value() {
    let (path, text) = document();
    let (before, after) = text.split_once(BEGIN).unwrap();
    let list = format!("\n\n{}", listed());
    if std::env::var_os("ANDON_WRITE_LIMITS").is_some() {
        fs::write(path, format!("{before}{BEGIN}{list}")).unwrap();
        return;
    }
    let wrong: Vec<&str> = list.lines().filter(|l| !after.lines().any(|a| a == *l)).collect();
    let gone: Vec<&str> = after.lines().filter(|a| !list.lines().any(|l| l == *a)).collect();
    assert!(
        wrong.is_empty() && gone.is_empty(),
        "docs/limits.md is behind the code; ANDON_WRITE_LIMITS=1 writes it.\nnot listed: {wrong:#?}\nno longer so: {gone:#?}"
    );
}

/// Rows with what happens at a limit: `CONSTANT` in the first column, its value in the second, a metric in the last.
#[test]
fn what_is_said_of_single_limits_holds() {
    let (_, text) = document();
    let (told, _) = text.split_once(BEGIN).unwrap();
    let constants = all();
    let metrics = fs::read_to_string(root().join("src/metrics.rs")).unwrap();
    let rows: Vec<Vec<&str>> =
        told.lines().filter(|l| l.starts_with("| `")).map(|l| l.split('|').map(str::trim).collect()).collect();
    assert!(rows.len() >= 20, "{}", rows.len());
    for row in rows {
        let plain = |cell: usize| row[cell].trim_matches('`');
        let (name, value) = (plain(1), plain(2));
        assert!(constants.iter().any(|c| c.name == name && c.value == value), "{name} = {value} is not in the code");
        let metric = row[5].split(['`', '{']).find(|m| m.starts_with("andon_"));
        if let Some(metric) = metric {
            let family = metric.trim_start_matches("andon_").trim_end_matches("_total");
            assert!(metrics.contains(&format!("\"{family}\"")), "{name}: there is no metric {metric}");
        }
        assert!(metric.is_some() || row[5] == "-", "{name}: {:?} is no metric", row[5]);
    }
}
