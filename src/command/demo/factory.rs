//! Drives the plant in real time: pumps and press publish over MQTT, motors are read from PLCs.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::mqtt::{self, Client, Connection, Event, Link, Outgoing, Qos};
use crate::simulator::plant::{DT, Layout, Link as Wire, MachineSpec, MachineStep, Plant};
use crate::simulator::plc::Plc;
use crate::source::modbus::registers::Table;
use crate::types::{Name, Time};

/// From opening to the first step, so that the agent is there when the plant begins.
const LEAD: Duration = Duration::from_millis(1_500);

/// The factory before it runs.
pub struct Factory {
    plant: Plant,
    layout: Layout,
    broker: SocketAddr,
    link: Link,
    plcs: Vec<(Name, Plc)>,
    step: Duration,
    begin: Instant,
    begin_time: Time,
}

/// The factory at work.
pub struct Running {
    hush: CancellationToken,
    stop: CancellationToken,
    published: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Factory {
    /// Connects to the broker and starts a PLC for each motor.
    pub async fn open(plant: Plant, layout: Layout, broker: SocketAddr, speed: f64) -> Result<Factory> {
        let url = mqtt::Address::parse(&format!("mqtt://{broker}")).map_err(anyhow::Error::msg)?;
        let connection = Connection { clean: true, ..Connection::new(vec![url.clone()], "plant") };
        let mut link = mqtt::open(&connection, &url, None)?;
        match link.next().await {
            Event::Connected { .. } => {}
            other => bail!("the plant cannot reach the demo's broker: {other:?}"),
        }
        let mut plcs = Vec::new();
        for machine in layout.machines.iter().filter(|m| m.link == Wire::Modbus) {
            let plc = Plc::start((Ipv4Addr::LOCALHOST, 0).into()).await.context("starting a simulated PLC")?;
            plcs.push((machine.name.clone(), plc));
        }
        let step = Duration::from_secs_f64(DT / speed);
        // Payload times lie on the grid the agent aligns to, as a PLC's cycle would.
        let grid = step.as_nanos() as i64;
        let begin_time = Time((Time::now().plus(LEAD).0 / grid + 1) * grid);
        let begin = Instant::now() + begin_time.since(Time::now());
        Ok(Factory { plant, layout, broker, link, plcs, step, begin, begin_time })
    }

    /// Where the broker is.
    pub fn broker(&self) -> SocketAddr {
        self.broker
    }

    /// Real time of a plant step.
    pub fn step(&self) -> Duration {
        self.step
    }

    /// Its machines.
    pub fn machines(&self) -> &[MachineSpec] {
        &self.layout.machines
    }

    /// The PLC of a motor.
    pub fn plc(&self, machine: &str) -> Option<SocketAddr> {
        self.plcs.iter().find(|(name, _)| &**name == machine).map(|(_, p)| p.address())
    }

    /// When the plant's time began or will begin.
    pub fn begin(&self) -> (Instant, Time) {
        (self.begin, self.begin_time)
    }

    /// Lets it run until stopped.
    pub fn start(mut self) -> Running {
        let (hush, stop) = (CancellationToken::new(), CancellationToken::new());
        let published = Arc::new(AtomicU64::new(0));
        let (quiet, halt, count) = (hush.clone(), stop.clone(), published.clone());
        let task = tokio::spawn(async move {
            tokio::select! {
                () = halt.cancelled() => {}
                () = self.run(&quiet, &count) => {}
            }
            // What was handed to the client still goes out.
            self.link.client.disconnect();
            while !matches!(self.link.next().await, Event::Disconnected(_)) {}
        });
        Running { hush, stop, published, task }
    }

    async fn run(&mut self, hush: &CancellationToken, published: &AtomicU64) {
        for n in 0u32.. {
            let offset = self.step * n;
            self.until(self.begin + offset).await;
            let step = self.plant.step();
            let at = self.begin_time.plus(offset);
            for machine in &step.machines {
                match self.plcs.iter().find(|(name, _)| *name == machine.machine) {
                    Some((_, plc)) => write_registers(plc, machine),
                    None if hush.is_cancelled() => {}
                    None => publish(&self.link.client, machine, at, published).await,
                }
            }
        }
    }

    /// Waits for the next step while the connection's events are taken off its hands.
    async fn until(&mut self, next: Instant) {
        let alarm = tokio::time::sleep_until(next.into());
        tokio::pin!(alarm);
        loop {
            tokio::select! {
                () = &mut alarm => return,
                event = self.link.next() => if let Event::Disconnected(why) = event {
                    tracing::error!(why, "the demo's broker has gone");
                    std::future::pending::<()>().await;
                },
            }
        }
    }
}

impl Running {
    /// Publishes no more; how many messages there were. The machines run on, and their PLCs with
    /// them, so that those who still poll see no frozen plant.
    pub async fn hush(&self) -> u64 {
        self.hush.cancel();
        // A step under way still publishes; it has ended once the count rests.
        let mut before = None;
        while before != Some(self.published.load(Ordering::Relaxed)) {
            before = Some(self.published.load(Ordering::Relaxed));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.published.load(Ordering::Relaxed)
    }

    /// Stops the plant.
    pub async fn stop(self) {
        self.stop.cancel();
        // The connection ends within its own time limit.
        let _ = self.task.await;
    }
}

async fn publish(client: &Client, machine: &MachineStep, at: Time, published: &AtomicU64) {
    for (signal, value) in &machine.values {
        let Some(value) = value else { continue };
        let message = Outgoing {
            topic: format!("factory/hall-1/{}/{signal}", machine.machine),
            payload: format!("{{\"value\":{value:.4},\"ts\":{}}}", at.0 / 1_000).into(),
            qos: Qos::AtLeastOnce,
            retain: false,
        };
        while client.publish(&message).is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        published.fetch_add(1, Ordering::Relaxed);
    }
}

/// Each signal is a float in two holding registers, from address 0 on.
fn write_registers(plc: &Plc, machine: &MachineStep) {
    plc.set_silent(machine.device_timeout);
    plc.set_exception(machine.device_exception.then_some(4));
    for (i, (_, value)) in machine.values.iter().enumerate() {
        // A sensor that is gone reads as NaN, as many transmitters do.
        plc.set_f32(Table::Holding, 2 * i as u16, value.map_or(f32::NAN, |v| v as f32));
    }
}
