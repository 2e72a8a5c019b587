//! What is inside a message: payload formats, and how numbers and times are found in them.
//! Payloads come from anyone who may publish, so nothing here panics or grows without bound.

use std::ops::Range;

use crate::mqtt::MAX_PAYLOAD;
use crate::settings::Section;
use crate::types::Time;

mod csv;
mod influx;
mod json;
mod samples;

use json::Pointer;

/// Values taken from one payload; what is beyond is told as a reject.
const MAX_VALUES: usize = 4096;

#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
enum Format {
    #[default]
    Json,
    Number,
    Csv,
    Influx,
    Sparkplug,
}

/// How a time is written.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
enum TimeFormat {
    #[default]
    Rfc3339,
    /// So many nanoseconds to the unit, since 1970.
    Unix(i64),
}

/// How to read the payloads of one subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    format: Format,
    value: Option<Pointer>,
    time: Option<Pointer>,
    /// Where the array of samples is; `value` and `time` count from each of them.
    samples: Option<Pointer>,
    time_format: TimeFormat,
    value_column: usize,
    time_column: Option<usize>,
}

/// What was found in a payload; kept and reused, so that the usual message allocates nothing.
#[derive(Debug, Default)]
pub struct Found {
    names: String,
    values: Vec<(Range<usize>, Option<f64>, Option<Time>)>,
    complaint: Option<String>,
}

impl Found {
    fn clear(&mut self) {
        self.names.clear();
        self.values.clear();
        self.complaint = None;
    }

    /// Adds a value; an empty name stands for the signal that the topic names.
    fn add(&mut self, name: &str, value: Option<f64>, at: Option<Time>) {
        if self.values.len() >= MAX_VALUES {
            self.complain(|| format!("more than {MAX_VALUES} values in one payload"));
            return;
        }
        if name.len() > super::topic::MAX_NAME {
            self.complain(|| format!("a name of more than {} bytes", super::topic::MAX_NAME));
            return;
        }
        let start = self.names.len();
        self.names.push_str(name);
        self.values.push((start..self.names.len(), value, at));
    }

    /// Notes what is wrong with a part of the payload; the first complaint stays.
    fn complain(&mut self, what: impl FnOnce() -> String) {
        self.complaint.get_or_insert_with(what);
    }

    /// The values: name (empty: the topic's signal), number (`None`: the publisher has none), time
    /// (`None`: the arrival).
    pub fn values(&self) -> impl Iterator<Item = (&str, Option<f64>, Option<Time>)> {
        self.values.iter().map(|(name, value, at)| (&self.names[name.clone()], *value, *at))
    }

    /// What is wrong with the rest of the payload.
    pub fn complaint(&self) -> Option<&str> {
        self.complaint.as_deref()
    }
}

impl Config {
    /// Reads payload, value, time and time_format. `has_signal` says whether topic or config name
    /// the signal.
    pub fn read(section: &Section<'_>, has_signal: bool) -> Config {
        let formats = [
            ("json", Format::Json),
            ("number", Format::Number),
            ("csv", Format::Csv),
            ("influx", Format::Influx),
            ("sparkplug_b", Format::Sparkplug),
        ];
        let mut c = Config { format: section.choice("payload", &formats).unwrap_or_default(), ..Config::default() };
        let value = section.string("value");
        let time = section.string("time");
        let time_formats = [
            ("rfc3339", TimeFormat::Rfc3339),
            ("unix_s", TimeFormat::Unix(1_000_000_000)),
            ("unix_ms", TimeFormat::Unix(1_000_000)),
            ("unix_us", TimeFormat::Unix(1_000)),
            ("unix_ns", TimeFormat::Unix(1)),
        ];
        let time_format = section.choice("time_format", &time_formats);
        c.time_format = time_format.unwrap_or_default();
        if time_format.is_some() && time.is_none() && c.format != Format::Influx {
            section.problem("time_format", "is not used without `time`");
        }
        let samples = section.string("samples");
        if c.format != Format::Json {
            unused(section, "samples", samples.is_some(), "csv, influx or number");
        }
        match c.format {
            Format::Json => {
                if samples.is_some() && time.is_none() {
                    section.problem("samples", "needs `time`: where each sample has its own, counted from the sample");
                }
                c.samples = samples.and_then(|s| pointer(section, "samples", &s));
                c.value = value.and_then(|v| pointer(section, "value", &v));
                c.time = time.and_then(|t| pointer(section, "time", &t));
                if c.value.is_some() && !has_signal {
                    section
                        .problem("value", "finds one number: name its signal by {signal} in `topic`, or by `signal`");
                }
            }
            Format::Number => {
                unused(section, "value", value.is_some(), "number");
                unused(section, "time", time.is_some(), "number");
                if !has_signal {
                    section.problem("payload", "a bare number needs {signal} in `topic`, or `signal`");
                }
            }
            Format::Csv => {
                c.value_column = column(section, "value", value.as_deref()).unwrap_or_default();
                c.time_column = column(section, "time", time.as_deref());
                if !has_signal {
                    section.problem("payload", "a CSV line needs {signal} in `topic`, or `signal`");
                }
            }
            Format::Influx => {
                unused(section, "value", value.is_some(), "influx");
                unused(section, "time", time.is_some(), "influx");
                if c.time_format == TimeFormat::Rfc3339 {
                    if time_format.is_some() {
                        section.problem("time_format", "line protocol has unix times only");
                    }
                    c.time_format = TimeFormat::Unix(1);
                }
            }
            Format::Sparkplug => {
                unused(section, "value", value.is_some(), "sparkplug_b");
                unused(section, "time", time.is_some(), "sparkplug_b");
            }
        }
        c
    }

