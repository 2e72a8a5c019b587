//! How to reach a broker: what `[[source.mqtt]]` says of the connection itself.

use std::fmt;
use std::time::Duration;

use crate::settings::{Secret, Section};
use crate::tls::Tls;

const DAY: Duration = Duration::from_secs(24 * 3600);
/// Asked of the broker when the config does not say: a week without the gateway costs nothing.
const SESSION_EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);
/// Unacked messages the broker may have under way: enough for 20 ms commits at 50,000 messages/s.
const RECEIVE_MAXIMUM: u16 = 1000;
/// How long a silent connection is trusted.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// MQTT protocol versions.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1.
    V4,
    /// MQTT 5.
    #[default]
    V5,
}

/// Where a broker listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Whether to speak TLS.
    pub tls: bool,
    /// Name or IP address; IPv6 in brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", if self.tls { "mqtts" } else { "mqtt" }, self.host, self.port)
    }
}

impl Address {
    /// Reads `mqtt://host[:1883]` or `mqtts://host[:8883]`; the error is for a person.
    pub fn parse(url: &str) -> Result<Address, String> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| format!("{url:?} is not like mqtt://host:1883"))?;
        let (tls, default_port) = match scheme {
            "mqtt" => (false, 1883),
            "mqtts" => (true, 8883),
            other => return Err(format!("the scheme {other:?} is neither mqtt nor mqtts")),
        };
        if rest.contains('@') {
            return Err("put user name and password into `username` and `password_file`, not into the URL".into());
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        // The colons inside [brackets] belong to an IPv6 address.
        let end_of_host = rest.rfind(']').map_or(0, |i| i + 1);
        let (host, port) = match rest[end_of_host..].find(':') {
            Some(i) => (&rest[..end_of_host + i], Some(&rest[end_of_host + i + 1..])),
            None => (rest, None),
        };
        let port = match port.map(str::parse) {
            None => default_port,
            Some(Ok(port)) if port > 0 => port,
            _ => return Err(format!("{url:?} has no valid port")),
        };
        if host.is_empty() || host.contains(['/', ' ', '?', '#']) {
            return Err(format!("{url:?} has no valid host"));
        }
        if tls && host.starts_with('[') {
            return Err("TLS to a bare IPv6 address is not supported: use a host name".into());
        }
        Ok(Address { tls, host: host.to_owned(), port })
    }
}

/// Everything needed to connect, and to come back to the same session.
#[derive(Clone, Debug, PartialEq)]
pub struct Connection {
    /// Tried in turn, the first one first.
    pub urls: Vec<Address>,
    /// Protocol version.
    pub version: Version,
    /// The session's name at the broker; two connections with the same one throw each other out.
    pub client_id: String,
    /// How long the broker keeps the session without us (MQTT 5 only).
    pub session_expiry: Duration,
    /// How many messages may be under way without an ack.
    pub receive_maximum: u16,
    /// How long silence may last before a ping.
    pub keep_alive: Duration,
    /// Login name.
    pub username: Option<String>,
    /// Login password.
    pub password: Option<Secret>,
    /// Certificates for `mqtts`.
    pub tls: Tls,
    /// Whether to begin without a session and leave none behind.
    pub clean: bool,
}

impl Connection {
    /// A session-keeping MQTT 5 connection with the defaults.
    pub fn new(urls: Vec<Address>, client_id: &str) -> Connection {
        Connection {
            urls,
            version: Version::V5,
            client_id: client_id.to_owned(),
            session_expiry: SESSION_EXPIRY,
            receive_maximum: RECEIVE_MAXIMUM,
            keep_alive: KEEP_ALIVE,
            username: None,
            password: None,
            tls: Tls::default(),
            clean: false,
        }
    }

    /// Reads url, version, client_id, session_expiry, receive_maximum, username, password(_file)
    /// and tls.
    pub fn read(section: &Section<'_>, default_client_id: &str) -> Connection {
        let mut c = Connection::read_plain(section, default_client_id);
        if let Some(expiry) = section.duration("session_expiry") {
            if expiry < Duration::from_secs(1) || expiry > 49_000 * DAY {
                section.problem("session_expiry", "has to be between 1s and 49000d");
            } else {
                c.session_expiry = expiry;
            }
        }
        if let Some(n) = section.integer("receive_maximum", 1..=65535) {
            c.receive_maximum = n as u16;
        }
        c
    }

