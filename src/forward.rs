//! Everything that leaves: the cloud sink and its fellows, results published to MQTT, questions to a larger
//! model; and new models that come.
//! A sink reads from an [`Outbox`], sends what waits there, and advances only past what was taken
//! or set aside; so whatever happens in between, nothing is skipped.

use std::future::Future;
use std::sync::Arc;

use crate::types::{Stored, Time};

pub mod aggregate;
pub mod bridge;
pub mod budget;
pub mod cloud;
pub mod cloud_events;
pub mod deliver;
pub mod delivery;
mod dialing;
mod ending;
pub mod file;
pub mod inference;
pub mod memory;
pub mod nats;
pub mod order;
pub mod plan;
pub mod privacy;
pub mod publish;
pub mod reply;
mod report;
pub mod retry;
pub mod sinks;
pub mod sparkplug;

/// Where records wait for one sink, and how far that sink has come. The store's outbox is one; a
/// plain in-memory queue ([`memory::MemoryOutbox`]) is another.
pub trait Outbox: Send + Sync + 'static {
    /// Resolves to `true` as soon as something waits, and to `false` once nothing waits and nothing
    /// will come any more. Dropping the future loses nothing.
    fn ready(&self) -> impl Future<Output = bool> + Send;

    /// What waits next: at most this many records and about this many bytes of `data`, but at least
    /// one record if any waits. Urgent ones first. Does not advance: asked again, it answers with
    /// the same records or with more; but what is live may go before what it gave of a backlog.
    fn next(&self, max_records: usize, max_bytes: usize) -> impl Future<Output = anyhow::Result<Vec<Stored>>> + Send;

    /// Whether something urgent waits. Cheap: asked before each request.
    fn urgent_waits(&self) -> bool {
        false
    }

    /// As [`Outbox::next`], but only what is urgent. To be acked apart from what [`Outbox::next`] gave, which
    /// stays as it is.
    fn urgent(&self, max_records: usize, max_bytes: usize) -> impl Future<Output = anyhow::Result<Vec<Stored>>> + Send {
        let _ = (max_records, max_bytes);
        std::future::ready(Ok(Vec::new()))
    }

    /// These are delivered: advance past them. Always the front of what [`Outbox::next`] or
    /// [`Outbox::urgent`] gave last, as far as that is not yet acked or set aside. Records evicted meanwhile are passed over: that
    /// is no error.
    fn ack(&self, records: &[Stored]) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// This one will never be taken: keep it aside with the reason and advance past it. Always the
    /// first one that is not yet acked or set aside.
    fn dead_letter(&self, record: &Stored, reason: &str) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// The other side says that it is this time. What ages records may hold its own clock against it.
    fn heard_time(&self, at: Time) {
        let _ = at;
    }
}

impl<O: Outbox> Outbox for Arc<O> {
    fn ready(&self) -> impl Future<Output = bool> + Send {
        O::ready(self)
    }

    fn next(&self, max_records: usize, max_bytes: usize) -> impl Future<Output = anyhow::Result<Vec<Stored>>> + Send {
        O::next(self, max_records, max_bytes)
    }

    fn urgent_waits(&self) -> bool {
        O::urgent_waits(self)
    }

    fn urgent(&self, max_records: usize, max_bytes: usize) -> impl Future<Output = anyhow::Result<Vec<Stored>>> + Send {
        O::urgent(self, max_records, max_bytes)
    }

    fn ack(&self, records: &[Stored]) -> impl Future<Output = anyhow::Result<()>> + Send {
        O::ack(self, records)
    }

    fn dead_letter(&self, record: &Stored, reason: &str) -> impl Future<Output = anyhow::Result<()>> + Send {
        O::dead_letter(self, record, reason)
    }

    fn heard_time(&self, at: Time) {
        O::heard_time(self, at);
    }
}
