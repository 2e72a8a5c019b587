//! The engine as a whole: what it makes of readings, silence, restarts and models that learn.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::alarm::Config as AlarmConfig;
use crate::model::learnt::Learnt;
use crate::model::write;
use crate::pipeline::Settings;

const MS: i64 = 1_000_000;

fn pump_model() -> Arc<Model> {
    // Loading takes a while in a debug build: once is enough.
    static MODEL: std::sync::OnceLock<Arc<Model>> = std::sync::OnceLock::new();
    let load = || Model::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pump-anomaly")).expect("the bundle");
    MODEL.get_or_init(load).clone()
}

/// An adaptive model as `andon learn` would make it, of the pump's channels with a window of 1 s.
fn learnt_model() -> Arc<Model> {
    static MODEL: std::sync::OnceLock<Arc<Model>> = std::sync::OnceLock::new();
    MODEL.get_or_init(|| learn("1", 1, |_| {})).clone()
}

/// The same from other data of the same machine; `edit` may change its reference.
fn learn(version: &str, seed: u64, edit: impl Fn(&mut serde_json::Value)) -> Arc<Model> {
    learn_steps(version, seed, 10, edit)
}

/// The same with windows of so many steps.
fn learn_steps(version: &str, seed: u64, steps: usize, edit: impl Fn(&mut serde_json::Value)) -> Arc<Model> {
    let channels = pump_model().manifest().channels.clone();
    let names: Vec<String> = channels.iter().map(|c| c.name.clone()).collect();
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut row = |_| channels.iter().map(|c| c.mean + c.std * 0.1 * (rng.f64() - 0.5)).collect::<Vec<f64>>();
    let rows: Vec<Vec<f64>> = (0..60 * steps).map(&mut row).collect();
    let fitted = Learnt::fit(std::slice::from_ref(&rows), &names, steps, &Limit::PValue(1e-4)).expect("fitted");
    let about = write::About {
        name: "learnt".into(),
        version: version.into(),
        channels: names,
        left_out: Vec::new(),
        rate: Duration::from_millis(100),
        source: "a test".into(),
        at: Time(0),
        metrics: serde_json::Value::Null,
    };
    let dir = tempfile::tempdir().expect("a directory");
    let windows: Vec<Vec<f64>> = rows.chunks(steps).map(<[Vec<f64>]>::concat).collect();
    write::bundle(dir.path(), &about, &fitted, &windows).expect("written");
    let change = |file: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let path = dir.path().join(file);
        let mut value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
        change(&mut value);
        std::fs::write(path, value.to_string()).expect("written");
    };
    change("reference.json", &edit);
    change("model.json", &|m| {
        m["digests"] = serde_json::json!({});
        m["sequence"] = version.parse::<u64>().expect("a number").into();
        m["compat"] = serde_json::json!({"p99_ms": 50.0, "max_ram_mb": 4096});
    });
    Model::load(dir.path()).expect("loaded")
}

pub(super) fn engine() -> Engine {
    engine_with(pump_model())
}

fn engine_with(model: Arc<Model>) -> Engine {
    let settings = Settings {
        rate: None,
        stale_after: vec![("*".into(), Duration::from_secs(1))],
        lateness: None,
        running: None,
        ranges: Vec::new(),
        stuck_after: None,
    };
    let (steps, stride, rate) = (model.manifest().steps, model.manifest().stride, model.manifest().rate);
    let layout = Layout::new(&settings, model.channel_names().to_vec(), steps, stride, rate);
    let block = Block {
        matcher: WildMatch::new("pump-*"),
        model: Some(model),
        layout: Arc::new(layout),
        limit: Limit::PValue(1e-4),
        alarm: AlarmConfig { off_delay: Duration::from_secs(1), ..AlarmConfig::default() },
        suppress: None,
    };
    Engine::new(Recorder::new("site", "gw"), vec![block], 8)
}

