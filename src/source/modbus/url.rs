//! Where a Modbus device is, as people write it.

use std::fmt;

use crate::settings::hint;

/// The port that Modbus TCP devices listen on.
pub const DEFAULT_PORT: u16 = 502;

/// Where a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Url {
    /// Modbus TCP.
    Tcp {
        /// A host name or address.
        host: String,
        /// The port.
        port: u16,
    },
}

impl Url {
    /// Reads `tcp://HOST[:PORT]`.
    ///
    /// # Errors
    ///
    /// A sentence for a person.
    pub fn parse(text: &str) -> Result<Url, String> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(format!("{text:?} is not a URL such as \"tcp://192.168.1.50:502\""));
        };
        match scheme {
            "tcp" => {
                let (host, port) = split_port(rest.strip_suffix('/').unwrap_or(rest))
                    .ok_or_else(|| format!("{text:?} is not a URL such as \"tcp://192.168.1.50:502\""))?;
                Ok(Url::Tcp { host, port })
            }
            "rtu" | "rtu-tcp" => Err(format!("{scheme}:// comes with a later version; tcp:// is there today")),
            _ => Err(format!("{scheme:?} is not tcp, rtu or rtu-tcp{}", hint(scheme, &["tcp", "rtu", "rtu-tcp"]))),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Url::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Url::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
        }
    }
}

/// `host`, `host:port`, `[::1]` or `[::1]:port`.
fn split_port(text: &str) -> Option<(String, u16)> {
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
    let unfit = |c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '@');
    (!host.is_empty() && !host.contains(unfit)).then(|| (host.to_owned(), port))
}
