//! Records as CloudEvents: their shape, and batches of them.

use super::*;
use crate::types::{Kind, Record, RecordId};

fn stored(sequence: u64, kind: Kind, subject: &str, data: &str) -> Stored {
    let at = "2026-11-22T10:15:30.250Z".parse().expect("a time");
    let id = RecordId::of(&[subject.as_bytes(), &sequence.to_le_bytes()]);
    Stored { sequence, record: Record { id, kind, subject: subject.into(), at, data: data.into() } }
}

fn verdict() -> Stored {
    let data = r#"{"timestamp":"2026-11-22T10:15:30.250Z","machine":"press-04","model":"bearing-ae","model_version":"4","prediction":1,"prediction_reason":"ANOMALY_DETECTED","anomaly_score":0.72385,"p_value":0.0007,"threshold":0.001,"health":0.62,"rul":null,"quality":"good","top_channel":"vib_x","diagnostics":[{"name":"vib_x","value":0.41},{"name":"temp","value":0.22}]}"#;
    stored(123_456, Kind::Verdict, "press-04", data)
}

fn encode(encoder: &Encoder, records: &[Stored]) -> Encoded {
    let mut encoded = Encoded::default();
    records.iter().for_each(|r| encoder.add(r, &mut encoded).expect("valid data"));
    encoded
}

fn encoder() -> Encoder {
    Encoder::new("lyon/line3", "gw-07", Privacy::default())
}

#[test]
fn a_verdict_as_a_single_event() {
    let encoded = encode(&encoder(), &[verdict()]);
    insta::assert_snapshot!(String::from_utf8_lossy(encoded.event(0)));
}

#[test]
fn a_batch_is_an_array_of_events() {
    let records = Kind::ALL.map(|kind| stored(kind as u64, kind, "pump-1", r#"{"machine":"pump-1"}"#));
    let batch = encode(&encoder(), &records).batch(&[0, 1, 2, 3, 4, 5]);
    let events: Vec<serde_json::Value> = serde_json::from_slice(&batch).expect("an array");
    let lines: Vec<String> = events.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(lines.join("\n"));
}

#[test]
fn a_batch_of_some() {
    let encoded = encode(&encoder(), &[1, 2, 3].map(|n| stored(n, Kind::Gap, "x", "{}")));
    let events: Vec<serde_json::Value> = serde_json::from_slice(&encoded.batch(&[0, 2])).expect("an array");
    assert_eq!(events[1]["sequence"], "00000000000000000003");
    assert_eq!(encoded.batch(&[]), b"[]");
    assert_eq!(encoded.sizes()[1], encoded.event(1).len());
}

#[test]
fn the_source_is_a_uri_reference() {
    let source = |site, agent| Encoder::new(site, agent, Privacy::default()).source;
    assert_eq!(source("lyon/line3", "gw-07"), "/andon/lyon/line3/gw-07");
    assert_eq!(source("Köln Werk 2/", "gw 1"), "/andon/K%C3%B6ln%20Werk%202/gw%201");
    assert_eq!(source("", "gw"), "/andon/gw");
}

#[test]
fn an_empty_subject_is_left_out() {
    let encoded = encode(&encoder(), &[stored(1, Kind::Usage, "", "{}")]);
    let event: serde_json::Value = serde_json::from_slice(encoded.event(0)).expect("an event");
    assert!(event.get("subject").is_none() && event.get("partitionkey").is_none(), "{event}");
}

#[test]
fn broken_data_leaves_the_others_whole() {
    let mut encoded = Encoded::default();
    assert!(encoder().add(&stored(1, Kind::Gap, "x", "{\"a\":"), &mut encoded).is_err());
    assert!(encoder().add(&stored(2, Kind::Gap, "x", "{}"), &mut encoded).is_ok());
    assert_eq!(encoded.len(), 2);
    assert_eq!(encoded.event(0), b"");
    assert!(serde_json::from_slice::<Vec<serde_json::Value>>(&encoded.batch(&[1])).is_ok());
}
