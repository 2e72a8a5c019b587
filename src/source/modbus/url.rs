//! Where a Modbus device is, as people write it.

use std::fmt;
use std::time::Duration;

use crate::settings::hint;

/// The port that Modbus TCP devices listen on.
pub const DEFAULT_PORT: u16 = 502;
/// What the specification of serial lines names as the default.
const DEFAULT_BAUD: u32 = 19_200;
/// Speeds that a line may have.
const BAUD: std::ops::RangeInclusive<u32> = 110..=4_000_000;
/// Above this, the specification fixes the rest between frames.
const FAST: u32 = 19_200;
const FAST_GAP: Duration = Duration::from_micros(1750);

/// Where a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Url {
    /// Modbus TCP.
    Tcp(Host),
    /// RTU through a TCP connection, such as a serial device server.
    RtuTcp(Host),
    /// RTU over a serial line.
    Rtu(Serial),
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// A host name or address.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// A serial line; always 8 data bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Serial {
    /// The device file.
    pub path: String,
    /// Bits per second.
    pub baud: u32,
    /// The parity bit.
    pub parity: Parity,
    /// Stop bits: 1 or 2.
    pub stop: u8,
}

/// The parity bit of a character.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Parity {
    /// There is none.
    None,
    /// Even.
    Even,
    /// Odd.
    Odd,
}

impl Parity {
    const NAMES: [(&'static str, Parity); 3] = [("none", Parity::None), ("even", Parity::Even), ("odd", Parity::Odd)];

    /// The word used in URLs.
    pub fn as_str(self) -> &'static str {
        Self::NAMES[self as usize].0
    }
}

impl Serial {
    /// How long one character takes: a start bit, 8 data bits, parity and stop bits.
    pub fn character(&self) -> Duration {
        let bits = 9 + u32::from(self.parity != Parity::None) + u32::from(self.stop);
        Duration::from_secs(1) * bits / self.baud.max(1)
    }

    /// The rest that has to be between frames: 3.5 characters.
    pub fn gap(&self) -> Duration {
        if self.baud > FAST { FAST_GAP } else { self.character() * 7 / 2 }
    }

    /// Reads `/dev/ttyUSB0?baud=19200&parity=even&stop=1`.
    fn parse(text: &str) -> Result<Serial, String> {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        if !path.starts_with('/') {
            return Err(format!("\"rtu://{text}\" does not name a device such as \"rtu:///dev/ttyUSB0\""));
        }
        let mut line = Serial { path: path.into(), baud: DEFAULT_BAUD, parity: Parity::Even, stop: 1 };
        for part in query.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match key {
                "baud" => {
                    let baud = value.parse().ok().filter(|b| BAUD.contains(b));
                    line.baud = baud.ok_or_else(|| format!("baud={value} is not a speed such as 19200"))?;
                }
                "parity" => {
                    let found = Parity::NAMES.iter().find(|(name, _)| *name == value).map(|(_, parity)| *parity);
                    line.parity = found.ok_or_else(|| format!("parity={value} is not none, even or odd"))?;
                }
                "stop" => {
                    let stop = value.parse().ok().filter(|s| (1..=2).contains(s));
                    line.stop = stop.ok_or_else(|| format!("stop={value} is not 1 or 2"))?;
                }
                _ => {
                    let hint = hint(key, &["baud", "parity", "stop"]);
                    return Err(format!("{key:?} is not one of baud, parity, stop{hint}"));
                }
            }
        }
        Ok(line)
    }
}

impl Url {
    /// Reads `tcp://HOST[:PORT]`, `rtu-tcp://HOST[:PORT]` or `rtu:///DEVICE[?baud=…&parity=…&stop=…]`.
    ///
    /// # Errors
    ///
    /// A sentence for a person.
    pub fn parse(text: &str) -> Result<Url, String> {
        let wrong = || format!("{text:?} is not a URL such as \"tcp://192.168.1.50:502\"");
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let host = || split_port(rest.strip_suffix('/').unwrap_or(rest)).ok_or_else(wrong);
        match scheme {
            "tcp" => Ok(Url::Tcp(host()?)),
            "rtu-tcp" => Ok(Url::RtuTcp(host()?)),
            "rtu" => Serial::parse(rest).map(Url::Rtu),
            _ => Err(format!("{scheme:?} is not tcp, rtu or rtu-tcp{}", hint(scheme, &["tcp", "rtu", "rtu-tcp"]))),
        }
    }