/// Two pumps for some seconds, the second of which goes wrong half-way; every now and then a
/// channel is missing.
pub(super) fn course(seconds: i64, holes: &[usize]) -> Vec<Reading> {
    let channels = pump_model().manifest().channels.clone();
    let mut out = Vec::new();
    for step in 0..seconds * 10 {
        for pump in ["pump-1", "pump-2"] {
            let trouble = pump == "pump-2" && step > seconds * 5;
            for (i, c) in channels.iter().enumerate() {
                let wobble = ((step * 7 + i as i64) % 13) as f64 / 13.0 - 0.5;
                let value = c.mean + c.std * (0.05 * wobble + if trouble && i == 3 { 6.0 } else { 0.0 });
                let signal: Name = c.name.as_str().into();
                out.push(Reading::good(pump.into(), signal, Time((step + 1) * 100 * MS), value));
            }
        }
    }
    holes.iter().for_each(|h| drop(out.remove(h % out.len())));
    out
}

/// Feeds readings in groups of these sizes; the group each came in decides nothing.
fn feed(engine: &mut Engine, readings: &[Reading], sizes: &[usize]) -> Vec<Record> {
    let (mut records, mut at, mut sizes) = (Vec::new(), 0, sizes.iter().cycle());
    while at < readings.len() {
        let end = readings.len().min(at + sizes.next().copied().unwrap_or(64).max(1));
        let arrived = readings[end - 1].at;
        let group = Group { inputs: vec![Input::Readings(arrived, readings[at..end].to_vec())] };
        records.extend(engine.step(&group).records);
        at = end;
    }
    records
}

fn sorted(mut records: Vec<Record>) -> Vec<Record> {
    records.sort_by_key(|r| (r.at, r.id));
    records
}

#[test]
fn trouble_raises_an_alarm_that_names_the_channel() {
    let mut engine = engine();
    let records = feed(&mut engine, &course(20, &[]), &[16]);
    let alarms: Vec<&Record> = records.iter().filter(|r| r.kind == crate::types::Kind::Alarm).collect();
    assert_eq!(alarms.len(), 1, "{alarms:?}");
    assert_eq!(&*alarms[0].subject, "pump-2");
    assert!(alarms[0].data.contains("\"top_channel\":\"suction_pressure\""), "{}", alarms[0].data);
    let verdict: serde_json::Value = serde_json::from_str(&records.last().expect("records").data).expect("JSON");
    let shares: f64 =
        verdict["diagnostics"].as_array().expect("a list").iter().filter_map(|d| d["value"].as_f64()).sum();
    assert!((shares - 1.0).abs() < 1e-6, "{shares}");
}

#[test]
fn readings_of_unknown_machines_and_beyond_the_limit_are_counted() {
    let mut engine = engine();
    let names = ["press-1".to_owned()].into_iter().chain((0..12).map(|i| format!("pump-{i}")));
    let readings = names.map(|n| Reading::good(n.as_str().into(), "flow".into(), Time(MS), 1.0)).collect();
    let out = engine.step(&Group { inputs: vec![Input::Readings(Time(MS), readings)] });
    assert_eq!(out.tally.dropped.get("no_machine"), Some(&1));
    assert_eq!(out.tally.dropped.get("limit"), Some(&4));
    assert_eq!(engine.machines(), 8);
}

