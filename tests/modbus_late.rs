//! The late-answer attack: servers that answer a request while the next one is awaited, over TCP under
//! every number they could give it, and over RTU where there are no numbers. Not one stale value may
//! come through. `ANDON_TEST_TRIES=10000` for the long run.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use andon::source::modbus::plan::Span;
use andon::source::modbus::registers::Table;
use andon::source::modbus::{Connection, Failure, Lines, Url};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Mutex;

#[path = "support/modbus.rs"]
mod support;
use support::*;
#[path = "support/rtu.rs"]
mod rtu;
use rtu::{answer, sealed};

/// How long an answer may take. What comes later than this is late.
const LIMIT: Duration = Duration::from_millis(5);

fn tries() -> u16 {
    std::env::var("ANDON_TEST_TRIES").ok().and_then(|t| t.parse().ok()).unwrap_or(1000)
}

/// What a run came to.
#[derive(Default)]
struct Tally {
    fresh: usize,
    refused: usize,
    missed: usize,
}

/// Asks so many times, each time for another register that holds its own address, always in the same
/// shape, so that nothing but its place tells an answer from another. A connection is used for as
/// long as the poller would.
async fn attack(url: &Url) -> Tally {
    let lines = Lines::default();
    let mut link: Option<Connection> = None;
    let mut tally = Tally::default();
    for n in 0..tries() {
        let mut connection = match link.take() {
            Some(connection) => connection,
            None => match Connection::dial(&lines, url, 1, LIMIT).await {
                Ok(connection) => connection,
                Err(_) => {
                    tally.missed += 1;
                    continue;
                }
            },
        };
        // Some are refused: a refusal can be late too.
        let start = if n % 7 == 0 { 9000 + n % 100 } else { n % 9000 };
        match connection.read(Span { table: Table::Holding, start, count: 1 }).await {
            Ok(values) => {
                assert_eq!(values, [start], "try {n}: an answer to another request");
                tally.fresh += 1;
                link = Some(connection);
            }
            Err(Failure::Exception(..)) => {
                assert!(start >= 9000, "try {n}: a refusal of another request");
                tally.refused += 1;
                link = Some(connection);
            }
            Err(_) => tally.missed += 1,
        }
    }
    let Tally { fresh, refused, missed } = tally;
    println!("{} tries at {url}: {fresh} fresh, {refused} refused, {missed} missed, 0 stale", tries());
    tally
}

/// It has to be an attack, and has to leave something.
fn is_fair(tally: &Tally) {
    let all = usize::from(tries());
    assert!(tally.fresh > all / 10 && tally.refused > all / 100 && tally.missed > all / 50, "too one-sided");
}

/// An answer over TCP, under any number; addresses from 9000 are refused.
fn numbered(asked: &Asked, transaction: u16) -> Vec<u8> {
    match asked.at {
        9000.. => [&transaction.to_be_bytes()[..], &[0, 0, 0, 3, 1, asked.function | 0x80, 2]].concat(),
        _ => asked.answer_as(transaction, [asked.at]),
    }
}

type Out = Arc<Mutex<OwnedWriteHalf>>;

/// A device that now and then leaves an answer until the next request has come, whichever connection
/// that comes by, and sends it then: under its own number and under the next one's where it was asked,
/// and under its own and wrong ones where the next was asked.
async fn late_tcp_device(seed: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let random = Arc::new(std::sync::Mutex::new(fastrand::Rng::with_seed(seed)));
    let owed: Arc<Mutex<Option<(Asked, Out)>>> = Arc::default();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (mut input, output) = stream.into_split();
            let output: Out = Arc::new(Mutex::new(output));
            let (random, owed) = (random.clone(), owed.clone());
            tokio::spawn(async move {
                let mut frame = [0; 12];
                while input.read_exact(&mut frame).await.is_ok() {
                    let word = |i: usize| u16::from_be_bytes([frame[i], frame[i + 1]]);
                    let asked =
                        Asked { nth: 0, transaction: word(0), function: frame[7], at: word(8), count: word(10) };
                    let mut bytes = Vec::new();
                    if let Some((late, old)) = owed.lock().await.take() {
                        let there = [numbered(&late, late.transaction), numbered(&late, asked.transaction)].concat();
                        // The other side has hung up by rights, but who knows.
                        let _ = old.lock().await.write_all(&there).await;
                        bytes = numbered(&late, late.transaction);
                    }
                    let draw = random.lock().unwrap().u8(..16);
                    match draw {
                        0 | 1 => *owed.lock().await = Some((asked, output.clone())),
                        2 => bytes.extend(numbered(&Asked { at: 0xBAD, ..asked }, asked.transaction.wrapping_sub(1))),
                        3 => {
                            // About when it is given up.
                            let (output, answer) = (output.clone(), numbered(&asked, asked.transaction));
                            tokio::spawn(async move {
                                tokio::time::sleep(LIMIT).await;
                                let _ = output.lock().await.write_all(&answer).await;
                            });
                        }
                        _ => bytes.extend(numbered(&asked, asked.transaction)),
                    }
                    if output.lock().await.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn no_late_answer_is_taken_over_tcp() {
    let device = late_tcp_device(7).await;
    is_fair(&attack(&Url::parse(&format!("tcp://{device}")).unwrap()).await);
}

/// An RTU device behind TCP that answers each request in its turn, some of them only after `late`
/// further requests have come in; what it owes it sends even through the next connection.
async fn late_rtu_device(late: impl Fn(usize) -> usize + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut owed: VecDeque<(usize, Vec<u8>)> = VecDeque::new();
        let mut nth = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 8];
            while stream.read_exact(&mut request).await.is_ok() {
                assert_eq!(sealed(request[..6].to_vec()), request, "the checksum of a request");
                nth += 1;
                owed.push_back((nth + late(nth), answer(&request)));
                while owed.front().is_some_and(|(at, _)| *at <= nth) {
                    let (_, bytes) = owed.pop_front().unwrap();
                    if stream.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
            }
        }
    });
    address
}

#[tokio::test]
async fn no_late_answer_is_taken_over_rtu() {
    let mut random = fastrand::Rng::with_seed(7);
    let lateness: Vec<usize> =
        (0..8 * usize::from(tries())).map(|_| if random.u8(..16) == 0 { random.usize(1..4) } else { 0 }).collect();
    let device = late_rtu_device(move |nth| lateness.get(nth).copied().unwrap_or(0)).await;
    is_fair(&attack(&Url::parse(&format!("rtu-tcp://{device}")).unwrap()).await);
}
