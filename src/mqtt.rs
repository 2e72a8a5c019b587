//! MQTT 3.1.1 and 5 behind one small interface; nothing outside this module knows rumqttc.
//! A [`Link`] is one connection: after any error it is over, and its owner backs off and opens a
//! new one, so that an ack can never reach a connection it does not belong to.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use rumqttc::TlsConfiguration;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

mod dial;
mod settings;
mod socket;
pub mod sparkplug;
mod v4;
mod v5;

pub use dial::Dialer;
pub use settings::{Address, Connection, Version};

/// The largest packet taken in. MQTT 5 brokers are told and keep larger ones to themselves; with
/// 3.1.1 a larger one ends the connection.
const MAX_PACKET: u32 = 16 << 20;
/// Payloads beyond this are cut to [`CUT_PAYLOAD`] as soon as they are off the wire, so that what
/// waits for the reader stays small.
pub const MAX_PAYLOAD: usize = 256 << 10;
/// What is left of a payload that was too large: enough to recognise it by.
pub const CUT_PAYLOAD: usize = 4096;
/// Messages that may wait for the reader on top of `receive_maximum`. Only QoS 0 gets that far;
/// when it is full the socket is left unread.
const EVENTS_QUEUED: usize = 1024;
/// Requests that may wait for the socket on top of `receive_maximum` acks. More than
/// [`READ_AT_ONCE`], so that an ack always finds room.
const REQUESTS_QUEUED: usize = 1024;
/// Our own messages under way without an ack. rumqttc goes through a table of this size at every
/// flush, so its default of 65,535 would cost more than all the rest of the work.
const OUTGOING_IN_FLIGHT: u16 = 100;
/// Packets taken from the socket before anything else is looked at.
const READ_AT_ONCE: usize = 128;
/// Packets written with one system call. Acks come by the hundred, after a commit; by default rumqttc
/// flushes after each, which costs us and the broker more than all else about a message.
const WRITE_AT_ONCE: usize = 1024;
/// Never subscribed to: giving it up changes nothing and makes the broker answer.
const ECHO_TOPIC: &str = "andon/echo";
/// How long connecting may take.
const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
/// How long a graceful disconnect waits for outgoing messages to be acked.
const DISCONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

/// Delivery guarantee: 0, 1 or 2.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Qos {
    /// At most once.
    AtMostOnce,
    /// At least once.
    #[default]
    AtLeastOnce,
    /// Exactly once.
    ExactlyOnce,
}

impl Qos {
    fn to_wire(self) -> rumqttc::QoS {
        match self {
            Qos::AtMostOnce => rumqttc::QoS::AtMostOnce,
            Qos::AtLeastOnce => rumqttc::QoS::AtLeastOnce,
            Qos::ExactlyOnce => rumqttc::QoS::ExactlyOnce,
        }
    }
}

/// What to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The full topic.
    pub topic: String,
    /// Any bytes.
    pub payload: Vec<u8>,
    /// Delivery guarantee.
    pub qos: Qos,
    /// Whether the broker keeps it for those who come later.
    pub retain: bool,
}

/// What MQTT 5 carries beside a payload; 3.1.1 has no room for it and leaves it out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    /// The payload's media type.
    pub content_type: String,
    /// Names and values of the sender's own.
    pub user: Vec<(String, String)>,
}

/// The broker's answer to one message, still to come.
#[derive(Debug)]
pub struct Answer(AnswerInner);

#[derive(Debug)]
enum AnswerInner {
    V4(rumqttc_v4::PublishNotice),
    V5(rumqttc::PublishNotice),
}

/// Why the broker has not taken a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// The connection ended before the answer came.
    Lost,
    /// The broker will not take this very message, however often it comes.
    Unfit(String),
    /// The broker takes none, at present or until somebody lets us.
    Refused(String),
}

