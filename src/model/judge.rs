//! Judging a bundle on this very machine before it is used: in a process of its own with limits, since
//! a graph from elsewhere may hang, ask for any memory, or take tract down with it.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::{Bundle, Model, ModelError, cgroup};

/// By how much the judge's nice value is raised.
const NICE: i32 = 10;
/// How often the parent looks whether the judging has ended.
const LOOK: Duration = Duration::from_millis(10);
/// As much of what the child says as is kept.
const SAID: u64 = 16 << 10;
/// A judge that has less memory than this cannot say anything of a bundle.
pub const LEAST_MEMORY: u64 = 128 << 20;
/// Windows that are timed, after the golden cases, which warm up the model ...
const TIMED: usize = 200;
/// ... or as many as fit into this.
const TIMING: Duration = Duration::from_secs(2);

/// Within what the judging has to end.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Address space of the child, in bytes: a hard limit, which the program itself shares.
    pub memory: u64,
    /// Wall clock.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { memory: 2 << 30, time: Duration::from_secs(60) }
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// The model's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Golden cases, all passed.
    pub cases: usize,
    /// The processor time within which 99 of 100 windows are judged, one at a time, in ms.
    pub p99_ms: f64,
    /// Memory that loading and running it took, in MiB.
    pub ram_mb: f64,
}

/// Loads the bundle here and measures it. `limits.memory` then holds for this whole process.
///
/// # Errors
/// Why it cannot be used here, its own budget included.
pub fn here(dir: &Path, memory: u64) -> Result<Findings, ModelError> {
    go_first();
    hold(memory)?;
    let before = peak();
    let bundle = Bundle::read(dir)?;
    let (cases, window) = (bundle.golden.len(), sample(&bundle));
    drop(bundle);
    let model = Model::load(dir)?;
    let p99_ms = timed(&model, &window)?;
    let ram_mb = (peak() - before).max(0.0);
    let m = model.manifest();
    m.compat.check(env!("CARGO_PKG_VERSION")).map_err(ModelError::Test)?;
    let over = |what: &str, found: f64, most: Option<f64>| match most.filter(|most| found > *most) {
        Some(most) => Err(ModelError::Test(format!("{what}: {found:.2}, and compat allows {most}"))),
        None => Ok(()),
    };
    // A debug build's tract is many times slower than what the budget is for.
    let most_ms = m.compat.p99_ms.filter(|_| !cfg!(debug_assertions));
    over("p99 of a window in ms", p99_ms, most_ms)?;
    over("memory in MiB", ram_mb, m.compat.max_ram_mb)?;
    Ok(Findings { name: m.name.clone(), version: m.version.clone(), cases, p99_ms, ram_mb })
}

/// When memory runs short the kernel ends this process before the agent, and the agent computes first.
fn go_first() {
    // Neither is granted everywhere, and the judging is the same without them.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let _ = rustix::process::nice(NICE);
}

/// Holds this process to so many bytes of address space, for good.
///
/// # Errors
/// The system does not allow it.
pub fn hold(memory: u64) -> Result<(), ModelError> {
    let limit = Rlimit { current: Some(memory), maximum: Some(memory) };
    setrlimit(Resource::As, limit).map_err(|e| ModelError::Test(format!("limiting the address space: {e}")))
}

/// A window to time: of the first golden case, else the channels' means.
fn sample(bundle: &Bundle) -> Vec<f32> {
    let m = &bundle.manifest;
    let golden = bundle.golden.first().and_then(|g| g.request.inputs.iter().find(|t| t.name == "window"));
    let n = m.steps * m.channels.len();
    let golden = golden.map(super::bundle::TensorData::flat).filter(|w| w.len() >= n);
    let means = || m.channels.iter().map(|c| c.mean as f32).cycle().take(n).collect();
    golden.map_or_else(means, |w| w[..n].to_vec())
}

