//! Models that come by HTTP or through a folder, the real binary: a good one arrives over an interrupted
//! download, and each kind of bad one is refused with a record that says why.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tar::EntryType;

use super::bundles::{Keys, archive, archive_with, bundle, copy_dir, edit, flip, sha, sign};
use crate::support::daemon::{Daemon, repository, until};
use crate::support::depot::{Depot, TOKEN};

const CONFIG: &str = r#"
[agent]
data_dir = "@DIR@/data"
models_dir = "@DIR@/models"

[[source.mqtt]]
name = "shop"
url = "mqtt://127.0.0.1:1"

[[source.mqtt.subscribe]]
topic = "plant/{machine}/{signal}"
payload = "number"

[[machine]]
match = "pump-*"
model = "pump-anomaly"

[[machine]]
match = "counter-*"
model = "hanging"

[cloud]
url = "@DEPOT@/events"
token = "@TOKEN@"
compress = "none"

[models]
trusted_keys = ["@DIR@/maker.pem"]
require_signature = false
max_bundle = "4MiB"
judge_time = "@JUDGE@"
shadow = "90d"
@MORE@

[web]
listen = "@WEB@"
"#;

/// A debug build takes long to load a model.
const JUDGE: &str = if cfg!(debug_assertions) { "60s" } else { "10s" };

fn daemon(depot: &Depot, more: &str) -> (Daemon, Keys) {
    let config = CONFIG.replace("@DEPOT@", &depot.url("")).replace("@TOKEN@", TOKEN);
    let daemon = Daemon::new("");
    let maker = Keys::make(daemon.dir(), "maker", "P-256");
    copy_dir(&repository("models/pump-anomaly"), &daemon.dir().join("models/pump-anomaly"));
    copy_dir(&repository("tests/data/hanging"), &daemon.dir().join("models/hanging"));
    daemon.configure(&config.replace("@JUDGE@", JUDGE).replace("@MORE@", more));
    (daemon, maker)
}

/// A workshop in which bundles are made.
struct Workshop<'a> {
    dir: PathBuf,
    maker: &'a Keys,
    depot: &'a Depot,
    entries: Vec<Value>,
}

impl Workshop<'_> {
    /// A bundle, signed after `change`; `spoil` is done to it after that.
    fn made(&self, version: &str, sequence: u64, change: impl FnOnce(&Path), spoil: impl FnOnce(&Path)) -> PathBuf {
        let dir = self.dir.join(version);
        bundle(&repository("models/pump-anomaly"), &dir, version, sequence);
        change(&dir);
        sign(&dir, self.maker);
        spoil(&dir);
        dir
    }

    fn ship(&mut self, model: &str, version: &str, archive: Vec<u8>, cuts: &[usize]) {
        let sha256 = sha(&archive);
        let url = self.depot.put(&format!("{version}.tar"), archive, cuts);
        let rollout = json!({"shadow_s": 86400, "canary": ["pump-1"], "bake_s": 60});
        let entry = json!({"handle": model, "version": version, "url": url, "sha256": sha256, "state": "deploy", "rollout": rollout});
        self.entries.push(entry);
    }

    fn desired(&self) -> String {
        json!({"deployments": [{"name": "d-42", "failure_policy": "rollback", "models": self.entries}]}).to_string()
    }
}

fn none(_: &Path) {}

fn stages(depot: &Depot, version: &str) -> Vec<String> {
    let mine = |e: &&Value| e["model_version"] == version && e["event"] == "rollout";
    depot.model_events().iter().filter(mine).map(|e| e["stage"].as_str().unwrap().to_owned()).collect()
}

/// Why a version was refused; empty while it was not.
fn refusal(depot: &Depot, version: &str) -> String {
    let all = depot.model_events();
    let mine = all.iter().find(|e| e["model_version"] == version && e["stage"] == "refused");
    mine.map_or(String::new(), |e| e["reason"].as_str().unwrap().to_owned())
}

