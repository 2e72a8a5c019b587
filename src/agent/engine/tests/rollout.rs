//! Candidates beside the model in use: let in, sent back, and killed at every step; each window end with
//! exactly one verdict whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::types::{FailurePolicy, Kind, Measured, ModelNews, Release, Rollout, Stage};

fn candidate(version: &str, seed: u64, scale: f64) -> Arc<Model> {
    learn(version, seed, |reference| {
        for score in reference["scores"].as_array_mut().expect("a list") {
            *score = (score.as_f64().expect("a number") * scale).into();
        }
    })
}

fn good() -> Arc<Model> {
    static MODEL: std::sync::OnceLock<Arc<Model>> = std::sync::OnceLock::new();
    MODEL.get_or_init(|| candidate("2", 2, 1.0)).clone()
}

fn release(model: &Model) -> Release {
    release_of(model)
}

fn rollout() -> Rollout {
    let (shadow, bake) = (Duration::from_secs(4), Duration::from_secs(4));
    Rollout { shadow, canary: vec!["pump-1".into()], bake, failure_policy: FailurePolicy::Rollback }
}

fn offer(model: &Model, at: Time) -> Input {
    Input::Rollout(ModelNews::Candidate { at, release: release(model), rollout: rollout() })
}

fn stocked(models: &[Arc<Model>]) -> Engine {
    let mut engine = engine_with(learnt_model());
    engine.stock(models.iter().cloned());
    engine
}

/// Two well pumps for some seconds, as groups of half a second, with other inputs at given seconds.
fn groups(seconds: i64, others: &[(i64, Input)]) -> Vec<Group> {
    let channels = pump_model().manifest().channels.clone();
    let mut rng = fastrand::Rng::with_seed(7);
    let mut out = Vec::new();
    for half in 0..seconds * 2 {
        let mut inputs: Vec<Input> =
            others.iter().filter(|(at, _)| half == at * 2).map(|(_, input)| input.clone()).collect();
        let mut readings = Vec::new();
        for step in half * 5 + 1..=half * 5 + 5 {
            for pump in ["pump-1", "pump-2"] {
                for c in &channels {
                    let value = c.mean + c.std * 0.1 * (rng.f64() - 0.5);
                    readings.push(Reading::good(pump.into(), c.name.as_str().into(), Time(step * 100 * MS), value));
                }
            }
        }
        inputs.push(Input::Readings(Time((half * 5 + 5) * 100 * MS), readings));
        out.push(Group { inputs });
    }
    out
}

fn seconds(n: i64) -> Time {
    Time(n * 1000 * MS)
}

fn run(engine: &mut Engine, groups: &[Group]) -> Vec<Record> {
    groups.iter().flat_map(|g| engine.step(g).records).collect()
}

fn steps(records: &[Record]) -> Vec<(String, String)> {
    let models = records.iter().filter(|r| r.kind == Kind::Model);
    let data = models.map(|r| serde_json::from_str::<serde_json::Value>(&r.data).expect("JSON"));
    let text = |v: &serde_json::Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
    data.filter(|d| d["event"] == "rollout").map(|d| (text(&d, "stage"), text(&d, "reason"))).collect()
}

/// Window ends of each machine: each once, none left out, whoever judged them.
fn check_windows(records: &[Record], seconds: i64) -> BTreeMap<String, BTreeMap<String, usize>> {
    let mut ends: BTreeMap<String, BTreeSet<Time>> = BTreeMap::new();
    let mut versions: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for r in records.iter().filter(|r| r.kind == Kind::Verdict) {
        assert!(ends.entry(r.subject.to_string()).or_default().insert(r.at), "judged twice: {r:?}");
        assert!(ids.insert(r.id));
        let data: serde_json::Value = serde_json::from_str(&r.data).expect("JSON");
        let version = data["model_version"].as_str().expect("a version").to_owned();
        *versions.entry(r.subject.to_string()).or_default().entry(version).or_default() += 1;
    }
    for (machine, ends) in &ends {
        let (first, last) = (ends.first().expect("ends").0, ends.last().expect("ends").0);
        assert_eq!(ends.len() as i64, (last - first) / (100 * MS) + 1, "{machine} has holes");
        assert!(ends.len() as i64 >= seconds * 10 - 5, "{machine}: {}", ends.len());
    }
    versions
}

