//! A serial line, or a gateway to one, and all who use it: one request at a time, units in turn. RTU
//! answers carry neither number nor address, so an answer that comes late looks like the next one;
//! nothing here takes one for the other.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_serial::SerialPortBuilderExt;

use super::connection::Failure;
use super::debts::{Debts, Verdict};
use super::frame::{self, REFUSED, Request, Write};
use super::plan::Span;
use super::trace::{Tap, Way, Wrap, line};
use super::url::{Parity, Serial, Url};
use crate::metrics::lock;

/// Time-outs in a row, of any unit, after which the port is opened anew: an adapter or gateway may
/// have lost its way. A single dead unit behind a line that is well does not get there.
const SILENCES: u32 = 3;
/// Answers that are read in vain, before the line counts as disturbed.
const OLD_ANSWERS: usize = 32;

/// The lines in use, so that all who name the same one share it. They are kept as long as this is,
/// since what a line remembers of late answers has to outlive connections.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// As many as the config has.
    all: Arc<Mutex<HashMap<String, Arc<Line>>>>,
}

impl Lines {
    /// The line behind this URL; `None` for Modbus TCP.
    pub fn get(&self, url: &Url) -> Option<Arc<Line>> {
        let key = url.line()?;
        Some(lock(&self.all).entry(key).or_insert_with(|| Arc::new(Line::new(url.clone()))).clone())
    }
}

trait Port: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Port for T {}

/// See the top of this file.
pub struct Line {
    url: Url,
    /// The rest between frames. A gateway keeps its own.
    gap: Duration,
    /// The lock lets users in in the order in which they came, so units take turns.
    state: tokio::sync::Mutex<State>,
}

struct State {
    port: Option<Box<dyn Port>>,
    /// When something was last heard or sent.
    last: Instant,
    /// By unit. Kept when the port is closed: what is on its way may come through the next.
    debts: BTreeMap<u8, Debts>,
    silences: u32,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Line({})", self.url)
    }
}

impl Line {
    fn new(url: Url) -> Line {
        let gap = if let Url::Rtu(serial) = &url { serial.gap() } else { Duration::ZERO };
        let state = State { port: None, last: Instant::now(), debts: BTreeMap::new(), silences: 0 };
        Line { url, gap, state: state.into() }
    }

    /// Opens the port, unless it is open.
    ///
    /// # Errors
    ///
    /// [`Failure::Timeout`] or [`Failure::Broken`].
    pub async fn open(&self, limit: Duration) -> Result<(), Failure> {
        self.state.lock().await.open(&self.url, limit).await
    }

    /// Asks a unit for `span` when it is its turn; `limit` counts from then on.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub async fn read(&self, unit: u8, span: Span, limit: Duration, tap: Option<Tap>) -> Result<Vec<u16>, Failure> {
        let mut state = self.state.lock().await;
        let now = Instant::now();
        let debts = state.debts.entry(unit).or_default();
        debts.expire(now);
        if debts.full() {
            return Err(Failure::Timeout(limit));
        }
        if let Some(first) = debts.ask_first(span) {
            match self.ask(&mut state, unit, first, limit, tap).await {
                Ok(_) | Err(Failure::Exception(..) | Failure::Length { .. }) => {}
                Err(failure) => return Err(failure),
            }
        }
        self.ask(&mut state, unit, span, limit, tap).await
    }

    /// Writes to a unit when it is its turn. It is not owed an answer afterwards: an echo that comes
    /// late looks like no answer to a read, and a write is believed only when it is read back.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub async fn write(&self, unit: u8, write: Write, limit: Duration, tap: Option<Tap>) -> Result<(), Failure> {
        let mut state = self.state.lock().await;
        state.open(&self.url, limit).await?;
        state.quiet(self.gap, limit).await?;
        let request = write.request();
        let fresh = |pdu: &[u8]| pdu == request || pdu.len() == 2 && pdu[0] == request[0] | REFUSED;
        write.done(&state.exchange(unit, request, fresh, limit, tap).await?)
    }

    async fn ask(
        &self,
        state: &mut State,
        unit: u8,
        span: Span,
        limit: Duration,
        tap: Option<Tap>,
    ) -> Result<Vec<u16>, Failure> {
        state.open(&self.url, limit).await?;
        state.quiet(self.gap, limit).await?;
        let before = state.debts.get(&unit).cloned().unwrap_or_default();
        // Noted before it is sent: whoever asks may be stopped at any await from here on.
        state.debts.entry(unit).or_default().asked(span, Instant::now());
        let fresh = |pdu: &[u8]| {
            let bytes = if pdu[0] & REFUSED == 0 { pdu.len() - 2 } else { 0 };
            before.judge(span, pdu[0], bytes) == Verdict::Fresh
        };
        let outcome = state.exchange(unit, frame::request(span), fresh, limit, tap).await;
        let outcome = outcome.and_then(|pdu| frame::values(&pdu, span));
        match &outcome {
            Ok(_) | Err(Failure::Exception(..) | Failure::Length { .. }) => {
                state.silences = 0;
                state.debts.entry(unit).or_default().settled();
            }
            Err(Failure::Timeout(_)) => {
                state.silences += 1;
                if state.silences.is_multiple_of(SILENCES) {
                    state.port = None;
                }
            }
            Err(Failure::Broken(_)) => {}
        }
        outcome
    }
}

