//! Sequence models: they load, answer as onnxruntime did, and say step by step what they say of a
//! whole window.

use super::*;

fn sequence(name: &str) -> Arc<Model> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sequence").join(name);
    Model::load(&dir).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn window(model: &Model, data: Vec<f32>) -> Window {
    let quality = vec![Quality::Good; model.channel_names().len()];
    Window { machine: "m".into(), end: Time(0), data, quality }
}

/// Rows of so many steps, each value within 1.5 deviations of its channel's mean.
fn noise(model: &Model, steps: usize, rng: &mut fastrand::Rng) -> Vec<Vec<f32>> {
    let value = |c: &bundle::Channel, v: f64| (c.mean + c.std * (3.0 * v - 1.5)) as f32;
    (0..steps).map(|_| model.manifest().channels.iter().map(|c| value(c, rng.f64())).collect()).collect()
}

#[test]
fn sequence_models_answer_as_onnxruntime_did() {
    // Loading replays the golden cases, whose answers are onnxruntime's, to 1e-4.
    for name in ["gru", "gru-streamed", "lstm", "lstm-streamed", "transformer"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/sequence").join(name);
        let golden = Bundle::read(&dir).expect(name).golden;
        assert!(golden.len() >= 3 && golden.iter().all(|c| c.rtol == 0.0 && c.atol <= 1e-4), "{name}");
        sequence(name);
    }
}

#[test]
fn step_by_step_is_as_over_the_whole_window() {
    let mut rng = fastrand::Rng::with_seed(11);
    for name in ["gru", "lstm"] {
        let (whole, streamed) = (sequence(name), sequence(&format!("{name}-streamed")));
        let (mut worst, mut least) = (0.0f64, f64::MAX);
        for _ in 0..20 {
            let rows = noise(&whole, whole.manifest().steps, &mut rng);
            let all = window(&whole, rows.concat());
            let expected = whole.judge(&[&all], &[&[]]).expect("judged")[0].clone().expect("an opinion");
            let mut state = streamed.initial_state().to_vec();
            let mut last = None;
            for row in rows {
                let step = window(&streamed, row);
                let opinion = streamed.judge(&[&step], &[&state]).expect("judged")[0].clone().expect("an opinion");
                streamed.follow(&mut state, opinion.next.clone(), false);
                last = Some(opinion);
            }
            let found = last.expect("a window has steps");
            worst = worst.max((found.score - expected.score).abs());
            for (a, b) in found.shares.iter().zip(&expected.shares) {
                worst = worst.max((a - b).abs());
            }
            least = least.min(expected.score);
        }
        println!("{name}: streamed and whole differ by {worst:.1e} at most");
        assert!(worst < 1e-4, "{name}: {worst}");
        assert!(least > 0.1, "scores that say something: {least}");
    }
}

#[test]
fn what_a_streamed_model_remembers_matters() {
    let model = sequence("lstm-streamed");
    let mut rng = fastrand::Rng::with_seed(12);
    let rows = noise(&model, 2, &mut rng);
    let judge = |row: &[f32], state: &[f32]| {
        model.judge(&[&window(&model, row.to_vec())], &[state]).expect("judged")[0].clone().expect("an opinion")
    };
    let fresh = judge(&rows[1], model.initial_state());
    let first = judge(&rows[0], model.initial_state());
    let after = judge(&rows[1], &first.next);
    assert!((fresh.score - after.score).abs() > 1e-3, "{} {}", fresh.score, after.score);
}
