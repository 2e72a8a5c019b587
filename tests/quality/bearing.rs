//! How well the shipped bearing model names the damaged part on Case Western's recordings (seeded
//! faults): sizes it has not learnt from, and the second half of the one healthy recording.

use std::fs;
use std::path::Path;

use andon::model::Model;
use andon::types::{Quality, Time, Window};

use super::{data, figures};

/// The model's classes, and what the recordings call them.
const CLASSES: [(&str, &str); 4] = [("healthy", "N"), ("ball", "B"), ("inner_race", "IR"), ("outer_race", "OR")];
/// Fault sizes in thousandths of an inch that the model has not seen.
const UNSEEN: [&str; 2] = ["21", "28"];
/// What the README says, with what rounding there leaves.
const MACRO_F1: f64 = 0.83;

/// The windows of a recording that are to be judged.
fn windows(dir: &Path, file: &str, speed: f32, scale: f32, steps: usize, healthy: bool) -> Vec<Window> {
    let bytes = fs::read(dir.join(file)).unwrap();
    let wave: Vec<f32> = bytes.chunks_exact(2).map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) * scale).collect();
    let all: Vec<&[f32]> = wave.chunks_exact(steps).collect();
    // The first half of the healthy recording was learnt from.
    let from = if healthy { all.len().div_ceil(2) } else { 0 };
    let window = |w: &&[f32]| Window {
        machine: "m".into(),
        end: Time(0),
        data: w.iter().flat_map(|v| [*v, speed]).collect(),
        quality: vec![Quality::Good; 2],
    };
    all[from..].iter().map(window).collect()
}

#[test]
fn the_damaged_part_is_named_for_unseen_sizes_of_fault() {
    let Some(dir) = data().map(|d| d.join("cwru12k")).filter(|d| d.is_dir()) else { return };
    let model = Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/bearing-class")).unwrap();
    let (head, rows) = figures::table(&dir.join("index.csv"), b',');
    let column = |name: &str| head.iter().position(|h| h == name).unwrap();
    let at = ["file", "rpm", "fault", "diameter_mil", "scale_g_per_count"].map(column);
    let mut counts = [[0usize; 4]; 4];
    for row in &rows {
        let [file, rpm, fault, size, scale] = at.map(|c| row[c].as_str());
        let truth = CLASSES.iter().position(|(_, short)| fault.split('@').next() == Some(short)).unwrap();
        if truth != 0 && !UNSEEN.contains(&size) {
            continue;
        }
        let steps = model.manifest().steps;
        let judged = windows(&dir, file, rpm.parse().unwrap(), scale.parse().unwrap(), steps, truth == 0);
        for batch in judged.chunks(model.batch()) {
            let batch: Vec<&Window> = batch.iter().collect();
            for opinion in model.judge(&batch, &vec![&[][..]; batch.len()]).unwrap() {
                let class = opinion.unwrap().class.unwrap();
                counts[truth][CLASSES.iter().position(|(name, _)| *name == &*class).unwrap()] += 1;
            }
        }
    }
    println!("CWRU bearings (seeded faults), sizes {UNSEEN:?} mil, not learnt from; is (rows), said to be (columns)");
    println!("{:<12} {}", "", CLASSES.map(|(name, _)| format!("{name:>11}")).concat());
    let mut sum = 0.0;
    for (i, (name, _)) in CLASSES.iter().enumerate() {
        println!("{name:<12} {}", counts[i].map(|n| format!("{n:>11}")).concat());
        let said: usize = counts.iter().map(|r| r[i]).sum();
        sum += 2.0 * counts[i][i] as f64 / (said + counts[i].iter().sum::<usize>()).max(1) as f64;
    }
    let macro_f1 = sum / CLASSES.len() as f64;
    println!("macro-F1 {macro_f1:.3}");
    assert!(macro_f1 >= MACRO_F1, "the README claims more");
}
