//! The detector of a single channel: its graph in tract against the formula it was written from.

use super::super::calibration::Limit;
use super::super::learnt::Learnt;
use super::super::*;
use super::written;
use crate::types::Time;

#[test]
fn the_graph_of_a_single_channel_does_what_the_formula_says() {
    let mut rng = fastrand::Rng::with_seed(6);
    let mut row = |i: usize| vec![20.0 + 3.0 * (i as f64 / 8.0).sin() + 0.5 * rng.f64()];
    let healthy: Vec<Vec<f64>> = (0..500).map(&mut row).collect();
    let learnt = Learnt::fit(std::slice::from_ref(&healthy), &["level".into()], 10, &Limit::PValue(1e-2)).expect("fit");
    let model = written(&learnt, vec!["level".into()], &healthy);

    let mut course: Vec<Vec<f64>> = (0..400).map(&mut row).collect();
    // Held still, gone far off, and somewhere else for long.
    course[100..120].iter_mut().for_each(|r| r[0] = 20.5);
    course[200] = vec![900.0];
    course[250..350].iter_mut().for_each(|r| r[0] += 8.0);
    let (mut state, mut by_formula) = (model.initial_state().to_vec(), learnt.start());
    let (mut alarms, mut alike) = (0, 0);
    for rows in course.windows(10) {
        let data: Vec<f32> = rows.iter().flatten().map(|v| *v as f32).collect();
        let exact: Vec<f64> = data.iter().map(|v| f64::from(*v)).collect();
        let window = Window { machine: "m".into(), end: Time(0), data, quality: vec![Quality::Good] };
        let opinion = model.judge(&[&window], &[&state]).expect("judged")[0].clone().expect("an opinion");
        let stepped = learnt.step(&by_formula, &exact);
        // At the border of a bin single precision may take the next one.
        if !learnt.borders(&exact) {
            let near = (opinion.score - stepped.score).abs() < 2e-2 * (1.0 + stepped.score);
            assert!(near, "{} {}", opinion.score, stepped.score);
            alike += 1;
        }
        model.follow(&mut state, opinion.next, false);
        by_formula = stepped.next;
        alarms += u32::from(by_formula[1].values[0] > 0.5);
    }
    assert!((120..190).contains(&alarms) && alike > 350, "{alarms} {alike}");
}
