//! Full, read-only, failing and slow disks under the running agent: it lives on, says what is wrong,
//! alarms still come out, nothing is acknowledged that is not on disk, and it goes on by itself.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use andon::simulator::cloud::{Cloud, Options};

use super::agent::{CONFIG, Taken, Work, wait_for_all};
use super::powercut::{Disk, Knob, Taste};
use super::setting;
use super::support::daemon::{Daemon, until};
use super::support::mosquitto::Mosquitto;
use super::support::publisher::publish;

/// Beside the numbered messages: bulk that nobody judges, and results for dashboards.
const MORE: &str = r#"
[[source.mqtt.subscribe]]
topic = "bulk/{machine}"
qos = 1
time = "/ts"
time_format = "unix_ms"

[[machine]]
match = "bulk"

[publish]
source = "shop"
prefix = "andon"

[store]
max_bytes = "64MiB"
"#;

const MACHINES: u64 = 50;

/// So many messages of each machine, as far apart as the grid.
fn numbered(per_machine: u64) -> Work {
    Work::of(per_machine * MACHINES, MACHINES, 100)
}

/// A file system in memory, gone when the test is over.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(at: &Path, options: &str) -> Option<Mount> {
        fs::create_dir_all(at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", options, "andon-test"]).arg(at).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        if !done.status.success() {
            println!("SKIPPED, nothing was shown: a small file system cannot be mounted here, be root for it: {said}");
            return None;
        }
        Some(Mount(at.to_owned()))
    }

    /// Takes what room there is, to the last byte.
    fn fill(&self) -> u64 {
        let file = OpenOptions::new().create(true).append(true).open(self.0.join("ballast")).unwrap();
        let mut size = 1 << 20;
        while size > 0 {
            match (&file).write(&vec![0xA5; size]) {
                Ok(n) if n > 0 => {}
                _ => size /= 2,
            }
        }
        file.metadata().unwrap().len()
    }

    fn free(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Broker, cloud and a daemon that is not started yet.
struct Plant {
    broker: Mosquitto,
    cloud: Cloud,
    log: tempfile::NamedTempFile,
    daemon: Daemon,
    bulk: u64,
}

impl Plant {
    async fn new() -> Plant {
        let broker = Mosquitto::start();
        let log = tempfile::NamedTempFile::new().unwrap();
        let options = Options { log: Some(log.path().to_owned()), ..Options::default() };
        let cloud = Cloud::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
        let config = CONFIG.replacen("\n[[machine]]", &format!("{MORE}\n[[machine]]"), 1);
        let config =
            config.replace("@RATE@", "100ms").replace("@BROKER@", &broker.url()).replace("@CLOUD@", &cloud.url());
        let daemon = Daemon::new(&config);
        Plant { broker, cloud, log, daemon, bulk: 0 }
    }

    fn data(&self) -> PathBuf {
        self.daemon.dir().join("data")
    }

    async fn ready(&mut self) {
        self.daemon.start_ready();
        until("it has subscribed", || self.daemon.component("source/shop").0 == "up");
    }

    async fn publish(&self, work: Work, range: std::ops::Range<u64>) {
        let some =
            work.all().skip((range.start * MACHINES) as usize).take(((range.end - range.start) * MACHINES) as usize);
        publish(&self.broker.url(), some).await;
    }

    /// So many messages of about 1 KiB that does not compress.
    async fn bulk(&mut self, n: u64) {
        let mut noise = fastrand::Rng::with_seed(self.bulk);
        let from = self.bulk;
        self.bulk += n;
        let messages = (from..self.bulk).map(|i| {
            let values: Vec<String> = (0..60).map(|k| format!("\"v{k}\":{}", noise.f64())).collect();
            let ts = 1_735_689_600_000 + i * 10;
            ("bulk/bulk".to_owned(), format!("{{\"ts\":{ts},{}}}", values.join(",")))
        });
        publish(&self.broker.url(), messages.collect::<Vec<_>>()).await;
    }

    fn store(&self) -> (String, String) {
        self.daemon.component("store")
    }

    /// Bulk until the store says that it cannot write.
    async fn bulk_until_down(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.store().0 != "down" {
            assert!(Instant::now() < deadline, "the store never noticed: {}", self.daemon.status());
            self.bulk(50).await;
        }
    }

    /// The retained alarm of a machine, as a dashboard on MQTT sees it.
    fn alarm_on_mqtt(&self, machine: &str) -> String {
        let topic = format!("andon/test/crash/gw/{machine}/alarm");
        let port = self.broker.port().to_string();
        let mut sub = Command::new("mosquitto_sub");
        let out = sub.args(["-p", &port, "-C", "1", "-W", "20", "-t", &topic]).output().unwrap();
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn alarms_on_dashboard(&self) -> usize {
        let (status, body) = self.daemon.get("/api/v1/alarms").unwrap();
        assert_eq!(status, 200);
        let alarms: serde_json::Value = serde_json::from_str(&body).unwrap();
        alarms["alarms"].as_array().unwrap().iter().filter(|a| a["machine"].as_str().unwrap().starts_with('m')).count()
    }

    fn wait_for_all(&self, work: Work) {
        let all = wait_for_all(&self.daemon, &self.cloud, work);
        assert!(all, "the cloud has {:?}\n{}", self.cloud.stats(), self.daemon.status());
    }

    async fn end(mut self, work: Work) -> Taken {
        assert!(self.daemon.terminate().success(), "{}", self.daemon.log());
        self.cloud.stop().await;
        let taken = Taken::read(self.log.path());
        taken.check(work);
        taken
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_filled_to_the_last_byte_and_freed_again() {
    let work = numbered(100);
    let mut plant = Plant::new().await;
    let Some(mount) = Mount::tmpfs(&plant.data(), "size=64m") else { return };
    plant.ready().await;
    plant.publish(work, 0..85).await;
    until("the first part is at the cloud", || plant.cloud.stats().types.get("io.andon.verdict.v1") >= Some(&4_000));
    println!("full after {} bytes of ballast", mount.fill());
    plant.bulk_until_down().await;
    println!("store: {:?}", plant.store());
    assert!(plant.store().1.contains("No space left"), "{:?}", plant.store());
    let before = plant.cloud.stats().distinct;

    // An alarm that comes while nothing can be stored.
    plant.publish(work, 85..95).await;
    until("the alarms are on the dashboard", || plant.alarms_on_dashboard() as u64 == MACHINES);
    assert!(plant.alarm_on_mqtt("m07").contains("active"), "{}", plant.alarm_on_mqtt("m07"));
    assert!(plant.daemon.is_running());
    assert_eq!(plant.store().0, "down");
    println!("while full: {} alarms on the dashboard, {:?}", plant.alarms_on_dashboard(), plant.store());
    let at_cloud = plant.cloud.stats().distinct - before;
    println!("{at_cloud} records reached the cloud meanwhile");

    mount.free();
    let freed = Instant::now();
    until("the store writes again", || plant.store().0 == "up");
    println!("up again {:.1} s after there was room", freed.elapsed().as_secs_f64());
    plant.publish(work, 95..100).await;
    plant.wait_for_all(work);
    println!("{}", plant.daemon.status()["store"]);
    let taken = plant.end(work).await;
    println!("{} records, {} gaps: nothing was dropped", taken.len(), taken.count("gap"));
    assert_eq!(taken.count("gap"), 1, "only the one in the work");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_on_a_full_disk() {
    let work = numbered(100);
    let mut plant = Plant::new().await;
    let Some(mount) = Mount::tmpfs(&plant.data(), "size=64m") else { return };
    plant.ready().await;
    plant.publish(work, 0..50).await;
    mount.fill();
    plant.bulk_until_down().await;
    plant.daemon.kill9();
    plant.ready().await;
    plant.publish(work, 50..95).await;
    let verdicts = || plant.cloud.stats().types.get("io.andon.verdict.v1").copied().unwrap_or(0);
    until("it says so, or has made room", || plant.store().0 == "down" || verdicts() >= 95 * MACHINES);
    println!("started on a full disk: {:?}, {} verdicts at the cloud", plant.store(), verdicts());
    mount.free();
    plant.publish(work, 95..100).await;
    plant.wait_for_all(work);
    let taken = plant.end(work).await;
    assert_eq!(taken.count("gap"), 1, "only the one in the work");
}

/// What goes wrong for a while.
fn trouble(disk: &Disk, random: &mut fastrand::Rng) -> (&'static str, u64) {
    let all = [
        ("syncs fail", Knob::FailSyncs, 1 + random.u64(..5)),
        ("writes fail", Knob::FailWrites, 1 + random.u64(..5)),
        ("the disk is full", Knob::Full, 1),
        ("the file system is read-only", Knob::ReadOnly, 1),
        ("syncs take 300 ms", Knob::SyncDelayUs, 300_000),
    ];
    let (name, knob, value) = all[random.usize(..all.len())];
    disk.set(knob, value);
    (name, value)
}

fn mend(disk: &Disk) {
    for knob in [Knob::FailSyncs, Knob::FailWrites, Knob::Full, Knob::ReadOnly, Knob::SyncDelayUs] {
        disk.set(knob, 0);
    }
}

/// EIO at syncs and writes, no room, read-only, slow: in any order, some ending in a power cut.
#[tokio::test(flavor = "multi_thread")]
async fn failing_disks_change_nothing() {
    let work = numbered(200);
    let mut random = fastrand::Rng::with_seed(setting("ANDON_CRASH_SEED", 7));
    let mut plant = Plant::new().await;
    let disk = Disk::new(&plant.data(), &plant.daemon.dir().join("beside"));
    plant.daemon.environment(disk.environment());
    plant.ready().await;
    let troubles = setting("ANDON_CRASH_TROUBLES", 8);
    for n in 0..troubles {
        let (name, _) = trouble(&disk, &mut random);
        let part = work.per_machine * n / troubles..work.per_machine * (n + 1) / troubles;
        plant.publish(work, part).await;
        plant.bulk(100).await;
        std::thread::sleep(Duration::from_millis(random.u64(..1500)));
        let said = plant.store();
        assert!(plant.daemon.is_running());
        if random.u8(..3) == 0 {
            plant.daemon.kill9();
            println!("{name}: {said:?}; then a power cut took back {}", disk.cut(Taste::any(&mut random)));
            mend(&disk);
            plant.daemon.start_ready();
        } else {
            mend(&disk);
            until("the store is well again", || plant.store().0 != "down");
            println!("{name}: {said:?}");
        }
    }
    println!("{} calls were failed", disk.get(Knob::Faults));
    plant.wait_for_all(work);
    let taken = plant.end(work).await;
    let gaps: Vec<String> = taken.gaps();
    println!("gaps: {gaps:?}");
    assert_eq!(taken.count("gap"), 1, "only the one in the work");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ballast_takes_the_last_byte() {
    let place = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::tmpfs(&place.path().join("disk"), "size=1m") else { return };
    let taken = mount.fill();
    assert!(taken > 900 << 10, "{taken}");
    let more = OpenOptions::new().create(true).truncate(false).write(true).open(mount.0.join("more"));
    assert!(more.and_then(|f| f.write_all_at(b"x", 0)).is_err());
    mount.free();
    fs::write(mount.0.join("more"), b"x").unwrap();
}
