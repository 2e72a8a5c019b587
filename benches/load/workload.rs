//! What is published, and the part of the config that goes with it.

use std::fmt::Write;

/// One kind of load.
#[derive(Copy, Clone)]
pub struct Workload {
    pub name: &'static str,
    pub about: &'static str,
    pub by: By,
    /// Sections of the config beside the usual ones.
    pub config: &'static str,
    pub machines: u64,
    pub shape: Shape,
    /// From one round over all machines and signals to the next.
    pub step_ms: u64,
    /// Each message makes a window, and that a verdict.
    pub scored: bool,
    /// The cloud is away for a while, and the agent is killed in the midst of it.
    pub outage: bool,
    /// Messages a second; `None`: as many as are taken.
    pub pace: Option<f64>,
    /// A machine beside the load has alarms, and what they take is measured.
    pub probed: bool,
}

/// Who brings the readings.
#[derive(Copy, Clone, PartialEq)]
pub enum By {
    /// A publisher of its own, through the broker that factories have.
    Mosquitto,
    /// The harness, which is the broker itself.
    Harness,
    /// Modbus devices; nothing is published.
    Modbus,
}

/// What a message looks like.
#[derive(Copy, Clone)]
pub enum Shape {
    /// One value of one signal.
    Value { signals: u64 },
    /// One value of each signal.
    Members { signals: u64 },
    /// So many samples of each signal, each with its time.
    Samples { signals: u64, samples: u64 },
}

impl Workload {
    /// Readings in a message.
    pub fn readings(&self) -> u64 {
        match self.shape {
            Shape::Value { .. } => 1,
            Shape::Members { signals } => signals,
            Shape::Samples { signals, samples } => signals * samples,
        }
    }

    /// The n-th message. Its time counts from `start_ms` and is that of its round.
    pub fn message(&self, n: u64, start_ms: u64, topic: &mut String, payload: &mut String) {
        topic.clear();
        payload.clear();
        // Writing to a string cannot fail.
        let _ = self.write(n, start_ms, topic, payload);
    }

    fn write(&self, n: u64, start_ms: u64, topic: &mut String, payload: &mut String) -> std::fmt::Result {
        match self.shape {
            Shape::Value { signals } => {
                let (round, rest) = (n / (self.machines * signals), n % (self.machines * signals));
                let (machine, signal) = (rest / signals, rest % signals);
                let ts = start_ms + round * self.step_ms;
                write!(topic, "plant/m{machine}/s{signal}")?;
                write!(payload, "{{\"value\":{},\"ts\":{ts}}}", wave(n))
            }
            Shape::Members { signals } => {
                let (round, machine) = (n / self.machines, n % self.machines);
                write!(topic, "plant/m{machine}")?;
                write!(payload, "{{\"ts\":{}", start_ms + round * self.step_ms)?;
                (0..signals).try_for_each(|s| write!(payload, ",\"s{s}\":{}", wave(n + s)))?;
                write!(payload, "}}")
            }
            Shape::Samples { signals, samples } => {
                let (round, machine) = (n / self.machines, n % self.machines);
                write!(topic, "plant/m{machine}")?;
                for i in 0..samples {
                    write!(payload, "v ")?;
                    for s in 0..signals {
                        write!(payload, "{}s{s}={}", if s > 0 { "," } else { "" }, wave(n + s + i))?;
                    }
                    writeln!(payload, " {}", start_ms + (round * samples + i) * self.step_ms)?;
                }
                Ok(())
            }
        }
    }
}

/// A value that looks measured: three decimals.
fn wave(n: u64) -> f64 {
    ((n as f64 * 0.37).sin() * 5000.0).round() / 1000.0 + 20.0
}

const ONE_VALUE: &str = r#"
[[source.mqtt.subscribe]]
topic = "plant/{machine}/{signal}"
qos = 1
value = "/value"
time = "/ts"
time_format = "unix_ms"
"#;

const MEMBERS: &str = r#"
[[source.mqtt.subscribe]]
topic = "plant/{machine}"
qos = 1
time = "/ts"
time_format = "unix_ms"
"#;

const SAMPLES: &str = r#"
[[source.mqtt.subscribe]]
topic = "plant/{machine}"
qos = 1
payload = "influx"
time_format = "unix_ms"
"#;

/// All of them.
pub fn all() -> Vec<Workload> {
    let usual = Workload {
        name: "values",
        about: "1,000 machines without a model, a message for each value",
        by: By::Mosquitto,
        config: ONE_VALUE,
        machines: 1000,
        shape: Shape::Value { signals: 1 },
        step_ms: 100,
        scored: false,
        outage: false,
        pace: None,
        probed: false,
    };
    let paced = Workload { scored: true, pace: Some(10_000.0), ..usual };
    vec![
        Workload {
            name: "scored",
            about: "1,000 machines, each message makes a window and a verdict",
            scored: true,
            ..usual
        },
        Workload {
            name: "direct",
            about: "like scored, from a broker within the harness",
            by: By::Harness,
            scored: true,
            ..usual
        },
        Workload {
            name: "members",
            about: "100 machines without a model, 20 signals in a message",
            config: MEMBERS,
            machines: 100,
            shape: Shape::Members { signals: 20 },
            ..usual
        },
        Workload {
            name: "samples",
            about: "20 machines without a model, 2 signals of 100 samples in a message",
            config: SAMPLES,
            machines: 20,
            shape: Shape::Samples { signals: 2, samples: 100 },
            ..usual
        },
        Workload {
            name: "paced",
            about: "100 machines, 10,000 messages a second, each makes a verdict",
            machines: 100,
            step_ms: 10,
            ..paced
        },
        Workload {
            name: "durable",
            about: "like paced, from a broker within the harness",
            by: By::Harness,
            machines: 100,
            step_ms: 10,
            ..paced
        },
        Workload {
            name: "modbus",
            about: "100 Modbus devices without a model, 200 registers as 100 f32 each, 10 times a second",
            by: By::Modbus,
            pace: Some(0.0),
            ..usual
        },
        Workload {
            name: "alarm",
            about: "like paced, and one machine more has alarms, which are published to MQTT",
            machines: 100,
            step_ms: 10,
            probed: true,
            ..paced
        },
        Workload { name: "grow-10", about: "like paced with 10 machines", machines: 10, step_ms: 1, ..paced },
        Workload { name: "grow-1000", about: "like paced with 1,000 machines", machines: 1000, step_ms: 100, ..paced },
        Workload {
            name: "grow-10000",
            about: "like paced with 10,000 machines",
            machines: 10_000,
            step_ms: 1000,
            ..paced
        },
        Workload { name: "idle", about: "without a model, and nothing comes", pace: Some(0.0), ..usual },
        Workload {
            name: "outage",
            about: "like scored; the cloud is away and the agent is killed",
            scored: true,
            outage: true,
            ..usual
        },
        usual,
    ]
}
