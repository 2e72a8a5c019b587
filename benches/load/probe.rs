//! How long it takes from publishing the value that is wrong to the alarm on MQTT: a machine of its own
//! beside the load turns bad and well again, and the broker tells when its alarm changes.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::publisher::{connect, now_ms, string};

/// The part of the config that goes with it, before the machines of the load.
pub const CONFIG: &str = r#"
[[machine]]
match = "probe"
model = "one-step"
rate = "10ms"
[machine.channels]
count = "s0"
[machine.alarm]
threshold = 100
severity = 900
on_delay = "0s"
off_delay = "0s"

[publish]
source = "shop"
"#;
const TOPIC: &str = "andon/bench/load/gw/probe/alarm";
/// From one change to the next.
const EVERY: Duration = Duration::from_millis(50);
/// A change that is not heard of after this is an error.
const PATIENCE: Duration = Duration::from_secs(20);

/// Turns the machine bad and well until told to stop; gives the microseconds that each change took.
pub fn watch(port: u16, stop: &AtomicBool) -> Result<Vec<u64>> {
    let mut socket = connect(port, "probe")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut heard = BufReader::new(socket.try_clone()?);
    let mut body = vec![0, 1];
    string(TOPIC, &mut body);
    body.push(0);
    send(&mut socket, 0x82, &body)?;
    receive(&mut heard, 0x90)?;
    let mut took = Vec::new();
    let (mut bad, mut last) = (false, 0);
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(EVERY);
        bad = !bad;
        // On the grid, so that the step is over with this very message.
        let ts = (now_ms() / 10 * 10).max(last + 10);
        last = ts;
        let mut body = Vec::new();
        string("plant/probe/s0", &mut body);
        body.extend(format!("{{\"value\":{},\"ts\":{ts}}}", if bad { 1000 } else { 0 }).into_bytes());
        let sent = Instant::now();
        send(&mut socket, 0x30, &body)?;
        receive(&mut heard, 0x30).context("waiting for the alarm")?;
        took.push(sent.elapsed().as_micros() as u64);
    }
    Ok(took)
}

fn send(socket: &mut TcpStream, kind: u8, body: &[u8]) -> Result<()> {
    ensure!(body.len() < 128, "longer than this writes");
    let mut out = vec![kind, body.len() as u8];
    out.extend_from_slice(body);
    Ok(socket.write_all(&out)?)
}

/// Waits for a packet of this kind and passes over others.
fn receive(from: &mut impl Read, kind: u8) -> Result<()> {
    loop {
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        let got = byte[0] & 0xf0;
        let (mut length, mut shift) = (0u64, 0);
        loop {
            from.read_exact(&mut byte)?;
            length |= u64::from(byte[0] & 0x7f) << shift;
            shift += 7;
            if byte[0] & 0x80 == 0 || shift > 21 {
                break;
            }
        }
        std::io::copy(&mut from.by_ref().take(length), &mut std::io::sink())?;
        if got == kind & 0xf0 {
            return Ok(());
        }
    }
}