/// Processor time and not the wall clock: what else this machine does is not the model's doing.
fn timed(model: &Model, window: &[f32]) -> Result<f64, ModelError> {
    let cpu = || {
        let t = clock_gettime(ClockId::ThreadCPUTime);
        t.tv_sec as f64 * 1e3 + t.tv_nsec as f64 / 1e6
    };
    let (started, mut took) = (Instant::now(), Vec::with_capacity(TIMED));
    while took.len() < TIMED && (took.is_empty() || started.elapsed() < TIMING) {
        let from = cpu();
        model.infer(window)?;
        took.push(cpu() - from);
    }
    took.sort_by(f64::total_cmp);
    Ok(took[(took.len() * 99 / 100).min(took.len() - 1)])
}

/// The most memory this process ever had, in MiB; 0 where the system does not say.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
}

/// The same in a process of its own: `program` is this program. Blocks, but not beyond `stop`.
///
/// # Errors
/// [`ModelError::Test`] says why the bundle cannot be used; also when it hung, or died of its limits.
/// [`ModelError::Read`]: it could not be judged.
pub fn apart(program: &Path, dir: &Path, limits: &Limits, stop: &dyn Fn() -> bool) -> Result<Findings, ModelError> {
    let out = told(program, &["test", "--json"], dir, limits, stop)?;
    serde_json::from_str(&out).map_err(|e| ModelError::Test(format!("the test said {out:?}: {e}")))
}

/// What `andon model WORDS --here DIR` prints in a process of its own, up to 16 KiB.
///
/// # Errors
/// As [`apart`].
pub fn told(
    program: &Path,
    words: &[&str],
    dir: &Path,
    limits: &Limits,
    stop: &dyn Fn() -> bool,
) -> Result<String, ModelError> {
    let unable = |what: &str, source| ModelError::Read { path: what.to_owned(), source };
    let memory = cgroup::memory_left().map_or(limits.memory, |left| left.min(limits.memory));
    if memory < LEAST_MEMORY {
        let why = format!("{memory} bytes of memory are left, and it takes {LEAST_MEMORY}");
        return Err(unable("the process for the test", std::io::Error::other(why)));
    }
    let limits = &Limits { memory, ..*limits };
    let mut child = Command::new(program);
    child.arg("model").args(words).args(["--here", "--memory", &limits.memory.to_string(), "--"]).arg(dir);
    child.env_remove("RUST_BACKTRACE").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().map_err(|e| unable("the process for the test", e))?;
    let (out, err) = (follow(child.stdout.take()), follow(child.stderr.take()));
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|e| unable("the process for the test", e))? {
            break status;
        }
        let stopped = stop();
        if started.elapsed() > limits.time || stopped {
            let _ = child.kill();
            let _ = child.wait();
            if stopped {
                return Err(unable("the test", std::io::ErrorKind::Interrupted.into()));
            }
            return Err(ModelError::Test(format!("the test did not end within {:?}", limits.time)));
        }
        std::thread::sleep(LOOK);
    };
    let (out, err) = (out.join().unwrap_or_default(), err.join().unwrap_or_default());
    let said = reason(&err, limits.memory);
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(out),
        (_, Some(signal)) => {
            let limit = limits.memory;
            let what = format!("the test died of signal {signal}, maybe of the limit of {limit} bytes");
            Err(ModelError::Test(format!("{what}: {said}")))
        }
        _ => Err(ModelError::Test(said)),
    }
}

/// What the child gives as its reason, without what the panic hook says of our own source.
fn reason(said: &str, memory: u64) -> String {
    let said = said.trim();
    let own = said.rfind("\nandon: ").map_or(said, |at| &said[at + 1..]);
    let own = own.trim_start_matches("andon: ");
    let greedy = ["failed to allocate", "memory allocation of"].iter().any(|words| said.contains(words));
    let more =
        if greedy { format!("; it asked for more memory than the {memory} bytes there are") } else { String::new() };
    format!("{own}{more}")
}

/// This program, for [`apart`]: as it runs, also when an update has put another in its place.
pub fn own_program() -> &'static Path {
    Path::new("/proc/self/exe")
}

/// Reads while the child runs, so that a talkative one does not wait for room.
fn follow(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        let Some(mut pipe) = pipe else { return String::new() };
        let _ = pipe.by_ref().take(SAID).read_to_end(&mut text);
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        String::from_utf8_lossy(&text).into_owned()
    })
}
