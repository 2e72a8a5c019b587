//! What asking a larger model may cost: a budget for each period with a reserve for alarms, and a token
//! bucket that spreads the rest over it. Pure: time comes in with each call, and all state is here.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{Asking, Time};

/// Costs are counted in millionths of a unit, so that sums are exact.
pub const MICRO: f64 = 1e6;

/// The share of the budget from which on it is said to be nearly spent, in percent.
const WARN_PERCENT: u64 = 80;

/// What one question costs, in units of the budget.
#[derive(Copy, Clone, Debug, PartialEq)]
pub struct Prices {
    /// For each.
    pub per_call: f64,
    /// For each thousand values of the window.
    pub per_1k_elements: f64,
    /// For each million bytes of the window, at four bytes a value.
    pub per_mb: f64,
}

impl Default for Prices {
    fn default() -> Prices {
        Prices { per_call: 1.0, per_1k_elements: 0.0, per_mb: 0.0 }
    }
}

impl Prices {
    /// Of a window of so many values, in millionths.
    pub fn cost(&self, elements: usize) -> u64 {
        let n = elements as f64;
        let units = self.per_call + self.per_1k_elements * n / 1e3 + self.per_mb * n * 4.0 / 1e6;
        (units * MICRO).round() as u64
    }
}

/// How much there is; all in millionths of a unit.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// In each period.
    pub limit: u64,
    /// Periods are counted from 1970-01-01T00:00Z: days begin at midnight UTC.
    pub period: Duration,
    /// The part of `limit` that only alarms may use.
    pub reserve: u64,
    /// What may be spent at once; comes back evenly, `limit` in each period. Alarms do not wait for it.
    pub burst: u64,
}

/// Why a question is not asked.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The budget of this period is spent, as far as it is for this.
    Budget,
    /// Too much at once.
    Rate,
}

impl Denied {
    /// The word used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Denied::Budget => "budget",
            Denied::Rate => "rate",
        }
    }
}

/// How a budget stands.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Well.
    Plenty,
    /// Most of it is spent.
    Low,
    /// Only alarms are asked about.
    AlarmsOnly,
    /// Nothing is asked any more.
    Spent,
}

/// What was charged, and when: what a refund needs.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// In millionths.
    pub cost: u64,
    /// Taken from the bucket too.
    paced: bool,
    period: i64,
}

/// What was spent. The default has spent nothing, ever.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    period: i64,
    spent: u64,
    /// Missing from a full bucket, and until when that is counted.
    drawn: u64,
    counted: Time,
}

impl Ledger {
    /// Takes the cost of a question, unless there is not enough.
    pub fn charge(&mut self, rules: &Rules, now: Time, reason: Asking, cost: u64) -> Result<Charge, Denied> {
        self.advance(rules, now);
        let paced = reason != Asking::Alarm;
        let limit = if paced { rules.limit.saturating_sub(rules.reserve) } else { rules.limit };
        if self.spent.saturating_add(cost) > limit {
            return Err(Denied::Budget);
        }
        // What costs more than a full bucket holds waits for a full one.
        let draw = cost.min(rules.burst);
        if paced && self.drawn.saturating_add(draw) > rules.burst {
            return Err(Denied::Rate);
        }
        self.spent += cost;
        self.drawn = self.drawn.saturating_add(if paced { draw } else { 0 });
        Ok(Charge { cost, paced, period: self.period })
    }

    /// Gives back what came to nothing. What was charged in a period that is over is not given to this one.
    pub fn refund(&mut self, rules: &Rules, charge: Charge) {
        if charge.period == self.period {
            self.spent = self.spent.saturating_sub(charge.cost);
        }
        if charge.paced {
            self.drawn = self.drawn.saturating_sub(charge.cost.min(rules.burst));
        }
    }

    /// The part of the budget that is left at this time, 0..1.
    pub fn remaining(&self, rules: &Rules, now: Time) -> f64 {
        let mut then = self.clone();
        then.advance(rules, now);
        rules.limit.saturating_sub(then.spent) as f64 / rules.limit.max(1) as f64
    }

    /// How it stands at this time, for a question of this cost.
    pub fn standing(&self, rules: &Rules, now: Time, cost: u64) -> Standing {
        let mut then = self.clone();
        then.advance(rules, now);
        let with = then.spent.saturating_add(cost);
        if with > rules.limit {
            Standing::Spent
        } else if with > rules.limit.saturating_sub(rules.reserve) {
            Standing::AlarmsOnly
        } else if u128::from(then.spent) * 100 >= u128::from(rules.limit) * u128::from(WARN_PERCENT) {
            Standing::Low
        } else {
            Standing::Plenty
        }
    }

    /// Brings period and bucket to this time. A clock that went back by less than a period changes
    /// nothing; one that went back further was wrong before.
    fn advance(&mut self, rules: &Rules, now: Time) {
        let period = nanos(rules.period);
        let index = now.0.div_euclid(period);
        if index > self.period || index < self.period.saturating_sub(1) {
            (self.period, self.spent) = (index, 0);
        }
        if now < self.counted {
            if self.counted.since(now) > rules.period {
                self.counted = now;
            }
            return;
        }
        let gone = u128::from(now.since(self.counted).as_nanos() as u64);
        let back = u64::try_from(gone * u128::from(rules.limit) / period as u128).unwrap_or(u64::MAX);
        if back >= self.drawn {
            (self.drawn, self.counted) = (0, now);
        } else if back > 0 {
            self.drawn -= back;
            // Only the time that made whole millionths: the rest goes on counting.
            let used = (u128::from(back) * period as u128).div_ceil(u128::from(rules.limit.max(1)));
            self.counted = Time(self.counted.0.saturating_add(i64::try_from(used).unwrap_or(i64::MAX)));
        }
    }
}

fn nanos(d: Duration) -> i64 {
    i64::try_from(d.as_nanos()).unwrap_or(i64::MAX).max(1)
}

#[cfg(test)]
mod tests;
