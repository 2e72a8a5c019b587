//! What the fitted detector sees, names and leaves alone, step by step.

use proptest::prelude::*;

use super::*;

/// Two channels that go together, and one of its own.
fn healthy(n: usize) -> Stretch {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut noise = move || (0..6).map(|_| rng.f64() - 0.5).sum::<f64>();
    let row = |_| {
        let a = noise();
        vec![50.0 + 5.0 * a, 10.0 + 2.0 * a + 0.1 * noise(), 3.0 + noise()]
    };
    (0..n).map(row).collect()
}

fn names() -> Vec<String> {
    ["flow", "power", "temp"].map(String::from).to_vec()
}

fn fitted(n: usize) -> Fitted {
    fit(&[healthy(n)], &names(), 10, &Limit::PValue(1e-4)).expect("fitted")
}

/// The aspects of a window around this row, as restless as healthy ones.
fn around(fitted: &Fitted, row: [f64; 3]) -> Vec<f64> {
    let centre = row.iter().zip(&fitted.mean).zip(&fitted.std).map(|((v, m), s)| (v - m) / s);
    centre.chain(fitted.centre[3..].iter().copied()).collect()
}

fn of(fitted: &Fitted, row: [f64; 3]) -> Stepped {
    fitted.step(&fitted.start(), &around(fitted, row))
}

#[test]
fn what_breaks_a_relation_stands_out_though_each_value_is_normal() {
    let fitted = fitted(600);
    let (normal, broken) = (of(&fitted, [52.0, 10.8, 3.0]), of(&fitted, [52.0, 9.2, 3.0]));
    assert!(normal.score < fitted.limit, "{} {}", normal.score, fitted.limit);
    assert!(broken.score > fitted.limit, "{} {}", broken.score, fitted.limit);
}

#[test]
fn the_channel_that_left_has_the_largest_share() {
    let shares = of(&fitted(600), [50.0, 10.0, 9.0]).parts;
    assert!(shares[2] > 10.0 * shares[0].max(shares[1]), "{shares:?}");
}

#[test]
fn the_baseline_rests_in_alarm_and_settles_when_the_fault_recedes() {
    let fitted = fitted(600);
    let well = around(&fitted, [50.0, 10.0, 3.0]);
    let ill = around(&fitted, [50.0, 10.0, 9.0]);
    let after = around(&fitted, [50.0, 10.0, 3.4]);
    let mut state = fitted.start();
    let mut run = |m: &[f64], n: usize| {
        let mut last = None;
        for _ in 0..n {
            let stepped = fitted.step(&state, m);
            state = stepped.next.clone();
            last = Some(stepped);
        }
        last.expect("stepped")
    };
    let calm = run(&well, 50);
    assert!(calm.score < fitted.limit && calm.next.alarm == 0.0);
    run(&ill, 5);
    let brief = run(&after, 1);
    assert_eq!(brief.next.alarm, 0.0, "what was short is over at once");
    let calm = run(&well, 50);
    assert!(calm.score < fitted.limit && calm.next.alarm == 0.0);
    let late = run(&ill, 5000);
    assert_eq!(late.next.alarm, 1.0, "a fault is not learnt however long it lasts");
    assert_eq!(late.next.baseline, calm.next.baseline);
    let held = run(&after, fitted.steps);
    assert_eq!(held.next.alarm, 1.0, "a window without the fault has not passed yet");
    assert!(held.score > fitted.limit && !held.strange && held.next.fault == late.next.fault);
    let over = run(&after, 1);
    assert_eq!(over.next.alarm, 0.0, "what is left is small beside what was");
    assert!(over.score < fitted.limit);
    let settled = run(&after, 60);
    assert!(settled.score < 0.5 * fitted.limit, "{} {}", settled.score, fitted.limit);
}

#[test]
fn a_channel_that_wanders_is_judged_by_its_recent_course() {
    let mut rows = healthy(600);
    // As a temperature does over a day: half a wave in all.
    let part = std::f64::consts::PI / rows.len() as f64;
    rows.iter_mut().enumerate().for_each(|(i, r)| r[2] += 5.0 * (part * i as f64).cos());
    let fitted = fit(&[rows], &names(), 10, &Limit::PValue(1e-4)).expect("fitted");
    assert_eq!(fitted.slow, [false, false, true]);
    let elsewhere = of(&fitted, [50.0, 10.0, 3.0 + 10.0 * fitted.std[2]]);
    assert!(elsewhere.score < fitted.limit, "at the start it is taken as it is found");
}

/// Both pressures, current and oil temperature of a compressor whose load changes every 90 rows.
fn compressor(rows: usize, seed: u64) -> Stretch {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut noise = {
        let mut rng = rng.fork();
        move || (0..12).map(|_| rng.f64() - 0.5).sum::<f64>()
    };
    let (mut aim, mut load, mut oil) = (0.6, 0.6, 65.0);
    let row = |i: usize| {
        if i.is_multiple_of(90) {
            aim = [0.4, 0.6, 0.8, 1.0][rng.usize(..4)];
        }
        load += 0.1 * (aim - load);
        oil += 0.02 * (50.0 + 25.0 * load - oil) + 0.05 * noise();
        let suction = 1.0 - 0.1 * load + 0.005 * noise();
        vec![6.0 + 2.0 * load + 0.05 * noise(), 20.0 + 60.0 * load + 0.8 * noise(), oil, suction]
    };
    (0..rows).map(row).collect()
}

