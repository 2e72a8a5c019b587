//! The hot path piece by piece, with criterion: topic, payload, journal entry, grid and windows, models,
//! records, events, commit and drain. Before that, how often each piece allocates, which no load on the
//! machine can blur. `cargo bench --bench hot [-- FILTER]`

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use andon::agent::blocks;
use andon::agent::engine::Engine;
use andon::agent::input::{Group, Input};
use andon::agent::records::Recorder;
use andon::config::{Config, Needs};
use andon::forward::cloud_events::{Encoded, Encoder};
use andon::forward::privacy::Privacy;
use andon::metrics::Shared;
use andon::model::Model;
use andon::pipeline::{self, Layout, Machine};
use andon::settings::{Document, Surroundings};
use andon::source::payload::{self, Found};
use andon::source::topic::Pattern;
use andon::store::{self, Commit, Store};
use andon::types::{Name, Quality, Reading, Receipt, Record, Stored, Time, Window};
use criterion::{Criterion, Throughput};

/// Readings or records in a group, as under load.
const GROUP: usize = 512;
const MS: i64 = 1_000_000;

fn main() {
    println!("allocations for each, once warm:");
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    topics(&mut criterion);
    payloads(&mut criterion);
    pipelines(&mut criterion);
    engine(&mut criterion);
    models(&mut criterion);
    records(&mut criterion);
    stores(&mut criterion);
    criterion.final_summary();
}

/// Times `work`, which does `n` of something, and says how often it allocates for one.
fn bench(c: &mut Criterion, name: &str, n: usize, mut work: impl FnMut()) {
    work();
    let used = allocation_counter::measure(&mut work);
    let each = |total: u64| total as f64 / n as f64;
    println!("  {name:<40} {:>9.3} allocations {:>11.1} bytes", each(used.count_total), each(used.bytes_total));
    let mut group = c.benchmark_group("hot");
    group.throughput(Throughput::Elements(n as u64));
    group.bench_function(name, |b| b.iter(&mut work));
    group.finish();
}

fn topics(c: &mut Criterion) {
    let pattern = Pattern::parse("factory/{line}/{machine}/{signal}").expect("a pattern");
    bench(c, "topic match", 1, || {
        black_box(pattern.matches(black_box("factory/line3/press-04/motor_current")));
    });
}

