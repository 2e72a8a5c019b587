//! MQTT 3.1.1 over rumqttc-v4-next.

use rumqttc_v4::mqttbytes::v4::{Packet, PubAck, PubRec, SubscribeReasonCode};
use rumqttc_v4::{
    AckMode, AsyncClient, Broker, ClientError, EventLoop, LastWill, ManualAck, MqttOptions, NetworkOptions,
    PublishNotice, PublishOptions, SubscribeFilterInput, TlsConfiguration, Transport,
};

use super::socket::Socket;
use super::{
    Ack, Address, CONNECT_TIMEOUT, Connection, ECHO_TOPIC, Event, Filter, MAX_PACKET, Message, OUTGOING_IN_FLIGHT,
    Outgoing, Outlet, READ_AT_ONCE, Refused, WRITE_AT_ONCE, explain,
};

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
    options.set_max_packet_size(MAX_PACKET as usize, MAX_PACKET as usize);
    options.set_clean_session(c.clean);
    options.set_keep_alive(c.keep_alive.as_secs().clamp(1, u64::from(u16::MAX)) as u16);
    options.set_inflight(OUTGOING_IN_FLIGHT);
    options.set_read_batch_size(READ_AT_ONCE);
    options.set_max_request_batch(WRITE_AT_ONCE);
    options.set_socket_connector(|host, network| async {
        rumqttc_v4::default_socket_connect(host, network).await.map(Socket::new)
    });
    options.set_ack_mode(AckMode::Manual);
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
        options.set_last_will(LastWill::new(w.topic, w.payload, w.qos.to_wire(), w.retain));
    }
    let (client, mut eventloop) = AsyncClient::builder(options).capacity(capacity).build();
    let mut network = NetworkOptions::new();
    network.set_tcp_nodelay(true);
    network.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
    eventloop.set_network_options(network);
    (client, eventloop)
}

/// Drives one connection until it ends or nobody listens.
pub(super) async fn pump(mut eventloop: EventLoop, outlet: Outlet) {
    loop {
        let event = match eventloop.poll().await {
            Ok(rumqttc_v4::Event::Incoming(Packet::Publish(p))) => {
                Event::Message(Message::new(p.topic, p.payload, p.retain, p.dup, Ack::of(p.qos, p.pkid)))
            }
            Ok(rumqttc_v4::Event::Incoming(Packet::ConnAck(c))) => {
                Event::Connected { session_present: c.session_present, max_packet: None }
            }
            Ok(rumqttc_v4::Event::Incoming(Packet::SubAck(s))) => {
                Event::Subscribed(s.return_codes.iter().map(refusal).collect())
            }
            Ok(rumqttc_v4::Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_))) => Event::Delivered,
            Ok(rumqttc_v4::Event::Incoming(Packet::UnsubAck(_))) => Event::Echo,
            Ok(rumqttc_v4::Event::Outgoing(rumqttc_v4::Outgoing::Disconnect)) => Event::Disconnected("as asked".into()),
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
        SubscribeReasonCode::Failure => Some("refused by the broker".into()),
    }
}

pub(super) fn subscribe(client: &AsyncClient, filters: &[Filter]) -> Result<(), Refused> {
    let input = |f: &Filter| SubscribeFilterInput::new(f.topic.clone(), f.qos.to_wire());
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

pub(super) async fn deliver(client: &AsyncClient, m: Outgoing) -> Result<PublishNotice, Refused> {
    let options = PublishOptions::new(m.qos.to_wire()).retain(m.retain);
    client.publish_tracked(m.topic, m.payload, options).await.map_err(|e| refused(&e))
}

pub(super) fn ack(client: &AsyncClient, ack: &Ack) -> Result<(), Refused> {
    let packet = if ack.exactly_once {
        ManualAck::PubRec(PubRec::new(ack.packet_id))
    } else {
        ManualAck::PubAck(PubAck::new(ack.packet_id))
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
