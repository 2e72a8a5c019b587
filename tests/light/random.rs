//! Random faults of devices, brokers, clocks, payloads, reloads and kills, against a plant that knows the truth.
//! Checked five times a second: green implies that usable readings were published within the documented bound, and
//! that no anomaly has been published for longer than it takes to notice.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::modbus::Pymodbus;
use crate::plant::{Clock, Device, Plant, channels, now_ms};
use crate::rig::{lights, set_register};
use crate::setting;
use crate::support::daemon::{Daemon, until};
use crate::support::mosquitto::Mosquitto;

const POLL: Duration = Duration::from_millis(200);
/// What asking, being scheduled and being delivered may take together.
const SLACK: Duration = Duration::from_millis(1_500);
/// Runs beside each other.
const TOGETHER: u64 = 3;
/// Silence that is tolerated is rounded up to one of these (s).
const LADDER: [u64; 8] = [1, 2, 3, 5, 10, 20, 30, 60];
const OFFSETS: [i64; 6] = [-3_600_000, -50_000, 120_000, 40_000, 3_600_000, -3_000];
/// Grids (ms) that reloads choose from.
const RATES: [u64; 4] = [100, 200, 500, 100];

const HEAD: &str = r#"
[agent]
site = "test"
id = "gw"
data_dir = "@DIR@/data"
models_dir = "@DIR@/models"
[[source.mqtt]]
name = "shop"
url = "@SHOP@"
[[source.mqtt.subscribe]]
topic = "follow/{machine}"
time = "/ts"
time_format = "unix_us"
[[source.mqtt.subscribe]]
topic = "device/{machine}"
time = "/ts"
time_format = "unix_us"
clock = "device"
[[source.mqtt.subscribe]]
topic = "copy/{machine}"
[[source.mqtt]]
name = "old"
url = "@OLD@"
[[source.mqtt.subscribe]]
topic = "plain/{machine}"
[[source.modbus]]
name = "plc"
url = "tcp://@PLC@"
poll = "100ms"
timeout = "500ms"
machine = "plc"
[[source.modbus.signal]]
name = "count"
at = "holding:3000"
type = "u16"
[[machine]]
match = "pump"
model = "pump-anomaly"
[web]
listen = "@WEB@"
"#;

/// How one machine is configured.
#[derive(Copy, Clone, Debug)]
struct Block {
    rate: u64,
    model: bool,
    /// Since when.
    since: Instant,
}

/// What is true of a machine.
struct Known {
    /// When a usable reading was published last.
    usable: Option<Instant>,
    /// Since when all of them have been anomalous.
    anomalous_since: Option<Instant>,
    pace: Duration,
}

/// The truth of the Modbus device.
#[derive(Clone, Copy)]
struct Device502 {
    answers: bool,
    last_answer: Instant,
    anomalous_since: Option<Instant>,
}

struct Run {
    random: fastrand::Rng,
    daemon: Daemon,
    shop: Mosquitto,
    old: Mosquitto,
    plc: Pymodbus,
    plant: Plant,
    blocks: BTreeMap<&'static str, Block>,
    device: Device502,
    text: String,
    down_until: [Option<Instant>; 2],
    /// When the agent was last started after a kill -9.
    killed: Option<Instant>,
    history: Vec<String>,
    begun: Instant,
    checks: u64,
    greens: u64,
}

const JUDGED_BY_ONE: [&str; 4] = ["press", "saw", "mill", "plc"];

