//! A plant of devices that publish several times a second, with faults that can be switched on, and what is true
//! of them: which readings the broker has taken, and which of those anybody could use.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use andon::mqtt::Address;
use andon::types::Time;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::daemon::repository;

/// An unknown clock is followed no sooner than after so long a steady offset (docs/machine-state.md).
const FOLLOWED_AFTER: Duration = Duration::from_secs(2);
/// The grid may be behind by so much.
const CAUGHT_UP: Duration = Duration::from_secs(5);
/// Nothing for so long is a pause.
const PAUSE: Duration = Duration::from_millis(1_500);
/// Values from here on are out of any range.
const OUT_OF_RANGE: f64 = 1e6;
/// Distances between readings that are remembered.
const MEMORY: usize = 7;
/// How often devices are asked whether they have something to say.
const TICK: Duration = Duration::from_millis(20);

/// What a device's clock shows.
#[derive(Copy, Clone, Debug, PartialEq)]
pub enum Clock {
    Right,
    /// Off by so many milliseconds.
    Off(i64),
    /// It stands still at this Unix time (ms).
    Stands(i64),
    /// It passes at this rate, from a Unix time (ms) on.
    Slow(f64, i64),
    /// Its milliseconds are taken for microseconds: the `time_format` is wrong.
    Milliseconds,
}

/// One channel: its name, mean and standard deviation.
pub type Channel = (String, f64, f64);

/// One device, which is one machine.
#[derive(Clone)]
pub struct Device {
    pub topic: String,
    /// Which of the plant's brokers it publishes to.
    pub broker: usize,
    pub pace: Duration,
    pub channels: Vec<Channel>,
    /// Whether its messages carry a time.
    pub timed: bool,
    /// Whether the agent follows its clock.
    pub followed: bool,
    pub speaks: bool,
    pub clock: Clock,
    clock_since: Instant,
    /// A channel that is left out.
    pub mute: Option<String>,
    pub garbage: bool,
    /// One channel is twenty standard deviations off.
    pub anomalous: bool,
    /// Values that are given in place of the usual ones.
    pub fixed: BTreeMap<String, f64>,
    last_sent: Option<Instant>,
    pub truth: Truth,
}

/// What is true of a device.
#[derive(Clone, Default)]
pub struct Truth {
    /// When the broker took the last reading of all channels that could be used.
    pub usable: Option<Instant>,
    /// Since when all that could be used has been anomalous.
    pub anomalous_since: Option<Instant>,
    /// Since when usable readings have come without a pause, and how often that began.
    pub flowing_since: Option<Instant>,
    pub flows: u32,
    distances: VecDeque<Duration>,
}

impl Truth {
    fn note(&mut self, now: Instant, anomalous: bool) {
        if let Some(before) = self.usable {
            if self.distances.len() == MEMORY {
                self.distances.pop_front();
            }
            self.distances.push_back(now.duration_since(before));
        }
        if self.usable.is_none_or(|before| now.duration_since(before) > PAUSE) {
            (self.flowing_since, self.flows) = (Some(now), self.flows + 1);
        }
        self.usable = Some(now);
        self.anomalous_since = if anomalous { self.anomalous_since.or(Some(now)) } else { None };
    }

    /// The median of the last distances between usable readings.
    pub fn pace(&self) -> Duration {
        let mut sorted: Vec<Duration> = self.distances.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }
}

impl Device {
    pub fn new(topic: &str, channels: &[Channel]) -> Device {
        Device {
            topic: topic.to_owned(),
            broker: 0,
            pace: Duration::from_millis(100),
            channels: channels.to_vec(),
            timed: true,
            followed: true,
            speaks: true,
            clock: Clock::Right,
            clock_since: Instant::now(),
            mute: None,
            garbage: false,
            anomalous: false,
            fixed: BTreeMap::new(),
            last_sent: None,
            truth: Truth::default(),
        }
    }

    pub fn set_clock(&mut self, clock: Clock) {
        (self.clock, self.clock_since) = (clock, Instant::now());
    }

    /// All faults end.
    pub fn heal(&mut self) {
        (self.speaks, self.mute, self.garbage, self.anomalous) = (true, None, false, false);
        if self.clock != Clock::Right {
            self.set_clock(Clock::Right);
        }
    }

    /// Whether what it says now can be used by anybody. Where it depends, it can.
    fn is_usable(&self) -> bool {
        let elapsed = self.clock_since.elapsed();
        let steady = self.followed && elapsed >= FOLLOWED_AFTER;
        let clock = match self.clock {
            _ if !self.timed => true,
            Clock::Right => true,
            Clock::Off(0..60_000) | Clock::Slow(..) => true,
            // Behind by a while, it is late until it has caught up with what was closed.
            Clock::Off(by) if by < 0 => {
                steady || elapsed >= Duration::from_millis(by.unsigned_abs()).saturating_sub(CAUGHT_UP)
            }
            Clock::Off(_) | Clock::Stands(_) => steady,
            Clock::Milliseconds => false,
        };
        let out_of_range = self.fixed.values().any(|v| *v >= OUT_OF_RANGE);
        clock && !self.garbage && self.mute.is_none() && !out_of_range
    }

