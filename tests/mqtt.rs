//! The MQTT source and publisher against a real mosquitto: nothing is acked before it is durable,
//! nothing durable comes twice, and no broker trouble ends them.
#![allow(clippy::unwrap_used)]
#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::time::Duration;

use andon::forward::publish;
use andon::metrics::{Health, Shared};
use andon::mqtt::{self, Address, Connection, Event, Filter, Outgoing, Qos};
use andon::settings::{Document, Surroundings};
use andon::source;
use andon::types::{
    Alarm, AlarmState, Batch, Cause, Condition, Live, MachineState, Quality, Reason, RecordId, Reject, Time, Verdict,
};
use support::certificates::certificates;
use support::mosquitto::{Mosquitto, dynamic_security, free_port};
use support::peer::Peer;
use tokio::sync::{broadcast, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

mod support;

/// Longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const VERSIONS: [&str; 2] = ["3.1.1", "5"];

/// A running source, and what it delivers.
struct Source {
    shared: Shared,
    batches: mpsc::Receiver<Batch>,
    task: JoinHandle<()>,
}

fn config(text: &str, base: &std::path::Path) -> source::mqtt::Config {
    let around = Surroundings { base: base.to_owned(), credentials: None };
    let document = Document::parse(text, around);
    let config = source::Config::read(&document.root(), "test");
    let problems = document.into_problems();
    assert_eq!(problems, [], "{text}");
    config.mqtt.into_iter().next().expect("a source")
}

/// The usual source: `plant/{machine}/{signal}` with the number at `/value`.
fn text(urls: &[&str], version: &str, more: &str) -> String {
    format!(
        "[[source.mqtt]]\nname = \"shop\"\nurl = {urls:?}\nversion = \"{version}\"\n{more}\n\
         [[source.mqtt.subscribe]]\ntopic = \"plant/{{machine}}/{{signal}}\"\nvalue = \"/value\"\n"
    )
}

impl Source {
    fn start(text: &str) -> Source {
        Source::queueing(text, 16)
    }

    fn queueing(text: &str, batches: usize) -> Source {
        Source::run(config(text, std::path::Path::new("")), batches)
    }

    fn run(config: source::mqtt::Config, queue: usize) -> Source {
        let shared = Shared::new();
        let (tx, batches) = mpsc::channel(queue);
        let task = tokio::spawn(source::mqtt::run(config, shared.clone(), tx));
        Source { shared, batches, task }
    }

    async fn connected(self) -> Source {
        until("connected", || self.health().0 == Health::Up).await;
        self
    }

    fn health(&self) -> (Health, String) {
        let component = self.shared.board.components().remove("source/shop");
        component.map_or((Health::Starting, String::new()), |c| (c.health, c.detail))
    }

    async fn batch(&mut self) -> Batch {
        timeout(PATIENCE, self.batches.recv()).await.expect("a batch in time").expect("the source runs")
    }

    /// Values until there are `n` different ones, and the batches they came in.
    async fn values(&mut self, n: usize) -> (BTreeSet<i64>, Vec<Batch>) {
        let (mut values, mut batches) = (BTreeSet::new(), Vec::new());
        while values.len() < n {
            let batch = self.batch().await;
            values.extend(batch.readings.iter().map(|r| r.value as i64));
            batches.push(batch);
        }
        (values, batches)
    }

    /// The same, completing each receipt.
    async fn durable_values(&mut self, n: usize) -> BTreeSet<i64> {
        let mut values = BTreeSet::new();
        while values.len() < n {
            let batch = self.batch().await;
            values.extend(batch.readings.iter().map(|r| r.value as i64));
            complete(batch);
        }
        values
    }

    /// As a kill -9 looks to the broker.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.is_err());
    }

    async fn stop(self) {
        self.shared.stop.cancel();
        timeout(PATIENCE, self.task).await.expect("it stops").expect("without a panic");
    }
}

fn complete(batch: Batch) {
    if let Some(receipt) = batch.receipt {
        receipt.complete();
    }
}

async fn heard(broker: &Mosquitto) {
    until("the broker has the goodbye", || broker.log().contains("Client andon-test disconnected")).await;
}

async fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn plain(url: &str, client_id: &str) -> Connection {
    let mut connection = Connection::new(vec![Address::parse(url).expect("a url")], client_id);
    connection.clean = true;
    connection
}

