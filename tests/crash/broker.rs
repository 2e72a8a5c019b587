//! The broker and the agent are killed in turn while numbered messages of QoS 1 and 2 come in: none is
//! lost and none has two verdicts.
//!
//! mosquitto acknowledges what it has only in memory, and forgets that when it is killed: measured, an
//! autosave every second would lose up to a second. So that what is tested is ours and not its loss, the
//! publisher here keeps each block of messages until the broker has saved it (SIGUSR1 makes it save) and
//! sends the whole block again otherwise. What the broker forgets besides, our acks, makes it send again
//! what is long durable.
//!
//! A mosquitto that was killed also delivers out of order: new messages overtake what it had queued. What
//! is overtaken for longer than `lateness` would be late, told by a gap record and not judged, so the
//! machines here wait.

use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use andon::mqtt::Address;
use andon::simulator::cloud::{Cloud, Options};
use tokio::time::{sleep, timeout};

use super::agent::{CONFIG, Taken, Work, wait_for_all};
use super::setting;
use super::support::daemon::{Daemon, PATIENCE, until};
use super::support::mosquitto::Mosquitto;

/// Messages that the publisher keeps until the broker has saved them.
const BLOCK: usize = 500;
/// How long the broker may take for a block or a save before the publisher tries anew.
const TRY: Duration = Duration::from_secs(10);

type Shared = Arc<Mutex<Mosquitto>>;

fn lock(broker: &Shared) -> std::sync::MutexGuard<'_, Mosquitto> {
    broker.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What tells one saved state from another.
fn saved_state(broker: &Shared) -> Option<(u64, i64, i64)> {
    let file = lock(broker).dir().join("mosquitto.db");
    std::fs::metadata(file).ok().map(|m| (m.ino(), m.mtime(), m.mtime_nsec()))
}

/// Makes the broker save; `false` when it died over it.
async fn save(broker: &Shared) -> bool {
    let before = saved_state(broker);
    let Some(pid) = lock(broker).pid() else { return false };
    let process = rustix::process::Pid::from_raw(pid as i32).expect("a process");
    // Still ours: it is only replaced under the lock, and not reaped before.
    if lock(broker).pid() != Some(pid) || rustix::process::kill_process(process, rustix::process::Signal::USR1).is_err()
    {
        return false;
    }
    let deadline = Instant::now() + TRY;
    while saved_state(broker) == before {
        if Instant::now() > deadline || lock(broker).pid() != Some(pid) {
            return false;
        }
        sleep(Duration::from_millis(2)).await;
    }
    // Begun before a kill and done is done; but it has to be this broker's.
    lock(broker).pid() == Some(pid)
}

/// Publishes a block, every other message with QoS 2; `false` when the connection broke.
async fn publish(url: &str, block: &[(String, String)]) -> bool {
    let address = Address::parse(url).expect("a url");
    let id = format!("publisher-{:08x}", fastrand::u32(..));
    let mut options = rumqttc::MqttOptions::new(id, rumqttc::Broker::tcp(address.host, address.port));
    options.set_outgoing_inflight_upper_limit(200);
    let (client, mut eventloop) = rumqttc::AsyncClient::builder(options).capacity(BLOCK).build();
    let pump = tokio::spawn(async move { while eventloop.poll().await.is_ok() {} });
    let all = async {
        let mut under_way = Vec::new();
        for (i, (topic, payload)) in block.iter().enumerate() {
            let options = if i % 2 == 0 {
                rumqttc::PublishOptions::at_least_once()
            } else {
                rumqttc::PublishOptions::exactly_once()
            };
            under_way.push(client.publish_tracked(topic.clone(), payload.clone(), options).await.ok()?);
        }
        for notice in under_way {
            notice.wait_async().await.ok()?;
        }
        Some(())
    };
    let done = timeout(TRY, all).await;
    pump.abort();
    matches!(done, Ok(Some(())))
}

/// Publishes all of it; how many blocks were sent again.
async fn publish_all(broker: Shared, work: Work) -> usize {
    let url = lock(&broker).url();
    let all: Vec<(String, String)> = work.all().collect();
    let mut again = 0;
    for block in all.chunks(BLOCK) {
        while !(publish(&url, block).await && save(&broker).await) {
            again += 1;
            sleep(Duration::from_millis(20)).await;
        }
    }
    again
}

