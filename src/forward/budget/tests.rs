//! What a budget promises, whatever is asked of it and when.

use proptest::prelude::*;

use super::*;

const UNIT: u64 = 1_000_000;
const S: i64 = 1_000_000_000;

fn rules(limit: u64, reserve: u64, burst: u64) -> Rules {
    Rules { limit: limit * UNIT, period: Duration::from_secs(60), reserve: reserve * UNIT, burst: burst * UNIT }
}

/// Time since the last, why, and the cost in hundredths of a unit.
fn course() -> impl Strategy<Value = Vec<(i64, Asking, u64)>> {
    let reason = prop::sample::select(Asking::ALL.to_vec());
    let wait = prop_oneof![Just(0), 0..2 * S, 0..90 * S];
    prop::collection::vec((wait, reason, prop_oneof![Just(100), 1u64..500]), 0..200)
}

proptest! {
    #[test]
    fn no_period_ever_costs_more_than_its_budget(course in course(), reserve in 0u64..10, burst in 1u64..12) {
        let rules = rules(10, reserve, burst);
        let (mut ledger, mut now) = (Ledger::default(), 0);
        let mut spent: std::collections::BTreeMap<i64, (u64, u64)> = Default::default();
        let mut paced: Vec<(i64, u64)> = Vec::new();
        for (wait, reason, cost) in course {
            now += wait;
            let cost = cost * UNIT / 100;
            let (all, routine) = spent.entry(now / (60 * S)).or_default();
            let granted = ledger.charge(&rules, Time(now), reason, cost);
            if granted.is_ok() {
                *all += cost;
                if reason != Asking::Alarm {
                    *routine += cost;
                    paced.push((now, cost.min(rules.burst)));
                }
            } else if reason == Asking::Alarm {
                prop_assert!(*all + cost > rules.limit, "an alarm was denied though there was enough");
            }
            prop_assert!(*all <= rules.limit && *routine <= rules.limit - rules.reserve);
            prop_assert_eq!(ledger.spent, *all);
        }
        // The bucket: never more in any stretch than it holds and what came back in it.
        for (i, (from, _)) in paced.iter().enumerate() {
            let mut sum = 0;
            for (at, cost) in &paced[i..] {
                sum += cost;
                let back = (at - from) as f64 * rules.limit as f64 / (60 * S) as f64;
                prop_assert!(sum as f64 <= rules.burst as f64 + back + 2.0, "{sum} in {} s", (at - from) / S);
            }
        }
    }

    #[test]
    fn the_reserve_is_there_for_alarms(course in course()) {
        let rules = rules(10, 3, 10);
        let (mut ledger, mut now, mut alarms) = (Ledger::default(), 0, std::collections::BTreeMap::<i64, u64>::new());
        for (wait, reason, cost) in course {
            now += wait;
            let cost = cost * UNIT / 100;
            let granted = ledger.charge(&rules, Time(now), reason, cost).is_ok();
            if reason == Asking::Alarm {
                let own = alarms.entry(now / (60 * S)).or_default();
                prop_assert!(granted || *own + cost > rules.reserve, "alarms had {own} of the reserve");
                *own += if granted { cost } else { 0 };
            }
        }
    }

    #[test]
    fn a_refund_undoes_a_charge_and_never_more(course in course(), back in prop::collection::vec(any::<bool>(), 200)) {
        let rules = rules(10, 2, 4);
        let (mut ledger, mut now) = (Ledger::default(), 0);
        let mut kept = 0u64;
        let mut period = 0;
        for ((wait, reason, cost), back) in course.into_iter().zip(back) {
            now += wait;
            let cost = cost * UNIT / 100;
            if now / (60 * S) != period {
                (period, kept) = (now / (60 * S), 0);
            }
            ledger.advance(&rules, Time(now));
            let before = ledger.clone();
            if let Ok(charge) = ledger.charge(&rules, Time(now), reason, cost) {
                if back {
                    ledger.refund(&rules, charge);
                    prop_assert_eq!(&ledger, &before);
                } else {
                    kept += cost;
                }
            }
            prop_assert_eq!(ledger.spent, kept);
        }
    }

    #[test]
    fn what_is_restored_goes_on_the_same(course in course(), cut in any::<prop::sample::Index>()) {
        let rules = rules(10, 2, 4);
        let (mut one, mut now) = (Ledger::default(), 0);
        let cut = cut.index(course.len().max(1));
        let mut other: Option<Ledger> = None;
        for (i, (wait, reason, cost)) in course.into_iter().enumerate() {
            if i == cut {
                other = postcard::to_stdvec(&one).ok().and_then(|bytes| postcard::from_bytes(&bytes).ok());
            }
            now += wait;
            let a = one.charge(&rules, Time(now), reason, cost * UNIT / 100);
            if let Some(other) = &mut other {
                prop_assert_eq!(a, other.charge(&rules, Time(now), reason, cost * UNIT / 100));
            }
        }
    }

    #[test]
    fn no_clock_makes_it_panic(times in prop::collection::vec(any::<i64>(), 0..50), limit: u64, burst: u64, reserve: u64, cost: u64) {
        let rules = Rules { limit, burst, reserve, period: Duration::from_nanos(limit.max(1)) };
        let mut ledger = Ledger::default();
        for at in times {
            let done = ledger.charge(&rules, Time(at), Asking::Uncertain, cost);
            prop_assert!((0.0..=1.0).contains(&ledger.remaining(&rules, Time(at))));
            if let Ok(charge) = done {
                ledger.refund(&rules, charge);
            }
        }
    }
}

