//! Stability indices and distances by hand, false warnings without drift, and how soon a shift is seen.

use proptest::prelude::*;

use super::*;

fn normal(rng: &mut fastrand::Rng) -> f64 {
    (0..12).map(|_| rng.f64()).sum::<f64>() - 6.0
}

fn sample(seed: u64, n: usize, shift: f64, scale: f64) -> Vec<f64> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..n).map(|_| shift + scale * normal(&mut rng)).collect()
}

#[test]
fn figures_are_those_worked_out_by_hand() {
    // Shares .5 and .5 against .75 and .25: .25 ln 1.5 - .25 ln .5 = .25 ln 3.
    let found = psi(&[0.5, 0.5], &[75, 25]);
    assert!((found - 0.25 * 3f64.ln()).abs() < 1e-12, "{found}");
    assert!((ks(&[0.5, 0.5], &[75, 25]) - 0.25).abs() < 1e-12);
    assert!((low_excess(&[0.5, 0.5], &[75, 25]) - 0.25).abs() < 1e-12);
    assert_eq!(low_excess(&[0.5, 0.5], &[25, 75]), 0.0);
    // Cumulated: .25 .5 .75 1 against .1 .5 .6 1.
    assert!((ks(&[0.25; 4], &[10, 40, 10, 40]) - 0.15).abs() < 1e-12);
    assert_eq!(psi(&[0.5, 0.5], &[0, 0]), 0.0);
    let empty = psi(&[0.5, 0.5], &[10, 0]);
    assert!((empty - (0.5 * 2f64.ln() + (1e-4 - 0.5) * (1e-4f64 / 0.5).ln())).abs() < 1e-12);
}

#[test]
fn a_reference_is_deciles_whatever_the_values() {
    let bins = Bins::learn((0..1000).map(f64::from).collect()).expect("bins");
    assert_eq!(bins.edges, [100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0, 900.0]);
    assert!(bins.check().is_ok() && bins.shares.iter().all(|s| (s - 0.1).abs() < 0.0021), "{bins:?}");
    // A signal of two values, one of them rare.
    let valve = Bins::learn((0..1000).map(|i| f64::from(u8::from(i % 50 == 0))).collect()).expect("bins");
    assert_eq!((valve.edges.as_slice(), valve.shares.len()), (&[0.0][..], 2));
    assert!((valve.shares[1] - 0.02).abs() < 1e-9);
    assert_eq!(Bins::learn(vec![3.0; 100]), None);
    assert_eq!(Bins::learn(vec![f64::NAN; 100]), None);
}

#[test]
fn references_that_make_no_sense_are_refused() {
    let of = |edges: &[f64], shares: &[f64]| Bins { edges: edges.into(), shares: shares.into() }.check();
    assert!(of(&[1.0], &[0.5, 0.5]).is_ok());
    assert!(of(&[], &[1.0]).is_err());
    assert!(of(&[1.0], &[0.5]).is_err());
    assert!(of(&[1.0, 1.0], &[0.5, 0.2, 0.3]).expect_err("refused").contains("rise"));
    assert!(of(&[f64::NAN], &[0.5, 0.5]).is_err());
    assert!(of(&[1.0], &[0.5, 0.6]).expect_err("refused").contains("sum to"));
    assert!(of(&[1.0], &[1.5, -0.5]).is_err());
    assert!(of(&vec![0.0; MAX_BINS], &vec![0.0; MAX_BINS + 1]).is_err());
}

