//! What may leave the plant: an allow-list over the members of a record's data, and pseudonyms in
//! place of machine names.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::{self, Write};

use ring::hmac;
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};

use super::aggregate::Settings;
use crate::settings::Section;
use crate::types::{Kind, Record};

/// Members of `data` that are never left out: without them a record tells nothing.
const ALWAYS: [&str; 2] = ["timestamp", "machine"];

/// The rules. The default lets everything through.
#[derive(Clone, Debug, Default)]
pub struct Privacy {
    /// The members of `data` that may leave; `None` for all.
    pub fields: Option<BTreeSet<String>>,
    /// Where machine names must not leave.
    pub pseudonyms: Option<Pseudonyms>,
    /// Where only sums may leave. Whoever runs the sink puts an [`super::aggregate::Aggregated`] before it.
    pub aggregate: Option<Settings>,
}

/// Shorter keys could be guessed, and with the key all names.
const MIN_KEY_CHARS: usize = 16;

/// Turns a name into 128 bits that say nothing to those without the key: the same name always into
/// the same, but into another for each sink and each epoch of the key.
#[derive(Clone)]
pub struct Pseudonyms {
    key: hmac::Key,
    sink: String,
    epoch: u32,
}

impl fmt::Debug for Pseudonyms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pseudonyms(***)")
    }
}

impl Pseudonyms {
    /// HMAC-SHA-256 under this key, for one sink. An epoch other than 0 shows in every name.
    pub fn new(key: &[u8], sink: &str, epoch: u32) -> Pseudonyms {
        Pseudonyms { key: hmac::Key::new(hmac::HMAC_SHA256, key), sink: sink.to_owned(), epoch }
    }

    /// 32 hexadecimal digits, after the epoch and a `-` where there is one.
    pub fn of(&self, name: &str) -> String {
        let mut context = hmac::Context::with_key(&self.key);
        // Lengths in front, so that no two places of the border give the same text.
        for part in [self.sink.as_bytes(), &self.epoch.to_le_bytes(), name.as_bytes()] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut out = if self.epoch == 0 { String::new() } else { format!("{}-", self.epoch) };
        for byte in &context.sign().as_ref()[..16] {
            // Writing to a string cannot fail.
            let _ = write!(out, "{byte:02x}");
        }
        out
    }
}

/// A record's subject and data as they may leave.
pub struct Cleared<'r> {
    /// The machine, model or part of the agent.
    pub subject: Cow<'r, str>,
    /// A JSON object.
    pub data: Cow<'r, RawValue>,
}

impl Privacy {
    /// Reads `fields`, `pseudonymise`, `pseudonym_key(_file)`, `pseudonym_epoch`, `aggregate` and
    /// `aggregate_min` of the sink of this name.
    pub fn read(section: &Section<'_>, sink: &str) -> Privacy {
        let fields = section.strings("fields").filter(|f| !f.iter().any(|name| name == "*"));
        let key = section.secret("pseudonym_key");
        let wanted = section.boolean("pseudonymise").unwrap_or(false);
        let epoch = section.integer("pseudonym_epoch", 0..=i64::from(u32::MAX)).unwrap_or(0) as u32;
        let key_name = if section.has("pseudonym_key") { "pseudonym_key" } else { "pseudonym_key_file" };
        if wanted && !section.has("pseudonym_key") && !section.has("pseudonym_key_file") {
            let what = "needs `pseudonym_key_file`, a file with a key of at least 16 characters";
            section.problem("pseudonymise", what);
        }
        if key.as_ref().is_some_and(|k| k.reveal().len() < MIN_KEY_CHARS) {
            section.problem(key_name, "holds fewer than 16 characters: names could be guessed");
        }
        let pseudonyms = key.filter(|_| wanted).map(|k| Pseudonyms::new(k.reveal().as_bytes(), sink, epoch));
        let aggregate = Settings::read(section);
        Privacy { fields: fields.map(|f| f.into_iter().collect()), pseudonyms, aggregate }
    }

    /// Applies the rules. Numbers keep every digit: members are passed on as they are written.
    ///
    /// # Errors
    /// When the data is not a JSON object.
    pub fn clear<'r>(&self, record: &'r Record) -> Result<Cleared<'r>, serde_json::Error> {
        let raw: &RawValue = serde_json::from_str(&record.data)?;
        let subject = Cow::Borrowed(record.subject.as_ref());
        if self.fields.is_none() && self.pseudonyms.is_none() && raw.get().starts_with('{') {
            return Ok(Cleared { subject, data: Cow::Borrowed(raw) });
        }
        let mut members: Members<'_> = serde_json::from_str(&record.data)?;
        // What may be summed up was held to the list before it was.
        if let Some(fields) = self.fields.as_ref().filter(|_| record.kind != Kind::Summary) {
            members.0.retain(|(name, _)| ALWAYS.contains(&name.as_str()) || fields.contains(name));
        }
        let subject = match &self.pseudonyms {
            Some(pseudonyms) => Cow::Owned(members.rename(record, pseudonyms)?),
            None => subject,
        };
        Ok(Cleared { subject, data: Cow::Owned(to_raw_value(&members)?) })
    }
}

/// A JSON object's members, each value as it is written, in their order.
struct Members<'a>(Vec<(String, Cow<'a, RawValue>)>);

