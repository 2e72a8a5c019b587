//! One connection to a device: a time limit on everything, and no trust in what comes back.

use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_modbus::client::{Client, Context, tcp};
use tokio_modbus::{Request as Wire, Response, Slave};

use super::config::Url;
use super::plan::Span;
use super::registers::Table;

/// Why a request brought nothing.
#[derive(Debug, Error, PartialEq, Eq)]
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
    context: Context,
    limit: Duration,
}

impl Connection {
    /// Connects, within `limit`; each request on it has the same limit.
    ///
    /// # Errors
    ///
    /// [`Failure::Timeout`] or [`Failure::Broken`].
    pub async fn dial(url: &Url, unit: u8, limit: Duration) -> Result<Connection, Failure> {
        let Url::Tcp { host, port } = url;
        let stream = timeout(limit, TcpStream::connect((host.as_str(), *port))).await;
        let stream = stream.map_err(|_| Failure::Timeout(limit))?.map_err(|e| Failure::Broken(e.to_string()))?;
        // Requests are small and wait for their answer: Nagle's algorithm would only hold them back.
        stream.set_nodelay(true).map_err(|e| Failure::Broken(e.to_string()))?;
        Ok(Connection { context: tcp::attach_slave(stream, Slave(unit)), limit })
    }

    /// Reads `span`: a word for each register, or 0 or 1 for each bit; exactly as many as asked for.
    ///
    /// # Errors
    ///
    /// See [`Failure`].
    pub async fn read(&mut self, span: Span) -> Result<Vec<u16>, Failure> {
        let request = match span.table {
            Table::Coil => Wire::ReadCoils(span.start, span.count),
            Table::Discrete => Wire::ReadDiscreteInputs(span.start, span.count),
            Table::Input => Wire::ReadInputRegisters(span.start, span.count),
            Table::Holding => Wire::ReadHoldingRegisters(span.start, span.count),
        };
        // `call` and not the typed readers: those hold the length of the answer with an assertion only.
        match timeout(self.limit, self.context.call(request)).await {
            Err(_) => Err(Failure::Timeout(self.limit)),
            Ok(Err(e)) => Err(Failure::Broken(describe(&e))),
            Ok(Ok(Err(code))) => Err(Failure::Exception(code.into(), code.to_string())),
            Ok(Ok(Ok(response))) => values(response, span),
        }
    }
}

fn values(response: Response, span: Span) -> Result<Vec<u16>, Failure> {
    let (values, enough) = match response {
        Response::ReadInputRegisters(words) | Response::ReadHoldingRegisters(words) => {
            let enough = words.len() == usize::from(span.count);
            (words, enough)
        }
        Response::ReadCoils(bits) | Response::ReadDiscreteInputs(bits) => {
            // Bits come in whole bytes, so the last few mean nothing.
            let enough = bits.len() == usize::from(span.count).next_multiple_of(8);
            (bits.into_iter().take(span.count.into()).map(u16::from).collect(), enough)
        }
        _ => return Err(Failure::Broken("the answer is to another function".into())),
    };
    if enough { Ok(values) } else { Err(Failure::Length { asked: span.count, got: values.len() }) }
}

fn describe(error: &tokio_modbus::Error) -> String {
    match error {
        tokio_modbus::Error::Protocol(_) => "the answer belongs to another request".into(),
        // At the end of the stream the library reports whatever error number was last set.
        tokio_modbus::Error::Transport(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            format!("the answer cannot be read: {e}")
        }
        tokio_modbus::Error::Transport(_) => "the device closed the connection".into(),
    }
}

/// Modbus's "illegal data address".
pub const ILLEGAL_ADDRESS: u8 = 2;

#[cfg(test)]
mod tests {
    use tokio_modbus::ExceptionCode;

    use super::*;

    fn span(table: Table, count: u16) -> Span {
        Span { table, start: 0, count }
    }

    #[test]
    fn an_answer_of_another_length_is_refused() {
        let registers = |n| Response::ReadHoldingRegisters(vec![7; n]);
        assert_eq!(values(registers(2), span(Table::Holding, 2)), Ok(vec![7, 7]));
        for got in [0, 1, 3] {
            assert_eq!(values(registers(got), span(Table::Holding, 2)), Err(Failure::Length { asked: 2, got }));
        }
        let bits = |n| Response::ReadCoils(vec![true; n]);
        assert_eq!(values(bits(16), span(Table::Coil, 9)), Ok(vec![1; 9]));
        assert_eq!(values(bits(8), span(Table::Coil, 9)), Err(Failure::Length { asked: 9, got: 8 }));
        assert!(values(bits(24), span(Table::Coil, 9)).is_err());
    }

    #[test]
    fn only_an_answer_to_this_very_request_spares_the_connection() {
        assert!(Failure::Exception(ExceptionCode::IllegalDataAddress.into(), String::new()).spares_connection());
        assert!(Failure::Length { asked: 1, got: 2 }.spares_connection());
        assert!(!Failure::Timeout(Duration::ZERO).spares_connection());
        assert!(!Failure::Broken(String::new()).spares_connection());
    }
}
