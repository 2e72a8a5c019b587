//! What the package is made of, told in a bill of materials (CycloneDX) that others can read.

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