fn state(daemon: &Daemon) -> Value {
    let text = fs::read(daemon.dir().join("data/library/state.json")).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

#[test]
fn a_good_bundle_arrives_over_a_broken_line_and_bad_ones_are_refused_with_a_record() {
    let depot = Depot::start();
    let (mut daemon, maker) = daemon(&depot, &format!("desired = \"{}\"\npoll = \"200ms\"", depot.url("/desired")));
    let stranger = Keys::make(daemon.dir(), "stranger", "P-256");
    let dir = daemon.dir().join("workshop");
    let mut shop = Workshop { dir, maker: &maker, depot: &depot, entries: Vec::new() };
    // What each is refused for; the older one is no newer than the one that the config names.
    let good = archive(&shop.made("good", 10, none, none));
    let half = good.len() / 2;
    shop.ship("pump-anomaly", "good", good, &[half, 1000]);
    let mut expected = bad_ones(&mut shop, &stranger);
    judged_and_found_wanting(&mut shop, &mut expected);
    depot.desire(&shop.desired());
    daemon.start_ready();
    for (version, why) in &expected {
        until(&format!("{version} is refused"), || !refusal(&depot, version).is_empty());
        let found = refusal(&depot, version);
        assert!(found.contains(why), "{version}: {found:?} does not say {why:?}");
        println!("{version}: {found}");
    }
    // Of the good one: every step, in order, and the broken download was taken up where it ended.
    until("the good one is there", || stages(&depot, "good").contains(&"selftest".to_owned()));
    let steps = stages(&depot, "good");
    assert_eq!(steps[..4], ["delayed", "fetched", "verified", "selftest"], "{steps:?}");
    let log = depot.log();
    let fetches: Vec<&String> = log.iter().filter(|l| l.starts_with("GET /bundles/good.tar")).collect();
    let resumed = |at: usize| format!("GET /bundles/good.tar 206 bytes={at}-");
    assert_eq!(fetches, [&"GET /bundles/good.tar 200".to_owned(), &resumed(half), &resumed(half + 1000)]);
    until("it is placed", || state(&daemon)["models"]["pump-anomaly"]["highest"] == 10);
    let placed = daemon.dir().join("data/library/pump-anomaly");
    let names: Vec<String> =
        fs::read_dir(&placed).unwrap().flatten().map(|e| e.file_name().into_string().unwrap()).collect();
    assert!(names.iter().any(|n| n.starts_with("good-10-")), "{names:?}");
    // Nothing was fetched twice for being refused, and the state was asked for with its ETag.
    until("it is asked again", || depot.log().iter().any(|l| l == "GET /desired 304"));
    for (version, _) in &expected {
        let n = depot.log().iter().filter(|l| l.starts_with(&format!("GET /bundles/{version}.tar "))).count();
        assert!(n <= 1, "{version} was fetched {n} times");
    }
    // After a restart none of them comes again.
    let settled = |daemon: &Daemon| state(daemon)["settled"].as_array().map_or(0, Vec::len);
    until("all are done with", || settled(&daemon) == expected.len() + 1);
    let before = depot.log().iter().filter(|l| l.starts_with("GET /bundles/")).count();
    daemon.terminate();
    daemon.start_ready();
    let asked = depot.log().iter().filter(|l| *l == "GET /desired 200").count();
    until("it is asked anew", || depot.log().iter().filter(|l| *l == "GET /desired 200").count() >= asked);
    until("it is asked again", || depot.log().last().is_some_and(|l| l == "GET /desired 304"));
    assert_eq!(depot.log().iter().filter(|l| l.starts_with("GET /bundles/")).count(), before);
}

/// Ships what is refused before it is judged; gives what it is refused for.
fn bad_ones(shop: &mut Workshop<'_>, stranger: &Keys) -> Vec<(String, &'static str)> {
    let mut expected = Vec::new();
    let mut bad = |shop: &mut Workshop<'_>, version: &str, archive: Vec<u8>, why| {
        shop.ship("pump-anomaly", version, archive, &[]);
        expected.push((version.to_owned(), why));
    };
    let unsign = |b: &Path| fs::remove_file(b.join("model.sig")).unwrap();
    let made = archive(&shop.made("unsigned", 20, none, unsign));
    bad(shop, "unsigned", made, "it is not signed");
    let made = archive(&shop.made("foreign", 20, none, |b| sign(b, stranger)));
    bad(shop, "foreign", made, "not trusted");
    for file in ["model.onnx", "golden.json", "reference.json", "MODEL_CARD.md", "model.json"] {
        let version = format!("flipped-{file}");
        let made = archive(&shop.made(&version, 20, none, |b| flip(&b.join(file))));
        bad(shop, &version, made, "is not as it was signed");
    }
    let made = archive(&shop.made("flipped-model.sig", 20, none, |b| flip(&b.join("model.sig"))));
    bad(shop, "flipped-model.sig", made, "model.sig");
    let extra = |b: &Path| fs::write(b.join("extra.py"), "x").unwrap();
    let made = archive(&shop.made("extra", 20, none, extra));
    bad(shop, "extra", made, "\"extra.py\" is not signed");
    let plain = shop.made("plain", 20, none, none);
    let link = archive_with(&plain, "data", EntryType::Symlink, b"");
    bad(shop, "link", link, "only plain files are taken");
    let path = archive_with(&plain, "../outside", EntryType::Regular, b"x");
    bad(shop, "path", path, "not the name of a file below it");
    let large = archive_with(&plain, "large", EntryType::Regular, &vec![0; 5 << 20]);
    bad(shop, "large", large, "larger than 4194304 bytes");
    let made = archive(&shop.made("older", 1, none, none));
    bad(shop, "older", made, "a downgrade: its sequence 1 is not above 1");
    let made = archive(&shop.made("expired", 20, |b| edit(b, |m| m["expires"] = "2026-01-01T00:00:00Z".into()), none));
    bad(shop, "expired", made, "expired at 2026-01-01");
    let newer = |b: &Path| edit(b, |m| m["compat"]["agent"] = ">=9".into());
    let made = archive(&shop.made("newer", 20, newer, none));
    bad(shop, "newer", made, "it is for andon >=9");
    let mut other = archive(&plain);
    let whole = other.clone();
    other.truncate(2000);
    bad(shop, "damaged", other.clone(), "the archive is damaged");
    // It says itself which version it is.
    shop.ship("pump-anomaly", "misnamed", whole, &[]);
    expected.push(("plain".into(), "pump-anomaly version plain, and pump-anomaly version misnamed is wanted"));
    shop.ship("turbine", "unused", other, &[]);
    expected.push(("unused".into(), "no [[machine]] uses a model \"turbine\""));
    shop.entries
        .push(json!({"handle": "pump-anomaly", "version": "state", "url": "x", "sha256": "", "state": "erase"}));
    expected.push(("state".into(), "its state \"erase\" is not known here"));
    expected
}

