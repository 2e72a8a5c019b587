//! What the tests of the light ask of the agent and of the devices beside it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::support::daemon::Daemon;

/// The state of each machine by the API; nothing while the agent is away.
pub fn lights(daemon: &Daemon) -> Option<BTreeMap<String, String>> {
    let (status, body) = daemon.get("/api/v1/lights").ok()?;
    let answer: Value = serde_json::from_str(&body).ok().filter(|_| status == 200)?;
    let pair = |l: &Value| Some((l[0].as_str()?.to_owned(), l[1].as_str()?.to_owned()));
    Some(answer["lights"].as_array()?.iter().filter_map(pair).collect())
}

/// A machine as the API has it; null where there is none.
pub fn machine(daemon: &Daemon, id: &str) -> Value {
    let answer = daemon.get(&format!("/api/v1/machines/{id}")).ok().filter(|(status, _)| *status == 200);
    answer.and_then(|(_, body)| serde_json::from_str(&body).ok()).unwrap_or_default()
}

/// State and reason of a machine.
pub fn stands(daemon: &Daemon, id: &str) -> (String, String) {
    let m = machine(daemon, id);
    let text = |key: &str| m[key].as_str().unwrap_or("").to_owned();
    (text("light"), text("why"))
}

/// The reading dropped for this reason, so far.
pub fn dropped(daemon: &Daemon, reason: &str) -> f64 {
    daemon.metric("andon_readings_dropped_total", &format!("reason=\"{reason}\""))
}

/// A Modbus TCP request by hand: the answer behind the header.
pub fn ask(address: SocketAddr, pdu: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(&[&[0, 1, 0, 0, 0, pdu.len() as u8 + 1, 1], pdu].concat())?;
    let mut head = [0; 7];
    stream.read_exact(&mut head)?;
    let mut rest = vec![0; usize::from(head[5]) - 1];
    stream.read_exact(&mut rest)?;
    Ok(rest)
}

/// Sets one holding register.
pub fn set_register(address: SocketAddr, at: u16, value: u16) {
    let ([a, b], [c, d]) = (at.to_be_bytes(), value.to_be_bytes());
    let answer = ask(address, &[6, a, b, c, d]).expect("an answer");
    assert_eq!(answer, [6, a, b, c, d]);
}

/// Nine holding registers from an address on.
pub fn nine_registers(address: SocketAddr, at: u16) -> Vec<u16> {
    let [a, b] = at.to_be_bytes();
    let answer = ask(address, &[3, a, b, 0, 9]).expect("an answer");
    answer[2..].chunks(2).map(|c| u16::from_be_bytes([c[0], c[1]])).collect()
}

/// Processor seconds a process has used.
pub fn processor_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |i: usize| fields.get(i).and_then(|f| f.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
