//! The house rules that a reader relies on, held by reading the source: imports go downward only,
//! stages do not know each other, and every file says what it holds.
#![allow(clippy::unwrap_used)]

#[path = "house/supply.rs"]
mod supply;

use std::fs;
use std::path::{Path, PathBuf};

/// Rooms from the ground up: each may use what stands in its list, and itself.
const GROUND: &[&str] = &["types", "backoff", "metrics", "settings", "tls", "mqtt"];
const STAGES: &[&str] = &["source", "pipeline", "model", "alarm", "store", "forward", "web"];

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in fs::read_dir(dir).expect("a readable directory").map(|e| e.expect("an entry").path()) {
        if entry.is_dir() {
            out.extend(files(&entry));
        } else if entry.extension().is_some_and(|e| e == "rs") {
            out.push(entry);
        }
    }
    out.sort();
    out
}

fn source_files() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let read =
        |p: PathBuf| (p.strip_prefix(&root).expect("below src").to_path_buf(), fs::read_to_string(&p).expect("text"));
    files(&root).into_iter().map(read).collect()
}

/// The room a file belongs to: the first part of its path.
fn room(path: &Path) -> String {
    let first = path.components().next().expect("a path").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// Rooms named by `crate::ROOM` in code, comments left out; `{a, b}` groups are opened.
fn imports(text: &str) -> Vec<String> {
    let code: Vec<&str> = text.lines().map(|l| l.split("//").next().unwrap_or("")).collect();
    let code = code.join("\n");
    let mut out = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            out.extend(top_level(group));
        } else {
            out.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
        }
    }
    out
}

/// First names of the entries of an import group, up to its closing brace.
fn top_level(group: &str) -> Vec<String> {
    let (mut depth, mut word, mut out, mut first) = (0, String::new(), Vec::new(), true);
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                out.push(std::mem::take(&mut word));
                first = true;
            }
            ':' if depth == 0 => first = false,
            c if depth == 0 && first && (c.is_alphanumeric() || c == '_') => word.push(c),
            _ => {}
        }
    }
    out.push(word);
    out.retain(|w| !w.is_empty());
    out
}

#[test]
fn stages_do_not_know_each_other() {
    let mut wrong = Vec::new();
    for (path, text) in source_files() {
        let own = room(&path);
        let allowed: &[&str] = match own.as_str() {
            "types" => &[],
            stage if STAGES.contains(&stage) || GROUND.contains(&stage) => GROUND,
            _ => continue,
        };
        // Tests of a stage may set up what they like around it.
        let code = text.split("\n#[cfg(test)]").next().and_then(|t| t.split("\n#[cfg(all(test").next()).unwrap_or("");
        let bad = imports(code).into_iter().filter(|i| *i != own && !allowed.contains(&i.as_str()));
        wrong.extend(bad.map(|i| format!("{}: crate::{i}", path.display())));
    }
    assert!(wrong.is_empty(), "imports that go sideways or up:\n{}", wrong.join("\n"));
}

#[test]
fn the_ground_floor_stands_on_nothing_above() {
    let (path, text) = source_files().into_iter().find(|(p, _)| p == Path::new("types.rs")).expect("types.rs");
    assert_eq!(imports(&text), Vec::<String>::new(), "{}", path.display());
}

#[test]
fn sled_and_tract_and_rumqttc_stay_in_their_rooms() {
    let homes = [("sled::", "store"), ("tract_onnx::", "model"), ("rumqttc::", "mqtt"), ("rumqttc_v4::", "mqtt")];
    for (path, text) in source_files() {
        for (name, home) in homes {
            let code = text.lines().any(|l| l.split("//").next().unwrap_or("").contains(name));
            assert!(!code || room(&path) == home, "{} uses {name}, which is at home in {home}", path.display());
        }
    }
}

/// What is untrusted gets to people through the log, whose lines cannot be forged, and the board, which escapes. Only
/// commands print, and the log is set up in one place.
#[test]
fn stages_speak_through_log_and_board_only() {
    for (path, text) in source_files() {
        let may_print = ["command", "main", "simulator", "fuzz"].contains(&room(&path).as_str());
        let code = text.split("\n#[cfg(test)]").next().unwrap_or("");
        let test = path.components().any(|c| c.as_os_str() == "tests") || path.ends_with("tests.rs");
        let code: String = code.lines().filter_map(|l| l.split("//").next()).collect();
        let prints = ["println!", "print!(", "dbg!", "io::stdout", "io::stderr()"].iter().find(|p| code.contains(**p));
        assert!(test || may_print || prints.is_none(), "{} uses {prints:?}", path.display());
        let sets_up = code.contains("set_global_default") || code.contains("tracing_subscriber::fmt()");
        assert!(!sets_up || path == Path::new("logging.rs"), "{} sets up a log", path.display());
    }
}

#[test]
fn every_file_says_what_it_holds() {
    for (path, text) in source_files() {
        let test =
            path.file_name().is_some_and(|n| n == "tests.rs") || path.components().any(|c| c.as_os_str() == "tests");
        assert!(test || text.starts_with("//!"), "{} does not open with //!", path.display());
    }
}

#[test]
fn the_reader_of_imports_reads() {
    let text = "use crate::types::{Name, Time};\nuse crate::{alarm, store::{self, Commit}, web};\n// crate::no\ncrate::model::x();";
    assert_eq!(imports(text), ["types", "alarm", "store", "web", "model"]);
}