#[test]
fn it_stands_as_people_are_told() {
    let (rules, mut ledger, now) = (rules(10, 1, 10), Ledger::default(), Time(1_000 * S));
    let one = |ledger: &mut Ledger, reason| ledger.charge(&rules, now, reason, UNIT).map(|_| ());
    assert_eq!(ledger.standing(&rules, now, UNIT), Standing::Plenty);
    for _ in 0..8 {
        assert_eq!(one(&mut ledger, Asking::Uncertain), Ok(()));
    }
    assert_eq!((ledger.standing(&rules, now, UNIT), ledger.remaining(&rules, now)), (Standing::Low, 0.2));
    assert_eq!(one(&mut ledger, Asking::Audit), Ok(()));
    assert_eq!(ledger.standing(&rules, now, UNIT), Standing::AlarmsOnly);
    assert_eq!(one(&mut ledger, Asking::Uncertain), Err(Denied::Budget));
    assert_eq!(one(&mut ledger, Asking::Alarm), Ok(()));
    assert_eq!(ledger.standing(&rules, now, UNIT), Standing::Spent);
    assert_eq!(one(&mut ledger, Asking::Alarm), Err(Denied::Budget));
    let next = now.plus(Duration::from_secs(60));
    assert_eq!((ledger.standing(&rules, next, UNIT), ledger.remaining(&rules, next)), (Standing::Plenty, 1.0));
}

#[test]
fn a_clock_that_was_wrong_does_not_stop_it_for_ever() {
    let (rules, mut ledger) = (rules(10, 0, 10), Ledger::default());
    let wrong = Time(4_000_000_000 * S);
    for _ in 0..10 {
        assert!(ledger.charge(&rules, wrong, Asking::Uncertain, UNIT).is_ok());
    }
    assert_eq!(ledger.charge(&rules, wrong, Asking::Alarm, UNIT), Err(Denied::Budget));
    let right = Time(1_800_000_000 * S);
    assert!(ledger.charge(&rules, right, Asking::Alarm, UNIT).is_ok());
    // A step back by seconds, as of a clock that is put right, gives nothing.
    let back = right.minus(Duration::from_secs(40));
    assert!(ledger.charge(&rules, back, Asking::Alarm, 9 * UNIT).is_ok());
    assert_eq!(ledger.charge(&rules, back, Asking::Alarm, UNIT), Err(Denied::Budget));
}

#[test]
fn prices_add_up() {
    let prices = Prices { per_call: 1.0, per_1k_elements: 0.5, per_mb: 2.0 };
    assert_eq!(prices.cost(256), 1_000_000 + 128_000 + 2_048);
    assert_eq!(Prices::default().cost(1 << 20), UNIT);
}
