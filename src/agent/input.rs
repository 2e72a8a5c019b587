//! What the engine is fed, and how it is kept in the journal: replaying the same groups brings the
//! same engine to the same state.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::alarm::Act;
use crate::source::modbus::light::Wrote;
use crate::types::{Action, Answer, Cause, Clock, ModelNews, Name, Origin, Quality, Reading, RecordId, Target, Time};

/// Version of the encoding; a newer one is refused.
const VERSION: u8 = 4;

/// One thing the engine reacts to.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Readings, with the wall clock at their arrival.
    Readings(Time, Vec<Reading>),
    /// The wall clock, told when a machine has fallen silent.
    Tick(Time),
    /// Somebody does something to alarms.
    Act(Target, Act),
    /// The wall clock, told when something that was put aside comes back, or a flood of alarms ends.
    Clock(Time),
    /// What runs from now on, told when it may have changed.
    Running(Running),
    /// The readings that follow may have been delivered before, says the broker.
    Again,
    /// The readings that follow came by this source.
    From(Name),
    /// A source has come up or gone down.
    Link(Link),
    /// The gateway's clock was set, by so many nanoseconds, and now shows this.
    GatewayClock(Time, i64),
    /// Something was written to a device.
    Wrote(Wrote),
    /// A larger model has answered, or could not be asked.
    Opinion(Answer),
    /// Something happened to a bundle, or is to happen.
    Rollout(ModelNews),
}

/// The state of a source's connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The source's name in the config.
    pub source: Name,
    /// When it came into this state.
    pub at: Time,
    /// Whether it delivers.
    pub up: bool,
    /// Why not.
    pub detail: String,
}

/// What the agent runs with: for the audit log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {
    /// When it was told.
    pub at: Time,
    /// Who or what brought it about: `start`, `SIGHUP`.
    pub who: String,
    /// Of andon.
    pub version: String,
    /// Tells one configuration from another; nothing can be read from it.
    pub config: String,
    /// Models by name: version and digest.
    pub models: BTreeMap<String, String>,
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
    /// Of versions up to 3.
    Readings(i64, Vec<WireReading>),
    Tick(i64),
    /// Of version 1.
    Acknowledge(RecordId, String, i64),
    Act(Target, Action, String, Option<String>, i64),
    Clock(i64),
    Running(Running),
    Again,
    Wrote(WireWrote),
    Opinion(Answer),
    Rollout(ModelNews),
    From(u32),
    Link(Link),
    GatewayClock(i64, i64),
    /// Arrival, the series that occur, and their readings.
    Samples(i64, Vec<WireSeries>, Vec<WireSample>),
}

/// Machine and signal by their place in the table of names, origin, clock.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct WireSeries(u32, u32, Origin, Clock);

/// Series by its place in the list; the time as an offset from the arrival.
#[derive(Serialize, Deserialize)]
struct WireSample(u32, i64, f64, Quality, Cause);

/// Device, time, address, value, reason, failure.
#[derive(Serialize, Deserialize)]
struct WireWrote(String, i64, String, u16, String, Option<String>);

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
        if !(1..=VERSION).contains(version) {
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
        Input::Readings(arrived, readings) => encode_readings(*arrived, readings, names),
        Input::Tick(now) => WireInput::Tick(now.0),
        Input::Act(target, act) => {
            WireInput::Act(target.clone(), act.action, act.who.clone(), act.comment.clone(), act.at.0)
        }
        Input::Clock(now) => WireInput::Clock(now.0),
        Input::Running(running) => WireInput::Running(running.clone()),
        Input::Again => WireInput::Again,
        Input::From(source) => WireInput::From(names.place(source)),
        Input::Link(link) => WireInput::Link(link.clone()),
        Input::GatewayClock(now, by) => WireInput::GatewayClock(now.0, *by),
        Input::Rollout(news) => WireInput::Rollout(news.clone()),
        Input::Wrote(w) => {
            let (address, reason) = (w.address.clone(), w.reason.clone());
            WireInput::Wrote(WireWrote(w.device.to_string(), w.at.0, address, w.value, reason, w.failure.clone()))
        }
        Input::Opinion(answer) => WireInput::Opinion(answer.clone()),
    }
}

fn encode_readings<'a>(arrived: Time, readings: &'a [Reading], names: &mut Names<'a>) -> WireInput {
    let (mut series, mut places): (Vec<WireSeries>, HashMap<WireSeries, u32>) = Default::default();
    let sample = |r: &'a Reading| {
        let of = WireSeries(names.place(&r.machine), names.place(&r.signal), r.origin, r.clock);
        let place = match series.last() {
            // Arrays of samples and slow devices repeat one series.
            Some(last) if *last == of => series.len() as u32 - 1,
            _ => *places.entry(of).or_insert_with(|| {
                series.push(of);
                series.len() as u32 - 1
            }),
        };
        WireSample(place, r.at.0.wrapping_sub(arrived.0), r.value, r.quality, r.cause)
    };
    let samples = readings.iter().map(sample).collect();
    WireInput::Samples(arrived.0, series, samples)
}