#[test]
fn quantiles_are_a_reference_too() {
    let of = |text: &str| serde_json::from_str::<Spread>(text).expect("JSON").bins();
    let bins = of(r#"{"q01": 1.0, "q05": 2.0, "q50": 5.0, "q95": 8.0, "q99": 9.0}"#).expect("bins").expect("some");
    assert_eq!(bins.edges, [1.0, 2.0, 5.0, 8.0, 9.0]);
    let wanted = [0.01, 0.04, 0.45, 0.45, 0.04, 0.01];
    assert!(bins.shares.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-12), "{bins:?}");
    // A press rests at 0 for a while: two quantiles on one value.
    let bins = of(r#"{"q01": 0.0, "q05": 0.0, "q50": 5.0, "q95": 8.0}"#).expect("bins").expect("some");
    assert_eq!((bins.edges.as_slice(), bins.shares[0]), (&[0.0, 5.0, 8.0][..], 0.05));
    assert_eq!(of(r#"{"q05": 1.0, "q95": 1.0}"#), Ok(None));
    assert!(of(r#"{"q05": 2.0, "q95": 1.0}"#).expect_err("refused").contains("rise"));
    assert!(of(r#"{"p05": 2.0}"#).expect_err("refused").contains("quantile"));
    let deciles = Bins::learn((0..100).map(f64::from).collect()).expect("bins");
    let text = serde_json::to_string(&deciles).expect("JSON");
    assert_eq!(of(&text), Ok(Some(deciles)));
}

/// A monitor with one channel, fed row by row; the rows it took until its first warning.
fn rows_to_warning(bins: &Bins, values: &[f64]) -> Option<usize> {
    let (digest, channels, reference) = ("d".into(), ["flow".into()], [Some(bins.clone())]);
    let stick = Yardstick { digest: &digest, reference: &reference, channels: &channels };
    let mut monitor = Monitor::default();
    monitor.meet(&stick, Time(0));
    for (i, value) in values.iter().enumerate() {
        let now = Time((i as i64 + 1) * 1_000_000_000);
        monitor.rows(&stick, &[*value as f32]);
        monitor.verdict(Reason::NoAnomalyDetected, None);
        let report = monitor.report(&stick, Duration::from_secs(MIN_ROWS), now);
        if report.is_some_and(|r| r.warning().is_some()) {
            return Some(i + 1);
        }
    }
    None
}

/// 1,000 reports of 300 independent rows without drift: not one warns. What is seen of chance alone is
/// some 0.03.
#[test]
fn without_drift_warnings_are_rare() {
    let bins = Bins::learn(sample(1, 5_000, 20.0, 2.0)).expect("bins");
    assert_eq!(rows_to_warning(&bins, &sample(2, 300_000, 20.0, 2.0)), None);
}

#[test]
fn a_restart_counts_on_where_it_was() {
    let bins = Bins::learn(sample(1, 5_000, 20.0, 2.0)).expect("bins");
    let (digest, channels, reference) = ("d".into(), ["flow".into()], [Some(bins)]);
    let stick = Yardstick { digest: &digest, reference: &reference, channels: &channels };
    let mut monitor = Monitor::default();
    monitor.meet(&stick, Time(0));
    monitor.rows(&stick, &[20.0, 21.0]);
    monitor.verdict(Reason::AnomalyDetected, Some(0.01));
    let bytes = postcard::to_stdvec(&monitor).expect("encoded");
    let mut back: Monitor = postcard::from_bytes(&bytes).expect("decoded");
    back.meet(&stick, Time(5));
    assert_eq!(back, monitor);
    let other = "e".into();
    back.meet(&Yardstick { digest: &other, ..stick }, Time(5));
    assert_eq!((back.rows, back.since), (0, Time(5)));
}

#[test]
fn alarms_are_held_against_their_budget() {
    let mut rate = AlarmRate::default();
    assert_eq!(rate.per_day(), None);
    // Two machines for a day each with a promise of 1 a week, and three alarms.
    let start = 1_700_000_000_000_000_000;
    for minute in 0..1440 {
        let now = Time(start + minute * 60_000_000_000);
        (0..2).for_each(|_| rate.watched(now, 60.0, 1.0 / 7.0));
    }
    (0..3).for_each(|_| rate.raised());
    let (promised, measured, days) = rate.per_day().expect("a rate");
    assert!((promised - 1.0 / 7.0).abs() < 1e-9, "{promised}");
    assert!((days - 2.0).abs() < 0.05 && (measured - 3.0 / days).abs() < 1e-9, "{days} {measured}");
}

proptest! {
    #[test]
    fn figures_stay_within_their_bounds(counts in prop::collection::vec(0u64..1000, 2..20)) {
        let expected = vec![1.0 / counts.len() as f64; counts.len()];
        let (psi, ks, low) = (psi(&expected, &counts), ks(&expected, &counts), low_excess(&expected, &counts));
        prop_assert!(psi >= 0.0 && psi.is_finite());
        prop_assert!((0.0..=1.0 + 1e-9).contains(&ks) && low <= ks + 1e-12);
        if let [first, rest @ ..] = counts.as_slice() && *first > 0 && rest.iter().all(|c| c == first) {
            prop_assert!(psi < 1e-9 && ks < 1e-9);
        }
    }

    /// A shift by one deviation either way, or twice the spread, is warned of by the first report, which is
    /// of 300 rows.
    #[test]
    fn a_shift_is_seen_within_the_first_report(seed in 1u64..1_000_000, down: bool, wide: bool) {
        let bins = Bins::learn(sample(seed, 5_000, 20.0, 2.0)).expect("bins");
        let shift = if down { -2.0 } else { 2.0 };
        let (mean, spread) = if wide { (20.0, 4.0) } else { (20.0 + shift, 2.0) };
        prop_assert_eq!(rows_to_warning(&bins, &sample(seed + 1, 600, mean, spread)), Some(MIN_ROWS as usize));
    }

    #[test]
    fn uniform_p_values_are_near_uniform_and_others_are_not(seed: u64) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut even, mut low, mut high) = (PValues::default(), PValues::default(), PValues::default());
        for _ in 0..500 {
            let u = rng.f64();
            even.add(u);
            low.add(u * u * u);
            high.add(1.0 - u * u * u);
        }
        prop_assert!(even.ks() < 0.1, "{}", even.ks());
        // The distance of u cubed from u is greatest, 0.385, where u is the square root of a third.
        prop_assert!((low.low_excess() - 0.385).abs() < 0.1, "{}", low.low_excess());
        prop_assert!(high.low_excess() < 0.05 && (high.ks() - 0.385).abs() < 0.1);
    }

    #[test]
    fn a_place_is_always_a_bin(values in prop::collection::vec(-1e9f64..1e9, 20..200), v: f64) {
        if let Some(bins) = Bins::learn(values) {
            prop_assert!(bins.check().is_ok(), "{bins:?}");
            prop_assert!(bins.place(v) < bins.shares.len());
        }
    }
}
