//! One connection to a device: a time limit on everything, and no trust in what comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::frame::{self, Request, TCP_HEADER, Write};
use super::line::{Line, Lines};
use super::plan::Span;
use super::trace::{Tap, Way, Wrap, line};
use super::url::{Host, Url};

/// Why a request brought nothing.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Failure {
    /// No answer in time. The connection is of no more use: the answer may still come.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The device refused; the connection is well. The number is Modbus's exception code.
    #[error("exception {0}: {1}")]
    Exception(u8, String),
    /// The device answered this very request with something unusable; the connection is well.
    #[error("the answer has {got} values in place of {asked}")]
    Length {
        /// How many values were asked for.
        asked: u16,
        /// How many came.
        got: usize,
    },
    /// The connection broke, or what came was no answer to this request.
    #[error("{0}")]
    Broken(String),
}

impl Failure {
    /// Whether the connection can be used again.
    pub fn spares_connection(&self) -> bool {
        matches!(self, Failure::Exception(..) | Failure::Length { .. })
    }

    /// The word used in metrics.
    pub fn outcome(&self) -> &'static str {
        match self {
            Failure::Timeout(_) => "timeout",
            Failure::Exception(..) => "exception",
            Failure::Length { .. } | Failure::Broken(_) => "error",
        }
    }
}

/// A connection to one unit of a device. After a [`Failure`] that does not spare it, drop it: a
/// late answer must never be taken for a fresh one.
pub struct Connection {
    link: Link,
    unit: u8,
    limit: Duration,
    tap: Option<Tap>,
}

enum Link {
    Tcp(Tcp),
    /// Shared with the other units on it; it guards against late answers by itself.
    Line(Arc<Line>),
}

/// A connection of our own, whose answers are numbered.
struct Tcp {
    stream: BufReader<TcpStream>,
}

/// The number of the last request. One count for all connections: there are gateways that send what
/// they owe through the next connection, where a count from the start would meet the same numbers.
static TRANSACTION: AtomicU16 = AtomicU16::new(0);

impl Connection {
    /// Connects, within `limit`; each request on it has the same limit. A serial line, or a gateway
    /// to one, is shared with all who take it from the same `lines`.
    ///
    /// # Errors
    ///
    /// [`Failure::Timeout`] or [`Failure::Broken`].
    pub async fn dial(lines: &Lines, url: &Url, unit: u8, limit: Duration) -> Result<Connection, Failure> {
        let link = match (lines.get(url), url) {
            (Some(line), _) => {
                line.open(limit).await?;
                Link::Line(line)
            }
            (None, Url::Tcp(to) | Url::RtuTcp(to)) => Link::Tcp(Tcp::dial(to, limit).await?),
            (None, Url::Rtu(serial)) => return Err(Failure::Broken(format!("{} is no line", serial.path))),
        };
        Ok(Connection { link, unit, limit, tap: None })
    }

    /// Tells every frame to `tap` from now on.
    pub fn traced(mut self, tap: Option<Tap>) -> Connection {
        self.tap = tap;
        self
    }

    /// Reads `span`: a word for each register, or 0 or 1 for each bit; exactly as many as asked for.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub async fn read(&mut self, span: Span) -> Result<Vec<u16>, Failure> {
        let (unit, limit, tap) = (self.unit, self.limit, self.tap);
        match &mut self.link {
            Link::Line(line) => line.read(unit, span, limit, tap).await,
            Link::Tcp(tcp) => frame::values(&tcp.ask(unit, frame::request(span), limit, tap).await?, span),
        }
    }

    /// Writes one coil or register. That it was done is the device's word: read it back.
    ///
    /// # Errors
    ///
    /// See [`Failure`]. After any, it may have been done or not.
    pub(super) async fn write(&mut self, write: Write) -> Result<(), Failure> {
        let (unit, limit, tap) = (self.unit, self.limit, self.tap);
        match &mut self.link {
            Link::Line(line) => line.write(unit, write, limit, tap).await,
            Link::Tcp(tcp) => write.done(&tcp.ask(unit, write.request(), limit, tap).await?),
        }
    }
}

impl Tcp {
    async fn dial(to: &Host, limit: Duration) -> Result<Tcp, Failure> {
        let stream = timeout(limit, TcpStream::connect((to.host.as_str(), to.port))).await;
        let stream = stream.map_err(|_| Failure::Timeout(limit))?.map_err(|e| Failure::Broken(e.to_string()))?;
        // Requests are small and wait for their answer: Nagle's algorithm would only hold them back.
        stream.set_nodelay(true).map_err(|e| Failure::Broken(e.to_string()))?;
        Ok(Tcp { stream: BufReader::new(stream) })
    }

    /// The answer to a request, in time: what comes later is no answer, even where it was this
    /// process that was held up, because a reading is stamped with the time at which it comes.
    async fn ask(&mut self, unit: u8, asked: Request, limit: Duration, tap: Option<Tap>) -> Result<Vec<u8>, Failure> {
        let sent = Instant::now();
        let answer = timeout(limit, self.exchange(unit, asked, tap)).await.unwrap_or(Err(Failure::Timeout(limit)));
        if answer.is_ok() && sent.elapsed() > limit { Err(Failure::Timeout(limit)) } else { answer }
    }

    /// Sends a request; what follows the header of its answer.
    async fn exchange(&mut self, unit: u8, asked: Request, tap: Option<Tap>) -> Result<Vec<u8>, Failure> {
        let tell = |way, frame: &[u8]| tap.into_iter().for_each(|tap| tap(&line(way, Wrap::Tcp, frame)));
        let transaction = TRANSACTION.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let request = frame::tcp_request(transaction, unit, asked);
        tell(Way::Out, &request);
        self.stream.write_all(&request).await.map_err(|e| lost(&e))?;
        let mut header = [0; TCP_HEADER];
        self.stream.read_exact(&mut header).await.map_err(|e| lost(&e))?;
        let length = frame::tcp_length(&header).map_err(|e| {
            tell(Way::In, &header);
            Failure::Broken(format!("the answer cannot be read: {e}"))
        })?;
        let mut answer = header.to_vec();
        answer.resize(length, 0);
        self.stream.read_exact(&mut answer[TCP_HEADER..]).await.map_err(|e| lost(&e))?;
        tell(Way::In, &answer);
        if answer[..2] != request[..2] || answer[TCP_HEADER - 1] != unit {
            return Err(Failure::Broken("the answer belongs to another request".into()));
        }
        answer.drain(..TCP_HEADER);
        Ok(answer)
    }
}

/// A broken stream in words.
fn lost(error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => Failure::Broken("the device closed the connection".into()),
        _ => Failure::Broken(error.to_string()),
    }
}

/// Modbus's "illegal data address".
pub const ILLEGAL_ADDRESS: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_to_this_very_request_spares_the_connection() {
        assert!(Failure::Exception(ILLEGAL_ADDRESS, String::new()).spares_connection());
        assert!(Failure::Length { asked: 1, got: 2 }.spares_connection());
        assert!(!Failure::Timeout(Duration::ZERO).spares_connection());
        assert!(!Failure::Broken(String::new()).spares_connection());
    }
}