#[test]
fn a_storm_of_names_does_not_grow_memory_and_is_told() {
    let mut engine = engine();
    engine.max_signals = 40;
    // Eight channels of each of two machines are there before any of them is heard.
    let storm =
        (0..100).map(|i| Reading::good(format!("pump-{}", i % 2).into(), format!("x{i}").into(), Time(MS), 1.0));
    let out = engine.step(&Group { inputs: vec![Input::Readings(Time(MS), storm.collect())] });
    assert_eq!((engine.signals, out.tally.dropped.get("limit")), (40, Some(&76)));
    let told = out.tally.full.expect("told");
    assert_eq!(told, r#"signal "x24" of machine "pump-0": 20 signals of it are followed, of all 40"#);
    let mut again = super::tests::engine();
    again.restore(&engine.snapshot()).expect("restored");
    assert_eq!(again.signals, 40);
    let machines = (0..20).map(|i| Reading::good(format!("pump-{i}").into(), "flow".into(), Time(MS), 1.0)).collect();
    let out = engine.step(&Group { inputs: vec![Input::Readings(Time(MS), machines)] });
    assert_eq!(out.tally.full.as_deref(), Some(r#"machine "pump-8": 8 are followed ([agent] max_machines)"#));
}

#[test]
fn a_snapshot_of_another_version_is_refused() {
    let mut engine = engine();
    assert!(engine.restore(b"garbage").is_err());
    let odd = postcard::to_stdvec(&(99u32, 1u64)).expect("encoded");
    assert!(engine.restore(&odd).expect_err("another version").contains("version 99"));
}

#[test]
fn what_another_model_kept_is_not_gone_on_with() {
    let mut learnt = engine_with(learnt_model());
    feed(&mut learnt, &course(5, &[]), &[16]);
    let kept = &learnt.units[0].state.memory;
    assert_ne!(kept.values, learnt_model().initial_state(), "it has learnt something");
    let mut other = engine();
    other.restore(&learnt.snapshot()).expect("restored");
    assert_eq!(other.units[0].state.memory, Memory::default());
    let mut same = engine_with(learnt_model());
    same.restore(&learnt.snapshot()).expect("restored");
    assert_eq!(&same.units[0].state.memory, kept);
}

#[test]
fn a_crash_changes_nothing_of_what_an_adaptive_model_keeps() {
    let readings = course(12, &[5, 700, 1201]);
    let plain = feed(&mut engine_with(learnt_model()), &readings, &[50]);
    let flagged = plain.iter().filter(|r| r.data.contains("ANOMALY_DETECTED") && &*r.subject == "pump-2").count();
    assert!(flagged > 20, "{flagged}");
    let (mut running, mut records) = (engine_with(learnt_model()), Vec::new());
    for part in readings.chunks(137) {
        records.extend(feed(&mut running, part, &[7, 30]));
        let kept = running.snapshot();
        running = engine_with(learnt_model());
        running.restore(&kept).expect("restored");
    }
    assert_eq!(sorted(plain), sorted(records));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// However readings are grouped, and wherever the engine is killed and goes on from a snapshot
    /// and the groups after it, the records are the same, contents included.
    #[test]
    fn a_crash_changes_nothing(
        holes in prop::collection::vec(0usize..3000, 0..6),
        sizes in prop::collection::vec(1usize..200, 1..6),
        kills in prop::collection::vec(0usize..3000, 0..4),
    ) {
        let readings = course(12, &holes);
        let plain = feed(&mut engine(), &readings, &[50]);
        let (mut running, mut records, mut from) = (engine(), Vec::new(), 0);
        let mut kills: Vec<usize> = kills.iter().map(|k| k % readings.len()).collect();
        kills.sort_unstable();
        for kill in kills {
            records.extend(feed(&mut running, &readings[from..kill.max(from)], &sizes));
            from = kill.max(from);
            let kept = running.snapshot();
            running = engine();
            running.restore(&kept).expect("restored");
            prop_assert_eq!(running.ordinal(), records.len() as u64);
        }
        records.extend(feed(&mut running, &readings[from..], &sizes));
        prop_assert_eq!(sorted(plain), sorted(records));
    }

    /// A broker that delivers everything since some moment again adds nothing.
    #[test]
    fn redelivery_adds_nothing(holes in prop::collection::vec(0usize..3000, 0..6), from in 0usize..3000, n in 1usize..900) {
        let readings = course(12, &holes);
        let plain = feed(&mut engine(), &readings, &[64]);
        let from = from % readings.len();
        let again = &readings[from..(from + n).min(readings.len())];
        let mut twice = readings[..from + again.len()].to_vec();
        twice.extend_from_slice(again);
        twice.extend_from_slice(&readings[from + again.len()..]);
        prop_assert_eq!(sorted(plain), sorted(feed(&mut engine(), &twice, &[64])));
    }
}

mod light;
mod people;
mod rollout;
mod scenario;
