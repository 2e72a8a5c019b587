//! What users read is true: every `sh` block of the README runs and says what the README shows, the
//! tables name exactly what the code has, and the configs in `config/` are valid, complete and tell
//! the real defaults.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use andon::config::{Config, Needs};

#[path = "readme/shell.rs"]
mod shell;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect(path)
}

/// A fenced block: its language and its lines.
struct Block {
    language: String,
    lines: Vec<String>,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut out = Vec::new();
    let mut open: Option<Block> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => open = Some(Block { language: language.into(), lines: Vec::new() }),
            (Some(_), Some(_)) => out.extend(open.take()),
            (None, Some(block)) => block.lines.push(line.into()),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    out
}

#[test]
fn every_command_in_the_readme_runs_and_says_what_it_says_there() {
    let blocks = blocks(&read("README.md"));
    let mut shell = shell::Shell::new(root());
    let mut ran = 0;
    for (i, block) in blocks.iter().enumerate().filter(|(_, b)| b.language == "sh") {
        // What stands between the two blocks is prose about the same thing.
        let expected = blocks.get(i + 1).filter(|b| b.language == "text" && b.lines.len() < 40);
        shell.run(&block.lines, expected.map_or(&[], |b| &b.lines));
        ran += block.lines.len();
    }
    shell.end();
    assert!(ran >= 10, "the README's commands were not found");
}

/// Rows of the table that follows a line, cell by cell.
fn table(text: &str, after: &str) -> Vec<Vec<String>> {
    let rest = text.lines().skip_while(|l| *l != after).skip(1);
    let rows = rest.skip_while(|l| !l.starts_with('|')).take_while(|l| l.starts_with('|')).skip(2);
    rows.map(cells).collect()
}

fn cells(row: &str) -> Vec<String> {
    let row = row.trim_matches('|').replace("\\|", "\u{0}");
    row.split('|').map(|c| c.trim().replace('\u{0}', "|")).collect()
}

fn plain(cell: &str) -> String {
    cell.trim_matches('`').to_owned()
}

#[test]
fn the_metrics_table_names_what_is_scraped() {
    let mut there = BTreeSet::new();
    let source = read("src/metrics.rs");
    let entries = source.lines().filter_map(|l| l.trim().strip_suffix(';')).filter(|l| l.contains(", \""));
    for line in entries {
        let mut parts = line.split(", ");
        let (kind, name, unit) = (parts.next(), parts.next(), parts.next());
        let (Some(kind), Some(name), Some(unit)) = (kind, name, unit) else { continue };
        let Some(kind) = kind.split(": ").nth(1) else { continue };
        let unit = match unit {
            "Some(Unit::Seconds)" => "_seconds",
            "Some(Unit::Bytes)" => "_bytes",
            _ => "",
        };
        let total = if kind.starts_with("Counter") { "_total" } else { "" };
        there.insert(format!("andon_{}{unit}{total}", name.trim_matches('"')));
    }
    assert!(there.len() > 20, "{there:?}");
    let told: BTreeSet<String> = table(&read("README.md"), "## Metrics").iter().map(|r| plain(&r[0])).collect();
    assert_eq!(told, there);
    // That names are put together like this is held against what is really scraped.
    let metrics = andon::metrics::Metrics::new();
    metrics.forward_sent.get_or_create(&[("sink", "x".into())]).inc();
    let scraped = metrics.render();
    let samples = scraped.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split(['{', ' ']).next());
    for sample in samples {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|s| sample.strip_suffix(s)).unwrap_or(sample);
        assert!(told.contains(base), "{sample}");
    }
}

/// What stands between the first parenthesis of `text` and the one that closes it.
fn in_parentheses(text: &str) -> &str {
    let (mut depth, mut quoted, mut before) = (0, false, ' ');
    for (i, c) in text.char_indices() {
        match c {
            '"' if before != '\\' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => {
                depth -= 1;
                if depth == 0 {
                    return &text[1..i];
                }
            }
            _ => {}
        }
        before = c;
    }
    text
}

/// The message of a log macro, with `…` for what differs: its one literal that is no field's value.
fn message(arguments: &str) -> String {
    let literals: Vec<&str> = arguments.split('"').skip(1).step_by(2).collect();
    let text = literals.iter().max_by_key(|l| l.len()).expect("a message");
    let mut out = String::new();
    let mut rest = *text;
    while let Some((plain, more)) = rest.split_once('{') {
        out.push_str(plain);
        out.push('…');
        rest = more.split_once('}').map_or("", |(_, rest)| rest);
    }
    out + rest
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a directory").map(|e| e.expect("an entry").path());
    entries.flat_map(|p| if p.is_dir() { rust_files(&p) } else { vec![p] }).collect()
}