fn payloads(c: &mut Criterion) {
    let members: String = (0..20).map(|i| format!(",\"s{i}\":{}", wave(i))).collect();
    let members = format!("{{\"ts\":1735689600000{members}}}");
    let lines: String = (0..100)
        .map(|i| format!("v s0={},s1={} {}\n", wave(i), wave(i + 7), 1_735_689_600_000 + i as u64 * 10))
        .collect();
    let json = "value = \"/value\"\ntime = \"/ts\"\ntime_format = \"unix_ms\"";
    let cases = [
        ("payload json, one value", json, r#"{"value":21.437,"ts":1735689600000}"#, 1),
        ("payload json, 20 members", "time = \"/ts\"\ntime_format = \"unix_ms\"", &members, 20),
        ("payload influx, 200 values", "payload = \"influx\"\ntime_format = \"unix_ms\"", &lines, 200),
        ("payload number", "payload = \"number\"", "21.437", 1),
    ];
    for (name, text, payload, n) in cases {
        let document = Document::parse(text, Surroundings::of(Path::new("bench.toml")));
        let config = payload::Config::read(&document.root(), true);
        let mut found = Found::default();
        bench(c, name, n, || {
            config.decode(black_box(payload.as_bytes()), &mut found).expect("a payload");
            black_box(found.values().count());
        });
    }
}

fn pipelines(c: &mut Criterion) {
    let channels: Vec<Name> = (0..4).map(|i| format!("s{i}").into()).collect();
    let document = Document::parse("", Surroundings::of(Path::new("bench.toml")));
    let settings = pipeline::Settings::read(&document.root());
    let layout = Arc::new(Layout::new(&settings, channels.clone(), 60, 10, Duration::from_millis(100)));
    let mut machine = Machine::new("press-04".into(), layout);
    let mut at = 0;
    bench(c, "grid and windows, 4 signals", 4 * GROUP, || {
        for _ in 0..GROUP {
            at += 100 * MS;
            for signal in &channels {
                let reading = reading("press-04".into(), signal.clone(), at, wave(at as usize));
                black_box(machine.push(&reading, Time(at), false));
            }
            while let Some(step) = machine.pop() {
                black_box(step);
            }
        }
    });
}

const ENGINE: &str = r#"
[agent]
data_dir = "/nowhere"
models_dir = "@MODELS@"
[[machine]]
match = "m*"
model = "one-step"
rate = "100ms"
[machine.channels]
count = "s0"
[machine.alarm]
threshold = 1000000
[[machine]]
match = "*"
"#;

/// A group as the engine takes it: one reading of each of 512 machines.
fn engine(c: &mut Criterion) {
    let text = ENGINE.replace("@MODELS@", &repository("tests/data").display().to_string());
    let config = Config::parse(&text, Path::new("bench.toml"), Needs::default()).expect("a config");
    let names = |kind: &str| -> Vec<Name> { (0..GROUP).map(|i| format!("{kind}{i}").into()).collect() };
    let mut at = 0;
    let mut group = |names: &[Name]| {
        at += 100 * MS;
        let one = |(i, name): (usize, &Name)| reading(name.clone(), "s0".into(), at, wave(i));
        Group { inputs: vec![Input::Readings(Time(at), names.iter().enumerate().map(one).collect())] }
    };
    for (name, kind) in [("engine, a verdict for each reading", "m"), ("engine, no model", "other")] {
        let (blocks, _) = blocks::build(&config).expect("blocks");
        let mut engine = Engine::new(Recorder::new("site", "gw"), blocks, 10_000);
        let names = names(kind);
        bench(c, name, GROUP, || {
            black_box(engine.step(&group(&names)));
        });
        // What memory a machine has is filled up by now.
        bench(c, &format!("snapshot of a machine, {kind}"), GROUP, || {
            black_box(engine.snapshot());
        });
    }
    let names = names("m");
    let whole = group(&names);
    bench(c, "journal entry", GROUP, || {
        black_box(whole.encode());
    });
}

fn models(c: &mut Criterion) {
    let mut dirs: Vec<PathBuf> =
        std::fs::read_dir(repository("models")).expect("models").flatten().map(|e| e.path()).collect();
    dirs.retain(|d| d.join("model.onnx").exists());
    dirs.sort();
    for dir in dirs {
        let model = Model::load(&dir).expect("a bundle");
        let manifest = model.manifest();
        let per_step: Vec<f32> = manifest.channels.iter().map(|ch| ch.mean as f32).collect();
        let window = Window {
            machine: "m".into(),
            end: Time(0),
            data: per_step.repeat(manifest.steps),
            quality: vec![Quality::Good; per_step.len()],
        };
        for n in [1, model.batch()] {
            let (windows, states) = (vec![&window; n], vec![model.initial_state(); n]);
            bench(c, &format!("model {}, {n} windows", model.name()), n, || {
                black_box(model.judge(&windows, &states).expect("a verdict"));
            });
        }
    }
}

fn verdicts() -> (Recorder, Vec<andon::types::Verdict>) {
    let model = Model::load(&repository("tests/data/one-step")).expect("a bundle");
    let limit = andon::model::calibration::Limit::PValue(0.001);
    let verdict = |i: usize| {
        let mut v = model.empty_verdict(
            "press-04".into(),
            Time(i as i64 * 100 * MS),
            andon::types::Reason::NoAnomalyDetected,
            Quality::Good,
            &limit,
        );
        (v.score, v.p_value, v.health) = (Some(wave(i)), Some(0.37), Some(0.93));
        v.contributions = vec![andon::types::Contribution { name: "s0".into(), value: 1.0 }];
        v
    };
    (Recorder::new("site", "gw"), (0..GROUP).map(verdict).collect())
}

fn records(c: &mut Criterion) {
    let (recorder, verdicts) = verdicts();
    bench(c, "record of a verdict", GROUP, || {
        for v in &verdicts {
            black_box(recorder.verdict(v));
        }
    });
    let encoder = Encoder::new("site", "gw", Privacy::default());
    let stored: Vec<Stored> = (verdicts.iter().map(|v| recorder.verdict(v)).zip(0..))
        .map(|(record, sequence)| Stored { sequence, record })
        .collect();
    bench(c, "event of a record", GROUP, || {
        let mut encoded = Encoded::default();
        for s in &stored {
            encoder.add(s, &mut encoded).expect("an object");
        }
        black_box(encoded);
    });
}

/// One group made durable, and taken by a sink.
fn stores(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a directory");
    let (recorder, verdicts) = verdicts();
    let (store, _) = Store::open(&store::Config::default(), dir.path(), &["cloud"], Shared::new()).expect("a store");
    let outbox = store.outbox("cloud").expect("the sink");
    let mut first_ordinal = 0;
    bench(c, "commit 512 verdicts, then drain them", GROUP, || {
        let records: Vec<Record> = verdicts.iter().map(|v| recorder.verdict(v)).collect();
        let (receipt, durable) = Receipt::new();
        let commit = Commit { records, first_ordinal, receipts: vec![receipt], ..Commit::default() };
        first_ordinal += GROUP as u64;
        store.sender().blocking_send(commit).expect("the store");
        durable.blocking_recv().expect("durable");
        let mut taken = 0;
        while taken < GROUP {
            let some = outbox.read(4_096, 8 << 20).expect("records");
            outbox.ack(&some);
            taken += some.len();
        }
    });
    drop(outbox);
    store.close().expect("closed");
}

fn reading(machine: Name, signal: Name, at: i64, value: f64) -> Reading {
    Reading::good(machine, signal, Time(at), value)
}

/// Looks measured: three decimals.
fn wave(n: usize) -> f64 {
    ((n as f64 * 0.37).sin() * 5000.0).round() / 1000.0 + 20.0
}

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
