//! Publishes with QoS 1, in order, and knows what the broker has.

use std::time::Duration;

use andon::mqtt::Address;
use tokio::time::timeout;

/// How long the broker may take for one message.
const PATIENCE: Duration = Duration::from_secs(60);
/// Messages under way without an answer.
const IN_FLIGHT: u16 = 500;

/// Publishes all of it; returns when the broker has it.
pub async fn publish<P: Into<Vec<u8>>>(url: &str, messages: impl IntoIterator<Item = (String, P)>) {
    let address = Address::parse(url).expect("a url");
    let id = format!("publisher-{:08x}", fastrand::u32(..));
    let mut options = rumqttc::MqttOptions::new(id, rumqttc::Broker::tcp(address.host, address.port));
    options.set_max_packet_size(Some(4 << 20));
    options.set_outgoing_inflight_upper_limit(IN_FLIGHT);
    let (client, mut eventloop) = rumqttc::AsyncClient::builder(options).capacity(100).build();
    let pump = tokio::spawn(async move { while eventloop.poll().await.is_ok() {} });
    let mut taken = std::collections::VecDeque::new();
    for (topic, payload) in messages {
        let qos1 = rumqttc::PublishOptions::at_least_once();
        taken.push_back(client.publish_tracked(topic, payload.into(), qos1).await.expect("the publisher lives"));
        if taken.len() > 2 * usize::from(IN_FLIGHT) {
            settled(taken.pop_front().expect("one")).await;
        }
    }
    for notice in taken {
        settled(notice).await;
    }
    pump.abort();
}

async fn settled(notice: rumqttc::PublishNotice) {
    let answer = timeout(PATIENCE, notice.wait_async()).await;
    answer.expect("an answer in time").expect("the broker takes it");
}