impl Run {
    fn start(seed: u64) -> Run {
        let (shop, old, plc) = (Mosquitto::with(QUIET), Mosquitto::with(QUIET), Pymodbus::start());
        set_register(plc.address, 3000, 0);
        let text = HEAD.replace("@SHOP@", &shop.url()).replace("@OLD@", &old.url());
        let text = text.replace("@PLC@", &plc.address.to_string());
        let block = Block { rate: 100, model: true, since: Instant::now() };
        let blocks: BTreeMap<_, _> = JUDGED_BY_ONE.map(|m| (m, block)).into();
        let mut daemon = Daemon::new(&config(&text, &blocks));
        super::everywhere::copy_models(&daemon);
        daemon.start_ready();
        let one = channels("tests/data/one-step");
        let device = |topic: &str, followed: bool, broker: usize, timed: bool| {
            let mut d = Device::new(topic, &one);
            (d.followed, d.broker, d.timed) = (followed, broker, timed);
            d
        };
        let mut copy = device("copy/press", true, 0, false);
        copy.speaks = false;
        // The mean of this and an anomaly is normal.
        copy.fixed.insert("count".into(), -20.0);
        let plant = Plant::start(
            &[shop.url(), old.url()],
            [
                ("pump".to_owned(), Device::new("follow/pump", &channels("models/pump-anomaly"))),
                ("press".to_owned(), device("follow/press", true, 0, true)),
                ("copy of press".to_owned(), copy),
                ("saw".to_owned(), device("device/saw", false, 0, true)),
                ("mill".to_owned(), device("plain/mill", true, 1, false)),
            ],
        );
        let device = Device502 { answers: true, last_answer: Instant::now(), anomalous_since: None };
        Run {
            random: fastrand::Rng::with_seed(seed),
            daemon,
            shop,
            old,
            plc,
            plant,
            blocks,
            device,
            text,
            down_until: [None; 2],
            killed: None,
            history: Vec::new(),
            begun: Instant::now(),
            checks: 0,
            greens: 0,
        }
    }

    fn told(&mut self, what: String) {
        self.history.push(format!("{:6.2} s {what}", self.begun.elapsed().as_secs_f64()));
    }

    /// What is true of a machine now.
    fn truth(&self, machine: &str) -> Known {
        if machine == "plc" {
            let at = if self.device.answers { Instant::now() } else { self.device.last_answer };
            let anomalous_since = self.device.anomalous_since;
            return Known { usable: Some(at), anomalous_since, pace: Duration::from_millis(100) };
        }
        let own = self.plant.truth(machine);
        let known = Known { usable: own.usable, anomalous_since: own.anomalous_since, pace: own.pace() };
        if machine != "press" {
            return known;
        }
        let copy = self.plant.truth("copy of press");
        // The first origin wins, and the other one takes over where the first is silent.
        let first = own.flowing_since.max(self.killed);
        let is_own = copy.flows == 0 || copy.flows == 1 && first < copy.flowing_since;
        Known {
            usable: known.usable.max(copy.usable),
            anomalous_since: known.anomalous_since.filter(|_| is_own),
            pace: known.pace.max(copy.pace()),
        }
    }

    /// Holds what is shown against the truth.
    fn check(&mut self) {
        let asked = Instant::now();
        let Some(shown) = lights(&self.daemon) else { return };
        // What came while it answered counts for it.
        let truths = ["pump", "press", "saw", "mill", "plc"].map(|m| (m, self.truth(m)));
        for (machine, Known { usable, anomalous_since, pace }) in truths {
            let Some(light) = shown.get(machine) else { continue };
            self.checks += 1;
            if light != "green" {
                continue;
            }
            self.greens += 1;
            let block = self.blocks.get(machine).copied();
            let rate = Duration::from_millis(block.map_or(100, |b| b.rate));
            let fail = |what: String| {
                let (light, why) = crate::rig::stands(&self.daemon, machine);
                panic!("{machine} is green: {what}; now {light} {why:?}\n{}", self.history.join("\n"));
            };
            if block.is_some_and(|b| !b.model && asked.saturating_duration_since(b.since) > SLACK) {
                fail("no model is bound".into());
            }
            let Some(usable) = usable else { return fail("nothing usable was ever published".into()) };
            let silence = tolerated(5 * pace, (5 * rate).max(Duration::from_secs(2)));
            let age = asked.saturating_duration_since(usable);
            if age > silence + SLACK {
                fail(format!("the last usable reading was published {age:?} ago, {silence:?} are tolerated"));
            }
            // Window, on_delay of 0 and lateness; the pump's window is 32 steps.
            let window = if machine == "pump" { 36 * rate } else { 2 * rate };
            let noticed = window + (2 * rate).max(Duration::from_millis(200)) + SLACK;
            let since = anomalous_since.map(|since| block.map_or(since, |b| since.max(b.since)));
            if since
                .is_some_and(|since| asked.saturating_duration_since(since) > noticed && age < Duration::from_secs(1))
            {
                fail(format!(
                    "an anomaly has been published for {:?}",
                    asked.saturating_duration_since(since.unwrap())
                ));
            }
        }
    }

