//! How well the shipped model of remaining life does on NASA's C-MAPSS test engines (a simulator),
//! by `andon backtest`: the last cycle of each engine, held against what the README claims.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::{andon, data, figures};

/// More cycles than this count as this, as is usual for these sets.
const CAP: f64 = 125.0;
/// Columns of the model's channels in NASA's files, from 0, and their names.
const CHANNELS: [(usize, &str); 14] = [
    (6, "T24"),
    (7, "T30"),
    (8, "T50"),
    (11, "P30"),
    (12, "Nf"),
    (13, "Nc"),
    (15, "Ps30"),
    (16, "phi"),
    (17, "NRf"),
    (18, "NRc"),
    (19, "BPR"),
    (21, "htBleed"),
    (24, "W31"),
    (25, "W32"),
];
/// What the README says: set, capped RMSE and PHM08 score at most, with what rounding there leaves.
const CLAIMS: [(&str, f64, f64); 2] = [("FD001", 9.5, 141.0), ("FD003", 9.95, 190.5)];

/// Numbers of a file, row by row.
fn numbers(path: &Path) -> Vec<Vec<f64>> {
    let text = fs::read_to_string(path).unwrap();
    let row = |l: &str| l.split_whitespace().map(|v| v.parse().unwrap()).collect::<Vec<f64>>();
    text.lines().map(row).filter(|r| !r.is_empty()).collect()
}

/// All engines side by side, a second for each cycle.
fn csv(rows: &[Vec<f64>]) -> String {
    let mut rows: Vec<&Vec<f64>> = rows.iter().collect();
    rows.sort_by(|a, b| a[1].total_cmp(&b[1]).then(a[0].total_cmp(&b[0])));
    let names: Vec<&str> = CHANNELS.iter().map(|(_, name)| *name).collect();
    let mut out = format!("time,machine,{}\n", names.join(","));
    for row in rows {
        let cycle = row[1] as u64;
        write!(out, "2026-01-01 00:{:02}:{:02},engine-{}", cycle / 60, cycle % 60, row[0]).unwrap();
        CHANNELS.iter().for_each(|(column, _)| write!(out, ",{}", row[*column]).unwrap());
        out.push('\n');
    }
    out
}

/// The last answer for each engine.
fn judged(test: &Path) -> BTreeMap<String, f64> {
    let dir = tempfile::tempdir().unwrap();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let config = format!("[agent]\nmodels_dir = {models:?}\n[[machine]]\nmatch = \"*\"\nmodel = \"turbofan-rul\"\n");
    fs::write(dir.path().join("andon.toml"), config).unwrap();
    fs::write(dir.path().join("data.csv"), csv(&numbers(test))).unwrap();
    let command = ["backtest", "-c", "andon.toml", "--input", "data.csv", "--machine-column", "machine"];
    andon(dir.path(), &[&command[..], &["--out", "out.csv", "--json"]].concat());
    let (head, rows) = figures::table(&dir.path().join("out.csv"), b',');
    let column = |name: &str| head.iter().position(|h| h == name).unwrap();
    let (machine, rul) = (column("machine"), column("rul"));
    rows.into_iter().map(|r| (r[machine].clone(), r[rul].parse().unwrap())).collect()
}

/// RMSE in cycles and PHM08 score.
fn figures_of(off: &[f64]) -> (f64, f64) {
    let rmse = (off.iter().map(|d| d * d).sum::<f64>() / off.len() as f64).sqrt();
    let score = off.iter().map(|d| if *d < 0.0 { (-d / 13.0).exp() } else { (d / 10.0).exp() } - 1.0).sum();
    (rmse, score)
}

#[test]
fn remaining_life_of_simulated_engines_is_told_as_well_as_claimed() {
    let Some(dir) = data().map(|d| d.join("cmapss")).filter(|d| d.is_dir()) else { return };
    println!("C-MAPSS (simulated), last cycle of each test engine: RMSE / PHM08 score");
    for (set, rmse, score) in CLAIMS {
        let said = judged(&dir.join(format!("test_{set}.txt")));
        let truth = numbers(&dir.join(format!("RUL_{set}.txt")));
        assert_eq!(said.len(), truth.len());
        let off = |cap: f64| -> Vec<f64> {
            truth.iter().enumerate().map(|(i, t)| said[&format!("engine-{}", i + 1)] - t[0].min(cap)).collect()
        };
        let (capped, uncapped) = (figures_of(&off(CAP)), figures_of(&off(f64::MAX)));
        println!("{set}: capped {:.2} / {:.0}, uncapped {:.2} / {:.0}", capped.0, capped.1, uncapped.0, uncapped.1);
        assert!(capped.0 <= rmse && capped.1 <= score, "the README claims more of {set}");
    }
}