/// The same for what only running it tells.
fn judged_and_found_wanting(shop: &mut Workshop<'_>, expected: &mut Vec<(String, &'static str)>) {
    let wrong = |b: &Path| {
        let path = b.join("golden.json");
        let mut golden: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        golden[0]["response"]["outputs"][0]["data"][0] = json!(1e6);
        fs::write(&path, golden.to_string()).unwrap();
        edit(b, |_| {});
    };
    let made = archive(&shop.made("golden", 30, wrong, none));
    shop.ship("pump-anomaly", "golden", made, &[]);
    expected.push(("golden".into(), "failed its self-test"));
    // A graph that takes minutes as soon as it is given anything but zeros, and one that wants 4 TiB.
    for (version, side, why) in
        [("hangs", 4096_i64, "did not end within"), ("hog", 1 << 20, "it asked for more memory than")]
    {
        let dir = shop.dir.join(version);
        bundle(&repository("tests/data/hanging"), &dir, version, 40);
        let mut onnx = fs::read(dir.join("model.onnx")).unwrap();
        let usual = 4096_i64.to_le_bytes();
        let places: Vec<usize> = (0..onnx.len() - 8).filter(|at| onnx[*at..*at + 8] == usual).collect();
        assert_eq!(places.len(), 2);
        places.into_iter().for_each(|at| onnx[at..at + 8].copy_from_slice(&side.to_le_bytes()));
        fs::write(dir.join("model.onnx"), onnx).unwrap();
        let tensor =
            |name: &str, shape: Value| json!({"name": name, "datatype": "FP32", "shape": shape, "data": [1.0]});
        let case = json!({"request": {"inputs": [tensor("window", json!([1, 1, 1]))]}, "response": {"outputs": [tensor("score", json!([1]))]}});
        fs::write(dir.join("golden.json"), json!([case]).to_string()).unwrap();
        edit(&dir, |_| {});
        sign(&dir, shop.maker);
        let made = archive(&dir);
        shop.ship("hanging", version, made, &[]);
        expected.push((version.into(), why));
    }
}

