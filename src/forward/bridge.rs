//! `[[sink.mqtt]]`: records to another broker, as CloudEvents over MQTT. With MQTT 5 in binary mode, the
//! attributes as user properties and the payload flat; with 3.1.1 in structured mode. The sink advances
//! on the broker's PUBACK and on nothing else.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::cloud_events::{Encoder, Parts, SINGLE};
use super::deliver::{Carried, Carrier, End, Trouble};
use super::publish::messages::{level, levels};
use crate::mqtt::{self, Answer, Connection, Event, Link, NotTaken, Outgoing, Properties, Qos, Version};
use crate::settings::Section;
use crate::types::Stored;

/// Where records go unless the config says otherwise.
const TOPIC: &str = "andon/{site}/{agent}/{kind}/{subject}";
/// The most levels that AWS IoT Core takes (seven slashes); other brokers take more.
const MAX_LEVELS: i64 = 8;
/// The most that AWS IoT Core takes; Azure takes twice that, mosquitto 256 MiB.
const MAX_MESSAGE_BYTES: u64 = 128 << 10;
/// What a packet has beside topic, payload and properties, generously.
const OVERHEAD: usize = 64;
/// How long the broker may leave a message without an answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take over a goodbye.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(3);

/// `[[sink.mqtt]]`, what is its own.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// How to reach the broker.
    pub connection: Connection,
    /// The topic, with `{kind}` and `{subject}` still to be filled in.
    pub topic: String,
    /// The largest packet, in bytes.
    pub max_message_bytes: usize,
}

impl Config {
    /// Reads the section of the sink of this name.
    pub fn read(s: &Section<'_>, name: &str, site: &str, agent_id: &str) -> Config {
        let mut connection = Connection::read_plain(s, &format!("andon-{agent_id}-{name}"));
        connection.clean = true;
        let max_levels = s.integer("max_levels", 1..=128).unwrap_or(MAX_LEVELS);
        let text = s.string("topic").unwrap_or_else(|| TOPIC.to_owned());
        let topic = match topic(&text, site, agent_id, max_levels as usize) {
            Ok(topic) => topic,
            Err(problem) => {
                s.problem("topic", problem);
                TOPIC.to_owned()
            }
        };
        let bytes = s.size("max_message_bytes").unwrap_or(MAX_MESSAGE_BYTES);
        if !(1 << 10..=256 << 20).contains(&bytes) {
            s.problem("max_message_bytes", "is not between 1KiB and 256MiB");
        }
        Config { connection, topic, max_message_bytes: usize::try_from(bytes).unwrap_or(usize::MAX) }
    }
}

/// A template with site and agent filled in; the error is for a person.
fn topic(text: &str, site: &str, agent_id: &str, max_levels: usize) -> Result<String, String> {
    let filled = text.replace("{site}", &levels(site)).replace("{agent}", &level(agent_id));
    let bare = filled.replace("{kind}", "k").replace("{subject}", "s");
    if bare.contains(['{', '}']) {
        return Err(format!("{text:?} has other names in braces than site, agent, kind and subject"));
    }
    if bare.is_empty() || bare.contains(['+', '#', '\0']) || bare.split('/').any(str::is_empty) {
        return Err(format!("{text:?} is not a topic: levels joined by /, none empty, without + and #"));
    }
    let n = bare.split('/').count();
    if n > max_levels {
        return Err(format!(
            "has {n} levels with this site, more than the {max_levels} of `max_levels`: AWS IoT Core takes 8"
        ));
    }
    Ok(filled)
}

/// A bridge to one broker.
pub struct Bridge {
    config: Config,
    encoder: Encoder,
    link: Option<Link>,
    /// The largest packet that the config and the broker allow.
    limit: usize,
}

impl Bridge {
    /// Not connected yet.
    pub fn new(config: Config, encoder: Encoder) -> Bridge {
        let limit = config.max_message_bytes;
        Bridge { config, encoder, link: None, limit }
    }

    /// The first broker's address, for people.
    pub fn place(&self) -> String {
        self.config.connection.urls.first().map(ToString::to_string).unwrap_or_default()
    }

