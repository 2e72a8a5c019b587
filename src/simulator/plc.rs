//! A Modbus TCP device made of memory: tables that the simulation writes and clients read, and
//! faults to order. For the demo and for tests; it listens where it is told, loopback as a rule.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_modbus::server::Service;
use tokio_modbus::server::tcp::Server;
use tokio_modbus::{ExceptionCode, Request, Response};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use crate::metrics::lock;
use crate::source::modbus::registers::Table;

/// Clients at a time; small, as in a real device. Further ones are turned away.
const MAX_CONNECTIONS: usize = 8;

/// A running device. It stops, and its connections close, when the last clone is dropped.
#[derive(Clone)]
pub struct Plc {
    address: SocketAddr,
    device: Arc<Device>,
    _running: Arc<DropGuard>,
}

/// What the device holds and how it misbehaves.
#[derive(Default)]
struct Device {
    /// Addresses nobody has written read as 0, unless unmapped.
    tables: Mutex<BTreeMap<Table, BTreeMap<u16, u16>>>,
    faults: Mutex<Faults>,
    requests: AtomicU64,
    connections: AtomicU64,
}

#[derive(Clone, Default)]
struct Faults {
    silent: bool,
    exception: Option<u8>,
    delay: Duration,
    unmapped: Vec<(Table, Range<u32>)>,
}

impl Plc {
    /// Listens on `address`, port 0 for any.
    ///
    /// # Errors
    ///
    /// When the address cannot be had.
    pub async fn start(address: SocketAddr) -> io::Result<Plc> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let device = Arc::<Device>::default();
        let stop = CancellationToken::new();
        tokio::spawn(serve(listener, device.clone(), stop.clone()));
        Ok(Plc { address, device, _running: Arc::new(stop.drop_guard()) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets one register, or one bit (0 or 1) in a table of bits.
    pub fn set(&self, table: Table, at: u16, value: u16) {
        self.set_all(table, at, &[value]);
    }

    /// Sets neighbours at once: no client sees one without the others. What would lie beyond the
    /// last address is left out.
    pub fn set_all(&self, table: Table, at: u16, values: &[u16]) {
        let mut tables = lock(&self.device.tables);
        let cells = tables.entry(table).or_default();
        cells.extend((at..=u16::MAX).zip(values.iter().copied()));
    }

    /// Sets two registers to an IEEE 754 value, most significant first (`ABCD`).
    pub fn set_f32(&self, table: Table, at: u16, value: f32) {
        let [a, b, c, d] = value.to_be_bytes();
        self.set_all(table, at, &[u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]);
    }

    /// Sets one bit in a table of bits.
    pub fn set_bit(&self, table: Table, at: u16, on: bool) {
        self.set(table, at, u16::from(on));
    }

    /// A silent device takes requests and never answers.
    pub fn set_silent(&self, silent: bool) {
        lock(&self.device.faults).silent = silent;
    }

    /// Answers every request with this exception.
    pub fn set_exception(&self, code: Option<u8>) {
        lock(&self.device.faults).exception = code;
    }

    /// Answers this much later.
    pub fn set_delay(&self, delay: Duration) {
        lock(&self.device.faults).delay = delay;
    }

    /// Requests that touch these addresses are answered with exception 2 from now on.
    pub fn unmap(&self, table: Table, range: Range<u32>) {
        lock(&self.device.faults).unmapped.push((table, range));
    }

    /// Undoes every [`Plc::unmap`].
    pub fn map_all(&self) {
        lock(&self.device.faults).unmapped.clear();
    }

    /// How many requests came so far.
    pub fn requests(&self) -> u64 {
        self.device.requests.load(Ordering::Relaxed)
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> u64 {
        self.device.connections.load(Ordering::Relaxed)
    }
}

async fn serve(listener: TcpListener, device: Arc<Device>, stop: CancellationToken) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let accept = |stream: TcpStream, _| {
        let slot = slots.clone().try_acquire_owned().ok();
        let device = device.clone();
        async move {
            let Some(slot) = slot else { return Ok(None) };
            device.connections.fetch_add(1, Ordering::Relaxed);
            stream.set_nodelay(true)?;
            Ok(Some((Client { device, _slot: slot }, stream)))
        }
    };
    let server = Server::new(listener);
    loop {
        let failed = |e| debug!("a client of the simulated device failed: {e}");
        tokio::select! {
            () = stop.cancelled() => return,
            // It ends only when accepting fails, for instance for want of file descriptors.
            Err(e) = server.serve(&accept, failed) => debug!("the simulated device cannot accept: {e}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// One connection.
struct Client {
    device: Arc<Device>,
    _slot: OwnedSemaphorePermit,
}

impl Service for Client {
    type Request = Request<'static>;
    type Response = Option<Response>;
    type Exception = ExceptionCode;
    type Future = Pin<Box<dyn Future<Output = Result<Option<Response>, ExceptionCode>> + Send>>;

    fn call(&self, request: Request<'static>) -> Self::Future {
        let device = self.device.clone();
        Box::pin(async move {
            device.requests.fetch_add(1, Ordering::Relaxed);
            let faults = lock(&device.faults).clone();
            if !faults.delay.is_zero() {
                sleep(faults.delay).await;
            }
            if faults.silent {
                return Ok(None);
            }
            match faults.exception {
                Some(code) => Err(ExceptionCode::new(code)),
                None => device.answer(&request, &faults).map(Some),
            }
        })
    }
}

impl Device {
    fn answer(&self, request: &Request<'_>, faults: &Faults) -> Result<Response, ExceptionCode> {
        let read = |table, at, count| self.read(table, at, count, faults);
        let bits = |words: Vec<u16>| words.into_iter().map(|w| w != 0).collect();
        match *request {
            Request::ReadCoils(at, count) => Ok(Response::ReadCoils(bits(read(Table::Coil, at, count)?))),
            Request::ReadDiscreteInputs(at, count) => {
                Ok(Response::ReadDiscreteInputs(bits(read(Table::Discrete, at, count)?)))
            }
            Request::ReadInputRegisters(at, count) => Ok(Response::ReadInputRegisters(read(Table::Input, at, count)?)),
            Request::ReadHoldingRegisters(at, count) => {
                Ok(Response::ReadHoldingRegisters(read(Table::Holding, at, count)?))
            }
            _ => Err(ExceptionCode::IllegalFunction),
        }
    }

    fn read(&self, table: Table, at: u16, count: u16, faults: &Faults) -> Result<Vec<u16>, ExceptionCode> {
        let most = if table.is_bits() { 2000 } else { 125 };
        if count == 0 || count > most {
            return Err(ExceptionCode::IllegalDataValue);
        }
        let (start, end) = (u32::from(at), u32::from(at) + u32::from(count));
        let unmapped = |(t, r): &(Table, Range<u32>)| *t == table && r.start < end && start < r.end;
        if end > 65536 || faults.unmapped.iter().any(unmapped) {
            return Err(ExceptionCode::IllegalDataAddress);
        }
        let tables = lock(&self.tables);
        let cells = tables.get(&table);
        Ok((at..=u16::MAX).take(count.into()).map(|a| cells.and_then(|c| c.get(&a)).copied().unwrap_or(0)).collect())
    }
}
