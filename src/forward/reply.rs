//! What an HTTP answer means for the records that were sent: the table under "Replies" in the
//! design, as one pure function.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::retry::{http_date, retry_after};
use crate::types::{RecordId, Time};

/// How much of a refusal's text is kept as the reason.
const REASON_BYTES: usize = 300;

/// An answer as it came over the wire.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The Retry-After header, if any.
    pub retry_after: Option<String>,
    /// The Date header, if any.
    pub date: Option<String>,
    /// The body; empty when there was none or when it was too large to read.
    pub body: Vec<u8>,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// All records are taken.
    Accepted,
    /// One fate for each record, in the order sent.
    Each(Vec<Fate>),
    /// Send the same again, at the earliest after the time asked for.
    Later(Option<Duration>),
    /// Send less at a time.
    TooLarge,
    /// At least one record cannot be taken, for this reason.
    Refused(String),
    /// The token is not, or no longer, good.
    Unauthorized,
    /// The other side cannot read the content coding or type.
    Unsupported,
    /// Not the right address, or not set up for us: a person has to look.
    Misdirected,
    /// The address is retired.
    Gone,
}

/// What became of one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Taken.
    Accepted,
    /// To be sent again.
    Later,
    /// Will never be taken, for this reason.
    Refused(String),
}

/// Reads an answer to a request that carried the records `ids`.
pub fn classify(answer: &Answer, ids: &[RecordId], now: Time) -> Reply {
    match answer.status {
        200 | 207 => each(&answer.body, ids).map_or(Reply::Accepted, Reply::Each),
        201..=299 => Reply::Accepted,
        408 | 409 | 425 | 429 | 500..=599 => {
            let theirs = answer.date.as_deref().and_then(http_date);
            Reply::Later(answer.retry_after.as_deref().and_then(|value| retry_after(value, theirs.unwrap_or(now))))
        }
        413 => Reply::TooLarge,
        400 | 422 => Reply::Refused(reason(answer)),
        401 | 403 => Reply::Unauthorized,
        410 => Reply::Gone,
        415 => Reply::Unsupported,
        _ => Reply::Misdirected,
    }
}

/// `None` when the body says nothing of single records.
fn each(body: &[u8], ids: &[RecordId]) -> Option<Vec<Fate>> {
    #[derive(Deserialize)]
    struct Results<'a> {
        #[serde(borrow)]
        results: Vec<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Item<'a> {
        id: String,
        status: u16,
        #[serde(borrow, default)]
        error: Option<&'a RawValue>,
    }
    let results: Results<'_> = serde_json::from_slice(body).ok()?;
    // One by one: a result that cannot be read must not hide the others.
    let items = results.results.iter().filter_map(|raw| serde_json::from_str::<Item<'_>>(raw.get()).ok());
    let by_id: HashMap<String, (u16, Option<&RawValue>)> = items.map(|i| (i.id, (i.status, i.error))).collect();
    let fate = |id: &RecordId| match by_id.get(&id.to_string()) {
        None | Some((200..=299, _)) => Fate::Accepted,
        Some((408 | 409 | 425 | 429, _)) => Fate::Later,
        Some((status @ 400..=499, error)) => {
            Fate::Refused(error.map_or_else(|| status.to_string(), |e| format!("{status}: {}", start(e.get()))))
        }
        Some(_) => Fate::Later,
    };
    let fates: Vec<Fate> = ids.iter().map(fate).collect();
    fates.iter().any(|f| *f != Fate::Accepted).then_some(fates)
}

fn reason(answer: &Answer) -> String {
    let text = String::from_utf8_lossy(&answer.body[..answer.body.len().min(4 * REASON_BYTES)]);
    if text.trim().is_empty() { answer.status.to_string() } else { format!("{}: {}", answer.status, start(&text)) }
}

/// The first part of a text from outside, on one line and without control characters.
fn start(text: &str) -> Cow<'_, str> {
    let text = text.trim().trim_matches('"');
    let mut out: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(REASON_BYTES).collect();
    if out.len() < text.len() {
        out.push('…');
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16) -> Answer {
        Answer { status, ..Answer::default() }
    }

    fn id(n: u8) -> RecordId {
        RecordId([n; 16])
    }

    fn read(answer: &Answer) -> Reply {
        classify(answer, &[id(1), id(2), id(3)], Time(0))
    }

    #[test]
    fn every_status_has_its_row() {
        for status in 100..=999 {
            let expected = match status {
                200..=299 => Reply::Accepted,
                408 | 409 | 425 | 429 | 500..=599 => Reply::Later(None),
                413 => Reply::TooLarge,
                400 | 422 => Reply::Refused(status.to_string()),
                401 | 403 => Reply::Unauthorized,
                410 => Reply::Gone,
                415 => Reply::Unsupported,
                _ => Reply::Misdirected,
            };
            assert_eq!(read(&answer(status)), expected, "{status}");
        }
    }

    #[test]
    fn retry_after_is_taken_from_retryable_answers() {
        let busy = Answer { retry_after: Some("7".into()), ..answer(429) };
        assert_eq!(read(&busy), Reply::Later(Some(Duration::from_secs(7))));
        let date = Answer { retry_after: Some("Thu, 01 Jan 1970 00:00:09 GMT".into()), ..answer(503) };
        assert_eq!(read(&date), Reply::Later(Some(Duration::from_secs(9))));
        let clock_off = Answer { date: Some("Thu, 01 Jan 1970 00:00:04 GMT".into()), ..date };
        assert_eq!(read(&clock_off), Reply::Later(Some(Duration::from_secs(5))));
    }

    #[test]
    fn results_are_honoured_per_record() {
        let body = format!(
            r#"{{"results":[{{"id":"{}","status":503}},{{"id":"{}","status":422,"error":"no such model"}},{{"id":7}}]}}"#,
            id(1),
            id(3)
        );
        let expected = vec![Fate::Later, Fate::Accepted, Fate::Refused("422: no such model".into())];
        for status in [200, 207] {
            let reply = read(&Answer { body: body.clone().into_bytes(), ..answer(status) });
            assert_eq!(reply, Reply::Each(expected.clone()));
        }
        assert_eq!(read(&Answer { body: body.into_bytes(), ..answer(202) }), Reply::Accepted);
    }

    #[test]
    fn other_bodies_mean_accepted() {
        for body in ["", "OK", "{}", "[1]", r#"{"results":"none"}"#, r#"{"results":[{"id":"x","status":422}]}"#, "{\"a"]
        {
            assert_eq!(read(&Answer { body: body.into(), ..answer(200) }), Reply::Accepted, "{body:?}");
        }
    }

    #[test]
    fn a_reason_is_short_and_printable() {
        let long = Answer { body: [b"bad\x1b[31m\n".as_slice(), &[b'x'; 9000]].concat(), ..answer(400) };
        let Reply::Refused(reason) = read(&long) else { panic!("refused") };
        assert!(reason.starts_with("400: bad [31m xxx") && reason.chars().count() < 320, "{reason}");
    }

    proptest::proptest! {
        #[test]
        fn any_answer_is_read_without_panic(status: u16, body: Vec<u8>, after in proptest::option::of(".*")) {
            read(&Answer { status, retry_after: after.clone(), date: after, body });
        }
    }
}