    /// What it says at this Unix time (ms).
    pub fn payload(&self, now: i64) -> String {
        if self.garbage {
            return "{\"oops\": [1, 2,".to_owned();
        }
        let mut out = serde_json::Map::new();
        for (i, (name, mean, deviation)) in self.channels.iter().enumerate() {
            let off = if self.anomalous && i == self.channels.len().min(4) - 1 { 20.0 } else { 0.0 };
            let value = mean + deviation * (0.1 * (fastrand::f64() - 0.5) + off);
            if self.mute.as_ref() != Some(name) {
                out.insert(name.clone(), json!(self.fixed.get(name).copied().unwrap_or(value)));
            }
        }
        for (name, value) in &self.fixed {
            out.insert(name.clone(), json!(value));
        }
        if self.timed {
            out.insert("ts".into(), json!(self.shown_time(now)));
        }
        Value::Object(out).to_string()
    }

    /// In microseconds; `now` in milliseconds.
    fn shown_time(&self, now: i64) -> i64 {
        match self.clock {
            Clock::Right => now * 1000,
            Clock::Off(by) => (now + by) * 1000,
            Clock::Stands(at) => at * 1000,
            Clock::Slow(rate, from) => from * 1000 + ((now - from) as f64 * 1000.0 * rate) as i64,
            Clock::Milliseconds => now,
        }
    }
}

/// The Unix time in milliseconds.
pub fn now_ms() -> i64 {
    Time::now().0 / 1_000_000
}

/// The channels of a bundle of this repository.
pub fn channels(bundle: &str) -> Vec<Channel> {
    let manifest = std::fs::read(repository(bundle).join("model.json")).expect("a manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let all = manifest["channels"].as_array().expect("channels").iter();
    let number = |c: &Value, key: &str| c[key].as_f64().expect("a number");
    all.map(|c| (c["name"].as_str().expect("a name").into(), number(c, "mean"), number(c, "std"))).collect()
}

/// All devices of a test; they publish until it is dropped.
pub struct Plant {
    devices: Arc<Mutex<BTreeMap<String, Device>>>,
    publishers: Vec<JoinHandle<()>>,
}

impl Plant {
    /// Devices by the name of their machine, and the brokers they publish to.
    pub fn start(brokers: &[String], devices: impl IntoIterator<Item = (String, Device)>) -> Plant {
        let devices = Arc::new(Mutex::new(devices.into_iter().collect()));
        let publisher = |(i, url): (usize, &String)| tokio::spawn(publish_from(url.clone(), i, Arc::clone(&devices)));
        let publishers = brokers.iter().enumerate().map(publisher).collect();
        Plant { devices, publishers }
    }

    pub fn all(&self) -> MutexGuard<'_, BTreeMap<String, Device>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes one device.
    pub fn change(&self, machine: &str, change: impl FnOnce(&mut Device)) {
        change(self.all().get_mut(machine).expect("a device"));
    }

    pub fn truth(&self, machine: &str) -> Truth {
        self.all()[machine].truth.clone()
    }
}

impl Drop for Plant {
    fn drop(&mut self) {
        self.publishers.iter().for_each(JoinHandle::abort);
    }
}

struct Message {
    machine: String,
    topic: String,
    payload: String,
    usable: bool,
    anomalous: bool,
}

fn due(devices: &Mutex<BTreeMap<String, Device>>, broker: usize) -> Vec<Message> {
    let (now, ms) = (Instant::now(), now_ms());
    let mut all = devices.lock().unwrap_or_else(PoisonError::into_inner);
    let is_due = |d: &Device| d.last_sent.is_none_or(|at| now.duration_since(at) + TICK / 2 >= d.pace);
    let mut out = Vec::new();
    for (machine, d) in all.iter_mut().filter(|(_, d)| d.broker == broker && d.speaks) {
        if is_due(d) {
            d.last_sent = Some(now);
            let (usable, anomalous) = (d.is_usable(), d.anomalous);
            out.push(Message {
                machine: machine.clone(),
                topic: d.topic.clone(),
                payload: d.payload(ms),
                usable,
                anomalous,
            });
        }
    }
    out
}

/// Publishes what is due. What the broker does not take is lost, as with a device that keeps nothing.
async fn publish_from(url: String, broker: usize, devices: Arc<Mutex<BTreeMap<String, Device>>>) {
    let address = Address::parse(&url).expect("a url");
    loop {
        let id = format!("device-{:08x}", fastrand::u32(..));
        let options = rumqttc::MqttOptions::new(id, rumqttc::Broker::tcp(address.host.clone(), address.port));
        let (client, mut eventloop) = rumqttc::AsyncClient::builder(options).capacity(500).build();
        let connection = tokio::spawn(async move { while eventloop.poll().await.is_ok() {} });
        let mut tick = tokio::time::interval(TICK);
        while !connection.is_finished() {
            tick.tick().await;
            for message in due(&devices, broker) {
                let qos1 = rumqttc::PublishOptions::at_least_once();
                let Ok(notice) = client.try_publish_tracked(message.topic.clone(), message.payload.clone(), qos1)
                else {
                    continue;
                };
                let devices = Arc::clone(&devices);
                tokio::spawn(async move {
                    if notice.wait_async().await.is_ok() && message.usable {
                        let mut all = devices.lock().unwrap_or_else(PoisonError::into_inner);
                        let device = all.get_mut(&message.machine).expect("a device");
                        device.truth.note(Instant::now(), message.anomalous);
                    }
                });
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
