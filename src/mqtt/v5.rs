//! MQTT 5 over rumqttc-v5-next.

use std::pin::Pin;

use rumqttc::mqttbytes::v5::{
    Packet, PubAck, PubAckReason, PubRec, PublishProperties, RetainForwardRule, SubscribeReasonCode,
};
use rumqttc::{
    AckMode, AsyncClient, Broker, ClientError, ConnectProperties, EventLoop, LastWill, ManualAck, MqttOptions,
    NetworkOptions, PersistedAckMode, PersistedSession, PublishNotice, PublishNoticeError, PublishOptions,
    SessionStore, SessionStoreError, SessionStoreKey, SubscribeFilterInput, TlsConfiguration, Transport,
};

use super::socket::Socket;
use super::{
    Ack, Address, CONNECT_TIMEOUT, Connection, ECHO_TOPIC, Event, Filter, MAX_PACKET, Message, NotTaken,
    OUTGOING_IN_FLIGHT, Outgoing, Outlet, Properties, READ_AT_ONCE, Refused, WRITE_AT_ONCE, explain,
};

type Stored<'a, T> = Pin<Box<dyn Future<Output = Result<T, SessionStoreError>> + Send + 'a>>;

/// The session as a subscriber that has just started knows it: nothing of its own under way.
/// Without it rumqttc either refuses a session that outlived the process, or takes it and then
/// refuses to subscribe.
#[derive(Debug)]
struct NothingUnderWay;

impl SessionStore for NothingUnderWay {
    fn load<'a>(&'a self, key: &'a SessionStoreKey) -> Stored<'a, Option<PersistedSession>> {
        let session = PersistedSession {
            format_version: 1,
            client_id: key.client_id().to_owned(),
            clean_start: false,
            session_expiry_interval: None,
            outgoing_inflight_upper_limit: Some(OUTGOING_IN_FLIGHT),
            ack_mode: PersistedAckMode::Manual,
            last_pkid: 0,
            last_puback: 0,
            replay: Vec::new(),
            incoming_qos2: Vec::new(),
        };
        Box::pin(async move { Ok(Some(session)) })
    }

    fn save<'a>(&'a self, _: &'a SessionStoreKey, _: &'a PersistedSession) -> Stored<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn clear<'a>(&'a self, _: &'a SessionStoreKey) -> Stored<'a, ()> {
        Box::pin(async { Ok(()) })
    }
}

pub(super) fn client(
    c: &Connection,
    address: &Address,
    tls: Option<TlsConfiguration>,
    will: Option<Outgoing>,
    capacity: usize,
) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(c.client_id.clone(), Broker::tcp(address.host.clone(), address.port));
    if let Some(tls) = tls {
        options.set_transport(Transport::tls_with_config(tls));
    }
    let mut properties = ConnectProperties::new();
    properties.receive_maximum = Some(c.receive_maximum);
    properties.max_packet_size = Some(MAX_PACKET);
    if !c.clean {
        // The largest value means "for ever" to the broker, so stay one below.
        let seconds = u32::try_from(c.session_expiry.as_secs()).unwrap_or(u32::MAX).min(u32::MAX - 1);
        properties.session_expiry_interval = Some(seconds);
        options.set_session_store(NothingUnderWay);
    }
    options.set_connect_properties(properties);
    options.set_clean_start(c.clean);
    options.set_keep_alive(c.keep_alive.as_secs().clamp(1, u64::from(u16::MAX)) as u16);
    options.set_connect_timeout(CONNECT_TIMEOUT);
    options.set_outgoing_inflight_upper_limit(OUTGOING_IN_FLIGHT);
    options.set_read_batch_size(READ_AT_ONCE);
    options.set_max_request_batch(WRITE_AT_ONCE);
    options.set_socket_connector(|host, network| async {
        rumqttc::default_socket_connect(host, network).await.map(Socket::new)
    });
    options.set_ack_mode(AckMode::Manual);
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    match (&c.username, &c.password) {
        (Some(user), Some(password)) => {
            options.set_credentials(user.clone(), password.reveal().to_owned());
        }
        (Some(user), None) => {
            options.set_username(user.clone());
        }
        _ => {}
    }
    if let Some(w) = will {
        options.set_last_will(LastWill::new(w.topic, w.payload, w.qos.to_wire(), w.retain, None));
    }
    AsyncClient::builder(options).capacity(capacity).build()
}

