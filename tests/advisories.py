"""Holds Cargo.lock against a local clone of RustSec's advisory-db (its path is the argument); deny.toml names what
is accepted. No network. Exit code 1 with one line for each advisory that applies."""
import pathlib
import re
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def version(text):
    """Numbers of a version, then whether it is a release; pre-releases come before it."""
    core, _, pre = text.split("+")[0].partition("-")
    numbers = [int(part) for part in core.split(".")]
    return tuple(numbers + [0] * (3 - len(numbers))), pre == "", pre


def meets(found, requirement):
    """Whether a version meets one requirement such as `>= 1.2.3, < 2` or `^1.2`."""
    return all(meets_one(found, part.strip()) for part in requirement.split(","))


def meets_one(found, part):
    operator, text = re.fullmatch(r"(>=|<=|>|<|=|\^|~)?\s*(\S+)", part).groups()
    wanted = version(text)
    found = version(found)
    if operator in (None, "^"):
        top = [0, 0, 0]
        given = [int(n) for n in text.split("-")[0].split(".")]
        at = next((i for i, n in enumerate(given) if n), len(given) - 1)
        top[: at + 1] = given[: at + 1]
        top[at] += 1
        return wanted <= found < (tuple(top), False, "")
    if operator == "~":
        given = [int(n) for n in text.split("-")[0].split(".")]
        at = min(1, len(given) - 1)
        top = given[: at + 1] + [0] * (2 - at)
        top[at] += 1
        return wanted <= found < (tuple(top), False, "")
    return {">=": found >= wanted, "<=": found <= wanted, ">": found > wanted, "<": found < wanted, "=": found == wanted}[operator]


def advisory(path):
    """The TOML at the beginning of an advisory in Markdown."""
    return tomllib.loads(path.read_text().split("```toml", 1)[1].split("```", 1)[0])


def main(database):
    crates = pathlib.Path(database) / "crates"
    if not crates.is_dir():
        sys.exit(f"{database} is no clone of advisory-db: it has no directory crates")
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    accepted = {entry["id"] for entry in tomllib.loads((ROOT / "deny.toml").read_text())["advisories"]["ignore"]}
    wrong, seen = [], set()
    for package in locked:
        for path in sorted((crates / package["name"]).glob("RUSTSEC-*.md")):
            told = advisory(path)
            about, versions = told["advisory"], told.get("versions", {})
            safe = versions.get("patched", []) + versions.get("unaffected", [])
            if "withdrawn" in about or any(meets(package["version"], r) for r in safe):
                continue
            seen.add(about["id"])
            if about["id"] not in accepted:
                wrong.append(f"{about['id']}: {package['name']} {package['version']}")
    for unused in sorted(accepted - seen):
        print(f"note: deny.toml accepts {unused}, which applies to nothing here")
    print(f"advisories: {len(locked)} packages, {len(seen)} advisories apply, {len(seen & accepted)} accepted")
    if wrong:
        sys.exit("\n".join(wrong))


main(sys.argv[1])
