//! Names that begin with `tck_id` are those of the specification's assertions.

use std::sync::Arc;

use super::*;
use crate::mqtt::sparkplug::decode;
use crate::types::{MachineState, RecordId};

const BORN: Time = Time(1_000_000_000_000_000);

fn after(seconds: i64) -> Time {
    Time(BORN.0 + seconds * 1_000_000_000)
}

fn node() -> Node {
    let mut node = Node::new("lyon/line3", "gw-07");
    node.connecting();
    node
}

fn record(machine: &str, at: Time, score: f64) -> Record {
    let data =
        format!(r#"{{"anomaly_score":{score},"health":0.5,"rul":null,"prediction":0,"prediction_reason":"OK"}}"#);
    Record { id: RecordId([0; 16]), kind: Kind::Verdict, subject: machine.into(), at, data }
}

fn light(machine: &str, light: MachineState, at: Time) -> Live {
    Live::State { machine: machine.into(), at, light, why: "x".into() }
}

/// A message in one line: topic, sequence number and metrics (by name or alias).
fn shown(m: &Outgoing) -> String {
    let payload = decode(&m.payload).expect("a payload");
    let metric = |m: &Metric<'_>| {
        let who = m.name.map_or_else(|| format!("#{}", m.alias.unwrap_or(0)), str::to_owned);
        let value = match &m.value {
            Value::None => "null".to_owned(),
            Value::Double(n) => n.to_string(),
            Value::Int(n) => n.to_string(),
            Value::Long(n) => n.to_string(),
            Value::Boolean(b) => b.to_string(),
            Value::Text(t) => format!("{t:?}"),
            other => format!("{other:?}"),
        };
        format!("{who}={value}{}", if m.is_historical { " historical" } else { "" })
    };
    let metrics: Vec<String> = payload.metrics.iter().map(metric).collect();
    let seq = payload.seq.map_or("-".to_owned(), |s| s.to_string());
    format!("{} {seq} {}", m.topic, metrics.join(", "))
}

fn all(messages: &[Outgoing]) -> String {
    messages.iter().map(shown).collect::<Vec<_>>().join("\n")
}

#[test]
fn tck_id_topics_nbirth_and_dbirth_metrics() {
    let mut node = node();
    node.news(&light("press/04", MachineState::Green, BORN), BORN);
    insta::assert_snapshot!(all(&node.births(after(1))));
}

#[test]
fn tck_id_payloads_name_birth_data_requirement() {
    let mut node = node();
    node.news(&light("press", MachineState::Green, BORN), BORN);
    for message in node.births(after(1)) {
        let payload = decode(&message.payload).expect("a payload");
        assert_eq!(payload.timestamp, Some(ms(after(1))));
        assert!(payload.metrics.iter().all(|m| m.timestamp.is_some() && m.name.is_some() && m.datatype.is_some()));
        assert!(message.qos == Qos::AtMostOnce && !message.retain);
    }
    let data = node.record(&record("press", after(2), 0.25), after(3));
    let payload = decode(&data[0].payload).expect("a payload");
    assert!(payload.metrics.iter().all(|m| m.timestamp == Some(ms(after(2))) && m.alias.is_some()));
    assert!(payload.metrics.iter().all(|m| m.name.is_none() && m.datatype.is_none()));
}

#[test]
fn tck_id_topics_nbirth_bdseq_increment_and_ndeath_match() {
    let mut node = Node::new("g", "n");
    for connection in (0..256_u64).chain(0..2) {
        node.connecting();
        let death = node.death(BORN);
        assert!(death.qos == Qos::AtLeastOnce && !death.retain);
        assert_eq!(shown(&death), format!("spBv1.0/g/NDEATH/n - bdSeq={connection}"));
        assert!(shown(&node.births(BORN)[0]).contains(&format!(" 0 bdSeq={connection}, ")));
        // A rebirth in the same session keeps it.
        assert!(shown(&node.births(BORN)[0]).contains(&format!(" 0 bdSeq={connection}, ")));
    }
}

#[test]
fn tck_id_payloads_sequence_num_incrementing() {
    let mut node = node();
    node.births(BORN);
    let mut due = 1_u8;
    for i in 1..600 {
        for message in node.record(&record("press", after(i), i as f64), after(i)) {
            assert_eq!(decode(&message.payload).expect("a payload").seq, Some(u64::from(due)));
            due = due.wrapping_add(1);
        }
    }
}

