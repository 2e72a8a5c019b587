//! A broker with nothing behind it, in the harness: the agent is its only client, so that what a broker
//! costs stays out, and each message's way to its PUBACK, which follows the fsync, can be timed.

use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::publisher::{self, Packets, Talk};
use crate::workload::Workload;

/// Packet identifiers in use at once; the config's `receive_maximum`.
const WINDOW: u64 = 10_000;
/// Of so many messages one is timed.
const TIMED: u64 = 16;

/// When the messages under way went out, and how long those took that are back.
struct Clock {
    start: Instant,
    /// Microseconds since the start, by the message's number modulo the size.
    sent: Vec<AtomicU64>,
    took: Mutex<Vec<u64>>,
}

/// A broker on a port of its own.
pub struct Broker {
    listener: TcpListener,
    clock: Arc<Clock>,
}

impl Broker {
    pub fn start() -> Result<Broker> {
        let sent = (0..WINDOW * 2).map(|_| AtomicU64::new(0)).collect();
        let clock = Arc::new(Clock { start: Instant::now(), sent, took: Mutex::default() });
        Ok(Broker { listener: TcpListener::bind("127.0.0.1:0")?, clock })
    }

    pub fn port(&self) -> Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// Microseconds from publishing to the acknowledgement, of those since the last call.
    pub fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.clock.took.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for the agent's subscription, then publishes to it until told to stop.
    pub fn publish(&self, workload: &Workload, talk: &Talk) -> Result<()> {
        let (socket, _) = self.listener.accept()?;
        socket.set_nodelay(true)?;
        let mut heard = BufReader::new(socket.try_clone()?);
        let mut answers = socket.try_clone()?;
        // Until it has subscribed nobody else writes.
        while answer(&mut heard, &mut answers)? != Some(Heard::Subscribe) {}
        let acked = Arc::new(AtomicU64::new(0));
        let (count, clock) = (acked.clone(), self.clock.clone());
        thread::spawn(move || count_acks(&mut heard, &mut answers, &count, &clock));
        let note = |first: u64, end: u64| {
            let now = self.clock.start.elapsed().as_micros() as u64;
            (first..end).for_each(|n| self.clock.slot(n).store(now, Ordering::Relaxed));
        };
        publisher::go_on(socket, workload, talk, Packets { window: WINDOW, properties: &[0] }, &acked, note)
    }
}

impl Clock {
    fn slot(&self, n: u64) -> &AtomicU64 {
        &self.sent[(n % (WINDOW * 2)) as usize]
    }
}

#[derive(PartialEq)]
enum Heard {
    Subscribe,
    Ack,
}

/// Acknowledgements come in the order of the messages.
fn count_acks(from: &mut impl Read, to: &mut TcpStream, acked: &AtomicU64, clock: &Clock) -> Result<()> {
    loop {
        if answer(from, to)? != Some(Heard::Ack) {
            continue;
        }
        let n = acked.fetch_add(1, Ordering::Relaxed);
        if n.is_multiple_of(TIMED) {
            let took = clock.start.elapsed().as_micros() as u64 - clock.slot(n).load(Ordering::Relaxed);
            clock.took.lock().unwrap_or_else(PoisonError::into_inner).push(took);
        }
    }
}

/// Reads a packet of MQTT 5 and answers as a broker does that refuses nothing.
fn answer(from: &mut impl Read, to: &mut TcpStream) -> Result<Option<Heard>> {
    let mut first = [0];
    from.read_exact(&mut first)?;
    let mut body = vec![0; number(from)?];
    from.read_exact(&mut body)?;
    let id = || body.get(..2).context("a packet without its identifier");
    match first[0] >> 4 {
        // CONNECT: no session, success, no properties.
        1 => to.write_all(&[0x20, 3, 0, 0, 0])?,
        // PUBLISH of the agent itself; with QoS 1 its identifier follows the topic.
        3 if first[0] & 0x06 != 0 => {
            let at = 2 + usize::from(u16::from_be_bytes([body[0], body[1]]));
            to.write_all(&[0x40, 2, body[at], body[at + 1]])?;
        }
        3 => {}
        4 => return Ok(Some(Heard::Ack)),
        8 => {
            let id = id()?;
            // One filter, which is what these configs have: QoS 1 granted.
            to.write_all(&[0x90, 4, id[0], id[1], 0, 1])?;
            return Ok(Some(Heard::Subscribe));
        }
        12 => to.write_all(&[0xd0, 0])?,
        other => bail!("a packet of type {other}"),
    }
    Ok(None)
}

/// A length of one to four bytes.
fn number(from: &mut impl Read) -> Result<usize> {
    let mut value = 0;
    for shift in [0, 7, 14, 21] {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        value |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] & 0x80 == 0 {
            return Ok(value);
        }
    }
    bail!("a length of more than four bytes")
}