impl Members<'_> {
    /// Puts the pseudonym wherever the machine is named, also within texts; returns the subject.
    fn rename(&mut self, record: &Record, pseudonyms: &Pseudonyms) -> Result<String, serde_json::Error> {
        let named = self.0.iter().find(|(name, _)| name == "machine");
        let machine: Option<String> = named.and_then(|(_, raw)| serde_json::from_str(raw.get()).ok());
        // What somebody did is about a machine too, or about a part of the agent, which then has a
        // pseudonym as well.
        let about_a_machine = !matches!(record.kind, Kind::Model | Kind::Usage);
        let hide = machine.unwrap_or_else(|| if about_a_machine { record.subject.to_string() } else { String::new() });
        let pseudonym = pseudonyms.of(&hide);
        for (_, raw) in &mut self.0 {
            let mut value: Value = match raw.get().as_bytes().first() {
                Some(b'"' | b'[' | b'{') => serde_json::from_str(raw.get())?,
                _ => continue,
            };
            // What does not name the machine stays as it is written, digit by digit.
            if rename_in(&mut value, &hide, &pseudonym) {
                *raw = Cow::Owned(to_raw_value(&value)?);
            }
        }
        let subject = record.subject.as_ref();
        Ok(match subject {
            "" => String::new(),
            _ if about_a_machine => pseudonyms.of(subject),
            _ => replace_word(subject, &hide, &pseudonym),
        })
    }
}

/// Replaces `word` in every text and name within; whether there was any.
fn rename_in(value: &mut Value, word: &str, by: &str) -> bool {
    match value {
        Value::String(text) => {
            let renamed = replace_word(text, word, by);
            let changed = renamed != *text;
            *text = renamed;
            changed
        }
        Value::Array(items) => {
            let mut changed = false;
            for item in items {
                changed |= rename_in(item, word, by);
            }
            changed
        }
        Value::Object(members) => {
            let mut changed = false;
            let renamed = std::mem::take(members).into_iter().map(|(name, mut value)| {
                changed |= rename_in(&mut value, word, by);
                let new = replace_word(&name, word, by);
                changed |= new != name;
                (new, value)
            });
            *members = renamed.collect();
            changed
        }
        _ => false,
    }
}

/// Replaces `word` where it does not stand within a longer one.
fn replace_word(text: &str, word: &str, by: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut rest, mut before) = (text, None);
    while let Some(at) = rest.find(word).filter(|_| !word.is_empty()) {
        let (head, tail) = (&rest[..at], &rest[at + word.len()..]);
        let inside = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        let part = inside(head.chars().next_back().or(before)) || inside(tail.chars().next());
        out.push_str(head);
        out.push_str(if part { word } else { by });
        (rest, before) = (tail, word.chars().next_back());
    }
    out + rest
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &'de RawValue>()? {
                    members.push((name, Cow::Borrowed(value)));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl Serialize for Members<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value.as_ref())?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{RecordId, Time};

    fn record(kind: Kind, subject: &str, data: &str) -> Record {
        Record { id: RecordId([0; 16]), kind, subject: subject.into(), at: Time(0), data: data.into() }
    }

    fn fields(names: &[&str]) -> Privacy {
        Privacy { fields: Some(names.iter().map(|n| n.to_string()).collect()), ..Privacy::default() }
    }

    #[test]
    fn only_listed_members_leave_and_keep_every_digit() {
        let r = record(
            Kind::Verdict,
            "press-04",
            r#"{"timestamp":"t","machine":"press-04","score":0.10000000000000000001,"big":18446744073709551999,"x":[1]}"#,
        );
        let cleared = fields(&["big", "score"]).clear(&r).expect("an object");
        assert_eq!(
            cleared.data.get(),
            r#"{"timestamp":"t","machine":"press-04","score":0.10000000000000000001,"big":18446744073709551999}"#
        );
    }

    #[test]
    fn pseudonyms_stand_wherever_the_machine_is_named() {
        let privacy = Privacy {
            fields: None,
            pseudonyms: Some(Pseudonyms::new(b"0123456789abcdef", "cloud", 0)),
            aggregate: None,
        };
        let data = r#"{"machine":"press-04","message":"press-04: vib_x is high (not press-041)","n":1}"#;
        let alarm = record(Kind::Alarm, "press-04", data);
        let cleared = privacy.clear(&alarm).expect("an object");
        let name = cleared.subject.to_string();
        assert_eq!(name.len(), 32);
        let expected = format!(r#"{{"machine":"{name}","message":"{name}: vib_x is high (not press-041)","n":1}}"#);
        assert_eq!(cleared.data.get(), expected);
        let model = record(Kind::Model, "bearing-ae", r#"{"event":"loaded"}"#);
        assert_eq!(privacy.clear(&model).expect("an object").subject, "bearing-ae");
        let other = Pseudonyms::new(b"another key entirely", "cloud", 0);
        assert_ne!(other.of("press-04"), name);
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for data in ["", "1", "[]", "{", "{\"a\":1}x", "null", "\"x\""] {
            let r = record(Kind::Gap, "x", data);
            assert!(Privacy::default().clear(&r).is_err(), "{data:?}");
            assert!(fields(&["a"]).clear(&r).is_err(), "{data:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_data_makes_it_panic(data in ".*", subject in ".*") {
            let privacy = Privacy { fields: None, pseudonyms: Some(Pseudonyms::new(b"k", "cloud", 3)), aggregate: None };
            let _ = privacy.clear(&record(Kind::Verdict, &subject, &data));
            replace_word(&data, &subject, "y");
        }
    }
}
