//! Influx line protocol: each numeric or boolean field is a value named after the field. Measurement
//! and tags are left alone, texts too. The time at the end is in `time_format`, by default unix_ns.

use super::{Config, Found, number, shorten, unix_text};
use crate::types::Time;

pub(super) fn decode(config: &Config, text: &str, found: &mut Found) {
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Err(e) = read_line(config, line, found) {
            found.complain(|| format!("{e} in the line {:?}", shorten(line)));
        }
    }
}

fn read_line(config: &Config, line: &str, found: &mut Found) -> Result<(), String> {
    let mut parts = split(line, ' ').into_iter().filter(|p| !p.is_empty());
    let (_measurement, fields) = (parts.next(), parts.next());
    let fields = fields.ok_or("there are no fields")?;
    let at: Option<Time> = match parts.next() {
        Some(time) => Some(config.time_format.read(&unix_text(time)?)?),
        None => None,
    };
    if parts.next().is_some() {
        return Err("there is something after the time".into());
    }
    let mut bad = None;
    for field in split(fields, ',') {
        let (key, value) = match split(field, '=').as_slice() {
            [key, value] if !key.is_empty() => (key.replace('\\', ""), *value),
            _ => return Err(format!("{:?} is not name=value", shorten(field))),
        };
        if value.starts_with('"') {
            continue;
        }
        match read_value(value) {
            Ok(n) => found.add(&key, Some(n), at),
            Err(e) => bad = Some(e),
        }
    }
    bad.map_or(Ok(()), Err)
}

fn read_value(text: &str) -> Result<f64, String> {
    match text {
        "t" | "T" | "True" | "TRUE" => Ok(1.0),
        "f" | "F" | "False" | "FALSE" => Ok(0.0),
        t => number(t.strip_suffix(['i', 'u']).unwrap_or(t)),
    }
}

/// Splits at the separator, but not inside quotes or after a backslash.
fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut out, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (i, c) in text.char_indices() {
        if escaped {
            escaped = false;
        } else if c == '\\' {
            escaped = true;
        } else if c == '"' {
            quoted = !quoted;
        } else if c == separator && !quoted {
            out.push(&text[start..i]);
            start = i + c.len_utf8();
        }
    }
    out.push(&text[start..]);
    out
}
