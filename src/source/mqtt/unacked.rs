//! Messages that wait for their batch to be durable, in the order of delivery, which is also the
//! order MQTT wants the acks in. Belongs to one connection.

use std::collections::VecDeque;

use crate::mqtt::Ack;
use crate::types::{Receipt, ReceiptWaiter};

/// At most `receive_maximum` messages are unacked, so the queue needs no bound of its own.
#[derive(Default)]
pub struct Unacked {
    queue: VecDeque<(ReceiptWaiter, Vec<Ack>)>,
}

impl Unacked {
    /// Adds a batch's acks; gives the receipt to send along. QoS 0 needs none.
    pub fn add(&mut self, acks: Vec<Ack>) -> Option<Receipt> {
        if acks.is_empty() {
            return None;
        }
        let (receipt, waiter) = Receipt::new();
        self.queue.push_back((waiter, acks));
        Some(receipt)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The acks of the oldest batch once it is durable, or `None` when it will never be. Waits for
    /// ever while there is none. May be cancelled without losing anything.
    pub async fn next(&mut self) -> Option<Vec<Ack>> {
        let Some((waiter, _)) = self.queue.front_mut() else { return std::future::pending().await };
        let durable = waiter.await.is_ok();
        let (_, acks) = self.queue.pop_front()?;
        durable.then_some(acks)
    }
}
