//! What is sent next after each kind of answer.

use proptest::prelude::*;

use super::*;

impl Plan {
    /// The first that is to be sent or answered.
    fn piece(&self) -> Option<&[usize]> {
        self.pieces.front().map(|p| p.records.as_slice())
    }

    fn first(&self) -> Key {
        self.pieces.front().map_or(0, |p| p.key)
    }
}

fn pieces(plan: &Plan) -> Vec<Vec<usize>> {
    plan.pieces.iter().map(|p| p.records.clone()).collect()
}

fn settle_all(plan: &mut Plan) -> Vec<Settled> {
    std::iter::from_fn(|| plan.settle()).collect()
}

#[test]
fn an_accepted_batch_settles_at_once() {
    let mut plan = Plan::new(vec![10; 4], 500, 1000);
    assert_eq!(plan.piece(), Some([0, 1, 2, 3].as_slice()));
    assert_eq!(plan.settle(), None);
    plan.accepted(plan.first());
    assert_eq!(plan.piece(), None);
    assert_eq!(settle_all(&mut plan), [Settled::Delivered(0..4)]);
}

#[test]
fn pieces_keep_to_records_and_bytes() {
    assert_eq!(pieces(&Plan::new(vec![10; 5], 2, 1000)), [vec![0, 1], vec![2, 3], vec![4]]);
    let plan = Plan::new(vec![10, 10, 500, 10], 500, 30);
    assert_eq!(pieces(&plan), [vec![0, 1], vec![2], vec![3]]);
    assert_eq!(plan.bytes(&[0, 1]), r#"["12345678","12345678"]"#.len());
}

#[test]
fn bisecting_finds_the_one_poison_record() {
    let mut plan = Plan::new(vec![10; 500], 500, 1 << 20);
    let (mut requests, mut settled) = (0, Vec::new());
    while let Some(piece) = plan.piece() {
        requests += 1;
        if piece.contains(&321) {
            plan.refused(plan.first(), "422")
        } else {
            plan.accepted(plan.first())
        }
        settled.extend(settle_all(&mut plan));
    }
    assert!(requests < 20, "{requests} requests for one record of 500");
    let dead: Vec<&Settled> = settled.iter().filter(|s| matches!(s, Settled::Dead(..))).collect();
    assert_eq!(dead, [&Settled::Dead(321, "422".into())]);
    let delivered: usize = settled.iter().map(|s| if let Settled::Delivered(r) = s { r.len() } else { 0 }).sum();
    assert_eq!(delivered, 499);
}

#[test]
fn too_large_cuts_everything_that_follows() {
    let mut plan = Plan::new(vec![99; 9], 3, 1000);
    assert_eq!(plan.pieces.len(), 3);
    plan.too_large(plan.first(), 201, "413");
    assert_eq!(pieces(&plan), [vec![0, 1], vec![2], vec![3, 4], vec![5], vec![6, 7], vec![8]]);
    let mut single = Plan::new(vec![99], 3, 1000);
    single.too_large(single.first(), 50, "413");
    assert_eq!(settle_all(&mut single), [Settled::Dead(0, "413".into())]);
}

#[test]
fn records_with_their_own_fate_wait_for_those_before_them() {
    let mut plan = Plan::new(vec![10; 4], 500, 1000);
    plan.each(plan.first(), vec![Fate::Accepted, Fate::Later, Fate::Refused("422".into()), Fate::Accepted]);
    assert_eq!(settle_all(&mut plan), [Settled::Delivered(0..1)]);
    assert_eq!(plan.piece(), Some([1].as_slice()));
    plan.accepted(plan.first());
    let rest = [Settled::Delivered(1..2), Settled::Dead(2, "422".into()), Settled::Delivered(3..4)];
    assert_eq!(settle_all(&mut plan), rest);
}

#[test]
fn what_cannot_be_sent_is_left_out() {
    let mut plan = Plan::new(vec![10, 0, 10], 1, 1000);
    plan.unsendable(1, "not JSON");
    assert_eq!(pieces(&plan), [vec![0], vec![2]]);
    let mut alone = Plan::new(vec![0], 1, 1000);
    alone.unsendable(0, "not JSON");
    assert_eq!(alone.piece(), None);
    assert_eq!(settle_all(&mut alone), [Settled::Dead(0, "not JSON".into())]);
}

#[derive(Clone, Debug)]
enum Outcome {
    Accepted,
    Later,
    TooLarge,
    Refused,
    Each(Vec<u8>),
}

fn outcomes() -> impl Strategy<Value = Vec<Outcome>> {
    let one = prop_oneof![
        Just(Outcome::Accepted),
        Just(Outcome::Later),
        Just(Outcome::TooLarge),
        Just(Outcome::Refused),
        prop::collection::vec(0u8..3, 0..40).prop_map(Outcome::Each),
    ];
    prop::collection::vec(one, 0..60)
}

proptest! {
    /// Whatever the other side answers: each record is settled exactly once, in order; it counts as
    /// delivered only if a request that carried it was taken, as dead only if it was refused; and
    /// once the other side takes everything, it comes to an end.
    #[test]
    fn each_record_ends_exactly_once(
        sizes in prop::collection::vec(1usize..2000, 1..60),
        max_records in 1usize..60,
        max_bytes in 10usize..20_000,
        script in outcomes(),
        (width, seed) in (1usize..4, any::<u64>()),
    ) {
        let count = sizes.len();
        let mut plan = Plan::new(sizes.clone(), max_records, max_bytes);
        let (mut taken, mut refused) = (vec![false; count], vec![false; count]);
        let (mut next, mut limit) = (0, max_bytes);
        let (mut script, mut random) = (script.into_iter(), fastrand::Rng::with_seed(seed));
        let mut flying: Vec<(Key, Vec<usize>)> = Vec::new();
        loop {
            while let Some((key, piece)) = (flying.len() < width).then(|| plan.take()).flatten() {
                prop_assert!(!piece.is_empty() && piece.len() <= max_records);
                prop_assert!(piece.is_sorted());
                prop_assert!(piece.len() == 1 || plan.bytes(&piece) <= limit, "{} above {limit}", plan.bytes(&piece));
                prop_assert!(piece.iter().all(|&i| !taken[i]), "nothing taken is sent again");
                prop_assert!(flying.iter().all(|(k, p)| *k != key && p.iter().all(|i| !piece.contains(i))));
                flying.push((key, piece));
            }
            if flying.is_empty() {
                break;
            }
            // Answers come in any order.
            let (key, piece) = flying.swap_remove(random.usize(0..flying.len()));
            match script.next().unwrap_or(Outcome::Accepted) {
                Outcome::Accepted => {
                    piece.iter().for_each(|&i| taken[i] = true);
                    plan.accepted(key);
                }
                Outcome::Later => {
                    plan.later(key);
                }
                Outcome::TooLarge => {
                    refused[piece[0]] |= piece.len() == 1;
                    if piece.len() > 1 {
                        limit = limit.min(plan.bytes(&piece) / 2);
                    }
                    plan.too_large(key, plan.bytes(&piece) / 2, "413");
                }
                Outcome::Refused => {
                    refused[piece[0]] |= piece.len() == 1;
                    plan.refused(key, "422");
                }
                Outcome::Each(fates) => {
                    let fates: Vec<Fate> = fates.iter().take(piece.len()).map(|f| match f {
                        0 => Fate::Accepted,
                        1 => Fate::Later,
                        _ => Fate::Refused("422".into()),
                    }).collect();
                    for (&i, fate) in piece.iter().zip(&fates) {
                        taken[i] |= *fate == Fate::Accepted;
                        refused[i] |= matches!(fate, Fate::Refused(_));
                    }
                    plan.each(key, fates);
                }
            }
            for settled in settle_all(&mut plan) {
                match settled {
                    Settled::Delivered(range) => {
                        prop_assert_eq!(range.start, next);
                        next = range.end;
                        prop_assert!(range.into_iter().all(|i| taken[i]));
                    }
                    Settled::Dead(i, _) => {
                        prop_assert_eq!(i, next);
                        next += 1;
                        prop_assert!(refused[i] && !taken[i]);
                    }
                }
            }
        }
        prop_assert!(plan.is_done());
        prop_assert_eq!(next, count, "all are settled");
    }
}
