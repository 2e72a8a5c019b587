//! The times of a signal's readings taken of late, by which a repeat is told from a straggler. A busy
//! machine has a hundred thousand of them, so they are kept as distances: four bytes each and not sixteen.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Times in a block at most; they are forgotten a block at a time.
const BLOCK: usize = 64;

/// A set of times, each with the moment at which it was last heard.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recent {
    /// Rising, and apart from each other.
    blocks: VecDeque<Block>,
    len: usize,
}

/// Times that lie close together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Block {
    first: i64,
    /// When one of them was last heard.
    heard: i64,
    /// Nanoseconds from the first, rising; the first's own 0 is among them.
    offsets: Vec<u32>,
}

impl Block {
    fn of(at: i64, heard: i64) -> Block {
        Block { first: at, heard, offsets: vec![0] }
    }

    /// How far `at` is from the first, where a block can hold that.
    fn offset(&self, at: i64) -> Option<u32> {
        u32::try_from(at.checked_sub(self.first)?).ok()
    }

    /// The later half as a block of its own.
    fn split(&mut self) -> Block {
        let rest = self.offsets.split_off(self.offsets.len() / 2);
        let base = rest[0];
        let offsets = rest.into_iter().map(|o| o - base).collect();
        Block { first: self.first + i64::from(base), heard: self.heard, offsets }
    }
}

impl Recent {
    /// Whether this time is known; if so it counts as heard at `now`.
    pub fn hear(&mut self, at: i64, now: i64) -> bool {
        if self.is_newest(at) {
            return false;
        }
        let after = self.blocks.partition_point(|b| b.first <= at);
        let Some(block) = after.checked_sub(1).and_then(|i| self.blocks.get_mut(i)) else { return false };
        let known = block.offset(at).is_some_and(|o| block.offsets.binary_search(&o).is_ok());
        if known {
            block.heard = now;
        }
        known
    }

    /// Remembers a time that is not known yet.
    pub fn insert(&mut self, at: i64, now: i64) {
        self.len += 1;
        // The usual one needs no search, which would wake up memory that has gone cold.
        let newest = self.is_newest(at);
        let after = if newest { self.blocks.len() } else { self.blocks.partition_point(|b| b.first <= at) };
        let Some(before) = after.checked_sub(1) else {
            return self.blocks.push_front(Block::of(at, now));
        };
        let block = &mut self.blocks[before];
        let Some(mut offset) = block.offset(at) else {
            return self.blocks.insert(after, Block::of(at, now));
        };
        let mut target = before;
        if block.offsets.len() >= BLOCK {
            if block.offsets.last().is_some_and(|last| *last < offset) {
                return self.blocks.insert(after, Block::of(at, now));
            }
            let later = block.split();
            if later.first <= at {
                (target, offset) = (after, (at - later.first) as u32);
            }
            self.blocks.insert(after, later);
        }
        let block = &mut self.blocks[target];
        block.heard = now;
        let place = block.offsets.partition_point(|o| *o < offset);
        block.offsets.insert(place, offset);
    }

    /// Forgets the earliest: those not heard since `old`, and those beyond `keep`.
    pub fn forget(&mut self, old: i64, keep: usize) {
        while let Some(front) = self.blocks.front()
            && (front.heard < old || self.len - front.offsets.len() >= keep)
        {
            self.len -= front.offsets.len();
            self.blocks.pop_front();
        }
    }

    /// Whether it is later than all that is remembered.
    fn is_newest(&self, at: i64) -> bool {
        let last = |b: &Block| b.first.saturating_add(i64::from(b.offsets.last().copied().unwrap_or(0)));
        self.blocks.back().is_none_or(|b| at > last(b))
    }

    /// The earliest time that is remembered.
    pub fn first(&self) -> Option<i64> {
        self.blocks.front().map(|b| b.first)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// It knows what a plain set knows, whatever the order and the distances.
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((0i64..400, prop::sample::select(vec![1i64, 1_000_000, 100_000_000, 40_000_000_000])), 1..600)) {
            let (mut recent, mut plain) = (Recent::default(), BTreeSet::new());
            for (now, (n, unit)) in (0i64..).zip(steps) {
                let at = n * unit;
                prop_assert_eq!(recent.hear(at, now), plain.contains(&at));
                if plain.insert(at) {
                    recent.insert(at, now);
                }
                prop_assert_eq!(recent.first(), plain.first().copied());
                prop_assert_eq!(recent.len, plain.len());
            }
            let all: Vec<i64> = (recent.blocks.iter())
                .flat_map(|b| b.offsets.iter().map(|o| b.first + i64::from(*o)))
                .collect();
            prop_assert_eq!(all, plain.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_old_or_too_much_is_forgotten_from_the_earliest_on() {
        let mut recent = Recent::default();
        for n in 0..1000 {
            recent.insert(n * 10, n);
        }
        recent.forget(0, 500);
        assert!((500..500 + BLOCK).contains(&recent.len), "{}", recent.len);
        assert!(!recent.hear(0, 1000) && recent.hear(9_990, 1000));
        let first = recent.first().expect("some are left");
        assert!(recent.hear(first, 2000), "heard again, so kept");
        recent.forget(1500, 500);
        assert_eq!(recent.first(), Some(first));
        recent.forget(3000, 500);
        assert_eq!((recent.first(), recent.len), (None, 0));
    }

    #[test]
    fn the_ends_of_time_do_no_harm() {
        let mut recent = Recent::default();
        for at in [i64::MAX, i64::MIN, 0, i64::MAX - 1, i64::MIN + 1] {
            assert!(!recent.hear(at, 0));
            recent.insert(at, 0);
            assert!(recent.hear(at, 0));
        }
        assert_eq!(recent.len, 5);
    }
}
