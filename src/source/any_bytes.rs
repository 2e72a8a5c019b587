//! The sources' parsers as functions of bytes, for `crate::fuzz`.

use std::time::Duration;

use super::payload::{Config, Found};
use super::sparkplug::{Host, Naming, Settings};
use super::topic::Pattern;
use crate::mqtt::sparkplug::{self as wire, Topic, Verb};
use crate::settings::{Document, Surroundings};
use crate::types::{Quality, Time};

fn payload(settings: &[&str], bytes: &[u8]) {
    for text in settings {
        let document = Document::parse(text, Surroundings::default());
        let config = Config::read(&document.root(), true);
        assert!(document.into_problems().is_empty(), "{text}");
        let mut found = Found::default();
        if config.decode(bytes, &mut found).is_ok() {
            assert!(found.values().all(|v| v.1.is_none_or(f64::is_finite)) && found.values().next().is_some());
        }
    }
}

/// One value at a pointer, and every numeric member.
pub fn json(bytes: &[u8]) {
    payload(&["value = \"/value\"\ntime = \"/ts\"\ntime_format = \"unix_ms\"", "time = \"/a/b\"", ""], bytes);
}

/// Arrays of samples.
pub fn samples(bytes: &[u8]) {
    payload(
        &[
            "samples = \"/data/0\"\nvalue = \"/v\"\ntime = \"/t\"\ntime_format = \"unix_s\"",
            "samples = \"/s\"\ntime = \"/t\"",
        ],
        bytes,
    );
}

/// A bare number.
pub fn number(bytes: &[u8]) {
    payload(&["payload = \"number\""], bytes);
}

/// Lines of values.
pub fn csv(bytes: &[u8]) {
    payload(&["payload = \"csv\"", "payload = \"csv\"\nvalue = \"2\"\ntime = \"1\"\ntime_format = \"unix_us\""], bytes);
}

/// Line protocol.
pub fn influx(bytes: &[u8]) {
    payload(&["payload = \"influx\"", "payload = \"influx\"\ntime_format = \"unix_s\""], bytes);
}

/// Messages of one edge node, each after a byte for its kind and two for its length.
pub fn sparkplug(bytes: &[u8]) {
    const VERBS: [Verb; 6] = [Verb::NBirth, Verb::NData, Verb::NDeath, Verb::DBirth, Verb::DData, Verb::DDeath];
    let settings = Settings { naming: Naming::Device, rebirth: true, hold: Some(Duration::from_secs(1)) };
    let (mut host, mut out, mut rest, mut now) = (Host::new(settings), Vec::new(), bytes, 0);
    while let Some(([kind, high, low], after)) = rest.split_first_chunk::<3>() {
        let (message, after) = after.split_at(after.len().min(usize::from(u16::from_be_bytes([*high, *low]))));
        (rest, now) = (after, now + 1_000_000_000);
        let verb = VERBS[usize::from(*kind) % VERBS.len()];
        let device = (usize::from(*kind) % VERBS.len() > 2).then_some("press");
        let topic = Topic::write("plant", verb, "edge", device);
        host.take(&topic, &"edge".into(), message, Time(now), &mut out);
        assert!(out.iter().all(|r| r.quality != Quality::Good || r.value.is_finite()));
        out.clear();
        if let Ok(read) = wire::decode(message) {
            let _ = wire::decode(&wire::encode(&read)).expect("what was read can be written and read");
        }
    }
}

/// A pattern on the first line, a topic on the second.
pub fn topic(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (pattern, topic) = text.split_once('\n').unwrap_or((&text, "a/b"));
    if let Ok(pattern) = Pattern::parse(pattern) {
        assert!(!pattern.filter().is_empty());
        if let Some(named) = pattern.matches(topic) {
            assert!(named.machine.is_none_or(|m| topic.contains(m)) && named.signal.is_none_or(|s| topic.contains(s)));
        }
    }
}
