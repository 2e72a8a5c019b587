//! JSON payloads, read in one pass without building a tree. A pointer finds one number; without
//! one every numeric member is a value of its own, nested names joined by dots, arrays left out.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{Config, Found, RawTime};

/// A parsed JSON pointer (RFC 6901).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pointer {
    text: String,
    tokens: Vec<String>,
}

impl Pointer {
    pub(super) fn parse(text: &str) -> Option<Pointer> {
        if text.is_empty() {
            return Some(Pointer { text: String::new(), tokens: Vec::new() });
        }
        let tokens = text.strip_prefix('/')?.split('/');
        Some(Pointer {
            text: text.to_owned(),
            tokens: tokens.map(|t| t.replace("~1", "/").replace("~0", "~")).collect(),
        })
    }

    /// The names on the way, from the top.
    pub(super) fn tokens(&self) -> &[String] {
        &self.tokens
    }

    /// For messages.
    pub(super) fn shown(&self) -> &str {
        if self.text.is_empty() { "the top" } else { &self.text }
    }
}

/// Reads a whole payload, or one sample of it.
pub(super) fn decode_sample(config: &Config, payload: &[u8], found: &mut Found) -> Result<(), String> {
    let start = found.values.len();
    let mut state = State { found, path: String::new(), pointed: None, time: None };
    let walk = Walk {
        value: config.value.as_ref().map(|p| p.tokens.as_slice()),
        time: config.time.as_ref().map(|p| p.tokens.as_slice()),
        flatten: config.value.is_none(),
        state: &mut state,
    };
    let mut json = serde_json::Deserializer::from_slice(payload);
    walk.deserialize(&mut json).and_then(|()| json.end()).map_err(|e| format!("not valid JSON: {e}"))?;
    let State { pointed, time, found, .. } = state;
    if let Some(pointer) = &config.value {
        match pointed {
            Some(Ok(value)) => found.add("", value, None),
            Some(Err(what)) => return Err(format!("{} is {what}, not a number", pointer.shown())),
            None => return Err(format!("there is nothing at {}", pointer.shown())),
        }
    }
    if let Some(pointer) = &config.time {
        let raw = time.ok_or_else(|| format!("there is no time at {}", pointer.shown()))?;
        let at = config.time_format.read(&raw)?;
        found.values[start..].iter_mut().for_each(|v| v.2 = Some(at));
    }
    Ok(())
}

struct State<'s> {
    found: &'s mut Found,
    /// The dotted name of where we are, kept only while flattening.
    path: String,
    /// What the value pointer led to: a number, null, or the name of something else.
    pointed: Option<Result<Option<f64>, &'static str>>,
    time: Option<RawTime>,
}

/// The walk at one place in the document, with what is left of each pointer that leads here.
struct Walk<'c, 's, 'f> {
    value: Option<&'c [String]>,
    time: Option<&'c [String]>,
    flatten: bool,
    state: &'s mut State<'f>,
}

impl<'c, 'f> Walk<'c, '_, 'f> {
    /// The walk one level down.
    fn below(&mut self, key: &str) -> Walk<'c, '_, 'f> {
        Walk {
            value: step(self.value, key),
            time: step(self.time, key),
            flatten: self.flatten,
            state: &mut *self.state,
        }
    }

    fn leads_nowhere(&self) -> bool {
        self.value.is_none() && self.time.is_none() && !self.flatten
    }

    /// A scalar or the beginning of something larger: `number` where it is one, `what` for messages.
    fn arrive(&mut self, number: Option<f64>, time: Option<RawTime>, what: &'static str) {
        if self.time.is_some_and(<[_]>::is_empty) {
            self.state.time = time;
        } else if self.flatten
            && let Some(n) = number
        {
            self.state.found.add(&self.state.path, Some(n), None);
        }
        if self.value.is_some_and(<[_]>::is_empty) {
            self.state.pointed = Some(match (number, what) {
                (Some(n), _) => Ok(Some(n)),
                (None, "null") => Ok(None),
                (None, what) => Err(what),
            });
        }
    }
}

fn step<'c>(tokens: Option<&'c [String]>, key: &str) -> Option<&'c [String]> {
    let (head, rest) = tokens?.split_first()?;
    (head == key).then_some(rest)
}

impl<'de> DeserializeSeed<'de> for Walk<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.leads_nowhere() {
            return deserializer.deserialize_ignored_any(IgnoredAny).map(|_| ());
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: Error>(mut self, b: bool) -> Result<(), E> {
        self.arrive(Some(f64::from(u8::from(b))), None, "a boolean");
        Ok(())
    }

    fn visit_i64<E: Error>(mut self, n: i64) -> Result<(), E> {
        self.arrive(Some(n as f64), Some(RawTime::Whole(n)), "a number");
        Ok(())
    }

    fn visit_u64<E: Error>(mut self, n: u64) -> Result<(), E> {
        let time = i64::try_from(n).map_or(RawTime::Float(n as f64), RawTime::Whole);
        self.arrive(Some(n as f64), Some(time), "a number");
        Ok(())
    }

    fn visit_f64<E: Error>(mut self, n: f64) -> Result<(), E> {
        self.arrive(Some(n).filter(|n| n.is_finite()), Some(RawTime::Float(n)), "out of range");
        Ok(())
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<(), E> {
        // Only a time needs its own copy.
        let time = self.time.is_some_and(<[_]>::is_empty).then(|| RawTime::Text(text.to_owned()));
        self.arrive(None, time, "a text");
        Ok(())
    }

    fn visit_unit<E: Error>(mut self) -> Result<(), E> {
        self.arrive(None, None, "null");
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        self.arrive(None, None, "an object");
        let here = self.state.path.len();
        while let Some((value, time)) = map.next_key_seed(Key(self.below_any()))? {
            let walk = Walk { value, time, flatten: self.flatten, state: &mut *self.state };
            map.next_value_seed(walk)?;
            self.state.path.truncate(here);
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        self.arrive(None, None, "an array");
        for index in 0_usize.. {
            let mut walk = self.below(&index.to_string());
            walk.flatten = false;
            if seq.next_element_seed(walk)?.is_none() {
                break;
            }
        }
        Ok(())
    }
}

impl<'c, 'f> Walk<'c, '_, 'f> {
    /// The same place again, borrowed.
    fn below_any(&mut self) -> Walk<'c, '_, 'f> {
        Walk { value: self.value, time: self.time, flatten: self.flatten, state: &mut *self.state }
    }
}

/// Reads a member's name: yields what is left of the pointers, and adds to the path.
struct Key<'c, 's, 'f>(Walk<'c, 's, 'f>);

impl<'de, 'c> DeserializeSeed<'de> for Key<'c, '_, '_> {
    type Value = (Option<&'c [String]>, Option<&'c [String]>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de, 'c> Visitor<'de> for Key<'c, '_, '_> {
    type Value = (Option<&'c [String]>, Option<&'c [String]>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        let walk = self.0;
        if walk.flatten {
            if !walk.state.path.is_empty() {
                walk.state.path.push('.');
            }
            walk.state.path.push_str(key);
        }
        Ok((step(walk.value, key), step(walk.time, key)))
    }
}
