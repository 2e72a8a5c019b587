//! Names that begin with `tck_id` are those of the specification's assertions.

use proptest::prelude::*;

use super::*;
use crate::mqtt::sparkplug::datatype::*;

const NODE: &str = "edge";

struct Rig {
    host: Host,
    now: i64,
    out: Vec<Reading>,
}

fn rig() -> Rig {
    let settings = Settings { naming: Naming::Device, rebirth: true, hold: Some(Duration::from_secs(1)) };
    Rig { host: Host::new(settings), now: 10_000_000_000, out: Vec::new() }
}

fn int(name: &'static str, alias: u64, value: i32) -> Metric<'static> {
    let (name, alias) = (Some(name).filter(|n| !n.is_empty()), Some(alias).filter(|a| *a > 0));
    Metric { name, alias, datatype: Some(INT32), value: Value::Int(value as u32), ..Metric::default() }
}

fn untyped(metric: Metric<'static>) -> Metric<'static> {
    Metric { datatype: None, ..metric }
}

fn bd(n: u64) -> Metric<'static> {
    Metric { name: Some(BD_SEQ), datatype: Some(INT64), value: Value::Long(n), ..Metric::default() }
}

impl Rig {
    /// A message, a second after the one before; its own clock is the same as ours.
    fn send(&mut self, verb: Verb, device: Option<&str>, seq: Option<u64>, metrics: Vec<Metric<'_>>) -> Outcome {
        self.now += 1_000;
        let payload = Payload { timestamp: Some(self.now as u64), seq, uuid: None, metrics };
        self.raw(verb, device, &wire::encode(&payload))
    }

    fn raw(&mut self, verb: Verb, device: Option<&str>, payload: &[u8]) -> Outcome {
        let topic = Topic::write("plant", verb, NODE, device);
        let machine = Naming::Device.machine(&Topic::parse(&topic).expect("a topic")).into();
        self.out.clear();
        self.host.take(&topic, &machine, payload, self.at(0), &mut self.out)
    }

    fn at(&self, later_ms: i64) -> Time {
        Time((self.now + later_ms) * 1_000_000)
    }

    /// What the last message said.
    fn said(&self) -> Vec<String> {
        let one = |r: &Reading| match r.quality {
            Quality::Good => format!("{} {} {}", r.machine, r.signal, r.value),
            _ => format!("{} {} {}", r.machine, r.signal, r.cause.as_str()),
        };
        self.out.iter().map(one).collect()
    }

    /// An edge node with a device, both alive; the next sequence number is 2.
    fn born() -> Rig {
        let mut rig = rig();
        let birth = vec![bd(7), int("own", 1, 10)];
        assert_eq!(rig.send(Verb::NBirth, None, Some(0), birth), Outcome::default());
        let birth = vec![int("speed", 2, 20), int("temp/inner", 3, -30)];
        assert_eq!(rig.send(Verb::DBirth, Some("press"), Some(1), birth), Outcome::default());
        rig
    }
}

fn asked() -> Option<String> {
    Some("spBv1.0/plant/NCMD/edge".into())
}

#[test]
fn births_tell_names_and_values() {
    let mut rig = Rig::born();
    assert_eq!(rig.said(), ["edge/press speed 20", "edge/press temp/inner -30"]);
    assert_eq!(rig.out[0].at, rig.at(0));
    assert_eq!(rig.send(Verb::NData, None, Some(2), vec![untyped(int("own", 0, 11))]), Outcome::default());
    assert_eq!(rig.said(), ["edge own 11"]);
}

#[test]
fn tck_id_payloads_alias_data_cmd_requirement() {
    let mut rig = Rig::born();
    let data = vec![untyped(int("", 3, -31)), untyped(int("", 2, 21))];
    assert_eq!(rig.send(Verb::DData, Some("press"), Some(2), data), Outcome::default());
    assert_eq!(rig.said(), ["edge/press temp/inner -31", "edge/press speed 21"]);
}

#[test]
fn tck_id_payloads_sequence_num_incrementing() {
    let mut rig = Rig::born();
    for seq in (2..256).chain(0..3) {
        let outcome = rig.send(Verb::DData, Some("press"), Some(seq), vec![int("speed", 0, seq as i32)]);
        assert_eq!(outcome, Outcome::default(), "{seq}");
    }
}

/// A message is missing: aliases may mean something else by now, so they are not believed until the
/// births have come again. Metrics that name themselves go on.
#[test]
fn tck_id_operational_behavior_host_reordering_rebirth() {
    let mut rig = Rig::born();
    let outcome = rig.send(Verb::DData, Some("press"), Some(4), vec![int("speed", 0, 1), untyped(int("", 3, 2))]);
    assert_eq!(outcome.ask, asked());
    let complaint = outcome.complaint.expect("a complaint");
    assert_eq!(complaint, "messages of this edge node are missing: sequence number 2 was due and 4 came");
    assert_eq!(rig.said(), ["edge/press speed 1"]);
    let outcome = rig.send(Verb::DData, Some("press"), Some(5), vec![untyped(int("", 3, 2))]);
    assert_eq!(outcome.complaint.as_deref(), Some("no birth that still holds tells what alias 3 is"));
    assert_eq!((outcome.ask, rig.said()), (None, vec![]), "not asked twice within two seconds");
    let outcome = rig.send(Verb::DData, Some("press"), Some(6), vec![untyped(int("speed", 0, 2))]);
    assert_eq!(outcome.complaint.as_deref(), Some("no birth that still holds tells the datatype of \"speed\""));
    // The births come, with other aliases.
    rig.send(Verb::NBirth, None, Some(9), vec![bd(7)]);
    rig.send(Verb::DBirth, Some("press"), Some(10), vec![int("speed", 3, 1)]);
    assert_eq!(rig.send(Verb::DData, Some("press"), Some(11), vec![untyped(int("", 3, 5))]), Outcome::default());
    assert_eq!(rig.said(), ["edge/press speed 5"]);
}

#[test]
fn an_unknown_node_is_asked_again_with_growing_pauses() {
    let mut rig = rig();
    let mut asks = Vec::new();
    for i in 0..2_000 {
        let outcome = rig.send(Verb::DData, Some("press"), Some(i % 256), vec![untyped(int("", 3, 2))]);
        assert!(outcome.complaint.is_some());
        if outcome.ask.is_some() {
            asks.push(i);
        }
    }
    assert_eq!(asks, [0, 2, 6, 14, 30, 62, 126, 254, 510, 810, 1110, 1410, 1710]);
}

#[test]
fn without_leave_nobody_is_asked() {
    let mut rig = rig();
    rig.host.settings.rebirth = false;
    assert_eq!(rig.send(Verb::NData, None, Some(1), vec![int("own", 0, 3)]).ask, None);
    assert_eq!(rig.said(), ["edge own 3"]);
    assert_eq!(rig.host.back(Time(0)), [""; 0]);
}

#[test]
fn tck_id_operational_behavior_edge_node_termination_host_action_ndeath_devices_tags_stale() {
    let mut rig = Rig::born();
    assert_eq!(rig.send(Verb::NDeath, None, None, vec![bd(7)]), Outcome::default());
    let mut said = rig.said();
    said.sort();
    assert_eq!(said, ["edge own disconnected", "edge/press speed disconnected", "edge/press temp/inner disconnected"]);
    assert!(rig.out.iter().all(|r| r.quality == Quality::Bad && r.at == rig.at(0)));
    let outcome = rig.send(Verb::DData, Some("press"), Some(2), vec![untyped(int("", 2, 1))]);
    assert_eq!((outcome.ask, rig.said()), (asked(), vec![]));
}

/// The last will of an earlier connection may come after the birth of the next.
#[test]
fn tck_id_payloads_ndeath_bdseq() {
    let mut rig = Rig::born();
    assert_eq!(rig.send(Verb::NDeath, None, None, vec![bd(6)]), Outcome::default());
    assert_eq!(rig.said(), [""; 0]);
    assert_eq!(rig.send(Verb::DData, Some("press"), Some(2), vec![untyped(int("", 2, 1))]), Outcome::default());
    assert_eq!(rig.said(), ["edge/press speed 1"]);
}

#[test]
fn tck_id_operational_behavior_edge_node_termination_host_action_ddeath_devices_tags_stale() {
    let mut rig = Rig::born();
    assert_eq!(rig.send(Verb::DDeath, Some("press"), Some(2), vec![]), Outcome::default());
    assert_eq!(rig.said(), ["edge/press speed disconnected", "edge/press temp/inner disconnected"]);
    assert_eq!(rig.send(Verb::NData, None, Some(3), vec![untyped(int("", 1, 1))]), Outcome::default());
    let birth = vec![int("speed", 2, 22)];
    assert_eq!(rig.send(Verb::DBirth, Some("press"), Some(4), birth), Outcome::default());
    assert_eq!(rig.said(), ["edge/press speed 22"]);
}

#[test]
fn tck_id_payloads_metric_is_null_and_quality() {
    let mut rig = Rig::born();
    let null = Metric { is_null: true, value: Value::None, ..int("speed", 0, 0) };
    let with = |quality| Metric { quality: Some(quality), ..int("speed", 0, 9) };
    let nan = Metric { datatype: Some(DOUBLE), value: Value::Double(f64::NAN), ..int("speed", 0, 0) };
    let data = vec![null, with(0), with(500), with(64), with(192), nan];
    assert_eq!(rig.send(Verb::DData, Some("press"), Some(2), data), Outcome::default());
    let got: Vec<_> = rig.out.iter().map(|r| (r.quality, r.cause)).collect();
    assert_eq!(
        got,
        [
            (Quality::Bad, Cause::Source),
            (Quality::Bad, Cause::Source),
            (Quality::Bad, Cause::Disconnected),
            (Quality::Uncertain, Cause::Source),
            (Quality::Good, Cause::None),
            (Quality::Bad, Cause::NotFinite),
        ]
    );
}

/// Stored values keep their own times and do not become the present one.
#[test]
fn tck_id_payloads_metric_is_historical() {
    let mut rig = Rig::born();
    let old = Metric { is_historical: true, timestamp: Some(5_000), ..int("speed", 0, 1) };
    assert_eq!(rig.send(Verb::DData, Some("press"), Some(2), vec![old]), Outcome::default());
    assert_eq!((rig.out[0].at, rig.out[0].value), (Time(5_000_000_000), 1.0));
    let mut again = Vec::new();
    rig.host.repeat(rig.at(5_000), None, &mut again);
    let speed = again.iter().find(|r| &*r.signal == "speed").expect("it still holds");
    assert_eq!(speed.value, 20.0);
}

#[test]
fn templates_are_taken_apart() {
    let mut rig = Rig::born();
    let inner = Metric { value: Value::Template(vec![int("rpm", 0, 5)]), ..int("drive", 0, 0) };
    let whole = Metric {
        datatype: Some(TEMPLATE),
        value: Value::Template(vec![int("load", 0, 4), inner]),
        ..int("motor", 4, 0)
    };
    assert_eq!(rig.send(Verb::DBirth, Some("press"), Some(2), vec![whole]), Outcome::default());
    assert_eq!(rig.said(), ["edge/press motor/load 4", "edge/press motor/drive/rpm 5"]);
    let part = Metric { value: Value::Template(vec![untyped(int("load", 0, -6))]), ..int("motor", 0, 0) };
    assert_eq!(rig.send(Verb::DData, Some("press"), Some(3), vec![part]), Outcome::default());
    assert_eq!(rig.said(), ["edge/press motor/load -6"]);
}

/// Report by exception: a value that is not told again still holds while its node lives.
#[test]
fn what_does_not_change_is_told_again_by_the_nodes_own_clock() {
    let mut rig = rig();
    // Its clock is an hour behind.
    let sent = rig.now as u64 - 3_600_000;
    let speed = Metric { timestamp: Some(sent), ..int("speed", 2, 20) };
    let payload = Payload { timestamp: Some(sent), seq: Some(0), uuid: None, metrics: vec![speed] };
    rig.raw(Verb::NBirth, None, &wire::encode(&payload));
    let mut told = Vec::new();
    for later in (0..5_000).step_by(500) {
        let mut out = Vec::new();
        rig.host.repeat(rig.at(later), None, &mut out);
        told.extend(out.iter().map(|r| (r.at.0 / 1_000_000 - sent as i64, r.value)));
    }
    assert_eq!(told, [(1000, 20.0), (2000, 20.0), (3000, 20.0)].map(|t| t), "{told:?}");
    rig.send(Verb::NDeath, None, None, vec![]);
    let mut out = Vec::new();
    rig.host.repeat(rig.at(60_000), None, &mut out);
    assert_eq!(out, []);
}

/// Births of strangers are no load for ever: only machines that the engine follows are told again, and so many
/// values of each and of all.
#[test]
fn what_is_told_again_is_bounded_by_what_the_engine_follows() {
    let mut rig = rig();
    let names: Vec<String> = (0..MAX_REPEATS_PER_MACHINE + 10).map(|n| format!("m{n}")).collect();
    let metrics = || names.iter().map(|n| Metric { name: Some(n), ..int("", 0, 1) }).collect::<Vec<_>>();
    for node in 0..60 {
        let payload = Payload { timestamp: Some(rig.now as u64), seq: Some(0), uuid: None, metrics: metrics() };
        let topic = format!("spBv1.0/plant/NBIRTH/n{node}");
        let machine = format!("n{node}").as_str().into();
        rig.host.take(&topic, &machine, &wire::encode(&payload), rig.at(0), &mut rig.out);
    }
    let followed: HashSet<Name> = ["n7".into()].into();
    let mut again = Vec::new();
    let skipped = rig.host.repeat(rig.at(10_000), Some(&followed), &mut again);
    assert_eq!((again.len(), skipped.machine_limit), (MAX_REPEATS_PER_MACHINE, 10));
    assert_eq!(skipped.machine, 59 * names.len() as u64);
    assert!(again.iter().all(|r| &*r.machine == "n7"));
    let mut again = Vec::new();
    let skipped = rig.host.repeat(rig.at(20_000), None, &mut again);
    assert_eq!(again.len(), MAX_REPEATS);
    assert!(skipped.limit > 0);
}

#[test]
fn a_lost_broker_makes_all_of_it_stale_and_births_are_asked_for() {
    let mut rig = Rig::born();
    let mut out = Vec::new();
    rig.host.lost(rig.at(1), &mut out);
    assert_eq!(out.len(), 3);
    assert_eq!(rig.host.back(rig.at(2)), [asked().expect("one")]);
    // The request or the births may get lost, and the node may have nothing to say for days.
    assert_eq!(rig.host.overdue(rig.at(2)), [""; 0]);
    assert_eq!(rig.host.overdue(rig.at(302_000)), [asked().expect("one")]);
    assert_eq!(rig.host.overdue(rig.at(302_000)), [""; 0]);
    // Until they come, what names itself is used, and no number is due.
    let outcome = rig.send(Verb::DData, Some("press"), Some(77), vec![int("speed", 0, 3)]);
    assert_eq!((outcome.complaint, rig.said()), (None, vec!["edge/press speed 3".to_owned()]));
}

#[test]
fn what_is_not_of_edge_nodes_is_passed_over() {
    let mut rig = rig();
    for topic in ["spBv1.0/STATE/scada", "spBv1.0/plant/NCMD/edge", "spBv1.0/plant/DCMD/edge/d"] {
        assert_eq!(rig.host.take(topic, &"m".into(), b"{\"online\":true}", Time(0), &mut rig.out), Outcome::default());
    }
    assert!(rig.host.nodes.is_empty());
    let squeezed = Payload { uuid: Some("SPBV1.0_COMPRESSED"), ..Payload::default() };
    let outcome = rig.raw(Verb::NBirth, None, &wire::encode(&squeezed));
    assert!(outcome.complaint.is_some_and(|c| c.contains("compressed")));
}

#[test]
fn a_storm_of_nodes_does_not_grow_memory() {
    let mut rig = rig();
    let payload = wire::encode(&Payload { seq: Some(0), metrics: vec![int("a", 0, 1)], ..Payload::default() });
    let mut told = 0;
    for i in 0..MAX_NODES + 10 {
        let topic = format!("spBv1.0/g/NBIRTH/{i}");
        let outcome = rig.host.take(&topic, &"m".into(), &payload, Time(0), &mut rig.out);
        told += usize::from(outcome.complaint.is_some_and(|c| c.contains("1000 Sparkplug edge nodes")));
    }
    assert_eq!((rig.host.nodes.len(), rig.host.metrics, told), (MAX_NODES, MAX_NODES, 10));
}

fn any_metric() -> impl Strategy<Value = Metric<'static>> {
    let name = prop::option::of(prop::sample::select(vec!["a", "b", "c/d", BD_SEQ, REBIRTH]));
    (name, prop::option::of(0..4_u64), any::<bool>(), any::<i32>()).prop_map(|(name, alias, typed, value)| {
        let datatype = typed.then_some(INT32);
        Metric { name, alias, datatype, value: Value::Int(value as u32), ..Metric::default() }
    })
}

proptest! {
    /// Whatever comes in whatever order: no panic, the count of metrics is true, and a value under an
    /// alias is only ever taken for what the newest birth says of it.
    #[test]
    fn any_order_of_messages(messages in prop::collection::vec(
        (0..6_usize, any::<bool>(), 0..4_u64, prop::collection::vec(any_metric(), 0..4)), 1..40)) {
        let verbs = [Verb::NBirth, Verb::NData, Verb::NDeath, Verb::DBirth, Verb::DData, Verb::DDeath];
        let mut rig = rig();
        for (verb, sequenced, seq, metrics) in messages {
            let verb = verbs[verb];
            let device = matches!(verb, Verb::DBirth | Verb::DData | Verb::DDeath).then_some("d");
            rig.send(verb, device, sequenced.then_some(seq), metrics);
            let counted: usize = rig.host.nodes.values().map(Node::metrics).sum();
            prop_assert_eq!(rig.host.metrics, counted);
            let mut again = Vec::new();
            rig.host.repeat(rig.at(10_000), None, &mut again);
            prop_assert!(again.iter().all(|r| !is_own(&r.signal)));
        }
    }
}