    fn fault(&mut self) {
        const MACHINES: [&str; 4] = ["pump", "press", "saw", "mill"];
        let machine = MACHINES[self.random.usize(..4)];
        let offset = OFFSETS[self.random.usize(..OFFSETS.len())];
        let kind = self.random.u8(..20);
        match kind {
            0 | 1 => {
                self.plant.change(machine, |d| d.speaks = !d.speaks);
                self.told(format!("{machine} speaks or not"));
            }
            2 | 3 => {
                self.plant.change(machine, |d| d.set_clock(Clock::Off(offset)));
                self.told(format!("{machine}'s clock is off by {offset} ms"));
            }
            4 => {
                self.plant.change(machine, |d| d.set_clock(Clock::Stands(now_ms())));
                self.told(format!("{machine}'s clock stands"));
            }
            5 => {
                self.plant.change(machine, |d| d.set_clock(Clock::Milliseconds));
                self.told(format!("{machine}'s time format is wrong"));
            }
            6 => {
                self.plant.change(machine, |d| d.garbage = !d.garbage);
                self.told(format!("{machine} sends garbage or not"));
            }
            7 => {
                self.plant.change("pump", |d| d.mute = d.mute.is_none().then(|| "flow".into()));
                self.told("the pump's flow is left out or not".into());
            }
            8 => {
                self.plant.change("copy of press", |d| d.speaks = !d.speaks);
                self.told("a copy of press speaks or not".into());
                if self.random.bool() {
                    self.anomaly("press");
                }
            }
            9..=11 => self.anomaly(machine),
            12 => self.device_away(),
            13 => {
                let i = self.random.usize(..2);
                self.broker_away(i);
            }
            14 => self.reload(),
            15 => self.kill(),
            _ => {
                self.plant.all().values_mut().for_each(Device::heal);
                self.plant.change("copy of press", |d| d.speaks = false);
                self.told("all devices are well".into());
            }
        }
    }

    fn anomaly(&mut self, machine: &str) {
        if machine != "mill" || self.random.bool() {
            self.plant.change(machine, |d| d.anomalous = !d.anomalous);
            self.told(format!("{machine} is anomalous or not"));
        } else if self.device.answers {
            let on = self.device.anomalous_since.is_none();
            set_register(self.plc.address, 3000, if on { 20 } else { 0 });
            self.device.anomalous_since = on.then(Instant::now);
            self.told(format!("plc is anomalous: {on}"));
        }
    }

    fn device_away(&mut self) {
        self.device.answers = !self.device.answers;
        if self.device.answers {
            self.plc.thaw();
            // It may be asked again only after a pause.
            self.device.anomalous_since = self.device.anomalous_since.map(|_| Instant::now() + Duration::from_secs(60));
        } else {
            self.plc.freeze();
            self.device.last_answer = Instant::now();
        }
        self.told(format!("plc answers: {}", self.device.answers));
    }

    fn broker_away(&mut self, i: usize) {
        if self.down_until[i].is_some() {
            return;
        }
        [&mut self.shop, &mut self.old][i].kill();
        self.down_until[i] = Some(Instant::now() + Duration::from_millis(self.random.u64(200..6_000)));
        self.told(format!("broker {i} is away"));
    }

    fn brokers_back(&mut self) {
        for i in 0..2 {
            if self.down_until[i].is_some_and(|at| at <= Instant::now()) {
                [&mut self.shop, &mut self.old][i].restart();
                self.down_until[i] = None;
                self.told(format!("broker {i} is back"));
            }
        }
    }