/// Drives one connection until it ends or nobody listens.
pub(super) async fn pump(mut eventloop: EventLoop, outlet: Outlet) {
    loop {
        let event = match eventloop.poll().await {
            Ok(rumqttc::Event::Incoming(Packet::Publish(p))) => {
                Event::Message(Message::new(p.topic, p.payload, p.retain, p.dup, Ack::of(p.qos, p.pkid)))
            }
            Ok(rumqttc::Event::Incoming(Packet::ConnAck(c))) => {
                // It has served; from here on it would only cost time at each packet.
                eventloop.options.clear_session_store();
                let max_packet = c.properties.as_ref().and_then(|p| p.max_packet_size);
                Event::Connected { session_present: c.session_present, max_packet }
            }
            Ok(rumqttc::Event::Incoming(Packet::SubAck(s))) => {
                Event::Subscribed(s.return_codes.iter().map(refusal).collect())
            }
            Ok(rumqttc::Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_))) => Event::Delivered,
            Ok(rumqttc::Event::Incoming(Packet::UnsubAck(_))) => Event::Echo,
            Ok(rumqttc::Event::Outgoing(rumqttc::Outgoing::Disconnect)) => Event::Disconnected("as asked".into()),
            Ok(_) => continue,
            Err(e) => Event::Disconnected(explain(&e)),
        };
        let over = matches!(event, Event::Disconnected(_));
        if !outlet.deliver(event).await || over {
            return;
        }
    }
}

fn refusal(code: &SubscribeReasonCode) -> Option<String> {
    match code {
        SubscribeReasonCode::Success(_) => None,
        SubscribeReasonCode::NotAuthorized => Some("not authorized".into()),
        other => Some(format!("refused: {other:?}")),
    }
}

pub(super) fn subscribe(client: &AsyncClient, filters: &[Filter]) -> Result<(), Refused> {
    // Retained messages only for what is subscribed anew: on each reconnect they would be old news.
    let input = |f: &Filter| {
        SubscribeFilterInput::new(f.topic.clone(), f.qos.to_wire())
            .retain_forward_rule(RetainForwardRule::OnNewSubscribe)
    };
    client.try_subscribe_many(filters.iter().map(input)).map_err(|e| refused(&e))
}

pub(super) fn publish(client: &AsyncClient, m: &Outgoing) -> Result<(), Refused> {
    let options = PublishOptions::new(m.qos.to_wire()).retain(m.retain);
    client.try_publish(m.topic.as_str(), m.payload.clone(), options).map_err(|e| refused(&e))
}

pub(super) fn echo(client: &AsyncClient) -> Result<(), Refused> {
    client.try_unsubscribe(ECHO_TOPIC).map_err(|e| refused(&e))
}

pub(super) async fn flush(client: &AsyncClient, messages: Vec<Outgoing>) -> bool {
    let mut sent = Vec::with_capacity(messages.len());
    for m in messages {
        let options = PublishOptions::new(m.qos.to_wire()).retain(m.retain);
        match client.publish_tracked(m.topic, m.payload, options).await {
            Ok(notice) => sent.push(notice),
            Err(_) => return false,
        }
    }
    for notice in sent {
        if notice.wait_async().await.is_err() {
            return false;
        }
    }
    true
}

pub(super) async fn deliver(client: &AsyncClient, m: Outgoing, p: Properties) -> Result<PublishNotice, Refused> {
    let properties = PublishProperties {
        content_type: Some(p.content_type).filter(|t| !t.is_empty()),
        user_properties: p.user,
        ..PublishProperties::default()
    };
    let options = PublishOptions::new(m.qos.to_wire()).retain(m.retain).properties(properties);
    client.publish_tracked(m.topic, m.payload, options).await.map_err(|e| refused(&e))
}

/// What an answer means: some reasons concern the one message, the others all of them.
pub(super) async fn taken(notice: PublishNotice) -> Result<(), NotTaken> {
    match notice.wait_completion_async().await {
        Ok(()) => Ok(()),
        Err(PublishNoticeError::V5PubAck(PubAckReason::TopicNameInvalid)) => {
            Err(NotTaken::Unfit("the broker does not allow the topic".into()))
        }
        Err(PublishNoticeError::V5PubAck(PubAckReason::PayloadFormatInvalid)) => {
            Err(NotTaken::Unfit("the broker does not take the payload".into()))
        }
        Err(PublishNoticeError::V5PubAck(reason)) => Err(NotTaken::Refused(format!("{reason:?}"))),
        Err(_) => Err(NotTaken::Lost),
    }
}

pub(super) fn ack(client: &AsyncClient, ack: &Ack) -> Result<(), Refused> {
    let packet = if ack.exactly_once {
        ManualAck::PubRec(PubRec::new(ack.packet_id, None))
    } else {
        ManualAck::PubAck(PubAck::new(ack.packet_id, None))
    };
    client.try_manual_ack(packet).map_err(|e| refused(&e))
}

fn refused(error: &ClientError) -> Refused {
    match error {
        ClientError::RequestChannelFull(_) => Refused::Full,
        ClientError::InvalidRequest(_) => Refused::Invalid,
        _ => Refused::Closed,
    }
}
