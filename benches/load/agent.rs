//! The agent under load as its process shows it: figures from /proc, and its own metrics.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A running agent; killed when dropped.
pub struct Agent {
    child: Child,
    web: u16,
}

impl Agent {
    /// Starts it on a config and waits until it is ready.
    pub fn start(binary: &Path, config: &Path, web: u16) -> Result<Agent> {
        let log = File::create(config.with_extension("log"))?;
        let child = Command::new(binary)
            .args(["run", "-c"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| binary.display().to_string())?;
        let agent = Agent { child, web };
        let deadline = Instant::now() + Duration::from_secs(30);
        while agent.get("/health/ready").is_err() {
            if Instant::now() > deadline {
                bail!("it does not start: {}", fs::read_to_string(config.with_extension("log"))?);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(agent)
    }

    fn get(&self, path: &str) -> Result<String> {
        let mut socket = TcpStream::connect(("127.0.0.1", self.web))?;
        write!(socket, "GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")?;
        let mut text = String::new();
        socket.read_to_string(&mut text)?;
        if !text.starts_with("HTTP/1.1 200") {
            bail!("{}", text.lines().next().unwrap_or_default());
        }
        Ok(text)
    }

    /// The sum of a metric over its labels.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let text = self.get("/metrics")?;
        let lines = text.lines().filter(|l| l.starts_with(name) && l[name.len()..].starts_with(['{', ' ']));
        Ok(lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap_or_default()
    }

    /// CPU seconds by the name of the thread, and of all together.
    pub fn cpu(&self) -> (BTreeMap<String, f64>, f64) {
        let (mut threads, mut all) = (BTreeMap::new(), 0.0);
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        for task in tasks.into_iter().flatten().flatten() {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            let Some((name, seconds)) = thread_time(&stat) else { continue };
            *threads.entry(name.to_owned()).or_default() += seconds;
            all += seconds;
        }
        (threads, all)
    }

    /// Resident and proportional memory, in MB.
    pub fn memory(&self) -> (f64, f64) {
        let kb = |text: &str, key: &str| -> f64 {
            let line = text.lines().find_map(|l| l.strip_prefix(key));
            line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(f64::NAN)
        };
        (kb(&self.proc("status"), "VmRSS:") / 1024.0, kb(&self.proc("smaps_rollup"), "Pss:") / 1024.0)
    }

    /// Bytes it has caused to be written to the medium.
    pub fn written(&self) -> f64 {
        let io = self.proc("io");
        io.lines().find_map(|l| l.strip_prefix("write_bytes: ")?.parse().ok()).unwrap_or(f64::NAN)
    }
}

/// Name and CPU seconds of a thread, from its stat line.
fn thread_time(stat: &str) -> Option<(&str, f64)> {
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let ticks = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    // USER_HZ is 100 on every Linux that Rust runs on.
    Some((name, ticks / 100.0))
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