#[test]
fn the_table_of_log_lines_has_every_warning_and_error() {
    let mut there = BTreeSet::new();
    for path in rust_files(&root().join("src")) {
        let name = path.strip_prefix(root()).expect("below").to_string_lossy().into_owned();
        // The demo and its stand-ins speak to who started them.
        let ours = !name.contains("src/simulator") && !name.contains("src/command/demo") && name.ends_with(".rs");
        if !ours || name.ends_with("tests.rs") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("source");
        for (level, call) in [("warn", "warn!("), ("error", "error!(")] {
            for (at, _) in text.match_indices(call) {
                let arguments = in_parentheses(&text[at + call.len() - 1..]);
                there.insert((level.to_owned(), message(arguments)));
            }
        }
    }
    let told = table(&read("README.md"), "## Log lines");
    assert!(told.iter().all(|row| row[2].len() > 5), "a row that does not say what to do");
    let told: BTreeSet<(String, String)> = told.iter().map(|r| (r[0].clone(), plain(&r[1]))).collect();
    let missing: Vec<_> = there.difference(&told).collect();
    let gone: Vec<_> = told.difference(&there).collect();
    assert!(missing.is_empty() && gone.is_empty(), "not in the README: {missing:#?}\nin the README only: {gone:#?}");
}

/// One setting of the annotated config.
#[derive(Clone, Debug, PartialEq)]
struct Setting {
    /// `source.mqtt.subscribe`, or empty.
    section: String,
    key: String,
    value: String,
    /// Written out, or behind `#`.
    active: bool,
    /// `required`, `example` or nothing.
    mark: String,
    line: usize,
}

fn is_setting(line: &str) -> bool {
    line.strip_prefix('#').is_some_and(|l| l.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()))
}

fn settings(text: &str) -> Vec<Setting> {
    let mut section = String::new();
    let mut out = Vec::new();
    for (line, raw) in text.lines().enumerate() {
        let active = !raw.starts_with('#');
        if !active && !is_setting(raw) {
            continue;
        }
        let bare = raw.trim_start_matches('#');
        if bare.starts_with('[') {
            section = bare.trim_matches(['[', ']']).to_owned();
            continue;
        }
        let Some((key, rest)) = bare.split_once(" = ") else { continue };
        let (value, mark) = rest.split_once(" # ").unwrap_or((rest, ""));
        let (value, mark) = (value.trim().to_owned(), mark.trim().to_owned());
        out.push(Setting { section: section.clone(), key: key.to_owned(), value, active, mark, line });
    }
    out
}

/// The annotated config with these lines brought to life.
fn enlivened(text: &str, wanted: impl Fn(usize, &str) -> bool) -> String {
    let line = |(i, l): (usize, &str)| match l.strip_prefix('#') {
        Some(bare) if is_setting(l) && wanted(i, l) => bare.to_owned(),
        _ => l.to_owned(),
    };
    text.lines().enumerate().map(line).collect::<Vec<_>>().join("\n")
}

fn load(text: &str) -> Config {
    let path = root().join("config/andon.toml");
    Config::parse(text, &path, Needs { source: true }).unwrap_or_else(|e| panic!("{e}"))
}

fn shown(c: &Config) -> String {
    let machines: Vec<String> =
        c.machines.iter().map(|m| format!("{:?} {:?} {:?} {:?}", m.model, m.channels, m.pipeline, m.alarm)).collect();
    format!(
        "{:?}\n{:?}\n{machines:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}",
        c.agent, c.source, c.trust, c.delivery, c.report_every, c.store, c.cloud, c.sinks, c.publish, c.web, c.log
    )
}

#[test]
fn the_annotated_defaults_are_the_defaults() {
    let text = read("config/andon.toml");
    // Of a secret in a file and one in place, one is needed; the file is not there.
    let needed = |line: &str| line.ends_with("# required") || line.starts_with("#client_secret = ");
    let skeleton = |line: &str| line.starts_with("#[") || needed(line);
    let base = shown(&load(&enlivened(&text, |_, l| skeleton(l))));
    for s in settings(&text).iter().filter(|s| !s.active && s.mark.is_empty()) {
        let with = shown(&load(&enlivened(&text, |i, l| skeleton(l) || i == s.line)));
        assert_eq!(with, base, "line {}: {} = {} is not the default", s.line + 1, s.key, s.value);
    }
    let plain = load(&text);
    assert!(
        plain.cloud.is_none() && plain.sinks.is_empty() && plain.publish.is_none(),
        "what leaves the plant has to be asked for"
    );
}