impl Answer {
    /// Resolves once the broker has said that the message is its own.
    ///
    /// # Errors
    /// See [`NotTaken`].
    pub async fn taken(self) -> Result<(), NotTaken> {
        match self.0 {
            AnswerInner::V4(notice) => notice.wait_async().await.map(|_| ()).map_err(|_| NotTaken::Lost),
            AnswerInner::V5(notice) => v5::taken(notice).await,
        }
    }
}

/// What to subscribe to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// A topic filter, `+`, `#` and `$share` included.
    pub topic: String,
    /// The highest guarantee wanted.
    pub qos: Qos,
}

/// A published message.
#[derive(Debug)]
pub struct Message {
    topic: Bytes,
    /// As published, or its beginning where it was larger than [`MAX_PAYLOAD`].
    pub payload: Bytes,
    /// The size it had on the wire.
    pub full_size: usize,
    /// Whether it is what the broker had kept, rather than news.
    pub retained: bool,
    /// Whether the broker says that it may have delivered it before.
    pub again: bool,
    /// To be handed back to [`Client::ack`] once the message is safe; `None` with QoS 0.
    pub ack: Option<Ack>,
}

impl Message {
    fn new(topic: Bytes, payload: Bytes, retained: bool, again: bool, ack: Option<Ack>) -> Message {
        let full_size = payload.len();
        // A slice would keep the whole packet alive, so the beginning is copied.
        let payload = if full_size > MAX_PAYLOAD { Bytes::copy_from_slice(&payload[..CUT_PAYLOAD]) } else { payload };
        Message { topic, payload, full_size, retained, again, ack }
    }

    /// The topic; U+FFFD where the broker let through one that is not UTF-8.
    pub fn topic(&self) -> &str {
        std::str::from_utf8(&self.topic).unwrap_or("\u{fffd}")
    }
}

/// The right to ack one message, once, on the connection it came by.
#[derive(Debug)]
pub struct Ack {
    packet_id: u16,
    exactly_once: bool,
}

impl Ack {
    fn of(qos: rumqttc::QoS, packet_id: u16) -> Option<Ack> {
        match qos {
            rumqttc::QoS::AtMostOnce => None,
            rumqttc::QoS::AtLeastOnce => Some(Ack { packet_id, exactly_once: false }),
            rumqttc::QoS::ExactlyOnce => Some(Ack { packet_id, exactly_once: true }),
        }
    }
}

/// What happens on a [`Link`].
#[derive(Debug)]
pub enum Event {
    /// The broker took us; `session_present` when it still knew us.
    Connected {
        /// Whether subscriptions and unacked messages have survived.
        session_present: bool,
        /// The largest packet it takes, in bytes, where it says so.
        max_packet: Option<u32>,
    },
    /// The answer to a subscribe: for each filter the reason for a refusal, or `None`.
    Subscribed(Vec<Option<String>>),
    /// A message.
    Message(Message),
    /// The broker has one more of the QoS 1 or 2 messages we published.
    Delivered,
    /// The answer to [`Client::echo`]: the broker has read all that was acked and asked before it.
    Echo,
    /// The end of this link, and why.
    Disconnected(String),
}

/// Why a request was not taken.
#[derive(Copy, Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too many requests wait for the socket.
    #[error("too much is waiting to be sent")]
    Full,
    /// The connection is over.
    #[error("the connection is closed")]
    Closed,
    /// The broker would not understand it.
    #[error("not a valid topic")]
    Invalid,
}

/// One connection. Dropping it closes the socket without a goodbye, which keeps the session and
/// triggers the will.
pub struct Link {
    /// For requests; belongs to this connection alone.
    pub client: Client,
    events: mpsc::Receiver<Event>,
    _pump: AbortOnDropHandle<()>,
}

/// The sending half of a [`Link`]. None of its methods waits.
#[derive(Clone)]
pub struct Client {
    inner: Inner,
    credit: Arc<Semaphore>,
}

#[derive(Clone)]
enum Inner {
    V4(rumqttc_v4::AsyncClient),
    V5(rumqttc::AsyncClient),
}

