//! Bundles loaded, judged and refused, in tract itself.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;
use std::time::Duration;

mod course;
mod sequence;

use super::learnt::Learnt;
use crate::types::Time;

fn bundle(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name)
}

/// A copy of the pump's bundle that may be damaged.
fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for file in ["model.json", "model.onnx", "golden.json", "reference.json"] {
        std::fs::copy(bundle("pump-anomaly").join(file), dir.path().join(file)).expect("copied");
    }
    dir
}

fn edit(dir: &Path, file: &str, change: impl Fn(&mut serde_json::Value)) {
    let path = dir.join(file);
    let mut value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
    change(&mut value);
    std::fs::write(&path, value.to_string()).expect("written");
}

fn undigest(dir: &Path) {
    edit(dir, "model.json", |m| m["digests"] = serde_json::json!({}));
}

fn refusal(dir: &Path) -> String {
    Model::load(dir).expect_err("refused").to_string()
}

#[test]
fn shipped_bundles_load_and_pass_their_self_test() {
    for name in ["pump-anomaly", "motor-health", "press-anomaly", "turbofan-rul", "bearing-class"] {
        let model = Model::load(&bundle(name)).expect(name);
        assert!(model.calibration().len() >= 2000 || model.manifest().task == Task::Class, "{name}");
        let window = Window {
            machine: "m".into(),
            end: Time(0),
            data: mean_window(&model),
            quality: vec![Quality::Good; model.channel_names().len()],
        };
        let opinion =
            model.judge(&[&window], &[model.initial_state()]).expect("judged")[0].clone().expect("an opinion");
        assert!((opinion.shares.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{name}");
    }
}

fn mean_window(model: &Model) -> Vec<f32> {
    let m = model.manifest();
    (0..m.steps).flat_map(|_| m.channels.iter().map(|c| c.mean as f32)).collect()
}

#[test]
fn a_changed_file_is_refused_by_its_digest() {
    let dir = copy();
    let path = dir.path().join("model.onnx");
    let mut bytes = std::fs::read(&path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).expect("written");
    assert!(refusal(dir.path()).contains("damaged or was changed"), "{}", refusal(dir.path()));
}

#[test]
fn a_truncated_graph_is_refused() {
    let dir = copy();
    undigest(dir.path());
    let path = dir.path().join("model.onnx");
    let bytes = std::fs::read(&path).expect("read");
    for length in [0, 1, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).expect("written");
        let said = refusal(dir.path());
        assert!(said.contains("model.onnx"), "{length}: {said}");
    }
}

#[test]
fn a_wrong_shape_is_refused() {
    let dir = copy();
    undigest(dir.path());
    edit(dir.path(), "model.json", |m| {
        m["channels"].as_array_mut().expect("channels").pop();
        m["inputs"][0]["shape"] = serde_json::json!([-1, 32, 7]);
    });
    assert!(refusal(dir.path()).contains("[32, 7]"), "{}", refusal(dir.path()));
}

#[test]
fn an_unsupported_operator_is_named() {
    let dir = copy();
    undigest(dir.path());
    let path = dir.path().join("model.onnx");
    let mut bytes = std::fs::read(&path).expect("read");
    // Same length, so that the protobuf around it stays whole; everywhere, so that names still agree.
    let places: Vec<usize> = (0..bytes.len() - 4).filter(|i| &bytes[*i..i + 4] == b"Tanh").collect();
    assert!(!places.is_empty(), "the graph has a Tanh");
    places.iter().for_each(|at| bytes[at + 1] = b'o');
    std::fs::write(&path, bytes).expect("written");
    assert_eq!(
        refusal(dir.path()),
        "model.onnx uses operators that are not supported here: Tonh; export it without them"
    );
}

#[test]
fn a_graph_that_answers_otherwise_fails_its_self_test() {
    let dir = copy();
    undigest(dir.path());
    edit(dir.path(), "golden.json", |g| {
        let data = &mut g[1]["response"]["outputs"][0]["data"];
        let mut at = data;
        while at[0].is_array() {
            at = &mut at[0];
        }
        at[0] = serde_json::json!(at[0].as_f64().expect("a number") + 1000.0);
    });
    assert!(refusal(dir.path()).contains("self-test: case 2"), "{}", refusal(dir.path()));
}

#[test]
fn manifests_say_what_is_wrong_with_them() {
    let said = |change: &dyn Fn(&mut serde_json::Value)| {
        let dir = copy();
        undigest(dir.path());
        edit(dir.path(), "model.json", change);
        refusal(dir.path())
    };
    assert!(said(&|m| m["schema"] = "andon.model/v9".into()).contains("this version reads \"andon.model/v1\""));
    assert!(
        said(&|m| m["channels"][0]["std"] = 0.into()).contains("\"speed\" needs a finite `mean` and a `std` above 0")
    );
    assert!(said(&|m| m["task"] = "poetry".into()).contains("unknown variant `poetry`"));
    assert!(said(&|m| m["digests"] = serde_json::json!({"../x": "00"})).contains("not a plain file name"));
    assert!(said(&|m| m["task"] = "score".into()).contains("needs an output `score`"));
}

#[test]
fn an_answer_does_not_depend_on_the_company() {
    let model = Model::load(&bundle("pump-anomaly")).expect("the bundle");
    let mut windows = Vec::new();
    for i in 0..8 {
        let mean = mean_window(&model);
        let data = mean.iter().enumerate().map(|(j, v)| v * (1.0 + ((i * 31 + j) % 17) as f32 * 0.002));
        let quality = vec![Quality::Good; 8];
        windows.push(Window { machine: "m".into(), end: Time(0), data: data.collect(), quality });
    }
    let all: Vec<&Window> = windows.iter().collect();
    let together = model.judge(&all, &vec![&[][..]; all.len()]).expect("judged");
    for (i, w) in windows.iter().enumerate() {
        assert_eq!(model.judge(&[w], &[&[]]).expect("judged")[0], together[i], "to the last bit");
    }
}

#[test]
fn p_values_are_conformal_within_the_reference() {
    let c = Calibration::new((1..=10).map(f64::from).collect());
    assert_eq!(c.p_value(0.0), 1.0);
    assert_eq!(c.p_value(10.0), 2.0 / 11.0);
    assert_eq!(c.p_value(11.0), 1.0 / 11.0);
    assert_eq!(Calibration::new(Vec::new()).p_value(5.0), 1.0);
}

#[test]
fn the_tail_follows_an_exponential_beyond_its_data() {
    // Quantiles of a unit exponential: the truth at s is exp(-s).
    let n = 4000;
    let scores = (0..n).map(|i| -(1.0 - (f64::from(i) + 0.5) / f64::from(n)).ln()).collect();
    let c = Calibration::new(scores);
    for s in [4.0, 6.0, 10.0, 14.0] {
        let ratio = c.p_value(s) / f64::exp(-s);
        // Never too sure, and within an order of magnitude out to one in a million.
        assert!((0.7..12.0).contains(&ratio), "at {s}: {ratio}");
    }
    assert!(c.extrapolates(1e-6) && !c.extrapolates(1e-3));
}

#[test]
fn a_budget_becomes_a_p_value() {
    let week = Duration::from_secs(604_800);
    assert_eq!(Limit::from_budget(1.0, week, Duration::from_secs(6)), Limit::PValue(6.0 / 604_800.0));
    assert_eq!(Limit::PValue(0.01).strength(0.0, 0.01), 1.0);
    assert_eq!(Limit::Score(2.0).strength(3.0, 1.0), 1.5);
}

proptest! {
    /// Higher scores never get higher p-values, and all p-values are probabilities.
    #[test]
    fn p_values_fall(scores in prop::collection::vec(0.0..100.0f64, 0..600), a in -10.0..300.0f64, b in -10.0..300.0f64) {
        let c = Calibration::new(scores);
        let (low, high) = (a.min(b), a.max(b));
        prop_assert!(c.p_value(high) <= c.p_value(low) + 1e-12);
        prop_assert!(c.p_value(high) > 0.0 && c.p_value(low) <= 1.0);
    }
}

/// What was learnt, written as a bundle with golden cases of these rows and loaded again.
fn written(learnt: &Learnt, channels: Vec<String>, healthy: &[Vec<f64>]) -> Arc<Model> {
    let about = write::About {
        name: "learnt".into(),
        version: "1".into(),
        channels,
        left_out: Vec::new(),
        rate: Duration::from_secs(1),
        source: "a test".into(),
        at: Time(0),
        metrics: serde_json::Value::Null,
    };
    let dir = tempfile::tempdir().expect("a directory");
    let windows: Vec<Vec<f64>> = healthy.chunks(learnt.common().steps).map(<[Vec<f64>]>::concat).collect();
    write::bundle(dir.path(), &about, learnt, &windows).expect("written");
    Model::load(dir.path()).expect("loaded, so its golden cases hold")
}

/// `andon learn`'s graph in tract against the formula it was written from, through a fault, its end
/// and after, and a signal that becomes rough.
#[test]
fn the_learnt_graph_does_what_the_formula_says() {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut noise = move || (0..6).map(|_| rng.f64() - 0.5).sum::<f64>();
    let names: Vec<String> = ["flow", "power", "temp"].map(String::from).to_vec();
    let mut row = |off: f64, rough: f64| vec![50.0 + noise(), 10.0 + noise() + off, 300.0 + rough * noise()];
    let healthy: Vec<Vec<f64>> = (0..500).map(|_| row(0.0, 1.0)).collect();
    let fitted = fit::fit(std::slice::from_ref(&healthy), &names, 10, &Limit::PValue(1e-4)).expect("fitted");
    let model = written(&Learnt::Baseline(fitted.clone()), names, &healthy);

    let off = |i: usize| match i {
        60..140 => 6.0,
        140.. => 0.3,
        _ => 0.0,
    };
    let course: Vec<Vec<f64>> = (0..300).map(|i| row(off(i), if i < 240 { 1.0 } else { 6.0 })).collect();
    let (mut state, mut by_formula) = (model.initial_state().to_vec(), fitted.start());
    let (mut alarms, mut settled, mut held) = (0, 0, 0);
    for (i, rows) in course.windows(10).enumerate() {
        let data: Vec<f32> = rows.iter().flatten().map(|v| *v as f32).collect();
        let exact: Vec<f64> = data.iter().map(|v| f64::from(*v)).collect();
        let window = Window { machine: "m".into(), end: Time(0), data, quality: vec![Quality::Good; 3] };
        let opinion = model.judge(&[&window], &[&state]).expect("judged")[0].clone().expect("an opinion");
        let stepped = fitted.step(&by_formula, &fitted.aspects_of(&exact));
        assert!((opinion.score - stepped.score).abs() < 1e-2 * (1.0 + stepped.score), "{opinion:?} {stepped:?}");
        model.follow(&mut state, opinion.next, false);
        by_formula = stepped.next;
        assert_eq!(f64::from(state[12]), by_formula.alarm);
        assert_eq!(f64::from(state[13]), by_formula.settling);
        assert_eq!(f64::from(state[15]), by_formula.patience);
        if i >= 250 {
            assert!(
                by_formula.alarm > 0.5 && opinion.shares[2] > 0.5,
                "a rough signal is seen and named: {:?}",
                opinion.shares
            );
            continue;
        }
        held += u32::from(by_formula.alarm > 0.5 && !stepped.strange);
        alarms += u32::from(by_formula.alarm > 0.5 && i < 220);
        settled += u32::from(by_formula.settling > 0.5);
    }
    assert!((70..100).contains(&alarms) && settled > 5 && held > 5, "{alarms} {settled} {held}");
}

/// What single precision leaves of a counter is enough for its golden cases, and so is a window of one row.
#[test]
fn large_values_that_hardly_move_are_learnt() {
    let mut rng = fastrand::Rng::with_seed(6);
    let mut noise = move || (0..6).map(|_| rng.f64() - 0.5).sum::<f64>();
    let names: Vec<String> = ["pressure", "counter"].map(String::from).to_vec();
    let single = |v: f64| f64::from(v as f32);
    let healthy: Vec<Vec<f64>> =
        (0..500).map(|_| vec![single(101_325.0 + 0.5 * noise()), single(1e6 + noise())]).collect();
    for steps in [1, 2, 10] {
        let learnt = Learnt::fit(std::slice::from_ref(&healthy), &names, steps, &Limit::PValue(1e-4)).expect("fitted");
        assert_eq!(written(&learnt, names.clone(), &healthy).manifest().steps, steps);
    }
}