    /// The same without session_expiry and receive_maximum, for those who only publish.
    pub fn read_plain(section: &Section<'_>, default_client_id: &str) -> Connection {
        let mut c = Connection::new(read_urls(section), default_client_id);
        c.version = section.choice("version", &[("5", Version::V5), ("3.1.1", Version::V4)]).unwrap_or_default();
        if let Some(id) = section.string("client_id") {
            if id.is_empty() || id.len() > 128 || id.contains('\0') {
                section.problem("client_id", "needs 1 to 128 characters: the broker keeps the session under it");
            } else {
                c.client_id = id;
            }
        }
        c.username = section.string("username");
        c.password = section.secret("password");
        if c.password.is_some() && c.username.is_none() {
            section.problem("password", "needs a `username` beside it");
        }
        c.tls = Tls::read(section);
        if c.tls != Tls::default() && !c.urls.is_empty() && !c.urls.iter().any(|u| u.tls) {
            section.problem("tls", "is not used: no url begins with mqtts://");
        }
        if c.tls.cert.is_some() && c.tls.ca.is_none() {
            section.problem("tls", "a client certificate needs `ca` too: the file with the broker's CA");
        }
        c
    }
}

fn read_urls(section: &Section<'_>) -> Vec<Address> {
    if !section.has("url") {
        section.problem("url", "is missing: give the broker as \"mqtt://host:1883\"");
    }
    let urls = section.strings("url");
    if urls.as_ref().is_some_and(Vec::is_empty) {
        section.problem("url", "is an empty list");
    }
    let mut addresses = Vec::new();
    for url in urls.unwrap_or_default() {
        match Address::parse(&url) {
            Ok(address) => addresses.push(address),
            Err(e) => section.problem("url", e),
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Document, Surroundings};

    fn read(text: &str) -> (Connection, Vec<String>) {
        let document = Document::parse(text, Surroundings::default());
        let connection = Connection::read(&document.root(), "andon-gw");
        (connection, document.into_problems().into_iter().map(|p| p.message).collect())
    }

    #[test]
    fn addresses_and_their_default_ports() {
        let show = |url| Address::parse(url).map(|a| a.to_string());
        assert_eq!(show("mqtt://10.0.0.1").as_deref(), Ok("mqtt://10.0.0.1:1883"));
        assert_eq!(show("mqtts://broker/").as_deref(), Ok("mqtts://broker:8883"));
        assert_eq!(show("mqtt://[::1]:1884").as_deref(), Ok("mqtt://[::1]:1884"));
        assert_eq!(show("mqtt://[::1]").as_deref(), Ok("mqtt://[::1]:1883"));
        for bad in ["broker", "tcp://x", "mqtt://", "mqtt://x:0", "mqtt://x:70000", "mqtt://a:b@x", "mqtt://x/topic"] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn defaults() {
        let (c, problems) = read("url = \"mqtt://127.0.0.1\"");
        assert_eq!(problems, [""; 0]);
        assert_eq!(c.client_id, "andon-gw");
        assert_eq!(c.version, Version::V5);
        assert_eq!(c.session_expiry, 7 * DAY);
        assert_eq!(c.receive_maximum, 1000);
    }

    #[test]
    fn every_mistake_is_told() {
        let text = "url = [\"http://x\"]\nversion = \"4\"\nclient_id = \"\"\nreceive_maximum = 0\nsession_expiry = \"0s\"\n\
                    password = \"p\"\n";
        insta::assert_snapshot!(read(text).1.join("\n"), @r#"
        url: the scheme "http" is neither mqtt nor mqtts
        version: "4" is not one of 5, 3.1.1; did you mean `5`?
        client_id: needs 1 to 128 characters: the broker keeps the session under it
        receive_maximum: 0 is not between 1 and 65535
        session_expiry: has to be between 1s and 49000d
        password: needs a `username` beside it
        "#);
        insta::assert_snapshot!(read("").1.join("\n"), @r#"url: is missing: give the broker as "mqtt://host:1883""#);
    }
}
