//! Recorded data: CSV with its delimiter and time format sniffed, row by row.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::types::Time;

/// Column names that are taken for the time when none is given.
const TIME_NAMES: [&str; 7] = ["timestamp", "time", "datetime", "date_time", "date", "ts", "t"];
/// Times without a zone; taken as UTC.
const CIVIL: [&str; 8] = [
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y/%m/%d %H:%M:%S%.f",
    "%d.%m.%Y %H:%M:%S%.f",
    "%m/%d/%Y %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y/%m/%d %H:%M",
    "%m/%d/%y %H:%M",
];

/// A CSV being read.
pub struct Table {
    /// Column names.
    pub headers: Vec<String>,
    /// The column with the time.
    pub time: usize,
    rows: csv::Reader<File>,
    record: csv::StringRecord,
    /// Its size in bytes, for progress.
    pub size: u64,
}

impl Table {
    /// Opens a file; `time` names the time column where it is not obvious.
    pub fn open(path: &Path, time: Option<&str>) -> Result<Table> {
        let delimiter = sniff_delimiter(path)?;
        let size = std::fs::metadata(path).map_or(0, |m| m.len());
        let mut rows = csv::ReaderBuilder::new()
            .delimiter(delimiter)
            .trim(csv::Trim::All)
            .flexible(true)
            .from_path(path)
            .with_context(|| format!("opening {}", path.display()))?;
        let headers = rows.headers().with_context(|| format!("reading the header of {}", path.display()))?;
        let headers: Vec<String> = headers.iter().map(|h| h.trim_start_matches('\u{feff}').to_owned()).collect();
        let found = match time {
            Some(name) => headers.iter().position(|h| h == name),
            None => TIME_NAMES.iter().find_map(|n| headers.iter().position(|h| h.eq_ignore_ascii_case(n))),
        };
        let Some(time) = found else {
            let there = headers.join(", ");
            match time {
                Some(name) => bail!("{} has no column {name:?}; it has {there}", path.display()),
                None => bail!("{}: which column is the time? Say `--time COL`; it has {there}", path.display()),
            }
        };
        Ok(Table { headers, time, rows, record: csv::StringRecord::new(), size })
    }

    /// The place of a column.
    pub fn column(&self, name: &str) -> Result<usize> {
        let found = self.headers.iter().position(|h| h == name);
        found.with_context(|| format!("there is no column {name:?}; there are {}", self.headers.join(", ")))
    }

    /// The next row, with its line number and time; `None` at the end.
    pub fn next_row(&mut self) -> Result<Option<(u64, Time, &csv::StringRecord)>> {
        if !self.rows.read_record(&mut self.record).context("reading a row")? {
            return Ok(None);
        }
        let line = self.record.position().map_or(0, csv::Position::line);
        let text = self.record.get(self.time).unwrap_or("");
        let at = parse_time(text).with_context(|| format!("line {line}: {text:?} is not a time"))?;
        Ok(Some((line, at, &self.record)))
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.rows.position().byte()
    }
}

/// The one of `, ; tab |` that the header has most of.
fn sniff_delimiter(path: &Path) -> Result<u8> {
    use std::io::{BufRead, BufReader, Read};
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut header = Vec::new();
    BufReader::new(file.take(1 << 20)).read_until(b'\n', &mut header)?;
    let count = |d: &u8| header.iter().filter(|b| *b == d).count();
    Ok([b',', b';', b'\t', b'|'].into_iter().rev().max_by_key(count).unwrap_or(b','))
}

/// RFC 3339, common civil formats (as UTC), or a Unix time whose unit its size gives away.
pub fn parse_time(text: &str) -> Option<Time> {
    if let Ok(number) = text.parse::<f64>() {
        let per_second = match number.abs() {
            n if n < 1e11 => 1.0,
            n if n < 1e14 => 1e3,
            n if n < 1e17 => 1e6,
            _ => return text.parse().ok().map(Time),
        };
        return Time::from_unix_seconds(number / per_second);
    }
    text.parse().ok().or_else(|| CIVIL.iter().find_map(|format| civil(format, text)))
}

fn civil(format: &str, text: &str) -> Option<Time> {
    let at = DateTime::strptime(format, text).ok()?.to_zoned(TimeZone::UTC).ok()?;
    i64::try_from(at.timestamp().as_nanosecond()).ok().map(Time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let expected = "2020-03-01T17:09:27Z".parse().ok();
        for text in [
            "2020-03-01 17:09:27",
            "2020-03-01T17:09:27Z",
            "2020-03-01T18:09:27+01:00",
            "2020/03/01 17:09:27",
            "01.03.2020 17:09:27",
            "1583082567",
            "1583082567000",
            "1583082567000000",
            "1583082567000000000",
        ] {
            assert_eq!(parse_time(text), expected, "{text}");
        }
        assert_eq!(parse_time("2020-03-01 17:09:27.250").map(|t| t.0 % 1_000_000_000), Some(250_000_000));
        for bad in ["", "soon", "nan", "inf", "2020-13-01 00:00:00"] {
            assert_eq!(parse_time(bad), None, "{bad}");
        }
    }
}