#[test]
fn a_good_candidate_comes_in_step_by_step_and_every_window_has_one_verdict() {
    let mut engine = stocked(&[good()]);
    let records = run(&mut engine, &groups(24, &[(4, offer(&good(), seconds(4)))]));
    let stages: Vec<String> = steps(&records).into_iter().map(|(stage, _)| stage).collect();
    assert_eq!(stages, ["shadow", "canary", "baking", "active"], "{:?}", steps(&records));
    let versions = check_windows(&records, 24);
    // The canary was first, by the time it was watched alone.
    let of = |pump: &str| versions[pump]["2"];
    assert!((35..=50).contains(&(of("pump-1") - of("pump-2"))), "{versions:?}");
    assert!(versions["pump-1"]["1"] >= 80, "{versions:?}");
    let now = &engine.versions()[0];
    assert_eq!((now.model.digest(), now.trial.is_none()), (good().digest(), true));
    // What it has learnt in the shadow it goes on with.
    assert!(engine.units.iter().all(|u| u.state.memory.digest.as_ref() == Some(good().digest())));
}

#[test]
fn an_alarm_happy_or_drifting_candidate_is_refused_in_the_shadow_with_the_reason() {
    for (scale, why) in [(1e-3, "anomalies, the incumbent"), (1e3, "from uniform, the incumbent's")] {
        let bad = candidate("3", 3, scale);
        let mut engine = stocked(std::slice::from_ref(&bad));
        let records = run(&mut engine, &groups(14, &[(4, offer(&bad, seconds(4)))]));
        let steps = steps(&records);
        assert_eq!(steps.len(), 2, "{steps:?}");
        assert!(steps[1].0 == "refused" && steps[1].1.contains(why), "{steps:?}");
        let versions = check_windows(&records, 14);
        assert!(versions.values().all(|v| !v.contains_key("3")), "nothing of it is published: {versions:?}");
        assert!(!records.iter().any(|r| r.kind == Kind::Alarm), "and it raises nothing");
    }
}

#[test]
fn a_slow_canary_goes_back_and_no_window_is_lost() {
    let slow = Measured { runs: 200, median_ms: 10.0, p99_ms: 80.0, grown_mb: 100.0 };
    let told = |at| Input::Rollout(ModelNews::Measured { at, release: release(&good()), measured: slow });
    let mut engine = stocked(&[good()]);
    let others = [(4, offer(&good(), seconds(4))), (10, told(seconds(10)))];
    let records = run(&mut engine, &groups(16, &others));
    let found = steps(&records);
    assert_eq!(found.last().map(|s| s.0.as_str()), Some("rolled_back"), "{found:?}");
    assert!(found.last().expect("steps").1.contains("compat.p99_ms is 50"), "{found:?}");
    let versions = check_windows(&records, 16);
    assert!(versions["pump-1"]["2"] > 5 && !versions["pump-2"].contains_key("2"), "{versions:?}");
    // With the policy to report it stays, and is told of once.
    let mut patient = rollout();
    patient.failure_policy = FailurePolicy::Report;
    let offer = Input::Rollout(ModelNews::Candidate { at: seconds(4), release: release(&good()), rollout: patient });
    let records =
        run(&mut stocked(&[good()]), &groups(16, &[(4, offer), (10, told(seconds(10))), (11, told(seconds(11)))]));
    let found = steps(&records);
    let told = found.iter().filter(|(_, why)| why.contains("a person decides")).count();
    assert!(told == 1 && !found.iter().any(|(stage, _)| stage == "rolled_back"), "{found:?}");
}

#[test]
fn the_version_before_is_kept_and_can_be_gone_back_to() {
    let mut engine = stocked(&[good()]);
    let third = candidate("3", 3, 1.0);
    engine.stock([third.clone()]);
    let back = |at, digest: &str| {
        Input::Rollout(ModelNews::Withdraw {
            at,
            model: "learnt".into(),
            digest: digest.into(),
            reason: "Ann: odd".into(),
        })
    };
    let others = [
        (2, offer(&good(), seconds(2))),
        (20, offer(&third, seconds(20))),
        (38, back(seconds(38), "")),
        (40, back(seconds(40), "")),
        (42, back(seconds(42), "")),
    ];
    let records = run(&mut engine, &groups(44, &others));
    let stages: Vec<String> = steps(&records).into_iter().map(|(stage, _)| stage).collect();
    let way = ["shadow", "canary", "baking", "active"];
    assert_eq!(stages, [&way[..], &way[..], &["rolled_back", "rolled_back"][..]].concat(), "{:?}", steps(&records));
    let versions = check_windows(&records, 44);
    assert!(versions["pump-2"].len() == 3, "{versions:?}");
    assert_eq!(engine.versions()[0].model.digest(), learnt_model().digest(), "the configured one is always there");
}