/// Waits until the cloud has so many records, as long as any come at all.
fn reached(cloud: &Cloud, moment: u64) {
    let (mut seen, mut moved) = (0, Instant::now());
    while seen < moment {
        let now = cloud.stats().distinct;
        if now > seen {
            (seen, moved) = (now, Instant::now());
        }
        assert!(moved.elapsed() < PATIENCE, "nothing has come to the cloud for {PATIENCE:?}: {seen} of {moment}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How long machines wait for what was overtaken, in ms: the longer the work, the further the agent may be
/// behind the publisher.
fn lateness(work: Work) -> u64 {
    (work.per_machine * 100 / 8).min(40_000)
}

/// Takes turns in killing them, at moments spread over the work.
fn torment(broker: &Shared, daemon: &mut Daemon, cloud: &Cloud, work: Work, kills: usize) -> f64 {
    let mut random = fastrand::Rng::with_seed(setting("ANDON_CRASH_SEED", 7));
    let mut known = 0.0;
    let mut moments: Vec<u64> = (0..kills).map(|_| random.u64(1..work.messages() * 9 / 10)).collect();
    moments.sort_unstable();
    for (i, moment) in moments.into_iter().enumerate() {
        reached(cloud, moment);
        std::thread::sleep(Duration::from_millis(random.u64(0..60)));
        if i % 2 == 0 {
            lock(broker).kill();
            std::thread::sleep(Duration::from_millis(random.u64(0..200)));
            lock(broker).restart();
        } else {
            known += daemon.metric("andon_readings_dropped_total", "duplicate");
            daemon.kill9();
            daemon.start_ready();
        }
    }
    known
}

#[tokio::test(flavor = "multi_thread")]
async fn broker_and_agent_killed_in_turn_lose_nothing() {
    let work = Work::of(setting("ANDON_CRASH_BROKER_MESSAGES", 10_000), 50, 100);
    let kills = setting("ANDON_CRASH_BROKER_KILLS", 6) as usize;
    let begun = Instant::now();
    let conf = "allow_anonymous true\nmax_queued_messages 0\nmax_inflight_messages 1000\nautosave_interval 0\n";
    let broker: Shared = Arc::new(Mutex::new(Mosquitto::with(conf)));
    let log = tempfile::NamedTempFile::new().expect("a file");
    let options = Options { log: Some(log.path().to_owned()), ..Options::default() };
    let cloud = Cloud::start(([127, 0, 0, 1], 0).into(), options).await.expect("a port");
    let config = CONFIG
        .replace("qos = 1", "qos = 2")
        .replace("rate = \"@RATE@\"", &format!("rate = \"100ms\"\nlateness = \"{}ms\"", lateness(work)))
        .replace("@BROKER@", &lock(&broker).url())
        .replace("@CLOUD@", &cloud.url());
    let mut daemon = Daemon::new(&config).ready();
    until("it has subscribed", || daemon.component("source/shop").0 == "up");
    // From here on the broker knows of the session, whatever happens to it.
    assert!(save(&broker).await, "the broker saves");
    let publishing = tokio::spawn(publish_all(broker.clone(), work));
    let known = torment(&broker, &mut daemon, &cloud, work, kills);
    let again = timeout(PATIENCE * 60, publishing).await.expect("it ends").expect("all is published");
    assert!(wait_for_all(&daemon, &cloud, work), "the cloud has {:?}\n{}", cloud.stats(), daemon.status());
    let known = known + daemon.metric("andon_readings_dropped_total", "duplicate");
    let late = daemon.metric("andon_readings_dropped_total", "late");
    assert!(daemon.terminate().success(), "{}", daemon.log());
    let stats = cloud.stats();
    cloud.stop().await;
    let taken = Taken::read(log.path());
    println!(
        "{} messages, {kills} kills in turn, {:.1} s: {} verdicts, {again} blocks of {BLOCK} sent again by the \
         publisher; {known} messages came again and were known, {late} too late to be; {} records came more than \
         once to the cloud",
        work.messages(),
        begun.elapsed().as_secs_f64(),
        taken.count("verdict"),
        stats.duplicates,
    );
    taken.check(work);
}
