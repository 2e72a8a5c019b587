//! CSV payloads: one value per line, in a column given by number; time in another where given.
//! Comma or semicolon separates; with the semicolon a decimal comma is understood.

use super::{Config, Found, RawTime, number, shorten};
use crate::types::Time;

pub(super) fn decode(config: &Config, text: &str, found: &mut Found) {
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        match read_line(config, line) {
            Ok((value, at)) => found.add("", Some(value), at),
            Err(e) => found.complain(|| format!("{e} in the line {:?}", shorten(line))),
        }
    }
}

fn read_line(config: &Config, line: &str) -> Result<(f64, Option<Time>), String> {
    let separator = if line.contains(';') { ';' } else { ',' };
    let field = |column: usize| {
        let text = line.split(separator).nth(column).map(|f| f.trim().trim_matches('"'));
        text.ok_or_else(|| format!("there is no column {}", column + 1))
    };
    let text = field(config.value_column)?;
    let value = if separator == ';' { number(&text.replacen(',', ".", 1))? } else { number(text)? };
    let at = match config.time_column {
        Some(column) => Some(config.time_format.read(&RawTime::Text(field(column)?.to_owned()))?),
        None => None,
    };
    Ok((value, at))
}
