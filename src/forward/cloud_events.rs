//! Records as CloudEvents 1.0 in JSON, single and in batches. The shape is the contract in
//! "Contract: records" of the design.

use std::fmt::Write;

use serde::Serialize;
use serde_json::value::RawValue;

use super::privacy::{Cleared, Privacy};
use crate::types::Stored;

/// The content type of one event.
pub const SINGLE: &str = "application/cloudevents+json";
/// The content type of an array of events.
pub const BATCH: &str = "application/cloudevents-batch+json";

/// Turns records into events of one agent.
#[derive(Clone, Debug)]
pub struct Encoder {
    source: String,
    privacy: Privacy,
}

#[derive(Serialize)]
struct Event<'a> {
    specversion: &'static str,
    r#type: &'static str,
    source: &'a str,
    id: String,
    // The specification allows no empty ones.
    #[serde(skip_serializing_if = "str::is_empty")]
    subject: &'a str,
    time: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    partitionkey: &'a str,
    sequence: String,
    /// What it came of: a record's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    causationid: Option<&'a str>,
    datacontenttype: &'static str,
    data: &'a RawValue,
}

/// A record in CloudEvents' binary mode: what tells of the event, and the event's data.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Names and values of the attributes, without `datacontenttype`.
    pub attributes: Vec<(&'static str, String)>,
    /// The machine, model or part of the agent, as it may leave.
    pub subject: String,
    /// A JSON object.
    pub data: String,
}

/// Events, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Encoded {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Encoder {
    /// For the agent `agent_id` at `site`: events come from `/andon/{site}/{agent_id}`.
    pub fn new(site: &str, agent_id: &str, privacy: Privacy) -> Encoder {
        let source = ["/andon", site, agent_id].map(|p| p.trim_end_matches('/')).join("/").replace("//", "/");
        Encoder { source: uri_reference(&source), privacy }
    }

    /// Adds one record. An error leaves an event of no bytes in its place.
    ///
    /// # Errors
    /// When the record's data is not a JSON object.
    pub fn add(&self, stored: &Stored, to: &mut Encoded) -> Result<(), serde_json::Error> {
        let start = to.bytes.len();
        let written = self.write(stored, &mut to.bytes);
        if written.is_err() {
            to.bytes.truncate(start);
        }
        to.ends.push(to.bytes.len());
        written
    }

    /// One record as an event by itself.
    ///
    /// # Errors
    /// When the record's data is not a JSON object.
    pub fn event(&self, stored: &Stored) -> Result<Vec<u8>, serde_json::Error> {
        let mut out = Vec::new();
        self.write(stored, &mut out)?;
        Ok(out)
    }

    /// One record for transports that carry attributes beside the data.
    ///
    /// # Errors
    /// When the record's data is not a JSON object.
    pub fn parts(&self, stored: &Stored) -> Result<Parts, serde_json::Error> {
        let record = &stored.record;
        let Cleared { subject, data } = self.privacy.clear(record)?;
        let mut attributes = vec![
            ("specversion", "1.0".to_owned()),
            ("type", record.kind.event_type().to_owned()),
            ("source", self.source.clone()),
            ("id", record.id.to_string()),
            ("time", record.at.to_string()),
            ("sequence", format!("{:020}", stored.sequence)),
        ];
        attributes.extend(causation(&record.data).map(|id| ("causationid", id.to_owned())));
        if !subject.is_empty() {
            attributes.push(("subject", subject.to_string()));
            attributes.push(("partitionkey", subject.to_string()));
        }
        Ok(Parts { attributes, subject: subject.into_owned(), data: data.get().to_owned() })
    }

    fn write(&self, stored: &Stored, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        let record = &stored.record;
        let Cleared { subject, data } = self.privacy.clear(record)?;
        let event = Event {
            specversion: "1.0",
            r#type: record.kind.event_type(),
            source: &self.source,
            id: record.id.to_string(),
            subject: &subject,
            time: record.at.to_string(),
            partitionkey: &subject,
            sequence: format!("{:020}", stored.sequence),
            causationid: causation(&record.data),
            datacontenttype: "application/json",
            data: &data,
        };
        serde_json::to_writer(out, &event)
    }
}

impl Encoded {
    /// How many events there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// One event.
    pub fn event(&self, position: usize) -> &[u8] {
        let start = if position == 0 { 0 } else { self.ends[position - 1] };
        &self.bytes[start..self.ends[position]]
    }

    /// The size of each event in bytes.
    pub fn sizes(&self) -> Vec<usize> {
        (0..self.len()).map(|i| self.event(i).len()).collect()
    }

    /// These events as a JSON array.
    pub fn batch(&self, positions: &[usize]) -> Vec<u8> {
        let bytes = positions.iter().map(|&i| self.event(i).len() + 1).sum::<usize>() + 1;
        let mut body = Vec::with_capacity(bytes);
        for (n, &i) in positions.iter().enumerate() {
            body.push(if n == 0 { b'[' } else { b',' });
            body.extend_from_slice(self.event(i));
        }
        if positions.is_empty() {
            body.push(b'[');
        }
        body.push(b']');
        body
    }
}

/// The `causationid` that a record's data have, which is an extension attribute of the event. Within a text
/// its quotes would be escaped, so what is found is a member.
fn causation(data: &str) -> Option<&str> {
    let (_, rest) = data.split_once("\"causationid\":\"")?;
    let (id, _) = rest.split_once('"')?;
    (!id.is_empty() && id.bytes().all(|b| b.is_ascii_hexdigit())).then_some(id)
}

/// Escapes what may not stand in the path of a URI.
fn uri_reference(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for &byte in path.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests;