    /// Whether it is Sparkplug B, which is not for [`Config::decode`].
    pub fn is_sparkplug(&self) -> bool {
        self.format == Format::Sparkplug
    }

    /// Finds the values in a payload.
    ///
    /// # Errors
    /// The reason, for a person, why nothing in it can be used.
    pub fn decode(&self, payload: &[u8], found: &mut Found) -> Result<(), String> {
        found.clear();
        if payload.len() > MAX_PAYLOAD {
            return Err(format!("larger than {MAX_PAYLOAD} bytes"));
        }
        match self.format {
            Format::Json => match &self.samples {
                Some(samples) => samples::decode(self, samples, payload, found)?,
                None => json::decode_sample(self, payload, found)?,
            },
            Format::Number => found.add("", Some(number(text(payload)?)?), None),
            Format::Csv => csv::decode(self, text(payload)?, found),
            Format::Influx => influx::decode(self, text(payload)?, found),
            // Its messages lean on each other: see `source::sparkplug`.
            Format::Sparkplug => return Err("Sparkplug B cannot be read message by message".into()),
        }
        if found.values.is_empty() {
            return Err(found.complaint.take().unwrap_or_else(|| "there is no number in it".into()));
        }
        Ok(())
    }
}

fn pointer(section: &Section<'_>, key: &str, text: &str) -> Option<Pointer> {
    let pointer = Pointer::parse(text);
    if pointer.is_none() {
        section.problem(key, format_args!("{text:?} is not a JSON pointer such as \"/value\" or \"/data/0\""));
    }
    pointer
}

/// A 1-based column number, as an index.
fn column(section: &Section<'_>, key: &str, text: Option<&str>) -> Option<usize> {
    let column = text?.parse::<usize>().ok().filter(|n| (1..=1000).contains(n));
    if column.is_none() {
        section.problem(key, "is the number of the column for CSV, \"1\" being the first");
    }
    column.map(|n| n - 1)
}

fn unused(section: &Section<'_>, key: &str, given: bool, format: &str) {
    if given {
        section.problem(key, format_args!("does not go with payload = \"{format}\""));
    }
}

fn text(payload: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(payload).map_err(|_| "not UTF-8 text".to_owned())
}

/// A finite number, or true or false as 1 or 0.
fn number(text: &str) -> Result<f64, String> {
    match text.trim() {
        "true" => Ok(1.0),
        "false" => Ok(0.0),
        t => match t.parse::<f64>() {
            Ok(n) if n.is_finite() => Ok(n),
            Ok(_) => Err(format!("{:?} is not a finite number", shorten(t))),
            Err(_) => Err(format!("{:?} is not a number", shorten(t))),
        },
    }
}

/// A time as it was written.
#[derive(Clone, Debug, PartialEq)]
enum RawTime {
    Whole(i64),
    Float(f64),
    Text(String),
}

impl TimeFormat {
    fn read(self, raw: &RawTime) -> Result<Time, String> {
        match (self, raw) {
            (TimeFormat::Rfc3339, RawTime::Text(text)) if text.len() <= 64 => text.parse(),
            (TimeFormat::Rfc3339, _) => Err("the time is not an RFC 3339 text".into()),
            (TimeFormat::Unix(unit), RawTime::Whole(n)) => n.checked_mul(unit).map(Time).ok_or_else(out_of_range),
            (TimeFormat::Unix(unit), RawTime::Float(n)) => {
                Time::from_unix_seconds(n * (unit as f64 / 1e9)).ok_or_else(out_of_range)
            }
            (TimeFormat::Unix(_), RawTime::Text(text)) => self.read(&unix_text(text)?),
        }
    }
}

fn unix_text(text: &str) -> Result<RawTime, String> {
    let t = text.trim();
    let raw = t.parse().map(RawTime::Whole).or_else(|_| t.parse().map(RawTime::Float));
    raw.map_err(|_| format!("the time {:?} is not a number", shorten(t)))
}

fn out_of_range() -> String {
    "the time is out of range".to_owned()
}

/// The beginning of a text, for a message.
fn shorten(text: &str) -> &str {
    text.char_indices().nth(40).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests;
