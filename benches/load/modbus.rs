//! Modbus devices that answer at once: each is a thread with a register file behind a port of its own.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use anyhow::Result;

/// Devices, each with so many registers in pairs: two requests a round.
const DEVICES: usize = 100;
const REGISTERS: u16 = 200;
pub const PERIOD_MS: u64 = 100;

/// Starts them; gives the part of the config that polls them, whose profile is put into `dir`.
pub fn start(dir: &Path) -> Result<String> {
    let mut profile = String::new();
    for at in (0..REGISTERS).step_by(2) {
        writeln!(profile, "[[signal]]\nname = \"r{at}\"\nat = \"holding:{at}\"\ntype = \"f32\"")?;
    }
    std::fs::write(dir.join("device.toml"), profile)?;
    let mut config = String::new();
    for number in 0..DEVICES {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        writeln!(config, "[[source.modbus]]\nname = \"d{number}\"\nurl = \"tcp://127.0.0.1:{port}\"")?;
        writeln!(config, "machine = \"m{number}\"\npoll = \"{PERIOD_MS}ms\"\nprofile = \"device.toml\"")?;
        // Ends with the harness.
        thread::spawn(move || listener.incoming().flatten().try_for_each(serve));
    }
    Ok(config)
}

/// Answers requests for holding registers until the client goes, each time with other values.
fn serve(mut socket: TcpStream) -> Result<()> {
    socket.set_nodelay(true)?;
    let (mut request, mut answer, mut round) = ([0; 12], Vec::new(), 0u16);
    while socket.read_exact(&mut request).is_ok() {
        let count = u16::from_be_bytes([request[10], request[11]]);
        answer.clear();
        answer.extend_from_slice(&request[..4]);
        answer.extend((count * 2 + 3).to_be_bytes());
        answer.extend([request[6], request[7], (count * 2) as u8]);
        round = round.wrapping_add(1);
        for pair in 0..count / 2 {
            let value = 20.0 + f32::from(round % 1000) / 100.0 + f32::from(pair);
            answer.extend(value.to_be_bytes());
        }
        socket.write_all(&answer)?;
    }
    Ok(())
}
