//! What a device has: which of its addresses can be read, for `andon modbus scan`.

use std::time::Duration;

use tokio::time::sleep;

use super::connection::{Connection, Failure, ILLEGAL_ADDRESS};
use super::plan::Span;
use super::registers::Table;

/// Exceptions by which a gateway says that a unit is not there.
const GATEWAY: std::ops::RangeInclusive<u8> = 10..=11;

/// What a scan found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The stretches that the device answers for, in order.
    pub readable: Vec<Span>,
    /// Whether all was looked at.
    pub complete: bool,
    /// What ended the scan before that: a [`Failure`] after which the connection is of no more use.
    pub failure: Option<Failure>,
}

/// How hard a scan may press.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Registers or bits in one request, at most.
    pub longest: u16,
    /// Requests, at most.
    pub requests: usize,
    /// The rest before each of them.
    pub pause: Duration,
}

/// The stretches of `within` that the device answers for, found by halving what it refuses.
///
/// That costs up to two requests for each address that is not there. `progress` hears how many
/// requests were made and how many are known to be left.
pub async fn readable(
    connection: &mut Connection,
    within: Span,
    pace: Pace,
    mut progress: impl FnMut(usize, usize),
) -> Found {
    let mut found = Found::default();
    let mut todo = blocks(within, pace.longest);
    for made in 0..pace.requests {
        progress(made, todo.len());
        let Some(span) = todo.pop() else { break };
        sleep(pace.pause).await;
        match connection.read(span).await {
            Ok(_) => add(&mut found.readable, span),
            // Any other refusal is not about addresses: no part of the block would fare better.
            Err(Failure::Exception(ILLEGAL_ADDRESS, _) | Failure::Length { .. }) => {
                let half = span.count / 2;
                if half > 0 {
                    todo.push(Span { start: span.start + half, count: span.count - half, ..span });
                    todo.push(Span { count: half, ..span });
                }
            }
            Err(failure) if failure.spares_connection() => {}
            Err(failure) => return Found { failure: Some(failure), ..found },
        }
    }
    found.complete = todo.is_empty();
    found
}

/// Whether a unit is there: it answers, be it with a refusal.
///
/// # Errors
///
/// Why the connection is of no more use; a time-out is a unit that is not there.
pub async fn answers(connection: &mut Connection) -> Result<bool, Failure> {
    match connection.read(Span { table: Table::Holding, start: 0, count: 1 }).await {
        Ok(_) => Ok(true),
        // A gateway speaks for a unit that it does not reach.
        Err(Failure::Exception(code, _)) => Ok(!GATEWAY.contains(&code)),
        Err(Failure::Length { .. }) => Ok(true),
        Err(failure) => Err(failure),
    }
}

/// `within` in blocks, the first one last.
fn blocks(within: Span, longest: u16) -> Vec<Span> {
    let starts = (u32::from(within.start)..within.end()).step_by(longest.max(1).into());
    let block = |start: u32| {
        let count = (within.end() - start).min(u32::from(longest.max(1)));
        Some(Span { start: u16::try_from(start).ok()?, count: u16::try_from(count).ok()?, ..within })
    };
    starts.filter_map(block).rev().collect()
}

/// Adds a span that starts no earlier than the last ends, joining the two where they touch. A span
/// cannot count 65536, so the whole address space stays two.
fn add(found: &mut Vec<Span>, next: Span) {
    match found.last_mut() {
        Some(last) if last.end() == u32::from(next.start) && last.count.checked_add(next.count).is_some() => {
            last.count += next.count;
        }
        _ => found.push(next),
    }
}