#[test]
fn what_cannot_stand_in_is_refused() {
    let mut engine = stocked(&[]);
    let stranger = Release { model: "learnt".into(), version: "9".into(), sequence: 9, digest: "none".into() };
    let nobody = Release { model: "nobody".into(), ..stranger.clone() };
    // Of the same name, and cut otherwise.
    let other = learn_steps("4", 4, 20, |_| {});
    let wide = release(&other);
    engine.stock([other]);
    let offer = |release: &Release| Group {
        inputs: vec![Input::Rollout(ModelNews::Candidate {
            at: seconds(1),
            release: release.clone(),
            rollout: Rollout::default(),
        })],
    };
    for (release, why) in [(stranger, "no longer there"), (nobody, "no [[machine]]"), (wide, "its windows are")] {
        let records = engine.step(&offer(&release)).records;
        let steps = steps(&records);
        assert!(steps.len() == 1 && steps[0].0 == "refused" && steps[0].1.contains(why), "{steps:?}");
    }
}

#[test]
fn a_candidate_that_a_restart_does_not_find_is_withdrawn_and_the_incumbent_goes_on() {
    let all = groups(20, &[(2, offer(&good(), seconds(2)))]);
    let mut engine = stocked(&[good()]);
    let mut records = run(&mut engine, &all[..22]);
    let kept = engine.snapshot();
    let mut engine = stocked(&[]);
    engine.restore(&kept).expect("restored");
    assert_eq!(engine.missing(), [release(&good())]);
    let (reason, stage) = ("it cannot be loaded".into(), Stage::Shadow);
    let gone = ModelNews::Unusable { at: seconds(11), release: release(&good()), stage, reason };
    records.extend(engine.step(&Group { inputs: vec![Input::Rollout(gone)] }).records);
    records.extend(run(&mut engine, &all[22..]));
    assert_eq!(steps(&records).last().map(|s| s.0.as_str()), Some("rolled_back"));
    check_windows(&records, 20);
    assert!(engine.missing().is_empty());
}

#[test]
fn what_was_heard_is_rolled_back_though_the_replay_went_without_it() {
    for (stage, end) in [(Stage::Selftest, "refused"), (Stage::Shadow, "refused"), (Stage::Canary, "rolled_back")] {
        let mut engine = stocked(&[good()]);
        // Not yet in the canary, as after a replay without it.
        let mut records = run(&mut engine, &groups(4, &[(2, offer(&good(), seconds(2)))]));
        let gone = ModelNews::Unusable { at: seconds(5), release: release(&good()), stage, reason: "crashes".into() };
        records.extend(engine.step(&Group { inputs: vec![Input::Rollout(gone)] }).records);
        assert_eq!(steps(&records), [("shadow".into(), steps(&records)[0].1.clone()), (end.into(), "crashes".into())]);
        assert_eq!(engine.trials().count(), 0);
    }
}

#[test]
fn models_in_service_are_reported_on() {
    let mut engine = stocked(&[]);
    engine.report_every(Duration::from_secs(10));
    let records = run(&mut engine, &groups(45, &[]));
    let reports: Vec<serde_json::Value> = records
        .iter()
        .filter(|r| r.kind == Kind::Model)
        .map(|r| serde_json::from_str(&r.data).expect("JSON"))
        .collect();
    // 300 rows of two machines take some 15 s.
    assert!((2..=3).contains(&reports.len()), "{reports:#?}");
    for r in &reports {
        assert_eq!((r["event"].as_str(), r["warning"].is_null()), (Some("drift"), true), "{r:#}");
        let psi = r["channels"][0]["psi"].as_f64().expect("learn writes the reference");
        assert!(psi < 0.15, "{r:#}");
        assert!((r["false_alarms_promised_per_machine_day"].as_f64().expect("a budget") - 1.0 / 7.0).abs() < 1e-6);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    /// Killed anywhere in a rollout, and again, and gone on from a snapshot and the groups after it: the
    /// same records, byte for byte.
    #[test]
    fn a_crash_in_a_rollout_changes_nothing(kills in prop::collection::vec(0usize..44, 1..4), lag in 0usize..6) {
        let all = groups(22, &[(3, offer(&good(), seconds(3)))]);
        let plain = run(&mut stocked(&[good()]), &all);
        prop_assert_eq!(steps(&plain).len(), 4);
        let (mut engine, mut kept, mut kept_at): (Engine, Option<Vec<u8>>, usize) = (stocked(&[good()]), None, 0);
        let mut records: Vec<Vec<Record>> = Vec::new();
        for at in 0..all.len() {
            if kills.contains(&at) {
                engine = stocked(&[good()]);
                if let Some(kept) = &kept {
                    engine.restore(kept).expect("restored");
                }
                for (n, group) in all[kept_at..at].iter().enumerate() {
                    prop_assert_eq!(&engine.step(group).records, &records[kept_at + n], "the replay makes the same");
                }
            }
            records.push(engine.step(&all[at]).records);
            if at % 7 == lag {
                (kept, kept_at) = (Some(engine.snapshot()), at + 1);
            }
        }
        prop_assert_eq!(plain, records.concat());
    }
}