#[test]
fn a_bundle_put_into_the_folder_is_taken_and_a_bad_one_marked() {
    let depot = Depot::start();
    let (mut daemon, maker) = daemon(&depot, "inbox = \"@DIR@/inbox\"");
    let inbox = daemon.dir().join("inbox");
    fs::create_dir(&inbox).unwrap();
    let dir = daemon.dir().join("workshop");
    let shop = Workshop { dir, maker: &maker, depot: &depot, entries: Vec::new() };
    daemon.start_ready();
    let good = archive(&shop.made("2", 2, none, none));
    fs::write(inbox.join("pump.tar"), good).unwrap();
    until("it is taken", || inbox.join("pump.tar.accepted").is_file());
    fs::write(inbox.join("old.tar"), archive(&shop.made("2b", 2, none, none))).unwrap();
    until("the other is marked", || inbox.join("old.tar.refused").is_file());
    until("its record has come", || refusal(&depot, "2b").contains("a downgrade"));
    until("the first one's, too", || stages(&depot, "2").contains(&"selftest".to_owned()));
    // A desired state in the folder names archives beside it, and how they are taken into use.
    let third = archive(&shop.made("3", 3, none, none));
    let entry = json!({"handle": "pump-anomaly", "version": "3", "url": "third.tar", "sha256": sha(&third), "rollout": {"canary": ["pump-7"]}});
    let text = json!({"deployments": [{"models": [entry]}]}).to_string();
    fs::write(inbox.join("third.tar"), third).unwrap();
    fs::write(inbox.join("desired.json"), text).unwrap();
    until("the third is there", || state(&daemon)["models"]["pump-anomaly"]["highest"] == 3);
    until("and its record", || stages(&depot, "3").contains(&"selftest".to_owned()));
    assert_eq!(daemon.component("models").0, "up");
    assert!(daemon.metric("andon_model_steps_total", "stage=\"selftest\"") >= 2.0);
    // Killed before it said that it is done with the third: that comes again, and is no downgrade of itself.
    until("it is marked", || inbox.join("third.tar.accepted").is_file());
    daemon.kill9();
    let path = daemon.dir().join("data/library/state.json");
    let mut kept = state(&daemon);
    kept["settled"] = json!([]);
    fs::write(&path, kept.to_string()).unwrap();
    fs::rename(inbox.join("third.tar.accepted"), inbox.join("third.tar")).unwrap();
    daemon.start_ready();
    until("it is marked again", || inbox.join("third.tar.accepted").is_file());
    assert_eq!(refusal(&depot, "3"), "");
    assert_eq!(state(&daemon)["models"]["pump-anomaly"]["candidate"]["release"]["version"], "3");
}

/// A server that begins an archive and then sends a byte now and then; it says when it was cut off.
fn trickle() -> (String, std::sync::mpsc::Receiver<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, cut) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let tell = tell.clone();
            std::thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
                while stream.write_all(b"x").is_ok() {
                    std::thread::sleep(std::time::Duration::from_millis(100));
                }
                let _ = tell.send(());
            });
        }
    });
    (format!("http://127.0.0.1:{port}/slow.tar"), cut)
}