#[test]
fn every_annotated_key_is_known() {
    let text = enlivened(&read("config/andon.toml"), |_, _| true);
    // Settings that exclude each other, and files that are not there, are no concern here.
    let parsed = Config::parse(&text, &root().join("config/andon.toml"), Needs::default());
    let problems = parsed.err().map(|e| e.problems).unwrap_or_default();
    let bad = |m: &&str| m.contains("unknown key") || m.contains("not valid TOML");
    let bad: Vec<&str> = problems.iter().map(|p| p.message.as_str()).filter(bad).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

/// The keys that the code asks a section for, by the names of the accessors.
fn asked_for() -> BTreeSet<String> {
    const ACCESSORS: [&str; 23] = [
        "has",
        "string",
        "required_string",
        "strings",
        "boolean",
        "integer",
        "float",
        "floats",
        "duration",
        "size",
        "choice",
        "path_of",
        "paths_of",
        "stage",
        "secret",
        "section",
        "sections",
        "positive",
        "get",
        "path",
        "count",
        "name_of",
        "floats::<2>",
    ];
    let mut keys = BTreeSet::new();
    for path in config_sources() {
        let text = std::fs::read_to_string(&path).expect("source");
        let code = text.split("#[cfg(test)]").next().unwrap_or("");
        for (at, _) in code.match_indices('"') {
            let Some((key, _)) = code[at + 1..].split_once('"') else { continue };
            let before = code[..at].trim_end_matches("section, ").trim_end_matches("s, ");
            let Some(call) = before.strip_suffix('(') else { continue };
            let is_key = !key.is_empty() && key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            let name = call.rsplit(|c: char| !(c.is_alphanumeric() || "_:<>".contains(c))).next().unwrap_or("");
            if is_key && ACCESSORS.contains(&name) {
                if name == "secret" {
                    keys.insert(format!("{key}_file"));
                }
                keys.insert(key.to_owned());
            }
        }
    }
    keys
}

fn config_sources() -> Vec<PathBuf> {
    let all = [
        "config.rs",
        "tls.rs",
        "logging.rs",
        "web.rs",
        "store.rs",
        "alarm.rs",
        "pipeline.rs",
        "mqtt/settings.rs",
        "source.rs",
        "source/payload.rs",
        "source/mqtt/settings.rs",
        "source/modbus/config.rs",
        "forward/publish.rs",
        "forward/sinks.rs",
        "forward/bridge.rs",
        "forward/file.rs",
        "forward/nats.rs",
        "forward/privacy.rs",
        "forward/aggregate.rs",
        "forward/cloud/auth.rs",
        "forward/cloud/config.rs",
        "forward/delivery.rs",
        "forward/inference/config.rs",
        "model/trust.rs",
    ];
    all.map(|f| root().join("src").join(f)).into()
}

#[test]
fn every_key_of_the_code_is_annotated() {
    let annotated = settings(&read("config/andon.toml"));
    let text = read("config/andon.toml");
    let tables = ["agent", "source", "mqtt", "modbus", "subscribe", "signal", "machine", "channels", "range", "alarm"];
    let more = ["store", "cloud", "oauth2", "inference", "sink", "file", "nats", "models", "publish", "web", "log"];
    let mut known: BTreeSet<&str> = annotated.iter().map(|s| s.key.as_str()).collect();
    known.extend(
        tables.iter().chain(&more).filter(|t| text.contains(&format!("{t}]")) || ["source", "sink"].contains(*t)),
    );
    // Within `tls = { … }` and `prices = { … }`.
    known.extend(["ca", "cert", "key", "per_call", "per_1k_elements", "per_mb"]);
    let asked = asked_for();
    assert!(asked.len() > 70, "{asked:?}");
    let missing: Vec<&String> = asked.iter().filter(|k| !known.contains(k.as_str())).collect();
    assert!(missing.is_empty(), "config/andon.toml says nothing of {missing:?}");
}

#[test]
fn the_readme_has_every_key_and_its_default() {
    let (text, readme) = (read("config/andon.toml"), read("README.md"));
    let mut sections: BTreeMap<String, Vec<Setting>> = BTreeMap::new();
    for s in settings(&text).into_iter().filter(|s| !["machine.channels", "machine.range"].contains(&&*s.section)) {
        sections.entry(s.section.clone()).or_default().push(s);
    }
    for (section, settings) in sections {
        let double = text.contains(&format!("[[{section}]]"));
        let heading = if double { format!("#### `[[{section}]]`") } else { format!("#### `[{section}]`") };
        let rows = table(&readme, &heading);
        let told: Vec<String> = rows.iter().map(|r| plain(&r[0])).collect();
        let there: Vec<&String> = settings.iter().map(|s| &s.key).collect();
        assert_eq!(told.iter().collect::<Vec<_>>(), there, "the keys below {heading}");
        for (row, s) in rows.iter().zip(&settings).filter(|(_, s)| !s.active) {
            let expected = match &*s.mark {
                "" => format!("`{}`", s.value),
                "required" => "required".into(),
                _ => String::new(),
            };
            assert_eq!(row[1], expected, "the default of {} below {heading}", s.key);
        }
    }
}

#[test]
fn all_example_configs_pass_the_check() {
    let mut seen = 0;
    for entry in std::fs::read_dir(root().join("config")).expect("config").flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|e| e != "toml") || path.ends_with("mine.toml") {
            continue;
        }
        let mut andon = std::process::Command::new(env!("CARGO_BIN_EXE_andon"));
        let out = andon.args(["check", "-c"]).arg(&path).output().expect("andon runs");
        assert!(out.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&out.stderr));
        seen += 1;
    }
    assert!(seen >= 5, "{seen} configs");
}