fn decode_readings(
    arrived: i64,
    series: &[WireSeries],
    samples: Vec<WireSample>,
    names: &[Name],
) -> Option<Vec<Reading>> {
    let reading = |WireSample(place, at, value, quality, cause)| {
        let WireSeries(machine, signal, origin, clock) = *series.get(place as usize)?;
        let (machine, signal) = (names.get(machine as usize)?.clone(), names.get(signal as usize)?.clone());
        let at = Time(arrived.wrapping_add(at));
        Some(Reading { machine, signal, at, value, quality, cause, origin, clock })
    };
    samples.into_iter().map(reading).collect()
}

fn decode_input(input: WireInput, names: &[Name]) -> Option<Input> {
    Some(match input {
        WireInput::Readings(arrived, readings) => {
            let reading = |WireReading(machine, signal, at, value, quality, cause)| {
                let (machine, signal) = (names.get(machine as usize)?, names.get(signal as usize)?);
                let at = Time(arrived.wrapping_add(at));
                let good = Reading::good(machine.clone(), signal.clone(), at, value);
                Some(Reading { quality, cause, ..good })
            };
            Input::Readings(Time(arrived), readings.into_iter().map(reading).collect::<Option<_>>()?)
        }
        WireInput::Tick(now) => Input::Tick(Time(now)),
        WireInput::Acknowledge(alarm, who, at) => {
            let act = Act { action: Action::Acknowledge, who, comment: None, at: Time(at) };
            Input::Act(Target::Alarm(alarm), act)
        }
        WireInput::Act(target, action, who, comment, at) => {
            Input::Act(target, Act { action, who, comment, at: Time(at) })
        }
        WireInput::Clock(now) => Input::Clock(Time(now)),
        WireInput::Running(running) => Input::Running(running),
        WireInput::Again => Input::Again,
        WireInput::From(source) => Input::From(names.get(source as usize)?.clone()),
        WireInput::Link(link) => Input::Link(link),
        WireInput::GatewayClock(now, by) => Input::GatewayClock(Time(now), by),
        WireInput::Samples(arrived, series, samples) => {
            Input::Readings(Time(arrived), decode_readings(arrived, &series, samples, names)?)
        }
        WireInput::Rollout(news) => Input::Rollout(news),
        WireInput::Wrote(WireWrote(device, at, address, value, reason, failure)) => {
            Input::Wrote(Wrote { device: device.into(), at: Time(at), address, value, reason, failure })
        }
        WireInput::Opinion(answer) => Input::Opinion(answer),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{ModelStep, Outcome, Release, Stage};

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
            origin: Origin(at as u32 % 3),
            clock: Clock::Device,
        })
    }

    fn news(at: Time) -> ModelNews {
        let release = Release { model: "pump".into(), version: "2".into(), sequence: 17, digest: "ab".into() };
        let (stage, reason, figures) = (Stage::Refused, "because".into(), [("p99_ms".into(), 1.5)].into());
        ModelNews::Step(ModelStep { at, release, stage, reason, figures })
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            arrived: i64,
            readings in prop::collection::vec(reading(), 0..50),
            who in ".{0,20}",
        ) {
            let at = Time(arrived);
            let wrote = Input::Wrote(Wrote {
                device: "plc".into(),
                at,
                address: "coil:1".into(),
                value: 1,
                reason: "red".into(),
                failure: (arrived % 2 == 0).then(|| "no answer".into()),
            });
            let answer = Answer {
                id: RecordId([3; 16]),
                at,
                outcome: Outcome::Answered,
                score: Some(0.5),
                version: None,
                detail: who.clone(),
                calls: 1,
                bytes_out: 1024,
                took_ms: 7,
            };
            let act = |target, action| Input::Act(target, Act { action, who: who.clone(), comment: None, at });
            let running = Running { at, who: who.clone(), models: [(who.clone(), "1".into())].into(), ..Running::default() };
            let inputs = vec![
                Input::Again,
                Input::From("shop".into()),
                Input::Readings(at, readings),
                Input::Link(Link { source: "shop".into(), at, up: true, detail: who.clone() }),
                Input::GatewayClock(at, -5),
                Input::Tick(at),
                act(Target::Alarm(RecordId([7; 16])), Action::Shelve(60)),
                act(Target::Machine("pump-1".into()), Action::OutOfService),
                Input::Clock(at),
                Input::Running(running),
                wrote,
                Input::Opinion(answer),
                Input::Rollout(news(at)),
            ];
            let group = Group { inputs };
            prop_assert_eq!(Group::decode(&group.encode()), Ok(group));
        }

        /// A journal written before there was anything but acknowledging is still read.
        #[test]
        fn an_acknowledgement_of_version_1_is_read(id: [u8; 16], who in ".{0,20}", at: i64) {
            let wire = Wire { names: Vec::new(), inputs: vec![WireInput::Acknowledge(RecordId(id), who.clone(), at)] };
            let bytes = [vec![1], postcard::to_stdvec(&wire).expect("encoded")].concat();
            let act = Act { action: Action::Acknowledge, who, comment: None, at: Time(at) };
            let inputs = vec![Input::Act(Target::Alarm(RecordId(id)), act)];
            prop_assert_eq!(Group::decode(&bytes), Ok(Group { inputs }));
        }

        #[test]
        fn garbage_is_an_error_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Group::decode(&bytes);
        }
    }
}
