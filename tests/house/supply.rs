//! What andon is made of: under which licences, from where, and told in a bill of materials (CycloneDX)
//! that others can read.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const VALIDATE: &str = "
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
wrong = JsonStrictValidator(SchemaVersion.V1_5).validate_str(open(sys.argv[1]).read())
sys.exit(str(wrong) if wrong else 0)
";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn run(command: &mut Command) -> String {
    let search = std::env::var("PATH").unwrap_or_default();
    command.current_dir(root()).env("PATH", format!("{}:{search}", root().join("target/tools/bin").display()));
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Made anew in `target/sbom/`, where CI and releases take it from.
fn bill_of_materials() -> PathBuf {
    let tool = ["cyclonedx", "--quiet", "--format", "json", "--spec-version", "1.5", "--target", "all"];
    let what = ["--no-default-features", "--override-filename", "andon.cdx"];
    run(Command::new(env!("CARGO")).args(tool).args(what).env("CARGO_NET_OFFLINE", "true"));
    let path = root().join("target/sbom/andon.cdx.json");
    std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
    std::fs::rename(root().join("andon.cdx.json"), &path).expect("moved");
    path
}

#[test]
fn the_bill_of_materials_is_valid_and_has_all_that_is_linked() {
    let path = bill_of_materials();
    let python = std::env::var_os("ANDON_TEST_PYTHON").map_or(root().join("target/venv/bin/python"), PathBuf::from);
    run(Command::new(python).args(["-c", VALIDATE]).arg(&path));

    let bill: Value = serde_json::from_slice(&std::fs::read(path).expect("readable")).expect("JSON");
    let components = bill["components"].as_array().expect("components");
    let text = |c: &Value, key: &str| c[key].as_str().unwrap_or_default().to_owned();
    let told: BTreeSet<String> =
        components.iter().map(|c| format!("{} v{}", text(c, "name"), text(c, "version"))).collect();
    for component in components {
        let name = text(component, "name");
        assert!(component["licenses"].as_array().is_some_and(|l| !l.is_empty()), "{name} has no licence");
        assert!(text(component, "purl").starts_with("pkg:cargo/"), "{name} has no package URL");
        assert!(component["hashes"][0]["content"].is_string(), "{name} has no digest");
    }
    assert!(told.iter().any(|c| c.starts_with("ring v0.17.")), "ring is not told");

    let tree = ["tree", "--locked", "--offline", "--no-default-features", "-e", "normal", "--prefix", "none"];
    let tree = run(Command::new(env!("CARGO")).args(tree).args(["--format", "{p}"]));
    let linked = tree.lines().filter_map(|l| l.split(" (").next()).filter(|p| !p.starts_with("andon "));
    let missing: Vec<&str> = linked.filter(|p| !told.contains(*p)).collect();
    assert!(missing.is_empty(), "not in the bill of materials: {missing:?}");
}

/// What `deny.toml` allows, exceptions for single crates included.
fn allowed() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("deny.toml")).expect("deny.toml");
    let rules: toml::Table = text.parse().expect("TOML");
    let listed = rules["licenses"]["allow"].as_array().expect("a list").iter();
    let exceptions = rules["licenses"]["exceptions"].as_array().expect("a list").iter();
    let exceptions = exceptions.flat_map(|e| e["allow"].as_array().expect("a list"));
    listed.chain(exceptions).filter_map(|l| l.as_str()).map(str::to_owned).collect()
}

/// Whether a licence expression (SPDX; `/` for OR as of old) can be met with what is allowed.
fn may_be_used(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let text = expression.replace('/', " OR ");
    let (mut depth, mut parts, mut from) = (0, Vec::new(), 0);
    // The outermost alternatives; then the outermost conditions; then what stands in parentheses.
    for operator in [" OR ", " AND "] {
        for (at, c) in text.char_indices() {
            depth += i32::from(c == '(') - i32::from(c == ')');
            if depth == 0 && text[at..].starts_with(operator) {
                parts.push(&text[from..at]);
                from = at + operator.len();
            }
        }
        if !parts.is_empty() {
            parts.push(&text[from..]);
            let mut each = parts.iter().map(|p| may_be_used(p, allowed));
            return if operator == " OR " { each.any(|met| met) } else { each.all(|met| met) };
        }
    }
    let text = text.trim();
    match text.strip_prefix('(').and_then(|t| t.strip_suffix(')')) {
        Some(inner) => may_be_used(inner, allowed),
        None => allowed.contains(text),
    }
}

#[test]
fn licence_expressions_are_read() {
    let allowed = ["MIT", "ISC", "A WITH B"].map(str::to_owned).into();
    for good in ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "ISC AND MIT", "(GPL-3.0 OR MIT) AND ISC", "A WITH B"] {
        assert!(may_be_used(good, &allowed), "{good}");
    }
    for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "A", "MIT AND (GPL-3.0 OR X)"] {
        assert!(!may_be_used(bad, &allowed), "{bad}");
    }
}

#[test]
fn licences_are_those_that_are_allowed() {
    let tree = ["tree", "--locked", "--offline", "--all-features", "-e", "normal", "--prefix", "none"];
    let tree = run(Command::new(env!("CARGO")).args(tree).args(["--format", "{l}|{p}"]));
    let lines: Vec<(&str, &str)> = tree.lines().filter_map(|l| l.split_once('|')).collect();
    assert!(lines.len() > 100, "the whole tree is seen");
    let allowed = allowed();
    assert!(!allowed.iter().any(|l| l.contains("GPL")));
    for (licence, package) in lines {
        assert!(may_be_used(licence, &allowed), "{package} is under {licence:?}");
    }
}

#[test]
fn everything_comes_from_the_registry_in_a_version_that_is_named() {
    let read = |name| -> toml::Table { std::fs::read_to_string(root().join(name)).expect(name).parse().expect("TOML") };
    let lock = read("Cargo.lock");
    let packages = lock["package"].as_array().expect("packages");
    for package in packages.iter().filter(|p| p["name"].as_str() != Some("andon")) {
        let source = package.get("source").and_then(|s| s.as_str());
        assert_eq!(source, Some("registry+https://github.com/rust-lang/crates.io-index"), "{:?}", package["name"]);
        assert!(package.get("checksum").is_some(), "{:?}", package["name"]);
    }
    let manifest = read("Cargo.toml");
    for table in ["dependencies", "dev-dependencies"] {
        for (name, wanted) in manifest[table].as_table().expect("a table") {
            let version = wanted.as_str().or_else(|| wanted.get("version")?.as_str()).unwrap_or("*");
            assert!(!version.contains('*'), "{name} in any version");
        }
    }
}