    /// A record as it goes out, and its size; the error says why it never can.
    fn message(&self, record: &Stored) -> Result<(Outgoing, Properties, usize), String> {
        let parts = self.encoder.parts(record).map_err(|_| "its data is not a JSON object".to_owned())?;
        let topic = self.config.topic.replace("{kind}", record.record.kind.as_str());
        let topic = topic.replace("{subject}", &level(&parts.subject));
        let (payload, properties) = match self.config.connection.version {
            Version::V5 => binary(parts),
            Version::V4 => {
                let event = self.encoder.event(record).map_err(|e| e.to_string())?;
                (event, Properties { content_type: SINGLE.into(), user: Vec::new() })
            }
        };
        let carried: usize = properties.user.iter().map(|(name, value)| name.len() + value.len() + 5).sum();
        let size = OVERHEAD + topic.len() + payload.len() + carried;
        if size > self.limit {
            return Err(format!("{size} bytes are more than the {} that a message may have", self.limit));
        }
        Ok((Outgoing { topic, payload, qos: Qos::AtLeastOnce, retain: false }, properties, size))
    }
}

/// CloudEvents' binary mode: what tells of the event stands beside it.
fn binary(parts: Parts) -> (Vec<u8>, Properties) {
    let user = parts.attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    (parts.data.into_bytes(), Properties { content_type: "application/json".into(), user })
}

impl Carrier for Bridge {
    async fn open(&mut self) -> Result<(), Trouble> {
        self.link = None;
        let mut why = String::from("no address");
        for address in &self.config.connection.urls {
            let mut link = match mqtt::open(&self.config.connection, address, None) {
                Ok(link) => link,
                Err(e) => return Err(Trouble::lasting(format!("{e:#}"))),
            };
            loop {
                match link.next().await {
                    Event::Connected { max_packet, .. } => {
                        let theirs = max_packet.map_or(usize::MAX, |n| n as usize);
                        self.limit = self.config.max_message_bytes.min(theirs);
                        self.link = Some(link);
                        return Ok(());
                    }
                    Event::Disconnected(reason) => {
                        why = format!("{address}: {reason}");
                        break;
                    }
                    _ => {}
                }
            }
        }
        Err(Trouble::passing(why))
    }

    async fn lost(&mut self) -> String {
        let Some(link) = &mut self.link else { return std::future::pending().await };
        loop {
            if let Event::Disconnected(reason) = link.next().await {
                return reason;
            }
        }
    }

    async fn carry(&mut self, records: &[Stored]) -> Carried {
        let (mut answers, mut sizes, mut end) = (VecDeque::new(), Vec::new(), End::Done);
        for record in records {
            let (message, properties, size) = match self.message(record) {
                Ok(message) => message,
                Err(reason) => {
                    end = End::Refused(reason);
                    break;
                }
            };
            let Some(link) = &self.link else { return nothing("not connected") };
            match link.client.deliver(message, properties).await {
                Ok(answer) => answers.push_back(answer),
                Err(refused) => {
                    end = End::Trouble(Trouble::passing(refused.to_string()));
                    break;
                }
            }
            sizes.push(size);
        }
        let Some(link) = &mut self.link else { return nothing("not connected") };
        let (mut taken, mut bytes) = (0, 0);
        for (answer, size) in answers.into_iter().zip(sizes) {
            if let Err(why) = answered(link, answer).await {
                return Carried { taken, bytes, end: why };
            }
            taken += 1;
            bytes += size;
        }
        Carried { taken, bytes, end }
    }

    async fn close(&mut self) {
        let Some(mut link) = self.link.take() else { return };
        link.client.disconnect();
        let ended = async { while !matches!(link.next().await, Event::Disconnected(_)) {} };
        // Nothing hangs on the goodbye: all that was taken was said to be.
        let _ = timeout_at(Instant::now() + GOODBYE_PATIENCE, ended).await;
    }
}

fn nothing(why: &str) -> Carried {
    Carried { taken: 0, bytes: 0, end: End::Trouble(Trouble::passing(why)) }
}

