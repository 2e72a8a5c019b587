//! What the engine is fed, and how it is kept in the journal: replaying the same groups brings the
//! same engine to the same state.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::types::{Cause, Name, Quality, Reading, RecordId, Time};

/// Version of the encoding; a newer one is refused.
const VERSION: u8 = 1;

/// One thing the engine reacts to.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Readings, with the wall clock at their arrival.
    Readings(Time, Vec<Reading>),
    /// The wall clock, told when a machine has fallen silent.
    Tick(Time),
    /// Somebody acknowledges an alarm.
    Acknowledge {
        /// Which.
        alarm: RecordId,
        /// Who.
        who: String,
        /// When.
        at: Time,
    },
    /// The readings that follow may have been delivered before, says the broker.
    Again,
}

/// Inputs that are taken in together and become durable together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    /// In order of arrival.
    pub inputs: Vec<Input>,
}

#[derive(Serialize, Deserialize)]
struct Wire<'a> {
    #[serde(borrow)]
    names: Vec<Cow<'a, str>>,
    inputs: Vec<WireInput>,
}

#[derive(Serialize, Deserialize)]
enum WireInput {
    Readings(i64, Vec<WireReading>),
    Tick(i64),
    Acknowledge(RecordId, String, i64),
    Again,
}

/// Names by their place in the table; the time as an offset from the arrival.
#[derive(Serialize, Deserialize)]
struct WireReading(u32, u32, i64, f64, Quality, Cause);

impl Group {
    /// Encodes for the journal.
    pub fn encode(&self) -> Vec<u8> {
        let mut names = Names::default();
        let inputs = self.inputs.iter().map(|input| encode_input(input, &mut names)).collect();
        let mut out = vec![VERSION];
        // Encoding into memory cannot fail for these types.
        out.extend(postcard::to_stdvec(&Wire { names: names.table, inputs }).unwrap_or_default());
        out
    }

    /// Decodes what [`Group::encode`] made.
    pub fn decode(bytes: &[u8]) -> Result<Group, String> {
        let (version, rest) = bytes.split_first().ok_or("an empty journal entry")?;
        if *version != VERSION {
            return Err(format!("journal entries of version {version} are not known here; this is {VERSION}"));
        }
        let wire: Wire<'_> = postcard::from_bytes(rest).map_err(|e| format!("a damaged journal entry: {e}"))?;
        let names: Vec<Name> = wire.names.iter().map(|n| Arc::from(n.as_ref())).collect();
        let inputs: Option<Vec<Input>> = wire.inputs.into_iter().map(|i| decode_input(i, &names)).collect();
        inputs.map(|inputs| Group { inputs }).ok_or_else(|| "a journal entry that names no such signal".into())
    }
}

/// The table of names, each once.
#[derive(Default)]
struct Names<'a> {
    table: Vec<Cow<'a, str>>,
    places: HashMap<&'a str, u32>,
}

impl<'a> Names<'a> {
    fn place(&mut self, name: &'a Name) -> u32 {
        *self.places.entry(name).or_insert_with(|| {
            self.table.push(Cow::Borrowed(name));
            self.table.len() as u32 - 1
        })
    }
}

fn encode_input<'a>(input: &'a Input, names: &mut Names<'a>) -> WireInput {
    match input {
        Input::Readings(arrived, readings) => {
            let wire = |r: &'a Reading| {
                let (machine, signal) = (names.place(&r.machine), names.place(&r.signal));
                WireReading(machine, signal, r.at.0.wrapping_sub(arrived.0), r.value, r.quality, r.cause)
            };
            WireInput::Readings(arrived.0, readings.iter().map(wire).collect())
        }
        Input::Tick(now) => WireInput::Tick(now.0),
        Input::Acknowledge { alarm, who, at } => WireInput::Acknowledge(*alarm, who.clone(), at.0),
        Input::Again => WireInput::Again,
    }
}

fn decode_input(input: WireInput, names: &[Name]) -> Option<Input> {
    Some(match input {
        WireInput::Readings(arrived, readings) => {
            let reading = |WireReading(machine, signal, at, value, quality, cause)| {
                let (machine, signal) = (names.get(machine as usize)?, names.get(signal as usize)?);
                let at = Time(arrived.wrapping_add(at));
                Some(Reading { machine: machine.clone(), signal: signal.clone(), at, value, quality, cause })
            };
            Input::Readings(Time(arrived), readings.into_iter().map(reading).collect::<Option<_>>()?)
        }
        WireInput::Tick(now) => Input::Tick(Time(now)),
        WireInput::Acknowledge(alarm, who, at) => Input::Acknowledge { alarm, who, at: Time(at) },
        WireInput::Again => Input::Again,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reading() -> impl Strategy<Value = Reading> {
        let names = prop::sample::select(vec!["pump-1", "pump-2", "flow", "temp", "ü"]);
        let value = prop_oneof![any::<f64>().prop_filter("NaN is not equal to itself", |v| !v.is_nan()), Just(0.0)];
        (names.clone(), names, any::<i64>(), value).prop_map(|(m, s, at, value)| Reading {
            machine: m.into(),
            signal: s.into(),
            at: Time(at),
            value,
            quality: Quality::Bad,
            cause: Cause::Timeout,
        })
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            arrived: i64,
            readings in prop::collection::vec(reading(), 0..50),
            who in ".{0,20}",
        ) {
            let acknowledge = Input::Acknowledge { alarm: RecordId([7; 16]), who, at: Time(arrived) };
            let inputs = vec![Input::Again, Input::Readings(Time(arrived), readings), Input::Tick(Time(arrived)), acknowledge];
            let group = Group { inputs };
            prop_assert_eq!(Group::decode(&group.encode()), Ok(group));
        }

        #[test]
        fn garbage_is_an_error_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Group::decode(&bytes);
        }
    }
}