#[test]
fn tck_id_operational_behavior_data_publish_dbirth_change() {
    let mut node = node();
    node.births(BORN);
    let first = node.record(&record("press", after(1), 0.5), after(1));
    insta::assert_snapshot!(all(&first[1..]), @r#"spBv1.0/lyon-line3/DDATA/gw-07/press 2 #1=0.5, #4=0.5, #7=0, #8="OK""#);
    assert_eq!(all(&node.record(&record("press", after(2), 0.5), after(2))), "", "nothing has changed");
    let changed = node.record(&record("press", after(3), 0.75), after(3));
    assert_eq!(all(&changed), "spBv1.0/lyon-line3/DDATA/gw-07/press 3 #1=0.75");
}

/// What could not be sent comes after the births as history; how things stand is in the births.
#[test]
fn tck_id_payloads_metric_is_historical_after_an_outage() {
    let mut node = node();
    node.births(BORN);
    node.record(&record("press", after(1), 0.1), after(1));
    // The connection breaks; two verdicts come meanwhile, live and stored.
    node.connecting();
    for (i, score) in [(2, 0.2), (3, 0.3)] {
        let stored = record("press", after(i), score);
        let verdict = crate::types::Verdict {
            machine: "press".into(),
            at: stored.at,
            model: "m".into(),
            model_version: "1".into(),
            model_digest: "0".into(),
            reason: crate::types::Reason::NoAnomalyDetected,
            score: Some(score),
            p_value: None,
            threshold: 1.0,
            health: None,
            rul: None,
            class: None,
            quality: crate::types::Quality::Good,
            contributions: Vec::new(),
        };
        let told = node.news(&Live::Verdict(Arc::new(verdict), stored.data.into()), after(i));
        assert_eq!(told, Some((None, None)));
    }
    let births = all(&node.births(after(4)));
    assert!(births.contains("bdSeq=1") && births.contains("Anomaly Score=0.3"), "{births}");
    let backlog =
        [(2, 0.2), (3, 0.3), (5, 0.4)].map(|(i, s)| all(&node.record(&record("press", after(i), s), after(6))));
    insta::assert_snapshot!(backlog.join("\n"), @r#"
    spBv1.0/lyon-line3/DDATA/gw-07/press 2 #1=0.2 historical, #4=0.5 historical, #7=0 historical, #8="OK" historical
    
    spBv1.0/lyon-line3/DDATA/gw-07/press 3 #1=0.4
    "#);
}

#[test]
fn what_was_stored_before_a_restart_is_history() {
    let mut node = node();
    node.births(after(600));
    let old = all(&node.record(&record("press", after(1), 0.5), after(601)));
    assert!(old.contains("#1=0.5 historical"), "{old}");
    let new = all(&node.record(&record("press", after(602), 0.5), after(602)));
    assert!(new.contains("DDATA") && !new.contains("historical"), "{new}");
}

#[test]
fn a_new_machine_is_born_and_a_light_is_told_when_it_changes() {
    let mut node = node();
    assert_eq!(node.news(&light("press", MachineState::Green, BORN), BORN), Some((None, None)), "not born yet");
    node.births(BORN);
    let (birth, change) = node.news(&light("pump", MachineState::Off, after(1)), after(1)).expect("room");
    assert!(change.is_none() && shown(&birth.expect("a birth")).starts_with("spBv1.0/lyon-line3/DBIRTH/gw-07/pump 2 "));
    let (birth, change) = node.news(&light("press", MachineState::Red, after(2)), after(2)).expect("room");
    assert!(birth.is_none());
    assert_eq!(shown(&change.expect("data")), r#"spBv1.0/lyon-line3/DDATA/gw-07/press 3 #18="red""#);
    assert_eq!(node.news(&light("press", MachineState::Red, after(3)), after(3)), Some((None, None)));
    // The present state is that of the last data, which may be older than the state that is known.
    let earlier = light("press", MachineState::Green, after(1));
    assert_eq!(node.news(&earlier, after(4)), Some((None, None)), "an event out of order");
    let (_, change) = node.present(&earlier, after(4)).expect("room");
    assert_eq!(shown(&change.expect("data")), r#"spBv1.0/lyon-line3/DDATA/gw-07/press 4 #18="green""#);
}

#[test]
fn a_storm_of_machines_does_not_grow_memory() {
    let mut node = node();
    for i in 0..MAX_MACHINES + 5 {
        let room = node.news(&light(&i.to_string(), MachineState::Green, BORN), BORN).is_some();
        assert_eq!(room, i < MAX_MACHINES);
    }
    assert_eq!(node.devices.len(), MAX_MACHINES);
}