/// Where a pump delivers, and how much it may have under way.
struct Outlet {
    events: mpsc::Sender<Event>,
    credit: Arc<Semaphore>,
}

impl Outlet {
    /// Hands on an event; `false` when nobody listens any more. Messages that want an ack take a
    /// credit first, so that never more than `receive_maximum` are unacked, also with 3.1.1.
    async fn deliver(&self, event: Event) -> bool {
        if let Event::Message(Message { ack: Some(_), .. }) = &event {
            match self.credit.acquire().await {
                Ok(credit) => credit.forget(),
                Err(_) => return false,
            }
        }
        self.events.send(event).await.is_ok()
    }
}

/// Opens a connection in the background; what comes of it is told by [`Link::next`]. The TLS files
/// are read anew each time. Has to be called within a tokio runtime.
///
/// # Errors
/// Fails when the TLS files cannot be used.
pub fn open(connection: &Connection, address: &Address, will: Option<Outgoing>) -> Result<Link> {
    let tls = address.tls.then(|| tls_configuration(connection)).transpose()?;
    let credit = Arc::new(Semaphore::new(usize::from(connection.receive_maximum)));
    let (events_tx, events) = mpsc::channel(usize::from(connection.receive_maximum) + EVENTS_QUEUED);
    let outlet = Outlet { events: events_tx, credit: credit.clone() };
    let capacity = usize::from(connection.receive_maximum) + REQUESTS_QUEUED;
    let (inner, pump) = match connection.version {
        Version::V4 => {
            let (client, eventloop) = v4::client(connection, address, tls, will, capacity);
            (Inner::V4(client), tokio::spawn(v4::pump(eventloop, outlet)))
        }
        Version::V5 => {
            let (client, eventloop) = v5::client(connection, address, tls, will, capacity);
            (Inner::V5(client), tokio::spawn(v5::pump(eventloop, outlet)))
        }
    };
    Ok(Link { client: Client { inner, credit }, events, _pump: AbortOnDropHandle::new(pump) })
}

/// Connects once to an address, asks for the topics and says goodbye: for checks. Uses a client id of its
/// own, so that it neither throws out a running agent nor touches its session. Shared subscriptions are
/// not asked for, since that would take messages from those who share. Gives what was refused.
///
/// # Errors
/// Why the broker cannot be used.
pub async fn probe(connection: &Connection, address: &Address, filters: &[Filter]) -> Result<Vec<String>> {
    let client_id = format!("{}-check-{:08x}", connection.client_id, fastrand::u32(..));
    let connection = Connection { client_id, clean: true, ..connection.clone() };
    let mut link = open(&connection, address, None)?;
    if let Event::Disconnected(reason) = link.next().await {
        anyhow::bail!(reason);
    }
    let filters: Vec<Filter> = filters.iter().filter(|f| !f.topic.starts_with("$share/")).cloned().collect();
    let mut refused = Vec::new();
    if !filters.is_empty() && link.client.subscribe(&filters).is_ok() {
        let answer = async {
            loop {
                match link.next().await {
                    Event::Subscribed(answers) => break Ok(answers),
                    Event::Disconnected(reason) => break Err(anyhow::anyhow!(reason)),
                    _ => {}
                }
            }
        };
        let answers = tokio::time::timeout(CONNECT_TIMEOUT, answer).await.context("no answer to a subscription")??;
        let told = filters.iter().zip(answers).filter_map(|(f, a)| Some(format!("{}: {}", f.topic, a?)));
        refused.extend(told);
    }
    link.client.lift_limit();
    link.client.disconnect();
    // Whether the goodbye gets through does not matter any more.
    let goodbye = async { while !matches!(link.next().await, Event::Disconnected(_)) {} };
    let _ = tokio::time::timeout(CONNECT_TIMEOUT, goodbye).await;
    Ok(refused)
}

impl Link {
    /// The next event, after which there may be more; after `Disconnected` there is none. May be
    /// cancelled without losing anything.
    pub async fn next(&mut self) -> Event {
        self.events.recv().await.unwrap_or_else(|| Event::Disconnected("the connection is closed".into()))
    }

