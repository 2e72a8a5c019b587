//! An HTTP sink that costs next to nothing: it counts events by a word that each has once, notes how
//! old they are, and answers 200.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};

use crate::publisher::now_ms;

/// What has come in.
#[derive(Default)]
pub struct Taken {
    pub events: u64,
    pub bytes: u64,
    /// Milliseconds from the window's end to here; of some events only.
    pub ages: Vec<u64>,
}

/// A sink on a port of its own.
pub struct Sink {
    pub port: u16,
    taken: Arc<Mutex<Taken>>,
    closed: Arc<AtomicBool>,
}

impl Sink {
    pub fn start() -> Result<Sink> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let (port, taken) = (listener.local_addr()?.port(), Arc::<Mutex<Taken>>::default());
        let closed = Arc::<AtomicBool>::default();
        let (all, shut) = (taken.clone(), closed.clone());
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (all, shut) = (all.clone(), shut.clone());
                thread::spawn(move || serve(&socket, &all, &shut));
            }
        });
        Ok(Sink { port, taken, closed })
    }

    /// From now on everything is answered with 503, or no more.
    pub fn close(&self, closed: bool) {
        self.closed.store(closed, Ordering::Relaxed);
    }

    /// What has come in since the last call.
    pub fn take(&self) -> Taken {
        std::mem::take(&mut *self.taken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Until the client goes.
fn serve(socket: &TcpStream, all: &Mutex<Taken>, shut: &AtomicBool) -> Result<()> {
    let mut from = BufReader::with_capacity(256 << 10, socket.try_clone()?);
    let mut to = socket;
    let (mut line, mut body) = (String::new(), Vec::new());
    loop {
        let mut length = None;
        loop {
            line.clear();
            if from.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line == "\r\n" {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse()?);
            }
        }
        body.resize(length.context("a length")?, 0);
        from.read_exact(&mut body)?;
        if shut.load(Ordering::Relaxed) {
            to.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")?;
            continue;
        }
        let events = memchr::memmem::find_iter(&body, b"\"specversion\"").count() as u64;
        let age = oldest(&body).map(|ms| now_ms().saturating_sub(ms));
        {
            let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
            all.events += events;
            all.bytes += body.len() as u64;
            all.ages.extend(age);
        }
        to.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")?;
    }
}

/// The time of the first event, in ms since 1970.
fn oldest(body: &[u8]) -> Option<u64> {
    const KEY: &[u8] = b"\"time\":\"";
    let at = memchr::memmem::find(body, KEY)? + KEY.len();
    let text = std::str::from_utf8(body.get(at..at + 30)?).ok()?;
    let time: jiff::Timestamp = text.split('"').next()?.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok()
}
