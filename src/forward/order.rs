//! What a sink gets first when much waits.

use super::privacy::Privacy;
use crate::settings::Section;

/// Of routine records; alarms go before them always.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// After an outage what comes live goes before the backlog, which gets the rest.
    LiveFirst,
    /// As they came.
    OldestFirst,
}

impl Order {
    /// Reads `order`. Sums over an interval are closed when a later one is over, so they need records as
    /// they came.
    pub fn read(s: &Section<'_>, otherwise: Order, privacy: &Privacy) -> Order {
        let words = [("live_first", Order::LiveFirst), ("oldest_first", Order::OldestFirst)];
        let order = s.choice("order", &words);
        if privacy.aggregate.is_none() {
            return order.unwrap_or(otherwise);
        }
        if order == Some(Order::LiveFirst) {
            s.problem("order", "is \"live_first\", but `aggregate` sums records up as they came");
        }
        Order::OldestFirst
    }
}