    /// What devices share when this is the same for them: a serial device, or a gateway's port.
    /// `None` for Modbus TCP, where each has a connection of its own.
    pub fn line(&self) -> Option<String> {
        match self {
            Url::Tcp(_) => None,
            Url::RtuTcp(_) => Some(self.to_string()),
            Url::Rtu(line) => Some(line.path.clone()),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Url::Tcp(host) => write!(f, "tcp://{host}"),
            Url::RtuTcp(host) => write!(f, "rtu-tcp://{host}"),
            Url::Rtu(Serial { path, baud, parity, stop }) => {
                write!(f, "rtu://{path}?baud={baud}&parity={}&stop={stop}", parity.as_str())
            }
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Host { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// `host`, `host:port`, `[::1]` or `[::1]:port`.
fn split_port(text: &str) -> Option<Host> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = port.map_or(Some(DEFAULT_PORT), |p| p.parse().ok().filter(|p| *p > 0))?;
    let unfit = |c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '@' | '[' | ']');
    (!host.is_empty() && !host.contains(unfit)).then(|| Host { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serial(path: &str, baud: u32, parity: Parity, stop: u8) -> Serial {
        Serial { path: path.into(), baud, parity, stop }
    }

    #[test]
    fn serial_lines() {
        let read = |text| Url::parse(text);
        assert_eq!(read("rtu:///dev/ttyUSB0"), Ok(Url::Rtu(serial("/dev/ttyUSB0", 19_200, Parity::Even, 1))));
        let full = "rtu:///dev/ttyS1?baud=9600&parity=none&stop=2";
        assert_eq!(read(full), Ok(Url::Rtu(serial("/dev/ttyS1", 9600, Parity::None, 2))));
        assert_eq!(read(full).map(|u| u.to_string()), Ok(full.to_owned()));
        for (text, message) in [
            ("rtu://ttyUSB0", "\"rtu://ttyUSB0\" does not name a device such as \"rtu:///dev/ttyUSB0\""),
            ("rtu:///dev/x?baud=0", "baud=0 is not a speed such as 19200"),
            ("rtu:///dev/x?parity=mark", "parity=mark is not none, even or odd"),
            ("rtu:///dev/x?stop=3", "stop=3 is not 1 or 2"),
            ("rtu:///dev/x?buad=9600", "\"buad\" is not one of baud, parity, stop; did you mean `baud`?"),
        ] {
            assert_eq!(read(text), Err(message.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_shared() {
        let line = |text| Url::parse(text).expect("a URL").line();
        assert_eq!(line("tcp://plc"), None);
        assert_eq!(line("rtu-tcp://gateway"), line("rtu-tcp://gateway:502/"));
        assert_eq!(line("rtu:///dev/ttyS1?baud=9600"), line("rtu:///dev/ttyS1"));
        assert_ne!(line("rtu:///dev/ttyS1"), line("rtu:///dev/ttyS2"));
    }

    #[test]
    fn the_rest_between_frames_is_that_of_the_specification() {
        let micros = |baud, parity, stop| {
            let line = serial("/dev/x", baud, parity, stop);
            (line.character().as_micros(), line.gap().as_micros())
        };
        assert_eq!(micros(9600, Parity::Even, 1), (1145, 4010));
        assert_eq!(micros(9600, Parity::None, 1), (1041, 3645));
        assert_eq!(micros(19_200, Parity::None, 2), (572, 2005));
        assert_eq!(micros(115_200, Parity::Even, 1), (95, 1750));
    }
}
