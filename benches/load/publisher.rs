//! Publishes with QoS 1 as cheaply as can be, since it shares the machine with what is measured: MQTT
//! 3.1.1 by hand, many messages to a write.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::workload::Workload;

/// Messages the broker has not answered yet.
const WINDOW: u64 = 2_000;
/// Time of the first message where there is no pace: 2025-01-01T00:00:00Z.
const EPOCH_MS: u64 = 1_735_689_600_000;
/// Messages in one write.
const BUNDLE: u64 = 50;

/// What the publisher and whoever started it tell each other.
#[derive(Default)]
pub struct Talk {
    /// It may publish up to this message.
    pub allowed: AtomicU64,
    /// It has published so many.
    pub published: AtomicU64,
    /// Published before the agent began to count.
    pub base: AtomicU64,
    /// Bytes of payload in these.
    pub bytes: AtomicU64,
    /// Readings in a message.
    pub per_message: u64,
    pub stop: AtomicBool,
}

/// How messages are framed, and how many may be unanswered.
pub struct Packets {
    pub window: u64,
    /// What MQTT 5 has between identifier and payload, and 3.1.1 has not.
    pub properties: &'static [u8],
}

/// Publishes to a broker until told to stop.
pub fn publish(port: u16, workload: &Workload, talk: &Talk) -> Result<()> {
    let socket = connect(port, "load")?;
    let acked = Arc::new(AtomicU64::new(0));
    count_acks(socket.try_clone()?, acked.clone());
    go_on(socket, workload, talk, Packets { window: WINDOW, properties: &[] }, &acked, |_, _| {})
}

/// Publishes over this connection until told to stop; `note` hears of the messages that go out next.
pub fn go_on(
    mut socket: TcpStream,
    workload: &Workload,
    talk: &Talk,
    packets: Packets,
    acked: &AtomicU64,
    mut note: impl FnMut(u64, u64),
) -> Result<()> {
    let (mut topic, mut payload, mut out, mut n) = (String::new(), String::new(), Vec::new(), 0);
    // Paced messages bear the time at which they go out, or up to a round before.
    let (start, start_ms) = (
        Instant::now(),
        if workload.pace.is_some() { now_ms() / workload.step_ms * workload.step_ms } else { EPOCH_MS },
    );
    while !talk.stop.load(Ordering::Relaxed) {
        let due = workload.pace.map_or(u64::MAX, |pace| (start.elapsed().as_secs_f64() * pace) as u64);
        let allowed = talk.allowed.load(Ordering::Relaxed);
        let until = due.min(allowed).min(acked.load(Ordering::Relaxed) + packets.window);
        if n >= until {
            thread::sleep(Duration::from_micros(500));
            continue;
        }
        out.clear();
        let (first, end, mut bytes) = (n, until.min(n + BUNDLE), 0);
        while n < end {
            workload.message(n, start_ms, &mut topic, &mut payload);
            packet(n, &topic, &payload, packets.properties, &mut out);
            bytes += payload.len() as u64;
            n += 1;
        }
        note(first, end);
        // Whoever counts ends the connection first.
        if let Err(error) = socket.write_all(&out)
            && !talk.stop.load(Ordering::Relaxed)
        {
            return Err(error).context("publishing");
        }
        talk.published.store(n, Ordering::Relaxed);
        talk.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
    Ok(())
}

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// A clean session of MQTT 3.1.1 without keep-alive.
pub fn connect(port: u16, id: &str) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_nodelay(true)?;
    let mut out = vec![0x10, 10 + 2 + id.len() as u8, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0];
    string(id, &mut out);
    socket.write_all(&out)?;
    let mut answer = [0; 4];
    socket.read_exact(&mut answer)?;
    ensure!(answer == [0x20, 2, 0, 0], "the broker refuses: {answer:?}");
    Ok(socket)
}

/// PUBACKs are four bytes each, and nothing else comes.
fn count_acks(mut socket: TcpStream, acked: Arc<AtomicU64>) {
    thread::spawn(move || {
        let (mut buffer, mut bytes) = (vec![0; 64 << 10], 0);
        while let Ok(n @ 1..) = socket.read(&mut buffer) {
            bytes += n as u64;
            acked.store(bytes / 4, Ordering::Relaxed);
        }
    });
}

fn packet(n: u64, topic: &str, payload: &str, properties: &[u8], out: &mut Vec<u8>) {
    let mut left = 2 + topic.len() + 2 + properties.len() + payload.len();
    out.push(0x32);
    loop {
        let byte = (left % 128) as u8;
        left /= 128;
        out.push(if left > 0 { byte | 0x80 } else { byte });
        if left == 0 {
            break;
        }
    }
    string(topic, out);
    out.extend_from_slice(&((n % 60_000) as u16 + 1).to_be_bytes());
    out.extend_from_slice(properties);
    out.extend_from_slice(payload.as_bytes());
}

/// A string as MQTT writes it.
pub fn string(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}