    fn reload(&mut self) {
        let machine = JUDGED_BY_ONE[self.random.usize(..4)];
        let rate = RATES[self.random.usize(..4)];
        let model = self.random.u8(..4) > 0;
        let before = self.daemon.times_told("READY=1");
        self.blocks.insert(machine, Block { rate, model, since: Instant::now() });
        self.daemon.configure(&config(&self.text, &self.blocks));
        self.daemon.hang_up();
        until("it has read its config again", || self.daemon.times_told("READY=1") > before);
        self.blocks.insert(machine, Block { rate, model, since: Instant::now() });
        self.told(format!("{machine} is put on {rate} ms, judged: {model}"));
    }

    fn kill(&mut self) {
        self.daemon.kill9();
        self.told("kill -9".into());
        self.daemon.start_ready();
        self.told("started again".into());
        self.killed = Some(Instant::now() + Duration::from_secs(3));
        self.blocks.values_mut().for_each(|b| b.since = Instant::now());
    }

    fn run(&mut self, length: Duration) {
        let mut next = Instant::now() + Duration::from_secs(3);
        while self.begun.elapsed() < length {
            std::thread::sleep(POLL);
            self.brokers_back();
            if Instant::now() > next {
                self.fault();
                next = Instant::now() + Duration::from_millis(self.random.u64(300..2_500));
            }
            self.check();
        }
    }
}

const QUIET: &str = "allow_anonymous true\nmax_queued_messages 0\nlog_type error\n";

fn config(text: &str, blocks: &BTreeMap<&'static str, Block>) -> String {
    let block = |(machine, b): (&&str, &Block)| {
        let model = if b.model { "model = \"one-step\"\n" } else { "" };
        let alarm = "[machine.alarm]\nthreshold = 5\non_delay = \"0s\"\noff_delay = \"0s\"\n";
        let alarm = if b.model { alarm } else { "" };
        format!("[[machine]]\nmatch = \"{machine}\"\n{model}rate = \"{}ms\"\n{alarm}", b.rate)
    };
    text.to_owned() + &blocks.iter().map(block).collect::<String>()
}

/// The silence that is tolerated at this pace.
fn tolerated(wanted: Duration, least: Duration) -> Duration {
    if wanted <= least {
        return least;
    }
    LADDER.iter().map(|s| Duration::from_secs(*s)).find(|s| *s >= wanted).unwrap_or(wanted).max(least)
}

/// The seeds one after the other, some beside each other.
#[test]
fn green_is_never_shown_without_reason() {
    let (first, runs) = (setting("ANDON_LIGHT_SEED", 1), setting("ANDON_LIGHT_RUNS", 2));
    let length = Duration::from_secs(setting("ANDON_LIGHT_SECONDS", 20));
    let next = Arc::new(AtomicU64::new(first));
    let failed = Arc::new(Mutex::new(Vec::new()));
    let totals = Arc::new([const { AtomicU64::new(0) }; 2]);
    let worker = || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let _entered = runtime.enter();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + runs {
                return;
            }
            let ended = std::panic::catch_unwind(|| {
                let mut run = Run::start(seed);
                run.run(length);
                (run.checks, run.greens)
            });
            match ended {
                Ok((checks, greens)) => {
                    println!("seed {seed}: {checks} looks, {greens} of them green");
                    totals[0].fetch_add(checks, Ordering::Relaxed);
                    totals[1].fetch_add(greens, Ordering::Relaxed);
                }
                Err(_) => failed.lock().unwrap_or_else(PoisonError::into_inner).push(seed),
            }
        }
    };
    std::thread::scope(|scope| (0..TOGETHER.min(runs)).for_each(|_| _ = scope.spawn(worker)));
    let failed = failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(failed.is_empty(), "ANDON_LIGHT_SEED={failed:?}");
    let [checks, greens] = [0, 1].map(|i| totals[i].load(Ordering::Relaxed));
    println!("{runs} runs: {checks} looks, {greens} of them green");
    assert!(greens * 20 > checks, "green is rare: {greens} of {checks}; the test says little");
}