fn help(arguments: &[&str]) -> String {
    let mut andon = std::process::Command::new(env!("CARGO_BIN_EXE_andon"));
    let out = andon.args(arguments).arg("--help").output().expect("andon runs");
    String::from_utf8(out.stdout).expect("text")
}

#[test]
fn the_readme_has_every_command_and_option() {
    let rows = table(&read("README.md"), "## Commands");
    let of = |command: &str| -> String {
        rows.iter().map(|r| plain(&r[0])).filter(|c| c.starts_with(&format!("andon {command} "))).collect()
    };
    let top = help(&[]);
    let commands = top.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    let commands: Vec<&str> = commands.filter_map(|l| l.split_whitespace().next()).filter(|c| *c != "help").collect();
    assert!(commands.len() >= 5, "{commands:?}");
    for command in &commands {
        let told = of(command);
        assert!(!told.is_empty(), "the README says nothing of `andon {command}`");
        let text = help(&[command]);
        let words = text.split_whitespace().map(|w| w.trim_end_matches([',', ']']));
        let options = words.filter(|w| w.starts_with("--") && !["--help", "--config", "--csv:"].contains(w));
        for option in options.collect::<BTreeSet<_>>() {
            assert!(told.contains(option), "the README says nothing of `andon {command} {option}`");
        }
    }
    for row in rows {
        let named = plain(&row[0]).split(' ').nth(1).unwrap_or("").to_owned();
        assert!(commands.contains(&named.as_str()), "there is no `andon {named}`");
    }
}

#[test]
fn exit_codes_are_as_the_readme_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("a plain path").to_owned();
    let minimal = read("config/minimal.toml").replace("../models", root().join("models").to_str().expect("plain"));
    let minimal = minimal.replace("../target/data", &path("data"));
    std::fs::write(path("good.toml"), &minimal).expect("writing");
    std::fs::write(path("no-model.toml"), minimal.replace("pump-anomaly", "pump-anomalie")).expect("writing");
    std::fs::write(path("unknown.toml"), minimal.replace("match =", "macht =")).expect("writing");
    for (code, arguments) in [
        (0, vec!["check", "-c", &path("good.toml")]),
        (1, vec!["backtest", "-c", &path("good.toml"), "--input", &path("no.csv")]),
        (2, vec!["walk"]),
        (78, vec!["check", "-c", &path("unknown.toml")]),
        (78, vec!["check", "-c", &path("no-model.toml")]),
        (78, vec!["run", "-c", &path("no-model.toml")]),
        (78, vec!["run", "-c", &path("not-there.toml")]),
    ] {
        let mut andon = std::process::Command::new(env!("CARGO_BIN_EXE_andon"));
        let out = andon.args(&arguments).output().expect("andon runs");
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    let told: Vec<String> =
        table(&read("README.md"), "Results go to stdout, logs to stderr.").iter().map(|r| r[0].clone()).collect();
    assert_eq!(told, ["0", "1", "2", "78"]);
}

#[test]
fn files_that_the_readme_names_are_there() {
    let readme = read("README.md");
    let words = readme.split(|c: char| c.is_whitespace() || "`()[]".contains(c));
    let tops = ["config/", "models/", "src/", "systemd/", "tests/", "benches/"];
    for word in words.filter(|w| tops.iter().any(|t| w.starts_with(t))) {
        let path = word.trim_end_matches(['.', ',', ':', ';']);
        let made_by_the_reader = ["config/mine.toml", "models/my-pump"].contains(&path);
        assert!(made_by_the_reader || root().join(path).exists(), "{path} is not there");
    }
}
