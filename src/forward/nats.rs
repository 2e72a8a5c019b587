//! `[[sink.nats]]`: records to a NATS JetStream stream, as CloudEvents in JSON. Each is published under its
//! id, so that the cluster drops what comes twice; the sink advances once the stream has confirmed it.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::header::{HeaderMap, NATS_EXPECTED_STREAM, NATS_MESSAGE_ID};
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, ConnectOptions, ServerAddr};
use tokio::time::timeout;

use super::cloud_events::{Encoder, SINGLE};
use super::deliver::{Carried, Carrier, End, Trouble};
use crate::settings::{Secret, Section};
use crate::tls::Tls;
use crate::types::Stored;

/// Where records go unless the config says otherwise.
const SUBJECT: &str = "andon.{site}.{agent}.{kind}.{subject}";
/// Messages under way without a confirmation: enough to hide a round trip, few enough to send again.
const IN_FLIGHT: i64 = 128;
/// How long the stream may take to confirm. A cluster that has just lost its leader needs some seconds.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long dialling one server may take, and how long the whole cluster.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const OPEN_PATIENCE: Duration = Duration::from_secs(15);
/// How often an idle connection is looked at, and how often in a row it may be away.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOST_AFTER: u32 = 5;
/// Commands that may wait for the socket.
const CLIENT_CAPACITY: usize = 256;

/// `[[sink.nats]]`, what is its own.
#[derive(Clone, Debug)]
pub struct Config {
    /// Servers of one cluster; the others are learnt from the first that answers.
    pub urls: Vec<ServerAddr>,
    /// The subject, with `{kind}` and `{subject}` still to be filled in.
    pub subject: String,
    /// The stream that has to take them; `None`: whichever listens to the subject.
    pub stream: Option<String>,
    /// Login.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// Or a token.
    pub token: Option<Secret>,
    /// Or a file with a user's JWT and seed. Read at each connection.
    pub credentials: Option<PathBuf>,
    /// For `tls://`.
    pub tls: Tls,
    /// Messages under way without a confirmation.
    pub in_flight: usize,
    /// How long the stream may take to confirm.
    pub timeout: Duration,
}

impl Config {
    /// Reads the section.
    pub fn read(s: &Section<'_>, site: &str, agent_id: &str) -> Config {
        let text = s.string("subject").unwrap_or_else(|| SUBJECT.to_owned());
        let subject = subject(&text, site, agent_id).unwrap_or_else(|problem| {
            s.problem("subject", problem);
            SUBJECT.to_owned()
        });
        let config = Config {
            urls: urls(s),
            subject,
            stream: s.string("stream"),
            username: s.string("username"),
            password: s.secret("password"),
            token: s.secret("token"),
            credentials: s.path_of("credentials"),
            tls: Tls::read(s),
            in_flight: s.integer("in_flight", 1..=4096).unwrap_or(IN_FLIGHT) as usize,
            timeout: s.duration("timeout").unwrap_or(ACK_TIMEOUT),
        };
        if config.username.is_some() != config.password.is_some() {
            s.problem("username", "goes with a `password` or `password_file`, and the other way round");
        }
        let ways = [config.username.is_some(), config.token.is_some(), config.credentials.is_some()];
        if ways.iter().filter(|w| **w).count() > 1 {
            s.problem("username", "is one way to log in, `token` another, `credentials` a third: give one");
        }
        if !(Duration::from_millis(100)..=Duration::from_secs(600)).contains(&config.timeout) {
            s.problem("timeout", "is not between 100ms and 10min");
        }
        if config.tls != Tls::default() && !config.urls.iter().any(is_tls) && !config.urls.is_empty() {
            s.problem("tls", "is not used: no url begins with tls://");
        }
        config
    }
}

fn is_tls(url: &ServerAddr) -> bool {
    url.scheme() == "tls"
}