    /// An event that is already here.
    pub fn ready(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }
}

impl Client {
    /// Asks for these topics; the answer comes as [`Event::Subscribed`].
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn subscribe(&self, filters: &[Filter]) -> Result<(), Refused> {
        match &self.inner {
            Inner::V4(client) => v4::subscribe(client, filters),
            Inner::V5(client) => v5::subscribe(client, filters),
        }
    }

    /// Sends a message; QoS 1 and 2 are repeated until the broker has them, as long as this
    /// connection lives.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn publish(&self, message: &Outgoing) -> Result<(), Refused> {
        match &self.inner {
            Inner::V4(client) => v4::publish(client, message),
            Inner::V5(client) => v5::publish(client, message),
        }
    }

    /// Sends a QoS 1 message, waiting for room, and gives what tells when the broker has it.
    ///
    /// # Errors
    /// See [`Refused`]; it is never [`Refused::Full`].
    pub async fn deliver(&self, message: Outgoing, properties: Properties) -> Result<Answer, Refused> {
        match &self.inner {
            Inner::V4(client) => v4::deliver(client, message).await.map(AnswerInner::V4).map(Answer),
            Inner::V5(client) => v5::deliver(client, message, properties).await.map(AnswerInner::V5).map(Answer),
        }
    }

    /// Tells the broker that a message is safe. Acks have to be given in the order of delivery.
    ///
    /// # Errors
    /// Only [`Refused::Closed`] can happen: there is room for every ack that can be outstanding.
    pub fn ack(&self, ack: Ack) -> Result<(), Refused> {
        self.credit.add_permits(1);
        match &self.inner {
            Inner::V4(client) => v4::ack(client, &ack),
            Inner::V5(client) => v5::ack(client, &ack),
        }
    }

    /// Asks the broker for a sign of life, which comes as [`Event::Echo`] after it has read all acks and
    /// requests given before. A goodbye alone may overtake them: mosquitto throws away what it has not
    /// yet read of a connection when its successor arrives.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn echo(&self) -> Result<(), Refused> {
        match &self.inner {
            Inner::V4(client) => v4::echo(client),
            Inner::V5(client) => v5::echo(client),
        }
    }

    /// Sends QoS 0 messages and resolves once all are written to the socket: `true`, or `false` when the
    /// connection ended before. An [`Client::echo`] after that comes from a broker that has read them.
    pub async fn flush(&self, messages: Vec<Outgoing>) -> bool {
        match &self.inner {
            Inner::V4(client) => v4::flush(client, messages).await,
            Inner::V5(client) => v5::flush(client, messages).await,
        }
    }

    /// Lets messages come without regard to what is unacked, for an owner that is leaving: what waits for
    /// an ack it will not get must not stand in the way of the broker's last answers.
    pub fn lift_limit(&self) {
        self.credit.add_permits(usize::from(u16::MAX));
    }

    /// Says goodbye once everything sent before is out; the link ends with `Disconnected`.
    pub fn disconnect(&self) {
        // Refused only where the connection is already over.
        let _ = match &self.inner {
            Inner::V4(client) => client.try_disconnect_with_timeout(DISCONNECT_TIMEOUT).is_ok(),
            Inner::V5(client) => client.try_disconnect_with_timeout(DISCONNECT_TIMEOUT).is_ok(),
        };
    }
}

fn tls_configuration(connection: &Connection) -> Result<TlsConfiguration> {
    if connection.tls.ca.is_none() {
        return TlsConfiguration::try_default_rustls().context("loading this system's CA certificates");
    }
    Ok(TlsConfiguration::Rustls(Arc::new(connection.tls.client_config()?)))
}

/// An error and its causes in one line, none of them twice.
fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(c) = cause {
        let c_text = c.to_string();
        if !text.contains(&c_text) {
            text = format!("{text}: {c_text}");
        }
        cause = c.source();
    }
    text
}