/// Waits for the broker's answer, with an ear on the connection: what it tells must not pile up.
async fn answered(link: &mut Link, answer: Answer) -> Result<(), End> {
    let until = Instant::now() + ANSWER_PATIENCE;
    let answer = answer.taken();
    tokio::pin!(answer);
    let passing = |why: String| Err(End::Trouble(Trouble::passing(why)));
    loop {
        let event = tokio::select! {
            biased;
            result = &mut answer => match result {
                Ok(()) => return Ok(()),
                Err(NotTaken::Unfit(reason)) => return Err(End::Refused(reason)),
                Err(NotTaken::Refused(reason)) => {
                    return Err(End::Trouble(Trouble::lasting(format!("the broker takes no messages: {reason}"))));
                }
                // The reason is in the link's last event.
                Err(NotTaken::Lost) => {
                    let last = async {
                        loop {
                            if let Event::Disconnected(reason) = link.next().await {
                                break reason;
                            }
                        }
                    };
                    return passing(timeout_at(until, last).await.unwrap_or_else(|_| "the connection broke".into()));
                }
            },
            event = timeout_at(until, link.next()) => event,
        };
        match event {
            Ok(Event::Disconnected(reason)) => return passing(reason),
            Ok(_) => {}
            Err(_) => return passing("the broker does not answer".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::privacy::Privacy;
    use crate::types::{Kind, Record, RecordId, Time};

    fn bridge(version: Version, max: usize) -> Bridge {
        let mut connection = Connection::new(Vec::new(), "x");
        connection.version = version;
        let topic = topic(TOPIC, "lyon/line3", "gw-07", 8).expect("a topic");
        let config = Config { connection, topic, max_message_bytes: max };
        Bridge::new(config, Encoder::new("lyon/line3", "gw-07", Privacy::default()))
    }

    fn record(kind: Kind, subject: &str, data: &str) -> Stored {
        let record = Record { id: RecordId([7; 16]), kind, subject: subject.into(), at: Time(0), data: data.into() };
        Stored { sequence: 12, record }
    }

    #[test]
    fn topics_are_filled_in_and_held_to_their_levels() {
        assert_eq!(topic(TOPIC, "lyon/line3", "gw-07", 8).as_deref(), Ok("andon/lyon/line3/gw-07/{kind}/{subject}"));
        assert_eq!(topic("$aws/rules/x/{subject}", "a", "b", 8).as_deref(), Ok("$aws/rules/x/{subject}"));
        for (bad, levels) in [("a/{machine}", 8), ("a//b", 8), ("a/+", 8), ("", 8), ("/a", 8), (TOPIC, 5)] {
            assert!(topic(bad, "lyon/line3", "gw-07", levels).is_err(), "{bad}");
        }
    }

    #[test]
    fn mqtt_5_carries_attributes_beside_the_data() {
        let (message, properties, _) =
            bridge(Version::V5, 4096).message(&record(Kind::Alarm, "press/4", r#"{"a":1}"#)).expect("a message");
        assert_eq!(message.topic, "andon/lyon/line3/gw-07/alarm/press_4");
        assert_eq!(message.payload, br#"{"a":1}"#);
        let get = |name: &str| properties.user.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
        assert_eq!(get("specversion"), Some("1.0"));
        assert_eq!(get("id"), Some("07070707070707070707070707070707"));
        assert_eq!(get("type"), Some("io.andon.alarm.v1"));
        assert_eq!(get("subject"), Some("press/4"));
        assert_eq!(get("sequence"), Some("00000000000000000012"));
        assert_eq!(properties.content_type, "application/json");
    }

    #[test]
    fn mqtt_3_carries_the_whole_event() {
        let (message, _, _) =
            bridge(Version::V4, 4096).message(&record(Kind::Verdict, "p", r#"{"a":1}"#)).expect("a message");
        let event: serde_json::Value = serde_json::from_slice(&message.payload).expect("JSON");
        assert_eq!((&event["specversion"], &event["data"]["a"]), (&"1.0".into(), &1.into()));
    }

    #[test]
    fn what_is_too_large_or_no_json_is_refused() {
        let bridge = bridge(Version::V5, 1024);
        let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(1000));
        assert!(bridge.message(&record(Kind::Verdict, "p", &long)).expect_err("too large").contains("1024"));
        assert!(bridge.message(&record(Kind::Verdict, "p", "[")).is_err());
    }
}