fn open(connection: &Connection) -> mqtt::Link {
    mqtt::open(connection, &connection.urls[0], None).expect("a link")
}

/// Publishes all of it with QoS 1 and returns when the broker has it.
async fn publish(url: &str, messages: impl IntoIterator<Item = (String, String)>) {
    let address = Address::parse(url).expect("a url");
    let mut options = rumqttc::MqttOptions::new("publisher", rumqttc::Broker::tcp(address.host, address.port));
    options.set_max_packet_size(Some(1 << 20));
    options.set_outgoing_inflight_upper_limit(500);
    let (client, mut eventloop) = rumqttc::AsyncClient::builder(options).capacity(100).build();
    let pump = tokio::spawn(async move { while eventloop.poll().await.is_ok() {} });
    let mut taken = Vec::new();
    for (topic, payload) in messages {
        let qos1 = rumqttc::PublishOptions::at_least_once();
        taken.push(client.publish_tracked(topic, payload, qos1).await.expect("the publisher lives"));
    }
    for notice in taken {
        let answer = timeout(PATIENCE, notice.wait_async()).await;
        answer.expect("an answer in time").expect("the broker takes it");
    }
    pump.abort();
}

fn numbered(numbers: std::ops::Range<i64>) -> impl Iterator<Item = (String, String)> {
    numbers.map(|i| (format!("plant/press-{}/temp", i % 7), format!("{{\"value\":{i}}}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acked_before_it_is_durable() {
    for version in VERSIONS {
        let broker = Mosquitto::start();
        let text = text(&[&broker.url()], version, "");
        let mut first = Source::start(&text).connected().await;
        publish(&broker.url(), numbered(0..300)).await;
        let (values, batches) = first.values(300).await;
        assert_eq!(values, (0..300).collect());
        // Some become durable, the rest does not: then the plug is pulled.
        first.kill().await;
        drop(batches);

        let mut second = Source::start(&text).connected().await;
        assert_eq!(second.durable_values(300).await, (0..300).collect(), "all of it comes again, {version}");
        second.stop().await;

        let mut third = Source::start(&text).connected().await;
        assert!(third.health().1.contains("session resumed"), "{:?}", third.health());
        publish(&broker.url(), numbered(300..301)).await;
        let batch = third.batch().await;
        assert_eq!(
            batch.readings.iter().map(|r| r.value as i64).collect::<Vec<_>>(),
            [300],
            "nothing twice, {version}"
        );
        third.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_receipt_makes_the_broker_send_again() {
    for version in VERSIONS {
        let broker = Mosquitto::start();
        let mut source = Source::start(&text(&[&broker.url()], version, "")).connected().await;
        publish(&broker.url(), numbered(0..50)).await;
        let (_, batches) = source.values(50).await;
        drop(batches);
        assert_eq!(source.durable_values(50).await, (0..50).collect());
        source.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_once_is_acked_the_same_way() {
    for version in VERSIONS {
        let broker = Mosquitto::start();
        let text = text(&[&broker.url()], version, "") + "qos = 2\n";
        let mut first = Source::start(&text).connected().await;
        let connection = plain(&broker.url(), "publisher");
        let link = open(&connection);
        for (topic, payload) in numbered(0..100) {
            let message = Outgoing { topic, payload: payload.into(), qos: Qos::ExactlyOnce, retain: false };
            link.client.publish(&message).expect("room");
        }
        let (_, batches) = first.values(100).await;
        first.kill().await;
        drop(batches);
        let mut second = Source::start(&text).connected().await;
        assert_eq!(second.durable_values(100).await, (0..100).collect());
        publish(&broker.url(), numbered(100..200)).await;
        assert_eq!(second.durable_values(100).await, (100..200).collect());
        second.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_forgot_us_is_subscribed_anew() {
    for version in VERSIONS {
        let mut broker = Mosquitto::start();
        let mut source = Source::start(&text(&[&broker.url()], version, "")).connected().await;
        broker.kill();
        until("the loss is told", || source.health().0 == Health::Down).await;
        broker.restart();
        until("it is back", || source.health().0 == Health::Up).await;
        assert!(source.health().1.contains("session new"), "{:?}", source.health());
        publish(&broker.url(), numbered(0..3)).await;
        assert_eq!(source.durable_values(3).await, (0..3).collect());
        let metrics = source.shared.metrics.render();
        assert!(metrics.contains("andon_source_connects_total{source=\"shop\"} 2"), "{metrics}");
        assert!(metrics.contains("andon_source_connected{source=\"shop\"} 1"), "{metrics}");
        source.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_session_takes_new_subscriptions() {
    for version in VERSIONS {
        let broker = Mosquitto::start();
        let text = text(&[&broker.url()], version, "");
        Source::start(&text).connected().await.stop().await;
        let more =
            text + "[[source.mqtt.subscribe]]\ntopic = \"more/{machine}\"\npayload = \"number\"\nsignal = \"x\"\n";
        let mut source = Source::start(&more).connected().await;
        assert!(source.health().1.contains("session resumed"), "{:?}", source.health());
        publish(&broker.url(), [("more/m".to_owned(), "7".to_owned())]).await;
        assert_eq!(source.durable_values(1).await, [7].into());
        source.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_broker_takes_over() {
    let mut first = Mosquitto::start();
    let second = Mosquitto::start();
    let dead = format!("mqtt://127.0.0.1:{}", free_port());
    let urls = [dead.as_str(), &first.url(), &second.url()];
    let mut source = Source::start(&text(&urls, "5", "")).connected().await;
    assert!(source.health().1.contains(&first.url()), "{:?}", source.health());
    first.kill();
    until("the second has it", || source.health().1.starts_with(&format!("connected to {}", second.url()))).await;
    publish(&second.url(), numbered(0..3)).await;
    assert_eq!(source.durable_values(3).await, (0..3).collect());
    source.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_the_engine_is_busy() {
    for (version, inflight) in [("3.1.1", 0), ("5", 1000)] {
        let broker = Mosquitto::with(&format!(
            "allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages {inflight}\n"
        ));
        let text = text(&[&broker.url()], version, "receive_maximum = 20");
        let mut source = Source::queueing(&text, 1).connected().await;
        // Nobody takes a batch while all of this is published.
        publish(&broker.url(), numbered(0..5000)).await;
        let mut unacked = 0;
        let mut values = BTreeSet::new();
        while values.len() < 5000 {
            let batch = source.batch().await;
            unacked = unacked.max(batch.readings.len());
            values.extend(batch.readings.iter().map(|r| r.value as i64));
            complete(batch);
        }
        assert!(unacked <= 20, "{unacked} unacked");
        assert_eq!(source.shared.metrics.source_connects.get_or_create(&[("source", "shop".into())]).get(), 1);
        source.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_waits_for_what_is_under_way() {
    let broker = Mosquitto::start();
    let text = text(&[&broker.url()], "5", "");
    let mut source = Source::start(&text).connected().await;
    publish(&broker.url(), numbered(0..10)).await;
    let (_, batches) = source.values(10).await;
    source.shared.stop.cancel();
    // It cannot be over while receipts are open.
    assert!(timeout(Duration::from_millis(50), &mut source.task).await.is_err());
    batches.into_iter().for_each(complete);
    timeout(PATIENCE, source.task).await.expect("it stops").expect("without a panic");
    heard(&broker).await;
    let mut again = Source::start(&text).connected().await;
    publish(&broker.url(), numbered(10..11)).await;
    assert_eq!(again.durable_values(1).await, [10].into(), "the acks were sent before the goodbye");
    again.stop().await;
}

/// A goodbye waits for the broker to have read the acks: mosquitto throws away what it has not read when
/// a successor connects.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_acked_at_the_end_does_not_come_again() {
    for version in VERSIONS {
        let broker = Mosquitto::start();
        let text = text(&[&broker.url()], version, "");
        for round in 0..5 {
            let numbers = round * 1000..(round + 1) * 1000;
            let mut source = Source::start(&text).connected().await;
            let (url, flood) = (broker.url(), numbers.clone());
            let publishing = tokio::spawn(async move { publish(&url, numbered(flood)).await });
            let (values, batches) = source.values(1000).await;
            // Nothing of the rounds before comes again.
            assert_eq!(values, numbers.collect(), "{version}");
            publishing.await.expect("all is published");
            // All of it becomes durable at the last moment.
            source.shared.stop.cancel();
            batches.into_iter().for_each(complete);
            source.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_set_aside_and_acked() {
    let broker = Mosquitto::start();
    let text = text(&[&broker.url()], "5", "");
    let mut source = Source::start(&text).connected().await;
    let large = format!("{{\"value\":1,\"x\":\"{}\"}}", "y".repeat(300 << 10));
    let bad = [("plant/m/a", "nonsense"), ("plant//a", "{\"value\":1}"), ("plant/m/big", &large)];
    publish(&broker.url(), bad.map(|(t, p)| (t.to_owned(), p.to_owned()))).await;
    let mut rejects: Vec<Reject> = Vec::new();
    while rejects.len() < 3 {
        let mut batch = source.batch().await;
        rejects.append(&mut batch.rejects);
        complete(batch);
    }
    let told: Vec<String> = rejects.iter().map(|r| format!("{}: {}", r.origin, r.reason)).collect();
    assert_eq!(told[0], "plant/m/a: not valid JSON: expected ident at line 1 column 2");
    assert_eq!(told[1], "plant//a: the topic's \"\" cannot be the name of a machine");
    assert_eq!(told[2], format!("plant/m/big: its {} bytes are more than 262144", large.len()));
    assert!(rejects.iter().all(|r| r.payload.len() <= Reject::KEEP_BYTES));
    source.stop().await;
    let mut again = Source::start(&text).connected().await;
    publish(&broker.url(), numbered(0..1)).await;
    let batch = again.batch().await;
    assert_eq!((batch.rejects.len(), batch.readings.len()), (0, 1));
    again.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_subscription_is_told() {
    for version in VERSIONS {
        let dir = tempfile::tempdir().expect("a directory");
        let nobody = r#"{"defaultACLAccess":{"publishClientSend":true,"publishClientReceive":true,"subscribe":false,"unsubscribe":true}}"#;
        std::fs::write(dir.path().join("security.json"), nobody).expect("writing");
        let plugin = format!("plugin {}\nplugin_opt_config_file {{dir}}/security.json\n", dynamic_security().display());
        let broker = Mosquitto::within(dir, &format!("allow_anonymous true\n{plugin}"));
        let source = Source::start(&text(&[&broker.url()], version, ""));
        until("it is refused", || source.health().1.contains("refused to subscribe plant/+/+")).await;
        assert_eq!(source.health().0, Health::Down);
        source.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_told() {
    for version in VERSIONS {
        let broker = Mosquitto::with("allow_anonymous false\n");
        let more = "username = \"andon\"\npassword = \"secret-word\"";
        let source = Source::start(&text(&[&broker.url()], version, more));
        until("it is refused", || source.health().0 == Health::Down).await;
        let detail = source.health().1;
        assert!(detail.contains("refused") && !detail.contains("secret-word"), "{detail}");
        source.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_broker_had_kept_is_of_uncertain_age() {
    for version in VERSIONS {
        let broker = Mosquitto::start();
        let link = open(&plain(&broker.url(), "publisher"));
        let (topic, payload) = numbered(1..2).next().expect("one");
        let retained = Outgoing { topic, payload: payload.into(), qos: Qos::AtLeastOnce, retain: true };
        link.client.publish(&retained).expect("room");
        let mut listener = Listener::on(&broker.url()).await;
        listener.next().await;
        let mut source = Source::start(&text(&[&broker.url()], version, ""));
        let batch = source.batch().await;
        assert_eq!((batch.readings[0].quality, batch.readings[0].cause), (Quality::Uncertain, Cause::Held));
        link.client.publish(&retained).expect("room");
        let batch = source.batch().await;
        assert_eq!((batch.readings[0].quality, batch.readings[0].cause), (Quality::Good, Cause::None));
        source.kill().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_stood_still_finds_the_source_alive() {
    for version in VERSIONS {
        let broker = Mosquitto::start();
        let mut config = config(&text(&[&broker.url()], version, "receive_maximum = 20"), std::path::Path::new(""));
        config.connection.keep_alive = Duration::from_secs(1);
        let mut source = Source::run(config, 1).connected().await;
        // QoS 0 knows no receive maximum: it fills every queue up to the socket, and the socket.
        let link = open(&plain(&broker.url(), "flood"));
        let filler = format!("{{\"value\":-1,\"x\":\"{}\"}}", "y".repeat(2000));
        let topic = "plant/m/flood".to_owned();
        let flood = Outgoing { topic, payload: filler.into(), qos: Qos::AtMostOnce, retain: false };
        let given_up = || broker.log().contains("andon-test has exceeded timeout");
        until("the broker gives the silent source up", || {
            for _ in 0..200 {
                let _ = link.client.publish(&flood);
            }
            given_up()
        })
        .await;
        publish(&broker.url(), numbered(0..100)).await;
        let mut values = BTreeSet::new();
        while values.len() < 100 {
            let batch = source.batch().await;
            values.extend(batch.readings.iter().map(|r| r.value as i64).filter(|v| *v >= 0));
            complete(batch);
        }
        source.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_does_not_disturb_the_running_agent() {
    for version in VERSIONS {
        let broker = Mosquitto::start();
        let text = text(&[&broker.url()], version, "");
        let source = Source::start(&text).connected().await;
        let connection = config(&text, std::path::Path::new("")).connection;
        mqtt::probe(&connection, &connection.urls[0], &[]).await.expect("it connects");
        let dead = Address { port: free_port(), ..connection.urls[0].clone() };
        assert!(mqtt::probe(&connection, &dead, &[]).await.is_err());
        assert_eq!(source.shared.metrics.source_connects.get_or_create(&[("source", "shop".into())]).get(), 1);
        source.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_client_certificates() {
    let dir = tempfile::tempdir().expect("a directory");
    certificates(dir.path());
    let broker = Mosquitto::within(
        dir,
        "allow_anonymous true\ncafile {dir}/ca.pem\ncertfile {dir}/server.pem\nkeyfile {dir}/server.key\n\
         require_certificate true\n",
    );
    for host in ["localhost", "127.0.0.1"] {
        for version in VERSIONS {
            let url = format!("mqtts://{host}:{}", broker.port());
            let tls = "tls = { ca = \"ca.pem\", cert = \"client.pem\", key = \"client.key\" }";
            let config = config(&text(&[&url], version, tls), broker.dir());
            let mut source = Source::run(config.clone(), 16).connected().await;
            let mut link = open(&Connection { client_id: "publisher".into(), clean: true, ..config.connection });
            assert!(matches!(link.next().await, Event::Connected { .. }));
            let (topic, payload) = numbered(5..6).next().expect("one");
            link.client
                .publish(&Outgoing { topic, payload: payload.into(), qos: Qos::AtLeastOnce, retain: false })
                .expect("room");
            assert_eq!(source.durable_values(1).await, [5].into());
            source.stop().await;
        }
    }
    // A certificate that has been replaced is used without a restart, from the next connection on.
    let copy = |from: &str, to: &str| std::fs::copy(broker.dir().join(from), broker.dir().join(to)).expect("copying");
    copy("other.pem", "own.pem");
    copy("other.key", "own.key");
    let url = format!("mqtts://localhost:{}", broker.port());
    let tls = "tls = { ca = \"ca.pem\", cert = \"own.pem\", key = \"own.key\" }";
    let source = Source::run(config(&text(&[&url], "5", tls), broker.dir()), 16);
    until("it is refused", || source.health().0 == Health::Down).await;
    copy("client.key", "own.key");
    copy("client.pem", "own.pem");
    source.connected().await.stop().await;
    for (tls, reason) in [
        ("tls = { ca = \"other.pem\", cert = \"client.pem\", key = \"client.key\" }", "certificate"),
        ("tls = { ca = \"ca.pem\" }", "ertificate"),
        ("tls = { ca = \"gone.pem\" }", "gone.pem"),
    ] {
        let url = format!("mqtts://localhost:{}", broker.port());
        let source = Source::run(config(&text(&[&url], "5", tls), broker.dir()), 16);
        until("it is refused", || source.health().0 == Health::Down).await;
        assert!(source.health().1.contains(reason), "{tls}: {:?}", source.health());
        source.stop().await;
    }
}

/// What the broker has, retained and from now on.
struct Listener(mqtt::Link);

impl Listener {
    async fn on(url: &str) -> Listener {
        let mut link = open(&plain(url, "listener"));
        assert!(matches!(link.next().await, Event::Connected { .. }));
        link.client.subscribe(&[Filter { topic: "#".into(), qos: Qos::AtMostOnce }]).expect("room");
        assert!(matches!(link.next().await, Event::Subscribed(_)));
        Listener(link)
    }

    /// The next message as `topic payload`, marked when retained.
    async fn next(&mut self) -> String {
        match timeout(PATIENCE, self.0.next()).await.expect("a message in time") {
            Event::Message(m) => {
                let mark = if m.retained { "*" } else { "" };
                format!("{mark}{} {}", m.topic(), String::from_utf8_lossy(&m.payload))
            }
            other => panic!("{other:?}"),
        }
    }

    /// This many messages, sorted.
    async fn take(&mut self, n: usize) -> Vec<String> {
        let mut all = Vec::new();
        for _ in 0..n {
            all.push(self.next().await);
        }
        all.sort();
        all
    }
}

struct Publisher {
    shared: Shared,
    live: broadcast::Sender<Live>,
    task: JoinHandle<()>,
}

impl Publisher {
    fn start(url: &str, version: mqtt::Version, home_assistant: bool) -> Publisher {
        let config = publish::Config {
            source: "shop".into(),
            prefix: "andon".into(),
            home_assistant,
            format: publish::Format::Json,
            group: String::new(),
            primary_host: None,
            command_token: None,
        };
        let mut connection = plain(url, "andon-test");
        connection.version = version;
        let shared = Shared::new();
        let (live, receiver) = broadcast::channel(16);
        let task =
            tokio::spawn(publish::run(config, connection, "lyon/line3".into(), "gw".into(), shared.clone(), receiver));
        Publisher { shared, live, task }
    }

    async fn connected(self) -> Publisher {
        self.until_health(Health::Up).await;
        self
    }

    async fn until_health(&self, wanted: Health) {
        let health = || self.shared.board.components().get("publish/shop").map(|c| c.health);
        until("the publisher's health changes", || health() == Some(wanted)).await;
    }

    fn tell(&self, news: Live) {
        assert!(self.live.send(news).is_ok());
    }

    fn state(&self, why: &str) {
        self.tell(Live::State { machine: "press".into(), at: Time(0), light: MachineState::Red, why: why.into() });
    }
}

fn verdict() -> Live {
    let verdict = Verdict {
        machine: "press".into(),
        at: Time(0),
        model: "m".into(),
        model_version: "1".into(),
        model_digest: "0".into(),
        reason: Reason::NoAnomalyDetected,
        score: Some(0.5),
        p_value: None,
        threshold: 1.0,
        health: None,
        rul: None,
        class: None,
        quality: Quality::Good,
        contributions: Vec::new(),
    };
    Live::Verdict(verdict.into(), r#"{"anomaly_score":0.5,"rul":null,"diagnostics":[]}"#.into())
}

fn alarm() -> Live {
    let alarm = Alarm {
        id: RecordId([0; 16]),
        machine: "press".into(),
        condition: Condition::Anomaly,
        state: AlarmState::Unacknowledged,
        severity: 700,
        since: Time(0),
        at: Time(0),
        message: String::new(),
        top_channel: None,
        acknowledged_by: None,
        care: Default::default(),
    };
    Live::Alarm(alarm.into(), r#"{"state":"unacknowledged"}"#.into())
}

const STATE: &str = r#"{"since":"1970-01-01T00:00:00.000Z","state":"red","why":"WHY"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn dashboards_hear_what_happens_and_find_what_stands() {
    for version in [mqtt::Version::V4, mqtt::Version::V5] {
        let broker = Mosquitto::start();
        let mut listener = Listener::on(&broker.url()).await;
        let publisher = Publisher::start(&broker.url(), version, false);
        let root = "andon/lyon/line3/gw";
        assert_eq!(listener.next().await, format!("{root}/status online"));
        publisher.tell(verdict());
        publisher.tell(alarm());
        publisher.state("a");
        let state = STATE.replace("WHY", "a");
        let alarm = r#"{"state":"unacknowledged"}"#;
        assert_eq!(
            listener.take(3).await,
            [
                format!("{root}/press/alarm {alarm}"),
                format!("{root}/press/state {state}"),
                format!("{root}/press/verdict {{\"anomaly_score\":0.5}}"),
            ]
        );
        // The plug is pulled: the broker says so in our name.
        publisher.task.abort();
        assert_eq!(listener.next().await, format!("{root}/status offline"));
        let mut late = Listener::on(&broker.url()).await;
        assert_eq!(
            late.take(3).await,
            [
                format!("*{root}/press/alarm {alarm}"),
                format!("*{root}/press/state {state}"),
                format!("*{root}/status offline"),
            ]
        );
        let again = Publisher::start(&broker.url(), version, false);
        assert_eq!(late.next().await, format!("{root}/status online"));
        again.shared.stop.cancel();
        assert_eq!(late.next().await, format!("{root}/status offline"));
        timeout(PATIENCE, again.task).await.expect("it stops").expect("without a panic");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_latest_is_sent_when_the_broker_is_back() {
    let mut broker = Mosquitto::start();
    let publisher = Publisher::start(&broker.url(), mqtt::Version::V5, false).connected().await;
    broker.kill();
    publisher.until_health(Health::Down).await;
    for i in 0..10 {
        publisher.state(&i.to_string());
        publisher.tell(verdict());
        // One at a time, so that none is lost to lag.
        until("it is heard", || publisher.live.is_empty()).await;
    }
    broker.restart();
    let mut listener = Listener::on(&broker.url()).await;
    let wanted = STATE.replace("WHY", "9");
    loop {
        let heard = listener.next().await;
        assert!(!heard.contains("verdict"), "{heard}");
        if heard.contains("press/state") {
            assert!(heard.ends_with(&wanted), "{heard}");
            break;
        }
    }
    let offline = [("reason", "offline".to_owned())];
    assert_eq!(publisher.shared.metrics.publish_dropped.get_or_create(&offline).get(), 10);
    publisher.shared.stop.cancel();
    timeout(PATIENCE, publisher.task).await.expect("it stops").expect("without a panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn home_assistant_is_told_again_when_it_starts() {
    let broker = Mosquitto::start();
    let publisher = Publisher::start(&broker.url(), mqtt::Version::V5, true).connected().await;
    let mut listener = Listener::on(&broker.url()).await;
    publisher.state("x");
    let mut discovery = String::new();
    while discovery.is_empty() {
        discovery = Some(listener.next().await).filter(|m| m.starts_with("homeassistant/device")).unwrap_or_default();
    }
    assert!(discovery.starts_with("homeassistant/device/andon_gw_press/config {"), "{discovery}");
    publish(&broker.url(), [("homeassistant/status".to_owned(), "online".to_owned())]).await;
    while listener.next().await != discovery {}
    publisher.shared.stop.cancel();
    timeout(PATIENCE, publisher.task).await.expect("it stops").expect("without a panic");
}

/// A client that follows Home Assistant's documentation finds each machine and its entities right.
#[tokio::test(flavor = "multi_thread")]
async fn home_assistant_shows_what_is_published() {
    let broker = Mosquitto::start();
    let publisher = Publisher::start(&broker.url(), mqtt::Version::V5, true).connected().await;
    let mut home = Peer::start("home_assistant.py", &[&broker.port().to_string()]);
    home.says("started").await;
    publisher.state("a");
    // What it is told of a device first makes it subscribe; what is retained is then all there.
    let shown = |line: &serde_json::Value| format!("{}: {}", line["entity"].as_str().unwrap_or("?"), line["state"]);
    let mut home = Shown { home, last: Default::default(), shown };
    home.until("binary_sensor.press Problem: \"ON\"").await;
    home.until("sensor.press State: \"red\"").await;
    publisher.tell(verdict());
    publisher.tell(alarm());
    home.until("sensor.press Anomaly score: \"0.5\"").await;
    home.until("sensor.press Health: \"unknown\"").await;
    // Started anew it is told again, and finds what is retained.
    home.home.order("restart");
    home.home.says("device").await;
    home.until("binary_sensor.press Problem: \"ON\"").await;
    publisher.shared.stop.cancel();
    timeout(PATIENCE, publisher.task).await.expect("it stops").expect("without a panic");
    home.until("binary_sensor.press Problem: \"unavailable\"").await;
}

struct Shown<F> {
    home: Peer,
    last: BTreeSet<String>,
    shown: F,
}

impl<F: Fn(&serde_json::Value) -> String> Shown<F> {
    /// Reads on until an entity is shown like this.
    async fn until(&mut self, wanted: &str) {
        while !self.last.remove(wanted) {
            let line = self.home.next().await;
            assert!(line.get("problem").is_none(), "{line}");
            if line.get("entity").is_some() {
                self.last.insert((self.shown)(&line));
            }
        }
    }
}
