//! JSON payloads that carry many samples in an array, each an object with its own time: the samples
//! are found here, and each is read like a payload of its own.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::json::{Pointer, decode_sample};
use super::{Config, Found};

/// Reads the array that `samples` points to. A sample that cannot be read does not hide the others.
pub(super) fn decode(config: &Config, samples: &Pointer, payload: &[u8], found: &mut Found) -> Result<(), String> {
    let whole: &RawValue = serde_json::from_slice(payload).map_err(|e| format!("not valid JSON: {e}"))?;
    let array = samples.tokens().iter().try_fold(whole, |raw, token| member(raw, token));
    let array = array.ok_or_else(|| format!("there is nothing at {}", samples.shown()))?;
    let items: Vec<&RawValue> =
        serde_json::from_str(array.get()).map_err(|_| format!("{} is not an array of samples", samples.shown()))?;
    for (n, item) in items.into_iter().enumerate() {
        let before = found.values.len();
        if let Err(e) = decode_sample(config, item.get().as_bytes(), found) {
            found.values.truncate(before);
            found.complain(|| format!("sample {n}: {e}"));
        }
    }
    Ok(())
}

/// One step of a pointer: a member of an object, or an element of an array.
fn member<'p>(raw: &'p RawValue, token: &str) -> Option<&'p RawValue> {
    if raw.get().starts_with('[') {
        return serde_json::from_str::<Vec<&RawValue>>(raw.get()).ok()?.get(token.parse::<usize>().ok()?).copied();
    }
    let members: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(raw.get()).ok()?;
    members.get(token).copied()
}
