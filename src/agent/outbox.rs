//! The store's outbox as the forwarders want it.

use std::future::Future;

use anyhow::Result;

use crate::forward;
use crate::forward::order::Order;
use crate::store;
use crate::types::{Stored, Time};

/// One sink's reader.
#[derive(Clone)]
pub struct Adapter(store::Outbox);

impl Adapter {
    /// Wraps a reader, to give records in this order.
    pub fn new(outbox: store::Outbox, order: Order) -> Adapter {
        match order {
            Order::LiveFirst => Adapter(outbox.live_first()),
            Order::OldestFirst => Adapter(outbox),
        }
    }
}

impl forward::Outbox for Adapter {
    async fn ready(&self) -> bool {
        self.0.ready().await.is_ok()
    }

    async fn next(&self, max_records: usize, max_bytes: usize) -> Result<Vec<Stored>> {
        Ok(self.0.next(max_records, max_bytes).await?)
    }

    fn urgent_waits(&self) -> bool {
        self.0.urgent_waits()
    }

    async fn urgent(&self, max_records: usize, max_bytes: usize) -> Result<Vec<Stored>> {
        Ok(self.0.next_urgent(max_records, max_bytes).await?)
    }

    fn ack(&self, records: &[Stored]) -> impl Future<Output = Result<()>> + Send {
        self.0.ack(records);
        std::future::ready(Ok(()))
    }

    async fn dead_letter(&self, record: &Stored, reason: &str) -> Result<()> {
        Ok(self.0.dead_letter(record.clone(), reason).await?)
    }

    fn heard_time(&self, at: Time) {
        self.0.confirm_clock(at);
    }
}