impl State {
    async fn open(&mut self, url: &Url, limit: Duration) -> Result<(), Failure> {
        if self.port.is_some() {
            return Ok(());
        }
        let broken = |e: String| Failure::Broken(e);
        let port: Box<dyn Port> = match url {
            Url::Rtu(serial) => Box::new(open_serial(serial).map_err(|e| broken(e.to_string()))?),
            Url::RtuTcp(to) | Url::Tcp(to) => {
                let stream = timeout(limit, TcpStream::connect((to.host.as_str(), to.port))).await;
                let stream = stream.map_err(|_| Failure::Timeout(limit))?.map_err(|e| broken(e.to_string()))?;
                stream.set_nodelay(true).map_err(|e| broken(e.to_string()))?;
                Box::new(stream)
            }
        };
        self.port = Some(port);
        self.last = Instant::now();
        Ok(())
    }

    /// Throws away what comes unasked, until nothing has come for as long as frames are apart.
    async fn quiet(&mut self, gap: Duration, limit: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + limit;
        let mut waste = [0; 256];
        loop {
            // What is there already is read even when there is no need to wait.
            let until = (self.last + gap).max(Instant::now());
            let Some(port) = &mut self.port else { return Err(closed()) };
            let heard = tokio::select! {
                biased;
                heard = port.read(&mut waste) => heard,
                () = sleep_until(until) => return Ok(()),
            };
            match heard {
                Ok(0) => return Err(self.broken(closed())),
                Err(e) => return Err(self.broken(Failure::Broken(e.to_string()))),
                Ok(_) => self.last = Instant::now(),
            }
            if self.last > deadline {
                return Err(self.broken(Failure::Broken("the line is never quiet".into())));
            }
        }
    }

    /// The port is of no more use.
    fn broken(&mut self, failure: Failure) -> Failure {
        self.port = None;
        failure
    }

    /// Sends a request; the answer to it without unit and checksum, which is the first that `fresh`
    /// knows for one. It is never empty.
    async fn exchange(
        &mut self,
        unit: u8,
        asked: Request,
        fresh: impl Fn(&[u8]) -> bool,
        limit: Duration,
        tap: Option<Tap>,
    ) -> Result<Vec<u8>, Failure> {
        let deadline = Instant::now() + limit;
        let tell = |way, frame: &[u8]| tap.into_iter().for_each(|tap| tap(&line(way, Wrap::Rtu, frame)));
        let request = frame::rtu_request(unit, asked);
        tell(Way::Out, &request);
        let Some(port) = &mut self.port else { return Err(closed()) };
        let sent = timeout_at(deadline, async {
            port.write_all(&request).await?;
            port.flush().await
        });
        match sent.await {
            Err(_) => return Err(Failure::Timeout(limit)),
            Ok(Err(e)) => return Err(self.broken(Failure::Broken(e.to_string()))),
            Ok(Ok(())) => self.last = Instant::now(),
        }
        for _ in 0..OLD_ANSWERS {
            let answer = match timeout_at(deadline, self.frame()).await {
                Err(_) => return Err(Failure::Timeout(limit)),
                Ok(answer) => answer?,
            };
            tell(Way::In, &answer);
            let [from, pdu @ .., _, _] = &answer[..] else { return Err(closed()) };
            // In time, too: a reading is stamped with the time at which it comes.
            if Instant::now() > deadline {
                return Err(Failure::Timeout(limit));
            }
            if *from == unit && fresh(pdu) {
                return Ok(pdu.to_vec());
            }
        }
        Err(Failure::Broken("the line brings answers that nobody asked for".into()))
    }

    /// The next frame, whole and with the right checksum.
    async fn frame(&mut self) -> Result<Vec<u8>, Failure> {
        let damaged = |what: String| Failure::Broken(format!("the answer is damaged: {what}"));
        let mut frame = Vec::with_capacity(16);
        loop {
            let wanted = match frame::rtu_length(&frame).map_err(damaged)? {
                None => 3,
                Some(length) if frame.len() < length => length,
                Some(_) if frame::rtu_is_whole(&frame) => return Ok(frame),
                Some(_) => return Err(damaged("its checksum is wrong".into())),
            };
            let Some(port) = &mut self.port else { return Err(closed()) };
            // No more than what this frame needs: what follows is another.
            let mut part = [0; 260];
            let room = wanted.saturating_sub(frame.len()).min(part.len());
            match port.read(&mut part[..room]).await {
                Ok(0) => return Err(self.broken(closed())),
                Err(e) => return Err(self.broken(Failure::Broken(e.to_string()))),
                Ok(n) => frame.extend_from_slice(&part[..n]),
            }
            self.last = Instant::now();
        }
    }
}

fn closed() -> Failure {
    Failure::Broken("the line was closed".into())
}

fn open_serial(serial: &Serial) -> tokio_serial::Result<tokio_serial::SerialStream> {
    let parity = match serial.parity {
        Parity::None => tokio_serial::Parity::None,
        Parity::Even => tokio_serial::Parity::Even,
        Parity::Odd => tokio_serial::Parity::Odd,
    };
    let stop = if serial.stop == 2 { tokio_serial::StopBits::Two } else { tokio_serial::StopBits::One };
    let port = tokio_serial::new(&serial.path, serial.baud).data_bits(tokio_serial::DataBits::Eight);
    port.parity(parity).stop_bits(stop).open_native_async()
}