/// How many windows are flagged that end before so many rows and after, and in how many of them this
/// channel has the largest part.
fn flagged(fitted: &Fitted, rows: &[Vec<f64>], from: usize, channel: usize) -> ([usize; 2], usize) {
    let (mut state, mut flagged, mut named) = (fitted.start(), [0, 0], 0);
    for (i, window) in rows.windows(fitted.steps).enumerate() {
        let stepped = fitted.step(&state, &fitted.aspects_of(&window.concat()));
        let most = stepped.parts.iter().copied().fold(0.0, f64::max);
        if stepped.next.alarm > 0.5 {
            flagged[usize::from(i + fitted.steps > from)] += 1;
            named += usize::from(stepped.parts[channel] == most);
        }
        state = stepped.next;
    }
    (flagged, named)
}

#[test]
fn faults_that_no_limit_sees_are_found_whatever_the_load() {
    let names = ["discharge", "current", "oil", "suction"].map(String::from);
    let fitted = fit(&[compressor(3600, 1)], &names, 30, &Limit::PValue(5e-5)).expect("fitted");
    assert!(fitted.doubts[..2].iter().all(|d| *d < 1.5), "loads came and went: {:?}", fitted.doubts);
    let run = |fault: &dyn Fn(usize, &mut Vec<f64>), channel: usize| {
        let mut rows = compressor(1200, 2);
        rows.iter_mut().enumerate().skip(400).for_each(|(i, row)| fault(i, row));
        let ([before, after], named) = flagged(&fitted, &rows, 400, channel);
        assert_eq!(before, 0, "nothing is flagged before");
        (after, named)
    };
    assert_eq!(run(&|_, _| {}, 0).0, 0);
    let leak = run(&|i, row| row[1] *= 1.0 + 0.15 * ((i - 400) as f64 / 120.0).min(1.0), 1);
    let hangs = run(&|_, row| row[1] = 62.0, 1);
    let rough = run(&|i, row| row[2] += if i % 2 == 0 { 1.0 } else { -1.0 }, 2);
    for (flagged, named) in [leak, hangs, rough] {
        assert!(flagged > 400 && named > flagged * 9 / 10, "{leak:?} {hangs:?} {rough:?}");
    }
}

/// Thirty signals that follow six causes, which forget slowly, as in a chemical process.
fn process(rows: usize, seed: u64) -> Stretch {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut noise = move || (0..12).map(|_| rng.f64() - 0.5).sum::<f64>();
    let mut weights = fastrand::Rng::with_seed(1);
    let weights: Vec<f64> = (0..180).map(|_| 2.0 * weights.f64() - 1.0).collect();
    let mut causes = [0.0; 6];
    let row = |_| {
        causes.iter_mut().for_each(|c| *c = 0.9 * *c + 0.436 * noise());
        weights.chunks(6).map(|w| 100.0 + dot(w, &causes) + 0.4 * noise()).collect()
    };
    (0..rows).map(row).collect()
}

#[test]
fn many_channels_and_few_windows_are_no_hindrance() {
    let names: Vec<String> = (0..30).map(|c| format!("c{c}")).collect();
    // A dozen windows, less than half of the channels.
    let fitted = fit(&[process(400, 1)], &names, 30, &Limit::PValue(5e-5)).expect("fitted");
    let shifted = |channel: usize, shift: f64| {
        let mut rows = process(1200, 2);
        rows[400..].iter_mut().for_each(|row| row[channel] += shift * fitted.std[channel]);
        flagged(&fitted, &rows, 400, channel)
    };
    assert_eq!(shifted(0, 0.0).0, [0, 0]);
    for channel in [0, 7, 29] {
        let (count, named) = shifted(channel, 3.0);
        assert!(count[0] == 0 && count[1] > 700 && named > count[1] * 9 / 10, "{channel}: {count:?} {named}");
    }
}

#[test]
fn what_cannot_be_learnt_is_refused() {
    let fit = |rows: Stretch| fit(&[rows], &names(), 10, &Limit::PValue(1e-4));
    assert_eq!(fit(healthy(100)), Err(FitError::TooLittle { found: 91, needed: MIN_WINDOWS }));
    let mut flat = healthy(300);
    flat.iter_mut().for_each(|r| r[1] = 4.0);
    assert_eq!(fit(flat), Err(FitError::Constant(vec!["power".into()])));
}

proptest! {
    /// Whatever the machine did, a step is flagged exactly while in alarm, and an alarm ends within
    /// a window's length of the fault.
    #[test]
    fn an_alarm_is_flagged_and_ends(stages in prop::collection::vec((0.0..12.0f64, 1..150usize), 1..6)) {
        let fitted = fitted(600);
        let mut state = fitted.start();
        let mut run = |temp: f64, steps: usize| -> Result<State, TestCaseError> {
            let mean = around(&fitted, [50.0, 10.0, 3.0 + temp]);
            for _ in 0..steps {
                let stepped = fitted.step(&state, &mean);
                prop_assert_eq!(stepped.score > fitted.limit, stepped.next.alarm > 0.5);
                prop_assert!((0.0..=fitted.patience()).contains(&stepped.next.patience));
                state = stepped.next;
            }
            Ok(state.clone())
        };
        for (temp, steps) in stages {
            let before = run(temp, steps)?;
            if before.alarm > 0.5 {
                // Back to where it came from.
                let back = before.baseline[2] * fitted.std[2] + fitted.mean[2] - 3.0;
                prop_assert_eq!(run(back, fitted.steps + 1)?.alarm, 0.0);
            }
        }
    }
}
