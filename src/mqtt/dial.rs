//! Which broker to try next, and how long to wait before it.

use std::time::Duration;

use super::Address;
use crate::backoff::Backoff;

/// First and longest wait between rounds.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A connection that lived this long was a good one: the next failure is a new story.
const GOOD_AFTER: Duration = Duration::from_secs(10);

/// Goes through the addresses in order; after a full round without success it waits, longer each time.
pub struct Dialer {
    addresses: Vec<Address>,
    at: usize,
    backoff: Backoff,
}

impl Dialer {
    /// Begins with the first address.
    pub fn new(addresses: Vec<Address>) -> Dialer {
        Dialer { addresses, at: 0, backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT) }
    }

    /// The address to try now; `None` only where there is none at all.
    pub fn address(&self) -> Option<&Address> {
        self.addresses.get(self.at)
    }

    /// The connection ended; it had lived for `lived` where it had come about. Says how long to
    /// wait before trying the next address. `random` is in 0..1.
    pub fn ended(&mut self, lived: Option<Duration>, random: f64) -> Duration {
        match lived {
            Some(lived) => {
                if lived >= GOOD_AFTER {
                    self.backoff.reset();
                }
                self.at = 0;
                self.backoff.after_failure(random)
            }
            None if self.at + 1 < self.addresses.len() => {
                self.at += 1;
                Duration::ZERO
            }
            None => {
                self.at = 0;
                self.backoff.after_failure(random)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialer() -> Dialer {
        let address = |host: &str| Address { tls: false, host: host.into(), port: 1883 };
        Dialer::new(vec![address("a"), address("b")])
    }

    fn host(d: &Dialer) -> &str {
        &d.address().expect("an address").host
    }

    #[test]
    fn the_second_is_tried_at_once_and_a_round_ends_with_a_wait() {
        let mut d = dialer();
        assert_eq!((d.ended(None, 1.0), host(&d)), (Duration::ZERO, "b"));
        assert_eq!((d.ended(None, 1.0), host(&d)), (FIRST_WAIT, "a"));
        assert_eq!(d.ended(None, 1.0), Duration::ZERO);
        assert_eq!((d.ended(None, 1.0), host(&d)), (2 * FIRST_WAIT, "a"));
    }

    #[test]
    fn a_broker_that_throws_us_out_at_once_is_not_hammered() {
        let mut d = dialer();
        let waits: Vec<Duration> = (0..12).map(|_| d.ended(Some(Duration::from_millis(1)), 1.0)).collect();
        assert_eq!(waits.last(), Some(&LONGEST_WAIT));
        assert_eq!((d.ended(Some(GOOD_AFTER), 1.0), host(&d)), (FIRST_WAIT, "a"));
    }
}