fn urls(s: &Section<'_>) -> Vec<ServerAddr> {
    if !s.has("url") {
        s.problem("url", "is missing: give the servers as \"nats://host:4222\"");
    }
    let mut out = Vec::new();
    for url in s.strings("url").unwrap_or_default() {
        match url.parse::<ServerAddr>() {
            Ok(address) if !matches!(address.scheme(), "nats" | "tls") => {
                s.problem("url", format_args!("{url:?} begins with neither nats:// nor tls://"));
            }
            Ok(address) if address.has_user_pass() => {
                s.problem("url", "holds a user or password; use `username` and `password_file`");
            }
            Ok(address) => out.push(address),
            Err(e) => s.problem("url", format_args!("{url:?} is not an address: {e}")),
        }
    }
    out
}

/// One token of a subject: what would split it or act as a wildcard becomes `_`.
fn token(text: &str) -> String {
    let plain =
        |c: char| if matches!(c, '.' | '*' | '>' | '$') || c.is_whitespace() || c.is_control() { '_' } else { c };
    let token: String = text.chars().map(plain).collect();
    if token.is_empty() { "_".to_owned() } else { token }
}

/// A template with site and agent filled in; the error is for a person.
fn subject(text: &str, site: &str, agent_id: &str) -> Result<String, String> {
    let site: Vec<String> = site.split('/').filter(|l| !l.is_empty()).map(token).collect();
    let filled = text.replace("{site}", &site.join(".")).replace("{agent}", &token(agent_id));
    let bare = filled.replace("{kind}", "k").replace("{subject}", "s");
    if bare.contains(['{', '}']) {
        return Err(format!("{text:?} has other names in braces than site, agent, kind and subject"));
    }
    let bad =
        |t: &str| t.is_empty() || t.contains(['*', '>']) || t.chars().any(|c| c.is_whitespace() || c.is_control());
    if bare.split('.').any(bad) || bare.starts_with("$JS") {
        return Err(format!("{text:?} is not a subject: words joined by dots, none empty, without * and >"));
    }
    Ok(filled)
}

/// A publisher to one stream.
pub struct Publisher {
    config: Config,
    encoder: Encoder,
    agent: String,
    open: Option<(Client, Context)>,
}

impl Publisher {
    /// Not connected yet.
    pub fn new(config: Config, encoder: Encoder, agent_id: &str) -> Publisher {
        Publisher { config, encoder, agent: format!("andon {agent_id}"), open: None }
    }

    /// The first server's address, for people.
    pub fn place(&self) -> String {
        self.config.urls.first().map(|u| format!("{}://{}:{}", u.scheme(), u.host(), u.port())).unwrap_or_default()
    }

    async fn options(&self) -> Result<ConnectOptions, Trouble> {
        let c = &self.config;
        let mut options = ConnectOptions::new()
            .name(&self.agent)
            .connection_timeout(CONNECT_TIMEOUT)
            .request_timeout(Some(c.timeout))
            .client_capacity(CLIENT_CAPACITY);
        if let (Some(user), Some(password)) = (&c.username, &c.password) {
            options = options.user_and_password(user.clone(), password.reveal().to_owned());
        }
        if let Some(token) = &c.token {
            options = options.token(token.reveal().to_owned());
        }
        if let Some(file) = &c.credentials {
            let read = options.credentials_file(file).await;
            options = read.map_err(|e| Trouble::lasting(format!("{}: {e}", file.display())))?;
        }
        if c.tls.ca.is_some() {
            let tls = c.tls.client_config().map_err(|e| Trouble::lasting(format!("{e:#}")))?;
            options = options.tls_client_config(tls);
        }
        Ok(options)
    }

    /// A record as it goes out; the error says why it never can.
    fn message(&self, record: &Stored) -> Result<(String, HeaderMap, Vec<u8>), String> {
        let no_json = |_| "its data is not a JSON object".to_owned();
        let parts = self.encoder.parts(record).map_err(no_json)?;
        let event = self.encoder.event(record).map_err(no_json)?;
        let subject = self.config.subject.replace("{kind}", record.record.kind.as_str());
        let subject = subject.replace("{subject}", &token(&parts.subject));
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, record.record.id.to_string());
        headers.insert("Content-Type", SINGLE);
        if let Some(stream) = &self.config.stream {
            headers.insert(NATS_EXPECTED_STREAM, stream.as_str());
        }
        Ok((subject, headers, event))
    }

    async fn send(&self, context: &Context, record: &Stored) -> Result<(PublishAckFuture, usize), End> {
        let (subject, headers, event) = self.message(record).map_err(End::Refused)?;
        let bytes = event.len();
        let publish = jetstream::message::PublishMessage::build().headers(headers).payload(event.into());
        match timeout(self.config.timeout, context.send_publish(subject, publish)).await {
            Ok(Ok(ack)) => Ok((ack, bytes)),
            Ok(Err(e)) => Err(end(&e)),
            Err(_) => Err(End::Trouble(Trouble::passing("the connection takes nothing"))),
        }
    }
}

