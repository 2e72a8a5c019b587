//! A cloud that is away while data goes on coming, then kill -9 at that moment, then the cloud is back:
//! what piles up, how soon the agent is there again, how fast it drains beside live data, what is left.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::agent::Agent;
use crate::publisher::Talk;
use crate::run::{Site, feed};
use crate::workload::Workload;

/// How long draining may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs it and prints what it found.
pub fn run(workload: &Workload, binary: &Path, time: Duration) -> Result<()> {
    let site = Site::build(workload)?;
    let agent = site.start(binary)?;
    let talk = Talk { per_message: workload.readings(), ..Talk::default() };
    thread::scope(|scope| {
        let publishing = scope.spawn(|| site.publish(workload, &talk));
        let done = phases(&site, agent, binary, &talk, time);
        talk.stop.store(true, Ordering::Relaxed);
        publishing.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))??;
        done
    })
}

fn phases(site: &Site, agent: Agent, binary: &Path, talk: &Talk, time: Duration) -> Result<()> {
    let say = |what: &str, value: String| println!("  {what:<44} {value:>12}");
    let calm = time / 4;
    say("readings/s with the cloud there", format!("{:.0}", rate(&agent, talk, calm)?));
    site.sink.close(true);
    say("readings/s with the cloud away", format!("{:.0}", rate(&agent, talk, time)?));
    let (waiting, disk) = (agent.metric("andon_outbox_records")?, agent.metric("andon_store_disk_bytes")?);
    say("records waiting", format!("{waiting:.0}"));
    say("MB on disk", format!("{:.1}", disk / 1e6));
    say("RSS MB", format!("{:.1}", agent.memory().0));
    // kill -9; the harness stays the broker's only other client.
    drop(agent);
    let start = Instant::now();
    let agent = site.start(binary)?;
    // It counts from zero again.
    talk.base.store(talk.published.load(Ordering::Relaxed), Ordering::Relaxed);
    say("ms from start to ready after kill -9", format!("{:.0}", start.elapsed().as_secs_f64() * 1e3));
    site.sink.take();
    site.sink.close(false);
    let start = Instant::now();
    let mut drained = 0;
    while (drained as f64) < waiting {
        ensure!(start.elapsed() < PATIENCE, "it does not drain");
        drained += site.sink.take().events;
        feed(&agent, talk)?;
        thread::sleep(Duration::from_millis(50));
    }
    let seconds = start.elapsed().as_secs_f64();
    say("events/s while draining, live data beside", format!("{:.0}", drained as f64 / seconds));
    say("seconds to drain", format!("{seconds:.1}"));
    say("readings/s after it", format!("{:.0}", rate(&agent, talk, calm)?));
    let disk = agent.metric("andon_store_disk_bytes")?;
    say("MB on disk after it", format!("{:.1}", disk / 1e6));
    say("RSS MB after it", format!("{:.1}", agent.memory().0));
    Ok(())
}

fn rate(agent: &Agent, talk: &Talk, time: Duration) -> Result<f64> {
    let (start, before) = (Instant::now(), feed(agent, talk)?);
    while start.elapsed() < time {
        feed(agent, talk)?;
        thread::sleep(Duration::from_millis(50));
    }
    Ok((feed(agent, talk)? - before) / start.elapsed().as_secs_f64())
}
