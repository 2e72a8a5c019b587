//! What a device has: which of its addresses can be read, for `andon modbus scan`.

use super::connection::{Connection, Failure, ILLEGAL_ADDRESS};
use super::plan::Span;

/// The stretches of `within` that the device answers for, found by halving what it refuses.
///
/// That costs up to two requests for each address that is not there. Requests are at most `longest`
/// registers or bits long, and at most `requests` are made; what has not been looked at by then is
/// left out, and the second value is false.
///
/// # Errors
///
/// Those [`Failure`]s after which the connection is of no more use.
pub async fn readable(
    connection: &mut Connection,
    within: Span,
    longest: u16,
    requests: usize,
) -> Result<(Vec<Span>, bool), Failure> {
    let mut found: Vec<Span> = Vec::new();
    let mut todo = blocks(within, longest);
    for _ in 0..requests {
        let Some(span) = todo.pop() else { break };
        match connection.read(span).await {
            Ok(_) => add(&mut found, span),
            // Any other refusal is not about addresses: no part of the block would fare better.
            Err(Failure::Exception(ILLEGAL_ADDRESS, _) | Failure::Length { .. }) => {
                let half = span.count / 2;
                if half > 0 {
                    todo.push(Span { start: span.start + half, count: span.count - half, ..span });
                    todo.push(Span { count: half, ..span });
                }
            }
            Err(failure) if failure.spares_connection() => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok((found, todo.is_empty()))
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

#[cfg(all(test, feature = "demo"))]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::simulator::plc::Plc;
    use crate::source::modbus::Url;
    use crate::source::modbus::registers::Table;

    async fn scan(plc: &Plc, within: Span, requests: usize) -> (Vec<Span>, bool) {
        let url = Url::Tcp { host: plc.address().ip().to_string(), port: plc.address().port() };
        let mut connection = Connection::dial(&url, 1, Duration::from_secs(10)).await.expect("a connection");
        readable(&mut connection, within, 100, requests).await.expect("answers")
    }

    #[tokio::test]
    async fn the_readable_ranges_of_a_device_are_found() {
        let plc = Plc::start("127.0.0.1:0".parse().expect("an address")).await.expect("a simulated PLC");
        for hole in [0..7, 100..101, 250..1000, 65535..65536] {
            plc.unmap(Table::Holding, hole);
        }
        let holding = |start, count| Span { table: Table::Holding, start, count };
        let (found, complete) = scan(&plc, holding(0, 1200), 5000).await;
        assert_eq!(found, [holding(7, 93), holding(101, 149), holding(1000, 200)]);
        assert!(complete);
        let (found, complete) = scan(&plc, holding(65500, 36), 1000).await;
        assert_eq!((found, complete), (vec![holding(65500, 35)], true));
        let (found, complete) = scan(&plc, holding(1000, 1000), 3).await;
        assert_eq!((found, complete), (vec![holding(1000, 300)], false));
    }
}