/// What an error means for the record it came for.
fn end(e: &PublishError) -> End {
    match e.kind() {
        PublishErrorKind::MaxPayloadExceeded => End::Refused("larger than the server's max_payload".into()),
        // Also while the stream has no leader: it may pass, but somebody should look.
        PublishErrorKind::StreamNotFound => End::Trouble(Trouble::passing("no stream takes the subject")),
        _ => End::Trouble(Trouble::passing(explain(e))),
    }
}

fn explain(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(ToString::to_string).unwrap_or_default();
    let text = error.to_string();
    if cause.is_empty() || text.contains(&cause) { text } else { format!("{text}: {cause}") }
}

impl Carrier for Publisher {
    async fn open(&mut self) -> Result<(), Trouble> {
        self.open = None;
        let options = self.options().await?;
        let connecting = options.connect(self.config.urls.clone());
        let client = match timeout(OPEN_PATIENCE, connecting).await {
            Ok(connected) => connected.map_err(|e| Trouble::passing(explain(&e)))?,
            Err(_) => return Err(Trouble::passing("no server answers")),
        };
        let mut context = jetstream::new(client.clone());
        context.set_timeout(self.config.timeout);
        self.open = Some((client, context));
        Ok(())
    }

    async fn lost(&mut self) -> String {
        let Some((client, _)) = &self.open else { return std::future::pending().await };
        let mut away = 0;
        // The client goes on to another server of the cluster by itself; only where there is none is it lost.
        while away < LOST_AFTER {
            tokio::time::sleep(LOOK_EVERY).await;
            away = if client.connection_state() == State::Connected { 0 } else { away + 1 };
        }
        "no server of the cluster answers".into()
    }

    async fn carry(&mut self, records: &[Stored]) -> Carried {
        let (mut taken, mut bytes) = (0, 0);
        let Some((_, context)) = &self.open else {
            return Carried { taken, bytes, end: End::Trouble(Trouble::passing("not connected")) };
        };
        let mut waiting: VecDeque<(PublishAckFuture, usize)> = VecDeque::new();
        let mut coming = records.iter();
        let mut end_of_sending = None;
        loop {
            while end_of_sending.is_none() && waiting.len() < self.config.in_flight {
                let Some(record) = coming.next() else { break };
                match self.send(context, record).await {
                    Ok(sent) => waiting.push_back(sent),
                    Err(end) => end_of_sending = Some(end),
                }
            }
            let Some((ack, size)) = waiting.pop_front() else { break };
            if let Err(e) = ack.await {
                // Those behind it may be in the stream already: they are known by their ids.
                return Carried { taken, bytes, end: end(&e) };
            }
            taken += 1;
            bytes += size;
        }
        Carried { taken, bytes, end: end_of_sending.unwrap_or(End::Done) }
    }

    async fn close(&mut self) {
        let Some((client, _)) = self.open.take() else { return };
        // Nothing hangs on it: all that was taken was confirmed.
        let _ = timeout(CONNECT_TIMEOUT, client.drain()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_filled_in_and_checked() {
        assert_eq!(subject(SUBJECT, "lyon/line3", "gw.7").as_deref(), Ok("andon.lyon.line3.gw_7.{kind}.{subject}"));
        for bad in ["", "a..b", "a.*", "a.>", "a b", "{machine}", "$JS.API.x"] {
            assert!(subject(bad, "lyon", "gw").is_err(), "{bad}");
        }
        assert_eq!(token("press 4.*"), "press_4__");
        assert_eq!(token(""), "_");
    }
}