#[test]
fn a_slow_download_holds_up_no_other_and_ends_when_nobody_wants_it() {
    let depot = Depot::start();
    let more = format!("desired = \"{}\"\npoll = \"200ms\"\nlocal_addresses = true", depot.url("/desired"));
    let (mut daemon, maker) = daemon(&depot, &more);
    let (url, cut) = trickle();
    let dir = daemon.dir().join("workshop");
    let mut shop = Workshop { dir, maker: &maker, depot: &depot, entries: Vec::new() };
    let slow = json!({"handle": "pump-anomaly", "version": "slow", "url": url, "sha256": "ab".repeat(32)});
    shop.entries.push(slow);
    let good = archive(&shop.made("good", 10, none, none));
    shop.ship("pump-anomaly", "good", good, &[]);
    depot.desire(&shop.desired());
    daemon.start_ready();
    until("the other is there", || stages(&depot, "good").contains(&"selftest".to_owned()));
    assert!(cut.try_recv().is_err(), "it is still on its way");
    shop.entries.remove(0);
    depot.desire(&shop.desired());
    cut.recv_timeout(std::time::Duration::from_secs(30)).expect("it is cut off");
}

#[test]
fn bundles_do_not_come_from_this_host_unless_that_is_allowed() {
    let depot = Depot::start();
    let (mut daemon, maker) = daemon(&depot, "inbox = \"@DIR@/inbox\"");
    let inbox = daemon.dir().join("inbox");
    fs::create_dir(&inbox).unwrap();
    let dir = daemon.dir().join("workshop");
    let mut shop = Workshop { dir, maker: &maker, depot: &depot, entries: Vec::new() };
    let good = archive(&shop.made("near", 10, none, none));
    shop.ship("pump-anomaly", "near", good, &[]);
    fs::write(inbox.join("desired.json"), shop.desired()).unwrap();
    daemon.start_ready();
    until("it is refused", || refusal(&depot, "near").contains("local_addresses"));
    assert!(depot.log().iter().all(|l| !l.starts_with("GET /bundles/")), "{:?}", depot.log());
}

/// The mark that stands while a bundle is read outlasts a crash, and tells which bundle it was.
#[test]
fn a_bundle_that_preceded_a_crash_is_put_aside_at_the_next_start() {
    let depot = Depot::start();
    let (mut daemon, maker) = daemon(&depot, "inbox = \"@DIR@/inbox\"");
    let inbox = daemon.dir().join("inbox");
    fs::create_dir(&inbox).unwrap();
    let dir = daemon.dir().join("workshop");
    let shop = Workshop { dir, maker: &maker, depot: &depot, entries: Vec::new() };
    daemon.start_ready();
    // A judge that hangs leaves time for the kill.
    let hanging = shop.dir.join("hanging");
    bundle(&repository("tests/data/hanging"), &hanging, "9", 40);
    sign(&hanging, shop.maker);
    fs::write(inbox.join("bomb.tar"), archive(&hanging)).unwrap();
    let mark = daemon.dir().join("data/library/reading.json");
    let mut crashed = false;
    until("it is being read or done", || {
        crashed |= mark.is_file();
        crashed || inbox.join("bomb.tar.accepted").is_file() || inbox.join("bomb.tar.refused").is_file()
    });
    daemon.kill9();
    if !mark.is_file() {
        // The kill was late: the mark as it stood.
        let text = json!({"key": "k", "model": "", "version": "", "file": "bomb.tar", "crashes": 0}).to_string();
        fs::write(&mark, text).unwrap();
        for name in ["bomb.tar.accepted", "bomb.tar.refused"] {
            let _ = fs::rename(inbox.join(name), inbox.join("bomb.tar"));
        }
    }
    daemon.start_ready();
    until("it is put aside", || inbox.join("bomb.tar.refused").is_file());
    assert!(!mark.is_file());
    until("it goes on", || daemon.component("models").0 == "up");
}
