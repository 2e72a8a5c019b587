//! An outbox in memory: bounded, and gone with the process. For tests and simulations.

use std::collections::VecDeque;
use std::sync::Mutex;

use anyhow::{Result, bail, ensure};
use tokio::sync::Notify;

use super::Outbox;
use crate::metrics::lock;
use crate::types::{Record, Stored};

/// How many dead letters are kept; older ones make room.
const MAX_DEAD: usize = 10_000;

/// A queue of records that numbers what it is given.
pub struct MemoryOutbox {
    capacity: usize,
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Stored>,
    dead: VecDeque<(Stored, String)>,
    pushed: u64,
    acked: u64,
    closed: bool,
}

impl MemoryOutbox {
    /// An empty queue for at most `capacity` records.
    pub fn new(capacity: usize) -> MemoryOutbox {
        MemoryOutbox { capacity, inner: Mutex::default(), changed: Notify::new() }
    }

    /// Adds a record, or gives it back when the queue is full or closed.
    pub fn push(&self, record: Record) -> Result<u64, Record> {
        let mut inner = lock(&self.inner);
        if inner.closed || inner.waiting.len() >= self.capacity {
            return Err(record);
        }
        inner.pushed += 1;
        let sequence = inner.pushed;
        inner.waiting.push_back(Stored { sequence, record });
        drop(inner);
        self.changed.notify_waiters();
        Ok(sequence)
    }

    /// Nothing more will come.
    pub fn close(&self) {
        lock(&self.inner).closed = true;
        self.changed.notify_waiters();
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        lock(&self.inner).waiting.len()
    }

    /// How many were acked.
    pub fn acked(&self) -> u64 {
        lock(&self.inner).acked
    }

    /// What was set aside, with the reasons.
    pub fn dead(&self) -> Vec<(Stored, String)> {
        lock(&self.inner).dead.iter().cloned().collect()
    }

    fn state(&self) -> Option<bool> {
        let inner = lock(&self.inner);
        if inner.waiting.is_empty() { inner.closed.then_some(false) } else { Some(true) }
    }
}

impl Outbox for MemoryOutbox {
    async fn ready(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before looking, so that a push in between is not missed.
            changed.as_mut().enable();
            if let Some(state) = self.state() {
                return state;
            }
            changed.await;
        }
    }

    async fn next(&self, max_records: usize, max_bytes: usize) -> Result<Vec<Stored>> {
        let inner = lock(&self.inner);
        let mut bytes = 0;
        let fits = |s: &&Stored| {
            let first = bytes == 0;
            bytes += s.record.data.len().max(1);
            first || bytes <= max_bytes
        };
        Ok(inner.waiting.iter().take(max_records.max(1)).take_while(fits).cloned().collect())
    }

    async fn ack(&self, records: &[Stored]) -> Result<()> {
        let mut inner = lock(&self.inner);
        for record in records {
            let front = inner.waiting.front().map(|s| s.sequence);
            ensure!(front == Some(record.sequence), "acked {} while {front:?} is first", record.sequence);
            inner.waiting.pop_front();
            inner.acked += 1;
        }
        Ok(())
    }

    async fn dead_letter(&self, record: &Stored, reason: &str) -> Result<()> {
        let mut inner = lock(&self.inner);
        match inner.waiting.pop_front() {
            Some(front) if front.sequence == record.sequence => {
                if inner.dead.len() == MAX_DEAD {
                    inner.dead.pop_front();
                }
                inner.dead.push_back((front, reason.to_owned()));
                Ok(())
            }
            Some(front) => {
                let first = front.sequence;
                inner.waiting.push_front(front);
                bail!("set aside {} while {first} is first", record.sequence)
            }
            None => bail!("set aside {} while nothing waits", record.sequence),
        }
    }
}
