//! The file sink: nothing lost and nothing twice when it is killed or the disk is full.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use andon::forward::memory::MemoryOutbox;
use andon::forward::sinks;
use andon::metrics::Health;

use crate::rig::{fill, id, run_sink, sink, until};

fn config(path: &Path, more: &str) -> String {
    format!("[[sink.file]]\nname = \"archive\"\npath = {:?}\n{more}", path.display().to_string())
}

/// How often each id stands in the files of a directory; every line is an event.
fn ids(dir: &Path) -> BTreeMap<String, u32> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|e| e != "ndjson") {
            continue;
        }
        for line in std::fs::read_to_string(path).expect("text").lines() {
            let event: serde_json::Value = serde_json::from_str(line).expect("an event on each line");
            assert_eq!(event["specversion"], "1.0");
            *all.entry(event["id"].as_str().expect("an id").to_owned()).or_default() += 1;
        }
    }
    all
}

/// One life of the sink, ended in the middle of anything once so many records are acked. What a thread
/// still writes is waited for: a dead process writes no more.
fn life(text: &str, outbox: &Arc<MemoryOutbox>, goal: u64) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let (_shared, sink) = run_sink(text, outbox);
        until("some are written", || outbox.acked() >= goal).await;
        sink.abort();
        let _ = sink.await;
    });
    runtime.shutdown_timeout(Duration::from_secs(60));
}

#[test]
fn killed_again_and_again_no_line_is_missing_and_none_is_there_twice() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("events.ndjson");
    let mut random = fastrand::Rng::with_seed(6);
    let text = config(&path, "max_bytes = \"200KiB\"\nmax_files = 1000\n");
    let (total, mut saved, mut kills) = (20_000_u64, 0_u64, 0);
    while saved < total {
        // What the store would give after a crash: from the cursor that was saved last, which is older
        // than what was written.
        let outbox = Arc::new(MemoryOutbox::new(100_000));
        fill(&outbox, saved..total);
        life(&text, &outbox, random.u64(200..4_000).min(total - saved));
        kills += 1;
        saved += if outbox.waiting() == 0 { outbox.acked() } else { random.u64(0..=outbox.acked()) };
        if random.bool() {
            // A torn end, as a power cut may leave.
            let mut file = std::fs::File::options().append(true).open(&path).expect("the file");
            file.write_all(b"{\"specversion\":\"1.0\",\"id\":\"00").expect("written");
        }
    }
    // The last torn end is cut off by the next start.
    let again = Arc::new(MemoryOutbox::new(1));
    fill(&again, 0..1);
    life(&text, &again, 1);
    let ids = ids(dir.path());
    assert!(kills > 4, "{kills} kills");
    assert_eq!((0..total).find(|&n| ids.get(&id(n).to_string()) != Some(&1)), None, "after {kills} kills");
    assert_eq!(ids.len() as u64, total);
}

struct Mounted<'p>(&'p Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_waited_for_and_tears_no_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut mount = Command::new("mount");
    let done = mount.args(["-t", "tmpfs", "-o", "size=256k", "andon-test"]).arg(dir.path()).output().expect("mount");
    if !done.status.success() {
        println!("SKIPPED, nothing was shown: a small file system cannot be mounted here, be root for it");
        return;
    }
    let _mounted = Mounted(dir.path());
    let outbox = Arc::new(MemoryOutbox::new(10_000));
    fill(&outbox, 0..2_000);
    let (shared, sink) = run_sink(&config(&dir.path().join("events.ndjson"), ""), &outbox);
    let part = || shared.board.components().remove("sink/archive");
    until("it says that the disk is full", || {
        part().is_some_and(|c| c.health == Health::Down && c.detail.contains("No space"))
    })
    .await;
    assert!(outbox.waiting() > 0 && outbox.acked() > 0);
    let ids_before = ids(dir.path());
    assert_eq!(ids_before.len() as u64, outbox.acked(), "only whole lines, and those are acked");
    let mut more = Command::new("mount");
    let grown = more.args(["-o", "remount,size=16m"]).arg(dir.path()).status().expect("mount");
    assert!(grown.success());
    until("all is written", || outbox.waiting() == 0).await;
    shared.stop.cancel();
    sink.await.expect("it ends");
    let ids = ids(dir.path());
    assert_eq!((ids.len(), ids.values().max()), (2_000, Some(&1)));
}

#[tokio::test]
async fn what_may_not_leave_is_not_in_the_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("events.ndjson");
    let elsewhere = sink(&config(Path::new("/proc/no/such/place.ndjson"), ""));
    assert!(sinks::probe(&elsewhere, "gw-07").await.is_err());
    assert!(sinks::probe(&sink(&config(&path, "")), "gw-07").await.is_ok() && !path.exists());
    let outbox = Arc::new(MemoryOutbox::new(10));
    fill(&outbox, 0..3);
    let more = "fields = [\"score\"]\npseudonymise = true\npseudonym_key = \"a key that nobody guesses\"\npseudonym_epoch = 2\n";
    let (shared, running) = run_sink(&config(&path, more), &outbox);
    until("all is written", || outbox.waiting() == 0).await;
    shared.stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), running).await.expect("in time").expect("it ends");
    let text = std::fs::read_to_string(path).expect("the file");
    assert_eq!(text.lines().count(), 3);
    assert!(!text.contains("press-04") && !text.contains("\"n\""), "{text}");
    assert!(text.contains("\"score\":0.25") && text.contains("\"machine\":\"2-"), "{text}");
}
